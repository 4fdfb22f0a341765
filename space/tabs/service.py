"""What the page and its visitors can ask of the server: one method per event, raw values in, JSON out.

Every refusal leaves as `gr.Error` with one sentence. No method keeps anything for a visitor.
"""

import base64
import io
import tempfile
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from comparison.answers import Answer, to_png
from comparison.comparing import Comparer, Failure, ModelAnswers
from comparison.entries import Entry
from comparison.inference import map_size
from comparison.limits import time_limit
from comparison.pictures import Refusal, is_drawn, reduced, split_expressions
from comparison.words import word_changes
from tabs.examples import examples
from tabs.export import CUT_OUT_PIXELS, coco_annotations, coco_json, cutouts_zip, masks_zip, slug
from tabs.reading import (
    read_example,
    read_models,
    read_picture,
    read_request,
    read_threshold,
    read_thresholds,
)


TAKE_SECONDS = 60  # for a file to take away


def in_a_sentence(function: Callable) -> Callable:
    """The function, whose refusals gradio sends to the visitor as they stand."""

    @wraps(function)
    def answered(*arguments):
        try:
            return function(*arguments)
        except Refusal as refusal:
            raise gr.Error(str(refusal), print_exception=False) from refusal

    return answered


def url(png: bytes | None) -> str | None:
    return None if png is None else "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def shown(image: Image.Image) -> str:
    """An image for the page, small enough to send: PNG where it is drawn, JPEG where it is a photograph."""
    buffer = io.BytesIO()
    drawn = is_drawn(image)
    image.save(buffer, "PNG") if drawn else image.save(buffer, "JPEG", quality=92, subsampling=0)
    return f"data:image/{'png' if drawn else 'jpeg'};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def describe(entry: Entry, bundled: bool) -> dict[str, Any]:
    """A model as the page shows it before it is asked."""
    return {
        "key": entry.key,
        "title": entry.title,
        "architecture": entry.architecture,
        "note": entry.note,
        "bundled": bundled,
        "scenes": entry.scenes,
    }


