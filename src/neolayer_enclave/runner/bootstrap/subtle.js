// crypto.subtle, https://w3c.github.io/webcrypto/: digests, HMAC, and verification of ECDSA on P-256. The enclave
// computes, see subtle.py; which arguments make sense is decided here. Keys are kept here, so that a key that is not
// extractable stays out of reach of the author's code, and travel with each use.

import { ask, check, current, SUBTLE } from './calls.js';
import { atob, btoa } from './encoding.js';
import { DOMException } from './exceptions.js';
import { addView } from './inspect.js';
import {
  append, Bytes, bufferOf, bytesOf, copyBytes, define, freeze, indexOf, NumberClass, PromiseClass, setBytes, slice,
  StringClass, typedLength, TypeErrorClass, upper,
} from './intrinsics.js';
import { fill } from './random.js';
import { byteString, bytesOfString, encode } from './utf8.js';

// The HMAC's name in JWK, and the hash's block in bytes, which is the default length of a key.
const HASHES = {
  __proto__: null,
  'SHA-1': { __proto__: null, jwk: 'HS1', block: 64 },
  'SHA-256': { __proto__: null, jwk: 'HS256', block: 64 },
  'SHA-384': { __proto__: null, jwk: 'HS384', block: 128 },
  'SHA-512': { __proto__: null, jwk: 'HS512', block: 128 },
};
const POINT_BYTES = 65;
const COORDINATE_BYTES = 32;
// Of the SubjectPublicKeyInfo of a P-256 key, before its uncompressed point: RFC 5480.
const SPKI_HEAD = '3059301306072a8648ce3d020106082a8648ce3d030107034200';
const MAX_KEY_BYTES = 65_536;
const made = {};

export class CryptoKey {
  #type;
  #extractable;
  #algorithm;
  #usages;
  #bytes;

  constructor(key, type, extractable, algorithm, usages, bytes) {
    if (key !== made) throw new TypeErrorClass('Illegal constructor');
    this.#type = type;
    this.#extractable = extractable;
    this.#algorithm = algorithm;
    this.#usages = usages;
    this.#bytes = bytes;
  }

