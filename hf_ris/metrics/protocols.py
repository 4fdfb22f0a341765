"""The evaluation protocols of referring segmentation, by name, and the pixel counts of one expression under each.

Numbers of different repositories are not comparable: they differ in the resolution at which IoU is taken, in how the
ground truth is drawn and how probabilities become a mask, and in what Pr@X and an empty union mean.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Protocol:
    """How one evaluation turns predictions and ground truth into numbers.

    size: (height, width) at which IoU is taken, None for the image's own; ground truth gets there by Pillow's nearest.
    target: ground truth of an object drawn in parts (polygons): their "union", or "sum_equals_one", the pixels that
        exactly one part covers.
    threshold: a pixel belongs to the mask where its probability is above; None leaves it to the model's processor.
    expressions: "all", or "first", the one with the lowest id of each reference.
    precision_at, strict: Pr@X counts IoU >= X, or IoU > X if strict.
    empty_value: IoU where prediction and target are both empty.
    no_target_value, precision_needs_target: for expressions that have no target at all (gRefCOCO): the IoU of an empty
        prediction (None: `empty_value`), and whether Pr@X leaves them out.
    crowds: whether targets that are regions of a crowd (COCO's iscrowd) belong to the ground truth.
    """

    name: str
    description: str
    size: tuple[int, int] | None = None
    target: Literal["union", "sum_equals_one"] = "union"
    threshold: float | None = None
    expressions: Literal["all", "first"] = "all"
    precision_at: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8, 0.9)
    strict: bool = False
    empty_value: float = 0.0
    no_target_value: float | None = None
    precision_needs_target: bool = False
    crowds: bool = True

    @property
    def view(self) -> tuple:
        """What the pixel counts depend on; protocols that share it share their counts."""
        return self.size, self.target, self.threshold, self.crowds


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("original", "hf_ris: original size, the model's own threshold", empty_value=1.0),
        Protocol(
            "lavt480",
            "LAVT: at 480x480, argmax of two logits, ground truth where exactly one polygon lies",
            size=(480, 480),
            target="sum_equals_one",
            threshold=0.5,
        ),
        Protocol("cris", "CRIS: original size, probability > 0.35, Pr@X strict", threshold=0.35, strict=True),
        Protocol(
            "cris_first",
            "CRIS's validation during training: the first expression of each reference only",
            threshold=0.35,
            strict=True,
            expressions="first",
        ),
        Protocol(
            "vlt",
            "VLT: original size, probability > 0.35, Pr@X strict from 0.5 to 0.95, two empty masks agree",
            threshold=0.35,
            precision_at=(0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95),
            strict=True,
            empty_value=1.0,
        ),
        Protocol("vatex", "VATEX: original size, logit > 0, Pr@X strict", threshold=0.5, strict=True),
        Protocol(
            "rela",
            "ReLA: at 480x480, argmax of two logits; IoU 1 for an expression without target that gets an empty mask; "
            "the ground truth leaves out regions of a crowd",
            size=(480, 480),
            threshold=0.5,
            precision_at=(0.7, 0.8, 0.9),
            no_target_value=1.0,
            precision_needs_target=True,
            crowds=False,
        ),
        Protocol("phrasecut", "PhraseCut: original size, union of all instances, Pr@X strict", strict=True),
    )
}


# The thresholds that protocols have of their own.
THRESHOLDS = tuple(sorted({protocol.threshold for protocol in PROTOCOLS.values() if protocol.threshold is not None}))


def get_protocol(name: str) -> Protocol:
    """The protocol of that name; ValueError lists the names there are."""
    if name not in PROTOCOLS:
        raise ValueError(f"there is no protocol {name!r}; there are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def leading_metrics(names: Iterable[str]) -> tuple[str, ...]:
    """Of measured metrics those that are shown first; a model is chosen by the first: J&F of videos, mIoU of images."""
    return ("J&F", "J", "F") if "J&F" in names else ("mIoU", "oIoU")


class Counts(NamedTuple):
    """Pixels of one expression: in prediction and target, in either, in the prediction, in the target."""

    intersection: int
    union: int
    prediction_area: int
    target_area: int


@lru_cache(maxsize=1024)
def nearest_indices(length: int, new_length: int) -> np.ndarray:
    """The source index, int (new_length,), that Pillow's nearest resizing reads for each new index.

    Asked of Pillow itself: it steps in accumulated floating point, which is not exact rounding of pixel centres at some
    common sizes (640 to 480).
    """
    ramp = Image.fromarray(np.arange(length, dtype=np.int32)[None, :])
    return np.asarray(ramp.resize((new_length, 1), Image.Resampling.NEAREST))[0]


def resize_nearest(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bool (H, W) -> bool `size` (height, width), the same pixels as Pillow's nearest resizing."""
    rows = nearest_indices(mask.shape[0], size[0])
    columns = nearest_indices(mask.shape[1], size[1])
    return mask[rows][:, columns]


def protocol_target(
    target: np.ndarray,
    protocol: Protocol,
    parts: list[np.ndarray] | None = None,
    without_crowds: np.ndarray | None = None,
) -> np.ndarray:
    """The ground truth that `protocol` compares with, bool (height, width) at the size of the protocol.

    target: bool (H, W) at original size, the union. parts: its polygons, bool (H, W) each, which "sum_equals_one"
    needs; without them it takes the union. without_crowds: bool (H, W), the union of the targets that are no regions of
    a crowd; None: all are not.
    """
    if not protocol.crowds and without_crowds is not None:
        target = without_crowds
    if protocol.target == "sum_equals_one" and parts is not None:
        target = np.sum(parts, axis=0, dtype=np.int32) == 1 if parts else np.zeros_like(target)
    return target if protocol.size is None else resize_nearest(target, protocol.size)


def protocol_prediction(prediction: np.ndarray, protocol: Protocol, original_size: tuple[int, int]) -> np.ndarray:
    """The predicted mask that `protocol` compares, bool (height, width) at the size of the protocol.

    prediction: a bool mask, used as it was cut, or float probabilities in [0, 1], cut by the protocol's threshold; of
    the original size or, better, already of the protocol's size, as a model that works at that size gives it.
    """
    if prediction.dtype != np.bool_:
        if protocol.threshold is None:
            raise ValueError(
                f"protocol {protocol.name} takes masks as the model cut them: give it bool, not {prediction.dtype}"
            )
        if not np.issubdtype(prediction.dtype, np.floating):
            raise ValueError(f"a prediction is a bool mask or float probabilities, not {prediction.dtype}")
        prediction = prediction > protocol.threshold
    if protocol.size is not None and prediction.shape == protocol.size:
        return prediction
    if prediction.shape != tuple(original_size):
        raise ValueError(
            f"the prediction has shape {prediction.shape}, but protocol {protocol.name} needs the image's "
            f"{tuple(original_size)}" + (f" or {protocol.size}" if protocol.size else "")
        )
    return prediction if protocol.size is None else resize_nearest(prediction, protocol.size)


def mask_counts(prediction: np.ndarray, target: np.ndarray) -> Counts:
    """Counts of two bool masks (H, W) of one shape."""
    prediction_area, target_area = int(np.count_nonzero(prediction)), int(np.count_nonzero(target))
    intersection = int(np.count_nonzero(prediction & target))
    return Counts(intersection, prediction_area + target_area - intersection, prediction_area, target_area)


def counts(
    prediction: np.ndarray,
    target: np.ndarray,
    protocol: Protocol,
    *,
    target_parts: list[np.ndarray] | None = None,
    target_without_crowds: np.ndarray | None = None,
) -> Counts:
    """Pixel counts of one expression under `protocol`; see `protocol_prediction` and `protocol_target`."""
    if target.dtype != np.bool_ or target.ndim != 2:
        raise ValueError(f"a target is a bool mask (height, width), not {target.dtype} of shape {target.shape}")
    return mask_counts(
        protocol_prediction(prediction, protocol, target.shape),
        protocol_target(target, protocol, target_parts, target_without_crowds),
    )
