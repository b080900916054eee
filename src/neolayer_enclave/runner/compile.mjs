// From an author's source to a module whose default export is the function.

// A plain `function main` is exported by a line behind the source, so that all positions stay the author's.
const EPILOGUE = "\n;export default typeof main === 'function' ? main : undefined;";
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
}

// Throws InvalidFunction `syntax_error` with a 1-based position, or `import_not_supported`.
export async function compile(isolate, source, file) {
  const module = await compileEither(isolate, source, file);
  const [specifier] = module.dependencySpecifiers;
  if (specifier !== undefined) {
    throw new InvalidFunction('import_not_supported', `cannot import '${specifier}': a function is one file`);
  }
  return module;
}

async function compileEither(isolate, source, file) {
  const options = { filename: file };
  if (!/\bexport\b/.test(source)) {
    // Most often right at once; a wrong source is compiled again to learn the position without the epilogue.
    const module = await isolate.compileModule(source + EPILOGUE, options).catch(ignoreSyntax);
    if (module) return module;
  }
  let plain;
  try {
    plain = await isolate.compileModule(source, options);
  } catch (error) {
    throw syntaxError(error);
  }
  return (await isolate.compileModule(source + EPILOGUE, options).catch(ignoreSyntax)) ?? plain;
}

// With an `export default` of the author's own the epilogue is a duplicate.
function ignoreSyntax(error) {
  if (!(error instanceof SyntaxError)) throw error;
}

function syntaxError(error) {
  if (!(error instanceof SyntaxError)) return error;
  const [, message, line, column] = POSITION.exec(error.message) ?? [];
  if (message === undefined) return new InvalidFunction('syntax_error', error.message);
  return new InvalidFunction('syntax_error', message, { line: Number(line), column: Number(column) });
}

// An error of the function's top level as it came out of the isolate: only its own frames are kept.
export function loadingError(error, file) {
  const frames = String(error.stack).split('\n').filter((line) => line.includes(`(${file}:`) || line.includes(` ${file}:`));
  const [, line, column] = /:(\d+):(\d+)\)?$/.exec(frames[0] ?? '') ?? [];
  const message = error.name === 'Error' || !error.name ? String(error.message) : `${error.name}: ${error.message}`;
  return new InvalidFunction('invalid_function', message, {
    stack: [`${error.name}: ${error.message}`, ...frames].join('\n'),
    line: line ? Number(line) : null,
    column: column ? Number(column) : null,
  });
}