  get type() { return this.#type; }
  get extractable() { return this.#extractable; }
  get algorithm() { return this.#algorithm; }
  get usages() { return this.#usages; }

  // What ours need of a key, whatever the author did to its properties; the algorithm's objects are frozen.
  static open(key) {
    if (typeof key !== 'object' || key === null || !(#bytes in key)) throw new TypeErrorClass('a CryptoKey is needed');
    return {
      __proto__: null, type: key.#type, extractable: key.#extractable, algorithm: key.#algorithm, usages: key.#usages,
      bytes: key.#bytes,
    };
  }

  static {
    addView((value) => #bytes in value ? `CryptoKey { ${value.#type}, ${value.#algorithm.name} }` : undefined);
  }
}
const { open } = CryptoKey;
delete CryptoKey.open;

export class SubtleCrypto {
  constructor(key) {
    if (key !== made) throw new TypeErrorClass('Illegal constructor');
  }

  async digest(algorithm, data) {
    const hash = hashOf(algorithm);
    return bufferOf(await compute(`{"op":"digest","hash":"${hash}","lengths":[]}`, [source(data)]));
  }

  async sign(algorithm, key, data) {
    const opened = usable(algorithm, key, 'sign');
    if (opened.algorithm.name !== 'HMAC') throw unsupported('sign', opened.algorithm.name);
    const text = `{"op":"sign","hash":"${opened.algorithm.hash.name}","lengths":[${typedLength(opened.bytes)}]}`;
    return bufferOf(await compute(text, [opened.bytes, source(data)]));
  }

  async verify(algorithm, key, signature, data) {
    const opened = usable(algorithm, key, 'verify');
    const hmac = opened.algorithm.name === 'HMAC';
    const hash = hmac ? opened.algorithm.hash.name : hashOf(algorithm?.hash);
    const given = source(signature);
    if (typedLength(given) > MAX_KEY_BYTES) return false;
    const lengths = `[${typedLength(opened.bytes)},${typedLength(given)}]`;
    const text = `{"op":"${hmac ? 'verify' : 'verify-p256'}","hash":"${hash}","lengths":${lengths}}`;
    return (await compute(text, [opened.bytes, given, source(data)]))[0] === 1;
  }

  async importKey(format, data, algorithm, extractable, usages) {
    const name = nameOf(algorithm), uses = usagesOf(usages);
    if (name === 'HMAC') return importHmac(format, data, algorithm, !!extractable, uses);
    if (name === 'ECDSA') return importPoint(format, data, algorithm, !!extractable, uses);
    throw unsupported('importKey', name);
  }

  async generateKey(algorithm, extractable, usages) {
    const name = nameOf(algorithm), uses = usagesOf(usages);
    if (name !== 'HMAC') throw unsupported('generateKey', name);
    hmacUsages(uses);
    const hash = hashOf(algorithm.hash);
    const bits = algorithm.length === undefined ? HASHES[hash].block * 8 : NumberClass(algorithm.length);
    if (!(bits >= 8 && bits <= MAX_KEY_BYTES * 8 && bits % 8 === 0)) {
      throw new DOMException('the length of a key is whole bytes, in bits', 'OperationError');
    }
    const bytes = new Bytes(bits / 8);
    fill(bytes);
    return hmacKey(hash, bytes, !!extractable, uses);
  }

  async exportKey(format, key) {
    const { algorithm, extractable, bytes, usages } = open(key), hmac = algorithm.name === 'HMAC';
    if (!extractable) throw new DOMException('the key is not extractable', 'InvalidAccessError');
    if (format === 'raw') return bufferOf(copyBytes(bytes));
    if (format === 'spki' && !hmac) return bufferOf(joined([hexBytes(SPKI_HEAD), bytes]));
    if (format !== 'jwk') throw unsupported('exportKey', format);
    const key_ops = [];
    for (let i = 0; i < usages.length; i++) append(key_ops, usages[i]);
    if (hmac) return { kty: 'oct', k: base64url(bytes), alg: HASHES[algorithm.hash.name].jwk, key_ops, ext: true };
    const end = 1 + COORDINATE_BYTES;
    return {
      kty: 'EC', crv: 'P-256', x: base64url(cut(bytes, 1, end)), y: base64url(cut(bytes, end, POINT_BYTES)), key_ops, ext: true,
    };
  }
}

const others = ['encrypt', 'decrypt', 'deriveKey', 'deriveBits', 'wrapKey', 'unwrapKey'];
for (let i = 0; i < others.length; i++) {
  const name = others[i];
  const method = { async [name](algorithm) { throw unsupported(name, nameOf(algorithm)); } }[name];
  define(SubtleCrypto.prototype, name, method);
}

export const subtle = new SubtleCrypto(made);

// --- keys -----------------------------------------------------------------------------------------------------------

function importHmac(format, data, algorithm, extractable, uses) {
  hmacUsages(uses);
  const hash = hashOf(algorithm.hash);
  let bytes;
  if (format === 'raw') {
    bytes = copyBytes(source(data));
  } else if (format === 'jwk') {
    const { kty, k, alg } = jwk(data, extractable, uses, 'sig');
    if (kty !== 'oct' || typeof k !== 'string') throw wrongData('the JWK is not a symmetric key');
    if (alg !== undefined && alg !== HASHES[hash].jwk) throw wrongData(`the JWK is of ${StringClass(alg)}`);
    bytes = fromBase64url(k);
  } else {
    throw unsupported('importKey', format);
  }
  const bits = typedLength(bytes) * 8;
  if (bits === 0) throw wrongData('the key is empty');
  if (bits > MAX_KEY_BYTES * 8) throw wrongData('the key is too long');
  if (algorithm.length !== undefined && NumberClass(algorithm.length) !== bits) throw wrongData('the key has another length');
  return hmacKey(hash, bytes, extractable, uses);
}

function hmacKey(hash, bytes, extractable, uses) {
  const algorithm = freeze({ name: 'HMAC', hash: freeze({ name: hash }), length: typedLength(bytes) * 8 });
  return new CryptoKey(made, 'secret', extractable, algorithm, freeze(uses), bytes);
}

function hmacUsages(uses) {
  for (let i = 0; i < uses.length; i++) {
    if (uses[i] !== 'sign' && uses[i] !== 'verify') throw wrongUsage(uses[i]);
  }
  if (uses.length === 0) throw new DOMException('a secret key has usages', 'SyntaxError');
}

async function importPoint(format, data, algorithm, extractable, uses) {
  if (algorithm.namedCurve !== 'P-256') throw unsupported('importKey', `the curve ${StringClass(algorithm.namedCurve)}`);
  for (let i = 0; i < uses.length; i++) if (uses[i] !== 'verify') throw wrongUsage(uses[i]);
  let bytes, kind = format;
  if (format === 'raw' || format === 'spki') {
    bytes = source(data);
    if (typedLength(bytes) > MAX_KEY_BYTES) throw wrongData('the key is too long');
  } else if (format === 'jwk') {
    const { kty, crv, x, y, d } = jwk(data, extractable, uses, 'sig');
    if (d !== undefined) throw unsupported('importKey', 'a private key');
    if (kty !== 'EC' || crv !== 'P-256' || typeof x !== 'string' || typeof y !== 'string') {
      throw wrongData('the JWK is not a public key on P-256');
    }
    const left = fromBase64url(x), right = fromBase64url(y);
    if (typedLength(left) !== COORDINATE_BYTES || typedLength(right) !== COORDINATE_BYTES) {
      throw wrongData('a coordinate has 32 bytes');
    }
    bytes = joined([hexBytes('04'), left, right]);
    kind = 'raw';
  } else {
    throw unsupported('importKey', format);
  }
  const point = await compute(`{"op":"import-${kind}","hash":"","lengths":[]}`, [bytes]);
  const named = freeze({ name: 'ECDSA', namedCurve: 'P-256' });
  return new CryptoKey(made, 'public', extractable, named, freeze(uses), point);
}

function jwk(data, extractable, uses, use) {
  if (typeof data !== 'object' || data === null || bytesOf(data) !== null) throw new TypeErrorClass('a JWK is an object');
  if (data.use !== undefined && data.use !== use && uses.length > 0) throw wrongData(`the JWK is for ${StringClass(data.use)}`);
  if (data.ext === false && extractable) throw wrongData('the JWK is not extractable');
  if (data.key_ops !== undefined) {
    const allowed = usagesOf(data.key_ops);
    for (let i = 0; i < uses.length; i++) if (!holds(allowed, uses[i])) throw wrongData(`the JWK is not for ${uses[i]}`);
  }
  return data;
}

function usable(algorithm, key, usage) {
  const opened = open(key);
  if (nameOf(algorithm) !== opened.algorithm.name) throw new DOMException('the key is of another algorithm', 'InvalidAccessError');
  if (!holds(opened.usages, usage)) throw new DOMException(`the key is not for ${usage}`, 'InvalidAccessError');
  return opened;
}

// --- arguments --------------------------------------------------------------------------------------------------------

function nameOf(algorithm) {
  const name = typeof algorithm === 'object' && algorithm !== null ? algorithm.name : algorithm;
  if (name === undefined) throw new TypeErrorClass('an algorithm has a name');
  return upper(StringClass(name));
}

function hashOf(algorithm) {
  const name = nameOf(algorithm);
  if (HASHES[name] === undefined) throw unsupported('a hash', name);
  return name;
}

function usagesOf(list) {
  const uses = [];
  for (let i = 0; i < list.length; i++) {
    const use = StringClass(list[i]);
    if (!holds(uses, use)) append(uses, use);
  }
  return uses;
}

function holds(list, wanted) {
  for (let i = 0; i < list.length; i++) if (list[i] === wanted) return true;
  return false;
}

function source(data) {
  const bytes = bytesOf(data);
  if (bytes === null) throw new TypeErrorClass('data is an ArrayBuffer or a view of one');
  return bytes;
}

function unsupported(what, name) {
  return new DOMException(`${what}: ${StringClass(name)} is not supported`, 'NotSupportedError');
}

function wrongData(message) {
  return new DOMException(message, 'DataError');
}

function wrongUsage(usage) {
  return new DOMException(`such a key cannot ${usage}`, 'SyntaxError');
}

// --- bytes --------------------------------------------------------------------------------------------------------------

// Has the enclave compute; resolves to bytes.
function compute(text, parts) {
  return new PromiseClass((resolve, reject) => {
    const call = current;
    check(call);
    ask(call, SUBTLE, text, { __proto__: null, form: 'b', text: byteString(joined(parts)) }, {
      __proto__: null, resolve, reject,
      accept: (_, content) => typeof content === 'string' ? encode(content) : bytesOf(content),
      refuse: (said) => new DOMException(said.message, said.code),
    });
  });
}

function joined(parts) {
  let length = 0, at = 0;
  for (let i = 0; i < parts.length; i++) length += typedLength(parts[i]);
  const bytes = new Bytes(length);
  for (let i = 0; i < parts.length; i++) {
    setBytes(bytes, parts[i], at);
    at += typedLength(parts[i]);
  }
  return bytes;
}

function cut(bytes, start, end) {
  const copy = new Bytes(end - start);
  for (let i = start; i < end; i++) copy[i - start] = bytes[i];
  return copy;
}

function hexBytes(hex) {
  const bytes = new Bytes(hex.length / 2);
  for (let i = 0; i < typedLength(bytes); i++) bytes[i] = NumberClass(`0x${slice(hex, 2 * i, 2 * i + 2)}`);
  return bytes;
}

function base64url(bytes) {
  const text = btoa(byteString(bytes));
  let url = '';
  for (let i = 0; i < text.length; i++) if (text[i] !== '=') url += text[i] === '+' ? '-' : text[i] === '/' ? '_' : text[i];
  return url;
}

function fromBase64url(text) {
  let plain = '';
  for (let i = 0; i < text.length; i++) {
    if (indexOf('+/= \t\n\f\r', text[i]) >= 0) throw wrongData('a member of the JWK is not base64url');
    plain += text[i] === '-' ? '+' : text[i] === '_' ? '/' : text[i];
  }
  try {
    return bytesOfString(atob(plain));
  } catch {
    throw wrongData('a member of the JWK is not base64url');
  }
}
