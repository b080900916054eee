// Takes the secrets of a function out of what leaves the cell beside its output: log lines, error messages, stacks.
//
// Against mishaps, not against the author, who can always write a value in a way that nobody recognises. Found are
// the value, its lines, and its usual encodings: JSON, URL, hexadecimal, Base64 at any offset (as in `user:password`).

const MIN_LENGTH = 4;
// Lines of a value shorter than this are words that occur elsewhere, too.
const MIN_LINE = 8;
const MIN_BASE64 = 5;
// Of longer values only the plain forms are looked for, as all of them would take memory.
const MAX_ENCODED = 8_192;
// As in bootstrap/console.js and bootstrap/failures.js: texts that it has cut may end within a value.
const MAX_LOG_BYTES = 262_144;
const MAX_MESSAGE = 4_096;
const MAX_STACK = 8_192;
const CUT = '… (cut)';
const TRUNCATED = 'log truncated: a call may log 1,000 lines or 256 KB';

export class Redactor {
  // [text to find, name of the secret]
  #needles = [];
  // The same as they stand in log lines, which are JSON.
  #quoted = [];

  // secrets: JSON text of an object. Returns null when there is nothing to take out.
  static of(secrets) {
    if (secrets === '{}') return null;
    const redactor = new Redactor(JSON.parse(secrets));
    return redactor.#needles.length === 0 ? null : redactor;
  }

  constructor(secrets) {
    for (const [name, value] of Object.entries(secrets)) {
      for (const form of formsOf(value)) {
        this.#needles.push([form, name]);
        this.#quoted.push(quoted(form));
      }
    }
  }

  // [code, message, stack, …] of a failed call.
  error([code, message, stack, ...rest]) {
    return [
      code,
      this.#text(message, message.length >= MAX_MESSAGE).slice(0, MAX_MESSAGE).toWellFormed(),
      this.#text(stack, stack.length >= MAX_STACK).slice(0, MAX_STACK).toWellFormed(),
      ...rest,
    ];
  }

  // logs: log lines joined by commas, each a JSON array [ms, level, text].
  logs(logs) {
    if (!logs.includes(CUT) && !this.#quoted.some((form) => logs.includes(form))) return logs;
    const lines = [];
    let bytes = 0;
    for (const [ms, level, text] of JSON.parse(`[${logs}]`)) {
      const line = JSON.stringify([ms, level, this.#line(text)]);
      // Names can be longer than values.
      bytes += Buffer.byteLength(line) + 1;
      if (bytes > MAX_LOG_BYTES) {
        lines.push(JSON.stringify([ms, 'warn', TRUNCATED]));
        break;
      }
      lines.push(line);
    }
    return lines.join();
  }

  #line(text) {
    return text.endsWith(CUT) ? this.#text(text.slice(0, -CUT.length), true) + CUT : this.#text(text, false);
  }

  #text(text, cut) {
    const found = [];
    for (const [form, name] of this.#needles) {
      for (let at = text.indexOf(form); at >= 0; at = text.indexOf(form, at + form.length)) {
        found.push([at, at + form.length, name]);
      }
      const begun = cut ? beginsAtEnd(text, form) : -1;
      if (begun >= 0) found.push([begun, text.length, name]);
    }
    if (found.length === 0) return text;
    found.sort((a, b) => a[0] - b[0] || b[1] - a[1]);
    let result = '', end = 0;
    for (const [from, to, name] of found) {
      // Of two that overlap both are gone, under the name of the first.
      if (from >= end) result += `${text.slice(end, from)}[secret ${name}]`;
      end = Math.max(end, to);
    }
    return result + text.slice(end);
  }
}

function formsOf(value) {
  const forms = new Set();
  const add = (form, least = MIN_LENGTH) => {
    if (form.length < least) return;
    forms.add(form);
    forms.add(quoted(form));
    forms.add(quoted(quoted(form)));
  };
  if (value.length < MIN_LENGTH) return forms;
  add(value);
  add(value.trim());
  for (const line of value.split(/[\r\n]+/)) add(line.trim(), MIN_LINE);
  if (value.length > MAX_ENCODED) return forms;
  const percent = encodeURIComponent(value);
  add(percent);
  add(percent.replace(/%../g, (code) => code.toLowerCase()));
  add(encodeURI(value));
  add(new URLSearchParams({ v: value }).toString().slice(2));
  const bytes = Buffer.from(value);
  add(bytes.toString('hex'));
  add(bytes.toString('hex').toUpperCase());
  for (let offset = 0; offset < 3; offset++) {
    // The characters that hold bits of the value only.
    const text = Buffer.concat([Buffer.alloc(offset), bytes]).toString('base64');
    const inner = text.slice(Math.ceil((offset * 8) / 6), Math.floor(((offset + bytes.length) * 8) / 6));
    add(inner, MIN_BASE64);
    add(inner.replaceAll('+', '-').replaceAll('/', '_'), MIN_BASE64);
  }
  return forms;
}

// As inside a JSON string.
function quoted(text) {
  return JSON.stringify(text).slice(1, -1);
}

// Where the text's last characters begin that are the first ones of `form`; -1 when they are none.
function beginsAtEnd(text, form) {
  const head = form.slice(0, MIN_LENGTH);
  for (let at = text.indexOf(head, text.length - form.length + 1); at >= 0; at = text.indexOf(head, at + 1)) {
    if (form.startsWith(text.slice(at))) return at;
  }
  return -1;
}
