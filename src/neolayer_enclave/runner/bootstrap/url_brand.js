// Whether a value is a URL object, without loading what makes them: before it is loaded there are none.

let known = null;

// brand: { isUrl(value), isSearchParams(value), searchParamsText(value) }
export function urlsLoaded(brand) {
  known = brand;
}

export function isSearchParams(value) {
  return known !== null && known.isSearchParams(value);
}

export function searchParamsText(value) {
  return known.searchParamsText(value);
}
