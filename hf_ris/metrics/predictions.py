"""The predictions file: JSONL, one line per expression, everything the evaluator wants to know without a model.

  expression_id, image_id, ref_id   int
  object_ids                        list of int, the targets (empty: the expression has none)
  text, category                    string; category of the target, "" if unknown
  height, width                     int, the size of the image
  same_class_distractors            int, other objects of the target's class in the image; null if unknown
  prediction, target                RLE at the image's size: {"size": [height, width], "counts": string}
and, if known,
  target_parts                      list of RLE, the polygons of the target one by one
  target_without_crowds             RLE, the part of the target that is no region of a crowd, where that is not all
  prediction_480                    RLE of size [480, 480], what a model that works at 480x480 gives there, cut at 0.5
  cuts                              {threshold: RLE}, as {"0.35": RLE, "0.5": RLE}: the prediction cut at the thresholds
                                    that protocols have of their own
  threshold                         float, the probability above which a pixel was put into `prediction`
  score                             float, the model's confidence
  hit                               bool, whether the maximum of the model's heatmap lies in the target
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_ris.data.schema import check_rle, encode_mask

from .protocols import THRESHOLDS


_THRESHOLDS = tuple(f"{threshold:g}" for threshold in THRESHOLDS)
NUMBER = (int, float)
_RLE = 'an RLE {"size": [height, width], "counts": string}'
_COUNT_OR_NULL = (int, type(None))
_CUTS = (dict,)  # other than the dict of an RLE
_FIELDS = {
    "expression_id": int,
    "image_id": int,
    "ref_id": int,
    "object_ids": list,
    "text": str,
    "height": int,
    "width": int,
    "category": str,
    "same_class_distractors": _COUNT_OR_NULL,
    "prediction": dict,
    "target": dict,
}
_OPTIONAL = {
    "target_parts": list,
    "target_without_crowds": dict,
    "prediction_480": dict,
    "cuts": _CUTS,
    "threshold": NUMBER,
    "score": NUMBER,
    "hit": bool,
}
_TYPE_NAMES = {
    int: "an integer",
    str: "a string",
    list: "a list",
    dict: _RLE,
    bool: "true or false",
    NUMBER: "a number",
    _COUNT_OR_NULL: "an integer or null",
    _CUTS: "an object of RLEs by threshold",
}


def prediction_line(
    metadata: dict[str, Any],
    prediction: np.ndarray,
    target: np.ndarray,
    *,
    target_parts: Sequence[np.ndarray] | None = None,
    target_without_crowds: np.ndarray | None = None,
    prediction_480: np.ndarray | None = None,
    cuts: Mapping[float, np.ndarray] | None = None,
    threshold: float | None = None,
    score: float | None = None,
    hit: bool | None = None,
) -> dict[str, Any]:
    """One line of a predictions file as a dict for `json.dumps`.

    metadata: as `evaluator.expression_metadata` gives it. prediction, target, target_parts: bool (H, W) at the image's
    size, as those of cuts, by threshold; prediction_480: bool (480, 480).
    """
    line = {name: metadata[name] for name in _FIELDS if name not in ("prediction", "target")}
    line |= {"prediction": encode_mask(prediction), "target": encode_mask(target)}
    optional = {
        "target_parts": None if target_parts is None else [encode_mask(part) for part in target_parts],
        "target_without_crowds": None if target_without_crowds is None else encode_mask(target_without_crowds),
        "prediction_480": None if prediction_480 is None else encode_mask(prediction_480),
        "cuts": None if cuts is None else {f"{at:g}": encode_mask(cut) for at, cut in cuts.items()},
        "threshold": None if threshold is None else float(threshold),
        "score": None if score is None else float(score),
        "hit": None if hit is None else bool(hit),
    }
    return line | {name: value for name, value in optional.items() if value is not None}


def is_a(value: Any, kind: type | tuple[type, ...]) -> bool:
    """isinstance, but for true and false, which are no numbers, and for integers that no array holds."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, kind) and (not isinstance(value, int) or abs(value) < 1 << 63)


