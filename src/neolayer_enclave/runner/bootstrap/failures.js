// What is told of an error: to the host about the function's, to the function about the host's.

import { ErrorClass, indexOf, slice, stringify, wellFormed } from './intrinsics.js';
import { inspect } from './inspect.js';

const MAX_MESSAGE = 4_096;
const MAX_STACK = 8_192;
let file = '';

export function nameFile(name) {
  file = name;
}

// JSON of [code, message, stack].
export function failure(code, message, stack) {
  const shown = (text, most) => stringify(wellFormed(slice(text, 0, most)));
  return `[${stringify(code)},${shown(message, MAX_MESSAGE)},${shown(stack, MAX_STACK)}]`;
}

export function failureOf(code, error) {
  let message = 'the thrown value cannot be shown', stack = '';
  try {
    message = messageOf(error);
    stack = stackOf(error);
  } catch {
    // a getter of the thrown value threw
  }
  return failure(code, message, stack);
}

function messageOf(error) {
  if (typeof error !== 'object' || error === null) return typeof error === 'string' ? error : inspect(error);
  const { name, message, code } = error;
  if (typeof message !== 'string') return inspect(error);
  // Ours and Node's kind of errors have a code that programs go by.
  const text = typeof code === 'string' ? `${message} (${code})` : message;
  return typeof name !== 'string' || name === 'Error' || name === '' ? text : `${name}: ${text}`;
}

function stackOf(error) {
  if (typeof error !== 'object' || error === null) return '';
  const { stack } = error;
  return typeof stack === 'string' ? ownFrames(stack) : '';
}

// The lines of a stack that lie in the function's file, after the message.
export function ownFrames(stack) {
  let kept = '', at = 0, inFrames = false;
  while (at < stack.length) {
    let end = indexOf(stack, '\n', at);
    if (end < 0) end = stack.length;
    const line = slice(stack, at, end);
    at = end + 1;
    if (slice(line, 0, 7) === '    at ') inFrames = true;
    if (!inFrames || indexOf(line, `(${file}:`) >= 0 || indexOf(line, ` ${file}:`) >= 0) {
      kept += kept === '' ? line : `\n${line}`;
    }
  }
  return kept;
}

export function coded(error, code) {
  error.code = code;
  return error;
}

export function framesHere() {
  try {
    return new ErrorClass('').stack;
  } catch {
    return ''; // the function's own Error.prepareStackTrace threw
  }
}

// An error of the host, shown as if thrown where the function asked.
export function located(error, frames) {
  const at = typeof frames === 'string' ? indexOf(frames, '\n') : -1;
  error.stack = ownFrames(`${error.name}: ${error.message}${at < 0 ? '' : slice(frames, at)}`);
  return error;
}
