"""The tab of moving pictures: several models on one video, the masks of every frame, and the overlaid video to keep.

Models run behind the pipeline `referring-video-segmentation`: a video model sees the frames together, an image model
each frame by itself. Frames and masks go to the browser once, so that the slider over time asks nothing; gradio's Video
plays one file and could not show several models' masks in step.
"""

import logging
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from comparison.answers import AnswerStore, from_png, to_png
from comparison.clips import EXAMPLES, FRAMES, MAX_SECONDS, Clip, example_clip, read_clip
from comparison.comparing import Comparer
from comparison.entries import Entry
from comparison.limits import time_limit
from comparison.opening import check_input_size
from comparison.pictures import Refusal, is_drawn, split_expressions
from hf_ris.models.pipeline_video_ris import ReferringVideoSegmentationPipeline, overlaid
from hf_ris.models.video_files import write_video
from tabs.export import slug
from tabs.reading import read_names, read_request
from tabs.service import describe, in_a_sentence, shown, url


FRONT = Path(__file__).resolve().parent.parent / "front"
MODEL_SECONDS = 60  # for one model and a video
TAKE_SECONDS = 90
KEPT_BYTES = 32_000_000  # of masks, of all visitors together
BEGIN_WITH = ("vatex_video", "vatex", "lts", "lavt")  # model types that are chosen at first
MIN_PLAYED = 2.0  # seconds that a file to take away lasts
START = """import(new URL('gradio_api/file=' + props.value.front + '/video.js', document.baseURI))
    .then((video) => video.start(element.querySelector('#ris-video'), props.value))"""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class VideoAnswer:
    """What one model said to one expression of a clip.

    Attributes:
        masks: PNG (T * height, width) of the frames' masks, 0 or 255, one below the other.
        score: the mean probability inside them.
        model_seconds: that the run took, of all its expressions.
    """

    masks: bytes
    score: float
    model_seconds: float

    @property
    def size(self) -> int:
        return len(self.masks) + 500


