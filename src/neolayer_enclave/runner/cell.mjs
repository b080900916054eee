// A cell: one Node process that runs the functions of one tenant. Started by the enclave with the numbers of two
// inherited descriptors, the socket to the enclave and the black box. Ends when the socket closes.
//
// Bodies of the frames, integers little endian:
//   LOAD     JSON {file, source, secrets, limits}          id: number of the bundle
//   UNLOAD   -                                             id: number of the bundle
//   INVOKE   u32 bundle | u8 n | execution, n bytes | input   id: number of the call, as in all that follow
//   DELIVER  u32 seq | u8 ok | u32 n | JSON, n bytes | body of a response
//   CANCEL   -
//   CHECK    JSON {file, source, limits}
//   RESULT   u8 flags (1 cold, 2 failed) | u32 wall µs | u32 CPU µs | f64 heap bytes | u16 isolates | u32 n
//            | output or [code, message, stack, retryable], n bytes | log lines joined by commas
//   CALL     u32 seq | u8 kind (0 neo.read, 1 neo.send, 2 fetch, 3 neo.wallet, 4 functions.invoke) | JSON
//   CHECKED  JSON null or {code, message, line, column}

import { BlackBox } from './blackbox.mjs';
import { FROM_CELL, Frames, TO_CELL } from './frames.mjs';
import { FunctionIsolate } from './isolate.mjs';

const WATCH_MS = 10;
const MAX_OUTPUT_BYTES = 1_048_576;
const MAX_ISOLATES = 64;
// Of isolates in which nothing runs; half of what the enclave lets a cell hold beside its running functions.
const MAX_IDLE_BYTES = 256 * 1024 * 1024;
const RESULT_BYTES = 23;
const CALL_BYTES = 5;
const COLD = 1;
const FAILED = 2;

const bundles = new Map();
const calls = new Map();
// All isolates, of bundles, retired and being checked.
const isolates = new Set();
const frames = new Frames(Number(process.argv[2]), receive);
const blackbox = new BlackBox(Number(process.argv[3]));
let watching = null;

const runner = {
  blackbox,

  finish(call, error, output, logs) {
    call.over = true;
    calls.delete(call.id);
    call.isolate.calls.delete(call.id);
    for (const timer of call.timers.values()) clearTimeout(timer);
    let text = Buffer.from(error === null ? output : JSON.stringify(error));
    let failed = error !== null;
    if (!failed && text.length > MAX_OUTPUT_BYTES) {
      failed = true;
      text = Buffer.from(`["invalid_output","the output has more than ${MAX_OUTPUT_BYTES} bytes","",false]`);
    }
    const head = Buffer.allocUnsafe(RESULT_BYTES);
    head[0] = (call.cold ? COLD : 0) | (failed ? FAILED : 0);
    head.writeUInt32LE(Math.round((performance.now() - call.started) * 1000), 1);
    head.writeUInt32LE(Math.round(call.cpuNs / 1000), 5);
    head.writeDoubleLE(call.isolate.heapBytes, 9);
    head.writeUInt16LE(isolates.size, 17);
    head.writeUInt32LE(text.length, 19);
    if (logs === '') frames.send(FROM_CELL.RESULT, call.id, head, text);
    else frames.send(FROM_CELL.RESULT, call.id, head, text, Buffer.from(logs));
  },

  ask(call, seq, kind, text) {
    const head = Buffer.allocUnsafe(CALL_BYTES);
    head.writeUInt32LE(seq, 0);
    head[4] = kind;
    frames.send(FROM_CELL.CALL, call.id, head, Buffer.from(text));
  },

  timer(call, seq, ms) {
    call.timers.set(seq, setTimeout(() => {
      call.timers.delete(seq);
      call.isolate.enter(call, 'fire', [call.id, seq]);
    }, ms));
  },

  clearTimer(call, seq) {
    clearTimeout(call.timers.get(seq));
    call.timers.delete(seq);
  },

  flush() {
    frames.flush();
  },

  closed(isolate) {
    isolates.delete(isolate);
  },
};

