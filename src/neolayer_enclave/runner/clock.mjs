// CPU time of entries. isolated-vm has a count of its own, which is wall time in its published binaries: on a busy
// machine it would charge a call for what others have used.
//
// The main thread can be asked for its time. Of other threads only the sum is known; entries never wait for anything,
// so that those that run at a time have equal shares of it. What V8's helpers do for them is in the sum, too.

// Of a shorter entry wall time will do: to ask for less takes longer than most entries.
const BRIEF_NS = 5e5;

export class CpuClock {
  #running = new Set();
  // Of all threads but the main one, as last seen, and when that was; µs.
  #othersUs = 0;
  #seenUs = 0;

  // Of the main thread, as last asked for: once a turn, and after long entries.
  #mainNs = 0;
  #asked = false;
  #enteredMs = 0;

  // An entry begins on the main thread.
  enterMain() {
    if (!this.#asked) {
      this.#asked = true;
      this.#mainNs = mainNs();
    }
    this.#enteredMs = performance.now();
  }

  // Returns its CPU time in ns; of a long one including what the turn did before it, which is little.
  leaveMain() {
    const wallNs = (performance.now() - this.#enteredMs) * 1e6;
    if (wallNs < BRIEF_NS) return wallNs;
    const before = this.#mainNs;
    this.#mainNs = mainNs();
    return Math.min(wallNs, this.#mainNs - before);
  }

  // A turn in which the main thread was entered is over.
  turned() {
    this.#asked = false;
  }

  // An entry begins on another thread. Its `ns` grow with each `share`.
  begin() {
    this.share();
    const entry = { ns: 0 };
    this.#running.add(entry);
    return entry;
  }

  // Returns its CPU time in ns.
  end(entry) {
    this.share();
    this.#running.delete(entry);
    return entry.ns;
  }

  // Shares out what was used since the last time.
  share() {
    const nowUs = performance.now() * 1000;
    const all = process.cpuUsage(), main = process.threadCpuUsage();
    const othersUs = all.user + all.system - main.user - main.system;
    const partUs = Math.min((othersUs - this.#othersUs) / this.#running.size, nowUs - this.#seenUs);
    for (const entry of this.#running) entry.ns += Math.max(0, partUs) * 1000;
    this.#othersUs = othersUs;
    this.#seenUs = nowUs;
  }
}

function mainNs() {
  const { user, system } = process.threadCpuUsage();
  return (user + system) * 1000;
}