class VideoService:
    """The events of the tab, over the models of a comparer's zoo."""

    def __init__(self, comparer: Comparer, cache_folder: str | Path):
        self.zoo = comparer.zoo
        self.cache_folder = Path(cache_folder)
        self.store = AnswerStore(KEPT_BYTES)
        self._run = comparer.on_gpu(self._run_model)

    @property
    def offered(self) -> list[Entry]:
        """Video models, then the bundled image models; baselines would take minutes for a video."""
        return [*self.zoo.video, *self.zoo.bundled]

    def page_config(self) -> dict[str, Any]:
        """What the tab starts with."""
        moving = {entry.key for entry in self.zoo.video}
        first = [entry.key for kind in BEGIN_WITH for entry in self.offered if entry.model_type == kind]
        return {
            "models": [describe(entry, True) | {"moving": entry.key in moving} for entry in self.offered],
            "chosen": first or [entry.key for entry in self.offered[:3]],
            "examples": [
                {"name": name, "expressions": list(EXAMPLES[name][1]), "shown": shown(example_clip(name).frames[0])}
                for name in EXAMPLES
            ],
        }

    @in_a_sentence
    def look_video(self, request: Any) -> dict[str, Any]:
        """A video's frames as the page plays them."""
        clip = read_clip(read_request(request).get("video"))
        height, width = clip.size
        return {
            "name": clip.name,
            "width": width,
            "height": height,
            "rate": clip.rate,
            "thinned": clip.thinned,
            "drawn": is_drawn(clip.frames[0]),
            "known": list(clip.known),
            "frames": [shown(frame) for frame in clip.frames],
        }

    def compare_video(self, request: Any) -> Iterator[dict[str, Any]]:
        """The models' answers, each when it is there; before them the expressions as they are read and their truth."""
        try:
            clip, expressions, entries = self._read(request)
        except Refusal as refusal:
            raise gr.Error(str(refusal), print_exception=False) from refusal
        truth = [clip.known.get(text) for text in expressions]
        yield {
            "kind": "start",
            "expressions": expressions,
            "truth": [None if masks is None else url(to_png(masks.reshape(-1, masks.shape[2]))) for masks in truth],
        }
        for entry in entries:
            yield self._told(entry, clip, expressions, truth)

    def _read(self, request: Any) -> tuple[Clip, list[str], list[Entry]]:
        request = read_request(request)
        names = read_names(request.get("models"))
        known = {name: entry for entry in self.offered for name in (entry.key, entry.title.casefold())}
        unknown = [name for name in names if name not in known and name.casefold() not in known]
        if unknown:
            offered = ", ".join(entry.key for entry in self.offered)
            raise Refusal(f"There is no model “{unknown[0][:100]}” for videos here; there are {offered}.")
        if not names:
            raise Refusal("No model is chosen: choose at least one.")
        entries = [known.get(name, known.get(name.casefold())) for name in names]
        expressions = split_expressions(request.get("expressions"))
        return read_clip(request.get("video")), expressions, list(dict.fromkeys(entries))

    def _told(self, entry: Entry, clip: Clip, expressions: list[str], truth: list[np.ndarray | None]) -> dict[str, Any]:
        """A model's answers as the page reads them, or the sentence that says why there are none."""
        try:
            answers = self.answer(entry, clip, expressions)
        except Refusal as refusal:
            return {"kind": "failure", "model": entry.key, "sentence": str(refusal)}
        except RuntimeError:  # torch's own, such as memory that runs out
            logger.exception("%s failed", entry.key)
            return {"kind": "failure", "model": entry.key, "sentence": f"{entry.title} failed on this video."}
        return {
            "kind": "answer",
            "model": entry.key,
            "seconds": answers[0].model_seconds,
            "cells": [
                {"masks": url(one.masks), "score": one.score, "iou": None if true is None else overlap(one, true)}
                for one, true in zip(answers, truth)
            ],
        }

    def answer(self, entry: Entry, clip: Clip, expressions: list[str]) -> list[VideoAnswer]:
        """One model's answers; what it was not asked lately is run together. Raises Refusal."""
        told = clip.digest()
        known = {text: self.store.get((told, entry.key, text)) for text in expressions}
        missing = [text for text, answer in known.items() if answer is None]
        if missing:
            self.zoo.get(entry)  # waits here, outside the time that running may take
            for text, answer in zip(missing, self._run(entry, clip.frames, missing)):
                known[text] = answer
                self.store.put((told, entry.key, text), answer)
        return [known[text] for text in expressions]

    def _run_model(self, entry: Entry, frames: list[Image.Image], expressions: list[str]) -> list[VideoAnswer]:
        with time_limit(MODEL_SECONDS, entry.title):
            loaded = self.zoo.get(entry)
            check_input_size(entry.title, loaded.processor, frames[0].height, frames[0].width)
            pipe = ReferringVideoSegmentationPipeline(
                model=loaded.model, processor=loaded.processor, device=self.zoo.device
            )
            start = time.perf_counter()
            try:
                results = pipe(frames, expressions)
            except Refusal:
                raise
            except ValueError as error:  # an expression without a word that its tokenizer knows
                raise Refusal(f"{entry.title}: {error}") from error
            seconds = time.perf_counter() - start
        masks = [np.concatenate([np.asarray(mask) for mask in result["masks"]]) for result in results]
        return [VideoAnswer(to_png(mask), result["score"], seconds) for mask, result in zip(masks, results)]

    @in_a_sentence
    def take_video(self, request: Any) -> str:
        """The video with one model's masks laid over it, each expression's in a colour."""
        clip, expressions, entries = self._read(request)
        if len(entries) != 1:
            raise Refusal("A video to take away shows the masks of one model.")
        with time_limit(TAKE_SECONDS, "Making this video"):
            answers = self.answer(entries[0], clip, expressions)
        height = clip.size[0]
        results = []
        for answer in answers:
            masks = from_png(answer.masks)
            results.append({"masks": [masks[at : at + height] for at in range(0, len(masks), height)]})
        self.cache_folder.mkdir(parents=True, exist_ok=True)
        name = f"{slug(Path(clip.name).stem)}-{slug(entries[0].title)}.mp4"
        path = Path(tempfile.mkdtemp(dir=self.cache_folder)) / name
        write_video(path, overlaid(clip.frames, results), min(clip.rate, len(clip.frames) / MIN_PLAYED))
        return str(path)


def overlap(answer: VideoAnswer, truth: np.ndarray) -> list[float]:
    """IoU of each frame with the true masks (T, H, W); 1 where both are empty."""
    masks = from_png(answer.masks).reshape(truth.shape) > 0
    both, either = (masks & truth).sum((1, 2)), (masks | truth).sum((1, 2))
    return [round(float(one / all_), 4) if all_ else 1.0 for one, all_ in zip(both, either)]


def video_tab(service: VideoService) -> None:
    """The tab's content."""
    limits = f"MP4, MOV, WebM, AVI or GIF, up to {MAX_SECONDS} s and 40 MB; models see at most {FRAMES} frames of it"
    gr.HTML(
        service.page_config() | {"front": str(FRONT), "limits": limits},
        html_template=(FRONT / "video.html").read_text(encoding="utf-8"),
        js_on_load=START,
        apply_default_css=False,
        elem_id="ris-moving",
    )
