// The tab of moving pictures: frames and masks come once, and one slider over time moves every cell; no request.

import { make, partsOf, plural, time } from "./dom.js";
import { COLOURS, atSize, drawOutline, drawPicture, fit } from "./draw.js";
import { decode } from "./maps.js";
import { call, upload } from "./server.js";

const COLUMN = 150; // CSS pixels of a cell at most
const RIGHT = 0.5; // mean IoU from which an answer counts as right

/** The masks of all frames, one below the other in a picture's address -> a map for each frame. */
async function decodeFrames(url, number) {
  const { width, height, values } = await decode(url);
  const rows = height / number;
  return Array.from({ length: number }, (_, t) => ({ width, height: rows, values: values.subarray(t * rows * width, (t + 1) * rows * width) }));
}

async function pictureOf(url) {
  return createImageBitmap(await (await fetch(url)).blob());
}

class VideoPage {
  constructor(root, config) {
    Object.assign(this, { parts: partsOf(root), config, chosen: new Set(config.chosen), source: null, clip: null, shown: null, frame: 0, stopper: null, timer: null });
    this.parts["video-hint"].textContent = config.limits;
    this.listChoices();
    this.listen();
    this.choose({ example: config.examples[0].name }, config.examples[0]);
  }

  listChoices() {
    const { parts, config } = this;
    parts["video-examples"].append(...config.examples.map((example) =>
      make("button", { type: "button", "data-example": example.name, "aria-pressed": "false", "aria-label": `Example video: ${example.name}`, title: example.expressions.join(" · "), click: () => this.choose({ example: example.name }, example) },
        make("img", { src: example.shown, alt: "", width: 44, height: 44 }))));
    parts["video-chips"].append(...config.models.map((model) => make("label", { class: "ris-chip", title: model.moving ? "sees the frames together" : "sees each frame by itself" },
      make("input", { type: "checkbox", value: model.key, checked: this.chosen.has(model.key), change: (event) => {
        if (event.target.checked) this.chosen.add(model.key);
        else this.chosen.delete(model.key);
        this.changed();
      } }),
      make("span", {}, model.title))));
  }

