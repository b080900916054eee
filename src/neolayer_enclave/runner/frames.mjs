// Frames on the socket to the enclave: u32 length | u8 kind | u32 id | body, little endian, as in protocol.py.
// Outgoing frames of one turn leave in one write.

import { Socket } from 'node:net';

export const TO_CELL = { LOAD: 1, UNLOAD: 2, INVOKE: 3, DELIVER: 4, CANCEL: 5, CHECK: 6, OPTIONS: 32, WARM: 33, SHRINK: 34 };
export const FROM_CELL = { RESULT: 16, CALL: 17, CHECKED: 18, CODE: 48, LOADED: 49, FIRST: 50, WARMED: 51, UP: 52 };

const HEADER_BYTES = 9;
const LENGTH_BYTES = 4;
const AFTER_LENGTH = 5;

export class Frames {
  #socket;
  #receive;
  #needed = HEADER_BYTES;
  #chunks = [];
  #chunkBytes = 0;
  #out = [];
  #reading = false;
  #flushing = false;

  constructor(fd, receive) {
    this.#receive = receive;
    this.#socket = new Socket({ fd, readable: true, writable: true });
    this.#socket.on('data', (data) => this.#read(data));
    // The enclave is gone, or ended this cell.
    for (const event of ['end', 'error', 'close']) this.#socket.on(event, () => process.exit(0));
  }

  // Body: a list of buffers.
  send(kind, id, ...body) {
    const header = Buffer.allocUnsafe(HEADER_BYTES);
    let length = AFTER_LENGTH;
    for (const part of body) length += part.length;
    header.writeUInt32LE(length, 0);
    header[4] = kind;
    header.writeUInt32LE(id, 5);
    this.#out.push(header, ...body);
    if (!this.#reading && !this.#flushing) {
      this.#flushing = true;
      setImmediate(() => this.flush());
    }
  }

  flush() {
    this.#flushing = false;
    if (this.#out.length === 0) return;
    const out = this.#out;
    this.#out = [];
    this.#socket.write(Buffer.concat(out));
  }

  #read(data) {
    // A large frame comes in many chunks: they are joined once, when it is complete.
    if (this.#chunkBytes > 0) {
      this.#chunks.push(data);
      this.#chunkBytes += data.length;
      if (this.#chunkBytes < this.#needed) return;
      data = Buffer.concat(this.#chunks, this.#chunkBytes);
      this.#chunkBytes = 0;
    }
    this.#reading = true;
    let at = 0;
    this.#needed = HEADER_BYTES;
    while (data.length - at >= HEADER_BYTES) {
      const stop = at + LENGTH_BYTES + data.readUInt32LE(at);
      if (stop > data.length) {
        this.#needed = stop - at;
        break;
      }
      this.#receive(data[at + 4], data.readUInt32LE(at + 5), data, at + HEADER_BYTES, stop);
      at = stop;
    }
    this.#reading = false;
    if (at < data.length) {
      this.#chunks = [data.subarray(at)];
      this.#chunkBytes = data.length - at;
    }
    this.flush();
  }
}
