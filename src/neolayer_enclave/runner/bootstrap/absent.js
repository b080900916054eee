// Stands in for SharedArrayBuffer, which isolates do not have, in packages that look at it when they are loaded: its
// getters find no such object.

export const SharedArrayBuffer = {
  prototype: {
    get byteLength() { throw new TypeError('not a SharedArrayBuffer'); },
    get growable() { throw new TypeError('not a SharedArrayBuffer'); },
  },
};
