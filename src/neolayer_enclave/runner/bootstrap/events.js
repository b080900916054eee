// Event, EventTarget, AbortController, AbortSignal, https://dom.spec.whatwg.org/. No tree, no capturing: a target is
// alone.

import { attempt, current } from './calls.js';
import { DOMException } from './exceptions.js';
import { addView } from './inspect.js';
import {
  append, apply, NumberClass, performanceNow, RangeErrorClass, StringClass, TypeErrorClass,
} from './intrinsics.js';
import { start } from './timers.js';

export class Event {
  #type;
  #bubbles;
  #cancelable;
  #composed;
  #timeStamp = performanceNow();
  #target = null;
  #canceled = false;
  #passive = false;
  #stopped = false;
  #dispatching = false;

  constructor(type, options = undefined) {
    if (arguments.length === 0) throw new TypeErrorClass('an event has a type');
    this.#type = StringClass(type);
    this.#bubbles = !!options?.bubbles;
    this.#cancelable = !!options?.cancelable;
    this.#composed = !!options?.composed;
  }

  get type() { return this.#type; }
  get bubbles() { return this.#bubbles; }
  get cancelable() { return this.#cancelable; }
  get composed() { return this.#composed; }
  get timeStamp() { return this.#timeStamp; }
  get target() { return this.#target; }
  get currentTarget() { return this.#dispatching ? this.#target : null; }
  get eventPhase() { return this.#dispatching ? 2 : 0; }
  get defaultPrevented() { return this.#canceled; }
  get isTrusted() { return false; }

  composedPath() {
    return this.#dispatching ? [this.#target] : [];
  }

  preventDefault() {
    if (this.#cancelable && !this.#passive) this.#canceled = true;
  }

  stopPropagation() {}

  stopImmediatePropagation() {
    this.#stopped = true;
  }

  // Calls the listeners in `list`; false when the default was prevented.
  static dispatch(event, target, list) {
    if (event.#dispatching) throw new DOMException('the event is being dispatched', 'InvalidStateError');
    event.#target = target;
    event.#dispatching = true;
    const due = [];
    for (let i = 0; i < list.length; i++) if (list[i].type === event.#type) append(due, list[i]);
    for (let i = 0; i < due.length && !event.#stopped; i++) {
      const listener = due[i];
      if (listener.removed) continue;
      if (listener.once) listener.removed = true;
      event.#passive = listener.passive;
      attempt(current, () => invoke(listener.callback, target, event), []);
    }
    event.#passive = event.#stopped = event.#dispatching = false;
    return !event.#canceled;
  }

  static {
    addView((value) => #type in value ? `Event { type: '${value.#type}' }` : undefined);
  }
}
const { dispatch } = Event;
delete Event.dispatch;

function invoke(callback, target, event) {
  if (typeof callback === 'function') apply(callback, target, [event]);
  else callback.handleEvent(event);
}

export class EventTarget {
  // Of { type, callback, once, passive, removed }.
  #listeners = [];

  addEventListener(type, callback, options = undefined) {
    const name = StringClass(type);
    if (callback === null || callback === undefined) return;
    if (typeof callback !== 'function' && typeof callback !== 'object') throw new TypeErrorClass('a listener is a function');
    const signal = typeof options === 'object' ? options?.signal : undefined;
    if (signal !== undefined && isAborted(signal)) return;
    this.#sweep();
    for (let i = 0; i < this.#listeners.length; i++) {
      if (this.#listeners[i].type === name && this.#listeners[i].callback === callback) return;
    }
    const { once, passive } = typeof options === 'object' && options !== null ? options : { __proto__: null };
    append(this.#listeners, { __proto__: null, type: name, callback, once: !!once, passive: !!passive, removed: false });
    if (signal !== undefined) onAbort(signal, () => this.removeEventListener(name, callback));
  }

  removeEventListener(type, callback) {
    const name = StringClass(type);
    for (let i = 0; i < this.#listeners.length; i++) {
      const listener = this.#listeners[i];
      if (listener.type === name && listener.callback === callback) listener.removed = true;
    }
    this.#sweep();
  }

  dispatchEvent(event) {
    try {
      return dispatch(event, this, this.#listeners);
    } finally {
      this.#sweep();
    }
  }

  #sweep() {
    const kept = [];
    for (let i = 0; i < this.#listeners.length; i++) if (!this.#listeners[i].removed) append(kept, this.#listeners[i]);
    this.#listeners = kept;
  }
}

const { dispatchEvent } = EventTarget.prototype;
const key = {};

export class AbortSignal extends EventTarget {
  #aborted = false;
  #reason = undefined;
  #algorithms = [];
  #handler = null;

  constructor(made) {
    if (made !== key) throw new TypeErrorClass('Illegal constructor');
    super();
  }

  get aborted() {
    return this.#aborted;
  }

  get reason() {
    return this.#reason;
  }

  get onabort() {
    return this.#handler;
  }

  set onabort(handler) {
    this.#handler = typeof handler === 'function' ? handler : null;
  }

  throwIfAborted() {
    if (this.#aborted) throw this.#reason;
  }

  static abort(reason) {
    const signal = new AbortSignal(key);
    signal.#abort(reason);
    return signal;
  }

  static timeout(ms) {
    const wait = NumberClass(ms);
    if (!(wait >= 0 && wait <= 2 ** 53 - 1)) throw new RangeErrorClass('a timeout is a number of milliseconds');
    const signal = new AbortSignal(key);
    start(() => signal.#abort(new DOMException('The operation was aborted due to timeout', 'TimeoutError')), wait, [], false);
    return signal;
  }

  static any(signals) {
    const all = [], made = new AbortSignal(key);
    for (const signal of signals) append(all, signal);
    for (let i = 0; i < all.length; i++) {
      if (!(#aborted in all[i])) throw new TypeErrorClass('any() takes signals');
    }
    for (let i = 0; i < all.length; i++) {
      if (all[i].#aborted) {
        made.#abort(all[i].#reason);
        return made;
      }
    }
    for (let i = 0; i < all.length; i++) append(all[i].#algorithms, () => made.#abort(all[i].#reason));
    return made;
  }

  #abort(reason) {
    if (this.#aborted) return;
    this.#aborted = true;
    this.#reason = reason === undefined ? new DOMException('This operation was aborted', 'AbortError') : reason;
    const algorithms = this.#algorithms;
    this.#algorithms = [];
    for (let i = 0; i < algorithms.length; i++) algorithms[i]();
    const event = new Event('abort');
    if (this.#handler !== null) attempt(current, () => apply(this.#handler, this, [event]), []);
    apply(dispatchEvent, this, [event]);
  }

  // For ours: the signal's state and its hooks, whatever the author did to its properties.
  static inner = {
    __proto__: null,
    make: () => new AbortSignal(key),
    is: (value) => typeof value === 'object' && value !== null && #aborted in value,
    isAborted: (signal) => signal.#aborted,
    reason: (signal) => signal.#reason,
    abort: (signal, reason) => signal.#abort(reason),
    add: (signal, algorithm) => append(signal.#algorithms, algorithm),
    remove: (signal, algorithm) => {
      const kept = [];
      for (let i = 0; i < signal.#algorithms.length; i++) {
        if (signal.#algorithms[i] !== algorithm) append(kept, signal.#algorithms[i]);
      }
      signal.#algorithms = kept;
    },
  };

  static {
    addView((value) => #aborted in value ? `AbortSignal { aborted: ${value.#aborted} }` : undefined);
  }
}
export const { inner: signals } = AbortSignal;
delete AbortSignal.inner;

function isAborted(signal) {
  if (!signals.is(signal)) throw new TypeErrorClass('signal is an AbortSignal');
  return signals.isAborted(signal);
}

function onAbort(signal, algorithm) {
  signals.add(signal, algorithm);
}

export class AbortController {
  #signal = new AbortSignal(key);

  get signal() {
    return this.#signal;
  }

  abort(reason) {
    signals.abort(this.#signal, reason);
  }

  static {
    addView((value) => #signal in value ? 'AbortController {}' : undefined);
  }
}
