// Frames on a socket, to the enclave or to a host: u32 length | u8 kind | u32 id | body, little endian, as in
// protocol.py. Outgoing frames of one turn leave in one write.

import { Socket } from 'node:net';

export const TO_CELL = {
  LOAD: 1, UNLOAD: 2, INVOKE: 3, DELIVER: 4, CANCEL: 5, CHECK: 6, OPTIONS: 32, WARM: 33, SHRINK: 34, LEAVE: 36,
};
export const FROM_CELL = {
  RESULT: 16, CALL: 17, CHECKED: 18, CODE: 48, LOADED: 49, FIRST: 50, WARMED: 51, UP: 52,
  BUSY: 64, USED: 65, BEGAN: 66, ENDED: 67, CLOSED: 68,
};
// Between a cell and a host.
export const DIRECT = { ERROR: 2, HOST_CALL: 3, HOST_RESULT: 4, HOST_ERROR: 5, INVOKE: 6, RESULT: 7 };

const HEADER_BYTES = 9;
const LENGTH_BYTES = 4;
const AFTER_LENGTH = 5;
const READ_BYTES = 65_536;
// As in protocol.py.
const MAX_FRAME_BYTES = 8 * 1024 * 1024;
// A peer that lets this much pile up does not read; it is cut off.
const MAX_UNREAD_BYTES = 64 * 1024 * 1024;

export class Frames {
  #socket;
  #receive;
  #needed = HEADER_BYTES;
  #chunks = [];
  #chunkBytes = 0;
  #out = [];
  #reading = false;
  #flushing = false;

  // source: { fd } or { handle }. receive(kind, id, data, at, end): the body's bytes are valid until it returns.
  // ended(): the other side is gone, or not to be understood; called once.
  constructor(source, receive, ended) {
    this.#receive = receive;
    const buffer = Buffer.allocUnsafeSlow(READ_BYTES);
    const onread = { buffer, callback: (bytes) => this.#read(buffer.subarray(0, bytes)) };
    this.#socket = new Socket({ ...source, readable: true, writable: true, onread });
    for (const event of ['end', 'error']) this.#socket.on(event, () => this.#socket.destroy());
    this.#socket.on('close', ended);
    this.#socket.resume();
  }

  close() {
    this.#socket.destroy();
  }

  // Body: a list of buffers.
  send(kind, id, ...body) {
    if (this.#socket.destroyed) return;
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
    if (this.#socket.writableLength > MAX_UNREAD_BYTES) this.close();
    else this.#socket.write(Buffer.concat(out));
  }

  // Returns whether more is wanted.
  #read(data) {
    // A large frame comes in many chunks: they are joined once, when it is complete. The memory of `data` is read into
    // again.
    if (this.#chunkBytes > 0) {
      this.#keep(data);
      if (this.#chunkBytes < this.#needed) return true;
      data = Buffer.concat(this.#chunks, this.#chunkBytes);
      this.#chunks = [];
      this.#chunkBytes = 0;
    }
    this.#reading = true;
    let at = 0;
    this.#needed = HEADER_BYTES;
    while (data.length - at >= HEADER_BYTES) {
      const length = data.readUInt32LE(at);
      if (length < AFTER_LENGTH || length > MAX_FRAME_BYTES) {
        this.close();
        return false;
      }
      const stop = at + LENGTH_BYTES + length;
      if (stop > data.length) {
        this.#needed = stop - at;
        break;
      }
      this.#receive(data[at + 4], data.readUInt32LE(at + 5), data, at + HEADER_BYTES, stop);
      if (this.#socket.destroyed) return false;
      at = stop;
    }
    this.#reading = false;
    if (at < data.length) this.#keep(data.subarray(at));
    this.flush();
    return true;
  }

  #keep(data) {
    this.#chunks.push(Buffer.from(data));
    this.#chunkBytes += data.length;
  }
}
