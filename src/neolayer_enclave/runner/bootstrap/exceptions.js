// DOMException, https://webidl.spec.whatwg.org/#idl-DOMException

import { addView } from './inspect.js';
import { define, defineProperty, ErrorClass, indexOf, slice, StringClass, tagSymbol } from './intrinsics.js';
import { ownFrames } from './failures.js';

const CODES = {
  __proto__: null, IndexSizeError: 1, HierarchyRequestError: 3, WrongDocumentError: 4, InvalidCharacterError: 5,
  NoModificationAllowedError: 7, NotFoundError: 8, NotSupportedError: 9, InUseAttributeError: 10, InvalidStateError: 11,
  SyntaxError: 12, InvalidModificationError: 13, NamespaceError: 14, InvalidAccessError: 15, TypeMismatchError: 17,
  SecurityError: 18, NetworkError: 19, AbortError: 20, URLMismatchError: 21, QuotaExceededError: 22, TimeoutError: 23,
  InvalidNodeTypeError: 24, DataCloneError: 25,
};

export class DOMException extends ErrorClass {
  #name;

  constructor(message = '', options = 'Error') {
    super(StringClass(message));
    if (typeof options === 'object' && options !== null) {
      this.#name = options.name === undefined ? 'Error' : StringClass(options.name);
      if ('cause' in options) define(this, 'cause', options.cause);
    } else {
      this.#name = StringClass(options);
    }
    define(this, 'stack', `${this.#name}: ${this.message}${framesOf(this.stack)}`);
  }

  get name() {
    return this.#name;
  }

  get code() {
    return CODES[this.#name] ?? 0;
  }

  static {
    addView((value) => #name in value ? ownFrames(`${value.stack}`) : undefined);
  }
}
defineProperty(DOMException.prototype, tagSymbol, { __proto__: null, value: 'DOMException', configurable: true });

// Behind the first line, which the constructor writes anew.
function framesOf(stack) {
  const text = `${stack}`, at = indexOf(text, '\n    at ');
  return at < 0 ? '' : slice(text, at);
}
