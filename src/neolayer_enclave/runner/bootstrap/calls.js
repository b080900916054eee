// The calls that run in this isolate, and what they want from outside.
//
// Messages in `outbox`, lengths in UTF-16 units:
//   R id ok textLength logsLength \n text logs    the call is over; text: JSON of the value or of [code, message, stack]
//   C id seq kind length form bodyLength \n text body
//     a host call with a JSON text and, with form `t`, a body that is text, with `b`, one of bytes, one per unit;
//     `-`: none. Kinds are below; ABORT names the seq of a FETCH that nobody waits for any more
//   T id seq ms \n                                start a timer        X id seq \n   forget a timer
//   S id \n                                       the random generator wants a fresh seed

import { failure, failureOf, coded, framesHere, located } from './failures.js';
import {
  apply, ErrorClass, MapClass, mapDelete, mapGet, mapSet, now, parse, RangeErrorClass, stringify, then,
} from './intrinsics.js';

export const READ = 0, SEND = 1, FETCH = 2, WALLET = 3, INVOKE = 4, SUBTLE = 16, ABORT = 17;

const MAX_OUTPUT = 1_048_576;
const MAX_HOST_CALLS = 1_000;
const MAX_REQUEST = 1_048_576;
const MAX_OUTBOX = 16_777_216;
const MAX_REQUESTS = 10_000;

let outbox = '';
let requests = 0;
let handler;
let installedAs = 'pending';
let contextOf;
const calls = new MapClass();
// The call on whose behalf code runs now; `loading` while the function's top level runs.
export const loading = newCall(0);
export let current = loading;
export let streaming = false;

function newCall(id) {
  return {
    __proto__: null, id, over: false, started: now(), seq: 0, hostCalls: 0, timers: 0, pending: null,
    logs: '', logLines: 0, logBytes: 0, logFull: false, indent: '', labels: null,
  };
}

// makeContext(call, execution) makes a call's `ctx`.
export function open(makeContext) {
  contextOf = makeContext;
}

// --- entries --------------------------------------------------------------------------------------------------------

// `source` is the function's file as an async function; what became of it is told by `installed`.
export function install(source) {
  then(source(), (entry) => {
    handler = entry;
    installedAs = typeof entry;
  }, (error) => {
    installedAs = failureOf('invalid_function', error);
  });
}

// The type of the default export; `pending` while a top-level `await` waits; or JSON of [code, message, stack].
export function installed() {
  return installedAs;
}

export function run(isStreaming, id, execution, input) {
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

// body: a string when the host's bytes are UTF-8, else an ArrayBuffer.
export function deliver(isStreaming, id, seq, ok, text, body) {
  const call = mapGet(calls, id);
  const waiting = call === undefined || call.pending === null ? undefined : mapGet(call.pending, seq);
  if (waiting === undefined) return;
  mapDelete(call.pending, seq);
  call.hostCalls--;
  enter(call, isStreaming);
  try {
    if (ok) waiting.resolve(waiting.accept(text, body));
    else waiting.reject(located(waiting.refuse(parse(text)), waiting.frames));
  } catch (error) {
    waiting.reject(error); // the author changed what an answer is made with
  }
}

export function fire(isStreaming, id, seq) {
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
  attempt(call, timer.callback, timer.args);
}

export function forget(id) {
  const call = mapGet(calls, id);
  if (call === undefined) return '';
  call.over = true;
  mapDelete(calls, id);
  return call.logs;
}

export function take() {
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
  if (!call.over) finish(call, 0, failureOf(code, error));
}

// Runs a callback that nobody awaits: what it throws fails its call.
export function attempt(call, callback, args) {
  try {
    apply(callback, undefined, args);
  } catch (error) {
    fail(call, 'function_error', error);
  }
}

// --- what calls ask for ---------------------------------------------------------------------------------------------

// Sends a host call. record: { resolve, reject, accept(text, body), refuse?(failure) }; body: null or { form, text }.
// Returns its seq. Throws coded errors.
export function ask(call, kind, text, body, record) {
  check(call);
  if (call.hostCalls >= MAX_HOST_CALLS) {
    throw coded(new RangeErrorClass(`more than ${MAX_HOST_CALLS} calls are waiting`), 'too_many_calls');
  }
  const form = body === null ? '-' : body.form, content = body === null ? '' : body.text;
  if (text.length > MAX_REQUEST || content.length > MAX_REQUEST) {
    throw coded(new RangeErrorClass(`a request has at most ${MAX_REQUEST} characters`), 'invalid_request');
  }
  spare(text.length + content.length);
  call.hostCalls++;
  record.frames = framesHere();
  record.refuse ??= refusal;
  const seq = remember(call, record);
  outbox += `C ${call.id} ${seq} ${kind} ${text.length} ${form} ${content.length}\n${text}${content}`;
  return seq;
}

// A host call with JSON both ways.
export function askJson(call, kind, text, resolve, reject) {
  ask(call, kind, text, null, { __proto__: null, resolve, reject, accept: (answer) => parse(answer) });
}

function refusal(said) {
  return coded(new ErrorClass(said.message), said.code);
}

// Takes a host call back; its answer will find nobody.
export function abandon(call, seq) {
  if (call.over || call.pending === null || mapGet(call.pending, seq)?.accept === undefined) return;
  mapDelete(call.pending, seq);
  call.hostCalls--;
  spare(0);
  outbox += `C ${call.id} ${seq} ${ABORT} 0 - 0\n`;
}

// Asks for a fresh seed of the random generator; false while nobody is there to ask.
export function wantSeed() {
  if (current === loading) return false;
  outbox += `S ${current.id}\n`;
  return true;
}

export function startTimer(call, record) {
  spare(0);
  call.timers++;
  const seq = remember(call, record);
  outbox += `T ${call.id} ${seq} ${record.ms}\n`;
  return seq;
}

export function forgetTimer(call, seq) {
  if (call.pending === null || mapGet(call.pending, seq)?.callback === undefined) return;
  mapDelete(call.pending, seq);
  call.timers--;
  outbox += `X ${call.id} ${seq}\n`;
}

export function check(call) {
  if (call.over || call === loading) throw coded(new ErrorClass('no call is running'), 'call_over');
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
