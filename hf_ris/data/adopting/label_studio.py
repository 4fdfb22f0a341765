"""Label Studio's JSON export: a list of tasks with `data` and `annotations`, each a list of results.

Results of type `polygonlabels` (points in percent of the image's sides) and `brushlabels` (a packed run-length encoding
of the pixels as RGBA, of which the last channel is the mask) are objects. A text area per region has the region's id,
and what is written in it is the object's expression; see `adopt`. Rectangles and other shapes are no masks.

The packing (rle-pack): 32 bits say how many values there are, 5 the bits of a value less one, four times 4 the bits of
a count less one. Then blocks follow: a bit that says whether one value is repeated or each is given, 2 bits that choose
the width of the count, the count less one, and the value or values.
"""

import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

import numpy as np

from .collecting import Collection, Photo, mask_rle, polygon_rle


def read(path: Path, collection: Collection) -> None:
    """Raises ValueError for what is no such export."""
    try:
        tasks = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(tasks, list) or not all(isinstance(task, dict) and "data" in task for task in tasks):
        raise ValueError(
            f"{path} is no Label Studio export: export it as JSON (a list of tasks), not as JSON-MIN or CSV"
        )
    for number, task in enumerate(tasks):
        where = f"task {task.get('id', number)}"
        given = [one for one in task.get("annotations") or [] if isinstance(one, dict) and not one.get("was_cancelled")]
        if not given:
            collection.problem(where, "it has no annotation that was not cancelled")
            continue
        if len(given) > 1:
            collection.problem(where, f"it has {len(given)} annotations, of which the first was taken")
        results = [one for one in given[0].get("result") or [] if isinstance(one, dict)]
        _add_task(where, task["data"], results, collection)


def _add_task(where: str, data: Any, results: list[dict[str, Any]], collection: Collection) -> None:
    regions = [one for one in results if "original_width" in one and isinstance(one.get("value"), dict)]
    source = _source(data)
    if source is None:
        return collection.problem(where, "its data name no image")
    sizes = {(one["original_height"], one["original_width"]) for one in regions if _is_region(one)}
    if len(sizes) != 1:
        return collection.problem(where, "it has no region" if not sizes else f"its regions name {len(sizes)} sizes")
    name = _file_name(source)
    # uploaded files get a random head: 8 letters and a hyphen
    photo = collection.photo(name, *map(int, sizes.pop()), alternatives=(Path(name).name.partition("-")[2] or name,))
    if photo is None:
        return None
    texts = _texts(results, collection)
    for number, one in enumerate(regions):
        of_region = f"{where}, region {one.get('id', number)}"
        if not _is_region(one):
            if one.get("type") not in ("textarea", "choices", "rating"):
                collection.problem(of_region, f"a {one.get('type')} is no mask: draw it as polygon or brush")
            continue
        labels = one["value"].get(one["type"]) or []
        if one.get("image_rotation"):
            collection.problem(of_region, f"the image was turned by {one['image_rotation']} degrees: turn the file")
            continue
        try:
            rle = _mask(one, photo)
        except (ValueError, TypeError, IndexError, KeyError) as error:
            collection.problem(of_region, f"its mask cannot be read: {error}")
            continue
        collection.add(photo, rle, str(labels[0]) if labels else "", texts.get(one.get("id"), []), of_region)
    return None


def _is_region(one: dict[str, Any]) -> bool:
    return one.get("type") in ("polygonlabels", "brushlabels", "polygon", "brush")


def _source(data: Any) -> str | None:
    """The image that a task's data name: `image`, or the only text that looks like a path."""
    if isinstance(data, dict) and isinstance(data.get("image"), str):
        return data["image"]
    values = [value for value in (data.values() if isinstance(data, dict) else [data]) if isinstance(value, str)]
    paths = [value for value in values if "/" in value or "." in value]
    return paths[0] if len(paths) == 1 else None


def _file_name(source: str) -> str:
    """The path of an upload, a local file (`/data/local-files/?d=folder/name.jpg`) or a URL."""
    parts = urlparse(source)
    local = parse_qs(parts.query).get("d")
    return unquote(local[0] if local else parts.path).lstrip("/")


def _texts(results: list[dict[str, Any]], collection: Collection) -> dict[str, list[str]]:
    """Expressions by the id of the region that they were written for."""
    found: dict[str, list[str]] = {}
    wanted = collection.text_fields
    named = any(one.get("from_name") in wanted for one in results if one.get("type") == "textarea")
    for one in results:
        if one.get("type") == "textarea" and (one.get("from_name") in wanted or not named):
            value = one.get("value", {}).get("text", [])
            found.setdefault(one.get("id"), []).extend(value if isinstance(value, list) else [value])
    return found


def _mask(one: dict[str, Any], photo: Photo) -> dict[str, Any]:
    value = one["value"]
    if "points" in value:
        scale = np.array([photo.width, photo.height]) / 100
        polygon = (np.asarray(value["points"], float).reshape(-1, 2) * scale).flatten().tolist()
        return polygon_rle([polygon], photo.height, photo.width)
    pixels = unpack(value["rle"])
    if pixels.size != photo.height * photo.width * 4:
        raise ValueError(f"it has {pixels.size} values, not the image's {photo.height} x {photo.width} x 4")
    return mask_rle(pixels.reshape(photo.height, photo.width, 4)[..., 3] > 0)


def unpack(packed: list[int]) -> np.ndarray:
    """Bytes of rle-pack -> the values, uint8. Raises ValueError where they end early or hold what they should not."""
    data = np.asarray(packed)
    if (
        data.ndim != 1
        or data.size < 7
        or not np.issubdtype(data.dtype, np.integer)
        or data.min() < 0
        or data.max() > 255
    ):
        raise ValueError("it is no packed run-length encoding")
    bits = np.unpackbits(data.astype(np.uint8))
    place = 0

    def take(count: int) -> int:
        nonlocal place
        if place + count > bits.size:
            raise ValueError("it ends early")
        number = int(bits[place : place + count].dot(1 << np.arange(count)[::-1]))
        place += count
        return number

    total, width = take(32), take(5) + 1
    if width > 8:
        raise ValueError(f"its values have {width} bits, more than a channel")
    sizes = [take(4) + 1 for _ in range(4)]
    values, filled = np.empty(total, np.uint8), 0
    while filled < total:
        repeated = take(1)
        count = take(sizes[take(2)]) + 1
        if filled + count > total:
            raise ValueError("its runs hold more values than it says")
        if repeated:
            values[filled : filled + count] = take(width)
        else:
            for index in range(count):
                values[filled + index] = take(width)
        filled += count
    return values
