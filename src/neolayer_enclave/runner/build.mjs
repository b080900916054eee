// Makes what a cell loads. Run by scripts/setup; the same sources and lock file give the same bytes.
//
//   node build.mjs [folder]
//
// bootstrap.js: the one script that every isolate runs first, of bootstrap/*.js and of the npm packages they require.
// What it evaluates to is the object of entries in bootstrap/main.js.
// cell.cjs: cell.mjs and all it imports but native modules, as CommonJS: a process is up 13 ms sooner and holds 1.3 MB
// less when Node's loader of ES modules stays out of it.

import { mkdirSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import * as esbuild from 'esbuild';

const here = import.meta.dirname;
const require = createRequire(import.meta.url);
const folder = process.argv[2] ?? join(here, 'built');

// The modules of whatwg-url that url_parts.js stands in for, by what its files require.
const REPLACED = {
  './encoding': 'url_parts.js',
  '@exodus/bytes/whatwg.js': 'url_parts.js',
  tr46: 'url_parts.js',
};

const packages = {
  name: 'packages',
  setup(build) {
    build.onResolve({ filter: /^(\.\/encoding|tr46|@exodus\/bytes\/.*)$/ }, ({ path, importer }) => {
      if (!importer.includes(join('node_modules', 'whatwg-url'))) return undefined;
      // Required for its effect: encodings that URL never asks for.
      if (path === '@exodus/bytes/encoding.js') return { path, namespace: 'empty' };
      return { path: join(here, 'bootstrap', REPLACED[path]) };
    });
    build.onLoad({ filter: /.*/, namespace: 'empty' }, () => ({ contents: '' }));
    build.onResolve({ filter: /mappingTable\.json$/ }, ({ path }) => ({ path, namespace: 'table' }));
    build.onLoad({ filter: /.*/, namespace: 'table' }, () => ({
      contents: "module.exports = require('./idna_table.js').default", resolveDir: join(here, 'bootstrap'),
    }));
    build.onLoad({ filter: /tr46[\\/]lib[\\/]regexes\.js$/ }, ({ path }) => ({ contents: unparsed(path) }));
    build.onResolve({ filter: /^neolayer:idna$/ }, ({ path }) => ({ path, namespace: 'idna' }));
    build.onLoad({ filter: /.*/, namespace: 'idna' }, () => ({ contents: idna() }));
  },
};

// Regular expressions of a module as strings: V8 would check the literals, 73 KB, whenever it reads the script.
function unparsed(path) {
  const made = Object.entries(require(path)).map(
    ([name, { source, flags }]) => `exports.${name} = new RegExp(${JSON.stringify(source)}, ${JSON.stringify(flags)});`,
  );
  return made.join('\n');
}

// Packs tr46's table: for every entry a letter for its status and, if it covers several code points, how many in
// base 36. `m` is a mapping that `derived` finds, `e` and `x` take the next one of the list.
function idna() {
  const table = require('tr46/lib/mappingTable.json');
  const letters = { 2: 'v', 3: 'd', 6: 'x', 7: 'i' };
  const mappings = [];
  let entries = '', next = 0;
  for (const [range, status, mapping] of table) {
    const [first, last] = Array.isArray(range) ? range : [range, range];
    if (first !== next) throw new Error(`the table leaves out U+${next.toString(16)}`);
    next = last + 1;
    const letter = status === 1 ? (mapping === derived(first) ? 'm' : 'e') : letters[status];
    if (letter === undefined) throw new Error(`the table has an unknown status ${status}`);
    if (letter === 'e' || letter === 'x') mappings.push(mapping);
    entries += letter + (last > first ? (last - first + 1).toString(36).toUpperCase() : '');
  }
  return `export const idnaEntries = ${JSON.stringify(entries)}, idnaMappings = ${JSON.stringify(mappings)};`;
}

// As `derivedMapping` in idna_table.js.
function derived(point) {
  return String.fromCodePoint(point).normalize('NFKC').toLowerCase().normalize('NFKC');
}

const script = await esbuild.build({
  entryPoints: [join(here, 'bootstrap', 'main.js')],
  absWorkingDir: here,
  bundle: true,
  write: false,
  format: 'iife',
  globalName: 'neolayer',
  platform: 'neutral',
  mainFields: ['main'],
  target: 'es2024',
  // One byte a character in every isolate.
  charset: 'ascii',
  // Not the identifiers: functions and classes are known by their names.
  minifyWhitespace: true,
  minifySyntax: true,
  inject: [join(here, 'bootstrap', 'absent.js')],
  legalComments: 'none',
  logLevel: 'warning',
  plugins: [packages],
});

// esbuild's way to run a module late remembers that it failed. Ours may fail because the author left it no room on the
// stack; the next use begins anew.
const STICKY = 'var __esm=(fn,res,err)=>function(){if(err)throw err[0];try{return fn&&(res=(0,fn[__getOwnPropNames(fn)[0]])' +
  '(fn=0)),res}catch(e){throw err=[e],e}};';
const RETRYING = 'var __esm=(fn)=>{const run=fn[__getOwnPropNames(fn)[0]];let begun=false;return()=>{if(begun)return;' +
  'begun=true;try{run()}catch(e){begun=false;throw e}}};';
const [{ text }] = script.outputFiles;
if (!text.includes(STICKY)) throw new Error('esbuild no longer runs modules late as build.mjs knows it');
mkdirSync(folder, { recursive: true });
writeFileSync(join(folder, 'bootstrap.js'), `(() => {${text.replace(STICKY, RETRYING).trim()}\nreturn neolayer.entries})()\n`);

await esbuild.build({
  entryPoints: [join(here, 'cell.mjs')],
  absWorkingDir: here,
  outfile: join(folder, 'cell.cjs'),
  bundle: true,
  format: 'cjs',
  platform: 'node',
  target: 'es2024',
  charset: 'utf8',
  // One is native, the others are large and rarely needed.
  external: ['isolated-vm', 'amaro', 'es-module-lexer/js'],
  // Files are found from the folder above.
  define: { 'import.meta.url': 'here' },
  banner: { js: "const here = require('node:url').pathToFileURL(require('node:path').dirname(__dirname) + '/').href;" },
  legalComments: 'none',
  logLevel: 'warning',
});
