// `console`: lines of the call's log, cut at its limits. While an entry runs on another thread its lines leave at
// once by `streamLog`, because they would be lost when that entry has to be ended together with its isolate.

import { current, loading, streaming } from './calls.js';
import {
  append, getOwnPropertyDescriptor, isArray, MapClass, mapDelete, mapGet, mapSet, now, ownKeys, slice,
  StringClass, stringify, wellFormed,
} from './intrinsics.js';
import { inspect } from './inspect.js';
import { utf8Length } from './utf8.js';

const MAX_LOG_BYTES = 262_144;
const MAX_LOG_LINES = 1_000;
const MAX_LINE = 16_384;
const MAX_INDENT = 40;
const MAX_LABELS = 1_000;
const MAX_ROWS = 1_000;
let streamLog;

export function streamTo(sink) {
  streamLog = sink;
}

function log(level, values) {
  const call = current;
  if (call.over || call.logFull) return;
  let text = call.indent;
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
    put(call, `[${now() - call.started},"warn","log truncated: a call may log 1,000 lines or 256 KB"]`);
  } else {
    put(call, line);
  }
}

function put(call, line) {
  call.logs += call.logs === '' ? line : `,${line}`;
  if (streaming) streamLog(call.id, line);
}

// Counters and stopwatches of the call, by name.
function labels() {
  current.labels ??= { __proto__: null, counts: new MapClass(), times: new MapClass(), used: 0 };
  return current.labels;
}

function setLabel(map, label, value) {
  if (mapGet(map, label) === undefined && ++labels().used > MAX_LABELS) return;
  mapSet(map, label, value);
}

function elapsed(label, values, ends) {
  const { times } = labels(), since = mapGet(times, label);
  if (since === undefined) {
    log('warn', [`Timer '${label}' does not exist`]);
    return;
  }
  if (ends) mapDelete(times, label);
  const line = [`${label}: ${now() - since} ms`];
  for (let i = 0; i < values.length; i++) append(line, values[i]);
  log('log', line);
}

// A line for every row: enough to read, no drawing.
function table(rows, columns) {
  if (typeof rows !== 'object' || rows === null) {
    log('log', [rows]);
    return;
  }
  const keys = ownKeys(rows);
  for (let i = 0; i < keys.length && i < MAX_ROWS; i++) {
    const descriptor = getOwnPropertyDescriptor(rows, keys[i]);
    if (!descriptor?.enumerable) continue;
    let row = 'value' in descriptor ? descriptor.value : '[Getter]';
    if (isArray(columns) && typeof row === 'object' && row !== null) row = picked(row, columns);
    log('log', [`${StringClass(keys[i])}:`, row]);
  }
}

function picked(row, columns) {
  const kept = { __proto__: null };
  for (let i = 0; i < columns.length; i++) {
    const descriptor = getOwnPropertyDescriptor(row, columns[i]);
    if (descriptor !== undefined && 'value' in descriptor) kept[columns[i]] = descriptor.value;
  }
  return kept;
}

function group(values) {
  if (values.length > 0) log('log', values);
  if (current !== loading && current.indent.length < MAX_INDENT) current.indent += '  ';
}

export const console = {
  log: (...values) => log('log', values),
  info: (...values) => log('info', values),
  warn: (...values) => log('warn', values),
  error: (...values) => log('error', values),
  debug: (...values) => log('debug', values),
  trace: (...values) => log('debug', values),
  dir: (value) => log('log', [value]),
  dirxml: (...values) => log('log', values),
  table,
  assert: (condition, ...values) => {
    if (condition) return;
    const line = [values.length > 0 ? 'Assertion failed:' : 'Assertion failed'];
    for (let i = 0; i < values.length; i++) append(line, values[i]);
    log('error', line);
  },
  count: (label = 'default') => {
    const { counts } = labels(), name = StringClass(label), count = (mapGet(counts, name) ?? 0) + 1;
    setLabel(counts, name, count);
    log('log', [`${name}: ${count}`]);
  },
  countReset: (label = 'default') => {
    mapDelete(labels().counts, StringClass(label));
  },
  time: (label = 'default') => setLabel(labels().times, StringClass(label), now()),
  timeLog: (label = 'default', ...values) => elapsed(StringClass(label), values, false),
  timeEnd: (label = 'default') => elapsed(StringClass(label), [], true),
  group: (...values) => group(values),
  groupCollapsed: (...values) => group(values),
  groupEnd: () => {
    current.indent = slice(current.indent, 2);
  },
  clear: () => {},
};
