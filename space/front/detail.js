// One cell large, or one expression's agreement: zoom, every view that there is, which words matter, differences.

import { extraMap } from "./comparison.js";
import { count, make, percent, time } from "./dom.js";
import { COLOURS, SCALE, drawDifference, drawHeat, drawOutline, drawPicture, fit } from "./draw.js";
import { call } from "./server.js";

const STEP = 1.4; // of the zoom

export class Detail {
  /** @param changed called when a threshold was changed here */
  constructor(dialog, changed) {
    Object.assign(this, { dialog, changed });
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  }

  open(comparison, model, e) {
    Object.assign(this, { comparison, model, e, view: model ? "outlines" : "votes", zoom: 1, x: 0.5, y: 0.5, other: null, rank: 0, pair: null });
    this.build();
    if (!this.dialog.open) this.dialog.showModal();
    this.draw();
  }

  build() {
    const { comparison, model, e } = this;
    const title = model ? `${model.title}: ${comparison.expressions[e]}` : `Agreement: ${comparison.expressions[e]}`;
    this.canvas = make("canvas", {
      tabindex: 0, role: "img", class: "ris-large", "aria-label": `${title}. Plus and minus zoom, arrows move`,
      wheel: (event) => (event.preventDefault(), this.zoomBy(event.deltaY < 0 ? 1.15 : 1 / 1.15, event)),
      keydown: (event) => this.key(event),
      pointerdown: (event) => this.canvas.setPointerCapture(event.pointerId),
      pointermove: (event) => event.buttons && this.move(-event.movementX, -event.movementY),
    });
    this.side = make("div", { class: "ris-side" });
    this.dialog.replaceChildren(
      make("header", {},
        make("h2", { id: "ris-dialog-title", dir: "auto", style: { "--ris-colour": COLOURS[e % COLOURS.length] } }, title),
        ...this.steps(),
        make("button", { type: "button", class: "ris-plain", click: () => this.dialog.close() }, "Close"),
      ),
      make("div", { class: "ris-dialog-body" },
        make("div", { class: "ris-stage" }, this.canvas, this.zoomButtons()),
        this.side,
      ),
    );
    this.buildSide();
  }

  /** Buttons to the next model and expression. */
  steps() {
    const { comparison, model, e } = this;
    const go = (models, expressions) => () => {
      const list = comparison.answered;
      const next = model ? list[(list.indexOf(model) + models + list.length) % list.length] : null;
      const number = comparison.expressions.length;
      this.open(comparison, next, (e + expressions + number) % number);
    };
    const button = (text, label, models, expressions) => make("button", { type: "button", class: "ris-plain", "aria-label": label, title: label, click: go(models, expressions) }, text);
    return [
      ...(model && comparison.answered.length > 1 ? [button("←", "Previous model", -1, 0), button("→", "Next model", 1, 0)] : []),
      ...(comparison.expressions.length > 1 ? [button("↑", "Previous expression", 0, -1), button("↓", "Next expression", 0, 1)] : []),
    ];
  }

  zoomButtons() {
    const button = (text, label, click) => make("button", { type: "button", class: "ris-plain", "aria-label": label, click }, text);
    return make("div", { class: "ris-zoom", role: "group", "aria-label": "Zoom" },
      button("+", "Zoom in", () => this.zoomBy(STEP)),
      button("−", "Zoom out", () => this.zoomBy(1 / STEP)),
      button("1:1", "1:1, the whole picture", () => this.zoomBy(0)),
    );
  }

  buildSide() {
    const { comparison, model } = this;
    this.side.replaceChildren(
      make("div", { class: "ris-views", role: "group", "aria-label": "View" }, this.viewButtons()),
      ...(model ? this.modelSide() : [this.pairTable()]),
    );
    if (model) this.measureText();
    else this.note.textContent = comparison.agreed(this.e, true) ? this.agreementText() : "";
  }

  /** Only views that this model and picture have. */
  viewsOf() {
    const { comparison, model, e } = this;
    if (!model) return [["votes", "Votes"], ...(this.pair ? [["pair", "Difference"]] : [])];
    const cell = model.cells[e];
    return [
      ["outlines", "Outline"],
      ["probability", "Probability"],
      ...(comparison.truth[e] ? [["errors", "Errors"]] : []),
      ...(cell.location ? [["location", "Location"]] : []),
      ...(cell.queries.length ? [["queries", "Queries"]] : []),
      ...(comparison.answered.length > 1 ? [["difference", "Difference"]] : []),
    ];
  }

  viewButtons() {
    return this.viewsOf().map(([view, name]) =>
      make("button", {
        type: "button", "aria-pressed": String(view === this.view),
        click: () => {
          this.view = view;
          this.buildSide();
          this.draw();
          [...this.side.querySelectorAll(".ris-views button")].find((button) => button.textContent === name)?.focus();
        },
      }, name));
  }

