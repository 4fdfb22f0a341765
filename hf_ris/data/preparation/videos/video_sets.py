"""Raw downloads of referring video data sets -> Parquet shards of the video schema: what their converters share.

A converter (`ref_youtube_vos.py`, `ref_davis17.py`) lists `VideoSource`s by split, each of which becomes one row when
its shard is written: frames are stored once, as they lie in the download. The work is done in `OUT.partial`, which
becomes `OUT` when all of it is there; shards are written under temporary names, and what one holds follows from the raw
files alone, so a run that was killed goes on and ends with the same bytes.
"""

import json
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from ...schema import encode_mask
from ...video_schema import VIDEO_FEATURES, validate_video
from ..raw_files import _members


VOID = 255  # the index of pixels that count for nothing


@dataclass
class VideoSource:
    """A video of a raw download.

    frames: (folder, name) in the tree of each frame, in order. annotations: (folder, name) of each frame's index map,
    None where there is none; None instead of the list: no masks are public. object_ids: the indices in those maps.
    expressions: dicts with name, text, objects (positions in object_ids) and annotation_set.
    """

    name: str
    frames: list[tuple[str, str]]
    annotations: list[tuple[str, str] | None] | None
    object_ids: list[int]
    expressions: list[dict[str, Any]]
    categories: dict[int, str] = field(default_factory=dict)


class Tree:
    """The files of a download by their folder's path: unpacked below `root`, up to one folder deeper, or in zip
    archives there; `root` may be one archive."""

    def __init__(self, root: str | Path):
        self.root = Path(root).expanduser()
        if not self.root.exists():
            raise ValueError(f"there is no {self.root}: --raw takes the folder that the downloads lie in")
        archives = (
            [self.root] if self.root.is_file() else sorted([*self.root.glob("*.zip"), *self.root.glob("*/*.zip")])
        )
        self.opened: dict[Path, zipfile.ZipFile] = {}
        self.folders: dict[str, tuple[int, Path, str]] = {}  # by the end of a path: parts before it, archive, path
        self.listed: dict[tuple[Path, str], list[str]] = {}
        for archive in archives:
            for member in _members(archive):
                path = PurePosixPath(member)
                if not member.endswith("/"):
                    self.listed.setdefault((archive, str(path.parent)), []).append(path.name)
        for archive, folder in self.listed:
            parts = PurePosixPath(archive.stem, folder).parts if folder != "." else (archive.stem,)
            for start in range(len(parts)):  # found by any end of its path, the archive's own name included
                end = "/".join(parts[start:])
                if end not in self.folders or start < self.folders[end][0]:  # the end that is most of its path
                    self.folders[end] = (start, archive, folder)

    def _on_disk(self, folder: str) -> Path | None:
        if self.root.is_file():
            return None
        candidates = [self.root / folder, *(entry / folder for entry in sorted(self.root.iterdir()) if entry.is_dir())]
        return next((path for path in candidates if path.is_dir()), None)

    def names(self, folder: str) -> list[str]:
        """The files in a folder, sorted; none where it is absent."""
        found = self._on_disk(folder)
        if found is not None:
            return sorted(entry.name for entry in found.iterdir() if entry.is_file())
        return sorted(self.listed[self.folders[folder][1:]]) if folder in self.folders else []

    def read(self, folder: str, name: str) -> bytes:
        """The content of a file. ValueError where it is absent or its archive is damaged."""
        found = self._on_disk(folder)
        if found is not None and (found / name).is_file():
            return (found / name).read_bytes()
        if folder not in self.folders:
            raise ValueError(f"{self.root} holds no {folder}/{name}, neither as a file nor in a zip archive")
        _, archive, inside = self.folders[folder]
        try:
            opened = self.opened.setdefault(archive, None) or zipfile.ZipFile(archive)
            self.opened[archive] = opened
            return opened.read(name if inside == "." else f"{inside}/{name}")
        except (KeyError, zipfile.BadZipFile, OSError, EOFError) as error:
            raise ValueError(f"{folder}/{name} in {archive} cannot be read: {error}") from error

    def json(self, folder: str, name: str) -> Any:
        try:
            return json.loads(self.read(folder, name))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{folder}/{name} is damaged: {error}") from error


def index_map(data: bytes, what: str) -> np.ndarray:
    """A palette PNG's numbers, uint8 (H, W). ValueError for a picture that has colours instead of numbers."""
    try:
        with Image.open(BytesIO(data)) as image:
            if image.mode not in ("P", "L", "1"):
                raise ValueError(f"{what} has mode {image.mode}, but annotations are palette PNGs whose values count")
            return np.asarray(image.convert("L") if image.mode == "1" else image).astype(np.uint8)
    except OSError as error:
        raise ValueError(f"{what} is no picture that can be read: {error}") from error


