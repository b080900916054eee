// From an author's source to a compiled script.

import ivm from 'isolated-vm';
import { InvalidFunction, syntaxError } from './errors.mjs';

// Of the line that the script's prologue takes, see script.mjs.
const LINE_OFFSET = -1;

// Returns the script's text for a source in JavaScript or erasable TypeScript. What parses as JavaScript is
// JavaScript. Throws InvalidFunction `syntax_error` or `typescript_not_erasable` with a 1-based position, or
// `import_not_supported`.
export async function prepare(isolate, source, file) {
  let module = source;
  try {
    await checkModule(isolate, module, file);
  } catch (error) {
    if (error.code !== 'syntax_error') throw error;
    module = await erased(source, error);
    await checkModule(isolate, module, file);
  }
  const { toScript } = await import('./script.mjs');
  return toScript(module);
}

// Returns an unbound script. `cached` is a Buffer of V8's code cache, or null; `script.cachedDataRejected` tells when
// it does not fit. `here`: on this thread.
export async function compile(isolate, text, file, cached, here) {
  const options = { filename: file, lineOffset: LINE_OFFSET };
  if (cached !== null) options.cachedData = moved(cached);
  // The copy is given back at once: its memory is outside of the heap that decides when to collect.
  try {
    return here ? isolate.compileScriptSync(text, options) : await isolate.compileScript(text, options);
  } catch (error) {
    throw syntaxError(error);
  } finally {
    options.cachedData?.release();
  }
}

// V8's code cache of a script that was compiled in this isolate, with the functions that have run since.
export async function codeOf(isolate, text, file) {
  const options = { filename: file, lineOffset: LINE_OFFSET, produceCachedData: true };
  const script = await isolate.compileScript(text, options);
  const code = script.cachedData.copy();
  script.release();
  return Buffer.from(code);
}

async function checkModule(isolate, module, file) {
  const compiled = await compileModule(isolate, module, file);
  const [specifier] = compiled.dependencySpecifiers;
  compiled.release();
  if (specifier !== undefined) {
    throw new InvalidFunction('import_not_supported', `cannot import '${specifier}': a function is one file`);
  }
}

async function compileModule(isolate, module, file) {
  try {
    return await isolate.compileModule(module, { filename: file });
  } catch (error) {
    throw syntaxError(error);
  }
}

// Of a source that is neither JavaScript nor TypeScript, the parser that came further knows better what is wrong.
async function erased(source, asJavaScript) {
  const { eraseTypes } = await import('./typescript.mjs');
  try {
    return eraseTypes(source);
  } catch (asTypeScript) {
    if (asTypeScript.code === 'typescript_not_erasable') throw asTypeScript;
    throw isFurther(asTypeScript, asJavaScript) ? asTypeScript : asJavaScript;
  }
}

function isFurther(one, other) {
  return one.line > other.line || (one.line === other.line && one.column > other.column);
}

// A copy of a Buffer's bytes that is given away: no second one is made.
function moved(buffer) {
  const bytes = buffer.buffer.slice(buffer.byteOffset, buffer.byteOffset + buffer.length);
  return new ivm.ExternalCopy(bytes, { transferList: [bytes] });
}
