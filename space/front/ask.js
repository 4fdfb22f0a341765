// What is asked: picture, expressions and models; a change is told to whoever listens.

import { make, plural } from "./dom.js";
import { call, staticFile, upload } from "./server.js";

export class Ask {
  /**
   * @param parts   elements by name
   * @param config  models, examples and whether folders may be added
   * @param changed called after every change
   * @param told    called with a sentence for the visitor, or ""
   */
  constructor(parts, config, { changed, told }) {
    Object.assign(this, { parts, config, changed, told });
    this.models = config.models;
    this.chosen = new Set(config.models.filter((model) => model.bundled).map((model) => model.key));
    this.picture = this.source = this.example = null;
    this.drawn = true;
    this.listExamples();
    this.listModels();
    this.listen();
    new ResizeObserver(([entry]) => {
      if (entry.contentRect.width === this.width) return; // folding changes the height alone
      this.width = entry.contentRect.width;
      this.foldKnown();
    }).observe(parts.known);
  }

  listen() {
    const { parts } = this;
    parts.text.addEventListener("input", () => this.changed());
    parts.drop.addEventListener("click", () => parts.file.click());
    parts.file.addEventListener("change", () => parts.file.files.length && this.take(parts.file.files[0]));
    parts.add.addEventListener("submit", (event) => {
      event.preventDefault();
      this.addModel();
    });
    const box = parts.drop.closest(".ris-ask");
    for (const name of ["dragover", "drop"]) box.addEventListener(name, (event) => event.preventDefault());
    box.addEventListener("drop", (event) => event.dataTransfer.files.length && this.take(event.dataTransfer.files[0]));
    document.addEventListener("paste", (event) => {
      const [file] = event.clipboardData?.files ?? [];
      if (file && box.isConnected) this.take(file);
    });
  }

  get expressions() {
    return this.parts.text.value.split("\n").map((line) => line.trim()).filter(Boolean);
  }

  get entries() {
    return this.models.filter((model) => this.chosen.has(model.key));
  }

  // pictures

  listExamples() {
    this.parts.examples.append(...this.config.examples.map((example) =>
      make("button", { type: "button", "data-example": example.name, "aria-pressed": "false", "aria-label": `Example: ${example.name}`, title: example.expressions.join(" · "), click: () => this.chooseExample(example.name) },
        make("img", { src: staticFile(example.file), alt: "", width: 44, height: 44 }))));
  }

  /** Show an example and its expressions, or others of a link; `run` is asked for by a click alone. */
  async chooseExample(name, expressions = null, run = true) {
    const example = this.config.examples.find((one) => one.name === name);
    const answer = await fetch(staticFile(example.file));
    this.setPicture(await createImageBitmap(await answer.blob()), { example: name }, example);
    this.drawn = true;
    this.parts.text.value = (expressions ?? example.expressions).join("\n");
    this.told("");
    this.changed(run);
  }

  setPicture(picture, source, example) {
    Object.assign(this, { picture, source, example });
    const { preview, drop, examples } = this.parts;
    const scale = Math.min(preview.width / picture.width, preview.height / picture.height);
    const [width, height] = [picture.width * scale, picture.height * scale];
    const context = preview.getContext("2d");
    context.clearRect(0, 0, preview.width, preview.height);
    context.imageSmoothingQuality = "high";
    context.drawImage(picture, (preview.width - width) / 2, (preview.height - height) / 2, width, height);
    drop.querySelector(".ris-drop-label").textContent = "Change picture";
    drop.setAttribute("aria-label", "Change picture: choose a file, paste or drop one");
    for (const button of examples.children) button.setAttribute("aria-pressed", String(button.dataset.example === example?.name));
    this.listKnown((example?.known ?? []).filter((text) => !example.expressions.includes(text)));
  }

  /** Further expressions of an example's scene: one line of them, and all on demand. */
  listKnown(texts) {
    const { known } = this.parts;
    const list = make("div", { class: "ris-known-list" }, texts.map((text) =>
      make("button", { type: "button", title: `Add “${text}”`, click: () => this.addExpression(text) }, text)));
    const all = make("button", { type: "button", "aria-expanded": "false", click: () => {
      all.setAttribute("aria-expanded", String(all.getAttribute("aria-expanded") === "false"));
      this.foldKnown();
    } });
    known.replaceChildren(...(texts.length ? [make("span", { class: "ris-soft" }, "Also true:"), list, all] : []));
    this.foldKnown();
  }

