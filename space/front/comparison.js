// One picture, its expressions and what each model said: the state that matrix and large view draw.

import { agreement, decode, measure, resize, tally } from "./maps.js";

const RIGHT = 0.5; // IoU from which an answer counts as right, as in Pr@0.5
const AGREEMENT_SIDE = 112; // pixels of the maps that agreement is counted on while a threshold slides

export class Comparison {
  /**
   * @param picture  an ImageBitmap; `source` is what events take for it, `example` its name or null
   * @param models   entries of the page, in their order
   */
  constructor({ picture, source, example, models }) {
    Object.assign(this, { picture, source, example, expressions: [], truth: [], size: null, common: null });
    this.models = models.map((entry) => ({ ...entry, state: "waiting", cells: [], threshold: 0.5, own: 0.5 }));
  }

  /** Take in a message of the server; returns the model that it is about, or null. */
  async take(message) {
    if (message.kind === "start") {
      if (this.size) return null; // of the second queue
      this.expressions = message.expressions;
      const [width, height] = message.map;
      this.size = { width, height };
      this.truth = await Promise.all(message.truth.map((url) => (url ? decode(url) : null)));
      return null;
    }
    const model = this.models.find((one) => one.key === message.model);
    if (message.kind === "failure") Object.assign(model, { state: "failed", sentence: message.sentence });
    else {
      const cells = await Promise.all(
        message.cells.map(async (cell, e) => {
          const map = await decode(cell.probability);
          return { ...cell, map, tallied: tally(map, this.truth[e]) };
        }),
      );
      const { seconds, together, threshold, parameters } = message;
      Object.assign(model, { state: "answered", seconds, together, threshold, own: threshold, parameters, cells });
    }
    return model;
  }

  get hasTruth() {
    return this.truth.some(Boolean);
  }

  get answered() {
    return this.models.filter((model) => model.state === "answered");
  }

  thresholdOf(model) {
    return this.common ?? model.threshold;
  }

  /** Area, score, IoU and whether it is right, of a model's mask for an expression. */
  measured(model, e) {
    const found = measure(model.cells[e].tallied, this.thresholdOf(model));
    return { ...found, right: found.iou === null ? null : found.iou >= RIGHT };
  }

  /** The mean over the expressions of a model's IoU or score; null where there is none. */
  mean(model, name) {
    const values = model.cells.map((_, e) => this.measured(model, e)[name]).filter((value) => value !== null);
    return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
  }

  /** Agreement of the answered models on an expression; `whole` counts on every pixel. Null for fewer than two. */
  agreed(e, whole = false) {
    const models = this.answered;
    if (models.length < 2) return null;
    const maps = models.map((model) => (whole ? model.cells[e].map : small(model.cells[e].map)));
    return { models, ...agreement(maps, models.map((model) => this.thresholdOf(model))) };
  }

  /** The models in the order of a column: name, iou, score or time; those without an answer last. */
  ordered(by) {
    const rank = (model) => {
      if (model.state !== "answered") return Number.POSITIVE_INFINITY;
      if (by === "time") return model.seconds;
      if (by === "iou" || by === "score") return -(this.mean(model, by) ?? 0);
      return 0;
    };
    return this.models.map((model, k) => [rank(model), k, model]).sort((a, b) => a[0] - b[0] || a[1] - b[1]).map((row) => row[2]);
  }
}

function small(map) {
  const scale = Math.min(1, AGREEMENT_SIDE / Math.max(map.width, map.height));
  map.small ??= resize(map, Math.max(1, Math.round(map.width * scale)), Math.max(1, Math.round(map.height * scale)));
  return map.small;
}

/** The large view's further maps of a cell, decoded when they are first wanted. */
export async function extraMap(cell, name, rank = 0) {
  const key = `${name}${rank}`;
  cell.extra ??= {};
  cell.extra[key] ??= await decode(name === "location" ? cell.location : cell.queries[rank]);
  return cell.extra[key];
}
