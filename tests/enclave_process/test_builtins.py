"""The globals that a function finds, held to the standards' own examples and to Node's."""

import asyncio
import hashlib
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from neolayer_enclave.__main__ import bundled_node
from neolayer_enclave.loading import BOOTSTRAP, CELL, RUNNER
from tests.enclave_process.host import Host, logs, output
from tests.enclave_process.javascript import by_node, evaluate

# --- the script itself --------------------------------------------------------------------------------------


def test_what_cells_load_is_what_the_sources_make(tmp_path: Path) -> None:
    node = bundled_node()
    assert node
    subprocess.run([node, RUNNER / "build.mjs", tmp_path], check=True)
    for built in (BOOTSTRAP, CELL):
        assert (tmp_path / built.name).read_bytes() == built.read_bytes()
    assert BOOTSTRAP.read_bytes().isascii()


async def test_a_global_is_found_under_its_name_and_can_be_replaced(host: Host) -> None:
    names = [
        "fetch",
        "Request",
        "Response",
        "Headers",
        "URL",
        "URLSearchParams",
        "TextEncoder",
        "TextDecoder",
        "atob",
        "btoa",
        "structuredClone",
        "Crypto",
        "CryptoKey",
        "SubtleCrypto",
        "DOMException",
        "Event",
        "EventTarget",
        "AbortController",
        "AbortSignal",
        "setTimeout",
        "queueMicrotask",
    ]
    assert await evaluate(host, "input.filter((name) => globalThis[name]?.name !== name)", names) == []
    assert await evaluate(host, "(globalThis.URL = 1, globalThis.fetch = 2, [URL, fetch])") == [1, 2]
    assert await evaluate(host, "Object.keys(globalThis)") == []
    assert await evaluate(host, "self === globalThis && typeof require + typeof process") == "undefinedundefined"
    absent = (
        "['WebAssembly', 'SharedArrayBuffer', 'Atomics', 'ivm', 'neolayer'].filter((name) => name in globalThis)"
    )
    assert await evaluate(host, absent) == []


# --- text and base64 ----------------------------------------------------------------------------------------

TEXTS = ["", "a", "ü", "€", "😀", "a\x00b", "\ufeffx", "x" * 20_000, "€😀" * 9_000, "a\ud800b\udc00"]


async def test_text_is_encoded_and_decoded(host: Host) -> None:
    encoded = await evaluate(host, "input.map((text) => shown(new TextEncoder().encode(text)))", TEXTS)
    assert [bytes(each) for each in encoded] == [
        re.sub("[\ud800-\udfff]", "\ufffd", text).encode() for text in TEXTS
    ]
    whole = TEXTS[:-1]
    again = (
        "input.map((text) => new TextDecoder('UTF8', { ignoreBOM: true }).decode(new TextEncoder().encode(text)))"
    )
    assert await evaluate(host, again, whole) == whole
    assert await evaluate(host, "new TextDecoder().decode(Uint8Array.of(0xef, 0xbb, 0xbf, 65))") == "A"


async def test_a_decoder_joins_what_comes_in_pieces(host: Host) -> None:
    pieces = """((size, text) => {
      const bytes = new TextEncoder().encode(text), decoder = new TextDecoder();
      let out = '';
      for (let at = 0; at < bytes.length; at += size) out += decoder.decode(bytes.subarray(at, at + size), {
        stream: true });
      return out + decoder.decode() === text.replace(/^\\ufeff/, '');
    })"""
    check = f"[1, 2, 3, 5].map((size) => {pieces}(size, input))"
    assert await evaluate(host, check, "\ufeffaü€😀 ünd \ufeff weiter 😀") == [True] * 4
    cut = """(() => {
      const decoder = new TextDecoder();
      return decoder.decode(Uint8Array.of(65, 0xe2, 0x82), { stream: true }) + decoder.decode();
    })()"""
    assert await evaluate(host, cut) == "A\ufffd"
    fatal = "new TextDecoder('utf-8', { fatal: true }).decode(Uint8Array.of(0xff))"
    assert await evaluate(host, f"caught(() => {fatal})") == "TypeError TypeError"
    assert await evaluate(host, "caught(() => new TextDecoder('utf-16le'))") == "RangeError RangeError"
    assert await evaluate(host, "caught(() => new TextDecoder().decode('text'))") == "TypeError TypeError"


