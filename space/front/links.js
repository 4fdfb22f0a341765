// A comparison of an example picture in the page's address, so that a link shows the same again.

const NAMES = ["example", "find", "model", "threshold", "view"];

/** What the address asks for: { example, expressions, models, threshold, view }, null or empty where it says nothing. */
export function readLink(address = window.location.href) {
  const query = new URL(address).searchParams;
  const threshold = Number.parseFloat(query.get("threshold") ?? "");
  return {
    example: query.get("example"),
    expressions: query.getAll("find"),
    models: query.getAll("model"),
    threshold: threshold >= 0 && threshold <= 1 ? threshold : null,
    view: query.get("view"),
  };
}

/** The address of a comparison; without an example, one that asks for nothing. */
export function linkTo({ example, expressions, models, threshold, view }, address = window.location.href) {
  const url = new URL(address);
  for (const name of NAMES) url.searchParams.delete(name);
  if (!example) return url.href;
  url.searchParams.set("example", example);
  for (const text of expressions) url.searchParams.append("find", text);
  for (const key of models) url.searchParams.append("model", key);
  if (threshold !== null) url.searchParams.set("threshold", String(threshold));
  if (view && view !== "outlines") url.searchParams.set("view", view);
  return url.href;
}
