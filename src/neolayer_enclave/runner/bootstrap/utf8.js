// UTF-8, https://encoding.spec.whatwg.org/#utf-8; also bytes as strings of one unit per byte.

import {
  apply, Bytes, bufferOf, charCodeAt, fromCharCode, min, part, typedLength, Units, wellFormed,
} from './intrinsics.js';

const REPLACEMENT = 0xfffd;
// As many arguments as `fromCharCode` is given at once.
const CHUNK = 8_192;

export function utf8Length(text) {
  let bytes = text.length;
  for (let i = 0; i < text.length; i++) {
    const unit = charCodeAt(text, i);
    if (unit > 0x7f) bytes += unit > 0x7ff && (unit < 0xd800 || unit > 0xdfff) ? 2 : 1;
  }
  return bytes;
}

// Writes as much of `text` from `from` on as fits whole into `bytes`. Returns { read, written }.
export function encodeInto(text, bytes) {
  const room = typedLength(bytes), length = text.length;
  let written = 0, i = 0;
  for (; i < length; i++) {
    let point = charCodeAt(text, i), units = 1;
    if (point < 0x80) {
      if (written >= room) break;
      bytes[written++] = point;
      continue;
    }
    if (point >= 0xd800 && point <= 0xdfff) {
      const next = point < 0xdc00 && i + 1 < length ? charCodeAt(text, i + 1) : 0;
      if (next >= 0xdc00 && next <= 0xdfff) {
        point = 0x10000 + ((point - 0xd800) << 10) + (next - 0xdc00);
        units = 2;
      } else {
        point = REPLACEMENT;
      }
    }
    const needed = point < 0x800 ? 2 : point < 0x10000 ? 3 : 4;
    if (written + needed > room) break;
    if (needed === 2) {
      bytes[written++] = 0xc0 | (point >> 6);
    } else {
      if (needed === 3) {
        bytes[written++] = 0xe0 | (point >> 12);
      } else {
        bytes[written++] = 0xf0 | (point >> 18);
        bytes[written++] = 0x80 | ((point >> 12) & 0x3f);
      }
      bytes[written++] = 0x80 | ((point >> 6) & 0x3f);
    }
    bytes[written++] = 0x80 | (point & 0x3f);
    i += units - 1;
  }
  return { read: i, written };
}

export function encode(text) {
  const whole = wellFormed(text);
  const bytes = new Bytes(utf8Length(whole));
  encodeInto(whole, bytes);
  return bytes;
}

// Raised by `decode` when it is `fatal`; the caller says it in its own words.
export const malformed = { __proto__: null };

// Decodes bytes. With `partial`, a sequence that may go on behind the end is left: `rest` says how many bytes.
export function decode(bytes, fatal = false, partial = false) {
  const length = typedLength(bytes);
  const units = new Units(min(length, CHUNK) + 1), buffer = bufferOf(units);
  let text = '', used = 0, at = 0;
  rest = 0;
  while (at < length) {
    if (used >= CHUNK) {
      text += apply(fromCharCode, undefined, new Units(buffer, 0, used));
      used = 0;
    }
    const first = bytes[at++];
    if (first < 0x80) {
      units[used++] = first;
      continue;
    }
    const needed = first >= 0xc2 && first <= 0xdf ? 1 : first >= 0xe0 && first <= 0xef ? 2
      : first >= 0xf0 && first <= 0xf4 ? 3 : 0;
    // The second byte's range keeps out overlong forms, surrogates and what lies past U+10FFFF.
    let least = first === 0xe0 ? 0xa0 : first === 0xf0 ? 0x90 : 0x80;
    let most = first === 0xed ? 0x9f : first === 0xf4 ? 0x8f : 0xbf;
    let point = first & (0x3f >> needed), read = 0;
    while (read < needed && at < length && bytes[at] >= least && bytes[at] <= most) {
      point = (point << 6) | (bytes[at++] & 0x3f);
      least = 0x80;
      most = 0xbf;
      read++;
    }
    if (needed === 0 || read < needed) {
      if (partial && needed > 0 && at === length) {
        rest = read + 1;
        break;
      }
      if (fatal) throw malformed;
      units[used++] = REPLACEMENT;
    } else if (point < 0x10000) {
      units[used++] = point;
    } else {
      units[used++] = 0xd7c0 + (point >> 10);
      units[used++] = 0xdc00 | (point & 0x3ff);
    }
  }
  return text + apply(fromCharCode, undefined, new Units(buffer, 0, used));
}

// How many bytes at the end the last `decode` with `partial` left.
export let rest = 0;

// One unit per byte: how bytes leave the isolate.
export function byteString(bytes) {
  const length = typedLength(bytes);
  let text = '';
  for (let at = 0; at < length; at += CHUNK) {
    text += apply(fromCharCode, undefined, part(bytes, at, min(at + CHUNK, length)));
  }
  return text;
}

export function bytesOfString(text) {
  const bytes = new Bytes(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = charCodeAt(text, i);
  return bytes;
}
