// fetch, Request and Response, https://fetch.spec.whatwg.org/. The enclave makes the requests.

import { abandon, ask, current, FETCH } from './calls.js';
import { arrived, copyOf, extract, isEmpty, leaving, noBody, readBuffer, readBytes, readJson, readText, streamOf } from './bodies.js';
import { signals } from './events.js';
import { coded } from './failures.js';
import { Headers, headersOf } from './headers.js';
import { addView } from './inspect.js';
import {
  floor, indexOf, NumberClass, parse, PromiseClass, RangeErrorClass, StringClass, stringify, TypeErrorClass, upper,
} from './intrinsics.js';

const NULL_BODY = [101, 103, 204, 205, 304];
// Every parser of URLs agrees about a URL of these alone.
const PLAIN = 'abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~:/?&=+,@!$()*;#';
const METHODS = ' DELETE GET HEAD OPTIONS PATCH POST PUT ';
const key = {};

export class Request {
  #url;
  #method = 'GET';
  #headers;
  #body = noBody();
  #redirect = 'follow';
  #signal = null;

  constructor(input, options = undefined, fromFetch = undefined) {
    const init = options ?? { __proto__: null };
    const other = typeof input === 'object' && input !== null && #url in input ? input : null;
    if (other !== null) {
      this.#url = other.#url;
      this.#method = other.#method;
      this.#redirect = other.#redirect;
      this.#signal = other.#signal;
    } else {
      this.#url = absolute(StringClass(input), fromFetch !== key);
    }
    const { method, headers, body, redirect, signal } = init;
    if (method !== undefined) {
      const name = upper(StringClass(method));
      if (indexOf(METHODS, ` ${name} `) < 0 || indexOf(name, ' ') >= 0) throw invalid(`method ${name} is not supported`);
      this.#method = name;
    }
    this.#headers = new Headers(headers ?? other?.#headers);
    if (redirect !== undefined) {
      if (redirect !== 'follow' && redirect !== 'error' && redirect !== 'manual') {
        throw invalid('redirect is follow, error or manual');
      }
      this.#redirect = redirect;
    }
    if (signal !== undefined) {
      if (signal !== null && !signals.is(signal)) throw invalid('signal is an AbortSignal');
      this.#signal = signal;
    }
    if (body !== undefined && body !== null) {
      const given = extract(body);
      if (this.#method === 'GET' || this.#method === 'HEAD') throw invalid(`a ${this.#method} request has no body`);
      this.#body = given.body;
      if (given.type !== null && !headersOf.has(this.#headers, 'content-type')) {
        headersOf.set(this.#headers, 'content-type', given.type);
      }
    } else if (other !== null && !isEmpty(other.#body)) {
      this.#body = copyOf(other.#body);
      other.#body.used = true;
    }
  }

  get url() { return this.#url; }
  get method() { return this.#method; }
  get headers() { return this.#headers; }
  get redirect() { return this.#redirect; }
  get body() { return streamOf(this.#body); }
  get bodyUsed() { return this.#body.used; }

  get signal() {
    this.#signal ??= signals.make();
    return this.#signal;
  }

  clone() {
    const body = copyOf(this.#body), copy = new Request(this.#url, { method: this.#method, headers: this.#headers }, key);
    copy.#body = body;
    copy.#redirect = this.#redirect;
    copy.#signal = this.#signal;
    return copy;
  }

  async text() { return readText(this.#body); }
  async json() { return readJson(this.#body); }
  async bytes() { return readBytes(this.#body); }
  async arrayBuffer() { return readBuffer(this.#body); }

  // Makes the request for the running call.
  static send(request, resolve, reject) {
    const call = current, signal = request.#signal, body = copyOf(request.#body);
    if (signal !== null && signals.isAborted(signal)) {
      reject(signals.reason(signal));
      return;
    }
    const leave = leaving(body);
    if (leave !== null) request.#body.used = true;
    const text = `{"url":${stringify(request.#url)},"method":"${request.#method}","headers":${headersOf.text(request.#headers)},` +
      `"redirect":"${request.#redirect}","has_body":${leave !== null}}`;
    let stop = null;
    const done = () => {
      if (stop !== null) signals.remove(signal, stop);
    };
    const seq = ask(call, FETCH, text, leave, {
      __proto__: null, resolve, reject,
      accept: (answer, content) => {
        done();
        return makeResponse(parse(answer), content, request.#method);
      },
      refuse: (said) => {
        done();
        return coded(new TypeErrorClass(said.message), said.code);
      },
    });
    if (signal !== null) {
      stop = () => {
        abandon(call, seq);
        reject(signals.reason(signal));
      };
      signals.add(signal, stop);
    }
  }

  static {
    addView((value) => #url in value ? `Request { ${value.#method} ${value.#url} }` : undefined);
  }
}
const { send } = Request;
delete Request.send;

export class Response {
  #status = 200;
  #reason = '';
  #headers;
  #body = noBody();
  #url = '';
  #redirected = false;
  #type = 'default';

  constructor(body = null, options = undefined) {
    const { status, statusText, headers } = options ?? { __proto__: null };
    if (status !== undefined) {
      const number = floor(NumberClass(status));
      if (!(number >= 200 && number <= 599)) throw new RangeErrorClass('the status of a response is 200 to 599');
      this.#status = number;
    }
    if (statusText !== undefined) {
      const reason = StringClass(statusText);
      for (let i = 0; i < reason.length; i++) {
        if (reason[i] === '\n' || reason[i] === '\r' || reason[i] > 'ÿ') throw new TypeErrorClass('invalid statusText');
      }
      this.#reason = reason;
    }
    this.#headers = new Headers(headers);
    if (body !== null && body !== undefined) {
      if (hasNoBody(this.#status)) throw new TypeErrorClass(`a response of status ${this.#status} has no body`);
      const given = extract(body);
      this.#body = given.body;
      if (given.type !== null && !headersOf.has(this.#headers, 'content-type')) {
        headersOf.set(this.#headers, 'content-type', given.type);
      }
    }
  }

  static json(value, options = undefined) {
    const text = stringify(value);
    if (text === undefined) throw new TypeErrorClass('the value is not JSON');
    const response = new Response(text, options);
    const { headers } = options ?? { __proto__: null };
    if (headers === undefined || !headersOf.has(new Headers(headers), 'content-type')) {
      headersOf.set(response.#headers, 'content-type', 'application/json');
    }
    return response;
  }

  static error() {
    const response = new Response();
    response.#type = 'error';
    response.#status = 0;
    response.#headers = headersOf.of([]);
    return response;
  }

  static redirect(url, status = 302) {
    if (status !== 301 && status !== 302 && status !== 303 && status !== 307 && status !== 308) {
      throw new RangeErrorClass('the status of a redirect is 301, 302, 303, 307 or 308');
    }
    const response = new Response(null, { status });
    response.#headers = headersOf.of([['location', absolute(StringClass(url), true)]]);
    return response;
  }

  get status() { return this.#status; }
  get statusText() { return this.#reason; }
  get ok() { return this.#status >= 200 && this.#status < 300; }
  get headers() { return this.#headers; }
  get url() { return this.#url; }
  get redirected() { return this.#redirected; }
  get type() { return this.#type; }
  get body() { return streamOf(this.#body); }
  get bodyUsed() { return this.#body.used; }

  clone() {
    const copy = new Response();
    copy.#body = copyOf(this.#body);
    copy.#status = this.#status;
    copy.#reason = this.#reason;
    copy.#headers = new Headers(this.#headers);
    copy.#url = this.#url;
    copy.#redirected = this.#redirected;
    copy.#type = this.#type;
    return copy;
  }

  async text() { return readText(this.#body); }
  async json() { return readJson(this.#body); }
  async bytes() { return readBytes(this.#body); }
  async arrayBuffer() { return readBuffer(this.#body); }

  // Of what the enclave says about an answer.
  static made(said, content, method) {
    const response = new Response();
    response.#status = said.status;
    response.#reason = said.reason;
    response.#url = said.url;
    response.#redirected = said.redirected;
    response.#headers = headersOf.of(said.headers);
    response.#type = 'basic';
    if (method !== 'HEAD' && !hasNoBody(said.status)) response.#body = arrived(content);
    return response;
  }

  static {
    addView((value) => #status in value ? `Response { status: ${value.#status}, url: '${value.#url}' }` : undefined);
  }
}
const { made: makeResponse } = Response;
delete Response.made;

export function fetch(input, init = undefined) {
  return new PromiseClass((resolve, reject) => send(new Request(input, init, key), resolve, reject));
}

function hasNoBody(status) {
  for (let i = 0; i < NULL_BODY.length; i++) if (NULL_BODY[i] === status) return true;
  return false;
}

// The normal form of an absolute URL. That of most URLs that are fetched is found by the enclave, which saves the
// isolate its parser.
function absolute(text, now) {
  let plain = !now;
  for (let i = 0; plain && i < text.length; i++) plain = indexOf(PLAIN, text[i]) >= 0;
  if (plain) return text;
  try {
    return require('./url.js').normalized(text);
  } catch {
    throw invalid('fetch takes absolute http and https URLs');
  }
}

function invalid(message) {
  return coded(new TypeErrorClass(message), 'invalid_request');
}
