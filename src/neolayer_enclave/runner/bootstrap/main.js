// What every isolate runs first: the globals of a function and the way in and out.
//
// The runner calls the functions at the end ("entries"), one at a time per isolate. Nothing runs
// between entries. What has to leave is collected as text (see calls.js) and fetched by `take` after each entry, so
// that the isolate holds no way to call out, and every continuation runs inside an entry with a time limit. The only
// exception is `streamLog`, see console.js.
//
// The function shares this realm. Therefore everything the entries use is captured before it runs (intrinsics.js),
// records have no prototype, and only primitive strings leave. Packages run on behalf of the author's own code only:
// whoever breaks what they rely on breaks their own calls.

import { deliver, fire, forget, install, installed, open, run, take } from './calls.js';
import { streamTo } from './console.js';
import { contextOf, grant } from './context.js';
import { nameFile } from './failures.js';
import { installGlobals } from './globals.js';
import { seed } from './random.js';

// Before anything else is entered. streamLog(call, line); file: the function's name in stacks; secretsText: JSON;
// seedText: as `seed` takes it.
function begin(streamLog, file, secretsText, seedText) {
  streamTo(streamLog);
  nameFile(file);
  grant(secretsText);
  seed(seedText);
}

// All that does not depend on the function is done by now, so that it can be done before there is one.
open(contextOf);
installGlobals();
export const entries = { __proto__: null, begin, install, installed, run, deliver, fire, forget, take, seed };
