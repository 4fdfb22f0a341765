"""The page: tabs, and the events that a visitor's browser calls.

The comparison is drawn by our own front (`front/`), not by gradio's components, because a threshold must move and a
view change without a request: maps come once and canvases draw them (AnnotatedImage, Gallery and ImageSlider take
pictures that are drawn already, one request per move). Our examples bring their truth along, which Examples cannot.
Links carry a comparison in their address, where DeepLinkButton would keep every visitor's state on this server.
Uploads, queue, tabs, cards, API and their limits are gradio's.
"""

from pathlib import Path
from typing import Any

import gradio as gr

import hf_ris
from comparison.comparing import Comparer
from gate import GuardedBlocks
from hf_ris.resources import model_card_template
from tabs.examples import FOLDER as EXAMPLES
from tabs.leaderboard import leaderboard_html, moving_board_html
from tabs.service import Service
from tabs.video import VideoService, video_tab


FRONT = Path(__file__).resolve().parent / "front"
COMPARISONS = 2  # of a kind at once: as many as a free Space has cores
SESSIONS = 200  # whose state gradio keeps; ours is none
THEME = gr.themes.Default(
    primary_hue="indigo",
    neutral_hue="slate",
    radius_size="md",
    font=["system-ui", "-apple-system", "'Segoe UI'", "Roboto", "Ubuntu", "sans-serif"],  # of the visitor's machine
    font_mono=["ui-monospace", "monospace"],
)
START = """import(new URL('gradio_api/file=' + props.value.front + '/main.js', document.baseURI))
    .then((main) => main.start(element.querySelector('#ris'), props.value))"""
API_DESCRIPTION = (
    "Segment what expressions refer to. `expressions` is text, one a line, or a list; `models` are keys or titles of "
    "models on the page, as a list or with commas between them (all bundled ones if left out); `threshold` is a "
    "probability in [0, 1] (each model's own if left out). Returns a COCO annotation file as JSON (RLE masks, with "
    "expression, model, threshold and score), and under `models` time and remarks, or why a model gave no answer."
)


def build(comparer: Comparer) -> gr.Blocks:
    """The page over a comparer's models."""
    with GuardedBlocks(title="Referring image segmentation", analytics_enabled=False, delete_cache=(600, 600)) as demo:
        cache = gr.File(visible=False).GRADIO_CACHE
        service, video = Service(comparer, cache), VideoService(comparer, cache)
        gr.HTML("<h1>Referring image segmentation</h1>", elem_id="ris-title")
        with gr.Tabs(elem_id="ris-tabs"):
            with gr.Tab("Compare", id="compare"):
                gr.HTML(
                    service.page_config() | {"front": str(FRONT)},
                    html_template=(FRONT / "compare.html").read_text(encoding="utf-8"),
                    js_on_load=START,
                    apply_default_css=False,
                    elem_id="ris-compare",
                )
            with gr.Tab("Video", id="video"):
                video_tab(video)
            with gr.Tab("Leaderboard", id="leaderboard") as tab:
                _leaderboard(tab, comparer)
        _events(service, video)
    demo.queue(max_size=64, default_concurrency_limit=COMPARISONS)
    return demo


def _leaderboard(tab: gr.Tab, comparer: Comparer) -> None:
    """Table and plots, made anew whenever the tab is opened since times are this machine's; and the models' cards."""
    board = gr.HTML(apply_default_css=False, elem_id="ris-leaderboard")
    tab.select(
        lambda: leaderboard_html(comparer.zoo.bundled, comparer.seconds) + moving_board_html(comparer.zoo.video),
        outputs=board,
        show_progress="hidden",
        api_visibility="private",
    )
    for entry in (*comparer.zoo.bundled, *comparer.zoo.video):
        if entry.model_type in hf_ris.ARCHITECTURES | hf_ris.VIDEO_ARCHITECTURES:
            card = model_card_template(entry.model_type).read_text(encoding="utf-8").split("---\n", 2)[-1]
            with gr.Accordion(f"Card of {entry.title}", open=False, elem_id=f"card-{entry.model_type}"):
                gr.Markdown(card)


def _events(service: Service, video: VideoService) -> None:
    """The front's events, each with a queue of its own, so that slow ones keep no other waiting; and `/segment`."""
    request, result, file = gr.JSON(visible=False), gr.JSON(visible=False), gr.File(visible=False)
    for function, output, at_once in (
        (service.look, result, 4),
        (service.compare, result, COMPARISONS),
        (service.compare_visiting, result, COMPARISONS),
        (service.words, result, COMPARISONS),
        (service.add, result, 4),
        (service.take, file, COMPARISONS),
        (video.look_video, result, COMPARISONS),
        (video.compare_video, result, COMPARISONS),
        (video.take_video, file, COMPARISONS),
    ):
        name = function.__name__
        gr.Button(visible=False).click(
            function,
            request,
            output,
            preprocess=False,
            concurrency_id=name,
            concurrency_limit=at_once,
            api_name=name,
            api_visibility="undocumented",
        )
    gr.Button(visible=False).click(
        service.segment,
        [
            gr.Image(label="image", type="filepath", visible=False),
            gr.Textbox(label="expressions", visible=False),
            gr.Textbox(label="models", value=None, visible=False),
            gr.Number(label="threshold", value=None, visible=False),
        ],
        result,
        preprocess=False,
        concurrency_id="segment",
        concurrency_limit=COMPARISONS,
        api_name="segment",
        api_description=API_DESCRIPTION,
    )


def launch(demo: gr.Blocks, **kwargs: Any):
    """`demo.launch` with the Space's looks and limits."""
    gr.set_static_paths([FRONT, EXAMPLES])
    return demo.launch(
        theme=THEME,
        css_paths=[FRONT / "page.css", FRONT / "compare.css", FRONT / "leaderboard.css"],
        max_file_size="40mb",
        state_session_capacity=SESSIONS,
        footer_links=["api", "gradio"],
        ssr_mode=False,
        **kwargs,
    )
