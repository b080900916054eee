// Why a source cannot become a function, and where in the author's text.

const POSITION = /^(.*) \[[^\]]*?:(\d+):(\d+)\]$/s;

export class InvalidFunction extends Error {
  constructor(code, message, { stack = '', line = null, column = null } = {}) {
    // Lone surrogates cannot leave: what reads our messages knows UTF-8 only.
    super(String(message).toWellFormed());
    this.code = code;
    this.stack = stack.toWellFormed();
    this.line = line;
    this.column = column;
  }

  static at(source, index, code, message) {
    const before = source.slice(0, index).split(/\r\n|[\n\r\u2028\u2029]/);
    return new InvalidFunction(code, message, { line: before.length, column: before.at(-1).length + 1 });
  }
}

// What V8 says when a source does not parse; anything else is returned as it is. Lines and columns are 1-based.
export function syntaxError(error) {
  if (!(error instanceof SyntaxError)) return error;
  const [, message, line, column] = POSITION.exec(error.message) ?? [];
  if (message === undefined) return new InvalidFunction('syntax_error', error.message);
  return new InvalidFunction('syntax_error', message, { line: Number(line), column: Number(column) });
}

// An error of the function's top level. `stack` has the author's own frames only.
export function loadingError(message, stack, file) {
  const frame = stack.split('\n').find((line) => line.includes(`(${file}:`) || line.includes(` ${file}:`));
  const [, line, column] = /:(\d+):(\d+)\)?$/.exec(frame ?? '') ?? [];
  return new InvalidFunction('invalid_function', message, {
    stack, line: line ? Number(line) : null, column: column ? Number(column) : null,
  });
}