class Service:
    """The events' functions over a zoo of models."""

    def __init__(self, comparer: Comparer, cache_folder: str | Path):
        self.comparer, self.zoo = comparer, comparer.zoo
        self.cache_folder = Path(cache_folder)
        self._bundled = {entry.key for entry in self.zoo.bundled}

    def page_config(self) -> dict[str, Any]:
        """What the page starts with."""
        return {
            "models": [describe(entry, entry.key in self._bundled) for entry in self.zoo.offered],
            "examples": [
                {
                    "name": example.name,
                    "file": str(example.file),
                    "expressions": list(example.expressions),
                    "known": list(example.known),
                }
                for example in examples().values()
            ],
            "folders": self.zoo.allow_folders,
        }

    @in_a_sentence
    def look(self, request: Any) -> dict[str, Any]:
        """A picture as the page shows it, and whether it looks drawn."""
        picture = read_picture(read_request(request).get("picture"))
        return {
            "name": picture.name,
            "width": picture.width,
            "height": picture.height,
            "shown": shown(picture.image),
            "drawn": is_drawn(picture.image),
        }

    def compare(self, request: Any) -> Iterator[dict[str, Any]]:
        """The bundled models' answers, each when it is there; before them the expressions as they are read."""
        yield from self._compare(request, self._bundled.__contains__)

    def compare_visiting(self, request: Any) -> Iterator[dict[str, Any]]:
        """The same of all other models, in a queue of their own, since they may be slow."""
        yield from self._compare(request, lambda key: key not in self._bundled)

    def _compare(self, request: Any, belongs: Callable[[str], bool]) -> Iterator[dict[str, Any]]:
        try:
            request = read_request(request)
            example = read_example(request.get("picture"))
            picture = read_picture(request.get("picture"))
            expressions = split_expressions(request.get("expressions"))
            entries = [entry for entry in read_models(self.zoo, request.get("models")) if belongs(entry.key)]
        except Refusal as refusal:
            raise gr.Error(str(refusal), print_exception=False) from refusal
        height, width = map_size(picture)
        truth = [example.known.get(text) if example else None for text in expressions]
        yield {
            "kind": "start",
            "expressions": expressions,
            "map": [width, height],
            "truth": [None if mask is None else url(to_png(mask)) for mask in truth],
        }
        for answer in self.comparer.answer_each(entries, picture, expressions):
            yield as_json(answer)

    @in_a_sentence
    def words(self, request: Any) -> list[dict[str, Any]]:
        """Which words of one expression matter to one model."""
        request = read_request(request)
        picture = read_picture(request.get("picture"))
        expressions = split_expressions(request.get("expression"))
        entries = read_models(self.zoo, request.get("model"))
        if len(expressions) != 1 or len(entries) != 1:
            raise Refusal("Words are left out of one expression, for one model.")
        threshold = read_threshold(request.get("threshold"))
        return word_changes(self.comparer, entries[0], picture, expressions[0], threshold)

    @in_a_sentence
    def add(self, reference: Any) -> dict[str, Any]:
        """A Hub repository or a local folder, checked and loaded, so that it can be chosen."""
        return describe(self.zoo.add(reference), False)

    @in_a_sentence
    def take(self, request: Any) -> str:
        """A file to take away: `kind` is masks, cutouts or coco; `thresholds` may name one per model."""
        request = read_request(request)
        kind = request.get("kind")
        if kind not in ("masks", "cutouts", "coco"):
            raise Refusal("The kind of file is masks, cutouts or coco.")
        picture = read_picture(request.get("picture"))
        expressions = split_expressions(request.get("expressions"))
        entries = read_models(self.zoo, request.get("models"))
        with time_limit(TAKE_SECONDS, "Making this file"):
            models, _ = self.comparer.answer_all(entries, picture, expressions)
            own = [model.answers[0].threshold for model in models]
            thresholds = read_thresholds(request.get("thresholds"), [model.entry for model in models], own)
            if kind == "coco":
                content, ending = coco_json(picture, models, expressions, thresholds), "json"
            elif kind == "masks":
                content, ending = masks_zip(picture, models, expressions, thresholds), "zip"
            else:
                image = reduced(read_picture(request.get("picture"), whole=True).image, CUT_OUT_PIXELS)
                content, ending = cutouts_zip(image, models, expressions, thresholds), "zip"
        return self._file(f"{slug(Path(picture.name).stem)}-{kind}.{ending}", content)

    def _file(self, name: str, content: bytes) -> str:
        """A file in gradio's cache, which is emptied on schedule; returns its path."""
        self.cache_folder.mkdir(parents=True, exist_ok=True)
        path = Path(tempfile.mkdtemp(dir=self.cache_folder)) / name
        path.write_bytes(content)
        return str(path)

    @in_a_sentence
    def segment(self, image: Any, expressions: Any, models: Any = None, threshold: Any = None) -> dict[str, Any]:
        """The public endpoint: a COCO annotation file, and under `models` time and remarks, or why none answered."""
        threshold = read_threshold(threshold)
        picture, expressions = read_picture(image), split_expressions(expressions)
        entries = self.zoo.bundled if models is None else read_models(self.zoo, models)
        with time_limit(TAKE_SECONDS, "The request"):
            answers, failures = self.comparer.answer_all(entries, picture, expressions)
            thresholds = [answer.answers[0].threshold if threshold is None else threshold for answer in answers]
            content = coco_annotations(picture, answers, expressions, thresholds)
        content["models"] = [
            {
                "model": model.entry.key,
                "note": model.entry.note,
                "parameters": model.answers[0].parameters,
                "seconds": round(model.answers[0].seconds, 4),
                "remarks": list(dict.fromkeys(remark for answer in model.answers for remark in answer.remarks)),
            }
            for model in answers
        ] + [{"model": failure.entry.key, "refusal": failure.sentence} for failure in failures]
        return content


def as_json(answer: ModelAnswers | Failure) -> dict[str, Any]:
    """A model's answers, or why there are none, as the page reads them."""
    if isinstance(answer, Failure):
        return {"kind": "failure", "model": answer.entry.key, "sentence": answer.sentence}
    first = answer.answers[0]
    return {
        "kind": "answer",
        "model": answer.entry.key,
        "seconds": first.seconds,
        "together": first.together,
        "threshold": first.threshold,
        "parameters": first.parameters,
        "cells": [cell_json(cell) for cell in answer.answers],
    }


def cell_json(answer: Answer) -> dict[str, Any]:
    return {
        "probability": url(answer.probability),
        "location": url(answer.location),
        "phrase": answer.phrase,
        "queries": [url(png) for png in answer.queries],
        "scores": [round(score, 3) for score in answer.query_scores],
        "remarks": list(answer.remarks),
    }
