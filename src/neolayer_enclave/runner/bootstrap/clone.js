// structuredClone, https://html.spec.whatwg.org/#structuredserialize. In one pass: what is cloned is made as it is
// found, with a memory for what refers to itself.

import { DOMException } from './exceptions.js';
import { inspect, viewOf } from './inspect.js';
import {
  append, ArrayBufferClass, ArrayClass, bigintValue, BooleanClass, booleanValue, bufferBytes, bufferDetached,
  bufferMaximum, bufferResizable, Bytes, DataViewClass, DateClass, dateValue, define, errorClasses, extent,
  getOwnPropertyDescriptor, getPrototypeOf, isArray, isBuffer, isError, isView, MapClass, mapForEach, mapGet, mapSet,
  mapSize, NumberClass, numberValue, ObjectClass, ObjectPrototype, ownKeys, PromiseClass, RegExpClass, regexpFlags,
  regexpSource, setAdd, setBytes, SetClass, setForEach, setSize, slice, StringClass, stringValue, transferBuffer,
  typedArrayName, typedArrays, typedLength, TypeErrorClass, WeakMapClass,
  WeakRefClass, WeakSetClass,
} from './intrinsics.js';

// Beyond it the stack of our own recursion might not do.
const MAX_DEPTH = 5_000;
const MAX_SHOWN = 100;

export function structuredClone(value, options = undefined) {
  if (arguments.length === 0) throw new TypeErrorClass('structuredClone() takes a value');
  const memory = new MapClass(), transferred = [];
  const given = options?.transfer;
  if (given !== undefined) {
    for (const item of given) append(transferred, item);
    for (let i = 0; i < transferred.length; i++) {
      if (!isBuffer(transferred[i]) || bufferDetached(transferred[i])) throw cannot(transferred[i], 'be transferred');
      for (let j = 0; j < i; j++) if (transferred[j] === transferred[i]) throw cannot(transferred[i], 'be transferred twice');
    }
  }
  // What is transferred is copied like the rest, then taken away.
  const cloned = clone(value, memory, 0);
  for (let i = 0; i < transferred.length; i++) transferBuffer(transferred[i]);
  return cloned;
}

function clone(value, memory, depth) {
  switch (typeof value) {
    case 'symbol':
    case 'function':
      throw cannot(value, 'be cloned');
    case 'object':
      break;
    default:
      return value;
  }
  if (value === null) return null;
  const seen = mapGet(memory, value);
  if (seen !== undefined) return seen;
  if (depth > MAX_DEPTH) throw new DOMException('the value is too deep', 'DataCloneError');
  const prototype = getPrototypeOf(value);
  if (isArray(value)) return cloneArray(value, memory, depth);
  if (prototype !== ObjectPrototype && prototype !== null) {
    const made = cloneSpecial(value, memory, depth);
    if (made !== null) return made;
  }
  const copy = {};
  mapSet(memory, value, copy);
  copyProperties(value, copy, memory, depth);
  return copy;
}

function cloneArray(value, memory, depth) {
  const copy = new ArrayClass(value.length);
  mapSet(memory, value, copy);
  copyProperties(value, copy, memory, depth);
  return copy;
}

function copyProperties(value, copy, memory, depth) {
  const keys = ownKeys(value);
  for (let i = 0; i < keys.length; i++) {
    if (typeof keys[i] === 'symbol' || !getOwnPropertyDescriptor(value, keys[i])?.enumerable) continue;
    define(copy, keys[i], clone(value[keys[i]], memory, depth + 1), true);
  }
}

// An object with inner state, or null for one that is cloned by its properties.
function cloneSpecial(value, memory, depth) {
  if (isView(value)) return cloneView(value, memory);
  if (isBuffer(value)) return cloneBuffer(value, memory);
  if (isError(value)) return cloneError(value, memory, depth);
  const made = inner(() => new DateClass(dateValue(value)))
    ?? inner(() => new RegExpClass(regexpSource(value), regexpFlags(value)))
    ?? inner(() => new BooleanClass(booleanValue(value)))
    ?? inner(() => new NumberClass(numberValue(value)))
    ?? inner(() => new StringClass(stringValue(value)))
    ?? inner(() => ObjectClass(bigintValue(value)));
  if (made !== null) {
    mapSet(memory, value, made);
    return made;
  }
  if (inner(() => mapSize(value)) !== null) return cloneMap(value, memory, depth);
  if (inner(() => setSize(value)) !== null) return cloneSet(value, memory, depth);
  if (viewOf(value) !== undefined || isOpaque(value)) throw cannot(value, 'be cloned');
  return null;
}

// The result of reading an inner slot; null for an object that has none such.
function inner(read) {
  try {
    return read();
  } catch {
    return null;
  }
}

function cloneView(value, memory) {
  const { buffer, offset, length } = extent(value), kind = typedArrayName(value);
  if (!isBuffer(buffer)) throw cannot(value, 'be cloned');
  const memoryCopy = mapGet(memory, buffer) ?? cloneBuffer(buffer, memory);
  const copy = kind === undefined ? new DataViewClass(memoryCopy, offset, length)
    : new typedArrays[kind](memoryCopy, offset, typedLength(value));
  mapSet(memory, value, copy);
  return copy;
}

function cloneBuffer(value, memory) {
  if (bufferDetached(value)) throw cannot(value, 'be cloned: it is detached');
  const options = bufferResizable(value) ? { __proto__: null, maxByteLength: bufferMaximum(value) } : undefined;
  const copy = new ArrayBufferClass(bufferBytes(value), options);
  setBytes(new Bytes(copy), new Bytes(value));
  mapSet(memory, value, copy);
  return copy;
}

function cloneError(value, memory, depth) {
  const { name } = value;
  const ErrorOfName = typeof name === 'string' && errorClasses[name] !== undefined ? errorClasses[name] : errorClasses.Error;
  const made = new ErrorOfName();
  mapSet(memory, value, made);
  const message = getOwnPropertyDescriptor(value, 'message'), cause = getOwnPropertyDescriptor(value, 'cause');
  if (message !== undefined && 'value' in message) define(made, 'message', StringClass(message.value));
  if (cause !== undefined && 'value' in cause) define(made, 'cause', clone(cause.value, memory, depth + 1));
  const { stack } = value;
  if (typeof stack === 'string') define(made, 'stack', stack);
  return made;
}

function cloneMap(value, memory, depth) {
  const copy = new MapClass(), entries = [];
  mapSet(memory, value, copy);
  mapForEach(value, (item, key) => append(entries, [key, item]));
  for (let i = 0; i < entries.length; i++) {
    mapSet(copy, clone(entries[i][0], memory, depth + 1), clone(entries[i][1], memory, depth + 1));
  }
  return copy;
}

function cloneSet(value, memory, depth) {
  const copy = new SetClass(), items = [];
  mapSet(memory, value, copy);
  setForEach(value, (item) => append(items, item));
  for (let i = 0; i < items.length; i++) setAdd(copy, clone(items[i], memory, depth + 1));
  return copy;
}

function isOpaque(value) {
  return value instanceof PromiseClass || value instanceof WeakMapClass || value instanceof WeakSetClass || value instanceof WeakRefClass;
}

function cannot(value, what) {
  let shown = typeof value;
  try {
    shown = typeof value === 'symbol' || typeof value === 'function' ? StringClass(value) : inspect(value);
  } catch {
    // a function whose text cannot be had
  }
  return new DOMException(`${slice(shown, 0, MAX_SHOWN)} cannot ${what}`, 'DataCloneError');
}
