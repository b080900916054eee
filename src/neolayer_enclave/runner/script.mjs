// From an ES module to a script that gives its default export, because V8's code cache is open to scripts only.
//
// V8 itself has checked before that the text is a module, so nothing has to be known here but where its exports
// stand. They are edited in place: every character that stays keeps its line and column, as error positions need.
// The script's value is an async function, as a module may `await`; its promise gives the default export.

import { InvalidFunction } from './errors.mjs';

let parse;

// Strict as modules are, and nothing of it is global. On a line of its own, which compile.mjs takes off the positions.
const PROLOGUE = '(async function () { "use strict";\n';

const LINE_BREAK = /[\n\r\u2028\u2029]/;
const NO_LINE_BREAK = /[^\n\r\u2028\u2029]/g;
const OTHER_BLANKS = /[\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff]/g;
const SPACE = String.raw`(?:\s|\/\*[^]*?\*\/|\/\/[^\n\r\u2028\u2029]*)*`;
const SPACE_OF_A_LINE = String.raw`(?:[^\S\n\r\u2028\u2029]|\/\*[^\n\r\u2028\u2029]*?\*\/)+`;
const WORD_ENDS = String.raw`(?![\p{ID_Continue}$\u200c\u200d\\])`;
const ESCAPE = String.raw`\\u(?:\{[\da-fA-F]+\}|[\da-fA-F]{4})`;
const NAME = String.raw`(?:[\p{ID_Start}$_]|${ESCAPE})(?:[\p{ID_Continue}$\u200c\u200d]|${ESCAPE})*`;
const DEFAULT = new RegExp(`export${SPACE}default`, 'y');
const DECLARATION = new RegExp(
  `${SPACE}(?:(async)${SPACE_OF_A_LINE})?(function|class)${WORD_ENDS}${SPACE}(\\*?)${SPACE}(${NAME})?`, 'uy',
);
const CLAUSE = new RegExp(
  String.raw`export${SPACE}\{(?:\/\*[^]*?\*\/|\/\/[^\n\r\u2028\u2029]*|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[^}"'\/])*\}`, 'y',
);
const EMPTY_CLAUSE = new RegExp(String.raw`\bexport${SPACE}\{${SPACE}\}`, 'g');

// Returns the script's text. Throws InvalidFunction `import_not_supported`.
export async function toScript(module) {
  parse ??= await loadLexer();
  const [imports, exports] = lex(module);
  for (const { type, importStart } of imports) {
    const what = type === 'import-meta' ? 'import.meta' : 'import()';
    throw InvalidFunction.at(module, importStart, 'import_not_supported', `${what} is not supported: a function is one file`);
  }
  const edits = new Edits(module);
  let entry = "typeof main === 'function' ? main : undefined";
  for (const { name, localName, exportStart } of exports) {
    const clauseEnd = endOf(CLAUSE, module, exportStart);
    if (clauseEnd > 0) {
      edits.blank(exportStart, clauseEnd);
      if (name === 'default') entry = localName;
    } else if (name === 'default') {
      entry = editDefault(edits, module, exportStart);
    } else {
      edits.blank(exportStart, exportStart + 'export'.length);
    }
  }
  for (const [start, end] of emptyClauses(module)) edits.blank(start, end);
  if (module.startsWith('#!')) edits.replace(0, 2, '//');
  return `${PROLOGUE}${edits.apply()}\n;return ${entry};\n})`;
}

// When the first source comes: most cells get scripts that are ready. There is no WebAssembly in a process without a JIT.
async function loadLexer() {
  const lexer = await (typeof WebAssembly === 'undefined' ? import('es-module-lexer/js') : import('es-module-lexer'));
  await lexer.init;
  return lexer.parse;
}

// Returns the name under which the scope knows the default export.
function editDefault(edits, module, start) {
  const end = endOf(DEFAULT, module, start);
  DECLARATION.lastIndex = end;
  const [text, async, keyword, star, given] = DECLARATION.exec(module) ?? [];
  if (keyword !== undefined && given !== undefined && given !== 'extends') {
    edits.blank(start, end);
    return given;
  }
  const name = unusedName(module);
  if (keyword === undefined) {
    edits.replace(start, end, `let ${name} =`);
  } else {
    // It stays a declaration: an expression would go on with a parenthesis on the next line.
    const nameAt = end + text.length - (given?.length ?? 0);
    edits.replace(start, nameAt, `${async ? 'async ' : ''}${keyword}${star} ${name} `);
  }
  return name;
}

// As long as `$default`: with it, `let … =` takes the place of `export default` exactly.
function unusedName(module) {
  let name = '$default';
  for (let n = 0; module.includes(name); n++) name = `$${n.toString(36).padStart(7, '0')}`;
  return name;
}

// The lexer does not tell where nothing is exported. It does when something is.
function emptyClauses(module) {
  const found = [...module.matchAll(EMPTY_CLAUSE)];
  if (found.length === 0) return [];
  const places = new Map();
  let filled = '', at = 0;
  for (const { 0: clause, index } of found) {
    filled += module.slice(at, index);
    places.set(filled.length, [index, index + clause.length]);
    filled += 'export{x}';
    at = index + clause.length;
  }
  const [, exports] = lex(filled + module.slice(at));
  return exports.map(({ exportStart }) => places.get(exportStart)).filter(Boolean);
}

// The lexer knows the blanks of ASCII only.
function lex(module) {
  try {
    return parse(module.replace(OTHER_BLANKS, ' '));
  } catch (error) {
    throw InvalidFunction.at(module, error.idx ?? 0, 'syntax_error', 'this cannot be understood from here on');
  }
}

function endOf(pattern, text, at) {
  pattern.lastIndex = at;
  return pattern.test(text) ? pattern.lastIndex : 0;
}

class Edits {
  #text;
  #edits = new Map();

  constructor(text) {
    this.#text = text;
  }

  // A statement goes; what stands around it must not grow together.
  blank(start, end) {
    this.replace(start, end, ';');
  }

  // `text` is not longer than what it replaces, unless a line break follows inside.
  replace(start, end, text) {
    this.#edits.set(start, { end, text });
  }

  apply() {
    let result = '', at = 0;
    for (const [start, { end, text }] of [...this.#edits].sort(([a], [b]) => a - b)) {
      const old = this.#text.slice(start, end);
      const lineEnd = old.search(LINE_BREAK);
      const rest = old.slice(lineEnd < 0 ? text.length : lineEnd).replace(NO_LINE_BREAK, ' ');
      result += this.#text.slice(at, start) + text + rest;
      at = end;
    }
    return result + this.#text.slice(at);
  }
}
