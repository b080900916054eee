// URL and URLSearchParams of the package whatwg-url. Loaded when first used.

import { addView } from './inspect.js';
import { StringClass, stringify } from './intrinsics.js';
import { urlsLoaded } from './url_brand.js';

const library = require('whatwg-url/webidl2js-wrapper.js');
const made = { Array, Object, Promise, String, TypeError };
library.URL.install(made, ['Window']);
library.URLSearchParams.install(made, ['Window']);

export const { URL, URLSearchParams } = made;
const { is: isUrl } = library.URL;
const { is: isSearchParams } = library.URLSearchParams;

urlsLoaded({ __proto__: null, isSearchParams, searchParamsText: (value) => StringClass(value) });

export function normalized(text) {
  return new URL(text).href;
}

addView((value) => {
  if (isUrl(value)) return `URL ${stringify(value.href)}`;
  return isSearchParams(value) ? `URLSearchParams ${stringify(StringClass(value))}` : undefined;
});