function receive(kind, id, data, at, end) {
  switch (kind) {
    case TO_CELL.INVOKE: invoke(id, data, at, end); break;
    case TO_CELL.DELIVER: deliver(id, data, at, end); break;
    case TO_CELL.LOAD: bundles.set(id, { number: id, isolate: null, ...JSON.parse(data.toString('utf8', at, end)) }); break;
    case TO_CELL.UNLOAD: unload(id); break;
    case TO_CELL.CANCEL: cancel(id); break;
    case TO_CELL.CHECK: check(id, JSON.parse(data.toString('utf8', at, end))); break;
    default: throw new Error(`unknown frame ${kind}`);
  }
}

function invoke(id, data, at, end) {
  const bundle = bundles.get(data.readUInt32LE(at));
  const executionEnd = at + 5 + data[at + 4];
  const call = newCall(id, bundle.limits);
  call.execution = data.utf8Slice(at + 5, executionEnd);
  call.input = data.utf8Slice(executionEnd, end);
  let isolate = bundle.isolate;
  if (isolate === null || isolate.retired) {
    call.cold = true;
    isolate = bundle.isolate = newIsolate(bundle);
    isolate.open(call);
  }
  isolate.lastUsed = call.started;
  call.isolate = isolate;
  calls.set(id, call);
  isolate.start(call);
  watching ??= setInterval(watch, WATCH_MS);
}

function deliver(id, data, at, end) {
  const call = calls.get(id);
  if (call === undefined) return;
  const textAt = at + 9, bodyAt = textAt + data.readUInt32LE(at + 5);
  const text = data.utf8Slice(textAt, bodyAt);
  call.isolate.enter(call, 'deliver', [id, data.readUInt32LE(at), data[at + 4] === 1, text, data.utf8Slice(bodyAt, end)]);
}

function cancel(id) {
  const call = calls.get(id);
  if (call === undefined) return;
  call.over = true;
  calls.delete(id);
  for (const timer of call.timers.values()) clearTimeout(timer);
  call.isolate.cancel(call);
}

function unload(number) {
  const isolate = bundles.get(number)?.isolate;
  bundles.delete(number);
  isolate?.retire();
}

async function check(id, source) {
  const isolate = newIsolate({ number: 0, secrets: '{}', ...source });
  watching ??= setInterval(watch, WATCH_MS);
  const wrong = await isolate.check(newCall(id, source.limits));
  isolates.delete(isolate);
  frames.send(FROM_CELL.CHECKED, id, Buffer.from(JSON.stringify(wrong && {
    code: wrong.code, message: wrong.message, line: wrong.line, column: wrong.column,
  })));
}

function newCall(id, limits) {
  const now = performance.now();
  return {
    id, started: now, deadline: now + limits.timeout_ms, cpuNs: 0, cpuLimitNs: limits.cpu_ms * 1e6,
    cold: false, over: false, execution: '', input: '', isolate: null, timers: new Map(), streamed: [],
  };
}

function newIsolate(bundle) {
  if (isolates.size >= MAX_ISOLATES) endLeastRecentlyUsed();
  const isolate = new FunctionIsolate(bundle, runner);
  isolates.add(isolate);
  return isolate;
}

function endLeastRecentlyUsed() {
  let oldest = null;
  for (const isolate of isolates) {
    if (isolate.idle && (oldest === null || isolate.lastUsed < oldest.lastUsed)) oldest = isolate;
  }
  oldest?.retire();
  return oldest;
}

function watch() {
  let idleBytes = 0;
  for (const isolate of isolates) if (isolate.idle) idleBytes += isolate.heapBytes;
  while (idleBytes > MAX_IDLE_BYTES) idleBytes -= endLeastRecentlyUsed().heapBytes;
  if (isolates.size === 0 || [...isolates].every((isolate) => isolate.idle)) {
    clearInterval(watching);
    watching = null;
    return;
  }
  const now = performance.now();
  for (const isolate of isolates) isolate.watch(now);
}
