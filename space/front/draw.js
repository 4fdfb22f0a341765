// Pictures on canvases: outlines that leave the picture's colours true, heat over grey, errors, votes, differences.

import { joined, outline, resize } from "./maps.js";

export const COLOURS = ["#e11d48", "#2563eb", "#d97706", "#059669", "#9333ea", "#0891b2", "#c2410c", "#be185d"]; // per expression
const ANCHORS = [[13, 8, 60], [72, 12, 120], [150, 32, 122], [218, 72, 92], [250, 140, 60], [252, 210, 90], [255, 252, 200]];
const HEAT = Array.from({ length: 256 }, (_, level) => {
  const place = (level / 255) * (ANCHORS.length - 1);
  const low = Math.min(ANCHORS.length - 2, Math.floor(place));
  const colour = ANCHORS[low].map((value, k) => value + (ANCHORS[low + 1][k] - value) * (place - low));
  return [...colour, 0.55 + (0.35 * level) / 255]; // and how much of the picture it covers
});
export const ONLY_ONE = [37, 99, 235]; // differences and errors: blue, orange and white part for every eye
export const ONLY_OTHER = [234, 88, 12];
const BOTH = [255, 255, 255];
const DIFFERENCE = [null, ONLY_ONE, ONLY_OTHER, BOTH].map((colour) => colour && [...colour, 0.75]); // by bits

/** Fit a canvas to the picture at a width in CSS pixels; returns its context. */
export function fit(canvas, picture, width) {
  const ratio = window.devicePixelRatio || 1;
  const height = Math.max(1, Math.round((width * picture.height) / picture.width));
  const size = [Math.max(1, Math.round(width * ratio)), Math.max(1, Math.round(height * ratio))];
  if (canvas.width !== size[0] || canvas.height !== size[1]) [canvas.width, canvas.height] = size; // else no new layout
  const context = canvas.getContext("2d");
  context.setTransform(1, 0, 0, 1, 0, 0);
  return context;
}

export function drawPicture(context, picture) {
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, context.canvas.width, context.canvas.height);
}

/** A mask's border in a colour between two thin light lines, seen on every ground. `width` in canvas pixels. */
export function drawOutline(context, map, threshold, colour, width, halo = true) {
  const across = context.canvas.width / map.width;
  const down = context.canvas.height / map.height;
  const path = new Path2D();
  for (const line of joined(outline(map, threshold))) {
    path.moveTo(line[0] * across, line[1] * down);
    for (let k = 2; k < line.length; k += 2) path.lineTo(line[k] * across, line[k + 1] * down);
  }
  context.lineJoin = context.lineCap = "round";
  const strokes = halo ? [["#fff", 2.1], [colour, 1]] : [[colour, 1]];
  for (const [style, times] of strokes) {
    context.strokeStyle = style;
    context.lineWidth = width * times;
    context.stroke(path);
  }
}

/** A map at a canvas's size, made once for each size. */
export function atSize(map, width, height) {
  map.sizes ??= new Map();
  const key = `${width}x${height}`;
  if (!map.sizes.has(key)) {
    if (map.sizes.size > 2) map.sizes.clear();
    map.sizes.set(key, width < map.width ? resize(map, width, height) : map);
  }
  return map.sizes.get(key);
}

/** The picture in grey under colours; `colourOf(k)` gives [r, g, b, weight] for the map's pixel k, or null. */
function drawColours(context, picture, width, height, colourOf) {
  const layer = new OffscreenCanvas(width, height);
  const pen = layer.getContext("2d", { willReadFrequently: true });
  pen.drawImage(picture, 0, 0, width, height);
  const image = pen.getImageData(0, 0, width, height);
  const pixels = image.data;
  for (let k = 0; k < width * height; k++) {
    const at = 4 * k;
    const grey = 0.3 * pixels[at] + 0.59 * pixels[at + 1] + 0.11 * pixels[at + 2];
    const colour = colourOf(k);
    if (colour === null) {
      pixels[at] = pixels[at + 1] = pixels[at + 2] = 0.6 * grey + 40;
      continue;
    }
    const ground = grey * (1 - colour[3]);
    pixels[at] = ground + colour[0] * colour[3];
    pixels[at + 1] = ground + colour[1] * colour[3];
    pixels[at + 2] = ground + colour[2] * colour[3];
  }
  pen.putImageData(image, 0, 0);
  context.imageSmoothingQuality = "high";
  context.drawImage(layer, 0, 0, context.canvas.width, context.canvas.height);
}

/** A map from 0 to `most` as heat. */
export function drawHeat(context, picture, map, most = 255) {
  const small = most === 255 ? atSize(map, Math.min(map.width, context.canvas.width), Math.min(map.height, context.canvas.height)) : map;
  drawColours(context, picture, small.width, small.height, (k) => HEAT[Math.round((255 * small.values[k]) / most)]);
}

/** Where two masks differ: blue only the first, orange only the second, white both. Levels in 0 to 1. */
export function drawDifference(context, picture, one, levelOne, other, levelOther) {
  drawColours(context, picture, one.width, one.height, (k) => {
    return DIFFERENCE[(one.values[k] > 255 * levelOne ? 1 : 0) + (other.values[k] > 255 * levelOther ? 2 : 0)];
  });
}

/** The heat's scale as a CSS gradient. */
export const SCALE = `linear-gradient(90deg, ${ANCHORS.map((anchor) => `rgb(${anchor})`).join(", ")})`;
