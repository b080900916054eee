// Calls that come past the enclave, on connections of a host that the enclave handed over. The bodies of their frames
// are those of protocol.py, but for HOST_ERROR, which is the JSON text of {code, message}.
//
// The enclave need not know of a call that is over at once and asks it for nothing. It is told when calls begin to come
// and when they have stopped (BUSY), how many of which bundle came (USED), and of every call that lasts or wants
// something from it (BEGAN, ENDED).
//
//   BUSY    -                                                  id: 1 or 0
//   USED    (u32 bundle | u32 calls) …                         id: number of isolates
//   BEGAN   u32 bundle | u32 ms since it came | u32 ms left    id: of the call
//   ENDED   -                                                  id: of the call
//   CLOSED  -                                                  id: number of the connection

import { DIRECT, FROM_CELL, Frames } from './frames.mjs';

// As in cell.py.
const MAX_RUNNING = 64, MAX_WAITING = 256, MAX_NESTED = 512, MAX_WAITING_BYTES = 32 * 1024 * 1024, WAIT_MS = 5_000;
// As in protocol.py and server.py.
const DIRECT_BIT = 1 << 30, IDS = 1 << 20, MAX_INPUT_BYTES = 1_048_576;
const DEPTH_AT = 8, EXECUTION_AT = 9, TIMEOUT_AT = 25, INPUT_AT = 29;
// A call that is over sooner is not told of.
const TELL_MS = 10;
// In ticks of the watch: how often uses are told, and how long nothing may run until it is told.
const USED_TICKS = 25, REST_TICKS = 10;
const HOST_FUNCTIONS = ['neo.read', 'neo.send', , 'neo.wallet', 'functions.invoke'];

export class DirectCalls {
  #cell;
  #frames;
  #waiting = [];
  #waitingBytes = 0;
  #beginning = false;
  #busy = false;
  #leaving = false;
  #used = new Set();
  #ticks = 0;
  #restingTicks = 0;

  // frames: to the enclave. cell: bundle(handle), isolates(), running(), start(id, bundle, execution, timeoutMs, input,
  // connection, arrived), cancel(id), deliver(id, seq, ok, text), watch().
  constructor(frames, cell) {
    this.#frames = frames;
    this.#cell = cell;
  }

