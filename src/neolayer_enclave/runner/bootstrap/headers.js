// Headers, https://fetch.spec.whatwg.org/#headers-class

import { addView } from './inspect.js';
import { coded } from './failures.js';
import {
  append, apply, charCodeAt, getOwnPropertyDescriptor, indexOf, isArray, iterate, iteratorSymbol, lower, MapClass,
  mapDelete, mapForEach, mapGet, mapHas, mapSet, ownKeys, slice, sort, StringClass, stringify, TypeErrorClass,
} from './intrinsics.js';

const TOKEN = "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const SPACE = '\t\n\r ';

function nameOf(value) {
  const name = StringClass(value);
  for (let i = 0; i < name.length; i++) {
    if (indexOf(TOKEN, name[i]) < 0) throw wrong(`a header cannot be named ${stringify(name)}`);
  }
  if (name === '') throw wrong('a header has a name');
  return lower(name);
}

function valueOf(value) {
  const text = StringClass(value);
  let start = 0, end = text.length;
  while (start < end && indexOf(SPACE, text[start]) >= 0) start++;
  while (start < end && indexOf(SPACE, text[end - 1]) >= 0) end--;
  for (let i = start; i < end; i++) {
    const unit = charCodeAt(text, i);
    if (unit === 0 || unit === 10 || unit === 13 || unit > 0xff) {
      throw wrong('a header value has no line breaks and no characters above U+00FF');
    }
  }
  return slice(text, start, end);
}

function wrong(message) {
  return coded(new TypeErrorClass(message), 'invalid_request');
}

export class Headers {
  // Lower-case name to value; of set-cookie to a list.
  #values = new MapClass();
  #fixed = false;

  constructor(init = undefined) {
    if (init === undefined) return;
    if (typeof init !== 'object' && typeof init !== 'function' || init === null) {
      throw wrong('headers are an object or a list of pairs');
    }
    if (#values in init) {
      mapForEach(init.#values, (value, name) => mapSet(this.#values, name, value));
    } else if (isArray(init) || typeof init[iteratorSymbol] === 'function') {
      for (const pair of init) {
        const list = [];
        for (const item of pair) append(list, item);
        if (list.length !== 2) throw wrong('a header is a pair of name and value');
        this.#add(list[0], list[1]);
      }
    } else {
      const names = ownKeys(init);
      for (let i = 0; i < names.length; i++) {
        if (!getOwnPropertyDescriptor(init, names[i])?.enumerable) continue;
        if (typeof names[i] === 'symbol') throw wrong('a header cannot be named by a symbol');
        this.#add(names[i], init[names[i]]);
      }
    }
  }

  append(name, value) {
    this.#change();
    this.#add(name, value);
  }

  delete(name) {
    this.#change();
    mapDelete(this.#values, nameOf(name));
  }

  get(name) {
    const value = mapGet(this.#values, nameOf(name));
    return typeof value === 'object' ? joined(value) : value ?? null;
  }

  getSetCookie() {
    const kept = mapGet(this.#values, 'set-cookie') ?? [], copy = [];
    for (let i = 0; i < kept.length; i++) append(copy, kept[i]);
    return copy;
  }

  has(name) {
    return mapHas(this.#values, nameOf(name));
  }

  set(name, value) {
    this.#change();
    const key = nameOf(name), text = valueOf(value);
    mapSet(this.#values, key, key === 'set-cookie' ? [text] : text);
  }

  forEach(callback, self = undefined) {
    if (typeof callback !== 'function') throw new TypeErrorClass('forEach() takes a function');
    const list = this.#sorted();
    for (let i = 0; i < list.length; i++) apply(callback, self, [list[i][1], list[i][0], this]);
  }

  entries() {
    return iterate(this.#sorted());
  }

  keys() {
    return iterate(this.#column(0));
  }

  values() {
    return iterate(this.#column(1));
  }

  [iteratorSymbol]() {
    return iterate(this.#sorted());
  }

  #change() {
    if (this.#fixed) throw new TypeErrorClass('these headers cannot be changed: make new Headers() of them');
  }

  #add(name, value) {
    const key = nameOf(name), text = valueOf(value), before = mapGet(this.#values, key);
    if (key === 'set-cookie') {
      if (before === undefined) mapSet(this.#values, key, [text]);
      else append(before, text);
    } else {
      mapSet(this.#values, key, before === undefined ? text : `${before}, ${text}`);
    }
  }

  #sorted() {
    const names = [], list = [];
    mapForEach(this.#values, (_, name) => append(names, name));
    sort(names);
    for (let i = 0; i < names.length; i++) {
      const value = mapGet(this.#values, names[i]);
      if (typeof value === 'string') append(list, [names[i], value]);
      else for (let j = 0; j < value.length; j++) append(list, [names[i], value[j]]);
    }
    return list;
  }

  #column(at) {
    const list = this.#sorted(), column = [];
    for (let i = 0; i < list.length; i++) append(column, list[i][at]);
    return column;
  }

  // For ours, whatever the author did to the methods.
  static inner = {
    __proto__: null,
    has: (headers, name) => mapHas(headers.#values, name),
    get: (headers, name) => mapGet(headers.#values, name) ?? null,
    set: (headers, name, value) => mapSet(headers.#values, name, value),
    // Of pairs in lower case that came from a server; the author cannot change them.
    of: (pairs) => {
      const headers = new Headers();
      for (let i = 0; i < pairs.length; i++) {
        const name = pairs[i][0], before = mapGet(headers.#values, name);
        if (name === 'set-cookie') {
          if (before === undefined) mapSet(headers.#values, name, [pairs[i][1]]);
          else append(before, pairs[i][1]);
        } else {
          mapSet(headers.#values, name, before === undefined ? pairs[i][1] : `${before}, ${pairs[i][1]}`);
        }
      }
      headers.#fixed = true;
      return headers;
    },
    // As JSON of a list of pairs, composed of strings so that no toJSON gets between.
    text: (headers) => {
      const list = headers.#sorted();
      let text = '';
      for (let i = 0; i < list.length; i++) {
        text += `${i > 0 ? ',' : ''}[${stringify(list[i][0])},${stringify(list[i][1])}]`;
      }
      return `[${text}]`;
    },
  };

  static {
    addView((value) => {
      if (!(#values in value)) return undefined;
      const list = value.#sorted();
      let text = '';
      for (let i = 0; i < list.length; i++) text += `${i > 0 ? ', ' : ''}${list[i][0]}: ${stringify(list[i][1])}`;
      return text === '' ? 'Headers {}' : `Headers { ${text} }`;
    });
  }
}
export const { inner: headersOf } = Headers;
delete Headers.inner;

function joined(list) {
  let text = '';
  for (let i = 0; i < list.length; i++) text += i > 0 ? `, ${list[i]}` : list[i];
  return text;
}
