"""From annotations to masks, under the two conventions of the field.

An object is often drawn as several polygons, and some of them overlap. `union` takes every pixel that any polygon
covers, as the COCO tools do. `sum_equals_one` takes those that exactly one covers: programs that add the polygons up
and keep the value 1 (LAVT's and those built on it) train and are measured on masks with holes there. They differ only
in these holes, which prepared data sets keep in a column of their own, so that either can be had from the other.
"""

from typing import Any, Literal

import numpy as np
from datasets import Features, List, Value
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from .schema import FEATURES, check_rle, decode_mask, encode_mask, mirror_rle, union_rle


_FAR = 100_000  # pixels
_LONGEST = 4_000_000  # pixels, of the outline of all polygons of an annotation: to draw one takes 100 bytes a pixel

GroundTruth = Literal["union", "sum_equals_one"]

# Prepared data sets have two columns more: `crowds` are the indices of objects that are regions of a crowd (COCO's
# iscrowd), `overlaps` the pixels of an object that more than one of its polygons covers, for the objects that have any.
PREPARED_FEATURES = Features(
    {
        **FEATURES,
        "crowds": List(Value("int32")),
        "overlaps": List({"object_index": Value("int32"), "mask": FEATURES["objects"].feature["mask"]}),
    }
)


def annotation_masks(segmentation: Any, height: int, width: int) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """(RLE of the union, RLE of the pixels that several polygons cover or None) of an annotation.

    Args:
        segmentation: as COCO has it, a list of polygons [x1, y1, x2, y2, ...] or an RLE, compressed or as a list of
            runs; a list of such RLEs, as remote-sensing sets in refer's format have it; or {"points": [[[x, y], ...],
            ...]}, PhraseCut's polygons, drawn as its program does.

    Polygons of fewer than three points have no area and are left out (`degenerate_polygons` counts them).

    Raises ValueError for anything else, for an RLE of another size, and where no polygon is left.
    """
    if isinstance(segmentation, dict) and "points" in segmentation:
        return encode_mask(_draw_points(segmentation["points"], height, width)), None
    if isinstance(segmentation, dict):
        return _checked_rle(segmentation, height, width), None
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError("the segmentation is neither a list of polygons nor an RLE")
    if all(isinstance(part, dict) for part in segmentation):
        parts = [_checked_rle(rle, height, width) for rle in segmentation]
    else:
        parts = _draw_polygons(segmentation, height, width)
    union = union_rle(parts, (height, width))
    if coco_mask.area(union) == coco_mask.area(parts).sum():
        return union, None
    covered = np.zeros((height, width), np.uint8)
    for part in parts:  # one by one: there may be thousands
        covered = np.minimum(covered + decode_mask(part), 2)
    return union, encode_mask(covered > 1)


def degenerate_polygons(segmentation: Any) -> int:
    """How many polygons of a segmentation that `annotation_masks` can draw it leaves out."""
    polygons = segmentation if isinstance(segmentation, list) else []
    return sum(isinstance(polygon, list) and _points(polygon).size < 6 for polygon in polygons)


def _points(polygon: list) -> np.ndarray:
    """Float (2n,) of [x1, y1, ...], which may also come as [[x1, y1], ...]; NaN where it is no polygon."""
    try:
        points = np.array(polygon, np.float64)
    except (TypeError, ValueError, OverflowError):
        return np.array([np.nan] * 6)
    if points.ndim == 2 and points.shape[1] == 2:
        return points.reshape(-1)
    return points if points.ndim == 1 else np.array([np.nan] * 6)


def _draw_polygons(segmentation: list, height: int, width: int) -> list[dict[str, Any]]:
    """RLEs of the polygons that have an area."""
    if not all(isinstance(polygon, list) for polygon in segmentation):
        raise ValueError("the segmentation holds something that is no polygon [x1, y1, x2, y2, ...] near the image")
    polygons = [_points(polygon) for polygon in segmentation]
    if not all((np.abs(points) < _FAR).all() for points in polygons):
        raise ValueError("the segmentation holds something that is no polygon [x1, y1, x2, y2, ...] near the image")
    polygons = [points for points in polygons if points.size >= 6]
    if not polygons:
        raise ValueError("none of the polygons of the segmentation has three points")
    length = sum(_outline(points) for points in polygons)
    if length > _LONGEST:
        raise ValueError(f"the outline of the segmentation is {length:,.0f} pixels long, which is no outline")
    drawn = coco_mask.frPyObjects([points.tolist() for points in polygons], height, width)
    return [{"size": [height, width], "counts": part["counts"].decode("ascii")} for part in drawn]


