"""The Space: a picture, expressions, and what several models make of them, side by side.

    python space/app.py        # then open http://127.0.0.1:7860

Needs `pip install -e ".[space]"`. Starts offline, and nothing on the page comes from elsewhere. GRADIO_SERVER_NAME and
GRADIO_SERVER_PORT are gradio's; on a Hub Space (SPACE_ID is set) visitors cannot name local folders.
"""

import json
import os
import tempfile
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from export import coco_json, masks_zip, slug
from gate import GuardedBlocks
from inference import Comparison, ModelMaps, compare
from pictures import MAX_EXPRESSIONS, Refusal, split_expressions
from reading import read_models, read_picture, read_threshold
from render import VIEWS, card
from zoo import Zoo

from hf_ris.baselines import BASELINES


HERE = Path(__file__).resolve().parent
EXAMPLES = HERE / "examples"
HEADER = """<h1>Referring image segmentation</h1>
<p>Describe something in a picture. Each model marks the pixels it thinks you mean.</p>"""
EMPTY = "<div class='ris-welcome'><p>Choose an example, or bring a picture and say what to find.</p></div>"
KEEP_SECONDS = 600  # that a comparison is kept for its page
COMPARISONS = 4  # at once; a slow one leaves the others their turn
SESSIONS = 200  # whose state is kept
THEME = gr.themes.Default(
    primary_hue="indigo",
    neutral_hue="slate",
    radius_size="lg",
    font=["system-ui", "-apple-system", "'Segoe UI'", "Roboto", "Ubuntu", "sans-serif"],  # of the visitor's machine
    font_mono=["ui-monospace", "monospace"],
)
API_DESCRIPTION = (
    "Segment what expressions refer to. `expressions` holds one a line; `models` are keys of models on the page (all "
    "bundled ones if left out); `threshold` is a probability in [0, 1] (each model's own if left out). Returns a COCO "
    "annotation file as JSON (RLE masks, with expression, model, threshold and score), and under `models` time and "
    "remarks."
)


def examples() -> list[dict[str, Any]]:
    """The example pictures: `file` and `expressions`."""
    return json.loads((EXAMPLES / "examples.json").read_text(encoding="utf-8"))


def notice(message: str) -> str:
    return f"<p class='ris-notice' role='alert' dir='auto'>{escape(message)}</p>" if message else ""


def answer(zoo: Zoo, image: Any, text: Any, keys: Any) -> Comparison:
    """From raw values (image as uploaded file data) to results. Raises Refusal."""
    return compare(zoo, read_picture(image), split_expressions(text), read_models(zoo, keys))


def download_file(download: gr.DownloadButton, name: str, content: bytes) -> str:
    """Write a file into gradio's cache, which is emptied on schedule; returns its path."""
    Path(download.GRADIO_CACHE).mkdir(parents=True, exist_ok=True)
    path = Path(tempfile.mkdtemp(dir=download.GRADIO_CACHE)) / name
    path.write_bytes(content)
    return str(path)


def build(zoo: Zoo) -> gr.Blocks:
    """The page for a zoo of models."""
    with GuardedBlocks(title="Referring image segmentation", analytics_enabled=False, delete_cache=(600, 600)) as demo:
        comparison = gr.State(None, time_to_live=KEEP_SECONDS)
        gr.HTML(HEADER, elem_id="ris-header")
        with gr.Row(elem_id="ris-main"):
            with gr.Column(scale=4, min_width=300):
                inputs = _inputs(zoo, comparison)
            with gr.Column(scale=9, min_width=300):
                _results(demo, comparison)
        _api(zoo, *inputs)
    demo.queue(max_size=64, default_concurrency_limit=4)
    return demo


