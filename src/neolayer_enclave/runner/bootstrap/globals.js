// The names a function finds. Most are made when first asked for: one that is never touched costs a getter.

import { console } from './console.js';
import { define, defineProperty, ownKeys, performanceNow, self, timeOrigin } from './intrinsics.js';
import { clearInterval, clearTimeout, queueMicrotask, setInterval, setTimeout } from './timers.js';

const READY = {
  __proto__: null, console, setTimeout, setInterval, clearTimeout, clearInterval, queueMicrotask, self,
};

const LAZY = {
  __proto__: null,
  fetch: () => require('./fetch.js').fetch,
  Request: () => require('./fetch.js').Request,
  Response: () => require('./fetch.js').Response,
  Headers: () => require('./headers.js').Headers,
  URL: () => require('./url.js').URL,
  URLSearchParams: () => require('./url.js').URLSearchParams,
  TextEncoder: () => require('./encoding.js').TextEncoder,
  TextDecoder: () => require('./encoding.js').TextDecoder,
  atob: () => require('./encoding.js').atob,
  btoa: () => require('./encoding.js').btoa,
  structuredClone: () => require('./clone.js').structuredClone,
  crypto: () => require('./crypto.js').crypto,
  Crypto: () => require('./crypto.js').Crypto,
  CryptoKey: () => require('./subtle.js').CryptoKey,
  SubtleCrypto: () => require('./subtle.js').SubtleCrypto,
  DOMException: () => require('./exceptions.js').DOMException,
  Event: () => require('./events.js').Event,
  EventTarget: () => require('./events.js').EventTarget,
  AbortController: () => require('./events.js').AbortController,
  AbortSignal: () => require('./events.js').AbortSignal,
  performance: () => ({ now: () => performanceNow(), timeOrigin, toJSON: () => ({ timeOrigin }) }),
};

export function installGlobals() {
  // Their memory is outside the isolate's limit, or lets threads meet.
  delete self.WebAssembly;
  delete self.SharedArrayBuffer;
  delete self.Atomics;

  const ready = ownKeys(READY), lazy = ownKeys(LAZY);
  for (let i = 0; i < ready.length; i++) define(self, ready[i], READY[ready[i]]);
  for (let i = 0; i < lazy.length; i++) defineLazily(lazy[i], LAZY[lazy[i]]);
}

function defineLazily(name, make) {
  defineProperty(self, name, {
    __proto__: null,
    configurable: true,
    enumerable: false,
    get: () => {
      const value = make();
      // The build renames what would collide.
      if (typeof value === 'function') defineProperty(value, 'name', { __proto__: null, value: name, configurable: true });
      define(self, name, value);
      return value;
    },
    set: (value) => define(self, name, value),
  });
}
