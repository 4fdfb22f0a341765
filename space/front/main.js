// The page's comparison: asks, listens to answers, and keeps address, threshold, order and view in step with them.

import { Ask } from "./ask.js";
import { Comparison } from "./comparison.js";
import { Detail } from "./detail.js";
import { make, partsOf, plural, time } from "./dom.js";
import { linkTo, readLink } from "./links.js";
import { Matrix } from "./matrix.js";
import { call } from "./server.js";

const PHONE = 720; // CSS pixels, below which the result is scrolled to

class Page {
  constructor(root, config) {
    this.parts = partsOf(root);
    this.matrix = new Matrix(this.parts.matrix, (model, e) => this.detail.open(this.comparison, model, e));
    this.detail = new Detail(this.parts.dialog, () => this.matrix.redrawSoon());
    this.comparison = null;
    this.asked = "";
    this.stopper = null;
    this.ask = new Ask(this.parts, config, { changed: (run = false) => this.changed(run), told: (sentence) => this.tell(sentence) });
    this.listen();
    this.begin(readLink(), config);
  }

  listen() {
    const { parts } = this;
    const run = () => this.segment(true);
    parts.segment.addEventListener("click", run);
    parts.again.addEventListener("click", run);
    parts.stop.addEventListener("click", () => this.stopper?.abort());
    parts.text.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      run();
    });
    const threshold = () => {
      this.comparison.common = parts.common.checked ? Number(parts.threshold.value) : null;
      parts.threshold.disabled = !parts.common.checked;
      parts["threshold-value"].textContent = Number(parts.threshold.value).toFixed(2);
      this.matrix.redrawSoon();
    };
    parts.common.addEventListener("change", () => (threshold(), this.writeLink()));
    parts.threshold.addEventListener("input", threshold);
    parts.threshold.addEventListener("change", () => this.writeLink());
    parts.order.addEventListener("change", () => {
      this.matrix.order = parts.order.value;
      this.matrix.build();
    });
    parts.link.addEventListener("click", () => this.copyLink());
    for (const button of parts.toolbar.querySelectorAll("[data-take]")) button.addEventListener("click", () => this.take(button));
  }

  /** What a link asks for, or the first example: answered before anybody clicks. */
  async begin(link, config) {
    const known = config.models.map((model) => model.key);
    if (link.models.some((key) => known.includes(key))) this.ask.setChosen(link.models);
    if (link.threshold !== null) {
      this.parts.common.checked = true;
      this.parts.threshold.disabled = false;
      this.parts.threshold.value = link.threshold;
      this.parts["threshold-value"].textContent = link.threshold.toFixed(2);
    }
    if (link.view) this.matrix.view = link.view;
    const example = config.examples.find((one) => one.name === link.example) ?? config.examples[0];
    await this.ask.chooseExample(example.name, link.example && link.expressions.length ? link.expressions : null, false);
    this.segment(false);
  }

  // asking

  request() {
    const { ask } = this;
    return JSON.stringify([ask.source, ask.expressions, ask.entries.map((model) => model.key)]);
  }

  changed(run) {
    const { parts } = this;
    const banner = this.ask.banner();
    parts.banner.hidden = !banner;
    parts.banner.classList.toggle("ris-urgent", Boolean(banner?.urgent));
    parts.banner.replaceChildren(...(banner?.nodes ?? []));
    const stale = this.comparison !== null && this.request() !== this.asked;
    parts.stale.hidden = !stale;
    parts.results.classList.toggle("ris-is-stale", stale);
    if (run) this.segment(true);
  }

  tell(sentence) {
    this.parts.notice.hidden = !sentence;
    this.parts.notice.textContent = sentence;
  }

  async segment(clicked) {
    const { ask, parts } = this;
    this.stopper?.abort();
    this.tell("");
    if (!ask.picture) return this.tell("There is no picture yet: upload one, paste one, or choose an example.");
    if (!ask.expressions.length) return this.tell("There is no expression yet: write what to find, such as “the red umbrella on the left”.");
    if (!ask.entries.length) return this.tell("No model is chosen: choose at least one.");
    const stopper = (this.stopper = new AbortController());
    const comparison = new Comparison({ picture: ask.picture, source: ask.source, example: ask.example?.name ?? null, models: ask.entries });
    comparison.common = parts.common.checked ? Number(parts.threshold.value) : null;
    const asked = this.request();
    this.busy(true);
    const start = performance.now();
    try {
      await this.listenTo(comparison, asked, stopper, clicked, start);
      this.finish(comparison, (performance.now() - start) / 1000);
    } catch (error) {
      if (this.stopper !== stopper) return; // another comparison has begun
      if (error.name === "AbortError") this.finish(comparison, null);
      else this.tell(error.message);
    }
    if (this.stopper === stopper) this.busy(false);
  }

  /** Both queues at once: that of the bundled models, and that of all others, which may be slow. */
  async listenTo(comparison, asked, stopper, clicked, start) {
    const request = { picture: comparison.source, expressions: this.ask.expressions, models: comparison.models.map((model) => model.key) };
    let taking = Promise.resolve();
    const onMessage = (message) => {
      taking = taking.then(async () => {
        const model = await comparison.take(message);
        if (this.stopper !== stopper) return;
        if (message.kind === "start" && this.comparison !== comparison) this.begun(comparison, asked, clicked);
        if (model) this.answered(comparison, model, start);
      });
    };
    const queues = [];
    if (comparison.models.some((model) => model.bundled)) queues.push("compare");
    if (comparison.models.some((model) => !model.bundled)) queues.push("compare_visiting");
    try {
      await Promise.all(queues.map((name) => call(name, request, { onMessage, signal: stopper.signal })));
    } finally {
      await taking;
    }
  }

  begun(comparison, asked, clicked) {
    const { parts } = this;
    Object.assign(this, { comparison, asked });
    parts.toolbar.hidden = false;
    if (this.matrix.view === "errors" && !comparison.hasTruth) this.matrix.view = "outlines";
    this.listViews();
    this.listOrders();
    this.matrix.show(comparison);
    this.changed(false);
    this.writeLink();
    if (clicked && window.innerWidth < PHONE) parts.results.scrollIntoView({ behavior: "smooth", block: "start" });
  }

  answered(comparison, model, start) {
    const done = comparison.models.filter((one) => one.state !== "waiting").length;
    this.progress(done, comparison.models.length, `${done} of ${comparison.models.length}`);
    performance.measure(`answer ${done}`, { start, end: performance.now() });
    this.matrix.redrawModel(model);
    this.matrix.redrawAgreement();
  }

  finish(comparison, seconds) {
    for (const model of comparison.models) if (model.state === "waiting") Object.assign(model, { state: "failed", sentence: "Stopped." });
    if (this.comparison !== comparison) return;
    if (this.matrix.order !== "name") this.matrix.build();
    else this.matrix.redraw();
    const models = comparison.answered.length;
    const end = seconds === null ? "stopped" : `in ${time(seconds)}`;
    this.progress(models, models, `${plural(models, "model")} ${end}`);
    this.parts.status.textContent = `${plural(models, "model")} answered ${plural(comparison.expressions.length, "expression")} ${end}. ${this.summary(comparison)}`;
  }

  /** What is announced to those who do not see the table. */
  summary(comparison) {
    return comparison.expressions.map((text, e) => {
      const agreed = comparison.agreed(e);
      const right = comparison.truth[e] ? `, ${comparison.answered.filter((model) => comparison.measured(model, e).right).length} right` : "";
      return agreed ? `${text}: ${agreed.agree.filter(Boolean).length} of ${agreed.models.length} agree${right}.` : "";
    }).join(" ");
  }

  progress(value, most, text) {
    this.parts["progress-bar"].max = Math.max(1, most);
    this.parts["progress-bar"].value = value;
    this.parts["progress-text"].textContent = text;
  }

  busy(on) {
    const { parts } = this;
    parts.stop.hidden = !on;
    parts.segment.classList.toggle("ris-running", on);
    parts.results.setAttribute("aria-busy", String(on));
    parts["progress-bar"].hidden = !on;
    if (on) this.progress(0, 1, "asking…");
  }

  // looking

  listViews() {
    const views = [["outlines", "Outlines"], ["probability", "Probability"], ...(this.comparison.hasTruth ? [["errors", "Errors"]] : [])];
    const legends = {
      outlines: "Colours of the picture stay true; ✓ and ✗ stand for an IoU of at least 0.5 with the truth, the number on the right is the score (mean probability inside the mask). A cell opens large.",
      probability: "How probable each pixel is, from dark to bright. A cell opens large.",
      errors: "White: right. Blue: too much. Orange: missed. A cell opens large.",
    };
    const choose = (view) => {
      this.matrix.view = view;
      for (const button of this.parts.views.children) button.setAttribute("aria-pressed", String(button.dataset.view === view));
      this.parts.legend.textContent = legends[view];
    };
    this.parts.views.replaceChildren(...views.map(([view, name]) => make("button", { type: "button", "data-view": view, "aria-pressed": "false", click: () => {
      choose(view);
      this.matrix.redraw();
      this.writeLink();
    } }, name)));
    choose(views.some(([view]) => view === this.matrix.view) ? this.matrix.view : "outlines");
  }

  listOrders() {
    const orders = [["name", "name"], ...(this.comparison.hasTruth ? [["iou", "IoU"]] : []), ["score", "score"], ["time", "time"]];
    if (!orders.some(([order]) => order === this.matrix.order)) this.matrix.order = "name";
    this.parts.order.replaceChildren(...orders.map(([order, name]) => make("option", { value: order, selected: order === this.matrix.order }, name)));
  }

  // taking away

  link() {
    const { comparison } = this;
    return linkTo({
      example: comparison?.example, expressions: comparison?.expressions ?? [], models: comparison?.models.map((model) => model.key) ?? [],
      threshold: comparison?.common ?? null, view: this.matrix.view,
    });
  }

  writeLink() {
    window.history.replaceState(window.history.state, "", this.link());
  }

  async copyLink() {
    const { link, status } = this.parts;
    if (!this.comparison.example) return this.tell("A link can carry examples only; your picture stays yours.");
    await navigator.clipboard.writeText(this.link());
    link.textContent = status.textContent = "Link copied";
    setTimeout(() => (link.textContent = "Copy link"), 2000);
  }

  async take(button) {
    const { comparison } = this;
    button.disabled = true;
    this.tell("");
    try {
      const models = comparison.answered;
      const thresholds = Object.fromEntries(models.map((model) => [model.key, comparison.thresholdOf(model)]));
      const file = await call("take", { picture: comparison.source, expressions: comparison.expressions, models: models.map((model) => model.key), thresholds, kind: button.dataset.take });
      make("a", { href: file.url, download: file.orig_name ?? "" }).click();
    } catch (error) {
      this.tell(error.message);
    }
    button.disabled = false;
  }
}

export function start(root, config) {
  return new Page(root, config);
}
