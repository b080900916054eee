// Shows values to people, for the console and for errors.

import {
  append, DateClass, ErrorClass, getOwnPropertyDescriptor, getPrototypeOf, isArray, isoDate, isView, MapClass,
  mapForEach, ownKeys, PromiseClass, RegExpClass, regexpText, same, SetClass, setAdd, setDelete, setForEach, setHas,
  slice, StringClass, stringify,
} from './intrinsics.js';
import { ownFrames } from './failures.js';

const MAX_LINE = 16_384;
const viewers = [];

// For our classes, whose state is private: view(value) is its text, or undefined for anything else.
export function addView(view) {
  append(viewers, view);
}

// The text of an object of our own classes; undefined for anything else.
export function viewOf(value) {
  for (let i = 0; i < viewers.length; i++) {
    const text = viewers[i](value);
    if (text !== undefined) return text;
  }
  return undefined;
}

// Shows a value the way Node's console does, roughly; never runs its getters, stops at MAX_LINE.
export function inspect(value) {
  let room = MAX_LINE;
  const seen = new SetClass();
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
    if (setHas(seen, value)) return '[Circular]';
    const shown = viewOf(value);
    if (shown !== undefined) return shown;
    if (depth > 4) return isArray(value) ? '[Array]' : '[Object]';
    setAdd(seen, value);
    let inner = '';
    const put = (text) => {
      inner += inner === '' ? text : `, ${text}`;
    };
    if (isArray(value) || (isView(value) && typeof value.length === 'number')) {
      for (let i = 0; i < value.length && room > 0 && i < 1000; i++) put(property(value, `${i}`, depth));
      if (value.length > 1000) put(`… ${value.length - 1000} more`);
      setDelete(seen, value);
      return `${isArray(value) ? '' : 'TypedArray '}[${inner}]`;
    }
    let prefix = className(value);
    if (value instanceof MapClass) {
      mapForEach(value, (item, key) => room > 0 && put(`${show(key, depth + 1)} => ${show(item, depth + 1)}`));
    } else if (value instanceof SetClass) {
      setForEach(value, (item) => room > 0 && put(show(item, depth + 1)));
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
    setDelete(seen, value);
    return inner === '' ? `${prefix}{}` : `${prefix}{ ${inner} }`;
  }

  function property(value, key, depth) {
    const descriptor = getOwnPropertyDescriptor(value, key);
    if (descriptor === undefined) return '<empty>';
    return 'value' in descriptor ? show(descriptor.value, depth + 1) : '[Getter]';
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