  listen() {
    const { parts } = this;
    parts["video-segment"].addEventListener("click", () => this.segment());
    parts["video-stop"].addEventListener("click", () => this.stopper?.abort());
    parts["video-text"].addEventListener("input", () => this.changed());
    parts["video-text"].addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.segment();
    });
    parts["video-drop"].addEventListener("click", () => parts["video-file"].click());
    parts["video-file"].addEventListener("change", () => parts["video-file"].files.length && this.takeIn(parts["video-file"].files[0]));
    const box = parts["video-drop"].closest(".ris-ask");
    for (const name of ["dragover", "drop"]) box.addEventListener(name, (event) => event.preventDefault());
    box.addEventListener("drop", (event) => event.dataTransfer.files.length && this.takeIn(event.dataTransfer.files[0]));
    parts["video-take"].addEventListener("click", () => this.take());
    parts["video-play"].addEventListener("click", () => this.play(this.timer === null));
    parts["video-frame"].addEventListener("input", () => {
      this.play(false);
      this.show(Number(parts["video-frame"].value));
    });
    new ResizeObserver(() => this.draw()).observe(parts["video-matrix"]);
  }

  get expressions() {
    return this.parts["video-text"].value.split("\n").map((line) => line.trim()).filter(Boolean);
  }

  tell(sentence) {
    this.parts["video-notice"].hidden = !sentence;
    this.parts["video-notice"].textContent = sentence;
  }

  request() {
    return JSON.stringify([this.source, this.expressions, [...this.chosen].sort()]);
  }

  changed() {
    this.parts["video-stale"].hidden = this.shown === null || this.shown.asked === this.request();
  }

  // the video

  async takeIn(file) {
    const { parts } = this;
    parts["video-file"].value = "";
    parts["video-drop"].classList.add("ris-busy");
    this.tell("");
    try {
      await this.choose(await upload(file), null);
    } catch (error) {
      this.tell(error.message);
    }
    parts["video-drop"].classList.remove("ris-busy");
  }

  /** Show and play a video; an example brings its expressions. */
  async choose(source, example) {
    const { parts } = this;
    this.stopper?.abort();
    this.tell("");
    try {
      const clip = await call("look_video", { video: source });
      clip.pictures = await Promise.all(clip.frames.map(pictureOf));
      Object.assign(this, { source, clip, shown: null });
    } catch (error) {
      return this.tell(error.message);
    }
    if (example) parts["video-text"].value = example.expressions.join("\n");
    else if (this.config.examples.some((one) => one.expressions.join("\n") === this.expressions.join("\n"))) parts["video-text"].value = "";
    for (const button of parts["video-examples"].children) button.setAttribute("aria-pressed", String(button.dataset.example === example?.name));
    parts["video-drop"].querySelector(".ris-drop-label").textContent = "Change video";
    parts["video-drop"].setAttribute("aria-label", "Change video: choose or drop a file");
    parts["video-frame"].max = this.clip.pictures.length - 1;
    parts["video-matrix"].replaceChildren();
    parts["video-legend"].textContent = "";
    parts["video-progress"].textContent = this.clip.thinned ? `${plural(this.clip.pictures.length, "frame")} of this video are looked at.` : "";
    if (!this.clip.drawn) this.tell("This looks like a film. The bundled models know drawn scenes only, so what they mark here means little.");
    this.changed();
    this.listTakes();
    this.show(0);
    this.play(!window.matchMedia("(prefers-reduced-motion: reduce)").matches);
    if (example) this.segment(false);
  }

  play(on) {
    clearInterval(this.timer);
    this.timer = null;
    const rate = Math.min(12, Math.max(2, this.clip?.rate ?? 5));
    const step = () => {
      if (!this.parts["video-play"].isConnected) this.play(false);
      else if (this.parts["video-play"].offsetParent) this.show((this.frame + 1) % this.clip.pictures.length); // else another tab is open
    };
    if (on && this.clip) this.timer = setInterval(step, 1000 / rate);
    this.parts["video-play"].textContent = on ? "Pause" : "Play";
    this.parts["video-play"].setAttribute("aria-pressed", String(on));
  }

  show(frame) {
    const { parts, clip } = this;
    this.frame = frame;
    parts["video-frame"].value = frame;
    parts["video-place"].textContent = `frame ${frame + 1} of ${clip.pictures.length}`;
    const { width, height } = parts["video-preview"];
    const scale = Math.min(width / clip.width, height / clip.height);
    const context = parts["video-preview"].getContext("2d");
    context.clearRect(0, 0, width, height);
    context.drawImage(clip.pictures[frame], (width - clip.width * scale) / 2, (height - clip.height * scale) / 2, clip.width * scale, clip.height * scale);
    this.draw();
  }

  // asking

  async segment(clicked = true) {
    const { parts, clip } = this;
    this.stopper?.abort();
    this.tell("");
    if (!clip) return this.tell("There is no video yet: upload one, or choose an example.");
    if (!this.expressions.length) return this.tell("There is no expression yet: write what to find, such as “the ball that moves to the left”.");
    if (!this.chosen.size) return this.tell("No model is chosen: choose at least one.");
    const stopper = (this.stopper = new AbortController());
    const models = this.config.models.filter((model) => this.chosen.has(model.key)).map((model) => ({ ...model, state: "waiting" }));
    const asked = this.request();
    const start = performance.now();
    parts["video-status"].textContent = "";
    this.busy(true, "asking…");
    let taking = Promise.resolve();
    const onMessage = (message) => {
      taking = taking.then(async () => {
        if (this.stopper !== stopper || this.clip !== clip) return;
        if (message.kind === "start") await this.begun(message, models, asked, clicked);
        else await this.answered(message);
      });
    };
    try {
      await call("compare_video", { video: this.source, expressions: this.expressions, models: models.map((model) => model.key) }, { onMessage, signal: stopper.signal });
      await taking;
      if (this.stopper === stopper) this.finish(`${plural(models.length, "model")} in ${time((performance.now() - start) / 1000)}`, "answered");
    } catch (error) {
      if (this.stopper !== stopper) return; // another comparison has begun
      if (error.name !== "AbortError") this.tell(error.message);
      this.finish(error.name === "AbortError" ? "stopped" : "", error.name === "AbortError" ? "stopped" : "");
    }
  }

  busy(on, text) {
    const { parts } = this;
    parts["video-stop"].hidden = !on;
    parts["video-segment"].classList.toggle("ris-running", on);
    parts["video-progress"].textContent = text;
  }

  finish(text, status) {
    this.busy(false, text);
    const { shown } = this;
    const said = shown?.models.filter((model) => model.state === "answered").length ?? 0;
    this.parts["video-status"].textContent = status === "answered" ? `${plural(said, "model")} answered ${plural(shown.expressions.length, "expression")} on every frame.` : status;
    for (const model of shown?.models ?? []) if (model.state === "waiting") Object.assign(model, { state: "failed", sentence: "stopped" });
    this.draw();
  }

  async begun(message, models, asked, clicked) {
    const number = this.clip.pictures.length;
    const truth = await Promise.all(message.truth.map((url) => (url ? decodeFrames(url, number) : null)));
    this.shown = { expressions: message.expressions, truth, models, asked };
    this.build();
    this.listTakes();
    this.changed();
    this.draw();
    if (clicked && window.innerWidth < 720) this.parts["video-play"].scrollIntoView({ behavior: "smooth", block: "start" });
  }

  async answered(message) {
    const { shown } = this;
    const model = shown.models.find((one) => one.key === message.model);
    if (message.kind === "failure") Object.assign(model, { state: "failed", sentence: message.sentence });
    else {
      const number = this.clip.pictures.length;
      const cells = await Promise.all(message.cells.map(async (cell) => ({ ...cell, maps: await decodeFrames(cell.masks, number) })));
      Object.assign(model, { state: "answered", seconds: message.seconds, cells });
    }
    const done = shown.models.filter((one) => one.state !== "waiting").length;
    this.parts["video-progress"].textContent = `${done} of ${shown.models.length}`;
    this.listTakes();
    this.draw();
  }

  // the table

  build() {
    const { shown, parts } = this;
    shown.cells = new Map();
    const known = shown.truth.some(Boolean);
    const heads = shown.models.map((model) => {
      const facts = make("span", { class: "ris-facts" });
      shown.cells.set(model.key, { facts });
      return make("th", { scope: "col" }, make("span", { class: "ris-name", title: model.title }, model.title), facts);
    });
    const cellOf = (key, e, label) => {
      const canvas = make("canvas", { role: "img" });
      const caption = make("span", { class: "ris-caption" });
      const box = make("div", { class: "ris-cell" }, canvas);
      shown.cells.set(`${key} ${e}`, { canvas, caption, box });
      return make("td", { "data-label": label }, box, caption);
    };
    const rows = shown.expressions.map((text, e) => make("tr", { style: { "--ris-colour": COLOURS[e % COLOURS.length] } },
      make("th", { scope: "row" }, make("span", { class: "ris-expression", dir: "auto" }, text)),
      known ? cellOf("truth", e, "Truth") : null,
      shown.models.map((model) => cellOf(model.key, e, model.title))));
    const columns = shown.models.length + (known ? 1 : 0);
    parts["video-matrix"].replaceChildren(make("table", { class: "ris-matrix", style: { "max-width": `${130 + columns * (COLUMN + 8)}px`, "min-width": `${130 + columns * 84}px` } },
      make("thead", {}, make("tr", {}, make("th", { scope: "col", class: "ris-corner" }, "Expression"), known ? make("th", { scope: "col" }, make("span", { class: "ris-name" }, "Truth")) : null, heads)),
      make("tbody", {}, rows)));
    parts["video-legend"].textContent = `${known ? "✓ and ✗ stand for a mean IoU over the frames of at least 0.5; on the right that of this frame. " : "The number is the score: mean probability inside the masks. "}Video models see the frames together, image models each frame by itself: they know nothing of motion.`;
  }

  draw() {
    const { shown, clip, frame } = this;
    if (!shown) return;
    const picture = clip.pictures[frame];
    const width = shown.cells.get(`${shown.models[0].key} 0`).box.clientWidth;
    if (!width) return;
    const paint = ({ canvas }, map, e) => {
      const context = fit(canvas, picture, width);
      drawPicture(context, picture);
      if (map) drawOutline(context, atSize(map, canvas.width, canvas.height), 0.5, COLOURS[e % COLOURS.length], 1.6 * (window.devicePixelRatio || 1));
    };
    shown.expressions.forEach((text, e) => {
      const truth = shown.cells.get(`truth ${e}`);
      if (truth) {
        paint(truth, shown.truth[e]?.[frame], e);
        truth.canvas.setAttribute("aria-label", shown.truth[e] ? `True mask of ${text}, frame ${frame + 1}` : "The truth is not known");
        truth.caption.textContent = shown.truth[e] ? "" : "not known";
      }
      for (const model of shown.models) {
        const cell = shown.cells.get(`${model.key} ${e}`);
        paint(cell, model.cells?.[e].maps[frame], e);
        this.caption(cell, model, text, e);
      }
    });
    for (const model of shown.models) this.drawHead(model);
  }

  drawHead(model) {
    const { facts } = this.shown.cells.get(model.key);
    const means = model.cells?.map((cell) => cell.iou && mean(cell.iou)).filter((value) => value !== null) ?? [];
    facts.textContent = { waiting: "waiting…", failed: "no answer" }[model.state] ?? `${means.length ? `IoU ${mean(means).toFixed(2)} · ` : ""}${time(model.seconds)}`;
  }

  caption({ canvas, caption, box }, model, text, e) {
    box.classList.toggle("ris-waiting", model.state === "waiting");
    box.classList.toggle("ris-failed", model.state === "failed");
    if (model.state !== "answered") {
      caption.className = model.state === "failed" ? "ris-caption ris-sentence" : "ris-caption";
      caption.textContent = model.state === "failed" ? (e === 0 ? model.sentence : "no answer") : "";
      canvas.setAttribute("aria-label", model.state === "failed" ? `${model.title}: ${model.sentence}` : `${model.title} has not answered yet`);
      return;
    }
    const { iou, score } = model.cells[e];
    const whole = iou && mean(iou);
    const right = whole === null ? null : whole >= RIGHT;
    box.classList.toggle("ris-wrong", right === false);
    if (!caption.firstElementChild) caption.replaceChildren(make("b"), make("span"));
    const [mark, number] = caption.children;
    mark.className = right ? "ris-good" : "ris-bad";
    mark.textContent = right === null ? "" : `${right ? "✓" : "✗"} ${whole.toFixed(2)}`;
    number.textContent = iou ? iou[this.frame].toFixed(2) : score ? score.toFixed(2) : "nothing";
    canvas.setAttribute("aria-label", `${model.title}, ${text}: ${right === null ? `score ${score.toFixed(2)}` : `mean IoU ${whole.toFixed(2)}, ${right ? "right" : "wrong"}`}`);
  }

  /** Offer the overlaid videos of the models that have answered. */
  listTakes() {
    const { parts, shown } = this;
    const models = shown?.models.filter((model) => model.state === "answered") ?? [];
    const chosen = parts["video-taken"].value;
    parts["video-takes"].hidden = !models.length;
    parts["video-taken"].replaceChildren(...models.map((model) => make("option", { value: model.key, selected: model.key === chosen }, model.title)));
  }

  async take() {
    const { parts } = this;
    parts["video-take"].disabled = true;
    this.tell("");
    try {
      const file = await call("take_video", { video: this.source, expressions: this.shown.expressions, models: [parts["video-taken"].value] });
      make("a", { href: file.url, download: file.orig_name ?? "" }).click();
    } catch (error) {
      this.tell(error.message);
    }
    parts["video-take"].disabled = false;
  }
}

function mean(values) {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

export function start(root, config) {
  return new VideoPage(root, config);
}
