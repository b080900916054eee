// What every isolate runs first: the globals of a function and the way in and out.
//
// The runner calls the functions returned at the end ("entries"), one at a time per isolate. Nothing runs
// between entries. What has to leave is collected in `outbox` and fetched by `take` after each entry, so that the
// isolate holds no way to call out, and every continuation runs inside an entry with a time limit. The only
// exception is `streamLog`: while an entry runs on another thread its log lines leave at once, because they would be
// lost when that entry has to be ended together with its isolate.
//
// The function shares this realm. Therefore everything used after `install` is captured here first, records have
// no prototype, and only primitive strings leave.
//
// Messages in `outbox`, lengths in UTF-16 units:
//   R id ok textLength logsLength \n text logs    the call is over; text: JSON of the value or of [code, message, stack]
//   C id seq kind length \n text                  host call; kind 0 neo.read, 1 neo.send, 2 fetch, 3 neo.wallet,
//                                                4 functions.invoke
//   T id seq ms \n                                start a timer        X id seq \n   forget a timer
(function bootstrap(streamLog, file, secretsText) {
  'use strict';

  const MAX_OUTPUT = 1_048_576;
  const MAX_LOG_BYTES = 262_144;
  const MAX_LOG_LINES = 1_000;
  const MAX_LINE = 16_384;
  const MAX_TIMERS = 1_000;
  const MAX_HOST_CALLS = 1_000;
  const MAX_REQUEST = 1_048_576;
  const MAX_OUTBOX = 16_777_216;
  const MAX_REQUESTS = 10_000;
  const MAX_MESSAGE = 4_096;
  const MAX_STACK = 8_192;
  const KIND_READ = 0, KIND_SEND = 1, KIND_FETCH = 2, KIND_WALLET = 3, KIND_INVOKE = 4;

  const uncurry = Function.prototype.bind.bind(Function.prototype.call);
  const mapGet = uncurry(Map.prototype.get);
  const mapSet = uncurry(Map.prototype.set);
  const mapDelete = uncurry(Map.prototype.delete);
  const mapHas = uncurry(Map.prototype.has);
  const indexOf = uncurry(String.prototype.indexOf);
  const slice = uncurry(String.prototype.slice);
  const charCodeAt = uncurry(String.prototype.charCodeAt);
  // Lone surrogates cannot leave: what reads our messages knows UTF-8 only.
  const wellFormed = uncurry(String.prototype.toWellFormed);
  const lower = uncurry(String.prototype.toLowerCase);
  const upper = uncurry(String.prototype.toUpperCase);
  const then = uncurry(Promise.prototype.then);
  const subarray = uncurry(Uint8Array.prototype.subarray);
  const sliceBytes = uncurry(Uint8Array.prototype.slice);
  const isoDate = uncurry(Date.prototype.toISOString);
  const regexpText = uncurry(RegExp.prototype.toString);
  const fromCharCode = String.fromCharCode;
  const { parse, stringify } = JSON;
  const { apply, ownKeys, getOwnPropertyDescriptor, getPrototypeOf } = Reflect;
  const { freeze, is: same } = Object;
  const { isArray } = Array;
  const { isView } = ArrayBuffer;
  const { now } = Date;
  const { floor } = Math;
  const PromiseClass = Promise, ErrorClass = Error, TypeErrorClass = TypeError, RangeErrorClass = RangeError;
  const MapClass = Map, SetClass = Set, DateClass = Date, RegExpClass = RegExp, ProxyClass = Proxy;
  const StringClass = String, NumberClass = Number, Bytes = Uint8Array, ArrayBufferClass = ArrayBuffer;
  const iteratorSymbol = Symbol.iterator;
  const resolved = Promise.resolve.bind(Promise);

  let outbox = '';
  let requests = 0;
  let handler;
  let streaming = false;
  const calls = new MapClass();
  // The call on whose behalf code runs now; `loading` while the function's top level runs.
  const loading = newCall(0);
  let current = loading;

  function newCall(id) {
    return {
      __proto__: null, id, over: false, started: now(), seq: 0, hostCalls: 0, timers: 0,
      pending: null, logs: '', logLines: 0, logBytes: 0, logFull: false,
    };
  }

  // --- entries ------------------------------------------------------------------------------------------------

  function install(entry) {
    handler = entry;
  }

  function run(isStreaming, id, execution, input) {
    const call = newCall(id);
    if (loading.logs !== '') {
      call.logs = loading.logs;
      call.logLines = loading.logLines;
      call.logBytes = loading.logBytes;
      loading.logs = '';
    }
    mapSet(calls, id, call);
    enter(call, isStreaming);
    settle(call, execution, input);
  }

  function deliver(isStreaming, id, seq, ok, text, body) {
    const call = mapGet(calls, id);
    const waiting = call === undefined || call.pending === null ? undefined : mapGet(call.pending, seq);
    if (waiting === undefined) return;
    mapDelete(call.pending, seq);
    call.hostCalls--;
    enter(call, isStreaming);
    if (!ok) {
      const failure = parse(text);
      waiting.reject(located(new ErrorClass(failure.message), failure.code, waiting.frames));
    } else if (waiting.kind === KIND_FETCH) {
      waiting.resolve(new Response(makeKey, parse(text), body));
    } else {
      waiting.resolve(parse(text));
    }
  }

  function fire(isStreaming, id, seq) {
    const call = mapGet(calls, id);
    const timer = call === undefined || call.pending === null ? undefined : mapGet(call.pending, seq);
    if (timer === undefined) return;
    enter(call, isStreaming);
    if (timer.repeat) {
      outbox += `T ${id} ${seq} ${timer.ms}\n`;
    } else {
      mapDelete(call.pending, seq);
      call.timers--;
    }
    try {
      apply(timer.callback, undefined, timer.args);
    } catch (error) {
      fail(call, 'function_error', error);
    }
  }

  function forget(id) {
    const call = mapGet(calls, id);
    if (call === undefined) return '';
    call.over = true;
    mapDelete(calls, id);
    return call.logs;
  }

  function take() {
    const taken = outbox;
    outbox = '';
    requests = 0;
    return taken;
  }

  function enter(call, isStreaming) {
    current = call;
    streaming = isStreaming;
  }

  async function settle(call, execution, input) {
    let argument, value, text;
    try {
      if (input !== '') argument = parse(input);
    } catch (error) {
      fail(call, 'invalid_input', error);
      return;
    }
    try {
      value = await handler(argument, contextOf(call, execution));
    } catch (error) {
      fail(call, 'function_error', error);
      return;
    }
    try {
      text = value === undefined ? 'null' : stringify(value);
    } catch (error) {
      fail(call, 'invalid_output', error);
      return;
    }
    if (text === undefined) {
      finish(call, 0, failure('invalid_output', `a ${typeof value} is not JSON`, ''));
    } else if (text.length > MAX_OUTPUT) {
      finish(call, 0, failure('invalid_output', `the output has more than ${MAX_OUTPUT} bytes`, ''));
    } else {
      finish(call, 1, text);
    }
  }

  function finish(call, ok, text) {
    if (call.over) return;
    call.over = true;
    mapDelete(calls, call.id);
    outbox += `R ${call.id} ${ok} ${text.length} ${call.logs.length}\n${text}${call.logs}`;
  }

  function fail(call, code, error) {
    if (call.over) return;
    let message = 'the thrown value cannot be shown', stack = '';
    try {
      message = messageOf(error);
      stack = stackOf(error);
    } catch {
      // a getter of the thrown value threw
    }
    finish(call, 0, failure(code, message, stack));
  }

  function failure(code, message, stack) {
    const shown = (text, most) => stringify(wellFormed(slice(text, 0, most)));
    return `[${stringify(code)},${shown(message, MAX_MESSAGE)},${shown(stack, MAX_STACK)}]`;
  }

  function messageOf(error) {
    if (typeof error !== 'object' || error === null) return typeof error === 'string' ? error : inspect(error);
    const { name, message, code } = error;
    if (typeof message !== 'string') return inspect(error);
    // Ours and Node's kind of errors have a code that programs go by.
    const text = typeof code === 'string' ? `${message} (${code})` : message;
    return typeof name !== 'string' || name === 'Error' || name === '' ? text : `${name}: ${text}`;
  }

  function stackOf(error) {
    if (typeof error !== 'object' || error === null) return '';
    const { stack } = error;
    return typeof stack === 'string' ? ownFrames(stack) : '';
  }

  // The lines of a stack that lie in the function's file, after the message.
  function ownFrames(stack) {
    let kept = '', at = 0, inFrames = false;
    while (at < stack.length) {
      let end = indexOf(stack, '\n', at);
      if (end < 0) end = stack.length;
      const line = slice(stack, at, end);
      at = end + 1;
      if (slice(line, 0, 7) === '    at ') inFrames = true;
      if (!inFrames || indexOf(line, `(${file}:`) >= 0 || indexOf(line, ` ${file}:`) >= 0) {
        kept += kept === '' ? line : `\n${line}`;
      }
    }
    return kept;
  }

  // --- what the function sees ---------------------------------------------------------------------------------

  function contextOf(call, execution) {
    return freeze({
      secrets,
      executionId: execution,
      invoke: (name, input) => neo(call, KIND_INVOKE, { __proto__: null, name, input }),
      neo: freeze({
        read: (request) => neo(call, KIND_READ, request),
        send: (request) => neo(call, KIND_SEND, request),
        wallet: (name = 'default') => neo(call, KIND_WALLET, name),
      }),
    });
  }

  const secrets = new ProxyClass(freeze({ __proto__: null, ...parse(secretsText) }), {
    __proto__: null,
    get(target, name) {
      const value = target[name];
      // Asked for by the language itself, not by the author.
      if (value !== undefined || typeof name === 'symbol' || name === 'toJSON' || name === 'then') return value;
      throw coded(new ErrorClass(`this function was not given a secret named ${name}`), 'unknown_secret');
    },
  });

  function neo(call, kind, request) {
    return new PromiseClass((resolve, reject) => {
      const text = stringify(request);
      if (text === undefined) throw coded(new TypeErrorClass('the request is not JSON'), 'invalid_request');
      ask(call, kind, text, resolve, reject);
    });
  }

  function ask(call, kind, text, resolve, reject) {
    if (call.over || call === loading) throw coded(new ErrorClass('no call is running'), 'call_over');
    if (call.hostCalls >= MAX_HOST_CALLS) {
      throw coded(new RangeErrorClass(`more than ${MAX_HOST_CALLS} calls are waiting`), 'too_many_calls');
    }
    if (text.length > MAX_REQUEST) {
      throw coded(new RangeErrorClass(`a request has at most ${MAX_REQUEST} characters`), 'invalid_request');
    }
    spare(text.length);
    call.hostCalls++;
    const seq = remember(call, { __proto__: null, kind, resolve, reject, frames: framesHere() });
    outbox += `C ${call.id} ${seq} ${kind} ${text.length}\n${text}`;
  }

  // The runner reads the outbox between entries, on the thread that all functions of the tenant share.
  function spare(length) {
    if (++requests > MAX_REQUESTS || outbox.length + length > MAX_OUTBOX) {
      throw coded(new RangeErrorClass('too much is asked for at once'), 'too_many_calls');
    }
  }

  function remember(call, record) {
    call.pending ??= new MapClass();
    mapSet(call.pending, ++call.seq, record);
    return call.seq;
  }

  function coded(error, code) {
    error.code = code;
    return error;
  }

  function framesHere() {
    try {
      return new ErrorClass('').stack;
    } catch {
      return ''; // the function's own Error.prepareStackTrace threw
    }
  }

  // An error of the host, shown as if thrown where the function asked.
  function located(error, code, frames) {
    const at = typeof frames === 'string' ? indexOf(frames, '\n') : -1;
    error.stack = ownFrames(`Error: ${error.message}${at < 0 ? '' : slice(frames, at)}`);
    return coded(error, code);
  }

  function fetch(resource, options) {
    return new PromiseClass((resolve, reject) => {
      const { method = 'GET', headers, body } = options ?? {};
      if (body !== undefined && body !== null && typeof body !== 'string') {
        throw coded(new TypeErrorClass('the body of a request is a string'), 'invalid_request');
      }
      // Composed of strings, so that nothing the function put on a prototype gets between.
      const content = typeof body === 'string' ? stringify(body) : 'null';
      const text = `{"url":${quote(resource)},"method":${quote(upper(StringClass(method)))},` +
        `"headers":[${headerPairs(headers)}],"body":${content}}`;
      ask(current, KIND_FETCH, text, resolve, reject);
    });
  }

  function headerPairs(headers) {
    let pairs = '';
    const add = (name, value) => {
      pairs += `${pairs === '' ? '' : ','}[${quote(name)},${quote(value)}]`;
    };
    if (headers instanceof Headers) {
      headers.forEach((value, name) => add(name, value));
    } else if (isArray(headers)) {
      for (let i = 0; i < headers.length; i++) add(headers[i][0], headers[i][1]);
    } else if (typeof headers === 'object' && headers !== null) {
      const names = ownKeys(headers);
      for (let i = 0; i < names.length; i++) {
        if (typeof names[i] === 'string') add(names[i], headers[names[i]]);
      }
    }
    return pairs;
  }

  function quote(value) {
    return stringify(StringClass(value));
  }

  // Known here only: functions cannot make a Response or Headers of their own yet.
  const makeKey = {};

  class Headers {
    #values = new MapClass();

    constructor(key, pairs) {
      if (key !== makeKey) throw new TypeErrorClass('Illegal constructor');
      for (let i = 0; i < pairs.length; i++) {
        const name = pairs[i][0], value = pairs[i][1];
        mapSet(this.#values, name, mapHas(this.#values, name) ? `${mapGet(this.#values, name)}, ${value}` : value);
      }
    }

    get(name) {
      return mapGet(this.#values, lower(StringClass(name))) ?? null;
    }

    has(name) {
      return mapHas(this.#values, lower(StringClass(name)));
    }

    forEach(callback, self) {
      this.#values.forEach((value, name) => apply(callback, self, [value, name, this]));
    }

    entries() {
      return this.#values.entries();
    }

    [iteratorSymbol]() {
      return this.#values.entries();
    }
  }

  class Response {
    #body;
    #used = false;

    constructor(key, { url, status, reason, redirected, headers }, body) {
      if (key !== makeKey) throw new TypeErrorClass('Illegal constructor');
      this.#body = body;
      this.url = url;
      this.status = status;
      this.statusText = reason;
      this.ok = status >= 200 && status < 300;
      this.redirected = redirected;
      this.headers = new Headers(makeKey, headers);
    }

    get bodyUsed() {
      return this.#used;
    }

    async text() {
      if (this.#used) throw new TypeErrorClass('the body was read before');
      this.#used = true;
      return this.#body;
    }

    async json() {
      return parse(await this.text());
    }
  }

  function startTimer(callback, ms, args, repeat) {
    if (typeof callback !== 'function') throw new TypeErrorClass('the callback of a timer is a function');
    if (current.over || current === loading) throw coded(new ErrorClass('no call is running'), 'call_over');
    if (current.timers >= MAX_TIMERS) throw new RangeErrorClass(`more than ${MAX_TIMERS} timers are running`);
    spare(0);
    current.timers++;
    const wait = floor(NumberClass(ms));
    const timer = { __proto__: null, callback, args, repeat, ms: wait >= 1 ? (wait < 2 ** 31 ? wait : 2 ** 31 - 1) : 1 };
    const seq = remember(current, timer);
    outbox += `T ${current.id} ${seq} ${timer.ms}\n`;
    return seq;
  }

  function setTimeout(callback, ms, ...args) {
    return startTimer(callback, ms, args, false);
  }

  function setInterval(callback, ms, ...args) {
    return startTimer(callback, ms, args, true);
  }

  function clearTimeout(seq) {
    if (current.pending === null || mapGet(current.pending, seq)?.callback === undefined) return;
    mapDelete(current.pending, seq);
    current.timers--;
    outbox += `X ${current.id} ${seq}\n`;
  }

  function queueMicrotask(callback) {
    if (typeof callback !== 'function') throw new TypeErrorClass('the callback of a microtask is a function');
    const call = current;
    then(resolved(), () => {
      try {
        callback();
      } catch (error) {
        fail(call, 'function_error', error);
      }
    });
  }

  // --- console ------------------------------------------------------------------------------------------------

  function log(level, values) {
    const call = current;
    if (call.over || call.logFull) return;
    let text = '';
    for (let i = 0; i < values.length && text.length < MAX_LINE; i++) {
      if (i > 0) text += ' ';
      text += typeof values[i] === 'string' ? values[i] : inspect(values[i]);
    }
    if (text.length > MAX_LINE) text = `${slice(text, 0, MAX_LINE)}… (cut)`;
    const line = `[${now() - call.started},"${level}",${stringify(wellFormed(text))}]`;
    call.logLines++;
    call.logBytes += utf8Length(line) + 1;
    if (call.logLines > MAX_LOG_LINES || call.logBytes > MAX_LOG_BYTES) {
      call.logFull = true;
      append(call, `[${now() - call.started},"warn","log truncated: a call may log 1,000 lines or 256 KB"]`);
    } else {
      append(call, line);
    }
  }

  function append(call, line) {
    call.logs += call.logs === '' ? line : `,${line}`;
    if (streaming) streamLog(call.id, line);
  }

  function utf8Length(text) {
    let bytes = text.length;
    for (let i = 0; i < text.length; i++) {
      const unit = charCodeAt(text, i);
      if (unit > 0x7f) bytes += unit > 0x7ff && (unit < 0xd800 || unit > 0xdfff) ? 2 : 1;
    }
    return bytes;
  }

  // Shows a value the way Node's console does, roughly; never runs its getters, stops at MAX_LINE.
  function inspect(value) {
    let room = MAX_LINE;
    const seen = new SetClass();
    const has = uncurry(SetClass.prototype.has), add = uncurry(SetClass.prototype.add);
    const remove = uncurry(SetClass.prototype.delete);
    try {
      return show(value, 0);
    } catch {
      return '[value that cannot be shown]';
    }

    function show(value, depth) {
      const text = describe(value, depth);
      room -= text.length;
      return text;
    }

    function describe(value, depth) {
      switch (typeof value) {
        case 'string': return depth === 0 ? value : stringify(slice(value, 0, MAX_LINE));
        case 'bigint': return `${value}n`;
        case 'symbol': return StringClass(value);
        case 'number': return same(value, -0) ? '-0' : `${value}`;
        case 'function': return `[Function: ${ownText(value, 'name') || '(anonymous)'}]`;
        case 'object': return value === null ? 'null' : describeObject(value, depth);
        default: return `${value}`;
      }
    }

    function describeObject(value, depth) {
      if (value instanceof ErrorClass && ownText(value, 'stack') !== '') return ownFrames(ownText(value, 'stack'));
      if (value instanceof DateClass) return isoDate(value);
      if (value instanceof RegExpClass) return regexpText(value);
      if (has(seen, value)) return '[Circular]';
      if (depth > 4) return isArray(value) ? '[Array]' : '[Object]';
      add(seen, value);
      let inner = '';
      const put = (text) => {
        inner += inner === '' ? text : `, ${text}`;
      };
      if (isArray(value) || (isView(value) && typeof value.length === 'number')) {
        for (let i = 0; i < value.length && room > 0 && i < 1000; i++) put(property(value, `${i}`, depth));
        if (value.length > 1000) put(`… ${value.length - 1000} more`);
        remove(seen, value);
        return `${isArray(value) ? '' : 'TypedArray '}[${inner}]`;
      }
      let prefix = className(value);
      if (value instanceof MapClass) {
        forEachOf(value, (item, key) => room > 0 && put(`${show(key, depth + 1)} => ${show(item, depth + 1)}`));
      } else if (value instanceof SetClass) {
        forEachOf(value, (item) => room > 0 && put(show(item, depth + 1)));
      } else if (value instanceof PromiseClass) {
        prefix = 'Promise ';
      }
      const keys = ownKeys(value);
      for (let i = 0; i < keys.length && room > 0; i++) {
        const descriptor = getOwnPropertyDescriptor(value, keys[i]);
        if (descriptor?.enumerable) {
          const name = typeof keys[i] === 'symbol' ? `[${StringClass(keys[i])}]` : keys[i];
          put(`${name}: ${'value' in descriptor ? show(descriptor.value, depth + 1) : '[Getter]'}`);
        }
      }
      remove(seen, value);
      return inner === '' ? `${prefix}{}` : `${prefix}{ ${inner} }`;
    }

    function property(value, key, depth) {
      const descriptor = getOwnPropertyDescriptor(value, key);
      if (descriptor === undefined) return '<empty>';
      return 'value' in descriptor ? show(descriptor.value, depth + 1) : '[Getter]';
    }

    function forEachOf(value, callback) {
      apply(value instanceof MapClass ? mapForEach : setForEach, value, [callback]);
    }

    function className(value) {
      const prototype = getPrototypeOf(value);
      if (prototype === null) return '[Object: null prototype] ';
      const maker = getOwnPropertyDescriptor(prototype, 'constructor')?.value;
      const name = typeof maker === 'function' ? ownText(maker, 'name') : '';
      return name === '' || name === 'Object' ? '' : `${name} `;
    }

    function ownText(value, key) {
      const descriptor = getOwnPropertyDescriptor(value, key);
      const text = descriptor?.get === undefined ? descriptor?.value : key === 'stack' ? value.stack : '';
      return typeof text === 'string' ? text : '';
    }
  }

  const mapForEach = Map.prototype.forEach, setForEach = Set.prototype.forEach;

  const console = {
    log: (...values) => log('log', values),
    info: (...values) => log('info', values),
    warn: (...values) => log('warn', values),
    error: (...values) => log('error', values),
    debug: (...values) => log('debug', values),
    trace: (...values) => log('debug', values),
  };

  // --- text encoding, https://encoding.spec.whatwg.org/#utf-8 -----------------------------------------------

  class TextEncoder {
    get encoding() {
      return 'utf-8';
    }

    encode(value = '') {
      const text = StringClass(value);
      const bytes = new Bytes(text.length * 3);
      let used = 0;
      for (let i = 0; i < text.length; i++) {
        let point = charCodeAt(text, i);
        if (point >= 0xd800 && point <= 0xdfff) {
          const next = point < 0xdc00 && i + 1 < text.length ? charCodeAt(text, i + 1) : 0;
          if (next >= 0xdc00 && next <= 0xdfff) {
            point = 0x10000 + ((point - 0xd800) << 10) + (next - 0xdc00);
            i++;
          } else {
            point = 0xfffd;
          }
        }
        if (point < 0x80) {
          bytes[used++] = point;
        } else if (point < 0x800) {
          bytes[used++] = 0xc0 | (point >> 6);
          bytes[used++] = 0x80 | (point & 0x3f);
        } else if (point < 0x10000) {
          bytes[used++] = 0xe0 | (point >> 12);
          bytes[used++] = 0x80 | ((point >> 6) & 0x3f);
          bytes[used++] = 0x80 | (point & 0x3f);
        } else {
          bytes[used++] = 0xf0 | (point >> 18);
          bytes[used++] = 0x80 | ((point >> 12) & 0x3f);
          bytes[used++] = 0x80 | ((point >> 6) & 0x3f);
          bytes[used++] = 0x80 | (point & 0x3f);
        }
      }
      return sliceBytes(bytes, 0, used);
    }
  }

  class TextDecoder {
    #fatal;
    #keepMark;

    constructor(label = 'utf-8', options = {}) {
      const name = lower(StringClass(label));
      if (name !== 'utf-8' && name !== 'utf8') throw new RangeErrorClass(`the encoding ${name} is not supported`);
      this.#fatal = !!options.fatal;
      this.#keepMark = !!options.ignoreBOM;
    }

    get encoding() {
      return 'utf-8';
    }

    decode(input) {
      if (input === undefined) return '';
      const bytes = isView(input) ? new Bytes(input.buffer, input.byteOffset, input.byteLength) : new Bytes(input);
      const fatal = this.#fatal;
      let text = '';
      const bad = () => {
        if (fatal) throw new TypeErrorClass('the bytes are not UTF-8');
        text += '\ufffd';
      };
      let at = 0;
      if (!this.#keepMark && bytes[0] === 0xef && bytes[1] === 0xbb && bytes[2] === 0xbf) at = 3;
      while (at < bytes.length) {
        const first = bytes[at++];
        if (first < 0x80) {
          text += fromCharCode(first);
          continue;
        }
        const needed = first >= 0xc2 && first <= 0xdf ? 1 : first >= 0xe0 && first <= 0xef ? 2
          : first >= 0xf0 && first <= 0xf4 ? 3 : 0;
        if (needed === 0) {
          bad();
          continue;
        }
        // The second byte's range keeps out overlong forms, surrogates and what lies past U+10FFFF.
        let least = first === 0xe0 ? 0xa0 : first === 0xf0 ? 0x90 : 0x80;
        let most = first === 0xed ? 0x9f : first === 0xf4 ? 0x8f : 0xbf;
        let point = first & (0x3f >> needed), read = 0;
        while (read < needed && at < bytes.length && bytes[at] >= least && bytes[at] <= most) {
          point = (point << 6) | (bytes[at++] & 0x3f);
          least = 0x80;
          most = 0xbf;
          read++;
        }
        if (read < needed) bad();
        else if (point < 0x10000) text += fromCharCode(point);
        else text += fromCharCode(0xd7c0 + (point >> 10), 0xdc00 | (point & 0x3ff));
      }
      return text;
    }
  }

  // Their memory is outside the isolate's limit, or lets threads meet.
  delete globalThis.WebAssembly;
  delete globalThis.SharedArrayBuffer;
  delete globalThis.Atomics;

  const globals = {
    console, fetch, setTimeout, setInterval, clearTimeout, clearInterval: clearTimeout, queueMicrotask,
    Headers, Response, TextEncoder, TextDecoder,
  };
  for (const name of ownKeys(globals)) {
    Object.defineProperty(globalThis, name, {
      value: globals[name], writable: true, configurable: true, enumerable: false,
    });
  }

  return { install, run, deliver, fire, forget, take };
})
