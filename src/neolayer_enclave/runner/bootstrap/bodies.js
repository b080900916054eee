// The bodies of requests and responses: whole, never streams.

import { coded } from './failures.js';
import { bufferOf, bytesOf, charCodeAt, copyBytes, parse, slice, TypeErrorClass } from './intrinsics.js';
import { byteString, decode, encode } from './utf8.js';
import { isSearchParams, searchParamsText } from './url_brand.js';

// { text, bytes, used }: one of text and bytes, or neither for no body. Text is what its UTF-8 would decode to,
// a byte order mark included; bytes are a copy of ours.
export function noBody() {
  return { __proto__: null, text: null, bytes: null, used: false };
}

// What an author gives as a body. Returns { body, type }, the type being the content type that goes with it.
export function extract(value) {
  const body = noBody();
  if (value === undefined || value === null) return { body, type: null };
  if (typeof value === 'string') {
    body.text = value;
    return { body, type: 'text/plain;charset=UTF-8' };
  }
  if (isSearchParams(value)) {
    body.text = searchParamsText(value);
    return { body, type: 'application/x-www-form-urlencoded;charset=UTF-8' };
  }
  const bytes = typeof value === 'object' ? bytesOf(value) : null;
  if (bytes === null) {
    throw coded(new TypeErrorClass('a body is a string, an ArrayBuffer, a view of one, or URLSearchParams'), 'invalid_request');
  }
  body.bytes = copyBytes(bytes);
  return { body, type: null };
}

// The body of an answer, as it comes into the isolate.
export function arrived(content) {
  const body = noBody();
  if (typeof content === 'string') body.text = content;
  else body.bytes = bytesOf(content);
  return body;
}

export function copyOf(body) {
  if (body.used) throw new TypeErrorClass('the body was read before');
  return { __proto__: null, text: body.text, bytes: body.bytes, used: false };
}

// As `ask` sends it.
export function leaving(body) {
  if (body.text !== null) return { __proto__: null, form: 't', text: body.text };
  return body.bytes === null ? null : { __proto__: null, form: 'b', text: byteString(body.bytes) };
}

function use(body) {
  if (isEmpty(body)) return;
  if (body.used) throw new TypeErrorClass('the body was read before');
  body.used = true;
}

export function isEmpty(body) {
  return body.text === null && body.bytes === null;
}

export function readText(body) {
  use(body);
  const text = body.text ?? (body.bytes === null ? '' : decode(body.bytes));
  return text !== '' && charCodeAt(text, 0) === 0xfeff ? slice(text, 1) : text;
}

export function readBytes(body) {
  use(body);
  return body.text !== null ? encode(body.text) : copyBytes(body.bytes ?? encode(''));
}

export function readJson(body) {
  return parse(readText(body));
}

export function readBuffer(body) {
  return bufferOf(readBytes(body));
}

// `request.body` and `response.body`: what reads them expects a stream.
export function streamOf(body) {
  if (isEmpty(body)) return null;
  throw coded(
    new TypeErrorClass('bodies are not streams here: read them by text(), json(), arrayBuffer() or bytes()'), 'not_supported',
  );
}
