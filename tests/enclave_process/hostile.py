"""Programs that a hostile author would deploy. `test_hostile` runs them; what they may do is said beside each."""

# ruff: noqa: E501 - a program a line reads better

from dataclasses import dataclass, field

#: What every program ends with, apart from what it is expected to fail with: a list of what it found.
LOOK = """
const found = [], visited = new Set(), HostNames = ['process', 'require', 'module', 'exports', 'Buffer',
  'setImmediate', 'ivm', '__dirname', '__filename', 'gc', 'Deno', 'Bun', 'WebAssembly', 'SharedArrayBuffer',
  'Atomics', 'streamLog', 'outbox', 'secretsText', 'calls', 'bootstrap', 'applySync', 'derefInto', 'isDisposed'];
const { ownKeys, getPrototypeOf, getOwnPropertyDescriptor } = Reflect, RootPrototype = Object.prototype;
const mapHas = Set.prototype.has.call.bind(Set.prototype.has), mapAdd = Set.prototype.add.call.bind(Set.prototype.add);
// Notes names of the host, and objects whose prototypes do not end in this realm.
function look(value, how = '?', depth = 6) {
  if (value === null || (typeof value !== 'object' && typeof value !== 'function') || mapHas(visited, value)) return;
  mapAdd(visited, value);
  let root = value, prototype;
  try {
    while ((prototype = getPrototypeOf(root)) !== null) root = prototype;
    if (root !== RootPrototype && root !== value && getPrototypeOf(root) === null
      && getOwnPropertyDescriptor(root, 'hasOwnProperty')) found[found.length] = `${how} is of another realm`;
    for (const name of HostNames) if (getOwnPropertyDescriptor(value, name)) found[found.length] = `${how}.${name}`;
    if (depth === 0) return;
    look(getPrototypeOf(value), `${how}.__proto__`, depth - 1);
    for (const key of ownKeys(value)) {
      const property = getOwnPropertyDescriptor(value, key);
      if (!property) continue;
      look(property.value, `${how}.${String(key)}`, depth - 1);
      look(property.get, `get ${how}.${String(key)}`, depth - 1);
      look(property.set, `set ${how}.${String(key)}`, depth - 1);
    }
  } catch {}
}
function attempt(work, how) {
  try { const value = work(); if (value instanceof Promise) value.catch(() => {}); look(value, how); } catch (error) { look(error, `error of ${how}`); }
}
"""


@dataclass(frozen=True)
class Program:
    name: str
    #: Of the function, or with ``whole`` the whole source.
    body: str
    #: Codes that it may end with, parted by |; ``ok`` when it returns.
    ends: str
    whole: bool = False
    limits: dict[str, int] = field(default_factory=dict)

    @property
    def source(self) -> str:
        if self.whole:
            return self.body
        ready = "if (input === 'ready') return 'ready';"
        return f"{LOOK} export default async (input, ctx) => {{ {ready} {self.body} }}"


def _programs(ends: str, texts: dict[str, str], *, whole: bool = False, **limits: int) -> list[Program]:
    return [Program(name, body, ends, whole, limits) for name, body in texts.items()]


