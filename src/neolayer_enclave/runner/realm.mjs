// A context with our bootstrap in it: what one function, or one call of it, sees as its world.

import { readFileSync } from 'node:fs';
import { setFlagsFromString } from 'node:v8';
import { rngChacha20 } from '@noble/ciphers/chacha.js';
import ivm from 'isolated-vm';
import { InvalidFunction, loadingError } from './errors.mjs';

export const BOOTSTRAP = readFileSync(new URL('./built/bootstrap.js', import.meta.url), 'utf8');
const BOOTSTRAP_FILE = 'neolayer:bootstrap';
const ENTRIES = ['begin', 'install', 'installed', 'run', 'deliver', 'fire', 'forget', 'take', 'seed'];

// Node's own heap keeps its young generation at 1 MB, by loading.NODE_FLAGS: what a cell does for a call is soon
// garbage. Functions get V8's default, which is read when their isolates are made.
setFlagsFromString('--max-semi-space-size=0');

let seeds = null;

// Before the first realm is opened: 40 random bytes, of which the seeds of all realms are made. Not by node:crypto,
// which is 2 MB that every process would hold for this alone.
export function seedRealms(bytes) {
  seeds = rngChacha20(Uint8Array.from(bytes));
}

// A new isolate with a realm that nobody owns yet. `cached` is the bootstrap's code cache as an ArrayBuffer, or null.
export class Blank {
  constructor(memoryMb, cached) {
    const begun = performance.now();
    this.memoryMb = memoryMb;
    this.isolate = new ivm.Isolate({ memoryLimit: memoryMb });
    const made = performance.now();
    const options = { filename: BOOTSTRAP_FILE };
    if (cached !== null) options.cachedData = new ivm.ExternalCopy(cached);
    this.bootstrap = this.isolate.compileScriptSync(BOOTSTRAP, options);
    this.realm = new Realm(this.isolate, this.bootstrap);
    this.isolateMs = made - begun;
    this.contextMs = performance.now() - made;
  }

  // The bootstrap's code cache, with the functions of it that have run.
  code() {
    return this.isolate.compileScriptSync(BOOTSTRAP, { filename: BOOTSTRAP_FILE, produceCachedData: true }).cachedData.copy();
  }
}

// Made on the main thread: it takes less time than a hop to another one. Nothing may run in the isolate meanwhile.
export class Realm {
  #context;

  constructor(isolate, bootstrap) {
    this.#context = isolate.createContextSync();
    const entries = bootstrap.runSync(this.#context, { reference: true });
    for (const name of ENTRIES) this[name] = entries.getSync(name, { reference: true });
    entries.release();
  }

  // streamLog(id, line) gets log lines at once while an entry runs on another thread.
  open(streamLog, file, secrets) {
    const callback = new ivm.Callback(streamLog, { ignored: true });
    this.begin.applySync(undefined, [callback, file, secrets, newSeed()]);
  }

  // Runs the function's top level on another thread, or here. Throws what isolated-vm throws at limits.
  async evaluate(script, timeout) {
    const source = script.runSync(this.#context, { reference: true });
    await this.install.apply(undefined, [source.derefInto()], { timeout });
    source.release();
  }

  evaluateHere(script, timeout) {
    const source = script.runSync(this.#context, { reference: true });
    this.install.applySync(undefined, [source.derefInto()], { timeout });
    source.release();
  }

  // After `evaluate`: throws InvalidFunction unless there is a function to call.
  check(file) {
    const state = this.installed.applySync();
    if (state === 'function') return;
    if (state.startsWith('[')) {
      const [, message, stack] = JSON.parse(state);
      throw loadingError(message, stack, file);
    }
    throw new InvalidFunction(
      'no_entry_point',
      'the source has neither `export default function …` nor a top-level `function main`',
    );
  }

  // The seed is only kept there, but microtasks of the author may be left to run: throws after `timeout` ms.
  reseed(timeout) {
    this.seed.applySync(undefined, [newSeed()], { timeout });
  }

  release() {
    for (const name of ENTRIES) this[name].release();
    this.#context.release();
  }
}

// For the random generator of one realm: key and nonce of ChaCha20, one byte a character.
function newSeed() {
  return Buffer.from(seeds.randomBytes(40)).latin1Slice();
}
