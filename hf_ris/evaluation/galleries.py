"""Answers as pictures: image, truth and the answers of models side by side, the best, the worst, a kind, the changed.

A strip is one expression: `drawing.sheet` and `drawing.save_gallery` make figures of papers and pages of many of them.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from datasets import Dataset
from PIL import Image

from hf_ris.data.schema import decode_mask
from hf_ris.drawing import COLOURS, TRUTH, Panel, Strip, agreement, overlay
from hf_ris.metrics.slices import has_location_word, has_negation, has_ordinal


Lines = list[dict[str, Any]]  # of a predictions file
Kind = Literal["location", "ordinal", "negation", "none"]
Order = Literal["worst", "best", "random", "changed"]

_KINDS = {
    "location": lambda line: has_location_word(line["text"]),
    "ordinal": lambda line: has_ordinal(line["text"]),
    "negation": lambda line: has_negation(line["text"]),
    "none": lambda line: not line["object_ids"],  # nothing in the image fits
}
KINDS = tuple(_KINDS)
ORDERS = ("worst", "best", "random", "changed")


def iou(answer: np.ndarray, truth: np.ndarray) -> float:
    """Of two bool masks; 1 where both are empty."""
    union = np.count_nonzero(answer | truth)
    return np.count_nonzero(answer & truth) / union if union else 1.0


def strip(
    image: Image.Image, text: str, truth: np.ndarray | None, answers: Mapping[str, np.ndarray], note: str = ""
) -> Strip:
    """One expression: the image, the truth (None: unknown) and each model's mask, with its IoU.

    With one answer, how it agrees with the truth comes last: green is both, red too much, blue missed.
    """
    panels = [Panel(image, "image")]
    if truth is not None:
        what = "" if truth.any() else "nothing in the image fits"
        panels.append(Panel(overlay(image, [truth], colours=[TRUTH]), "truth", what, TRUTH))
    for index, (name, mask) in enumerate(answers.items()):
        colour = COLOURS[index % len(COLOURS)]
        note_of = "" if truth is None else f"IoU {iou(mask, truth):.2f}"
        note_of += "" if mask.any() else " (empty mask)"
        panels.append(Panel(overlay(image, [mask], colours=[colour]), name, note_of.strip(), colour))
    if truth is not None and len(answers) == 1:
        panels.append(
            Panel(agreement(image, *answers.values(), truth), "agreement", "green: both, red: too much, blue: missed")
        )
    return Strip(text, panels, note)


def choose(
    lines: Lines,
    order: Order = "worst",
    count: int = 12,
    kind: Kind | None = None,
    other: Lines | None = None,
    seed: int = 0,
) -> Lines:
    """`count` lines of a predictions file.

    Args:
        order: `worst` or `best` by IoU, `random`, or `changed`: those whose IoU differs most from the `other` file's.
        kind: of expressions alone; None is all.

    Raises:
        ValueError: `changed` without another file, files of different expressions, or nothing of the kind.
    """
    if order == "changed" and other is None:
        raise ValueError("changed answers need two files of predictions to compare")
    of_kind = [line for line in lines if kind is None or _KINDS[kind](line)]
    if not of_kind:
        raise ValueError(f"no expression is of the kind {kind}" if lines else "there are no predictions")
    scores = {line["expression_id"]: _line_iou(line) for line in of_kind}
    if order == "random":
        return random.Random(seed).sample(of_kind, min(count, len(of_kind)))
    if order == "changed":
        theirs = _by_id(other)
        _check_same(of_kind, theirs)
        scores = {key: -abs(value - _line_iou(theirs[key])) for key, value in scores.items()}
    ordered = sorted(of_kind, key=lambda line: (scores[line["expression_id"]], line["expression_id"]))
    return ordered[::-1][:count] if order == "best" else ordered[:count]


def strips_of(lines: Lines, rows: Dataset, models: Mapping[str, Lines]) -> list[Strip]:
    """Strips of chosen `lines`, with the answers of each of `models` (its whole file of predictions).

    Args:
        rows: the data set that the predictions are of, whose images are taken by image_id.

    Raises:
        ValueError: an image that `rows` lacks or that has another size, or an expression that a model lacks.
    """
    positions = {image_id: place for place, image_id in enumerate(rows["image_id"])}
    files = {name: _by_id(of) for name, of in models.items()}
    for of in files.values():
        _check_same(lines, of)
    strips = []
    for line in lines:
        if line["image_id"] not in positions:
            raise ValueError(f"the data set has no image {line['image_id']}: it is not the one of these predictions")
        image = rows[positions[line["image_id"]]]["image"]
        if (image.height, image.width) != (line["height"], line["width"]):
            raise ValueError(
                f"image {line['image_id']} is {image.height} x {image.width}, but the predictions are of one of "
                f"{line['height']} x {line['width']}: it is not the data set of these predictions"
            )
        answers = {name: decode_mask(of[line["expression_id"]]["prediction"]) for name, of in files.items()}
        note = f"image {line['image_id']}, expression {line['expression_id']}"
        strips.append(strip(image.convert("RGB"), line["text"], decode_mask(line["target"]), answers, note))
    return strips


def _by_id(lines: Lines) -> dict[int, dict[str, Any]]:
    return {line["expression_id"]: line for line in lines}


def _check_same(lines: Lines, other: Mapping[int, Any]) -> None:
    missing = [line["expression_id"] for line in lines if line["expression_id"] not in other]
    if missing:
        raise ValueError(f"one file has no expression {missing[0]}: both must be of the same data set")


def _line_iou(line: dict[str, Any]) -> float:
    return iou(decode_mask(line["prediction"]), decode_mask(line["target"]))


def heading(order: Order, count: int, models: Sequence[str], kind: Kind | None) -> str:
    """The title of a gallery."""
    what = {"worst": "worst answers", "best": "best answers", "random": "answers drawn at random"}
    said = what.get(order, "answers that changed most")
    return f"The {count} {said} of {' and '.join(models)}" + (f", expressions of the kind {kind}" if kind else "")
