// TextEncoder, TextDecoder, atob, btoa. UTF-8 is the one encoding.

import { DOMException } from './exceptions.js';
import {
  Bytes, bytesOf, charCodeAt, fromCharCode, indexOf, lower, part, RangeErrorClass, setBytes, slice, StringClass,
  typedArrayName, typedLength, TypeErrorClass,
} from './intrinsics.js';
import * as utf8 from './utf8.js';

const LABELS = ' utf-8 utf8 unicode-1-1-utf-8 unicode11utf8 unicode20utf8 x-unicode20utf8 ';
const WHITESPACE = '\t\n\f\r ';
const BASE64 = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/';

export class TextEncoder {
  get encoding() {
    return 'utf-8';
  }

  encode(value = '') {
    return utf8.encode(StringClass(value));
  }

  encodeInto(value, bytes) {
    if (typedArrayName(bytes) !== 'Uint8Array') throw new TypeErrorClass('encodeInto() writes into a Uint8Array');
    return utf8.encodeInto(StringClass(value), bytes);
  }
}

export class TextDecoder {
  #fatal;
  #keepMark;
  // Of a stream: the bytes of a sequence that goes on, and whether a byte order mark may still come.
  #begun = new Bytes(0);
  #atStart = true;

  constructor(label = 'utf-8', options = undefined) {
    let name = lower(StringClass(label));
    while (name !== '' && indexOf(WHITESPACE, name[0]) >= 0) name = slice(name, 1);
    while (name !== '' && indexOf(WHITESPACE, name[name.length - 1]) >= 0) name = slice(name, 0, -1);
    if (name === '' || indexOf(name, ' ') >= 0 || indexOf(LABELS, ` ${name} `) < 0) {
      throw new RangeErrorClass(`the encoding ${name} is not supported`);
    }
    this.#fatal = !!options?.fatal;
    this.#keepMark = !!options?.ignoreBOM;
  }

  get encoding() {
    return 'utf-8';
  }

  get fatal() {
    return this.#fatal;
  }

  get ignoreBOM() {
    return this.#keepMark;
  }

  decode(input = new Bytes(0), options = undefined) {
    const stream = !!options?.stream;
    let bytes = bytesOf(input);
    if (bytes === null) throw new TypeErrorClass('decode() takes an ArrayBuffer or a view of one');
    const begun = typedLength(this.#begun);
    if (begun > 0) {
      const joined = new Bytes(begun + typedLength(bytes));
      setBytes(joined, this.#begun);
      setBytes(joined, bytes, begun);
      bytes = joined;
      this.#begun = new Bytes(0);
    }
    let text;
    try {
      text = utf8.decode(bytes, this.#fatal, stream);
    } catch (error) {
      this.#atStart = true;
      if (error === utf8.malformed) throw new TypeErrorClass('the bytes are not UTF-8');
      throw error;
    }
    if (utf8.rest > 0) {
      const left = new Bytes(utf8.rest);
      setBytes(left, part(bytes, typedLength(bytes) - utf8.rest, typedLength(bytes)));
      this.#begun = left;
    }
    const marked = this.#atStart && !this.#keepMark && text !== '' && charCodeAt(text, 0) === 0xfeff;
    if (stream) this.#atStart &&= text === '';
    else this.#atStart = true;
    return marked ? slice(text, 1) : text;
  }
}

// --- https://infra.spec.whatwg.org/#forgiving-base64 -----------------------------------------------------------------

export function btoa(value) {
  const text = StringClass(value);
  const unit = (at) => {
    const code = charCodeAt(text, at);
    if (code > 0xff) throw new DOMException('btoa() takes characters up to U+00FF', 'InvalidCharacterError');
    return code;
  };
  let encoded = '';
  for (let i = 0; i < text.length; i += 3) {
    const left = text.length - i;
    const group = (unit(i) << 16) | (left > 1 ? unit(i + 1) << 8 : 0) | (left > 2 ? unit(i + 2) : 0);
    encoded += BASE64[group >> 18] + BASE64[(group >> 12) & 63];
    encoded += left > 1 ? BASE64[(group >> 6) & 63] : '=';
    encoded += left > 2 ? BASE64[group & 63] : '=';
  }
  return encoded;
}

export function atob(value) {
  const text = StringClass(value);
  let kept = '';
  for (let i = 0; i < text.length; i++) if (indexOf(WHITESPACE, text[i]) < 0) kept += text[i];
  if (kept.length % 4 === 0) {
    if (slice(kept, -2) === '==') kept = slice(kept, 0, -2);
    else if (slice(kept, -1) === '=') kept = slice(kept, 0, -1);
  }
  const bad = () => new DOMException('atob() takes base64', 'InvalidCharacterError');
  if (kept.length % 4 === 1) throw bad();
  let decoded = '', bits = 0, held = 0;
  for (let i = 0; i < kept.length; i++) {
    const six = indexOf(BASE64, kept[i]);
    if (six < 0) throw bad();
    bits = ((bits << 6) | six) & 0xffff;
    held += 6;
    if (held >= 8) {
      held -= 8;
      decoded += fromCharCode((bits >> held) & 0xff);
    }
  }
  return decoded;
}
