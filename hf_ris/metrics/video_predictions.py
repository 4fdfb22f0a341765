"""The predictions file of videos: JSONL, one line per expression of a video, all that its protocols want to know.

  expression_id, video_id, ref_id   int
  video, name, text                 string; the video's name, and what the expression is called in it
  annotation_set                    int, the set of annotations that the expression is part of
  object_indices                    list of int, the targets' places in `objects` (empty: the expression has none)
  height, width                     int, the size of the frames
  frames                            list of string, the names of the frames in which any object is annotated
  objects                           list, every object of the video, the same in all its lines: {"object_id": int,
                                    "category": string, "masks": for each of `frames` an RLE or, where the object is not
                                    annotated, null}
  void                              list, for each frame an RLE or null: pixels that count for nothing
  prediction                        list of RLE, for each frame {"size": [height, width], "counts": string}
and, if known,
  merged                            list of RLE, for each frame what is left of the answer when those of its annotation
                                    set become one map, in which the most probable wins; protocol davis needs it
  threshold                         float, the probability above which a pixel was put into `prediction`
"""

import json
from pathlib import Path
from typing import Any

from .predictions import NUMBER, check_fields, check_kind, check_mask, is_a, read_lines, shown


_FIELDS = {
    "expression_id": int,
    "video_id": int,
    "ref_id": int,
    "video": str,
    "name": str,
    "text": str,
    "annotation_set": int,
    "object_indices": list,
    "height": int,
    "width": int,
    "frames": list,
    "objects": list,
    "void": list,
    "prediction": list,
}
_OPTIONAL = {"merged": list, "threshold": NUMBER}
_OF_THE_VIDEO = ("video", "height", "width", "frames", "objects", "void")  # the same in all lines of a video
_OBJECT = {"object_id": int, "category": str, "masks": list}


def check_video_line(line: Any) -> None:
    """ValueError with one sentence for the first thing in `line`, one parsed line, that breaks the format."""
    check_fields(line, _FIELDS, _OPTIONAL)
    if not all(isinstance(name, str) for name in line["frames"]):
        raise ValueError(f"frames is a list of strings, but here it is {shown(line['frames'])}")
    for place, entry in enumerate(line["objects"]):
        if not isinstance(entry, dict) or entry.keys() != _OBJECT.keys():
            raise ValueError(f"objects[{place}] has {', '.join(_OBJECT)}, but here it is {shown(entry)}")
        for name, kind in _OBJECT.items():
            check_kind(f"objects[{place}].{name}", entry[name], kind)
    indices, count = line["object_indices"], len(line["objects"])
    if not all(is_a(index, int) and 0 <= index < count for index in indices) or len(set(indices)) < len(indices):
        raise ValueError(f"object_indices are distinct places in {count} objects, but here they are {shown(indices)}")
    _check_masks(line)


def _check_masks(line: dict[str, Any]) -> None:
    """Each list has a mask for every frame; those of objects and void may be null."""
    lists = [(f"objects[{place}].masks", entry["masks"], True) for place, entry in enumerate(line["objects"])]
    lists += [("void", line["void"], True), ("prediction", line["prediction"], False)]
    lists += [("merged", line["merged"], False)] if "merged" in line else []
    for name, masks, may_be_null in lists:
        if len(masks) != len(line["frames"]):
            raise ValueError(f"{name} has {len(masks)} masks for {len(line['frames'])} frames")
        for frame, rle in enumerate(masks):
            if rle is not None or not may_be_null:
                check_mask(f"{name}[{frame}]", rle, [line["height"], line["width"]])


def is_of_videos(path: str | Path) -> bool:
    """Whether a predictions file is of videos, by its first line; where that is no JSON, it is not."""
    with open(path, encoding="utf-8", errors="replace") as file:
        try:
            line = json.loads(next((text for text in file if text.strip()), ""))
        except (ValueError, RecursionError):
            return False
    return isinstance(line, dict) and "video_id" in line


def read_video_predictions(path: str | Path) -> list[list[dict[str, Any]]]:
    """The checked lines of a predictions file, video by video in the order of their numbers.

    Raises:
        ValueError: a line that breaks the format, with its number, or two of a video that tell different things of it.
    """
    videos: dict[int, list[dict[str, Any]]] = {}
    for line in read_lines(path, check_video_line):
        of_video = videos.setdefault(line["video_id"], [])
        for name in _OF_THE_VIDEO:
            if of_video and of_video[0][name] != line[name]:
                first, second = of_video[0]["expression_id"], line["expression_id"]
                raise ValueError(
                    f"{path}: expressions {first} and {second} of video {line['video_id']} have different {name}"
                )
        of_video.append(line)
    return [videos[number] for number in sorted(videos)]
