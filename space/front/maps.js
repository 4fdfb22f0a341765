// Arithmetic on 8-bit maps: no DOM but the decoding. A map is { width, height, values: Uint8Array }.

/** A grey picture's address -> its map. */
export async function decode(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  const { naturalWidth: width, naturalHeight: height } = image;
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, width, height).data;
  const values = new Uint8Array(width * height);
  for (let k = 0; k < values.length; k++) values[k] = pixels[4 * k];
  return { width, height, values };
}

/** A map at another size, bilinear. */
export function resize(map, width, height) {
  if (width === map.width && height === map.height) return map;
  const values = new Uint8Array(width * height);
  const columns = samples(map.width, width);
  const rows = samples(map.height, height);
  for (let y = 0, k = 0; y < height; y++) {
    const top = rows.low[y] * map.width;
    const bottom = rows.high[y] * map.width;
    const down = rows.share[y];
    for (let x = 0; x < width; x++, k++) {
      const left = columns.low[x];
      const right = columns.high[x];
      const along = columns.share[x];
      const above = map.values[top + left] * (1 - along) + map.values[top + right] * along;
      const below = map.values[bottom + left] * (1 - along) + map.values[bottom + right] * along;
      values[k] = above * (1 - down) + below * down + 0.5;
    }
  }
  return { width, height, values };
}

function samples(from, to) {
  const low = new Int32Array(to);
  const high = new Int32Array(to);
  const share = new Float32Array(to);
  for (let k = 0; k < to; k++) {
    const place = Math.min(from - 1, Math.max(0, ((k + 0.5) * from) / to - 0.5));
    low[k] = Math.floor(place);
    high[k] = Math.min(from - 1, low[k] + 1);
    share[k] = place - low[k];
  }
  return { low, high, share };
}

/**
 * The border of the mask `values > 255 * threshold` as segments x0, y0, x1, y1, in the map's pixels, between pixels where
 * the map crosses the threshold (marching squares); outside the map there is no mask.
 */
export function outline(map, threshold) {
  const { width, height, values } = map;
  const level = 255 * threshold + 1e-3;
  const segments = [];
  const cross = (a, b) => (level - a) / (b - a);
  for (let y = -1; y < height; y++) {
    let a = 0;
    let d = 0;
    for (let x = -1; x < width; x++) {
      const inside = x + 1 < width;
      const b = inside && y >= 0 ? values[y * width + x + 1] : 0;
      const c = inside && y + 1 < height ? values[(y + 1) * width + x + 1] : 0;
      const kind = (a > level ? 1 : 0) | (b > level ? 2 : 0) | (c > level ? 4 : 0) | (d > level ? 8 : 0);
      if (kind !== 0 && kind !== 15) {
        const x0 = x + 0.5;
        const y0 = y + 0.5;
        const ends = {
          top: () => [x0 + cross(a, b), y0],
          right: () => [x0 + 1, y0 + cross(b, c)],
          bottom: () => [x0 + cross(d, c), y0 + 1],
          left: () => [x0, y0 + cross(a, d)],
        };
        for (const [from, to] of SIDES[kind]) segments.push(...ends[from](), ...ends[to]());
      }
      a = b;
      d = c;
    }
  }
  return segments;
}

/** Segments of `outline` joined at their ends: arrays of x, y, x, y, ... */
export function joined(segments) {
  const ends = new Map(); // a point -> the segments that end there, two at most
  const keyOf = (at) => Math.round(segments[at] * 512) * 4194304 + Math.round(segments[at + 1] * 512);
  for (let at = 0; at < segments.length; at += 2) {
    const key = keyOf(at);
    const known = ends.get(key);
    if (known === undefined) ends.set(key, [at]);
    else known.push(at);
  }
  const used = new Uint8Array(segments.length / 4);
  const lines = [];
  for (let first = 0; first < used.length; first++) {
    if (used[first]) continue;
    const line = [segments[4 * first], segments[4 * first + 1]];
    let at = 4 * first + 2; // the end that is reached
    for (;;) {
      used[at >> 2] = 1;
      line.push(segments[at], segments[at + 1]);
      const next = ends.get(keyOf(at)).find((other) => !used[other >> 2]);
      if (next === undefined) break;
      at = next ^ 2; // the other end of that segment
    }
    lines.push(line);
  }
  return lines;
}

