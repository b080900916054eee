// The function of measure.py in isolated-vm alone: no sockets, no limits but the memory's.

import { createRequire } from 'node:module';

const require = createRequire(new URL('../../src/neolayer_enclave/runner/', import.meta.url));
const ivm = require('isolated-vm');

const isolate = new ivm.Isolate({ memoryLimit: 128 });
const context = isolate.createContextSync();
const call = context.evalClosureSync(
  `const handle = async (input) => ({ hello: input.name, n: input.n + 1 });
   return async (text) => JSON.stringify(await handle(JSON.parse(text)))`,
  [],
  { result: { reference: true } },
);
const input = '{"name":"x","n":1}';

async function measure(count, inFlight) {
  let left = count;
  const one = async () => {
    while (left-- > 0) await call.apply(undefined, [input], { result: { promise: true } });
  };
  const begun = performance.now();
  await Promise.all(Array.from({ length: inFlight }, one));
  const seconds = (performance.now() - begun) / 1000;
  const rate = Math.round(count / seconds).toLocaleString('en').padStart(8);
  return `bare, ${String(inFlight).padStart(3)} in flight    ${rate} calls/s   ${((seconds / count) * inFlight * 1000).toFixed(3)} ms each`;
}

await measure(2_000, 1);
for (const inFlight of [1, 16, 64]) console.log(await measure(10_000, inFlight));
