// A cell: one Node process that runs the functions of one tenant. Started by the enclave with the numbers of two
// inherited descriptors, the socket to the enclave and the black box. Ends when the socket closes.
//
// Bodies of the frames, integers little endian:
//   LOAD     u32 n | JSON {file, secrets, limits, isolation}, n bytes | program      id: number of the bundle
//            program: u8 form (0 source, 1 checked, 2 exercised; + 4 quick top level) | source, or u32 n | script, n bytes | V8's code cache
//   UNLOAD   -                                             id: number of the bundle
//   INVOKE   u32 bundle | u8 depth | execution, 16 bytes | u32 ms that it may take, 0 for the bundle's limit | input
//            id: number of the call, as in all that follow
//   DELIVER  u32 seq | u8 ok | u32 n | JSON, n bytes | bytes of a response, a digest, …
//   CANCEL   -
//   CHECK    JSON {file, source, limits}
//   OPTIONS  u8 (1 keep code, 2 warm up) | f64 since when its first call waits for this process (CLOCK_MONOTONIC, ms;
//            0: no call does) | 40 random bytes | code cache of the bootstrap, may be empty
//   WARM     u32 bundle                                    id: of the request, as in WARMED
//   SHRINK   u32 MB that idle isolates may hold
//   LEAVE    -                                             no more calls past the enclave
//   RESULT   u8 flags (1 cold, 2 failed) | u16 fetches | u16 isolates | u32 wall µs | u32 CPU µs | f64 heap bytes
//            | f64 peak heap bytes | u32 n | cold only: 7 u32 µs of process, isolate, context, prepare, compile,
//            evaluate, first call | output or [code, message, stack, retryable], n bytes | log lines joined by commas
//   CALL     u32 seq | u8 kind (0 neo.read, 1 neo.send, 3 neo.wallet, 4 functions.invoke) | JSON
//            u32 seq | u8 kind (2 fetch, 16 subtle) | u32 n | JSON, n bytes | body of a request, data
//            u32 seq | u8 kind 17                   nobody waits for the fetch of that number any more
//   CHECKED  JSON null or {code, message, line, column}
//   CODE     program                                       id: number of the bundle, or of the CHECK (checked)
//   LOADED   u8 why (0 a call, 1 warm, 2 worn) | u8 code (0 none, 1 used, 2 rejected) | 5 u32 µs   id: of the bundle
//   FIRST    u32 µs of the first entry                     id: of the bundle
//   UP       u32 µs since this process was started
//   WARMED   u8 (0 failed, 1 made, 2 was there)
// Those about calls that come past the enclave are in direct.mjs.

import { isUtf8 } from 'node:buffer';
import ivm from 'isolated-vm';
import { BlackBox } from './blackbox.mjs';
import { CpuClock } from './clock.mjs';
import { DirectCalls } from './direct.mjs';
import { FROM_CELL, Frames, TO_CELL } from './frames.mjs';
import { FunctionIsolate } from './isolate.mjs';
import { Blank, seedRealms } from './realm.mjs';
import { Redactor } from './redact.mjs';

const WATCH_MS = 10;
const MAX_OUTPUT_BYTES = 1_048_576;
const MAX_ISOLATES = 64;
// Of isolates in which nothing runs; half of what the enclave lets a cell hold beside its running functions.
const MAX_IDLE_BYTES = 256 * 1024 * 1024;
const RESULT_BYTES = 33;
// Of a RESULT that goes to the host: for how long the call waited.
const QUEUE_BYTES = 4;
// Of a cold start, in the RESULT of the call that it was for.
const PHASES_BYTES = 28;
const CALL_BYTES = 5;
// Kinds of CALL; FETCH and SUBTLE carry a body, they and ABORT are for the enclave.
const SEND = 1, FETCH = 2, INVOKE = 4, SUBTLE = 16, ABORT = 17;
// Of an INVOKE, where the execution's id is, its time, and where the input begins.
const EXECUTION_AT = 5, TIMEOUT_AT = 21, INPUT_AT = 25;
const COLD = 1;
const FAILED = 2;
const FORM_SOURCE = 0, FORM_CHECKED = 1, FORM_EXERCISED = 2, FORM_QUICK = 4;
const KEEP_CODE = 1, WARM_UP = 2;
// Of OPTIONS, where the random bytes and the code begin.
const SEED_AT = 9, BOOTSTRAP_AT = 49;
const WHY_CALL = 0, WHY_WARM = 1, WHY_WORN = 2;
const WARM_FAILED = 0, WARM_MADE = 1, WARM_WAS_THERE = 2;
const MAX_CODE_BYTES = 4 * 1024 * 1024;
// The limit of most functions: for such a one a blank isolate is made ahead.
const BLANK_MB = 128;

