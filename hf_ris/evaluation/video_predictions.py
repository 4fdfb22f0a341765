"""Predictions of videos: their lines while a model answers, and the evaluator that a file of them fills without it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_ris.data.schema import decode_mask, encode_mask
from hf_ris.metrics import VideoEvaluator, merge_answers
from hf_ris.metrics.video_predictions import read_video_predictions


class VideoLines:
    """The lines of some expressions of one video, among them all of an annotation set, whose frames are added in any
    order.

    Args:
        row: of the video schema. expressions: of it. frames: the numbers of its annotated frames, each of which is to
            be added once.
    """

    def __init__(self, row: dict[str, Any], expressions: Sequence[dict[str, Any]], frames: Sequence[int]):
        self.row, self.expressions, self.frames = row, list(expressions), list(frames)
        self.predictions: dict[int, list[dict[str, Any]]] = {}  # by frame, an RLE for each expression
        self.merged: dict[int, list[dict[str, Any]]] = {}

    def add(self, frame: int, masks: Sequence[np.ndarray], probabilities: np.ndarray) -> None:
        """The answers in one frame: masks bool (H, W) and probabilities (N, H, W)."""
        self.predictions[frame] = [encode_mask(mask) for mask in masks]
        sets = np.array([said["annotation_set"] for said in self.expressions])
        regions = np.zeros(probabilities.shape, bool)
        for number in np.unique(sets):
            (members,) = np.nonzero(sets == number)
            merged = merge_answers(probabilities[members])
            for k, place in enumerate(members):
                regions[place] = merged == k + 1
        self.merged[frame] = [encode_mask(region) for region in regions]

    def finished(self, threshold: float) -> list[dict[str, Any]]:
        """A line for each expression; threshold: what a probability had to pass to be in its mask."""
        row = self.row
        of_video = {
            "video_id": row["video_id"],
            "video": row["file_name"],
            **{name: row[name] for name in ("height", "width")},
            "frames": [row["frame_names"][frame] for frame in self.frames],
            "objects": [
                {"object_id": entry["object_id"], "category": entry["category"], "masks": self._known(entry["masks"])}
                for entry in row["objects"]
            ],
            "void": self._known(row["void"]),
        }
        names = ("expression_id", "ref_id", "name", "text", "annotation_set", "object_indices")
        return [
            {name: said[name] for name in names}
            | of_video
            | {
                "prediction": [self.predictions[frame][place] for frame in self.frames],
                "merged": [self.merged[frame][place] for frame in self.frames],
                "threshold": threshold,
            }
            for place, said in enumerate(self.expressions)
        ]

    def _known(self, rles: Sequence[dict[str, Any] | None]) -> list[dict[str, Any] | None]:
        """Of the annotated frames; null where there is none. (Arrow gives a null struct as one of nulls.)"""
        chosen = [rles[frame] for frame in self.frames]
        return [None if rle is None or rle["counts"] is None else rle for rle in chosen]


def evaluate_video_predictions(path: str | Path, protocols: Sequence[str] = ("youtube_vos",)) -> VideoEvaluator:
    """The evaluator that holds a file of predictions as it held the answers of the model that wrote it.

    Raises:
        ValueError: a file of another form, or one that lacks what protocol `davis` needs.
    """
    evaluator = VideoEvaluator(protocols)
    for lines in read_video_predictions(path):
        lacking = [line["expression_id"] for line in lines if "merged" not in line]
        if lacking and "davis" in protocols:
            raise ValueError(f"{path}: expression {lacking[0]} has no merged, which the davis protocol needs")
        first = lines[0]
        scorer = evaluator.video(lines, len(first["objects"]))
        for frame in range(len(first["frames"])):
            targets = [_mask(entry["masks"][frame]) for entry in first["objects"]]
            masks = np.stack([decode_mask(line["prediction"][frame]) for line in lines])
            # answers that were merged lie beside each other: merged again as if certain, they stay what they are
            merged = None if lacking else np.stack([decode_mask(line["merged"][frame]) for line in lines]).astype(float)
            scorer.add(masks, targets, merged, _mask(first["void"][frame]))
        evaluator.add(first["video_id"], scorer)
    return evaluator


def _mask(rle: dict[str, Any] | None) -> np.ndarray | None:
    return None if rle is None else decode_mask(rle)