def shown(value: Any) -> str:
    """The first characters of a JSON value, for a sentence."""
    return json.dumps(value)[:60]


def check_kind(name: str, value: Any, kind: type | tuple[type, ...]) -> None:
    """ValueError with one sentence unless `value`, which the sentence calls `name`, is of a kind of the format's."""
    if not is_a(value, kind):
        raise ValueError(f"{name} is {_TYPE_NAMES[kind]}, but here it is {shown(value)}")


def check_fields(line: Any, required: dict[str, Any], optional: dict[str, Any]) -> None:
    """ValueError with one sentence unless `line` is an object with these fields (name -> kind) at a positive size."""
    if not isinstance(line, dict):
        raise ValueError(f"a line is a JSON object, but this one is {shown(line)}")
    missing = [name for name in required if name not in line]
    if missing:
        raise ValueError(f"the line lacks {', '.join(missing)}")
    kinds = required | optional
    for name, value in line.items():
        if name not in kinds:
            raise ValueError(f"there is no field {name!r}; the optional ones are {', '.join(optional)}")
        check_kind(name, value, kinds[name])
    if min(line["height"], line["width"]) < 1:
        raise ValueError(f"height and width are at least 1, but here they are {line['height']} and {line['width']}")


def check_mask(name: str, rle: Any, size: list[int]) -> None:
    """ValueError with one sentence unless `rle`, which the sentence calls `name`, fills a grid of `size` exactly."""
    shaped = isinstance(rle, dict) and rle.keys() == {"size", "counts"} and isinstance(rle["counts"], str)
    if not shaped:
        raise ValueError(f"{name} is {_RLE}, but here it is {shown(rle)}")
    if rle["size"] != size:
        raise ValueError(f"{name} has size {rle['size']}, but {size} is needed")
    try:
        check_rle(rle)
    except ValueError as error:
        raise ValueError(f"{name} is broken: {error}") from error


def check_line(line: Any) -> None:
    """ValueError with one sentence for the first thing in `line`, one parsed line, that breaks the format."""
    check_fields(line, _FIELDS, _OPTIONAL)
    if not all(is_a(identifier, int) for identifier in line["object_ids"]):
        raise ValueError(f"object_ids is a list of integers, but here it is {shown(line['object_ids'])}")
    if (line["same_class_distractors"] or 0) < 0:
        raise ValueError(f"same_class_distractors is 0 or more, but here it is {line['same_class_distractors']}")
    size = [line["height"], line["width"]]
    check_mask("prediction", line["prediction"], size)
    check_mask("target", line["target"], size)
    for index, part in enumerate(line.get("target_parts", [])):
        check_mask(f"target_parts[{index}]", part, size)
    if "target_without_crowds" in line:
        check_mask("target_without_crowds", line["target_without_crowds"], size)
    for threshold, cut in line.get("cuts", {}).items():
        if threshold not in _THRESHOLDS:
            raise ValueError(
                f"cuts has masks by threshold, of {', '.join(_THRESHOLDS)}, but here is {threshold[:60]!r}"
            )
        check_mask(f"cuts[{threshold}]", cut, size)
    if "prediction_480" in line:
        check_mask("prediction_480", line["prediction_480"], [480, 480])


def read_predictions(path: str | Path) -> list[dict[str, Any]]:
    """The checked lines of a predictions file; ValueError names file, line and what is wrong with it."""
    return read_lines(path, check_line)


def read_lines(path: str | Path, check: Callable[[Any], None]) -> list[dict[str, Any]]:
    """The lines of a JSONL file with one for each expression_id, each of which `check` has let pass.

    Raises:
        ValueError: no JSON, what `check` says, or two lines of one expression; it names file and line.
    """
    lines, numbers = [], {}
    with open(path, encoding="utf-8") as file:
        for number, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                line = json.loads(text)
                check(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
            identity = line["expression_id"]
            if identity in numbers:
                raise ValueError(f"{path}, line {number}: line {numbers[identity]} has expression_id {identity} too")
            numbers[identity] = number
            lines.append(line)
    if not lines:
        raise ValueError(f"{path} holds no predictions: a line per expression is needed")
    return lines
