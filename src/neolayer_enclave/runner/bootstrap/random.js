// A ChaCha20 generator per isolate. The cell gives every isolate a seed of its own, and a fresh one when asked.

import { wantSeed } from './calls.js';
import { now, setBytes, typedLength } from './intrinsics.js';
import { bytesOfString } from './utf8.js';

const RESEED_MS = 60_000;
const RESEED_BYTES = 1_048_576;

let generator = null;
let fresh = null;
let wanted = false;
let drawn = 0;
let seededAt = 0;

// An entry. text: 40 random bytes, one a character. Only kept here: what mixes it in may be the author's to break.
export function seed(text) {
  fresh = text;
}

// Fills bytes.
export function fill(bytes) {
  if (fresh !== null) {
    const entropy = bytesOfString(fresh);
    if (generator === null) generator = require('@noble/ciphers/chacha.js').rngChacha20(entropy);
    else generator.addEntropy(entropy);
    fresh = null;
    wanted = false;
    drawn = 0;
    seededAt = now();
  }
  drawn += typedLength(bytes);
  if (!wanted && (drawn > RESEED_BYTES || now() - seededAt > RESEED_MS)) wanted = wantSeed();
  setBytes(bytes, generator.randomBytes(typedLength(bytes)));
}
