// What the enclave reads when this process hangs or has died: which function was being run.
//
// 64 bytes of memory shared by file descriptor. f64 since (CLOCK_MONOTONIC, ms; 0 until this process is up) | u32 bundle | u32 call of the entry
// on the main thread, then 12 times u32 bundle for entries on other threads; 0 means none.

import { writeSync } from 'node:fs';

const BYTES = 64;
const MAIN_BYTES = 16;
const SLOTS = 12;

export class BlackBox {
  #fd;
  #turned;
  #bytes = Buffer.alloc(BYTES);
  #inside = false;
  #leaving = false;
  // Entries that run on other threads.
  threads = 0;

  // turned(): told when a turn in which the main thread was entered is over.
  constructor(fd, turned) {
    this.#fd = fd;
    this.#turned = turned;
    this.enterMain(0, 0);
  }

  enterMain(bundle, call) {
    this.#inside = true;
    this.#bytes.writeDoubleLE(Number(process.hrtime.bigint()) / 1e6, 0);
    this.#bytes.writeUInt32LE(bundle, 8);
    this.#bytes.writeUInt32LE(call, 12);
    writeSync(this.#fd, this.#bytes, 0, MAIN_BYTES, 0);
  }

  // Noted when the turn is over: most often another entry follows at once.
  leaveMain() {
    this.#inside = false;
    if (this.#leaving) return;
    this.#leaving = true;
    setImmediate(() => {
      this.#leaving = false;
      this.#turned();
      if (this.#inside) return;
      this.#bytes.fill(0, 8, MAIN_BYTES);
      writeSync(this.#fd, this.#bytes, 0, MAIN_BYTES, 0);
    });
  }

  // Returns the offset to leave by; more entries than slots go unnoted.
  enterThread(bundle) {
    this.threads++;
    for (let at = MAIN_BYTES; at < MAIN_BYTES + SLOTS * 4; at += 4) {
      if (this.#bytes.readUInt32LE(at) === 0) {
        this.#note(at, bundle);
        return at;
      }
    }
    return 0;
  }

  leaveThread(at) {
    this.threads--;
    if (at > 0) this.#note(at, 0);
  }

  #note(at, bundle) {
    this.#bytes.writeUInt32LE(bundle, at);
    writeSync(this.#fd, this.#bytes, at, 4, at);
  }
}