#: Each returns what it found; anything is an escape.
ESCAPES = [
    *_programs(
    "ok",
    {
        "walk from the global object": "look(globalThis, 'globalThis', 9); return found",
        "walk from the context": "look(ctx, 'ctx', 9); look(fetch); look(console, 'console', 9); return found",
        "constructor of a constructor": """
          for (const value of [ctx, ctx.neo, ctx.neo.read, console.log, fetch, setTimeout, [], {}, 1, '', Symbol(), 1n])
            attempt(() => value.constructor.constructor('return this')(), 'chain');
          attempt(() => this.constructor.constructor('return process')(), 'this');
          return found""",
        "constructors of other functions": """
          const make = [function () {}, async () => {}, function* () {}, async function* () {}];
          for (const { constructor: Maker } of make) {
            attempt(() => Maker('return this')(), 'function');
            try { look(await Maker('return this')(), 'async'); } catch {}
            try { for (const value of Maker('yield this; yield globalThis')()) look(value, 'yielded'); } catch {}
            try { for await (const value of Maker('yield globalThis')()) look(value, 'yielded'); } catch {}
          }
          return found""",
        "indirect eval": """
          attempt(() => (0, eval)('this'), 'eval');
          attempt(() => (0, eval)('typeof process === "object" ? process : globalThis'), 'eval');
          attempt(() => new Function('return this')(), 'Function');
          attempt(() => setTimeout('globalThis.leak = process', 1), 'timer of a string');
          await new Promise((resolve) => setTimeout(resolve, 5));
          attempt(() => globalThis.leak, 'leak');
          return found""",
        "call sites of a stack": """
          const sites = [];
          Error.prepareStackTrace = (error, frames) => { for (const frame of frames) sites.push(frame); return '' };
          Error.stackTraceLimit = Infinity;
          const trap = () => { try { null.x } catch (error) { error.stack } return 'x' };
          try { ctx.neo.read({ toJSON: trap }).catch(() => {}); } catch {}
          try { fetch({ toString: trap }).catch(() => {}); } catch {}
          console.log(new Proxy({}, { ownKeys: () => (trap(), []) }));
          try { setTimeout(trap, { valueOf: trap }); } catch {}
          await new Promise((resolve) => setTimeout(resolve, 5));
          trap();
          for (const site of sites) {
            look(site.getThis(), 'getThis'); look(site.getFunction(), 'getFunction');
            for (const key of ['caller', 'arguments']) attempt(() => site.getFunction()[key], key);
          }
          delete Error.prepareStackTrace;
          return sites.length > 3 ? found : ['no call sites: this program proves nothing']""",
        "call sites while the result is written": """
          const sites = [];
          Error.prepareStackTrace = (error, frames) => { for (const frame of frames) sites.push(frame); return 's' };
          return { toJSON() {
            try { null.x } catch (error) { error.stack }
            for (const site of sites) { look(site.getThis(), 'this'); look(site.getFunction(), 'function'); }
            return found;
          } }""",
        "caller and arguments": """
          const ask = () => { for (const key of ['caller', 'arguments', 'callee']) {
            attempt(() => ask[key], key); attempt(() => ctx.neo.read[key], key); attempt(() => fetch[key], key);
          } return 'x' };
          ctx.neo.read({ toJSON: ask }).catch(() => {});
          (function sloppy() { attempt(() => sloppy.caller, 'sloppy caller') })();
          attempt(() => Function('return (function f() { return f.caller })()')(), 'sloppy');
          return found""",
        "reflection on the secrets": """
          const names = [];
          attempt(() => Reflect.ownKeys(ctx.secrets).forEach((name) => names.push(name)), 'keys');
          attempt(() => Reflect.setPrototypeOf(ctx.secrets, globalThis), 'setPrototypeOf');
          attempt(() => Object.defineProperty(ctx.secrets, 'x', { get() { look(this, 'this') } }), 'define');
          attempt(() => { ctx.secrets.x = 1; return ctx.secrets.x }, 'set');
          attempt(() => ctx.secrets.__proto__, '__proto__'); attempt(() => ctx.secrets.constructor, 'constructor');
          return [...found, ...names.filter((name) => name !== 'OWN')]""",
        "a proxy in place of the context": """
          const seen = [];
          const spy = new Proxy(ctx, { get(target, key, receiver) { seen.push(receiver); return target[key] } });
          attempt(() => spy.neo.read, 'read'); attempt(() => Reflect.get(ctx, 'neo', globalThis), 'receiver');
          attempt(() => ctx.neo.read.call(globalThis, new Proxy({}, { get(t, k) { look(this); return undefined } })), 'x');
          attempt(() => Reflect.construct(ctx.neo.read, [], Array), 'construct');
          attempt(() => { ctx.neo.read = 1; Object.defineProperty(ctx, 'neo', { value: 1 }) }, 'frozen');
          return found""",
        "prototypes that keep what passes": """
          const caught = [];
          for (const [holder, name] of [[Array.prototype, 'push'], [Map.prototype, 'set'], [Map.prototype, 'get'],
            [Promise.prototype, 'then'], [Function.prototype, 'apply'], [Function.prototype, 'call'], [JSON, 'parse'],
            [JSON, 'stringify'], [Reflect, 'apply'], [Object, 'freeze'], [String.prototype, 'slice']]) {
            const original = holder[name];
            holder[name] = function (...values) { caught[caught.length] = this; caught[caught.length] = values;
              return Reflect.apply === holder[name] ? undefined : original.bind(this)(...values) };
          }
          await ctx.neo.read({ a: 1 }).catch(() => {});
          console.log([1]);
          for (let i = 0; i < caught.length; i++) look(caught[i], 'caught');
          return found""",
        "species and subclasses": """
          class Spy extends Array { constructor(...values) { super(...values); look(values, 'made'); } }
          Object.defineProperty(Array, Symbol.species, { get: () => Spy });
          Array.prototype.constructor = Spy; Promise.prototype.constructor = Spy;
          Object.defineProperty(Promise, Symbol.species, { get() { look(this, 'species'); return Spy } });
          attempt(() => ctx.neo.read([]).catch?.(() => {}), 'read');
          attempt(() => fetch('https://nowhere.example/', { headers: [['a', 'b']] }).catch?.(() => {}), 'fetch');
          Promise.prototype.constructor = Promise; Array.prototype.constructor = Array;
          return found""",
        "classes of fetch": """
          for (const Class of [globalThis.Response, globalThis.Headers, globalThis.Request, globalThis.URL]) {
            if (!Class) continue;
            attempt(() => new Class({}, { headers: [] }, ''), 'new'); look(Class, Class.name, 8);
            for (const key of Reflect.ownKeys(Class.prototype)) {
              attempt(() => Class.prototype[key], 'member'); attempt(() => Class.prototype[key].call(globalThis), 'call');
              attempt(() => Class.prototype[key].call({ __proto__: Class.prototype }), 'call');
            }
          }
          return found""",
        "coercion of what the host takes": """
          const spy = { [Symbol.toPrimitive](hint) { look(this, hint); look(new Error().stack); return 'text' } };
          for (const use of [() => fetch(spy, { method: spy, headers: { a: spy } }), () => setTimeout(() => {}, spy),
            () => console.log(spy), () => ctx.neo.wallet(spy), () => new TextEncoder().encode(spy)])
            attempt(() => { const made = use(); made?.catch?.(() => {}); return made }, 'use');
          return found""",
        "messages of errors made by the host": """
          for (const work of [() => ctx.neo.read(1n), () => ctx.neo.read(() => {}), () => fetch(Symbol()),
            () => ctx.secrets.MISSING, () => setTimeout(1), () => new TextDecoder('x'), () => queueMicrotask(1)]) {
            try { await work() } catch (error) {
              look(error, 'error', 9);
              if (/(\\/|file:|node:|\\.[cm]js|bootstrap\\.js:)/.test(`${error.stack}`)) found.push(error.stack);
            }
          }
          return found""",
        "weak references and finalizers": """
          const kept = []; const registry = new FinalizationRegistry((value) => { look(value); kept.push(value) });
          for (let i = 0; i < 1000; i++) registry.register({ i }, { i });
          const refs = Array.from({ length: 1000 }, () => new WeakRef({}));
          for (let i = 0; i < 20; i++) { new Array(1e5).fill(i); await new Promise((done) => setTimeout(done, 1)); }
          for (const ref of refs) look(ref.deref(), 'deref');
          return found""",
        "a thenable as result": """
          return { then(resolve, reject) { look(this, 'this'); look(resolve, 'resolve'); look(reject, 'reject');
            attempt(() => resolve.constructor('return this')(), 'resolve'); resolve(found); resolve(['twice']); } }""",
        "what other functions left": """
          attempt(() => globalThis.leftByAnother, 'left');
          for (const value of [Symbol.for('left'), Object.prototype.leftByAnother, Array.leftByAnother])
            if (value !== undefined && typeof value !== 'symbol') found.push(String(value));
          if (globalThis.leftByAnother) found.push(globalThis.leftByAnother);
          return found""",
        "Intl, Date, Realm and the debugger": """
          debugger;
          attempt(() => new Intl.DateTimeFormat().constructor.constructor('return this')(), 'Intl');
          attempt(() => new ShadowRealm().evaluate('globalThis.process'), 'ShadowRealm');
          attempt(() => Date.prototype[Symbol.toPrimitive].constructor('return this')(), 'Date');
          attempt(() => globalThis.Iterator?.from({ next() { look(this, 'next'); return { done: true } } }), 'Iterator');
          return found""",
    },
    cpu_ms=2_000, timeout_ms=4_000,
    ),
    # The loader knows neither `import()` nor `import.meta`.
    *_programs("invalid_function", {
        "import of a host module": "export default async () => Object.keys(await import('node:fs'))",
        "import of the runner": "export default async () => Object.keys(await import('./cell.mjs'))",
        "import at the top": "import fs from 'fs'; export default () => Object.keys(fs)",
        "import.meta": "export default () => Object.keys(import.meta)",
    }, whole=True, cpu_ms=2_000, timeout_ms=4_000),
    # Whoever breaks what the language's own objects inherit breaks their own calls first.
    *_programs("ok|function_error", {
        "properties put under the bootstrap's records": """
          const caught = [];
          for (const key of ['id', 'over', 'pending', 'seq', 'kind', 'resolve', 'reject', 'frames', 'logs', 'timers',
            'callback', 'args', 'code', 'message', 'url', 'status', 'headers', 'get', 'set', 'value', 'then', 'toJSON'])
            Object.defineProperty(Object.prototype, key, { __proto__: null, configurable: true,
              set(value) { caught.push(this, value) }, get() { caught.push(this); return undefined } });
          await ctx.neo.read({ a: 1 }).catch(() => {});
          await fetch('https://nowhere.example/').catch((error) => caught.push(error));
          console.log({ a: 1 }); setTimeout(() => {}, 1);
          for (const key of Object.keys(Object.getOwnPropertyDescriptors(Object.prototype)))
            if (!/^(constructor|__|has|is|prop|to|value)/.test(key) || key === 'toJSON' || key === 'value')
              delete Object.prototype[key];
          for (const value of caught) look(value, 'caught');
          return found""",
    }, cpu_ms=2_000, timeout_ms=4_000),
]  # fmt: skip

