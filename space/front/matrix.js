// The comparison as a table: rows are expressions, columns models; truth first, agreement last.

import { count, make, time } from "./dom.js";
import { COLOURS, atSize, drawDifference, drawHeat, drawOutline, drawPicture, fit } from "./draw.js";

const MIN_COLUMN = 84; // CSS pixels, below which the table scrolls

export class Matrix {
  /**
   * @param container where the table goes
   * @param open      called with (model or null for agreement, number of the expression) when a cell is chosen
   */
  constructor(container, open) {
    Object.assign(this, { container, open, comparison: null, view: "outlines", order: "name", alone: null });
    this.width = 0;
    this.changed = new Set();
    new ResizeObserver(() => this.resized()).observe(container);
  }

  show(comparison) {
    this.comparison = comparison;
    this.alone = null;
    this.container.classList.remove("ris-alone");
    this.build();
  }

  resized() {
    if (this.comparison && Math.abs(this.container.clientWidth - this.width) > 4) this.redraw();
  }

  /** Make the table anew: a new comparison, another order. */
  build() {
    const { comparison } = this;
    this.models = comparison.ordered(this.order);
    this.cells = new Map();
    const agreement = comparison.models.length > 1;
    const columns = 1 + (comparison.hasTruth ? 1 : 0) + this.models.length + (agreement ? 1 : 0);
    const head = make("tr", {}, make("th", { scope: "col", class: "ris-corner" }, "Expression"));
    if (comparison.hasTruth) head.append(make("th", { scope: "col" }, make("span", { class: "ris-name" }, "Truth")));
    this.heads = new Map(this.models.map((model) => [model, this.headOf(model)]));
    head.append(...this.heads.values());
    if (agreement) head.append(make("th", { scope: "col" }, make("span", { class: "ris-name" }, "Agreement")));
    const body = make("tbody", {}, comparison.expressions.map((text, e) => this.rowOf(text, e, agreement)));
    const table = make("table", { class: "ris-matrix", style: { "min-width": `${130 + MIN_COLUMN * (columns - 1)}px` } }, make("thead", {}, head), body);
    this.container.replaceChildren(table);
    this.redraw();
  }

  headOf(model) {
    const name = make("span", { class: "ris-name", title: model.title }, model.title);
    const facts = make("span", { class: "ris-facts" });
    const slider = make("input", {
      type: "range", min: 0, max: 1, step: 0.01, value: model.threshold, disabled: true,
      "aria-label": `Threshold of ${model.title}`,
      input: (event) => {
        model.threshold = Number(event.target.value);
        this.redrawSoon([model]);
      },
    });
    return make("th", { scope: "col", "data-model": model.key }, name, facts, slider);
  }

  rowOf(text, e, agreement) {
    const { comparison } = this;
    const alone = make("button", {
      type: "button", class: "ris-expression", dir: "auto", "aria-pressed": "false",
      title: `${text} — show this expression alone`,
      click: () => this.showAlone(this.alone === e ? null : e),
    }, text);
    const sum = make("span", { class: "ris-sum" });
    const row = make("tr", { style: { "--ris-colour": COLOURS[e % COLOURS.length] } }, make("th", { scope: "row" }, alone, sum));
    if (comparison.hasTruth) row.append(make("td", { "data-label": "Truth" }, this.plainCell("truth", e)));
    for (const model of this.models) row.append(make("td", { "data-label": model.title }, this.modelCell(model, e)));
    if (agreement) row.append(make("td", { "data-label": "Agreement", class: "ris-agreement" }, this.agreementCell(e)));
    return row;
  }

  plainCell(name, e) {
    const canvas = make("canvas", { role: "img", "aria-label": this.comparison.truth[e] ? `True mask of: ${this.comparison.expressions[e]}` : "The truth is not known" });
    this.cells.set(`${name} ${e}`, { canvas });
    return [make("div", { class: "ris-cell" }, canvas), make("span", { class: "ris-caption" }, this.comparison.truth[e] ? "" : "not known")];
  }

