// Prints the code cache of the bootstrap, made after a function has used what most functions use.

import { randomBytes } from 'node:crypto';
import { writeSync } from 'node:fs';
import { Blank, seedRealms } from './realm.mjs';

const EXERCISE = `(async function () {
  return async (input, ctx) => {
    console.log('text', { a: [1, 'two'] });
    console.error(new Error('shown'));
    await new Promise((resolve) => setTimeout(resolve, 1));
    const answer = await ctx.neo.read({ n: 1 });
    if (input.fails) throw new TypeError('shown');
    return { answer, id: ctx.executionId, text: new TextDecoder().decode(new TextEncoder().encode('text')) };
  };
})`;

seedRealms(randomBytes(40));
const blank = new Blank(128, null);
const { isolate, realm } = blank;
realm.open(() => {}, 'function.js', '{}');
await realm.evaluate(await isolate.compileScript(EXERCISE, { filename: 'function.js' }), 1_000);
realm.check('function.js');
for (let call = 1; call <= 20; call++) {
  realm.run.applySync(undefined, [false, call, 'execution', call % 5 === 0 ? '{"fails":true}' : '{}']);
  realm.take.applySync();
  realm.fire.applySync(undefined, [false, call, 1]);
  realm.take.applySync();
  realm.deliver.applySync(undefined, [false, call, 2, true, '{"n":1}', '']);
  const answer = realm.take.applySync();
  if (!answer.startsWith('R ')) throw new Error(`the exercise does not end: ${answer}`);
}
const code = Buffer.from(blank.code());
for (let at = 0; at < code.length;) at += writeSync(1, code, at);