  modelSide() {
    const { comparison, model, e } = this;
    this.facts = make("dl", { class: "ris-list" });
    const threshold = comparison.thresholdOf(model);
    const value = make("output", {}, threshold.toFixed(2));
    const slider = make("input", {
      type: "range", min: 0, max: 1, step: 0.01, value: threshold, disabled: comparison.common !== null, "aria-label": `Threshold of ${model.title}`,
      input: () => {
        model.threshold = Number(slider.value);
        value.textContent = model.threshold.toFixed(2);
        this.measureText();
        this.draw();
        this.changed();
      },
    });
    this.note = make("p", { class: "ris-soft" });
    return [
      ...this.choices(),
      this.note,
      make("label", { class: "ris-slider" }, "Threshold", slider, value),
      this.facts,
      ...model.cells[e].remarks.map((remark) => make("p", { class: "ris-remark", dir: "auto" }, remark)),
      this.words(),
    ];
  }

  /** What a view lets one choose: which query, or which other model. */
  choices() {
    const { comparison, model, e, view } = this;
    const cell = model.cells[e];
    if (view === "queries")
      return [make("label", {}, "Query ", make("select", { change: (event) => (this.rank = Number(event.target.value), this.draw()) },
        cell.scores.map((score, k) => make("option", { value: k, selected: k === this.rank }, `${k + 1}, counts ${score.toFixed(2)}`))))];
    if (view === "difference") {
      this.other ??= comparison.answered.find((one) => one !== model);
      return [make("label", {}, "Compared with ", make("select", {
        change: (event) => {
          this.other = comparison.answered.find((one) => one.key === event.target.value);
          this.measureText();
          this.draw();
        },
      }, comparison.answered.filter((one) => one !== model).map((one) => make("option", { value: one.key, selected: one === this.other }, one.title))))];
    }
    return [];
  }

