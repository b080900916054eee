// Erasable TypeScript: types become blanks, so that every position stays the author's.

import { transformSync } from 'amaro';
import { InvalidFunction } from './errors.mjs';

// Returns JavaScript. Throws InvalidFunction: `typescript_not_erasable` for what is more than types (enum, namespace
// with values, parameter properties, …), `syntax_error` for the rest.
export function eraseTypes(source) {
  try {
    return transformSync(source, { mode: 'strip-only' }).code;
  } catch (error) {
    const { code, message, startLine, startColumn } = error;
    const place = startLine === undefined ? {} : { line: startLine, column: startColumn + 1 };
    if (code === 'UnsupportedSyntax') throw new InvalidFunction('typescript_not_erasable', message, place);
    throw new InvalidFunction('syntax_error', message ?? String(error), place);
  }
}
