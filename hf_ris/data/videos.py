"""Rows of videos, and of images beside them, on their way to training: which frames and expressions are taken, and the
batch made of them."""

import random
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset

from .collator import object_index
from .transforms import expression_counts, read_row, sample_expressions, sample_triplet
from .video_schema import annotated_frames, expression_masks, frames_of


class VideoTrainingRows(torch.utils.data.Dataset):
    """The videos that have expressions, each with some of its expressions and of its annotated frames, by key
    `(epoch, index)`; all that is random follows from (seed, epoch, index). Images come after the videos, as videos of
    one frame, which their clips repeat.

    Args:
        dataset: of the video schema, its frames as stored (`lazy_frames`).
        max_expressions: at most so many of a video; None takes all.
        clip_frames: so many of the annotated frames are taken; None takes all of them.
        sampling: how: `random` draws them from all, with replacement, and sorts, as VATEX does; `spread` draws one from
            each of as many equal parts, as the windows of answering lie.
        triplets, weigh: as of `TrainingRows`.
        images: rows of the schema of images, read beside the videos; None is none.

    Attributes:
        videos: how many of the rows are videos.

    Raises:
        ValueError: videos, or images, of which none has an expression.
    """

    def __init__(
        self,
        dataset: Dataset | Sequence[dict[str, Any]],
        max_expressions: int | None = None,
        clip_frames: int | None = None,
        sampling: Literal["random", "spread"] = "random",
        seed: int = 0,
        triplets: bool = False,
        weigh: Callable[[str], float] | None = None,
        images: Dataset | Sequence[dict[str, Any]] | None = None,
    ):
        self.dataset, self.max_expressions, self.clip_frames = dataset, max_expressions, clip_frames
        self.sampling = sampling
        self.seed, self.triplets, self.weigh = seed, triplets, weigh
        self.images = images
        self.positions = np.flatnonzero(expression_counts(dataset))
        self.image_positions = np.flatnonzero([] if images is None else expression_counts(images))
        self.videos = len(self.positions)
        if self.videos == 0:
            raise ValueError("no video of the data set has an expression")
        if images is not None and len(self.image_positions) == 0:
            raise ValueError("no image of those beside the videos has an expression")

    def __len__(self) -> int:
        return self.videos + len(self.image_positions)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """A row with `clip`, the chosen frames' numbers."""
        epoch, index = key
        rng = random.Random(f"{self.seed} {epoch} {index}")
        if index < self.videos:
            row = self.dataset[int(self.positions[index])]
        else:
            row = video_of_one_frame(read_row(self.images, int(self.image_positions[index - self.videos])))
        if self.triplets:
            row = sample_triplet(row, self.max_expressions or 3, rng)
        elif self.max_expressions is not None:
            row = sample_expressions(row, self.max_expressions, rng, self.weigh)
        chosen = annotated_frames(row)
        if self.clip_frames is not None and self.sampling == "random":
            chosen = sorted(rng.choices(chosen, k=self.clip_frames))
        elif self.clip_frames is not None:
            places = [(part + rng.random()) * len(chosen) / self.clip_frames for part in range(self.clip_frames)]
            chosen = [chosen[int(place)] for place in places]
        return {**row, "clip": chosen}


def video_of_one_frame(row: dict[str, Any]) -> dict[str, Any]:
    """An image's row as the row of a video that has no other frame."""
    return {
        "frames": [row["image"]],
        "frame_names": [row["file_name"]],
        "video_id": row["image_id"],
        **{name: row[name] for name in ("file_name", "height", "width")},
        "objects": [
            {"object_id": entry["object_id"], "category": entry["category"], "masks": [entry["mask"]]}
            for entry in row["objects"]
        ],
        "expressions": [
            {**said, "name": str(said["expression_id"]), "annotation_set": 0} for said in row["expressions"]
        ],
        "void": [None],
    }


class VideoCollator:
    """Rows -> what `processor` makes of their clips and expressions, plus `object_index` (as `RisCollator`).

    A row's `clip` says which frames are taken; without it, all. An object that is not annotated in one of them counts
    as not seen there.

    Args:
        processor: called as `processor(videos, text=[[...]], masks=[[...]])`, parallel to videos.
        labels: give the processor the target masks, bool (T, height, width) each.
    """

    def __init__(self, processor: Callable[..., Any], labels: bool = True):
        self.processor, self.labels = processor, labels

    def __call__(self, rows: Sequence[dict[str, Any]]) -> Any:
        rows = [row for row in rows if row["expressions"]]
        if not rows:
            raise ValueError("the batch has no expression: leave out videos without any, or make the batch larger")
        clips = [row.get("clip", range(len(row["frame_names"]))) for row in rows]
        videos = [[frames_of(row)[frame] for frame in clip] for row, clip in zip(rows, clips)]
        texts = [[said["text"] for said in row["expressions"]] for row in rows]
        masks = {}
        if self.labels:
            masks["masks"] = [
                [_stacked(row, said, clip) for said in row["expressions"]] for row, clip in zip(rows, clips)
            ]
        batch = self.processor(videos, text=texts, return_tensors="pt", **masks)
        batch["object_index"] = object_index(
            [[tuple(sorted(said["object_indices"])) for said in row["expressions"]] for row in rows]
        )
        return batch


def _stacked(row: dict[str, Any], said: dict[str, Any], clip: Sequence[int]) -> np.ndarray:
    """Bool (T, height, width)."""
    nothing = np.zeros((row["height"], row["width"]), bool)
    return np.stack([nothing if mask is None else mask for mask in expression_masks(row, said, clip)])
