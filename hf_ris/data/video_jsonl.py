"""A user's own videos: a folder with one JSONL per split (`train.jsonl`, `val.jsonl`), a line for each video.

    {"video": "clips/7.mp4",
     "objects": [{"masks": {"0": "masks/7/0.png", "5": {"size": [480, 854], "counts": "..."}}, "category": "dog"}],
     "expressions": [{"text": "the dog that runs to the left", "object": 0}, {"text": "both", "objects": [0, 1]}]}

`video` is a video file (whatever ffmpeg reads) or a folder of frames, in the order of their names. The keys of `masks`
count frames from 0; frames that are not among them are not annotated. A mask is a COCO RLE or the path of an image file
whose nonzero, not wholly transparent pixels are the object, as in `jsonl.py`. Paths are relative to the folder and stay
inside it. `"objects": []` in an expression says that nothing in the video fits it. Unknown fields are errors.

Frames of a file are stored as JPEG of high quality when the data set is first read, those of a folder as they are; the
data set is cached on disk, so memory does not grow with it.
"""

import hashlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from datasets.exceptions import DatasetGenerationError
from PIL import Image
from pycocotools import mask as coco_mask

from ..models.images_ris import open_image
from ..models.video_files import frames_in_folder, read_frames
from .jsonl import _inside, _is_int, _only, _parsed_lines, _prefixed, _show, _text, drawn_mask
from .schema import check_rle, encode_mask
from .video_schema import VIDEO_FEATURES, validate_video


_LINE_FIELDS = ("video", "objects", "expressions")
_OBJECT_FIELDS = ("masks", "category")
_EXPRESSION_FIELDS = ("text", "object", "objects")


def is_video_folder(path: str | Path) -> bool:
    """Whether the first line of a folder's first JSONL describes a video."""
    files = sorted(Path(path).glob("*.jsonl"))
    for _, line in _parsed_lines(files[0]) if files else ():
        return "video" in line
    return False


def load_video_folder(path: str | Path, split: str | None = None) -> Dataset | DatasetDict:
    """The folder's one JSONL, or the one of `split`, as Dataset; several without `split` as DatasetDict.

    Raises:
        ValueError: the first thing that does not fit, with file and line.
    """
    root = Path(path).expanduser().resolve()
    files = {file.stem: file for file in sorted(root.glob("*.jsonl"))}
    if split is not None and split not in files:
        raise ValueError(f"{path} has no {split}.jsonl for the split {split!r}: it holds {', '.join(files)} (.jsonl)")
    if split is None and len(files) > 1:
        return DatasetDict({stem: _read(file, root) for stem, file in files.items()})
    return _read(files[split or next(iter(files))], root)


def _read(file: Path, root: Path) -> Dataset:
    for _ in _rows(str(file), str(root), frames=False):  # what is wrong is said before anything is stored
        pass
    digest = hashlib.sha256(f"{root} {Path(__file__).read_text(encoding='utf-8')}".encode())
    for entry in sorted(root.rglob("*")):
        if entry.is_file():
            digest.update(f"{entry} {entry.stat().st_size} {entry.stat().st_mtime_ns}".encode())
    arguments = {"file": str(file), "root": str(root), "frames": True}
    fingerprint = hashlib.sha256(digest.digest() + file.name.encode()).hexdigest()[:16]
    try:
        return Dataset.from_generator(_rows, features=VIDEO_FEATURES, gen_kwargs=arguments, fingerprint=fingerprint)
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, ValueError):
            raise ValueError(str(error.__cause__)) from error
        raise


