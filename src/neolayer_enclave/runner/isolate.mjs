// One isolate with one function in it, and the calls that run in it.
//
// Code runs in entries: the start of a call, a delivered answer, a timer. Entries of an isolate run one after the
// other, so the CPU time between start and end of an entry is counted to the call on whose behalf it was made. A
// function whose entries are quick is entered on the main thread (about 5 µs); any other on a thread of isolated-vm's
// pool (about 100 µs), where it does not keep the tenant's other functions from running.

import { randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import ivm from 'isolated-vm';
import { InvalidFunction, compile, loadingError } from './compile.mjs';

const BOOTSTRAP = readFileSync(new URL('./built/bootstrap.js', import.meta.url), 'utf8');
const BOOTSTRAP_FILE = 'neolayer:bootstrap';
const ENTRIES = ['install', 'run', 'deliver', 'fire', 'forget', 'take', 'seed'];
const QUICK_NS = 2e6;
// After a slow entry so many quick ones earn the main thread again.
const PROBATION = 10;
// For entries that run no code of the author.
const OWN_MS = 50;
const HEAP_SAMPLE_MS = 10;
// isolated-vm's own texts.
const TIMED_OUT = 'Script execution timed out.';
const OUT_OF_MEMORY = 'Isolate was disposed during execution due to memory limit';

export class FunctionIsolate {
  calls = new Map();
  lastUsed = 0;
  // No new calls come in; it ends with its last call.
  retired = false;
  heapBytes = 0;

  #bundle;
  #runner;
  #isolate;
  #entries = null;
  // Loading is over, well or not.
  #loaded = false;
  #waiting = [];
  #queue = [];
  // The call whose entry runs on another thread, and the isolate's CPU time when it began.
  #entered = null;
  #mark = 0;
  #cpuSeen = 0;
  // The main thread is open to it from 0 on.
  #credit = -1;
  #heapSampled = 0;
  // The limit by which the watchdog ended it.
  #ended = null;

  // bundle: { number, file, source, secrets, limits }. runner: blackbox, finish(call, error, output, logs),
  // ask(call, seq, kind, text, form, body), timer(call, seq, ms), clearTimer(call, seq), flush(), closed(isolate).
  constructor(bundle, runner) {
    this.#bundle = bundle;
    this.#runner = runner;
    this.#isolate = new ivm.Isolate({ memoryLimit: bundle.limits.memory_mb });
  }

  // Loads the function at the expense of `call`, then starts the calls that came meanwhile.
  async open(call) {
    try {
      await this.#load(call);
    } catch (error) {
      this.#loaded = true;
      this.#notLoaded(call, error);
      return;
    }
    this.#loaded = true;
    for (const waiting of this.#waiting.splice(0)) if (!waiting.over) this.start(waiting);
    if (this.retired) this.retire();
  }

  // Loads the function and throws it away. Returns null, or the InvalidFunction that says what is wrong.
  async check(call) {
    try {
      await this.#load(call);
      return null;
    } catch (error) {
      if (error instanceof InvalidFunction) return error;
      return new InvalidFunction('invalid_function', `its top level fails: ${limitError(this.#codeOf(call, error), this.#bundle)[1]}`);
    } finally {
      this.dispose();
    }
  }

  start(call) {
    this.calls.set(call.id, call);
    if (this.#entries === null) this.#waiting.push(call);
    else this.enter(call, 'run', [call.id, call.execution, call.input]);
  }

  enter(call, entry, values) {
    if (this.#entered !== null) this.#queue.push([call, entry, values]);
    else if (call.cpuNs > call.cpuLimitNs) this.#fail('cpu_limit', call);
    else if (this.#credit >= 0) this.#enterHere(call, entry, values);
    else this.#enterOnThread(call, entry, values);
  }

  // Ends what has passed its limits; called every 10 ms while something runs. `now` as of performance.now().
  watch(now) {
    const entered = this.#entered;
    if (entered !== null && this.#ended === null) {
      if (entered.cpuNs + this.#cpuTime() - this.#mark > entered.cpuLimitNs) this.#end('cpu_limit');
      else if (now > entered.deadline) this.#end('timeout');
    }
    for (const call of this.calls.values()) {
      if (now <= call.deadline || call === entered) continue;
      this.#runner.finish(call, limitError('timeout', this.#bundle), '', this.#forget(call));
      this.retire();
    }
  }

  // Drops a call whose result nobody waits for.
  cancel(call) {
    if (call === this.#entered) {
      this.#end('cancelled');
    } else {
      this.#forget(call);
      this.calls.delete(call.id);
      this.retire();
    }
  }

  get idle() {
    return this.#loaded && this.calls.size === 0 && this.#entered === null;
  }

  dispose() {
    if (!this.#isolate.isDisposed) this.#isolate.dispose();
  }

  async #load(call) {
    const { file, source, secrets } = this.#bundle;
    const isolate = this.#isolate;
    const context = await isolate.createContext();
    const script = await isolate.compileScript(BOOTSTRAP, { filename: BOOTSTRAP_FILE });
    const bootstrap = await script.run(context, { reference: true });
    const streamLog = new ivm.Callback((id, line) => this.calls.get(id)?.streamed.push(line), { ignored: true });
    const made = await bootstrap.apply(undefined, [streamLog, file, secrets, newSeed()], { result: { reference: true } });
    const entries = {};
    for (const name of ENTRIES) entries[name] = made.getSync(name, { reference: true });
    const module = await compile(isolate, source, file);
    await module.instantiate(context, (specifier) => {
      throw new InvalidFunction('import_not_supported', `cannot import '${specifier}': a function is one file`);
    });
    const slot = this.#begin(call);
    try {
      await module.evaluate({ timeout: this.#entryMs(call) });
    } catch (error) {
      if (isolate.isDisposed || error?.message === TIMED_OUT) throw error;
      throw loadingError(error, file);
    } finally {
      call.cpuNs += this.#leave(slot);
    }
    const entry = await defaultExport(module);
    if (entry?.typeof !== 'function') {
      throw new InvalidFunction(
        'no_entry_point',
        'the source has neither `export default function …` nor a top-level `function main`',
      );
    }
    await entries.install.apply(undefined, [entry.derefInto()]);
    this.#entries = entries;
  }

  #notLoaded(call, error) {
    if (error instanceof InvalidFunction) {
      const shown = ['invalid_function', error.message, error.stack, false];
      for (const waiting of [...this.calls.values()]) this.#runner.finish(waiting, shown, '', '');
      this.retire();
    } else {
      this.#fail(this.#codeOf(call, error), call);
    }
  }

  #enterHere(call, entry, values) {
    const { blackbox } = this.#runner;
    blackbox.enterMain(this.#bundle.number, call.id);
    const before = this.#cpuTime();
    let failure = null;
    try {
      this.#entries[entry].applySync(undefined, [false, ...values], { timeout: this.#entryMs(call) });
    } catch (error) {
      failure = error;
    }
    blackbox.leaveMain();
    const cpuNs = this.#cpuTime() - before;
    this.#after(call, cpuNs, failure);
    // Answers of quick calls that came in the same turn should not wait for slow ones.
    if (cpuNs > QUICK_NS / 4) this.#runner.flush();
  }

  #enterOnThread(call, entry, values) {
    const slot = this.#begin(call);
    const settle = (failure) => {
      this.#after(call, this.#leave(slot), failure);
      while (this.#entered === null && this.#queue.length > 0) {
        const [next, ...rest] = this.#queue.shift();
        if (!next.over) this.enter(next, ...rest);
      }
    };
    this.#entries[entry]
      .apply(undefined, [true, ...values], { timeout: this.#entryMs(call) })
      .then(() => settle(null), settle);
  }

  #begin(call) {
    this.#entered = call;
    this.#mark = this.#cpuTime();
    return this.#runner.blackbox.enterThread(this.#bundle.number);
  }

  // Returns the CPU time of the entry in ns.
  #leave(slot) {
    this.#runner.blackbox.leaveThread(slot);
    this.#entered = null;
    return this.#cpuTime() - this.#mark;
  }

  #after(call, cpuNs, failure) {
    call.cpuNs += cpuNs;
    this.#credit = cpuNs < QUICK_NS ? Math.min(this.#credit + 1, 0) : -PROBATION;
    if (failure !== null) {
      this.#broken(call, failure);
      return;
    }
    this.#sampleHeap();
    this.#drain(this.#entries.take.applySync());
  }

  #broken(call, failure) {
    if (!this.#isolate.isDisposed) {
      if (failure?.message !== TIMED_OUT) {
        // The author's code left too little stack for ours to catch what it threw.
        this.#runner.finish(call, ['function_error', String(failure?.message), '', false], '', this.#forget(call));
        return;
      }
      // What it did before it ran on and on still counts. Left-over microtasks get OWN_MS to go on, then it ends.
      try {
        this.#drain(this.#entries.take.applySync(undefined, [], { timeout: OWN_MS }));
      } catch {
        // they ran on
      }
      if (!call.over) call.streamed = [this.#forget(call)];
    }
    this.#fail(this.#codeOf(call, failure), call);
  }

  // Which limit an entry's failure means.
  #codeOf(call, failure) {
    if (failure?.message === OUT_OF_MEMORY) return 'memory_limit';
    if (this.#ended !== null) return this.#ended;
    if (call.cpuNs < call.cpuLimitNs && performance.now() >= call.deadline) return 'timeout';
    return failure?.message === TIMED_OUT ? 'cpu_limit' : 'cell_crashed';
  }

  // Ends the isolate and all calls in it: `culprit` by `code`; memory is shared, so of it all are guilty.
  #fail(code, culprit) {
    this.retired = true;
    this.dispose();
    for (const call of [...this.calls.values()]) {
      const guilty = call === culprit || code === 'memory_limit';
      this.#runner.finish(call, limitError(guilty ? code : 'cell_crashed', this.#bundle), '', call.streamed.join());
    }
    this.retire();
  }

  #end(code) {
    this.#ended = code;
    this.dispose();
  }

  // No new calls; ends at once, or with its last call.
  retire() {
    this.retired = true;
    if (this.idle) {
      this.dispose();
      this.#runner.closed(this);
    }
  }

  // Takes a call out of the isolate; returns its log lines. Another call's entry is not waited for.
  #forget(call) {
    if (this.#entries === null || this.#entered !== null || this.#isolate.isDisposed) return call.streamed.join();
    try {
      return this.#entries.forget.applySync(undefined, [call.id], { timeout: OWN_MS });
    } catch {
      return call.streamed.join();
    }
  }

  // Acts on the messages described in bootstrap/calls.js.
  #drain(text) {
    let at = 0;
    while (at < text.length) {
      const eol = text.indexOf('\n', at);
      const [kind, id, first, second, third, form, bodyLength] = text.slice(at, eol).split(' ');
      at = eol + 1;
      const call = this.calls.get(Number(id));
      if (kind === 'R') {
        const middle = at + Number(second), end = middle + Number(third);
        if (call !== undefined) this.#finish(call, first === '1', text.slice(at, middle), text.slice(middle, end));
        at = end;
      } else if (kind === 'C') {
        const middle = at + Number(third), end = middle + Number(bodyLength);
        if (call !== undefined) {
          this.#runner.ask(call, Number(first), Number(second), text.slice(at, middle), form, text.slice(middle, end));
        }
        at = end;
      } else if (kind === 'S') {
        this.#reseed();
      } else if (call !== undefined) {
        if (kind === 'T') this.#runner.timer(call, Number(first), Number(second));
        else this.#runner.clearTimer(call, Number(first));
      }
    }
  }

  // A generator that gets no fresh seed goes on with the one it has.
  #reseed() {
    if (this.#isolate.isDisposed) return;
    try {
      this.#entries.seed.applySync(undefined, [newSeed()], { timeout: OWN_MS });
    } catch {
      // microtasks that a timed-out entry left behind ran on
    }
  }

  #finish(call, ok, text, logs) {
    if (ok) this.#runner.finish(call, null, text, logs);
    else this.#runner.finish(call, [...JSON.parse(text), false], '', logs);
    if (this.retired) this.retire();
  }

  #sampleHeap() {
    const now = performance.now();
    if (now - this.#heapSampled < HEAP_SAMPLE_MS) return;
    this.#heapSampled = now;
    const heap = this.#isolate.getHeapStatisticsSync();
    this.heapBytes = heap.used_heap_size + heap.externally_allocated_size;
  }

  // In ns; of an isolate that is gone, as last seen.
  #cpuTime() {
    try {
      this.#cpuSeen = Number(this.#isolate.cpuTime);
    } catch {
      // out of memory can dispose it at any time
    }
    return this.#cpuSeen;
  }

  // isolated-vm counts wall time: twice the CPU time leaves room for a busy machine, the watchdog is exact.
  #entryMs(call) {
    const cpuMs = (call.cpuLimitNs - call.cpuNs) / 1e6;
    return Math.max(1, Math.ceil(Math.min(call.deadline - performance.now(), 2 * cpuMs + 100)));
  }
}

// For the random generator of one isolate: key and nonce of ChaCha20, one byte a character.
function newSeed() {
  return randomBytes(40).latin1Slice();
}

// [code, message, stack, retryable] of a call that ended at a limit.
function limitError(code, { limits }) {
  const messages = {
    timeout: `the call took longer than ${limits.timeout_ms} ms`,
    cpu_limit: `the call used more than ${limits.cpu_ms} ms of CPU time`,
    memory_limit: `the function used more than ${limits.memory_mb} MB of memory`,
    cell_crashed: 'the function was ended because another call of it passed a limit',
  };
  return messages[code] ? [code, messages[code], '', code === 'cell_crashed'] : limitError('cell_crashed', { limits });
}

// Undefined while a top-level `await` keeps it from existing.
async function defaultExport(module) {
  try {
    return await module.namespace.get('default', { reference: true });
  } catch {
    return undefined;
  }
}
