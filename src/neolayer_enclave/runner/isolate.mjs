// One isolate with one function in it, and the calls that run in it.
//
// Code runs in entries: the start of a call, a delivered answer, a timer. Entries of an isolate run one after the
// other, and the CPU time of an entry is counted to the call on whose behalf it was made (see clock.mjs). A
// function whose entries are quick is entered on the main thread (about 5 µs); any other on a thread of isolated-vm's
// pool (about 100 µs), where it does not keep the tenant's other functions from running.
//
// On another thread the watchdog ends a call at its CPU limit, looking every 10 ms. On the main thread nobody watches but
// isolated-vm, by wall time. An entry that it ends before its CPU time is used up was cut short by a busy machine:
// its call is begun again, in a fresh isolate and on another thread, unless it has asked for something by then.
//
// With isolation "version" all calls share one realm. With "call" each has a fresh one, the next of which is made
// while nothing else runs; what the last one left behind ends with its realm.

import { codeOf, compile, prepare } from './compile.mjs';
import { InvalidFunction } from './errors.mjs';
import { Realm } from './realm.mjs';

const QUICK_NS = 2e6;
// After a slow entry so many quick ones earn the main thread again.
const PROBATION = 10;
// For entries that run no code of the author.
const OWN_MS = 50;
// What an entry on the main thread may take beyond the CPU time that its call has left. With GRAIN_MS, twice OWN_MS
// and a turn of the enclave's watch it stays below the 0.5 s that callers are promised.
const MAIN_SLACK_MS = 200;
// While entries run on other threads their watchdog must get its turns.
const BESIDE_MS = 300;
const HEAP_SAMPLE_MS = 10;
const GRAIN_MS = 50;
const GAP_WEIGHT = 0.2;
// What an isolate takes with nothing in it.
const LEAST_BYTES = 2 * 1024 * 1024;
// Texts to compile on the main thread: that takes less than twice the hop to another one.
const SMALL_TEXT = 16_384;
// A function has shown what it uses after so many calls; one that never rests, after the larger number.
const EXERCISED_CALLS = 10, EXERCISED_UNDER_LOAD = 200;
// An isolate is replaced when it holds this part of its limit or has served so many calls; a young one is not.
const WATERMARK = 0.75, MAX_CALLS = 100_000, YOUNG_CALLS = 20;
// isolated-vm's own texts.
const TIMED_OUT = 'Script execution timed out.';
const OUT_OF_MEMORY = 'Isolate was disposed during execution due to memory limit';
// Not a limit: an entry had to leave the main thread with CPU time left.
const CUT_SHORT = 'cut_short';

export class FunctionIsolate {
  calls = new Map();
  lastUsed = 0;
  // Between calls; a running mean.
  gapMs = 0;
  served = 0;
  // No new calls come in; it ends with its last call.
  retired = false;
  // A successor is on its way.
  replaced = false;
  heapBytes = 0;
  // Of the load: isolate, context, prepare, compile, evaluate.
  phasesMs = [0, 0, 0, 0, 0];
  // From the beginning of its first call to the end of that call's first entry.
  firstMs = 0;
  codeRejected = false;
  // Of `open`.
  opening = null;

  #bundle;
  #runner;
  #isolate;
  #bootstrap;
  #script = null;
  // Shared by all calls, or the next call's own.
  #realm;
  // Loading is over, well or not.
  #loaded = false;
  #waiting = [];
  // What has to wait until nobody is inside: functions.
  #queue = [];
  // The call whose entry runs on another thread, and that entry's CPU time.
  #entered = null;
  #spent = null;
  // Another thread is inside, for us.
  #producing = false;
  #makingRealm = false;
  #heapSampled = 0;
  #firstBegun = 0;
  // The limit by which the watchdog ended it.
  #ended = null;

  // bundle: { number, file, source, text, code, exercised, quick, credit, secrets, limits, isolation }, of which `text`
  // (the script), `code` (its code cache), `exercised`, `quick` (its top level) and `credit` (the main thread is open
  // to it from 0 on) are filled in. blank: a Blank with the bundle's memory limit. runner: blackbox, clock, keepsCode,
  // newCall(limits), finish(call, error, output, logs), again(call), ask(call, seq, kind, text, form, body),
  // timer(call, seq, ms), clearTimer(call, seq), flush(call), watch(), closed(isolate), replace(isolate, bundle),
  // produced(bundle), first(bundle, ms).
  constructor(bundle, runner, blank) {
    this.#bundle = bundle;
    this.#runner = runner;
    this.#isolate = blank.isolate;
    this.#bootstrap = blank.bootstrap;
    this.#realm = blank.realm;
    this.phasesMs[0] = blank.isolateMs;
    this.phasesMs[1] = blank.contextMs;
  }

