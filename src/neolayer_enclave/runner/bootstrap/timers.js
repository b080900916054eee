// setTimeout and its kin. A timer belongs to the call during which it was started, and ends with it.

import { attempt, check, current, forgetTimer, startTimer } from './calls.js';
import { floor, NumberClass, RangeErrorClass, resolved, then, TypeErrorClass } from './intrinsics.js';

const MAX_TIMERS = 1_000;
const MAX_MS = 2 ** 31 - 1;

export function start(callback, ms, args, repeat) {
  if (typeof callback !== 'function') throw new TypeErrorClass('the callback of a timer is a function');
  const call = current;
  check(call);
  if (call.timers >= MAX_TIMERS) throw new RangeErrorClass(`more than ${MAX_TIMERS} timers are running`);
  const wait = floor(NumberClass(ms));
  const timer = { __proto__: null, callback, args, repeat, ms: wait >= 1 ? (wait < MAX_MS ? wait : MAX_MS) : 1 };
  return startTimer(call, timer);
}

export function setTimeout(callback, ms, ...args) {
  return start(callback, ms, args, false);
}

export function setInterval(callback, ms, ...args) {
  return start(callback, ms, args, true);
}

export function clearTimeout(seq) {
  forgetTimer(current, seq);
}

export function clearInterval(seq) {
  forgetTimer(current, seq);
}

export function queueMicrotask(callback) {
  if (typeof callback !== 'function') throw new TypeErrorClass('the callback of a microtask is a function');
  const call = current;
  then(resolved(), () => attempt(call, callback, []));
}
