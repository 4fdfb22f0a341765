// Pictures on canvases: outlines that leave the picture's colours true, heat over grey, errors, votes, differences.

import { outline, resize } from "./maps.js";

export const COLOURS = ["#e11d48", "#2563eb", "#d97706", "#059669", "#9333ea", "#0891b2", "#c2410c", "#be185d"]; // per expression
const ANCHORS = [[13, 8, 60], [72, 12, 120], [150, 32, 122], [218, 72, 92], [250, 140, 60], [252, 210, 90], [255, 252, 200]];
const HEAT = table(Array.from({ length: 256 }, (_, level) => {
  const place = (level / 255) * (ANCHORS.length - 1);
  const low = Math.min(ANCHORS.length - 2, Math.floor(place));
  const colour = ANCHORS[low].map((value, k) => value + (ANCHORS[low + 1][k] - value) * (place - low));
  return [...colour, 0.55 + (0.35 * level) / 255]; // and how much of the picture it covers
}));
const ONLY_ONE = [37, 99, 235]; // differences and errors: blue, orange and white part for every eye
const ONLY_OTHER = [234, 88, 12];
const DIFFERENCE = table([[100, 100, 100, 0.4], [...ONLY_ONE, 0.75], [...ONLY_OTHER, 0.75], [255, 255, 255, 0.75]]); // by bits

/** Colours [r, g, b, weight] -> for each how much of each channel is added to how much of the grey picture. */
function table(colours) {
  return Float32Array.from(colours.flatMap(([red, green, blue, weight]) => [red * weight, green * weight, blue * weight, 1 - weight]));
}

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
  for (const line of outline(map, threshold)) {
    path.moveTo(line[0] * across, line[1] * down);
    for (let k = 2; k < line.length; k += 2) path.lineTo(line[k] * across, line[k + 1] * down);
    path.closePath();
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

const layer = { canvas: null, pen: null, image: null };

/** The layer that colours are put together on, of a size. */
function layerOf(width, height) {
  layer.canvas ??= new OffscreenCanvas(width, height);
  layer.pen ??= layer.canvas.getContext("2d", { willReadFrequently: true });
  if (layer.canvas.width !== width || layer.canvas.height !== height) Object.assign(layer.canvas, { width, height });
  if (layer.image?.width !== width || layer.image.height !== height) layer.image = layer.pen.createImageData(width, height);
  return layer;
}

const greys = new WeakMap(); // picture -> size -> its grey values, for the sizes drawn last

function greyOf(picture, width, height) {
  if (!greys.has(picture)) greys.set(picture, new Map());
  const sizes = greys.get(picture);
  const key = `${width}x${height}`;
  if (sizes.has(key)) return sizes.get(key);
  const { pen } = layerOf(width, height);
  pen.drawImage(picture, 0, 0, width, height);
  const pixels = pen.getImageData(0, 0, width, height).data;
  const grey = new Uint8Array(width * height);
  for (let k = 0, at = 0; k < grey.length; k++, at += 4) grey[k] = 0.3 * pixels[at] + 0.59 * pixels[at + 1] + 0.11 * pixels[at + 2];
  if (sizes.size > 2) sizes.clear();
  sizes.set(key, grey);
  return grey;
}

/** The picture in grey under colours of a `table`; `levels` names each pixel's. */
function drawColours(context, picture, width, height, levels, colours) {
  const grey = greyOf(picture, width, height);
  const { canvas, pen, image } = layerOf(width, height);
  const pixels = image.data;
  for (let k = 0, at = 0; k < levels.length; k++, at += 4) {
    const colour = 4 * levels[k];
    const ground = grey[k] * colours[colour + 3];
    pixels[at] = ground + colours[colour];
    pixels[at + 1] = ground + colours[colour + 1];
    pixels[at + 2] = ground + colours[colour + 2];
    pixels[at + 3] = 255;
  }
  pen.putImageData(image, 0, 0);
  context.imageSmoothingQuality = "high";
  context.drawImage(canvas, 0, 0, context.canvas.width, context.canvas.height);
}

/** A map from 0 to `most` as heat. */
export function drawHeat(context, picture, map, most = 255) {
  const small = most === 255 ? atSize(map, Math.min(map.width, context.canvas.width), Math.min(map.height, context.canvas.height)) : map;
  const levels = most === 255 ? small.values : small.values.map((value) => Math.round((255 * value) / most));
  drawColours(context, picture, small.width, small.height, levels, HEAT);
}

/** Where two masks differ: blue only the first, orange only the second, white both. Levels in 0 to 1. */
export function drawDifference(context, picture, one, levelOne, other, levelOther) {
  const levels = new Uint8Array(one.values.length);
  const [first, second] = [255 * levelOne, 255 * levelOther];
  for (let k = 0; k < levels.length; k++) levels[k] = (one.values[k] > first ? 1 : 0) | (other.values[k] > second ? 2 : 0);
  drawColours(context, picture, one.width, one.height, levels, DIFFERENCE);
}

/** The heat's scale as a CSS gradient. */
export const SCALE = `linear-gradient(90deg, ${ANCHORS.map((anchor) => `rgb(${anchor})`).join(", ")})`;
