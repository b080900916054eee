// The language as it was before the author's code ran. The function shares this realm and may change every prototype,
// so that ours reaches for these instead of methods, and avoids what looks methods up behind the scenes: `for of`,
// spread and array patterns (iterators), `slice` and `subarray` of typed arrays (species), regular expressions (exec).

const uncurry = Function.prototype.bind.bind(Function.prototype.call);
const getter = (prototype, name) => uncurry(Reflect.getOwnPropertyDescriptor(prototype, name).get);
const TypedArrayPrototype = Reflect.getPrototypeOf(Uint8Array.prototype);

export { uncurry };
export const mapGet = uncurry(Map.prototype.get);
export const mapSet = uncurry(Map.prototype.set);
export const mapDelete = uncurry(Map.prototype.delete);
export const mapHas = uncurry(Map.prototype.has);
export const mapForEach = uncurry(Map.prototype.forEach);
export const mapSize = getter(Map.prototype, 'size');
export const setAdd = uncurry(Set.prototype.add);
export const setDelete = uncurry(Set.prototype.delete);
export const setHas = uncurry(Set.prototype.has);
export const setForEach = uncurry(Set.prototype.forEach);
export const setSize = getter(Set.prototype, 'size');
export const indexOf = uncurry(String.prototype.indexOf);
export const slice = uncurry(String.prototype.slice);
export const charCodeAt = uncurry(String.prototype.charCodeAt);
// Lone surrogates cannot leave: what reads our messages knows UTF-8 only.
export const wellFormed = uncurry(String.prototype.toWellFormed);
export const lower = uncurry(String.prototype.toLowerCase);
export const upper = uncurry(String.prototype.toUpperCase);
export const repeat = uncurry(String.prototype.repeat);
export const sort = uncurry(Array.prototype.sort);
export const then = uncurry(Promise.prototype.then);
export const isoDate = uncurry(Date.prototype.toISOString);
export const dateValue = uncurry(Date.prototype.valueOf);
export const regexpText = uncurry(RegExp.prototype.toString);
export const regexpSource = getter(RegExp.prototype, 'source');
export const regexpFlags = getter(RegExp.prototype, 'flags');
export const numberValue = uncurry(Number.prototype.valueOf);
export const booleanValue = uncurry(Boolean.prototype.valueOf);
export const stringValue = uncurry(String.prototype.valueOf);
export const bigintValue = uncurry(BigInt.prototype.valueOf);
export const setBytes = uncurry(TypedArrayPrototype.set);
// The name of a typed array's class; undefined for anything else.
export const typedArrayName = getter(TypedArrayPrototype, Symbol.toStringTag);
const typedBuffer = getter(TypedArrayPrototype, 'buffer');
const typedOffset = getter(TypedArrayPrototype, 'byteOffset');
const typedBytes = getter(TypedArrayPrototype, 'byteLength');
export const typedLength = getter(TypedArrayPrototype, 'length');
const dataBuffer = getter(DataView.prototype, 'buffer');
const dataOffset = getter(DataView.prototype, 'byteOffset');
const dataBytes = getter(DataView.prototype, 'byteLength');
export const bufferBytes = getter(ArrayBuffer.prototype, 'byteLength');
export const bufferResizable = getter(ArrayBuffer.prototype, 'resizable');
export const bufferMaximum = getter(ArrayBuffer.prototype, 'maxByteLength');
export const bufferDetached = getter(ArrayBuffer.prototype, 'detached');
export const transferBuffer = uncurry(ArrayBuffer.prototype.transfer);

export const { fromCharCode } = String;
export const { parse, stringify } = JSON;
export const { apply, construct, defineProperty, ownKeys, getOwnPropertyDescriptor, getPrototypeOf } = Reflect;
export const { freeze, is: same, create } = Object;
export const { isArray } = Array;
export const { isView } = ArrayBuffer;
export const { isError } = Error;
export const { now } = Date;
export const { floor, max, min } = Math;
export const PromiseClass = Promise, ErrorClass = Error, TypeErrorClass = TypeError, RangeErrorClass = RangeError;
export const MapClass = Map, SetClass = Set, DateClass = Date, RegExpClass = RegExp, ProxyClass = Proxy;
export const ObjectClass = Object, StringClass = String, NumberClass = Number, BooleanClass = Boolean;
export const WeakMapClass = WeakMap, WeakSetClass = WeakSet, WeakRefClass = WeakRef;
export const ArrayClass = Array, ArrayBufferClass = ArrayBuffer, DataViewClass = DataView;
export const Bytes = Uint8Array, Units = Uint16Array;
export const typedArrays = {
  __proto__: null, Int8Array, Uint8Array, Uint8ClampedArray, Int16Array, Uint16Array, Int32Array, Uint32Array,
  BigInt64Array, BigUint64Array, Float32Array, Float64Array, Float16Array: globalThis.Float16Array,
};
export const errorClasses = { __proto__: null, Error, EvalError, RangeError, ReferenceError, SyntaxError, TypeError, URIError };
export const ObjectPrototype = Object.prototype, ErrorPrototype = Error.prototype;
export const iteratorSymbol = Symbol.iterator, tagSymbol = Symbol.toStringTag;
export const resolved = Promise.resolve.bind(Promise);
export const self = globalThis;

const arrayEntries = Array.prototype.values;
const IteratorNext = Reflect.getPrototypeOf([].values()).next;
const IteratorPrototype = Reflect.getPrototypeOf(Reflect.getPrototypeOf([].values()));

// An iterator over a list of ours that the author may hold.
export function iterate(list) {
  const inner = apply(arrayEntries, list, []);
  const iterator = create(IteratorPrototype);
  define(iterator, 'next', () => apply(IteratorNext, inner, []));
  return iterator;
}

// As an assignment would, whatever the author put on the prototypes.
export function define(object, name, value, enumerable = false) {
  defineProperty(object, name, { __proto__: null, value, writable: true, configurable: true, enumerable });
}

export function append(list, value) {
  define(list, list.length, value, true);
}

// Whether a value is an ArrayBuffer of this realm, whatever its prototype says.
export function isBuffer(value) {
  try {
    bufferBytes(value);
    return true;
  } catch {
    return false;
  }
}

// Where the bytes of a view are: { buffer, offset, length }.
export function extent(view) {
  if (typedArrayName(view) === undefined) {
    return { __proto__: null, buffer: dataBuffer(view), offset: dataOffset(view), length: dataBytes(view) };
  }
  return { __proto__: null, buffer: typedBuffer(view), offset: typedOffset(view), length: typedBytes(view) };
}

// A Uint8Array over the memory of an ArrayBuffer or view; null for anything else.
export function bytesOf(value) {
  if (isView(value)) {
    const { buffer, offset, length } = extent(value);
    return new Bytes(buffer, offset, length);
  }
  return isBuffer(value) ? new Bytes(value) : null;
}

// A part of our own bytes, over the same memory.
export function part(bytes, start, end) {
  const { buffer, offset } = extent(bytes);
  return new Bytes(buffer, offset + start, end - start);
}

// A copy in an ArrayBuffer of its own.
export function copyBytes(bytes) {
  const copy = new Bytes(typedLength(bytes));
  setBytes(copy, bytes);
  return copy;
}

export function bufferOf(view) {
  return typedBuffer(view);
}

// The only clock of an isolate is Date's, of whole milliseconds; it is kept from going back.
export const timeOrigin = now();
let lastNow = 0;

export function performanceNow() {
  const since = now() - timeOrigin;
  if (since > lastNow) lastNow = since;
  return lastNow;
}