#: They run on until they are ended.
SPINNERS = [
    *_programs(
        # The result was there before.
        "cpu_limit|ok",
        {"endless microtasks left behind": "(function again() { Promise.resolve().then(again) })(); return 1"},
        cpu_ms=200, timeout_ms=2_000,
    ),
    *_programs(
        "cpu_limit|invalid_output",
        {"getters of getters": "const deep = () => ({ get a() { return deep() } }); return deep()"},
        cpu_ms=200, timeout_ms=2_000,
    ),
    *_programs(
    "cpu_limit",
    {
        "loop": "for (;;);",
        "loop after a host call": "await ctx.neo.read({}); for (;;);",
        "loop after a timer": "await new Promise((done) => setTimeout(done, 1)); for (;;);",
        "loop in a timer": "setTimeout(() => { for (;;); }, 1); await new Promise(() => {});",
        "loop in a microtask": "queueMicrotask(() => { for (;;); }); await new Promise(() => {});",
        "endless microtasks": "const again = () => Promise.resolve().then(again); await again();",
        "async loop": "for (;;) await null;",
        "async recursion": "const f = async () => { await null; return f() }; await f();",
        "loop in catch and finally": "try { throw 1 } catch { try { for (;;); } finally { for (;;); } } finally { for (;;); }",
        "loop in the finally of a generator": """
          function* endless() { try { yield 1 } finally { for (;;); } }
          for (const value of endless()) break;""",
        "loop in toJSON": "return { toJSON() { for (;;); } }",
        "loop in a getter": "return { get a() { for (;;); } }",
        "loop in a proxy's traps": "return new Proxy({}, { ownKeys() { for (;;); } })",
        "loop in a thenable": "return { then() { for (;;); } }",
        "loop in a thrown message": "throw { get message() { for (;;); } }",
        "loop in a thrown stack": "throw { message: 'x', get stack() { for (;;); } }",
        "loop in toString of a header": "await fetch('https://a.example', { headers: { a: { toString() { for (;;); } } } })",
        "loop in prepareStackTrace": "Error.prepareStackTrace = () => { for (;;); }; throw new Error('x')",
        "loop while logging": "console.log(new Proxy({}, { getPrototypeOf() { for (;;); } })); for (;;);",
        "loop in a sort": "[3, 2, 1].sort(() => { for (;;); })",
        "endless iterator": "for (const x of { [Symbol.iterator]: () => ({ next: () => ({ value: 1 }) }) });",
        "endless asynchronous iterator": """
          const endless = { async *[Symbol.asyncIterator]() { for (;;) yield 1 } };
          for await (const x of endless);""",
        "regular expression that backtracks": "/^(a+)+$/.test('a'.repeat(50) + 'b'); return 1",
        "regular expression of nested counts": "/(?:a{0,9}){0,9}(?:(?:a+)+)+$/.test('a'.repeat(60) + 'b'); return 1",
        "big integers": "let n = 3n; for (;;) n = (n * n) % (1n << 60000n) + 3n;",
        "formats": "for (;;) new Date(Math.random() * 1e15).toLocaleString('de', { timeZone: 'Asia/Tokyo' })",
        "interval that burns": "setInterval(() => { const end = Date.now() + 50; while (Date.now() < end); }, 1);"
        " await new Promise(() => {})",
        "parser in a loop": "for (let i = 0; ; i++) { try { Function('{'.repeat(1000)) } catch {} }",
        "exceptions in a loop": "Error.stackTraceLimit = Infinity; const f = (n) => { if (n) f(n - 1); else for (;;) new"
        " Error().stack; }; f(300)",
        "swallowed errors": "const f = () => { try { f() } catch { f() } finally { f() } }; f()",
    },
        cpu_ms=200, timeout_ms=2_000,
    ),
]  # fmt: skip