async def test_wrong_bytes_become_replacement_characters_as_in_python(host: Host) -> None:
    cases = [
        "c080",
        "e08080",
        "eda080",
        "f0808080",
        "f4908080",
        "f5",
        "e282",
        "e28241",
        "f09f98",
        "80",
        "c3c3bc",
        "fffe",
    ]
    decode = "input.map((bytes) => new TextDecoder().decode(Uint8Array.from(bytes)))"
    ours = await evaluate(host, decode, [list(bytes.fromhex(case)) for case in cases])
    assert ours == [bytes.fromhex(case).decode(errors="replace") for case in cases]


async def test_encode_into_stops_where_a_character_does_not_fit(host: Host) -> None:
    expression = """input.map(([text, room]) => {
      const bytes = new Uint8Array(room), { read, written } = new TextEncoder().encodeInto(text, bytes);
      return [read, written, shown(bytes)];
    })"""
    cases = [["abc", 2], ["aü", 2], ["a😀b", 4], ["a😀b", 5], ["€", 3], ["", 1]]
    assert await evaluate(host, expression, cases) == [
        [2, 2, [97, 98]],
        [1, 1, [97, 0]],
        [1, 1, [97, 0, 0, 0]],
        [3, 5, [97, 0xF0, 0x9F, 0x98, 0x80]],
        [1, 3, [0xE2, 0x82, 0xAC]],
        [0, 0, [0]],
    ]


async def test_base64_follows_the_forgiving_rules_of_node(host: Host) -> None:
    function = """(input) => input.map((text) => {
      const tried = (work) => { try { return work() } catch (error) { return [error.name, error.code] } };
      return [tried(() => btoa(text)), tried(() => atob(text))];
    })"""
    cases = [
        "",
        "a",
        "ab",
        "abc",
        "abcd",
        "ÿ\u0000",
        "€",
        "YQ==",
        "YQ=",
        "YQ",
        " Y Q\n==",
        "Y",
        "Y===",
        "YWJj",
        "!!!!",
        "ab-_",
        "=",
        "YR==",
    ]
    assert await evaluate(host, f"({function})(input)", cases) == by_node(function, cases)


# --- structuredClone ----------------------------------------------------------------------------------------


async def test_values_are_cloned_with_their_kind_and_shape(host: Host) -> None:
    source = """export default () => {
      const shared = { deep: [1, { two: 2n }] };
      const value = {
        shared, again: shared, date: new Date(5), pattern: /a\\/b/giu, map: new Map([[shared, new Set([1, 'x'])]]),
        bytes: Uint8Array.of(1, 2, 3), floats: new Float64Array([1.5]), view: new DataView(new ArrayBuffer(4),
          1, 2),
        sparse: [1, , 3], boxed: [new Number(1), new String('s'), new Boolean(false), Object(1n)],
          nothing: null, un: undefined,
        error: new RangeError('far', { cause: shared }), bare: Object.assign(Object.create(null), { a: 1 }),
      };
      value.self = value;
      value.map.set('self', value.map);
      const copy = structuredClone(value);
      const key = [...copy.map.keys()][0];
      return [
        copy !== value && copy.self === copy && copy.map.get('self') === copy.map, copy.shared === copy.again
          && copy.shared === key,
        copy.shared !== shared && String(copy.shared.deep[1].two), copy.date.getTime(), String(copy.pattern),
        [...copy.map.get(key)], [...copy.bytes], [...copy.floats], copy.view.byteOffset + copy.view.byteLength,
        1 in copy.sparse, copy.sparse.length, copy.boxed.map((each) => typeof each + typeof each.valueOf()),
          copy.nothing,
        'un' in copy, copy.error instanceof RangeError, copy.error.message, copy.error.cause === copy.shared,
        Object.getPrototypeOf(copy.bare) === Object.prototype, copy.bytes.buffer !== value.bytes.buffer,
      ];
    }"""
    assert output(await host.run(source)) == [
        True, True, "2", 5, "/a\\/b/giu", [1, "x"], [1, 2, 3], [1.5], 3, False, 3,
        ["objectnumber", "objectstring", "objectboolean", "objectbigint"], None, True, True, "far", True, True,
        True,
    ]  # fmt: skip


