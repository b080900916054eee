// `ctx`, the second argument of a function.

import { askJson, INVOKE, READ, SEND, WALLET } from './calls.js';
import { coded } from './failures.js';
import { ErrorClass, freeze, parse, PromiseClass, ProxyClass, stringify, TypeErrorClass } from './intrinsics.js';

let secrets;

export function contextOf(call, execution) {
  return freeze({
    secrets,
    executionId: execution,
    invoke: (name, input) => neo(call, INVOKE, { __proto__: null, name, input }),
    neo: freeze({
      read: (request) => neo(call, READ, request),
      send: (request) => neo(call, SEND, request),
      wallet: (name = 'default') => neo(call, WALLET, name),
    }),
  });
}

export function grant(secretsText) {
  secrets = new ProxyClass(freeze({ __proto__: null, ...parse(secretsText) }), {
    __proto__: null,
    get(target, name) {
      const value = target[name];
      // Asked for by the language itself, not by the author.
      if (value !== undefined || typeof name === 'symbol' || name === 'toJSON' || name === 'then') return value;
      throw coded(new ErrorClass(`this function was not given a secret named ${name}`), 'unknown_secret');
    },
  });
}

function neo(call, kind, request) {
  return new PromiseClass((resolve, reject) => {
    const text = stringify(request);
    if (text === undefined) throw coded(new TypeErrorClass('the request is not JSON'), 'invalid_request');
    askJson(call, kind, text, resolve, reject);
  });
}