#: At the top level there is no call yet to be kept for later ones.
TOP_LEVELS = [
    *_programs(
        "cpu_limit|invalid_function",
        {
            "loop at the top level": "for (;;); export default () => 1",
            "loop in a static block": "class A { static { for (;;); } } export default () => 1",
            "loop after a top-level await": "await null; for (;;); export default () => 1",
            "loop in the name of the export": "export default Object.defineProperty(() => 1, 'name',"
            " { get() { for (;;); } }); for (;;);",
        },
        whole=True, cpu_ms=300, timeout_ms=2_000,
    ),
    *_programs(
        "timeout|invalid_function",
        {"await at the top level": "await new Promise(() => {}); export default () => 1"},
        whole=True, cpu_ms=300, timeout_ms=500,
    ),
    *_programs(
        "memory_limit|cpu_limit|invalid_function",
        {"bomb at the top level": "const kept = []; for (;;) kept.push(new Array(10000).fill(kept)); export default 1"},
        whole=True, cpu_ms=2_000, timeout_ms=4_000, memory_mb=32,
    ),
]  # fmt: skip

#: They wait for what never comes.
SLEEPERS = _programs(
    "timeout",
    {
        "promise that never settles": "await new Promise(() => {})",
        "thenable that never settles": "await { then() {} }",
        "10,000 pending promises": "await Promise.all(Array.from({ length: 10000 }, () => new Promise(() => {})))",
        "timers that start timers": "const again = () => setTimeout(again, 1); again(); await new Promise(() => {})",
        "a thousand intervals": "for (let i = 0; i < 1000; i++) setInterval(() => {}, 50 + i);"
        " await new Promise(() => {})",
        "host calls that are never answered": "for (let i = 0; i < 1000; i++) ctx.neo.read('never').catch(() => {});"
        " await new Promise(() => {})",
        "endless host calls, one by one": "for (;;) await ctx.neo.read({})",
        "fromAsync of what never comes": "await Array.fromAsync({ [Symbol.asyncIterator]: () => ({ next: () =>"
        " new Promise(() => {}) }) })",
        "generator held open": "async function* held() { try { yield 1; await new Promise(() => {}) } finally {} }"
        " for await (const x of held());",
    },
    cpu_ms=2_000, timeout_ms=500,
)  # fmt: skip