def _rows(file: str, root: str, frames: bool) -> Iterator[dict[str, Any]]:
    """Rows of the schema; without `frames`, checked but for the videos themselves."""
    file, root, count = Path(file), Path(root), 0
    for number, line in _parsed_lines(file):
        with _prefixed(f"{file.name} line {number}"):
            _only(line, _LINE_FIELDS, "a line")
            place = _video(_text("video", line.get("video")), root)
            objects, expressions = line.get("objects", []), line.get("expressions", [])
            if not isinstance(objects, list) or not isinstance(expressions, list):
                raise ValueError("objects and expressions are lists")
            for entry in objects:
                _only(entry, _OBJECT_FIELDS, "an object")
                if not isinstance(entry.get("masks"), dict):
                    raise ValueError(f"the masks of an object are {{frame: mask}}, not {_show(entry.get('masks'))}")
            said = [_expression(one, place, count, len(objects)) for place, one in enumerate(expressions)]
            if frames:
                yield _row(place, line["video"], count, objects, said, root)
        count += 1
    if not count:
        raise ValueError(f"{file.name} holds no line: each line describes one video")


def _video(name: str, root: Path) -> Path:
    """`root / name`, a file or a folder that lies in `root`, links followed."""
    path = (root / name).resolve()
    if not path.is_dir() or not path.is_relative_to(root):
        return _inside(name, root)
    return path


def _expression(entry: Any, place: int, video_id: int, objects: int) -> dict[str, Any]:
    _only(entry, _EXPRESSION_FIELDS, "an expression")
    if ("object" in entry) == ("objects" in entry):
        raise ValueError("an expression names its object or its objects, one of the two")
    indices = [entry["object"]] if "object" in entry else entry["objects"]
    if not isinstance(indices, list) or not all(_is_int(index) and 0 <= index < objects for index in indices):
        raise ValueError(f"an expression names objects {_show(indices)}, but there are {objects}, counted from 0")
    return {
        "expression_id": video_id * 1000 + place,
        "name": str(place),
        "ref_id": video_id * 1000 + (indices[0] if indices else 500 + place),
        "text": _text("text", entry.get("text")),
        "object_indices": indices,
        "annotation_set": 0,
    }


def _row(place: Path, name: str, video_id: int, objects: list, said: list, root: Path) -> dict[str, Any]:
    if place.is_dir():
        stored = [{"bytes": file.read_bytes(), "path": None} for file in frames_in_folder(place)]
    else:
        stored = [{"bytes": _jpeg(frame), "path": None} for frame in read_frames(place)]
    first = open_image(stored[0]["bytes"], f"the first frame of {name}")
    size, count = [first.height, first.width], len(stored)
    row = {
        "frames": stored,
        "frame_names": [f"{frame:05d}" for frame in range(count)],
        "video_id": video_id,
        "file_name": name,
        "height": size[0],
        "width": size[1],
        "objects": [
            {
                "object_id": video_id * 1000 + number,
                "category": _text("category", entry["category"]) if entry.get("category") else "",
                "masks": _masks(entry["masks"], count, size, root),
            }
            for number, entry in enumerate(objects)
        ],
        "expressions": said,
        "void": [None] * count,
    }
    validate_video(row)
    return row


def _masks(given: dict[str, Any], count: int, size: list[int], root: Path) -> list[dict[str, Any] | None]:
    masks: list[dict[str, Any] | None] = [None] * count
    for frame, value in given.items():
        if not frame.isdecimal() or int(frame) >= count:
            raise ValueError(f"a mask is of frame {frame!r}, but the video has the frames 0 to {count - 1}")
        if isinstance(value, str):
            image = open_image(_inside(value, root), f"the mask {value}")
            mask = encode_mask(drawn_mask(image, value))
        elif isinstance(value, dict) and value.keys() == {"size", "counts"}:
            rle = coco_mask.frPyObjects(value, *value["size"]) if isinstance(value["counts"], list) else value
            counts = rle["counts"].decode("ascii") if isinstance(rle["counts"], bytes) else rle["counts"]
            mask = {"size": list(rle["size"]), "counts": counts}
            check_rle(mask)
        else:
            raise ValueError(f"a mask is an RLE or the path of an image, not {_show(value)}")
        if mask["size"] != size:
            raise ValueError(f"the mask of frame {frame} has size {mask['size']}, the video {size}")
        masks[int(frame)] = mask
    return masks


def _jpeg(frame: Image.Image) -> bytes:
    file = BytesIO()
    frame.save(file, "JPEG", quality=95)
    return file.getvalue()