const bundles = new Map();
// The same by handle.
const handles = new Map();
const calls = new Map();
// Of most calls.
const NO_TIMERS = new Map();
// All isolates, of bundles, retired and being checked.
const isolates = new Set();
// When the enclave is gone, or ends this cell, so does it.
const frames = new Frames({ fd: Number(process.argv[2]) }, receive, () => process.exit(0));
const clock = new CpuClock();
const blackbox = new BlackBox(Number(process.argv[3]), () => clock.turned());
let watching = null;
let warmsUp = false;
let bootstrapCode = null;
let blank = null;
// How long the first call waited for this process, until that call takes it.
let processMs = 0;
const upAt = monotonicMs();

const runner = {
  blackbox,
  clock,
  keepsCode: false,
  newCall,

  watch() {
    watching ??= setInterval(watch, WATCH_MS);
  },

  // A worn isolate serves until its successor is ready.
  async replace(isolate, bundle) {
    const successor = newIsolate(bundle);
    const loaded = await load(successor, bundle, aheadOf(bundle), WHY_WORN);
    if (!loaded) return;
    if (bundles.get(bundle.number) === bundle && bundle.isolate === isolate) bundle.isolate = successor;
    else successor.retire();
    isolate.retire();
  },

  produced(bundle) {
    sendCode(FORM_EXERCISED, bundle.number, bundle);
  },

  first(bundle, ms) {
    const body = Buffer.allocUnsafe(4);
    body.writeUInt32LE(Math.round(ms * 1000), 0);
    frames.send(FROM_CELL.FIRST, bundle.number, body);
  },

  finish(call, error, output, logs) {
    call.over = true;
    calls.delete(call.id);
    call.isolate.calls.delete(call.id);
    const { host } = call;
    if (call.timers !== NO_TIMERS) for (const timer of call.timers.values()) clearTimeout(timer);
    // A call that may have had an effect must not be repeated blindly.
    if (error !== null && call.sent) error[3] = false;
    if (error !== null || logs !== '') [error, logs] = redacted(call.bundle, error, logs);
    let text = error === null ? output : JSON.stringify(error);
    let bytes = Buffer.byteLength(text), failed = error !== null;
    if (!failed && bytes > MAX_OUTPUT_BYTES) {
      failed = true;
      text = `["invalid_output","the output has more than ${MAX_OUTPUT_BYTES} bytes","",false]`;
      bytes = text.length;
    }
    const { heapBytes } = call.isolate;
    const at = host === null ? 0 : QUEUE_BYTES;
    const textAt = at + RESULT_BYTES + (call.cold ? PHASES_BYTES : 0);
    const body = Buffer.allocUnsafe(textAt + bytes);
    body[at] = (call.cold ? COLD : 0) | (failed ? FAILED : 0);
    body.writeUInt16LE(call.fetches, at + 1);
    body.writeUInt16LE(isolates.size, at + 3);
    body.writeUInt32LE(Math.round((performance.now() - call.started) * 1000), at + 5);
    body.writeUInt32LE(Math.round(call.cpuNs / 1000), at + 9);
    body.writeDoubleLE(heapBytes, at + 13);
    body.writeDoubleLE(Math.max(call.peakHeapBytes, heapBytes), at + 21);
    body.writeUInt32LE(bytes, at + 29);
    if (call.cold) writePhases(body, at + RESULT_BYTES, call);
    body.utf8Write(text, textAt);
    if (host !== null) {
      body.writeUInt32LE(Math.round((call.started - call.arrived) * 1000), 0);
      host.finished(call, body, logs);
    } else if (logs === '') {
      frames.send(FROM_CELL.RESULT, call.id, body);
    } else {
      frames.send(FROM_CELL.RESULT, call.id, body, Buffer.from(logs));
    }
    direct.ended(call);
  },

  // Begins a call anew that has had no effect, and drops what it logged. Its time runs on, its CPU time begins anew:
  // what it has used was lost by no fault of its own. cutShort: it has left the main thread, for good.
  again(call, cutShort) {
    call.realm = null;
    call.streamed = [];
    call.begun = false;
    call.offMain ||= cutShort;
    call.cpuNs = 0;
    begin(call);
  },

  // form: of the body, 't' text, 'b' bytes as one character each, '-' none.
  ask(call, seq, kind, text, form, body) {
    const json = Buffer.from(text);
    const carries = kind === FETCH || kind === SUBTLE;
    const head = Buffer.allocUnsafe(carries ? CALL_BYTES + 4 : CALL_BYTES);
    head.writeUInt32LE(seq, 0);
    head[4] = kind;
    if (kind === FETCH) call.fetches = Math.min(call.fetches + 1, 0xffff);
    else if (kind === SEND || kind === INVOKE) call.sent = true;
    if (call.host !== null) {
      if (!carries && kind !== ABORT) {
        call.host.ask(call, seq, kind, json);
        return;
      }
      direct.tell(call);
    }
    if (carries) head.writeUInt32LE(json.length, CALL_BYTES);
    if (form === '-') frames.send(FROM_CELL.CALL, call.id, head, json);
    else frames.send(FROM_CELL.CALL, call.id, head, json, Buffer.from(body, form === 't' ? 'utf8' : 'latin1'));
  },

  timer(call, seq, ms) {
    if (call.timers === NO_TIMERS) call.timers = new Map();
    call.timers.set(seq, setTimeout(() => {
      call.timers.delete(seq);
      call.isolate.enter(call, 'fire', [call.id, seq]);
    }, ms));
  },

  clearTimer(call, seq) {
    clearTimeout(call.timers.get(seq));
    call.timers.delete(seq);
  },

  // The answer to a call need not wait for what else is done in this turn.
  flush(call) {
    if (call.host === null) frames.flush();
    else call.host.flush();
  },

  closed(isolate) {
    isolates.delete(isolate);
  },
};