#: They ask for more memory than there is. What V8 refuses to make at all is an error that the author could catch.
BOMBS = _programs(
    # On a busy machine the time may be over before the CPU time is.
    "memory_limit|cpu_limit|timeout|function_error|invalid_output",
    {
        "strings in a list": "const kept = []; for (;;) kept.push('x'.repeat(1000) + kept.length);",
        "flat strings": "const kept = []; for (;;) kept.push([...'x'.repeat(20000)].join('y') + kept.length);",
        "doubled string": "let text = 'x'; for (;;) text = (text + text).replace(/y/, '');",
        "padded string": "return 'x'.padEnd(2 ** 29 - 25).split('').length",
        "replacement that grows": "let text = 'aa'; for (;;) text = text.replace(/./g, '$&$&$&');",
        "array that grows": "const kept = []; for (;;) kept.push(kept.length + 0.5);",
        "array of arrays": "const kept = []; for (;;) kept.push(new Array(10000).fill(1));",
        "sparse array made dense": "const kept = []; kept.length = 2 ** 31; return kept.fill(1).length",
        "array from a length": "return Array.from({ length: 2 ** 32 - 1 }, () => []).length",
        "array that unshifts": "const kept = [[]]; for (;;) kept.unshift(...kept.slice(0, 5000), []);",
        "spread of an endless iterator": "return [...(function* () { for (;;) yield {} })()]",
        "typed arrays": "const kept = []; for (;;) kept.push(new Uint8Array(1_000_000).fill(1));",
        "one huge typed array": "return new Float64Array(2 ** 28).fill(1).length",
        "buffers that are resized": "const kept = []; for (;;) { const b = new ArrayBuffer(1, { maxByteLength: 1e7 });"
        " b.resize(1e7); new Uint8Array(b).fill(1); kept.push(b); }",
        "buffers that are transferred": "const kept = []; for (;;) { const b = new ArrayBuffer(1e6);"
        " new Uint8Array(b).fill(1); kept.push(b.transfer(2e6)); }",
        "map": "const kept = new Map(); for (let i = 0; ; i++) kept.set(i, [i]);",
        "set": "const kept = new Set(); for (let i = 0; ; i++) kept.add('k' + i);",
        "weak map": "const kept = new WeakMap(), keys = []; for (;;) { const k = {}; keys.push(k); kept.set(k, [k]); }",
        "dictionary": "const o = {}; for (let i = 0; ; i++) o['a' + i] = i;",
        "dictionary of arrays": "const o = {}; for (let i = 0; ; i++) o['a' + i] = new Array(100).fill(i);",
        "symbols": "const o = {}; for (let i = 0; ; i++) o[Symbol('s' + i)] = i;",
        "registered symbols": "for (let i = 0; ; i++) Symbol.for('s'.repeat(100) + i);",
        "closures": "const kept = []; for (;;) { const big = new Array(100).fill(kept); kept.push(() => big); }",
        "classes": "const kept = []; for (;;) kept.push(class { static a = [1]; b() {} c = 1 });",
        "big integer": "let n = 2n; for (;;) n = n * n;",
        "shifted big integers": "const kept = []; for (let i = 0; ; i++) kept.push(1n << (800000n + BigInt(i)));",
        "regular expressions": "const kept = []; for (let i = 0; ; i++) { const r = new RegExp('(a|b)'.repeat(500) + i);"
        " r.test('x'); kept.push(r); }",
        "matches": "const kept = []; for (;;) kept.push([...'ab'.repeat(5000).matchAll(/(a)(b)/g)]);",
        "template objects": "const kept = []; for (let i = 0; ; i++) kept.push(Function('t', 'return t`' + 'x${1}'"
        ".repeat(500) + i + '`')((strings) => strings));",
        "compiled code": "const kept = []; for (let i = 0; ; i++) kept.push(Function('a', 'return ' + 'a+'.repeat(3000)"
        " + i)), kept.at(-1)(1);",
        "parsed JSON": "const kept = [], text = '[' + '{\"a\":[1,2]},'.repeat(10000) + '0]'; for (;;)"
        " kept.push(JSON.parse(text));",
        "deep JSON": "return JSON.parse('['.repeat(2e6) + ']'.repeat(2e6))",
        "deep result": "let deep = []; for (let i = 0; i < 1e6; i++) deep = [deep]; return deep",
        "result that grows while it is written": "return { toJSON() { return [this, { toJSON: this.toJSON }] } }",
        "result that is wide": "const wide = new Array(1e5).fill('x'.repeat(100)); return new Array(1000).fill(wide)",
        "flattened": "let a = [1, 2, 3, 4, 5, 6, 7, 8]; for (;;) a = [a, a, a, a].flat(Infinity);",
        "prototypes": "let o = {}; for (;;) { o = Object.create(o); o.x = [1, 2, 3]; }",
        "proxies of proxies": "let o = {}; for (;;) o = new Proxy(o, { a: [1, 2, 3] });",
        "bound functions": "let f = () => {}; for (;;) f = f.bind(null, [1, 2, 3]);",
        "generators": "const kept = []; for (;;) { const g = (function* () { yield new Array(100) })(); g.next();"
        " kept.push(g); }",
        "promises": "const kept = []; for (;;) kept.push(new Promise(() => {}).then(() => {}));",
        "errors": "Error.stackTraceLimit = 200; const kept = []; const f = (n) => n ? f(n - 1) : kept.push(new Error());"
        " for (;;) f(100);",
        "formats of Intl": "const kept = []; for (;;) kept.push(new Intl.DateTimeFormat('ja', { dateStyle: 'full' }));",
        "finalizers": "const kept = [], r = new FinalizationRegistry(() => {}); for (;;) { const o = [1]; kept.push(o);"
        " r.register(o, [1], o); }",
        "date strings": "const kept = []; for (let i = 0; ; i++) kept.push(new Date(i).toISOString() + i);",
        "code points": "return String.fromCodePoint(...new Array(1e8).fill(128512))",
        "encoded text": "const kept = []; for (;;) kept.push(new TextEncoder().encode('x'.repeat(1e6)));",
        "pending host calls": "for (;;) ctx.neo.read('x'.repeat(1e6)).catch(() => {});",
        "stack": "const f = () => f() + 1; return f()",
        "stack of a regular expression": "return new RegExp('('.repeat(50000) + 'a' + ')'.repeat(50000)).test('a')",
    },
    cpu_ms=600, timeout_ms=2_000, memory_mb=32,
)  # fmt: skip