  modelCell(model, e) {
    const canvas = make("canvas", { "aria-hidden": "true" });
    const button = make("button", { type: "button", class: "ris-cell ris-waiting", disabled: true, click: () => this.open(model, e) }, canvas);
    const caption = make("span", { class: "ris-caption" });
    this.cells.set(`${model.key} ${e}`, { canvas, button, caption });
    return [button, caption];
  }

  agreementCell(e) {
    const canvas = make("canvas", { "aria-hidden": "true" });
    const button = make("button", { type: "button", class: "ris-cell ris-waiting", disabled: true, click: () => this.open(null, e) }, canvas);
    const caption = make("span", { class: "ris-caption" });
    this.cells.set(`agreement ${e}`, { canvas, button, caption });
    return [button, caption];
  }

  /** One expression's row alone, its pictures larger; null shows all again. */
  showAlone(e) {
    this.alone = e;
    this.container.classList.toggle("ris-alone", e !== null);
    [...this.container.querySelectorAll("tbody tr")].forEach((row, k) => {
      row.hidden = e !== null && k !== e;
      row.querySelector(".ris-expression").setAttribute("aria-pressed", String(k === e));
    });
    this.redraw();
  }

  /** Draw models' cells anew in the next frame, and agreement in the one after it; several calls until then are one. */
  redrawSoon(models = this.models) {
    for (const model of models) this.changed.add(model);
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      for (const model of this.changed) if (this.models.includes(model)) this.redrawModel(model);
      this.changed.clear();
      this.later ??= requestAnimationFrame(() => {
        this.later = null;
        this.redrawAgreement();
      });
    });
  }

  redraw() {
    this.measureColumns();
    this.comparison.expressions.forEach((_, e) => this.drawTruth(e));
    for (const model of this.models) this.redrawModel(model);
    this.redrawAgreement();
  }

  drawTruth(e) {
    const cell = this.cells.get(`truth ${e}`);
    if (!cell) return;
    const context = this.begin(cell.canvas);
    const truth = this.comparison.truth[e];
    if (truth) this.drawMask(context, truth, 0.5, COLOURS[e % COLOURS.length]);
  }

  /** How wide cells are, read once for all of them, and the picture at that size. */
  measureColumns() {
    this.width = this.container.clientWidth;
    const cell = this.container.querySelector("tr:not([hidden]) td .ris-cell");
    this.column = cell?.clientWidth || MIN_COLUMN;
    this.ground = new OffscreenCanvas(1, 1);
    drawPicture(fit(this.ground, this.comparison.picture, this.column), this.comparison.picture);
  }

  /** The picture on a canvas as wide as its column. */
  begin(canvas) {
    const context = fit(canvas, this.comparison.picture, this.column);
    context.drawImage(this.ground, 0, 0);
    return context;
  }

  drawMask(context, map, threshold, colour) {
    const sized = atSize(map, context.canvas.width, context.canvas.height);
    drawOutline(context, sized, threshold, colour, 1.6 * (window.devicePixelRatio || 1));
  }

  redrawModel(model) {
    const { comparison } = this;
    this.drawHead(model);
    comparison.expressions.forEach((text, e) => {
      const cell = this.cells.get(`${model.key} ${e}`);
      if (!cell || cell.canvas.closest("tr").hidden) return;
      const context = this.begin(cell.canvas);
      cell.button.classList.toggle("ris-waiting", model.state === "waiting");
      cell.button.disabled = model.state !== "answered";
      cell.button.classList.toggle("ris-failed", model.state === "failed");
      if (model.state === "waiting") cell.button.setAttribute("aria-label", `${model.title} has not answered yet`);
      else if (model.state === "failed") this.drawFailure(model, cell, e);
      else this.drawAnswer(context, model, cell, text, e);
    });
  }

  drawHead(model) {
    const [, facts, slider] = this.heads.get(model).children;
    const { comparison } = this;
    slider.disabled = model.state !== "answered" || comparison.common !== null;
    slider.value = comparison.thresholdOf(model);
    if (model.state === "waiting") facts.textContent = "waiting…";
    if (model.state === "failed") facts.textContent = "no answer";
    if (model.state !== "answered") return;
    const iou = comparison.mean(model, "iou");
    facts.textContent = `${iou === null ? "" : `IoU ${iou.toFixed(2)} · `}${time(model.seconds)}`;
    facts.title = `${count(model.parameters)} parameters; ${time(model.seconds)} for the picture and ${model.together} expressions, loading left out; threshold ${comparison.thresholdOf(model).toFixed(2)}`;
    slider.title = `Threshold ${comparison.thresholdOf(model).toFixed(2)}`;
  }

  drawFailure(model, cell, e) {
    cell.button.setAttribute("aria-label", `${model.title}: ${model.sentence}`);
    cell.caption.className = "ris-caption ris-sentence";
    cell.caption.textContent = e === 0 || this.alone === e ? model.sentence : "no answer";
  }

  drawAnswer(context, model, cell, text, e) {
    const { comparison, view } = this;
    const threshold = comparison.thresholdOf(model);
    const { map } = model.cells[e];
    const truth = comparison.truth[e];
    if (view === "probability") drawHeat(context, comparison.picture, map);
    else if (view === "errors" && truth) {
      const size = [context.canvas.width, context.canvas.height];
      drawDifference(context, comparison.picture, atSize(map, ...size), threshold, atSize(truth, ...size), 0.5);
    } else this.drawMask(context, map, threshold, COLOURS[e % COLOURS.length]);
    const { area, score, iou, right } = comparison.measured(model, e);
    const told = `${area} ${score} ${iou}`;
    if (cell.told === told) return; // only the picture has changed
    cell.told = told;
    const said = area ? `score ${score.toFixed(2)}` : "nothing found";
    const verdict = right === null ? "" : `IoU ${iou.toFixed(2)}, ${right ? "right" : "wrong"}, `;
    cell.button.setAttribute("aria-label", `${model.title}, ${text}: ${verdict}${said}. Show large`);
    cell.button.title = `${model.title}: ${verdict}${said}`;
    cell.button.classList.toggle("ris-wrong", right === false);
    cell.caption.className = "ris-caption";
    if (!cell.mark) cell.caption.replaceChildren((cell.mark = make("b")), (cell.score = make("span")));
    cell.mark.className = right ? "ris-good" : "ris-bad";
    cell.mark.textContent = right === null ? "" : `${right ? "✓" : "✗"} ${iou.toFixed(2)}`;
    cell.score.textContent = area ? score.toFixed(2) : "nothing";
  }

  redrawAgreement() {
    const { comparison } = this;
    comparison.expressions.forEach((text, e) => {
      this.drawSum(e);
      const cell = this.cells.get(`agreement ${e}`);
      if (!cell || cell.canvas.closest("tr").hidden) return;
      const context = this.begin(cell.canvas);
      const agreed = comparison.agreed(e);
      cell.button.disabled = agreed === null;
      cell.button.classList.toggle("ris-waiting", agreed === null && comparison.models.some((model) => model.state === "waiting"));
      if (!agreed) return;
      drawHeat(context, comparison.picture, agreed.votes, agreed.models.length);
      const number = agreed.agree.filter(Boolean).length;
      const odd = agreed.odd === null ? "" : `; ${agreed.models[agreed.odd].title} is the odd one out`;
      cell.button.setAttribute("aria-label", `${number} of ${agreed.models.length} models agree on ${text}${odd}. Show large`);
      cell.caption.textContent = `${number} of ${agreed.models.length} agree`;
      agreed.models.forEach((model, m) => {
        this.cells.get(`${model.key} ${e}`).button.classList.toggle("ris-odd", m === agreed.odd);
      });
    });
  }

  drawSum(e) {
    const { comparison } = this;
    const sum = this.container.querySelectorAll(".ris-sum")[e];
    if (!comparison.truth[e]) return;
    const right = comparison.answered.filter((model) => comparison.measured(model, e).right).length;
    sum.textContent = comparison.answered.length ? `${right} of ${comparison.answered.length} right` : "";
  }
}