  measureText() {
    const { comparison, model, e } = this;
    const { area, score, iou, right } = comparison.measured(model, e);
    const rows = [
      ...(iou === null ? [] : [["IoU with the truth", `${iou.toFixed(3)}, ${right ? "right" : "wrong"}`]]),
      ["Score", area ? `${score.toFixed(3)}, the mean probability inside the mask` : "nothing found"],
      ["Covers", `${(100 * area).toFixed(1)}% of the picture`],
      ["Time", `${time(model.seconds)} for ${model.together === 1 ? "one expression" : `${model.together} expressions together`}`],
      ["Parameters", count(model.parameters)],
    ];
    this.facts.replaceChildren(...rows.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
    const phrase = model.cells[e].phrase;
    this.note.textContent = {
      outlines: "The border of the mask; the picture keeps its colours.",
      probability: "How probable each pixel is, from dark to bright.",
      errors: "White: right. Blue: too much. Orange: missed.",
      location: `Where the model looked before it segmented${phrase ? `, for “${phrase}”` : ""}.`,
      queries: "The mask of one query, before they are weighed.",
      difference: `Blue: only ${model.title}. Orange: only ${this.other?.title}. White: both.`,
    }[this.view];
    this.note.style.setProperty("--ris-scale", ["probability", "location", "queries"].includes(this.view) ? SCALE : "none");
  }

  words() {
    const { comparison, model, e } = this;
    const cell = model.cells[e];
    const line = make("p", { class: "ris-words", dir: "auto", "aria-live": "polite" }, wordSpans(cell.words ?? []));
    const button = make("button", { type: "button", class: "ris-plain", click: async () => {
      button.disabled = true;
      line.textContent = "Leaving out each word in turn…";
      try {
        const request = { picture: comparison.source, expression: comparison.expressions[e], model: model.key, threshold: comparison.thresholdOf(model) };
        cell.words = await call("words", request);
        line.replaceChildren(...wordSpans(cell.words));
      } catch (error) {
        line.textContent = error.message;
      }
      button.disabled = false;
    } }, "Which words matter?");
    return make("div", { class: "ris-words-box" }, button, line);
  }

  // agreement

  agreementText() {
    const agreed = this.comparison.agreed(this.e, true);
    const number = agreed.agree.filter(Boolean).length;
    const odd = agreed.odd === null ? "" : ` ${agreed.models[agreed.odd].title} is the odd one out.`;
    const pair = this.pair ? ` Blue: only ${this.pair[0].title}. Orange: only ${this.pair[1].title}. White: both.` : "";
    return `${number} of ${agreed.models.length} models agree with the majority (IoU at least 0.5).${odd}${this.view === "pair" ? pair : ""}`;
  }

  pairTable() {
    const agreed = this.comparison.agreed(this.e, true);
    this.note = make("p", {});
    const names = agreed.models.map((model) => model.title);
    const head = make("tr", {}, make("td", {}), names.map((name) => make("th", { scope: "col" }, make("span", {}, name))));
    const rows = agreed.pairs.map((row, a) => make("tr", {}, make("th", { scope: "row" }, names[a], a === agreed.odd ? make("b", { class: "ris-bad" }, " odd") : null),
      row.map((value, b) => make("td", {}, a === b ? "" : make("button", {
        type: "button", "aria-label": `${names[a]} and ${names[b]}: IoU ${value.toFixed(2)}. Show the difference`, style: { "--ris-share": value },
        click: () => {
          this.pair = [agreed.models[a], agreed.models[b]];
          this.view = "pair";
          this.buildSide();
          this.draw();
          this.side.querySelector(".ris-views [aria-pressed=true]")?.focus();
        },
      }, value.toFixed(2))))));
    return make("div", {}, this.note, make("h3", {}, "IoU of every two"), make("div", { class: "ris-pairs" }, make("table", {}, make("thead", {}, head), make("tbody", {}, rows))));
  }

  // drawing

  async draw() {
    const { comparison, model, e, view } = this;
    const { picture } = comparison;
    const stage = this.canvas.parentElement;
    const room = Math.min(stage.clientWidth, (Math.max(240, window.innerHeight - 190) * picture.width) / picture.height);
    const context = fit(this.canvas, picture, Math.max(120, room));
    this.canvas.style.width = `${Math.max(120, room)}px`;
    const span = 1 / this.zoom;
    this.x = Math.min(1 - span / 2, Math.max(span / 2, this.x));
    this.y = Math.min(1 - span / 2, Math.max(span / 2, this.y));
    const { width, height } = this.canvas;
    const asked = (this.asked = {});
    const paint = await this.painter(model, e, view);
    if (asked !== this.asked) return;
    context.setTransform(this.zoom, 0, 0, this.zoom, (0.5 - this.x * this.zoom) * width, (0.5 - this.y * this.zoom) * height);
    paint(context);
  }

  async painter(model, e, view) {
    const { comparison } = this;
    const { picture } = comparison;
    const line = (2.2 * (window.devicePixelRatio || 1)) / this.zoom;
    if (!model) {
      const agreed = comparison.agreed(e, true);
      if (view === "pair") return (context) => this.paintDifference(context, this.pair[0], this.pair[1]);
      return (context) => drawHeat(context, picture, agreed.votes, agreed.models.length);
    }
    const cell = model.cells[e];
    const threshold = comparison.thresholdOf(model);
    if (view === "location" || view === "queries") {
      const map = await extraMap(cell, view, this.rank);
      return (context) => drawHeat(context, picture, map);
    }
    if (view === "probability") return (context) => drawHeat(context, picture, cell.map);
    if (view === "errors") return (context) => drawDifference(context, picture, cell.map, threshold, comparison.truth[e], 0.5);
    if (view === "difference") return (context) => this.paintDifference(context, model, this.other);
    return (context) => {
      drawPicture(context, picture);
      if (comparison.truth[e]) drawOutline(context, comparison.truth[e], 0.5, "#fff", line / 2, false);
      drawOutline(context, cell.map, threshold, COLOURS[e % COLOURS.length], line);
    };
  }

  paintDifference(context, one, other) {
    const { comparison, e } = this;
    drawDifference(context, comparison.picture, one.cells[e].map, comparison.thresholdOf(one), other.cells[e].map, comparison.thresholdOf(other));
  }

  zoomBy(factor, event) {
    const before = this.zoom;
    this.zoom = factor === 0 ? 1 : Math.min(12, Math.max(1, this.zoom * factor));
    if (event) {
      const box = this.canvas.getBoundingClientRect(); // what lies under the pointer stays there
      const shift = 1 / before - 1 / this.zoom;
      this.x += ((event.clientX - box.left) / box.width - 0.5) * shift;
      this.y += ((event.clientY - box.top) / box.height - 0.5) * shift;
    }
    this.draw();
  }

  move(right, down) {
    const box = this.canvas.getBoundingClientRect();
    this.x += right / box.width / this.zoom;
    this.y += down / box.height / this.zoom;
    this.draw();
  }

  key(event) {
    const moves = { ArrowLeft: [-40, 0], ArrowRight: [40, 0], ArrowUp: [0, -40], ArrowDown: [0, 40] };
    if (event.key === "+" || event.key === "=") this.zoomBy(STEP);
    else if (event.key === "-") this.zoomBy(1 / STEP);
    else if (event.key === "0") this.zoomBy(0);
    else if (moves[event.key]) this.move(...moves[event.key]);
    else return;
    event.preventDefault();
  }
}

/** Words shaded by how much of the mask changes without them, the number beneath. */
function wordSpans(words) {
  return words.map(({ word, change }) => make("span", { style: { "--ris-share": change ?? 0 }, title: change === null ? "not tried" : `without it ${percent(change)} of the mask changes` },
    word, make("small", {}, change === null ? "–" : percent(change))));
}