  // Loads the function at the expense of `call`, then starts the calls that came meanwhile. Tells whether it did.
  async open(call) {
    try {
      await this.#load(call);
    } catch (error) {
      this.#loaded = true;
      this.#notLoaded(call, error);
      return false;
    }
    this.#loaded = true;
    for (const waiting of this.#waiting.splice(0)) if (this.#has(waiting)) this.#run(waiting);
    if (this.retired) this.retire();
    return true;
  }

  // Loads the function and throws it away. Returns null, or the InvalidFunction that says what is wrong.
  async check(call) {
    try {
      await this.#load(call);
      if (this.#runner.keepsCode) this.#bundle.code = await codeOf(this.#isolate, this.#bundle.text, this.#bundle.file);
      return null;
    } catch (error) {
      if (error instanceof InvalidFunction) return error;
      return new InvalidFunction('invalid_function', `its top level fails: ${limitError(this.#codeOf(call, error), call, this.#bundle)[1]}`);
    } finally {
      this.dispose();
    }
  }

  start(call) {
    this.calls.set(call.id, call);
    if (this.#loaded) this.#run(call);
    else this.#waiting.push(call);
  }

  // `now` as of performance.now().
  use(now) {
    const gap = now - this.lastUsed;
    this.gapMs = this.gapMs === 0 ? gap : this.gapMs + GAP_WEIGHT * (gap - this.gapMs);
    this.lastUsed = now;
  }

  // Time that keeping it is likely to save, per byte. One that stays unused longer than before is used less from now on.
  worth(now) {
    const rebuildMs = this.phasesMs.reduce((sum, ms) => sum + ms);
    return rebuildMs / Math.max(this.gapMs, now - this.lastUsed, 1) / Math.max(this.heapBytes, LEAST_BYTES);
  }

  #run(call) {
    if (this.#firstBegun === 0) this.#firstBegun = performance.now();
    call.realm = this.#realm;
    if (this.#bundle.isolation === 'call') this.#realm = null;
    if (call.realm === null) {
      this.#waiting.push(call);
      this.#makeRealm();
    } else {
      this.enter(call, 'run', [call.id, call.execution, call.input]);
    }
  }

  enter(call, entry, values) {
    if (this.#busy) this.#queue.push(() => this.#has(call) && this.enter(call, entry, values));
    else if (call.cpuNs > call.cpuLimitNs) this.#fail('cpu_limit', call);
    else if (this.#mayEnterHere(call)) this.#enterHere(call, entry, values);
    else this.#enterOnThread(call, entry, values);
  }

  // What cannot be begun again must not keep the watchdog from those that run on other threads.
  #mayEnterHere(call) {
    return this.#bundle.credit >= 0 && !call.offMain && !(call.asked && this.#runner.blackbox.threads > 0);
  }

  // Whether a call is still one of its own: it may be over, or begun again elsewhere.
  #has(call) {
    return !call.over && call.isolate === this;
  }

  // Ends what has passed its limits; called every 10 ms while something runs. `now` as of performance.now().
  watch(now) {
    const entered = this.#entered;
    if (entered !== null && this.#ended === null) {
      if (entered.cpuNs + this.#spent.ns > entered.cpuLimitNs) this.#end('cpu_limit');
      else if (now > entered.deadline) this.#end('timeout');
    }
    for (const call of this.calls.values()) {
      if (now <= call.deadline || call === entered) continue;
      this.#over(call, limitError('timeout', call, this.#bundle), '', this.#forget(call));
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
      this.#leaveRealm(call);
      this.retire();
    }
  }

  get idle() {
    return this.#loaded && this.calls.size === 0 && !this.#busy && !this.#makingRealm;
  }

  get #busy() {
    return this.#entered !== null || this.#producing;
  }

  dispose() {
    if (!this.#isolate.isDisposed) this.#isolate.dispose();
  }

  async #load(call) {
    const { file } = this.#bundle;
    let at = performance.now();
    const lap = (phase) => {
      const now = performance.now();
      this.phasesMs[phase] += now - at;
      at = now;
    };
    if (this.#bundle.text === null) {
      this.#bundle.text = await prepare(this.#isolate, this.#bundle.source, file);
      this.#bundle.source = '';
    }
    lap(2);
    this.#script = await this.#compile();
    lap(3);
    await this.#fill(this.#realm, call);
    lap(4);
    this.#sampleHeap();
  }

  async #compile() {
    const { text, file, code } = this.#bundle;
    const here = code !== null || text.length < SMALL_TEXT;
    const script = await compile(this.#isolate, text, file, code, here);
    if (code !== null && script.cachedDataRejected) {
      this.codeRejected = true;
      this.#bundle.code = null;
      this.#bundle.exercised = false;
    }
    return script;
  }

  // Brings the function into a realm at the expense of `call`.
  async #fill(realm, call) {
    const { file, secrets } = this.#bundle;
    realm.open((id, line) => this.calls.get(id)?.streamed.push(line), file, secrets);
    if (this.#bundle.quick && !call.offMain) {
      const { blackbox, clock } = this.#runner;
      clock.enterMain();
      blackbox.enterMain(this.#bundle.number, call.id);
      try {
        realm.evaluateHere(this.#script, this.#entryMsHere(call));
      } finally {
        blackbox.leaveMain();
        this.#toppedIn(call, clock.leaveMain());
      }
    } else {
      const slot = this.#begin(call);
      try {
        await realm.evaluate(this.#script, this.#entryMs(call));
      } finally {
        this.#toppedIn(call, this.#leave(slot));
      }
    }
    realm.check(file);
  }

  // A top level that was quick runs on the main thread the next time.
  #toppedIn(call, cpuNs) {
    call.cpuNs += cpuNs;
    this.#bundle.quick = cpuNs < QUICK_NS;
  }

  // For the next call; the first one that waits pays for it.
  #makeRealm() {
    if (this.#makingRealm || this.#realm !== null || this.retired && this.#waiting.length === 0) return;
    if (this.#busy) {
      this.#queue.push(() => this.#makeRealm());
      return;
    }
    this.#makingRealm = true;
    this.#runner.watch();
    this.#realmMade(this.#waiting.find(({ over }) => !over) ?? this.#runner.newCall(0, this.#bundle.limits));
  }

  async #realmMade(payer) {
    let realm = null, failure = null;
    try {
      realm = new Realm(this.#isolate, this.#bootstrap);
      await this.#fill(realm, payer);
    } catch (error) {
      failure = error;
    }
    this.#makingRealm = false;
    if (failure !== null && !(failure instanceof InvalidFunction)) {
      this.#fail(this.#codeOf(payer, failure), payer);
      return;
    }
    if (failure !== null) realm?.release();
    const waiting = this.#waiting.filter((call) => this.#has(call));
    this.#waiting = [];
    if (failure === null) this.#realm = realm;
    else if (waiting.length > 0) this.#over(waiting.shift(), ['invalid_function', failure.message, failure.stack, false], '', '');
    for (const call of waiting) if (this.#has(call)) this.#run(call);
    this.#next();
    if (this.retired) this.retire();
  }

  #next() {
    while (!this.#busy && this.#queue.length > 0) this.#queue.shift()();
  }

  #notLoaded(call, error) {
    if (error instanceof InvalidFunction) {
      const shown = ['invalid_function', error.message, error.stack, false];
      for (const waiting of [...this.calls.values()]) this.#over(waiting, shown, '', '');
      this.retire();
    } else {
      this.#fail(this.#codeOf(call, error), call);
    }
  }

  #enterHere(call, entry, values) {
    const { blackbox, clock } = this.#runner;
    call.begun = true;
    blackbox.enterMain(this.#bundle.number, call.id);
    clock.enterMain();
    let failure = null;
    try {
      call.realm[entry].applySync(undefined, [false, ...values], { timeout: this.#entryMsHere(call) });
    } catch (error) {
      failure = error;
    }
    const cpuNs = clock.leaveMain();
    blackbox.leaveMain();
    this.#after(call, cpuNs, failure);
    // Answers of quick calls that came in the same turn should not wait for slow ones.
    if (cpuNs > QUICK_NS / 4) this.#runner.flush(call);
  }

  #enterOnThread(call, entry, values) {
    call.begun = true;
    const slot = this.#begin(call);
    const settle = (failure) => {
      this.#after(call, this.#leave(slot), failure);
      this.#next();
    };
    call.realm[entry]
      .apply(undefined, [true, ...values], { timeout: this.#entryMs(call) })
      .then(() => settle(null), settle);
  }

  #begin(call) {
    this.#entered = call;
    this.#spent = this.#runner.clock.begin();
    return this.#runner.blackbox.enterThread(this.#bundle.number);
  }

  // Returns the CPU time of the entry in ns.
  #leave(slot) {
    this.#runner.blackbox.leaveThread(slot);
    this.#entered = null;
    return this.#runner.clock.end(this.#spent);
  }

  #after(call, cpuNs, failure) {
    call.cpuNs += cpuNs;
    if (this.#firstBegun > 0) {
      this.firstMs = performance.now() - this.#firstBegun;
      this.#runner.first(this.#bundle, this.firstMs);
      this.#firstBegun = -1;
    }
    this.#bundle.credit = cpuNs < QUICK_NS ? Math.min(this.#bundle.credit + 1, 0) : -PROBATION;
    if (failure !== null) {
      this.#broken(call, failure);
      return;
    }
    try {
      this.#sampleHeap();
      this.#drain(call.realm, call.realm.take.applySync());
    } catch (error) {
      // The watchdog disposed it just as the entry ended, or its memory ran out over what it had to say.
      this.#broken(call, error);
    }
  }

  #broken(call, failure) {
    if (!this.#isolate.isDisposed) {
      if (failure?.message !== TIMED_OUT) {
        // The author's code left too little stack for ours to catch what it threw.
        this.#over(call, ['function_error', String(failure?.message), '', false], '', this.#forget(call));
        return;
      }
      // What it did before it ran on and on still counts. Left-over microtasks get OWN_MS to go on, then it ends.
      try {
        this.#drain(call.realm, call.realm.take.applySync(undefined, [], { timeout: OWN_MS }));
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
    if (failure?.message !== TIMED_OUT) return 'cell_crashed';
    return call.cpuNs < call.cpuLimitNs ? CUT_SHORT : 'cpu_limit';
  }

  // Ends the isolate and all calls in it: `culprit` by `code`; memory is shared, so of it all that ran are guilty.
  // Those that cannot have had an effect are begun again where they are not to blame.
  #fail(code, culprit) {
    this.retired = true;
    this.dispose();
    // A limit that ends the load, before any call has run, would end the next load, too.
    const mayBeginAgain = code === CUT_SHORT || this.#firstBegun !== 0;
    const again = [];
    for (const call of [...this.calls.values()]) {
      const innocent = call === culprit ? code === CUT_SHORT && !call.asked : !call.begun;
      if (mayBeginAgain && innocent) {
        this.calls.delete(call.id);
        again.push(call);
      } else {
        const guilty = call === culprit || code === 'memory_limit';
        this.#over(call, limitError(guilty ? code : 'cell_crashed', call, this.#bundle), '', call.streamed.join());
      }
    }
    this.retire();
    for (const call of again) this.#runner.again(call, call === culprit);
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
    if (call.realm === null || this.#busy || this.#isolate.isDisposed) return call.streamed.join();
    try {
      return call.realm.forget.applySync(undefined, [call.id], { timeout: OWN_MS });
    } catch {
      return call.streamed.join();
    }
  }

  // Acts on the messages described in bootstrap/calls.js.
  #drain(realm, text) {
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
          call.asked = true;
          this.#runner.ask(call, Number(first), Number(second), text.slice(at, middle), form, text.slice(middle, end));
        }
        at = end;
      } else if (kind === 'S') {
        this.#reseed(realm);
      } else if (call !== undefined) {
        call.asked = true;
        if (kind === 'T') this.#runner.timer(call, Number(first), Number(second));
        else this.#runner.clearTimer(call, Number(first));
      }
    }
  }

  // A generator that gets no fresh seed goes on with the one it has.
  #reseed(realm) {
    if (this.#isolate.isDisposed) return;
    try {
      realm.reseed(OWN_MS);
    } catch {
      // microtasks that a timed-out entry left behind ran on
    }
  }

  #finish(call, ok, text, logs) {
    this.served++;
    if (ok) this.#over(call, null, text, logs);
    else this.#over(call, [...JSON.parse(text), false], '', logs);
    if (this.retired) this.retire();
    else this.#tend();
  }

  // The end of every call that gets an answer.
  #over(call, error, output, logs) {
    call.peakHeapBytes = Math.max(call.peakHeapBytes, this.heapBytes);
    this.#runner.finish(call, error, output, logs);
    this.#leaveRealm(call);
  }