const direct = new DirectCalls(frames, {
  bundle: (handle) => handles.get(handle),
  isolates: () => isolates.size,
  running: () => calls.size,
  start,
  cancel,
  watch: runner.watch,

  deliver(id, seq, ok, text) {
    const call = calls.get(id);
    if (call !== undefined) call.isolate.enter(call, 'deliver', [id, seq, ok, text, '']);
  },
});

// The enclave gives away a connection of a host.
process.on('message', ({ first }, handle) => direct.accept(handle, first));

function receive(kind, id, data, at, end) {
  switch (kind) {
    case TO_CELL.INVOKE: invoke(id, data, at, end); break;
    case TO_CELL.DELIVER: deliver(id, data, at, end); break;
    case TO_CELL.LOAD: loadBundle(id, data, at, end); break;
    case TO_CELL.UNLOAD: unload(id); break;
    case TO_CELL.CANCEL: cancel(id); break;
    case TO_CELL.CHECK: check(id, JSON.parse(data.toString('utf8', at, end))); break;
    case TO_CELL.OPTIONS: setOptions(data, at, end); break;
    case TO_CELL.WARM: warm(id, data.readUInt32LE(at)); break;
    case TO_CELL.SHRINK: shrink(data.readUInt32LE(at) * 1024 * 1024); break;
    case TO_CELL.LEAVE: direct.leave(); break;
    default: throw new Error(`unknown frame ${kind}`);
  }
}

function invoke(id, data, at, end) {
  const bundle = bundles.get(data.readUInt32LE(at));
  const execution = data.hexSlice(at + EXECUTION_AT, at + TIMEOUT_AT);
  start(id, bundle, execution, data.readUInt32LE(at + TIMEOUT_AT), data.utf8Slice(at + INPUT_AT, end), null, performance.now());
}

// execution: in hexadecimal. timeoutMs: what its caller has left, or 0. host: null, or who sent it past the enclave.
function start(id, bundle, execution, timeoutMs, input, host, arrived) {
  const call = newCall(id, bundle.limits);
  call.execution = uuid(execution);
  call.input = input;
  call.host = host;
  call.arrived = arrived;
  if (timeoutMs > 0 && timeoutMs < call.timeoutMs) {
    call.timeoutMs = timeoutMs;
    call.deadline = call.started + timeoutMs;
  }
  call.bundle = bundle;
  calls.set(id, call);
  begin(call);
  runner.watch();
}

// In the isolate of its bundle, or a new one.
function begin(call) {
  const { bundle } = call;
  let isolate = bundle.isolate;
  const cold = isolate === null || isolate.retired;
  if (cold) {
    isolate = bundle.isolate = newIsolate(bundle);
    call.cold = true;
    call.processMs += processMs;
    processMs = 0;
  }
  isolate.use(call.started);
  call.isolate = isolate;
  isolate.start(call);
  if (!cold) return;
  load(isolate, bundle, call, WHY_CALL);
  // It was unloaded while the call, which is begun again, ran.
  if (bundles.get(bundle.number) !== bundle) isolate.retire();
}

