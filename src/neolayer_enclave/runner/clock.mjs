// CPU time of entries. isolated-vm has a count of its own, which is wall time in its published binaries: on a busy
// machine it would charge a call for what others have used.
//
// The main thread can be asked for its time. Of other threads only the sum is known; entries never wait for anything,
// so that those that run at a time have equal shares of it. What V8's helpers do for them is in the sum, too.

export class CpuClock {
  #running = new Set();
  // Of all threads but the main one, as last seen, and when that was; µs.
  #othersUs = 0;
  #seenUs = 0;

  // Of the main thread so far, in ns.
  mainNs() {
    const { user, system } = process.threadCpuUsage();
    return (user + system) * 1000;
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
