"""CVAT's own export "CVAT for images 1.1": `annotations.xml`, or the ZIP or folder that holds it.

Shapes of an image: `polygon` (points "x,y;x,y" in pixels), `mask` (run lengths of zeros and ones in turn, row by row,
inside a box left, top, width, height), `box`, `polyline`, `points`, ... of which the first two are masks. Shapes with
one `group_id` are one object. An object's expression is an `attribute` of a shape; see `adopt`.
"""

import zipfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from ..schema import union_rle
from .collecting import Collection, Photo, mask_rle, polygon_rle


def read(path: Path, collection: Collection) -> None:
    """Raises ValueError for what is no such export."""
    try:
        root = ElementTree.fromstring(_content(path))
    except ElementTree.ParseError as error:
        raise ValueError(f"{path} is not XML: {error}") from error
    if root.tag != "annotations":
        raise ValueError(f"{path} is no CVAT export: its root is <{root.tag}>, not <annotations>")
    if root.find("track") is not None:
        raise ValueError(f"{path} is CVAT's export for video (it has tracks): export it as 'CVAT for images 1.1'")
    for number, entry in enumerate(root.iter("image")):
        name = entry.get("name", "")
        try:
            height, width = int(entry.get("height", "")), int(entry.get("width", ""))
        except ValueError:
            collection.problem(name or f"image {number}", "has no width and height")
            continue
        photo = collection.photo(name, height, width)
        shapes = [shape for shape in entry if shape.tag != "tag"]
        for shape in entry.findall("tag"):
            collection.problem(name, f"a tag of the whole image ({shape.get('label')}) says nothing of a part of it")
        if photo is None:
            if shapes:
                collection.problem(name, f"its {len(shapes)} shapes could not be used")
            continue
        _add_shapes(photo, shapes, collection)


def _content(path: Path) -> bytes:
    if path.is_dir():
        path = path / "annotations.xml"
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.split("/")[-1] == "annotations.xml"]
            if len(names) != 1:
                raise ValueError(f"{path} holds {len(names)} files annotations.xml; one is needed")
            return archive.read(names[0])
    data = path.read_bytes()
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise ValueError(f"{path} declares entities, which CVAT's exports do not, and is not read")
    return data


def _add_shapes(photo: Photo, shapes: list[ElementTree.Element], collection: Collection) -> None:
    groups: dict[Any, dict[str, Any]] = {}
    for number, shape in enumerate(shapes):
        where = f"{photo.name}, {shape.tag} {number} ({shape.get('label', 'no label')})"
        try:
            rle = _mask(shape, photo)
        except (ValueError, TypeError) as error:
            collection.problem(where, str(error))
            continue
        attributes = {one.get("name", ""): one.text or "" for one in shape.findall("attribute")}
        key = ("group", shape.get("group_id")) if shape.get("group_id") not in (None, "0", "") else ("alone", number)
        group = groups.setdefault(key, {"masks": [], "label": shape.get("label", ""), "texts": [], "where": where})
        group["masks"].append(rle)
        group["texts"] += collection.texts_of(attributes)
        if group["label"] != shape.get("label", ""):
            collection.problem(where, f"its group has the label {group['label']} too, which was taken")
    for group in groups.values():
        rle = union_rle(group["masks"], (photo.height, photo.width))
        collection.add(photo, rle, group["label"], group["texts"], group["where"])


def _mask(shape: ElementTree.Element, photo: Photo) -> dict[str, Any]:
    if shape.tag == "polygon":
        points = [
            [float(number) for number in point.split(",")] for point in shape.get("points", "").split(";") if point
        ]
        if any(len(point) != 2 for point in points):
            raise ValueError("a point is not x,y")
        return polygon_rle([[number for point in points for number in point]], photo.height, photo.width)
    if shape.tag != "mask":
        raise ValueError(f"a {shape.tag} is no mask: draw it as polygon or mask")
    left, top, width, height = (round(float(shape.get(name, "nan"))) for name in ("left", "top", "width", "height"))
    runs = [int(run) for run in shape.get("rle", "").split(",") if run.strip()]
    if min(runs, default=-1) < 0 or sum(runs) != width * height:
        raise ValueError(f"the runs of its mask sum to {sum(runs)}, not to its box's {width} x {height} pixels")
    if min(left, top) < 0 or left + width > photo.width or top + height > photo.height:
        raise ValueError("its mask's box leaves the image")
    mask = np.zeros((photo.height, photo.width), bool)
    inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
    mask[top : top + height, left : left + width] = inside
    return mask_rle(mask)