def make_row(tree: Tree, video: VideoSource, video_id: int) -> dict[str, Any]:
    """A row of the video schema."""
    frames = [{"bytes": tree.read(folder, name), "path": None} for folder, name in video.frames]
    what = f"the first frame of {video.name}"
    try:
        with Image.open(BytesIO(frames[0]["bytes"])) as image:
            width, height = image.size
    except OSError as error:
        raise ValueError(f"{what} is no picture that can be read: {error}") from error
    masks: list[list[Any]] = [[] for _ in video.object_ids]
    void: list[Any] = []
    for place in video.annotations or [None] * len(frames):
        if place is None:
            void.append(None)
            for of_object in masks:
                of_object.append(None)
            continue
        numbers = index_map(tree.read(*place), "/".join(place))
        if numbers.shape != (height, width):
            raise ValueError(f"{'/'.join(place)} has shape {numbers.shape}, but the frames have {(height, width)}")
        void.append(encode_mask(numbers == VOID) if (numbers == VOID).any() else None)
        for number, of_object in zip(video.object_ids, masks):
            of_object.append(encode_mask(numbers == number))
    row = {
        "frames": frames,
        "frame_names": [PurePosixPath(name).stem for _, name in video.frames],
        "video_id": video_id,
        "file_name": video.name,
        "height": height,
        "width": width,
        "objects": [
            {"object_id": video_id * 1000 + number, "category": video.categories.get(number, ""), "masks": of_object}
            for number, of_object in zip(video.object_ids, masks)
        ],
        "expressions": [
            {
                "expression_id": video_id * 1000 + place,
                "name": said["name"],
                "ref_id": video_id * 1000 + (said["objects"][0] if said["objects"] else place),
                "text": said["text"],
                "object_indices": said["objects"],
                "annotation_set": said["annotation_set"],
            }
            for place, said in enumerate(video.expressions)
        ],
        "void": void,
    }
    validate_video(row)
    return row


def prepare_videos(
    tree: Tree,
    out: str | Path,
    name: str,
    splits: dict[str, Sequence[VideoSource]],
    card: Callable[[dict[str, Any]], str],
    videos_per_shard: int = 20,
) -> dict[str, Any]:
    """Write `out` with its shards, `report.json` and card; returns the report.

    Raises:
        ValueError: what cannot be read, or an `out` of something else.
    """
    out = Path(out)
    plan = {"format": 1, "name": name, "videos_per_shard": videos_per_shard}
    plan["videos"] = {split: [video.name for video in videos] for split, videos in splits.items()}
    if out.exists():
        return _finished(out, plan)
    partial = out.with_name(out.name + ".partial")
    _begin(partial, plan)
    shards = list(_shards(partial, splits, videos_per_shard))
    total = sum(len(part) for _, part, _ in shards)
    with tqdm(total=total, unit="video", desc="shards") as bar:
        for path, part, start in shards:
            if not path.is_file():
                _write_shard(tree, path, part, start)
            bar.update(len(part))
    report = {"plan": plan, "splits": {split: counts_of(videos) for split, videos in splits.items()}}
    (partial / "README.md").write_text(card(report), encoding="utf-8")
    (partial / "progress.json").unlink()
    (partial / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    os.rename(partial, out)
    return report


def counts_of(videos: Sequence[VideoSource]) -> dict[str, int]:
    return {
        "videos": len(videos),
        "objects": sum(len(video.object_ids) for video in videos),
        "expressions": sum(len(video.expressions) for video in videos),
        "frames": sum(len(video.frames) for video in videos),
    }


def _finished(out: Path, plan: dict[str, Any]) -> dict[str, Any]:
    if not (out / "report.json").is_file():
        raise ValueError(f"{out} is there already and no prepared data set: give another --out")
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    if report["plan"] != plan:
        raise ValueError(f"{out} holds a data set of other raw files or options: remove it, or give another --out")
    return report


def _begin(partial: Path, plan: dict[str, Any]) -> None:
    record = partial / "progress.json"
    if not record.is_file():
        (partial / "data").mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(plan), encoding="utf-8")
    elif json.loads(record.read_text(encoding="utf-8")) != plan:
        raise ValueError(f"{partial} was begun with other raw files or options: remove it, or give another --out")
    for left in partial.glob("data/*.tmp"):
        left.unlink()


def _shards(
    partial: Path, splits: dict[str, Sequence[VideoSource]], step: int
) -> Iterator[tuple[Path, Sequence[VideoSource], int]]:
    """(file, its videos, the number of the first of all videos)."""
    first = 0
    for split, videos in splits.items():
        number = -(-len(videos) // step)
        for place in range(number):
            part = videos[place * step : (place + 1) * step]
            yield partial / f"data/{split}-{place:05d}-of-{number:05d}.parquet", part, first + place * step
        first += len(videos)


def _write_shard(tree: Tree, path: Path, videos: Sequence[VideoSource], start: int) -> None:
    temporary, schema = path.with_name(path.name + ".tmp"), VIDEO_FEATURES.arrow_schema
    with pq.ParquetWriter(temporary, schema, compression="none", use_dictionary=False) as writer:
        for number, video in enumerate(videos):  # a row is a group of its own: one video in memory
            writer.write_table(pa.Table.from_pylist([make_row(tree, video, start + number)], schema=schema))
    os.replace(temporary, path)