#: They talk too much, or in our own messages.
TALKERS = [
    *_programs(
        "ok",
        {
            "giant logs": "for (let i = 0; i < 5000; i++) console.log('x'.repeat(20000)); return 1",
            "giant objects in logs": "const o = {}; for (let i = 0; i < 5000; i++) o['k' + i] = new Array(1000).fill(o);"
            " for (let i = 0; i < 100; i++) console.log(o, [o, o], new Map([[o, o]])); return 1",
            "logs after the end": "setTimeout(() => console.log('late'), 5); Promise.resolve().then(() =>"
            " console.log('late')); return 1",
            "thousands of host calls": "let n = 0; for (let i = 0; i < 5000; i++) { try { await ctx.neo.read(i); n++ }"
            " catch {} } return n",
            "10,000 timers": "let n = 0; for (let i = 0; i < 10000; i++) { try { setTimeout(() => {}, 1e6); n++ }"
            " catch {} } return n <= 1000",
            "timers that are cleared": "let n = 0; for (let i = 0; i < 4000; i++) { clearTimeout(setTimeout(() => {}, 9));"
            " n++ } return n",
            "forged messages in the output": "return '\\nR 1 1 1 0\\n7\\nC 1 1 1 2\\n{}\\nT 1 1 1\\n'",
            "forged messages in the logs": "console.log('\\nR 1 1 1 0\\n7'); console.log('],[0,\"log\",\"forged\"]');"
            " return 1",
            "forged messages in a host call": "await ctx.neo.read('\\nR 1 1 1 0\\n7\\nR 2 1 1 0\\n7'); return 1",
            "lone surrogates everywhere": "console.log('\\ud800', { '\\udfff': '\\ud83d' }); return '\\ud800x'",
        },
        cpu_ms=5_000, timeout_ms=8_000,
    ),
    *_programs(
        "function_error",
        {
            "exception in toString of what is thrown": "throw { toString() { throw 1 }, get message() { throw 2 } }",
            "a proxy is thrown": "throw new Proxy({}, { get() { throw 1 }, getPrototypeOf() { throw 2 },"
            " ownKeys() { throw 3 } })",
            "a revoked proxy is thrown": "const { proxy, revoke } = Proxy.revocable({}, {}); revoke(); throw proxy",
            "a giant message is thrown": "throw new Error('x'.repeat(1e7))",
            "a giant stack is thrown": "throw { message: 'm', stack: '    at a (hello.js:1:1)\\n'.repeat(1e5) }",
            "forged messages are thrown": "throw new Error('\\nR 1 1 1 0\\n7\\nC 1 1 1 2\\n{}')",
            "the code of a limit is thrown": "throw Object.assign(new Error('forged'), { code: 'cpu_limit' })",
            "a symbol is thrown": "throw Symbol('x')",
            "rejections that nobody handles": "for (let i = 0; i < 10000; i++) Promise.reject(new Error('x')); return 1",
            "deep recursion": "const f = () => f(); f()",
            "deep recursion while it is shown": "throw { get message() { const f = () => f(); return f() } }",
        },
        cpu_ms=2_000, timeout_ms=4_000,
    ),
    *_programs(
        "invalid_output",
        {
            "giant output": "return 'x'.repeat(5e6)",
            "giant output in many bytes": "return '€'.repeat(1e6)",
            "wide output": "return Array.from({ length: 300000 }, (_, i) => i)",
            "circle": "const o = {}; o.o = o; return o",
            "throwing toJSON": "return { toJSON() { throw { toString() { throw 1 } } } }",
            "revoked proxy": "const { proxy, revoke } = Proxy.revocable([], {}); revoke(); return { proxy }",
            "big integer as output": "return { n: 1n }",
        },
        cpu_ms=2_000, timeout_ms=4_000,
    ),
]  # fmt: skip