  #leaveRealm(call) {
    if (this.#bundle.isolation !== 'call' || call.realm === null) return;
    const { realm } = call;
    call.realm = null;
    // Not at once: the entry that ended the call may still be inside.
    setImmediate(() => {
      if (this.#isolate.isDisposed) return;
      if (this.#busy) this.#queue.push(() => realm.release());
      else realm.release();
      this.#makeRealm();
    });
  }

  // What an isolate at rest needs: a successor when it is worn, a code cache of what it has used.
  #tend() {
    const { limits, exercised } = this.#bundle;
    const worn = this.served >= MAX_CALLS || this.heapBytes > WATERMARK * limits.memory_mb * 1024 * 1024;
    if (worn && !this.replaced && this.served >= YOUNG_CALLS) {
      this.replaced = true;
      this.#runner.replace(this, this.#bundle);
    }
    if (exercised || !this.#runner.keepsCode || this.#producing) return;
    if (this.served >= EXERCISED_UNDER_LOAD || (this.served >= EXERCISED_CALLS && this.calls.size === 0)) {
      this.#bundle.exercised = true;
      // The answers of this turn leave first.
      setImmediate(() => this.#produce());
    }
  }

  #produce() {
    if (this.#busy) this.#queue.push(() => this.#produce());
    else if (!this.#isolate.isDisposed) this.#produced();
  }

  async #produced() {
    this.#producing = true;
    try {
      const code = await codeOf(this.#isolate, this.#bundle.text, this.#bundle.file);
      this.#bundle.code = code;
      this.#runner.produced(this.#bundle);
    } catch {
      // it was disposed meanwhile
    }
    this.#producing = false;
    this.#next();
    if (this.retired) this.retire();
  }

  #sampleHeap() {
    const now = performance.now();
    if (now - this.#heapSampled < HEAP_SAMPLE_MS) return;
    this.#heapSampled = now;
    const heap = this.#isolate.getHeapStatisticsSync();
    this.heapBytes = heap.used_heap_size + heap.externally_allocated_size;
    for (const call of this.calls.values()) call.peakHeapBytes = Math.max(call.peakHeapBytes, this.heapBytes);
  }

  // On another thread the watchdog counts CPU time, so isolated-vm, which counts wall time, keeps the deadline only.
  #entryMs(call) {
    const now = performance.now();
    return grained(now, call.deadline - now);
  }

  #entryMsHere(call) {
    const now = performance.now();
    const ms = Math.min(call.deadline - now, (call.cpuLimitNs - call.cpuNs) / 1e6 + MAIN_SLACK_MS);
    return grained(now, this.#runner.blackbox.threads > 0 ? Math.min(ms, BESIDE_MS) : ms);
  }
}

// isolated-vm wakes a thread at the end of each timeout, also of those that were not needed. When they end at the same
// moments it wakes a few hundred times a second instead of ten thousand times.
function grained(now, ms) {
  return Math.max(1, Math.ceil(Math.ceil((now + ms) / GRAIN_MS) * GRAIN_MS - now));
}

// [code, message, stack, retryable] of a call that ended at a limit.
function limitError(code, { timeoutMs }, { limits }) {
  switch (code) {
    case 'timeout': return [code, `the call took longer than ${timeoutMs} ms`, '', false];
    case 'cpu_limit': return [code, `the call used more than ${limits.cpu_ms} ms of CPU time`, '', false];
    case 'memory_limit': return [code, `the function used more than ${limits.memory_mb} MB of memory`, '', false];
    case CUT_SHORT: return ['cell_crashed', 'the machine was too busy for the call to go on', '', true];
    default: return ['cell_crashed', 'the function was ended because another call of it passed a limit', '', true];
  }
}
