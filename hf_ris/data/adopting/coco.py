"""COCO instance annotations: `images`, `annotations` (polygons or RLE), `categories`.

An object's expression is a field of its annotation (or of its `attributes`); see `adopt`.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from ..schema import check_rle
from .collecting import Collection, Photo, mask_rle, polygon_rle


def read(path: Path, collection: Collection) -> None:
    """Raises ValueError for what is no COCO file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict) or not all(
        isinstance(content.get(name), list) for name in ("images", "annotations")
    ):
        raise ValueError(f"{path} is no COCO annotation file: it needs the lists images and annotations")
    categories = {
        entry.get("id"): str(entry.get("name", ""))
        for entry in content.get("categories", [])
        if isinstance(entry, dict)
    }
    photos: dict[Any, Photo | None] = {}
    for number, entry in enumerate(content["images"]):
        if not _has(entry, ("id", "file_name", "height", "width")):
            collection.problem(f"image {number}", "lacks one of id, file_name, height, width")
            continue
        if entry["id"] in photos:
            collection.problem(str(entry["file_name"]), f"the id {entry['id']} is that of another image")
            continue
        photos[entry["id"]] = collection.photo(str(entry["file_name"]), int(entry["height"]), int(entry["width"]))
    for number, entry in enumerate(content["annotations"]):
        where = f"annotation {entry.get('id', number) if isinstance(entry, dict) else number}"
        if not _has(entry, ("image_id",)) or entry["image_id"] not in photos:
            collection.problem(where, "its image is not in the file")
            continue
        photo = photos[entry["image_id"]]
        if photo is None:
            collection.problem(where, "its image could not be used")
            continue
        category = categories.get(entry.get("category_id"), "")
        if not category and entry.get("category_id") is not None:
            collection.problem(where, f"there is no category {entry['category_id']}")
        try:
            rle = _mask(entry.get("segmentation"), photo)
        except (ValueError, TypeError) as error:
            collection.problem(where, str(error))
            continue
        attributes = entry.get("attributes")
        fields = {**(attributes if isinstance(attributes, dict) else {}), **entry}
        collection.add(photo, rle, category, collection.texts_of(fields), where)


def _has(entry: Any, names: tuple[str, ...]) -> bool:
    return isinstance(entry, dict) and all(entry.get(name) is not None for name in names)


def _mask(segmentation: Any, photo: Photo) -> dict[str, Any]:
    """Polygons, compressed or uncompressed RLE -> RLE. Raises ValueError for anything else."""
    if isinstance(segmentation, list) and segmentation:
        return polygon_rle(segmentation, photo.height, photo.width)
    if not isinstance(segmentation, dict) or "counts" not in segmentation:
        raise ValueError("it has no segmentation, only a box or nothing")
    size, counts = segmentation.get("size"), segmentation["counts"]
    if size != [photo.height, photo.width]:
        raise ValueError(f"its RLE has size {size}, the image {[photo.height, photo.width]} (height, width)")
    if isinstance(counts, str):
        rle = {"size": size, "counts": counts}
        check_rle(rle)
        return rle
    if sum(counts) != size[0] * size[1] or min(counts, default=-1) < 0:
        raise ValueError(f"the runs of its RLE sum to {sum(counts)}, not to the image's {size[0] * size[1]} pixels")
    return mask_rle(np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(size, order="F"))
