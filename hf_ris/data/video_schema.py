"""The schema of videos: one row is one video with everything that is said of it.

    frames       list of images in order; `lazy_frames` reads a row so that only the frames asked for are decoded
    frame_names  list of string, their names in the data set, as "00005"
    video_id int64    file_name string: the video's name    height, width int32 of every frame
    objects      list of {object_id, category ("" if unknown), masks: a mask RLE for each frame, null where it is not
                 annotated (annotated and not seen is an empty mask)}
    expressions  list of {expression_id, name, ref_id, text, object_indices, annotation_set}: what it is called in its
                 video, as "0"; indices into `objects`, none, one or several; the set of annotations it is part of,
                 where a data set has several, else 0
    void         a mask RLE or null for each frame: pixels that count for nothing

A mask is what it is for images (`schema.py`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PillowImage

from ..models.images_ris import open_image, show, to_rgb
from .schema import Picture, check_rle, decode_mask, union_mask


_MASK = {"size": List(Value("int32")), "counts": Value("string")}
VIDEO_FEATURES = Features(
    {
        "frames": List(Picture()),
        "frame_names": List(Value("string")),
        "video_id": Value("int64"),
        "file_name": Value("string"),
        "height": Value("int32"),
        "width": Value("int32"),
        "objects": List({"object_id": Value("int64"), "category": Value("string"), "masks": List(_MASK)}),
        "expressions": List(
            {
                "expression_id": Value("int64"),
                "name": Value("string"),
                "ref_id": Value("int64"),
                "text": Value("string"),
                "object_indices": List(Value("int32")),
                "annotation_set": Value("int32"),
            }
        ),
        "void": List(_MASK),
    }
)


class Frames(Sequence):
    """The frames of a video as stored, each decoded (PIL, RGB) when it is asked for; a slice is again `Frames`.

    Args:
        stored: dicts with `bytes` of an image file or the `path` of one.
    """

    def __init__(self, stored: Sequence[dict[str, Any]]):
        self.stored = stored

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return Frames(self.stored[index])
        entry = self.stored[index]
        name = "A frame" if entry["path"] is None else f"The frame {show(entry['path'])}"
        return to_rgb(open_image(entry["path"] if entry["bytes"] is None else entry["bytes"], name), name)


def is_video_data(dataset: Dataset) -> bool:
    """Whether a data set's rows are videos."""
    return "frames" in dataset.features


def lazy_frames(dataset: Dataset) -> Dataset:
    """The same videos whose rows hold their frames as stored: `Frames(row["frames"])` decodes one by one."""
    return dataset.cast_column("frames", List(Image(decode=False)))


def frames_of(row: dict[str, Any]) -> Sequence[PillowImage.Image]:
    """The frames of a row, decoded or as stored."""
    frames = row["frames"]
    return Frames(frames) if frames and isinstance(frames[0], dict) else frames


def mask_of(rle: dict[str, Any] | None) -> np.ndarray | None:
    """Bool (H, W) of a frame's RLE; None where there is none. (Arrow gives a null struct as one of nulls.)"""
    return None if rle is None or rle["counts"] is None else decode_mask(rle)


def expression_masks(row: dict[str, Any], expression: dict[str, Any], frames: Sequence[int]) -> list[np.ndarray | None]:
    """Per frame number in `frames` the union of the expression's objects, bool (H, W); None where one of them is not
    annotated."""
    masks = []
    for frame in frames:
        rles = [row["objects"][index]["masks"][frame] for index in expression["object_indices"]]
        known = all(rle is not None and rle["counts"] is not None for rle in rles)
        masks.append(union_mask(rles, (row["height"], row["width"])) if known else None)
    return masks


def annotated_frames(row: dict[str, Any]) -> list[int]:
    """Frames in which at least one object is annotated; all, where a video has no object."""
    count = len(row["frame_names"])
    if not row["objects"]:
        return list(range(count))
    return [
        frame
        for frame in range(count)
        if any((rle := entry["masks"][frame]) is not None and rle["counts"] is not None for entry in row["objects"])
    ]


def validate_video(row: dict[str, Any]) -> None:
    """Raise ValueError with one sentence that names the first thing in `row` that breaks the schema."""
    missing = [name for name in VIDEO_FEATURES if name not in row]
    if missing:
        raise ValueError(f"the row lacks {', '.join(missing)}: a video row holds {', '.join(VIDEO_FEATURES)}")
    where, count = f"video {row['video_id']} ({row['file_name']})", len(row["frames"])
    size = [row["height"], row["width"]]
    if not count or len(row["frame_names"]) != count or len(row["void"]) != count:
        raise ValueError(
            f"{where}: {count} frames, {len(row['frame_names'])} frame_names and {len(row['void'])} entries of void; "
            "each frame has one, and there is at least one frame"
        )
    named = [("void", row["void"])]
    for number, entry in enumerate(row["objects"]):
        if len(entry["masks"]) != count:
            raise ValueError(f"{where}: object {number} has {len(entry['masks'])} masks for {count} frames")
        named.append((f"object {number}", entry["masks"]))
    for what, masks in named:
        for frame, rle in enumerate(masks):
            if rle is None or rle["counts"] is None:
                continue
            if list(rle["size"]) != size:
                raise ValueError(f"{where}: the mask of {what} in frame {frame} has size {rle['size']}, not {size}")
            try:
                check_rle(rle)
            except ValueError as error:
                raise ValueError(f"{where}: the mask of {what} in frame {frame} is broken: {error}") from error
    for number, said in enumerate(row["expressions"]):
        if not said["text"].strip():
            raise ValueError(f"{where}: expression {number} has no text")
        indices = said["object_indices"]
        if len(set(indices)) < len(indices) or any(not 0 <= index < len(row["objects"]) for index in indices):
            raise ValueError(
                f"{where}: expression {number} names objects {list(indices)}, but distinct indices from 0 to "
                f"{len(row['objects']) - 1} are needed"
            )