async function load(isolate, bundle, call, why) {
  runner.watch();
  const hadCode = bundle.code !== null;
  isolate.opening = isolate.open(call);
  const loaded = await isolate.opening;
  if (loaded) {
    const body = Buffer.allocUnsafe(2 + 4 * isolate.phasesMs.length);
    body[0] = why;
    body[1] = hadCode ? (isolate.codeRejected ? 2 : 1) : 0;
    isolate.phasesMs.forEach((ms, index) => body.writeUInt32LE(Math.round(ms * 1000), 2 + 4 * index));
    frames.send(FROM_CELL.LOADED, bundle.number, body);
  }
  return loaded;
}

async function warm(id, number) {
  const bundle = bundles.get(number);
  let loaded, outcome;
  if (bundle.isolate === null || bundle.isolate.retired) {
    bundle.isolate = newIsolate(bundle);
    loaded = await load(bundle.isolate, bundle, aheadOf(bundle), WHY_WARM);
    outcome = WARM_MADE;
  } else {
    loaded = await bundle.isolate.opening;
    outcome = WARM_WAS_THERE;
  }
  frames.send(FROM_CELL.WARMED, id, Buffer.of(loaded ? outcome : WARM_FAILED));
}

function loadBundle(number, data, at, end) {
  const bundle = bundleOf(number, data, at, end);
  bundles.set(number, bundle);
  handles.set(Buffer.from(bundle.handle, 'hex').latin1Slice(), bundle);
}

function bundleOf(number, data, at, end) {
  const headAt = at + 4, programAt = headAt + data.readUInt32LE(at), textAt = programAt + 5;
  const head = JSON.parse(data.utf8Slice(headAt, programAt));
  const form = data[programAt];
  const bundle = { number, isolate: null, source: '', text: null, code: null, uses: 0, credit: -1, ...head };
  bundle.exercised = (form & FORM_EXERCISED) !== 0;
  bundle.quick = (form & FORM_QUICK) !== 0;
  if (form === FORM_SOURCE) {
    bundle.source = data.utf8Slice(programAt + 1, end);
  } else {
    const textEnd = textAt + data.readUInt32LE(programAt + 1);
    bundle.text = data.utf8Slice(textAt, textEnd);
    bundle.code = Buffer.from(data.subarray(textEnd, end));
  }
  return bundle;
}

function sendCode(form, id, { text, code, quick }) {
  if (code.length > MAX_CODE_BYTES) return;
  const script = Buffer.from(text);
  const head = Buffer.allocUnsafe(5);
  head[0] = form | (quick ? FORM_QUICK : 0);
  head.writeUInt32LE(script.length, 1);
  frames.send(FROM_CELL.CODE, id, head, script, code);
}

function setOptions(data, at, end) {
  runner.keepsCode = (data[at] & KEEP_CODE) !== 0;
  warmsUp = (data[at] & WARM_UP) !== 0;
  const since = data.readDoubleLE(at + 1);
  if (since > 0) processMs = Math.max(0, upAt - since);
  const codeAt = at + BOOTSTRAP_AT;
  seedRealms(data.subarray(at + SEED_AT, codeAt));
  if (end > codeAt) bootstrapCode = data.buffer.slice(data.byteOffset + codeAt, data.byteOffset + end);
  makeBlank();
}

function makeBlank() {
  if (warmsUp) blank ??= new Blank(BLANK_MB, bootstrapCode);
}

function deliver(id, data, at, end) {
  const call = calls.get(id);
  if (call === undefined) return;
  const textAt = at + 9, bodyAt = textAt + data.readUInt32LE(at + 5);
  const text = data.utf8Slice(textAt, bodyAt), body = content(data.subarray(bodyAt, end));
  call.isolate.enter(call, 'deliver', [id, data.readUInt32LE(at), data[at + 4] === 1, text, body]);
}

// As it goes into the isolate: what is UTF-8 as a string, since strings are what most functions read; anything else as
// an ArrayBuffer, without a further copy.
function content(bytes) {
  if (isUtf8(bytes)) return bytes.utf8Slice();
  const memory = new ArrayBuffer(bytes.length);
  new Uint8Array(memory).set(bytes);
  return new ivm.ExternalCopy(memory, { transferList: [memory] }).copyInto({ release: true, transferIn: true });
}

function cancel(id) {
  const call = calls.get(id);
  if (call === undefined) return;
  call.over = true;
  calls.delete(id);
  for (const timer of call.timers.values()) clearTimeout(timer);
  call.isolate.cancel(call);
  direct.ended(call);
}