  accept(handle, first) {
    if (handle === undefined) this.closed(first);
    else new Connection(handle, first, this, this.#cell);
  }

  // A connection is gone.
  closed(first) {
    this.#frames.send(FROM_CELL.CLOSED, (first & ~DIRECT_BIT) / IDS);
  }

  // No further calls; those that wait are refused.
  leave() {
    this.#leaving = true;
    for (const { connection, id } of this.#waiting.splice(0)) connection.refuse(id, 'leaving', 'the cell ends', true);
    this.#waitingBytes = 0;
  }

  invoke(connection, id, data, at, end) {
    const length = end - at - INPUT_AT;
    if (length < 0) {
      connection.close();
      return;
    }
    const bundle = this.#cell.bundle(data.latin1Slice(at, at + DEPTH_AT));
    if (this.#leaving) {
      connection.refuse(id, 'leaving', 'the cell ends', true);
    } else if (bundle === undefined) {
      connection.refuse(id, 'not_loaded', 'this bundle is not loaded', true);
    } else if (length > MAX_INPUT_BYTES) {
      connection.refuse(id, 'input_too_large', `the input has more than ${MAX_INPUT_BYTES} bytes`, false);
    } else {
      const running = this.#cell.running(), nested = data[at + DEPTH_AT] > 0;
      const execution = data.hexSlice(at + EXECUTION_AT, at + TIMEOUT_AT), timeoutMs = data.readUInt32LE(at + TIMEOUT_AT);
      const input = data.utf8Slice(at + INPUT_AT, end);
      if (running < MAX_RUNNING || (nested && running < MAX_RUNNING + MAX_NESTED)) {
        this.#begin(id, bundle, execution, timeoutMs, input, connection, performance.now());
      } else if (nested || this.#waiting.length >= MAX_WAITING || this.#waitingBytes > MAX_WAITING_BYTES) {
        const waiting = this.#waiting.length;
        connection.refuse(id, 'too_many_calls', `${running} calls of this tenant are running and ${waiting} are waiting`, true);
      } else {
        this.#waitingBytes += length;
        this.#waiting.push({ connection, id, bundle, execution, timeoutMs, input, length, arrived: performance.now() });
      }
    }
  }

  // Tells the enclave of a call.
  tell(call) {
    if (call.told) return;
    call.told = true;
    const now = performance.now(), body = Buffer.allocUnsafe(12);
    body.writeUInt32LE(call.bundle.number, 0);
    body.writeUInt32LE(Math.round(now - call.started), 4);
    body.writeUInt32LE(Math.max(0, Math.round(call.deadline - now)), 8);
    this.#frames.send(FROM_CELL.BEGAN, call.id, body);
  }

  // Any call of this cell is over.
  ended(call) {
    if (call.told) this.#frames.send(FROM_CELL.ENDED, call.id);
    if (this.#waiting.length === 0 || this.#beginning) return;
    this.#beginning = true;
    setImmediate(() => {
      this.#beginning = false;
      this.#beginNext();
    });
  }

  // A connection is gone, and with it its calls that wait.
  forget(connection) {
    this.#waiting = this.#waiting.filter((each) => each.connection !== connection);
    this.#waitingBytes = this.#waiting.reduce((sum, { length }) => sum + length, 0);
  }

  // Every 10 ms while something runs.
  tick(calls, now) {
    this.#restingTicks = 0;
    for (const call of calls) if (call.host !== null && now - call.started > TELL_MS) this.tell(call);
    while (this.#waiting.length > 0 && now - this.#waiting[0].arrived > WAIT_MS) {
      const { connection, id, length } = this.#waiting.shift();
      this.#waitingBytes -= length;
      connection.refuse(id, 'too_many_calls', `${MAX_RUNNING} calls of this tenant are running, none ended within ${WAIT_MS / 1000} s`, true);
    }
    // Also when there are none: the enclave takes a busy cell that says nothing for one that hangs.
    if (this.#busy && ++this.#ticks % USED_TICKS === 0) this.#tellUses();
  }

  // In place of `tick` while nothing runs; returns whether it has been so for long enough.
  rest() {
    if (!this.#busy) return true;
    if (++this.#restingTicks < REST_TICKS && !this.#leaving) return false;
    this.#tellUses();
    this.#busy = false;
    this.#frames.send(FROM_CELL.BUSY, 0);
    return true;
  }

  #note(bundle) {
    bundle.uses++;
    this.#used.add(bundle);
    if (this.#busy) return;
    this.#busy = true;
    this.#cell.watch();
    // Before any code of the author runs, from which this process might not come back.
    this.#frames.send(FROM_CELL.BUSY, 1);
    this.#tellUses();
    this.#frames.flush();
  }

  #tellUses() {
    const body = Buffer.allocUnsafe(8 * this.#used.size);
    let at = 0;
    for (const bundle of this.#used) {
      body.writeUInt32LE(bundle.number, at);
      body.writeUInt32LE(bundle.uses, at + 4);
      bundle.uses = 0;
      at += 8;
    }
    this.#used.clear();
    this.#frames.send(FROM_CELL.USED, this.#cell.isolates(), body);
  }

  #beginNext() {
    while (this.#waiting.length > 0 && this.#cell.running() < MAX_RUNNING) {
      const { connection, id, bundle, execution, timeoutMs, input, length, arrived } = this.#waiting.shift();
      this.#waitingBytes -= length;
      this.#begin(id, bundle, execution, timeoutMs, input, connection, arrived);
    }
  }

  #begin(id, bundle, execution, timeoutMs, input, connection, arrived) {
    this.#note(bundle);
    this.#cell.start(id, bundle, execution, timeoutMs, input, connection, arrived);
  }
}

class Connection {
  #frames;
  #first;
  #calls;
  #cell;
  // Ids of its calls that wait or run.
  #open = new Set();
  // Host calls that are not answered: call and seq by id.
  #asked = new Map();
  #asks = 0;

  constructor(handle, first, calls, cell) {
    this.#first = first;
    this.#calls = calls;
    this.#cell = cell;
    this.#frames = new Frames({ handle }, (kind, id, data, at, end) => this.#receive(kind, id, data, at, end), () => this.#ended());
  }

  close() {
    this.#frames.close();
  }

  // body: as of a RESULT.
  finished(call, body, logs) {
    this.#open.delete(call.id);
    if (logs === '') this.#frames.send(DIRECT.RESULT, call.id, body);
    else this.#frames.send(DIRECT.RESULT, call.id, body, Buffer.from(logs));
  }

  refuse(id, code, message, retryable) {
    this.#open.delete(id);
    this.#frames.send(DIRECT.ERROR, id, failure(code, message, retryable));
  }

  // kind: as in CALL; json: a buffer.
  ask(call, seq, kind, json) {
    this.#asks = this.#asks % 0xffff_ffff + 1;
    this.#asked.set(this.#asks, { id: call.id, seq });
    this.#frames.send(DIRECT.HOST_CALL, this.#asks, hostCall(call.id, HOST_FUNCTIONS[kind], json.length), json);
  }

  flush() {
    this.#frames.flush();
  }

  #receive(kind, id, data, at, end) {
    if (kind === DIRECT.INVOKE) {
      if (id < this.#first || id >= this.#first + IDS || this.#open.has(id)) {
        this.close();
      } else {
        this.#open.add(id);
        this.#calls.invoke(this, id, data, at, end);
      }
    } else if (kind === DIRECT.HOST_RESULT || kind === DIRECT.HOST_ERROR) {
      const asked = this.#asked.get(id);
      if (asked === undefined) return;
      this.#asked.delete(id);
      this.#cell.deliver(asked.id, asked.seq, kind === DIRECT.HOST_RESULT, data.utf8Slice(at, end));
    } else {
      this.close();
    }
  }

  #ended() {
    this.#calls.forget(this);
    for (const id of this.#open) this.#cell.cancel(id);
    this.#asked.clear();
    this.#calls.closed(this.#first);
  }
}

// MessagePack, as of protocol.HostCall, up to the bytes of its argument.
function hostCall(id, name, length) {
  const body = Buffer.allocUnsafe(12 + name.length);
  body[0] = 0x93;
  body[1] = 0xce;
  body.writeUInt32BE(id, 2);
  body[6] = 0xa0 | name.length;
  body.latin1Write(name, 7);
  body[7 + name.length] = 0xc6;
  body.writeUInt32BE(length, 8 + name.length);
  return body;
}

// MessagePack, as of protocol.Failure; both texts are ours and short.
function failure(code, message, retryable) {
  const text = (value) => Buffer.concat([Buffer.of(0xd9, value.length), Buffer.from(value, 'latin1')]);
  return Buffer.concat([Buffer.of(0x93), text(code), text(message), Buffer.of(retryable ? 0xc3 : 0xc2)]);
}