async def test_classes_lose_their_class_and_getters_become_values(host: Host) -> None:
    expression = """(() => {
      class Point { #hidden = 1; x = 1; get y() { return 2 } }
      const copy = structuredClone(Object.assign(new Point(), { get z() { return 3 } }));
      return [copy.constructor === Object, Object.keys(copy), copy.z,
        structuredClone(new (class extends Map {})([[1, 2]])).get(1)];
    })()"""
    assert await evaluate(host, expression) == [True, ["x", "z"], 3, 2]


@pytest.mark.parametrize(
    "value",
    [
        "() => 1",
        "Symbol('x')",
        "{ f() {} }",
        "[Symbol.iterator]",
        "Promise.resolve()",
        "new WeakMap()",
        "new Headers()",
        "new Response('x')",
        "new AbortController().signal",
        "new URL('http://x')",
        "(() => { let deep = []; for (let i = 0; i < 1e5; i++) deep = [deep]; return deep })()",
    ],
)
async def test_what_cannot_be_cloned_is_refused(host: Host, value: str) -> None:
    refused = await evaluate(host, f"caught(() => structuredClone({value}))")
    assert refused == "DOMException DataCloneError"


async def test_transferred_memory_leaves_its_owner(host: Host) -> None:
    expression = """(() => {
      const bytes = Uint8Array.of(1, 2), copy = structuredClone({ bytes }, { transfer: [bytes.buffer] });
      return [bytes.length, bytes.buffer.detached, [...copy.bytes]];
    })()"""
    assert await evaluate(host, expression) == [0, True, [1, 2]]
    twice = (
        "(() => { const b = new ArrayBuffer(1); return caught(() => structuredClone(b, { transfer: [b, b] })) })()"
    )
    assert await evaluate(host, twice) == "DOMException DataCloneError"


# --- events and aborting ------------------------------------------------------------------------------------


async def test_events_reach_their_listeners_in_order(host: Host) -> None:
    expression = """(() => {
      const target = new EventTarget(), seen = [];
      const listener = (event) => seen.push(event.type, event.target === target);
      target.addEventListener('x', listener);
      target.addEventListener('x', listener);
      target.addEventListener('x', { handleEvent(event) { seen.push('object'); event.preventDefault() } }, {
        once: true });
      const went = [target.dispatchEvent(new Event('x', { cancelable: true })),
        target.dispatchEvent(new Event('x'))];
      target.removeEventListener('x', listener);
      target.dispatchEvent(new Event('x'));
      return [seen, went];
    })()"""
    assert await evaluate(host, expression) == [["x", True, "object", "x", True], [False, True]]


async def test_signals_tell_once_and_why(host: Host) -> None:
    expression = """(async () => {
      const controller = new AbortController(), { signal } = controller, seen = [];
      signal.onabort = (event) => seen.push(event.type);
      signal.addEventListener('abort', () => seen.push('listener'));
      const any = AbortSignal.any([new AbortController().signal, signal]);
      controller.abort(); controller.abort('again');
      const late = AbortSignal.timeout(20);
      await new Promise((done) => late.addEventListener('abort', done));
      return [seen, signal.aborted, signal.reason.name, signal.reason.code, any.reason === signal.reason,
        late.reason.name,
        AbortSignal.abort(5).reason, await caught(() => signal.throwIfAborted()),
          await caught(() => new AbortSignal()),
        AbortSignal.any([AbortSignal.abort(1), AbortSignal.abort(2)]).reason];
    })()"""
    assert await evaluate(host, expression) == [
        ["abort", "listener"], True, "AbortError", 20, True, "TimeoutError", 5, "DOMException AbortError",
        "TypeError TypeError", 1,
    ]  # fmt: skip