def _inputs(zoo: Zoo, comparison: gr.State) -> tuple[gr.Image, gr.Textbox, gr.CheckboxGroup]:
    """The left column and its events."""
    image = gr.Image(label="Picture", sources=["upload", "clipboard"], type="filepath", height=240, elem_id="ris-image")
    shown = examples()
    gallery = gr.Dataset(
        label="Examples",
        components=["image"],
        samples=[[str(EXAMPLES / example["file"])] for example in shown],
        type="index",
        layout="gallery",
        elem_id="ris-examples",
    )
    text = gr.Textbox(
        label=f"Expressions, one a line (up to {MAX_EXPRESSIONS})",
        placeholder="the red umbrella on the left\nthe largest star",
        lines=3,
        max_lines=8,
        elem_id="ris-text",
    )
    models = gr.CheckboxGroup(
        label="Models",
        choices=[(entry.label, entry.key) for entry in zoo.offered],
        value=[entry.key for entry in zoo.bundled],
        elem_id="ris-models",
    )
    button = gr.Button("Segment", variant="primary", size="lg", elem_id="ris-segment")
    message = gr.HTML(elem_id="ris-message")
    _add_model(zoo, models)

    def run(image, text, keys):
        try:
            found = answer(zoo, image, text, keys)
            return found, notice(" ".join(failure.sentence for failure in found.failures))
        except Refusal as refusal:
            return gr.skip(), notice(str(refusal))

    def fill(index):
        example = shown[index]
        return str(EXAMPLES / example["file"]), "\n".join(example["expressions"])

    # preprocess=False: gradio would decode the upload itself, and fail without a sentence on a file that is no picture
    wiring = {
        "fn": run,
        "inputs": [image, text, models],
        "outputs": [comparison, message],
        "preprocess": False,
        "concurrency_id": "models",
        "concurrency_limit": COMPARISONS,
        "api_visibility": "private",
        "show_progress_on": message,
    }
    button.click(**wiring)
    gallery.click(fill, gallery, [image, text], show_progress="hidden", api_visibility="private").then(**wiring)
    return image, text, models


def _add_model(zoo: Zoo, models: gr.CheckboxGroup) -> None:
    """The folded form that adds a Hub repository or a local folder to this visitor's choices."""
    where = "Hub id or local folder" if zoo.allow_folders else "Hub id"
    known = gr.State([])
    with gr.Accordion("Add a model", open=False, elem_id="ris-add"):
        reference = gr.Textbox(label=where, placeholder="owner/name", max_lines=1, info=_add_info(zoo))
        add_button = gr.Button("Add", size="sm")
        message = gr.HTML()

    def add(reference, chosen, known):
        try:
            entry = zoo.add(reference)
        except Refusal as refusal:
            return gr.skip(), gr.skip(), notice(str(refusal))
        known = known if entry in known or entry in zoo.offered else [*known, entry]
        choices = [(entry.label, entry.key) for entry in [*zoo.offered, *known]]
        return gr.CheckboxGroup(choices=choices, value=[*chosen, entry.key]), known, ""

    gr.on(
        [add_button.click, reference.submit],
        add,
        [reference, models, known],
        [models, known, message],
        preprocess=False,
        concurrency_id="add",
        concurrency_limit=COMPARISONS,
        api_visibility="private",
        show_progress_on=message,
    )


def _add_info(zoo: Zoo) -> str:
    folders = "" if zoo.allow_folders else " Local folders cannot be named on a public server."
    return f"Any checkpoint of an architecture of hf_ris, safetensors only; code in a repository is never run.{folders}"


def _results(demo: gr.Blocks, comparison: gr.State) -> None:
    """The right column: a card with its own threshold per model, drawn anew for every comparison."""
    view = gr.Radio(VIEWS, value=VIEWS[0], show_label=False, container=False, elem_id="ris-view")

    @gr.render(inputs=[comparison, view], triggers=[demo.load, comparison.change], show_progress="hidden")
    def panels(comparison: Comparison | None, shown: str):
        if comparison is None:
            gr.HTML(EMPTY)
            return
        with gr.Row(elem_classes="ris-panels"):
            sliders = [_panel(comparison, maps, view, shown) for maps in comparison.models]
        _downloads(comparison, sliders)


