// `crypto`: random values here, `subtle` by the enclave.

import { DOMException } from './exceptions.js';
import { addView } from './inspect.js';
import { Bytes, bytesOf, isView, typedArrayName, typedLength, TypeErrorClass } from './intrinsics.js';
import { fill } from './random.js';
import { subtle } from './subtle.js';

const MAX_RANDOM_BYTES = 65_536;
const HEX = '0123456789abcdef';
const key = {};

export class Crypto {
  #brand;

  constructor(made) {
    if (made !== key) throw new TypeErrorClass('Illegal constructor');
  }

  get subtle() {
    this.#brand;
    return subtle;
  }

  getRandomValues(array) {
    const kind = isView(array) ? typedArrayName(array) : undefined;
    if (kind === undefined || kind === 'Float16Array' || kind === 'Float32Array' || kind === 'Float64Array') {
      throw new DOMException('getRandomValues() fills typed arrays of integers', 'TypeMismatchError');
    }
    const bytes = bytesOf(array);
    if (typedLength(bytes) > MAX_RANDOM_BYTES) {
      throw new DOMException(`getRandomValues() fills at most ${MAX_RANDOM_BYTES} bytes`, 'QuotaExceededError');
    }
    fill(bytes);
    return array;
  }

  // RFC 9562, version 4.
  randomUUID() {
    const bytes = new Bytes(16);
    fill(bytes);
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let text = '';
    for (let i = 0; i < 16; i++) {
      if (i === 4 || i === 6 || i === 8 || i === 10) text += '-';
      text += HEX[bytes[i] >> 4] + HEX[bytes[i] & 15];
    }
    return text;
  }

  static {
    addView((value) => #brand in value ? 'Crypto {}' : undefined);
  }
}

export const crypto = new Crypto(key);