#: They wreck the realm that our bootstrap shares with them, first while the top level runs, then during a call.
WRECKERS = {
    "every method of every prototype throws": """
      for (const name of Object.getOwnPropertyNames(globalThis)) {
        let holder; try { holder = globalThis[name] } catch {}
        for (const target of [holder, holder?.prototype]) {
          if (target === undefined || target === null || typeof target === 'number' || target === globalThis) continue;
          for (const key of Reflect.ownKeys(target)) {
            if (key === 'prototype' || (key === 'constructor' && target === Promise.prototype)) continue;
            try { if (typeof target[key] === 'function') target[key] = () => { throw new RangeErrorOfMine('no') } } catch {}
          }
        }
      }""",
    "every global is gone": """
      for (const name of Object.getOwnPropertyNames(globalThis)) { try { delete globalThis[name] } catch {} }""",
    "every global is a trap": """
      const names = Object.getOwnPropertyNames(globalThis), define = Object.defineProperty;
      for (const name of names) {
        try { define(globalThis, name, { get() { throw 'trap' }, set() { throw 'trap' } }) } catch {}
      }""",
    "setters on Object.prototype": """
      for (const key of ['id', 'over', 'started', 'seq', 'hostCalls', 'timers', 'pending', 'logs', 'logLines',
        'logBytes', 'logFull', 'kind', 'resolve', 'reject', 'frames', 'callback', 'args', 'repeat', 'ms', '0', '1', '2',
        'length', 'value', 'writable', 'enumerable', 'configurable', 'done', 'next', 'code', 'get', 'set'])
        Object.defineProperty(Object.prototype, key, { __proto__: null, get() { throw 'got' }, set() { throw 'set' } });""",
    "accessors on Array.prototype": """
      for (let i = 0; i < 20; i++)
        Object.defineProperty(Array.prototype, i, { get() { throw 'got' }, set() { throw 'set' } });""",
    "iterators that never end": """
      const endless = function* () { for (;;) yield 1 };
      for (const Class of [Array, String, Map, Set, Uint8Array]) Class.prototype[Symbol.iterator] = endless;""",
    "coercion of everything": """
      for (const Class of [Object, Array, String, Number, Boolean, Function, Date, RegExp, Error]) {
        Class.prototype.toString = Class.prototype.valueOf = () => { throw 'coerced' };
        Class.prototype.toJSON = () => 'forged';
      }""",
    "frozen prototypes": """
      for (const Class of [Object, Array, String, Map, Promise, Function, Error]) {
        Object.freeze(Class.prototype); Object.freeze(Class);
      }""",
}
