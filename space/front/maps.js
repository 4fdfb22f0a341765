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
 * The border of the mask `values > 255 * threshold` as closed lines, each an array of x, y, x, y, ... in the map's pixels,
 * between pixels where the map crosses the threshold (marching squares); outside the map there is no mask.
 *
 * A border crosses a square of four pixels from side to side, and each side belongs to two squares: so a side's number
 * (2 * square + 1 for its left one, 2 * square for its top one) names a point, and two tables join it to its neighbours.
 */
export function outline(map, threshold) {
  const across = map.width + 2; // squares in a row, the last for its left side alone
  const values = padded(map);
  const level = 255 * threshold + 1e-3;
  const { before, after, x: xs, y: ys } = sides(2 * across * (map.height + 2));
  const met = [];
  const join = (from, to) => {
    if (before[from] < 0) before[from] = to;
    else after[from] = to;
    if (before[to] < 0) before[to] = from;
    else after[to] = from;
  };
  for (let y = 0; y <= map.height; y++) {
    for (let x = 0, at = y * across; x <= map.width; x++, at++) {
      const a = values[at];
      const b = values[at + 1];
      const c = values[at + across + 1];
      const d = values[at + across];
      const kind = (a > level ? 1 : 0) | (b > level ? 2 : 0) | (c > level ? 4 : 0) | (d > level ? 8 : 0);
      if (kind === 0 || kind === 15) continue;
      const top = 2 * at;
      const left = top + 1;
      const right = left + 2;
      const bottom = top + 2 * across;
      if ((kind & 1) !== ((kind >> 1) & 1)) {
        xs[top] = x - 0.5 + (level - a) / (b - a);
        ys[top] = y - 0.5;
        met.push(top);
      }
      if ((kind & 1) !== (kind >> 3)) {
        xs[left] = x - 0.5;
        ys[left] = y - 0.5 + (level - a) / (d - a);
        met.push(left);
      }
      switch (kind < 8 ? kind : 15 - kind) {
        case 1: join(left, top); break;
        case 2: join(top, right); break;
        case 3: join(left, right); break;
        case 4: join(right, bottom); break;
        case 5: kind === 5 ? (join(left, top), join(right, bottom)) : (join(left, bottom), join(top, right)); break;
        case 6: join(top, bottom); break;
        default: join(left, bottom);
      }
    }
  }
  const lines = [];
  for (const first of met) {
    if (before[first] < 0) continue; // walked already
    const line = [];
    for (let at = first, from = before[first]; before[at] >= 0; ) {
      line.push(xs[at], ys[at]);
      const next = before[at] === from ? after[at] : before[at];
      before[at] = -1;
      from = at;
      at = next;
    }
    lines.push(line);
  }
  return lines;
}

/** A map's values with a row or column of nothing on every side, made once. */
function padded(map) {
  if (map.padded) return map.padded;
  const across = map.width + 2;
  map.padded = new Uint8Array(across * (map.height + 2));
  for (let y = 0; y < map.height; y++) map.padded.set(map.values.subarray(y * map.width, (y + 1) * map.width), (y + 1) * across + 1);
  return map.padded;
}

const room = { size: 0 };

/** Tables for so many sides, the same for every outline; `before` is -1 everywhere, as each outline leaves it. */
function sides(size) {
  if (room.size < size)
    Object.assign(room, { size, before: new Int32Array(size).fill(-1), after: new Int32Array(size), x: new Float32Array(size), y: new Float32Array(size) });
  return room;
}

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
    const bit = 1 << m;
    const { values } = map;
    for (let k = 0; k < marks.length; k++) if (values[k] > level) marks[k] |= bit;
  });
  const kinds = new Map(); // how many pixels are marked by exactly these models
  const values = new Uint8Array(marks.length);
  for (let k = 0; k < marks.length; ) {
    const mark = marks[k];
    const start = k;
    while (k < marks.length && marks[k] === mark) k++; // neighbours are mostly alike
    kinds.set(mark, (kinds.get(mark) ?? 0) + k - start);
    if (mark) values.fill(ones(mark), start, k);
  }
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
  const has = (m) => (mark) => (mark >>> m) & 1;
  const agree = maps.map((_, m) => overlap(has(m), (mark) => 2 * ones(mark) > number) >= 0.5);
  const pairs = maps.map((_, a) => maps.map((_, b) => (a === b ? 1 : overlap(has(a), has(b)))));
  const means = pairs.map((row) => (row.reduce((sum, value) => sum + value, 0) - 1) / Math.max(1, number - 1));
  const least = means.indexOf(Math.min(...means));
  const others = means.filter((_, m) => m !== least);
  const odd = number > 2 && !agree[least] && Math.min(...others) - means[least] > 0.1 ? least : null;
  return { votes: { width, height, values }, agree, pairs, odd };
}

/** How many bits of a number are set. */
function ones(mark) {
  let number = 0;
  for (let rest = mark; rest; rest &= rest - 1) number++;
  return number;
}
