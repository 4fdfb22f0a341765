"""Rows of the one schema from a raw index, one by one, and what each shard of them tells the report."""

import hashlib
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image
from pycocotools import mask as coco_mask

from ..ground_truth import GroundTruth, annotation_masks, change_ground_truth, degenerate_polygons
from ..schema import validate_row
from .raw_files import LARGEST_PICTURE, read_packed
from .raw_index import IndexReader, Problem


# What photographs are kept in and Pillow decodes by itself; others start programs (EPS: Ghostscript). Listed anew:
# what imports a file of the models imports torch, which every worker here would hold in memory.
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
_IMAGE_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises on damaged files


class Shard(NamedTuple):
    """Rows [start, stop) of a split: the Parquet file, and what was counted, which says that the file is whole."""

    file: Path
    record: Path
    split: str
    start: int
    stop: int
    ground_truth: GroundTruth


@dataclass
class Record:
    """What a shard tells the report."""

    images: int = 0
    references: int = 0
    expressions: int = 0
    objects: int = 0
    crowds: int = 0
    empty_objects: int = 0
    overlapping_objects: int = 0
    without_target: int = 0
    with_one_target: int = 0
    with_several_targets: int = 0
    problems: list[dict[str, Any]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)

    def count(self, row: dict[str, Any]) -> None:
        expressions = row["expressions"]
        self.images += 1
        self.references += len({said["ref_id"] for said in expressions})
        self.expressions += len(expressions)
        self.objects += len(row["objects"])
        self.crowds += len(row["crowds"])
        self.empty_objects += sum(int(coco_mask.area(entry["mask"])) == 0 for entry in row["objects"])
        self.overlapping_objects += len(row["overlaps"])
        targets = [len(said["object_indices"]) for said in expressions]
        self.without_target += targets.count(0)
        self.with_one_target += targets.count(1)
        self.with_several_targets += sum(count > 1 for count in targets)


class _Unusable(Exception):
    """A picture that is left out: what is wrong with it, and more of that."""


def make_row(
    reader: IndexReader, image: dict, objects: list[dict], expressions: list[dict], record: Record, shard: Shard
) -> dict[str, Any] | None:
    """The row of an image, counted in `record`; None, with a problem in `record`, if nothing of it can be used."""
    try:
        picture = _picture(reader, image, record)
    except _Unusable as error:
        lost = Problem(shard.split, image["image_id"], image["file_name"], *error.args, len(expressions))
        record.problems.append(lost._asdict())
        return None
    drawn, expressions = _drawn(image, objects, expressions, record, shard)
    if not expressions:
        return None
    row = {
        "image": {"bytes": picture, "path": image["file_name"]},
        **{name: image[name] for name in ("image_id", "file_name", "height", "width")},
        "objects": [],
        "expressions": [],
        "crowds": [place for place, (entry, _, _) in enumerate(drawn) if entry["crowd"]],
        "overlaps": [],
    }
    for place, (entry, mask, several) in enumerate(drawn):
        if several is not None:
            row["overlaps"].append({"object_index": place, "mask": several})
        row["objects"].append(
            {
                "object_id": entry["object_id"],
                "category": entry["category"],
                "bbox": json.loads(entry["bbox"]),
                "mask": mask,
            }
        )
    index_of = {entry["object_id"]: place for place, (entry, _, _) in enumerate(drawn)}
    for said in expressions:
        targets = [index_of[number] for number in json.loads(said["object_ids"])]
        ids = {"expression_id": said["expression_id"], "ref_id": said["ref_id"]}
        row["expressions"].append({**ids, "text": said["text"], "object_indices": targets})
    row = change_ground_truth(row, shard.ground_truth)
    validate_row({**row, "image": Image.open(io.BytesIO(picture))})
    record.count(row)
    return row


def _drawn(
    image: dict, objects: list[dict], expressions: list[dict], record: Record, shard: Shard
) -> tuple[list[tuple[dict, dict, dict | None]], list[dict]]:
    """(objects with their two masks, expressions) of an image.

    An object that cannot be drawn is left out: with a remark where no expression speaks of it, else as a problem, with
    these expressions.
    """
    drawn, broken = [], {}
    for entry in objects:
        number = entry["object_id"]
        try:
            if entry["problem"] is not None:
                raise ValueError(entry["problem"])
            segmentation = json.loads(entry["segmentation"])
            drawn.append((entry, *annotation_masks(segmentation, image["height"], image["width"])))
        except (ValueError, RecursionError) as error:
            named = str(error).startswith(f"annotation {number} ")
            broken[number] = str(error) if named else f"annotation {number}: {error}"
            continue
        if degenerate := degenerate_polygons(segmentation):
            told = f"annotation {number} of {image['file_name']} has {degenerate} polygons without area, left out"
            record.remarks.append(told)
    spoken = {said["expression_id"]: set(json.loads(said["object_ids"])) for said in expressions}
    for number, reason in broken.items():
        lost = sum(number in targets for targets in spoken.values())
        if lost:
            what = "annotation that cannot be used"
            problem = Problem(shard.split, image["image_id"], image["file_name"], what, reason, lost)
            record.problems.append(problem._asdict())
        else:
            record.remarks.append(f"{reason} ({image['file_name']}); nothing speaks of it, left out")
    return drawn, [said for said in expressions if spoken[said["expression_id"]].isdisjoint(broken)]


def _picture(reader: IndexReader, image: dict[str, Any], record: Record) -> bytes:
    """The image file as it is stored; its hash goes to `record`.

    A file that its EXIF would turn on display becomes a PNG of its pixels as they lie: annotations refer to these.
    """
    place = reader.place(image["file_name"])
    if place is None:
        raise _Unusable("missing image", "")
    try:
        if isinstance(place, Path) and place.stat().st_size > LARGEST_PICTURE:
            raise OSError(f"it has {place.stat().st_size:,} bytes, more than any picture")
        data = place.read_bytes() if isinstance(place, Path) else read_packed(place)
        with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
            picture.load()  # all of it: a file that was cut off has a whole header
            size = picture.height, picture.width
            turned = picture.getexif().get(ExifTags.Base.Orientation, 1) != 1
            pixels = np.asarray(picture.convert("RGB")) if turned else None
    except _IMAGE_ERRORS as error:
        raise _Unusable("damaged image", str(error)) from error
    if size != (image["height"], image["width"]):
        detail = f"{size[0]} x {size[1]} instead of {image['height']} x {image['width']} (height x width)"
        raise _Unusable("image of another size", detail)
    record.hashes.append(f"{hashlib.sha256(data).hexdigest()}  {image['file_name']}")
    if not turned:
        return data
    plain = io.BytesIO()
    Image.fromarray(pixels).save(plain, "PNG")
    return plain.getvalue()
