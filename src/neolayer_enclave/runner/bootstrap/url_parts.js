// What the build puts in place of three modules that whatwg-url requires, to keep it small: encoders of 40 legacy
// encodings (URL needs UTF-8 only), the encoding classes, and tr46, which is loaded late.

import { decode, encode } from './utf8.js';
import { fromCharCode, indexOf, lower, typedLength, upper } from './intrinsics.js';

export const utf8Encode = encode;
export const utf8DecodeWithoutBOM = (bytes) => decode(bytes);

// https://url.spec.whatwg.org/#string-percent-encode-after-encoding
export function percentEncodeAfterEncoding(encoding, input, set, spaceAsPlus = false) {
  if (lower(encoding) !== 'utf-8') throw new RangeError(`the encoding ${encoding} is not supported`);
  const bytes = encode(input), length = typedLength(bytes);
  let text = '';
  for (let i = 0; i < length; i++) {
    const byte = bytes[i], character = fromCharCode(byte);
    if (spaceAsPlus && byte === 0x20) text += '+';
    else if (byte < 0x20 || byte > 0x7e || indexOf(set, character) >= 0) text += percent(byte);
    else text += character;
  }
  return text;
}

function percent(byte) {
  return `%${byte < 16 ? '0' : ''}${upper(byte.toString(16))}`;
}

// The parser asks for hosts only that are not plain ASCII; tr46 and its tables are loaded for the first of them.
export function toASCII(domain, options) {
  return require('tr46').toASCII(domain, options);
}

export function toUnicode(domain, options) {
  return require('tr46').toUnicode(domain, options);
}