def _panel(comparison: Comparison, maps: ModelMaps, view: gr.Radio, shown: str) -> gr.Slider:
    """One model's card; its slider cuts the kept probabilities anew and runs no model."""

    def redraw(view, threshold):
        return card(comparison, maps, view, threshold)

    with gr.Column(min_width=300, elem_classes="ris-panel"):
        html = gr.HTML(card(comparison, maps, shown, maps.threshold), apply_default_css=False)
        slider = gr.Slider(
            0, 1, maps.threshold, step=0.01, label="Threshold", interactive=True, elem_classes="ris-threshold"
        )
    gr.on(
        [slider.input, slider.release, view.change],
        redraw,
        [view, slider],
        html,
        trigger_mode="always_last",
        show_progress="hidden",
        api_visibility="private",
    )
    return slider


def _downloads(comparison: Comparison, sliders: list[gr.Slider]) -> None:
    """Two buttons that make a file at the sliders' thresholds when pressed, and hand it to the browser."""
    stem = slug(Path(comparison.picture.name).stem)
    kinds = (("Download masks (PNG)", "zip", masks_zip), ("Download COCO RLE (JSON)", "json", coco_json))
    with gr.Row(elem_classes="ris-downloads"):
        for label, kind, make in kinds:
            button = gr.Button(label, size="sm", min_width=120, elem_id=f"ris-make-{kind}")
            target = f"ris-file-{kind}"
            download = gr.DownloadButton(visible="hidden", elem_id=target)

            def write(*thresholds, download=download, name=f"{stem}-masks.{kind}", make=make):
                return download_file(download, name, make(comparison, thresholds))

            button.click(write, sliders, download, api_visibility="private").then(
                None, js=f"() => setTimeout(() => document.getElementById('{target}').click(), 100)"
            )


def _api(zoo: Zoo, image: gr.Image, text: gr.Textbox, models: gr.CheckboxGroup) -> None:
    """The endpoint `/segment`, on components of its own that the page does not show."""
    threshold = gr.Number(label="threshold", value=None, visible=False)
    result = gr.JSON(label="COCO annotation file", visible=False)

    def segment(image, expressions, models, threshold=None):
        try:
            threshold = read_threshold(threshold)
            keys = [entry.key for entry in zoo.bundled] if models is None else models
            comparison = answer(zoo, image, expressions, keys)
        except Refusal as refusal:
            raise gr.Error(str(refusal), print_exception=False) from refusal
        thresholds = [maps.threshold if threshold is None else threshold for maps in comparison.models]
        content = json.loads(coco_json(comparison, thresholds))
        content["models"] = [
            {
                "model": maps.entry.key,
                "note": maps.entry.note,
                "parameters": maps.parameters,
                "seconds": round(maps.seconds, 4),
                "remarks": maps.remarks,
            }
            for maps in comparison.models
        ] + [{"model": failure.entry.key, "refusal": failure.sentence} for failure in comparison.failures]
        return content

    gr.Button(visible=False).click(
        segment,
        [image, text, models, threshold],
        result,
        preprocess=False,
        concurrency_id="segment",
        concurrency_limit=COMPARISONS,
        api_name="segment",
        api_description=API_DESCRIPTION,
    )


def launch(demo: gr.Blocks, **kwargs):
    """`demo.launch` with the Space's looks and limits."""
    return demo.launch(
        theme=THEME,
        css_paths=HERE / "style.css",
        allowed_paths=[str(EXAMPLES)],
        max_file_size="40mb",
        state_session_capacity=SESSIONS,
        footer_links=["api", "gradio"],
        ssr_mode=False,
        **kwargs,
    )


if __name__ == "__main__":
    launch(build(Zoo(HERE / "checkpoints", allow_folders="SPACE_ID" not in os.environ, baselines=BASELINES)))