async def test_an_exception_is_an_error_with_name_and_code(host: Host) -> None:
    expression = """(() => {
      const error = new DOMException('why', 'AbortError');
      return [error instanceof Error, error instanceof DOMException, error.name, error.message, error.code,
        String(error), Object.prototype.toString.call(error), error.stack.split('\\n')[0], new DOMException().name,
        new DOMException('m', { name: 'X', cause: 7 }).cause];
    })()"""
    assert await evaluate(host, expression) == [
        True, True, "AbortError", "why", 20, "AbortError: why", "[object DOMException]", "AbortError: why",
        "Error", 7,
    ]  # fmt: skip


# --- console and clock --------------------------------------------------------------------------------------


async def test_the_console_is_complete(host: Host) -> None:
    source = """export default () => {
      console.assert(true, 'no'); console.assert(false, 'yes', { a: 1 });
      console.count(); console.count(); console.count('x'); console.countReset(); console.count();
      console.group('outer'); console.log('inner'); console.groupEnd(); console.log('out');
      console.table([{ a: 1, b: 2 }], ['b']); console.dir({ a: [1] });
      console.time('t'); console.timeLog('t', 'more'); console.timeEnd('t'); console.timeEnd('t');
      console.log(new Headers({ a: 'b' }), new URL('http://x/'), new Response('x', { status: 201 }));
      console.log(new DOMException('why', 'DataError').name, crypto);
      return Object.keys(console).length;
    }"""
    result = await host.run(source)
    assert output(result) == 19
    lines = [re.sub(r"\d+ ms", "N ms", line) for line in logs(result)]
    assert lines == [
        "Assertion failed: yes { a: 1 }",
        "default: 1", "default: 2", "x: 1", "default: 1",
        "outer", "  inner", "out",
        "0: [Object: null prototype] { b: 2 }", "{ a: [1] }",
        "t: N ms more", "t: N ms", "Timer 't' does not exist",
        'Headers { a: "b" } URL "http://x/" Response { status: 201, url: \'\' }',
        "DataError Crypto {}",
    ]  # fmt: skip


async def test_labels_of_the_console_end_with_their_call(host: Host) -> None:
    bundle = await host.load("export default () => { console.count(); console.group('g'); console.log('x') }")
    for _ in range(2):
        assert logs(await host.invoke(bundle)) == ["default: 1", "g", "  x"]


async def test_the_clock_goes_forward_in_milliseconds(host: Host) -> None:
    expression = """(async () => {
      const before = performance.now();
      await new Promise((done) => setTimeout(done, 30));
      const after = performance.now();
      return [Number.isInteger(before), after - before >= 29,
        Math.abs(Date.now() - performance.timeOrigin - after) < 5];
    })()"""
    assert await evaluate(host, expression) == [True, True, True]


# --- an author who changes everything -----------------------------------------------------------------------

SPOILER = """
const trap = function () { throw new Error('trapped') };
const { defineProperty, ownKeys, getPrototypeOf } = Reflect;
const spoil = (object, names) => {
  for (let i = 0; i < names.length; i++) {
    if (names[i] !== 'constructor') defineProperty(object, names[i], { __proto__: null, get: trap, set: trap });
  }
};
const kinds = [Map, Set, Array, String, Promise, RegExp, Uint8Array, ArrayBuffer, DataView, Date, Function];
const own = [Reflect, JSON, Math, Array, String, Promise, Uint8Array, ArrayBuffer, Symbol, Error, Object];
const names = ['get', 'set', 'value', 'writable', 'then', 'toJSON', 'id', 'pending', 'resolve', '0', '1'];
export default async function (input, ctx) {
  if (input.spoil) {
    for (let i = 0; i < kinds.length; i++) spoil(kinds[i].prototype, ownKeys(kinds[i].prototype));
    spoil(getPrototypeOf(Uint8Array.prototype), ownKeys(getPrototypeOf(Uint8Array.prototype)));
    for (let i = 0; i < own.length; i++) spoil(own[i], ownKeys(own[i]));
    spoil(Object.prototype, names);
  }
  console.log('value', { value: input.value });
  if (input.uses) {
    const work = [() => new URL('http://x/'), () => structuredClone([new Map()]), () => crypto.randomUUID(),
      () => new Headers({ a: 'b' }), () => fetch('https://example.com/'), () => setTimeout(() => {}, 1)];
    for (let i = 0; i < work.length; i++) { try { work[i]() } catch {} }
  }
  return input.value;
}
"""