const SIDES = [
  [], [["left", "top"]], [["top", "right"]], [["left", "right"]], [["right", "bottom"]],
  [["left", "top"], ["right", "bottom"]], [["top", "bottom"]], [["left", "bottom"]], [["left", "bottom"]],
  [["top", "bottom"]], [["left", "bottom"], ["top", "right"]], [["right", "bottom"]], [["left", "right"]],
  [["top", "right"]], [["left", "top"]], [],
];

/**
 * What is needed to measure a map's mask at any threshold without looking at its pixels again: for each value, how many
 * pixels have more (`above`), their sum, and how many of them are true; without a true mask `trueAbove` is null.
 */
export function tally(map, truth) {
  const counts = new Uint32Array(256);
  const trueCounts = truth ? new Uint32Array(256) : null;
  let trueArea = 0;
  for (let k = 0; k < map.values.length; k++) {
    counts[map.values[k]]++;
    if (truth && truth.values[k] > 127) {
      trueCounts[map.values[k]]++;
      trueArea++;
    }
  }
  const above = new Float64Array(256);
  const sumAbove = new Float64Array(256);
  const trueAbove = truth ? new Float64Array(256) : null;
  for (let value = 254; value >= 0; value--) {
    above[value] = above[value + 1] + counts[value + 1];
    sumAbove[value] = sumAbove[value + 1] + counts[value + 1] * (value + 1);
    if (truth) trueAbove[value] = trueAbove[value + 1] + trueCounts[value + 1];
  }
  return { pixels: map.values.length, above, sumAbove, trueAbove, trueArea };
}

/** Of the mask above a threshold: its share of the picture, mean probability in it, IoU with the truth (null without). */
export function measure(tallied, threshold) {
  const value = Math.floor(255 * threshold);
  const area = tallied.above[value];
  const both = tallied.trueAbove?.[value];
  const either = tallied.trueArea + area - both;
  return {
    area: area / tallied.pixels,
    score: area ? tallied.sumAbove[value] / area / 255 : 0,
    iou: tallied.trueAbove ? (either ? both / either : 1) : null,
  };
}

/**
 * How far several models' masks agree, each cut at its own threshold.
 * @returns votes, a map whose values count the models; `agree` per model whether its mask has an IoU of at least 0.5 with
 *   the majority's; `pairs` the IoU of every two; `odd` the index of the one that agrees least, null where none stands out
 */
export function agreement(maps, thresholds) {
  const number = maps.length;
  const { width, height } = maps[0];
  const marks = new Uint32Array(width * height); // bit m: model m's mask has this pixel
  maps.forEach((map, m) => {
    const level = 255 * thresholds[m];
    for (let k = 0; k < marks.length; k++) if (map.values[k] > level) marks[k] |= 1 << m;
  });
  const kinds = new Map(); // how many pixels are marked by exactly these models
  for (const mark of marks) kinds.set(mark, (kinds.get(mark) ?? 0) + 1);
  const bits = new Map([...kinds.keys()].map((mark) => [mark, maps.map((_, m) => (mark >>> m) & 1)]));
  const votesOf = new Map([...bits].map(([mark, one]) => [mark, one.reduce((sum, bit) => sum + bit, 0)]));
  const overlap = (first, second) => {
    let both = 0;
    let either = 0;
    for (const [mark, pixels] of kinds) {
      const [one, other] = [first(mark), second(mark)];
      if (one && other) both += pixels;
      if (one || other) either += pixels;
    }
    return either ? both / either : 1;
  };
  const has = (m) => (mark) => bits.get(mark)[m];
  const agree = maps.map((_, m) => overlap(has(m), (mark) => 2 * votesOf.get(mark) > number) >= 0.5);
  const pairs = maps.map((_, a) => maps.map((_, b) => (a === b ? 1 : overlap(has(a), has(b)))));
  const means = pairs.map((row) => (row.reduce((sum, value) => sum + value, 0) - 1) / Math.max(1, number - 1));
  const least = means.indexOf(Math.min(...means));
  const others = means.filter((_, m) => m !== least);
  const odd = number > 2 && !agree[least] && Math.min(...others) - means[least] > 0.1 ? least : null;
  const values = Uint8Array.from(marks, (mark) => votesOf.get(mark));
  return { votes: { width, height, values }, agree, pairs, odd };
}