  foldKnown() {
    const [, list, all] = this.parts.known.children;
    if (!list) return;
    const open = all.getAttribute("aria-expanded") === "true";
    const buttons = [...list.children];
    all.textContent = open ? "Fewer" : `All ${buttons.length}`;
    all.hidden = false;
    for (const button of buttons) button.hidden = false;
    const beyond = buttons.filter((button) => button.offsetTop > buttons[0].offsetTop);
    for (const button of beyond) button.hidden = !open;
    all.hidden = !beyond.length;
  }

  addExpression(text) {
    const lines = this.expressions;
    if (!lines.includes(text)) this.parts.text.value = [...lines, text].slice(-8).join("\n");
    this.changed();
  }

  /** A visitor's file: stored, looked at by the server, shown. */
  async take(file) {
    const { drop } = this.parts;
    this.parts.file.value = "";
    drop.classList.add("ris-busy");
    this.told("");
    try {
      const source = await upload(file);
      const seen = await call("look", { picture: source });
      const picture = await createImageBitmap(await (await fetch(seen.shown)).blob());
      this.drawn = seen.drawn;
      this.setPicture(picture, source, null);
      if (this.fromExample()) this.parts.text.value = "";
      this.changed();
      this.parts.text.focus();
    } catch (error) {
      this.told(error.message);
    }
    drop.classList.remove("ris-busy");
  }

  /** Whether the text is an example's, which says nothing of a visitor's picture. */
  fromExample() {
    const text = this.expressions.join("\n");
    return this.config.examples.some((example) => example.expressions.join("\n") === text);
  }

  // models

  listModels() {
    this.parts.chips.replaceChildren(
      ...this.models.map((model) => make("label", { class: "ris-chip", title: model.note ?? model.architecture },
        make("input", { type: "checkbox", value: model.key, checked: this.chosen.has(model.key), change: (event) => this.choose(model.key, event.target.checked) }),
        make("span", {}, model.title))),
      make("button", { type: "button", class: "ris-plain", "aria-expanded": String(!this.parts.add.hidden), click: (event) => {
        this.parts.add.hidden = !this.parts.add.hidden;
        event.currentTarget.setAttribute("aria-expanded", String(!this.parts.add.hidden));
        if (!this.parts.add.hidden) this.parts.reference.focus();
      } }, "+ Add a model"),
    );
    if (this.config.folders) this.parts["add-label"].textContent = "Hub id or local folder";
  }

  choose(key, on) {
    if (on) this.chosen.add(key);
    else this.chosen.delete(key);
    this.changed();
  }

  setChosen(keys) {
    this.chosen = new Set(keys.filter((key) => this.models.some((model) => model.key === key)));
    this.listModels();
    this.changed();
  }

  async addModel() {
    const { reference } = this.parts;
    const message = this.parts["add-message"];
    message.textContent = "Fetching and checking…";
    try {
      const model = await call("add", reference.value.trim());
      if (!this.models.some((one) => one.key === model.key)) this.models.push(model);
      this.chosen.add(model.key);
      this.listModels();
      message.textContent = `${model.title} is added${model.note ? `: ${model.note}` : ""}.`;
      reference.value = "";
      this.changed();
    } catch (error) {
      message.textContent = error.message;
    }
  }

  // the banner: said once, about all

  banner() {
    const scenes = this.entries.filter((model) => model.scenes);
    const others = this.models.filter((model) => !model.scenes);
    if (!this.picture || !scenes.length) return null;
    if (this.drawn) return { urgent: false, nodes: [`${plural(scenes.length, "model")} here were trained on drawn scenes (RefScenes): shapes, colours, sizes and places. They know no photographs.`] };
    const few = others.slice(0, 2); // the first ones are the smallest
    const names = few.map((model) => model.title).join(" and ");
    const nodes = [make("strong", {}, "This looks like a photograph. "), "The bundled models know drawn scenes only, so what they mark here means little. "];
    if (few.length) nodes.push(make("button", { type: "button", class: "ris-plain", click: () => this.setChosen(few.map((model) => model.key)) }, `Choose ${names} instead`), " (fetched when first used)");
    return { urgent: true, nodes };
  }
}