function unload(number) {
  const bundle = bundles.get(number);
  if (bundle === undefined) return;
  bundles.delete(number);
  handles.delete(Buffer.from(bundle.handle, 'hex').latin1Slice());
  bundle.isolate?.retire();
}

async function check(id, source) {
  const bundle = {
    number: 0, secrets: '{}', isolation: 'version', text: null, code: null, exercised: true, quick: false, credit: -1,
    ...source,
  };
  const isolate = newIsolate(bundle);
  runner.watch();
  const wrong = await isolate.check(newCall(id, source.limits));
  isolates.delete(isolate);
  if (bundle.code !== null) sendCode(FORM_CHECKED, id, bundle);
  frames.send(FROM_CELL.CHECKED, id, Buffer.from(JSON.stringify(wrong && {
    code: wrong.code, message: wrong.message, line: wrong.line, column: wrong.column,
  })));
}

function newCall(id, limits) {
  const now = performance.now();
  return {
    id, started: now, timeoutMs: limits.timeout_ms, deadline: now + limits.timeout_ms,
    cpuNs: 0, cpuLimitNs: limits.cpu_ms * 1e6, cold: false, processMs: 0,
    over: false, fetches: 0, execution: '', input: '', bundle: null, isolate: null,
    realm: null, timers: NO_TIMERS, streamed: [],
    // Of one that came past the enclave: its connection, and whether the enclave was told of it.
    host: null, told: false, arrived: now,
    // Its code has run; it has asked for something; for something that has an effect; it has left the main thread.
    begun: false, asked: false, sent: false, offMain: false,
    // Of the isolate, seen between entries while the call ran; what is between two looks stays unseen.
    peakHeapBytes: 0,
  };
}

function writePhases(body, at, { processMs, isolate }) {
  for (const ms of [processMs, ...isolate.phasesMs, isolate.firstMs]) {
    body.writeUInt32LE(Math.round(ms * 1000), at);
    at += 4;
  }
}

function monotonicMs() {
  return Number(process.hrtime.bigint()) / 1e6;
}

// In place of the call at whose expense an isolate is made. Nobody waits for it, so it leaves the main thread alone.
function aheadOf(bundle) {
  const call = newCall(0, bundle.limits);
  call.offMain = true;
  return call;
}

function uuid(hex) {
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`;
}

// Error and logs of a call without the values of its function's secrets.
function redacted(bundle, error, logs) {
  if (bundle.redactor === undefined) bundle.redactor = Redactor.of(bundle.secrets);
  const { redactor } = bundle;
  if (redactor === null) return [error, logs];
  return [error === null ? null : redactor.error(error), logs === '' ? '' : redactor.logs(logs)];
}

function newIsolate(bundle) {
  if (isolates.size >= MAX_ISOLATES) endLeastWorth();
  let fresh = blank;
  if (fresh?.memoryMb === bundle.limits.memory_mb) {
    blank = null;
    // It was made off the way of this call, unless the call waited for all of this process.
    if (processMs === 0) fresh.isolateMs = fresh.contextMs = 0;
  } else {
    fresh = new Blank(bundle.limits.memory_mb, bootstrapCode);
  }
  const isolate = new FunctionIsolate(bundle, runner, fresh);
  isolate.lastUsed = performance.now();
  isolates.add(isolate);
  return isolate;
}

// Kept is what saves most time for its memory; without warm-up, what was used last.
function endLeastWorth() {
  const now = performance.now();
  let least = null, leastWorth = Infinity;
  for (const isolate of isolates) {
    if (!isolate.idle) continue;
    const worth = warmsUp ? isolate.worth(now) : isolate.lastUsed;
    if (worth < leastWorth) {
      least = isolate;
      leastWorth = worth;
    }
  }
  least?.retire();
  return least;
}

// Ends idle isolates until the others hold no more than that.
function shrink(mostBytes) {
  let idleBytes = 0;
  for (const isolate of isolates) if (isolate.idle) idleBytes += isolate.heapBytes;
  while (idleBytes > mostBytes) idleBytes -= endLeastWorth().heapBytes;
}

function watch() {
  shrink(MAX_IDLE_BYTES);
  if (isolates.size === 0 || [...isolates].every((isolate) => isolate.idle)) {
    makeBlank();
    if (!direct.rest()) return;
    clearInterval(watching);
    watching = null;
    return;
  }
  const now = performance.now();
  direct.tick(calls.values(), now);
  if (blackbox.threads > 0) clock.share();
  for (const isolate of isolates) isolate.watch(now);
}

const up = Buffer.allocUnsafe(4);
up.writeUInt32LE(Math.round(performance.now() * 1000), 0);
frames.send(FROM_CELL.UP, 0, up);