def _outline(points: np.ndarray) -> float:
    """The length of a closed polygon, as drawing steps along it: the longer of its two sides for each edge."""
    corners = points[: points.size // 2 * 2].reshape(-1, 2)
    return float(np.abs(corners - np.roll(corners, 1, axis=0)).max(1).sum())


def _checked_rle(rle: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    size, counts = rle.get("size"), rle.get("counts")
    if size != [height, width]:
        raise ValueError(f"the RLE has size {str(size)[:60]}, but the image is {height} x {width} (height x width)")
    size = [height, width]
    if isinstance(counts, str):
        check_rle({"size": size, "counts": counts})
        return {"size": size, "counts": counts}
    if not isinstance(counts, list) or not all(type(run) is int and run >= 0 for run in counts):
        raise ValueError("the counts of the RLE are neither a string nor a list of run lengths")
    if sum(counts) != height * width:
        raise ValueError(f"the runs of the RLE sum to {sum(counts)}, but its size needs {height * width}")
    packed = coco_mask.frPyObjects({"size": size, "counts": counts}, height, width)
    return {"size": size, "counts": packed["counts"].decode("ascii")}


def _draw_points(polygons: list[list[list[float]]], height: int, width: int) -> np.ndarray:
    """Bool (H, W): PhraseCut's program truncates coordinates and lets Pillow fill the polygon with its outline."""
    canvas = Image.new("1", (width, height))
    pen = ImageDraw.Draw(canvas)
    if not isinstance(polygons, list):
        raise ValueError("the segmentation holds no list of polygons [[x, y], ...]")
    for polygon in polygons:
        points = _points(polygon) if isinstance(polygon, list) else np.array([np.nan])
        if points.size % 2 or not (np.abs(points) < _FAR).all():
            raise ValueError("the segmentation holds something that is no polygon [[x, y], ...] near the image")
        if points.size >= 4:
            pen.polygon([(int(x), int(y)) for x, y in points.reshape(-1, 2)], outline=1, fill=1)
    return np.asarray(canvas)


def change_ground_truth(row: dict[str, Any], convention: GroundTruth) -> dict[str, Any]:
    """A copy of a prepared row with the masks of `convention`, whichever it had before."""
    if convention not in ("union", "sum_equals_one"):
        raise ValueError(f"the ground truth is 'union' or 'sum_equals_one', not {convention!r}")
    if "overlaps" not in row:
        raise ValueError("the row has no column overlaps: only prepared data sets tell the two conventions apart")
    objects = list(row["objects"])
    for entry in row["overlaps"]:
        several = decode_mask(entry["mask"])
        index = entry["object_index"]
        mask = decode_mask(objects[index]["mask"])
        mask = mask | several if convention == "union" else mask & ~several
        objects[index] = {**objects[index], "mask": encode_mask(mask)}
    return {**row, "objects": objects}


def target_parts(row: dict[str, Any], expression: dict[str, Any]) -> list[np.ndarray]:
    """Bool (H, W) masks that add up to 1 just where exactly one polygon covers a target of `expression`.

    They are the `target_parts` of `hf_ris.metrics.Evaluator`, for the protocols that measure under `sum_equals_one`.
    """
    kept = change_ground_truth(row, "sum_equals_one")["objects"]
    rles = [kept[index]["mask"] for index in expression["object_indices"]]
    return [decode_mask(union_rle(rles, (row["height"], row["width"])))]


def mirror_overlaps(row: dict[str, Any]) -> dict[str, Any]:
    """The column `overlaps` of a mirrored row, if the row has it."""
    if "overlaps" not in row:
        return {}
    return {"overlaps": [{**entry, "mask": mirror_rle(entry["mask"])} for entry in row["overlaps"]]}
