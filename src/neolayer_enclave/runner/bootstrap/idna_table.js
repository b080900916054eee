// The mapping table of tr46, an array of [[first, last], status, mapping], unpacked from the text that build.mjs makes
// of it: kept as JSON it is 145 KB of source and 1 MB of heap.

import { idnaEntries, idnaMappings } from 'neolayer:idna';

const STATUS = { m: 1, e: 1, v: 2, d: 3, x: 6, i: 7 };
const DERIVED = 'm', EXPLICIT = 'e', DEVIATION = 'x';

const count = idnaEntries.replace(/[0-9A-Z]+/g, '').length;
const firsts = new Uint32Array(count + 1);
const kinds = idnaEntries.replace(/[0-9A-Z]+/g, '');
const mappings = new Map();

let at = 0, explicit = 0;
for (const [, kind, length] of idnaEntries.matchAll(/([a-z])([0-9A-Z]*)/g)) {
  if (kind === EXPLICIT || kind === DEVIATION) mappings.set(at, idnaMappings[explicit++]);
  firsts[at + 1] = firsts[at] + (length === '' ? 1 : parseInt(length, 36));
  at++;
}

// How most mappings follow from the character itself. Unicode's stability policies keep that so for what is assigned.
export function derivedMapping(point) {
  return String.fromCodePoint(point).normalize('NFKC').toLowerCase().normalize('NFKC');
}

export default new Proxy([], {
  get(target, name) {
    if (name === 'length') return count;
    const index = Number(name), kind = kinds[index];
    const mapping = kind === DERIVED ? derivedMapping(firsts[index]) : mappings.get(index);
    return [[firsts[index], firsts[index + 1] - 1], STATUS[kind], mapping];
  },
});
