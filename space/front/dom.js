// Making and finding elements.

/** An element with attributes (functions listen, false leaves out, true sets bare) and children (text or elements). */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (name === "style") for (const [key, one] of Object.entries(value)) element.style.setProperty(key, one);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** All `data-part` elements under a root, by name. */
export function partsOf(root) {
  return Object.fromEntries([...root.querySelectorAll("[data-part]")].map((element) => [element.dataset.part, element]));
}

export function percent(share) {
  return share === null ? "" : `${Math.round(100 * share)}%`;
}

export function count(number) {
  for (const [size, unit] of [[1e9, "B"], [1e6, "M"], [1e3, "K"]]) if (number >= size) return `${(number / size).toFixed(1)} ${unit}`;
  return String(number);
}

export function time(seconds) {
  return seconds < 1 ? `${Math.round(1000 * seconds)} ms` : `${seconds.toFixed(1)} s`;
}

export function plural(number, one) {
  return `${number} ${one}${number === 1 ? "" : "s"}`;
}