@pytest.mark.parametrize("uses", [False, True])
async def test_an_author_who_spoils_every_prototype_spoils_their_own_calls_only(host: Host, uses: bool) -> None:
    bundle = await host.load(SPOILER)
    other = await host.load(
        "export default (input) => [input, new URL('http://x/').host, crypto.randomUUID().length]"
    )
    for n in range(5):
        result = await host.invoke(bundle, {"spoil": n == 1, "uses": uses, "value": n})
        assert output(result) == n
        assert logs(result) == [f"value {{ value: {n} }}"]
        assert output(await host.invoke(other, n)) == [n, "x", 36]


async def test_a_spoiled_prototype_does_not_reach_our_answers(host: Host) -> None:
    async def answer(name: str, argument: Any) -> Any:
        return {"name": name, "argument": argument}

    source = """
      Object.prototype.toJSON = () => 'forged';
      Array.prototype[Symbol.iterator] = () => { throw new Error('iterator') };
      Promise.prototype.then = () => { throw new Error('then') };
      Map.prototype.get = Map.prototype.set = () => { throw new Error('map') };
      String.prototype.slice = String.prototype.indexOf = () => 'forged';
      Object.defineProperty(Uint8Array, Symbol.species, { get() { throw new Error('species') } });
      JSON.parse = JSON.stringify = () => 'forged';
      Reflect.apply = () => 'forged';
      export default (input, ctx) => {
        console.log('line', { a: input });
        return new Promise((resolve) => setTimeout(() => resolve(`${input}`), 5));
      }"""
    result = await host.run(source, 7, host=answer)
    assert output(result) == "7"
    assert logs(result) == ["line { a: 7 }"]


async def test_a_first_use_without_room_on_the_stack_does_not_break_the_later_ones(host: Host) -> None:
    source = """
      const uses = [() => new URL('http://x/').host, () => new Headers({ a: 'b' }).get('a'), () => atob('YQ=='),
        () => structuredClone([1]), () => new AbortController().signal.aborted, () => new Response('x').status];
      let failed = 0;
      // Every frame on the way back tries again, with a little more room.
      const deep = (use) => { try { deep(use) } catch { try { use() } catch (error) { failed++; throw error } } };
      export default (input) => {
        if (input) for (const use of uses) try { deep(use) } catch {}
        return [failed > 0, uses.map((use) => use())];
      }"""
    bundle = await host.load(source)
    works = ["x", "b", "a", [1], False, 200]
    assert [output(await host.invoke(bundle, input)) for input in (True, None)] == [[True, works]] * 2


async def test_code_from_strings_is_not_needed(host: Host) -> None:
    source = """
      globalThis.eval = undefined;
      const none = () => { throw new Error('code from strings') };
      for (const kind of [function () {}, async function () {}, function* () {}]) {
        Object.defineProperty(Object.getPrototypeOf(kind), 'constructor', { value: none });
      }
      globalThis.Function = none;
      export default async () => [
        new URL('http://b\\u00fccher.example/').host, structuredClone([1]),
          (await crypto.subtle.digest('SHA-1', new Uint8Array(1))).byteLength,
        crypto.randomUUID().length, new Request('http://x/ y').url,
          new TextDecoder().decode(new TextEncoder().encode('x')),
      ]"""
    assert output(await host.run(source)) == ["xn--bcher-kva.example", [1], 20, 36, "http://x/%20y", "x"]


async def test_calls_that_run_at_once_get_their_own_answers(host: Host) -> None:
    source = """export default async ({ n }) => {
      const digest = await crypto.subtle.digest('SHA-256', new TextEncoder().encode(`${n}`));
      return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, '0')).join('');
    }"""
    bundle = await host.load(source)
    results = await asyncio.gather(*(host.invoke(bundle, {"n": n}) for n in range(50)))
    assert [output(result) for result in results] == [
        hashlib.sha256(str(n).encode()).hexdigest() for n in range(50)
    ]
