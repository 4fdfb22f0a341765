"""J and F of single frames as counts (DAVIS 2017), and their means (numpy only).

J, region similarity, is the IoU of a frame's two masks. F, contour accuracy, is the harmonic mean of the precision and
the recall of their boundaries, where a boundary pixel is matched if one of the other boundary lies in a disk around it.
"""

import math
from functools import cache
from typing import NamedTuple

import numpy as np


BOUNDARY_TOLERANCE = 0.008  # radius of the disk, in the image's diagonals


class FrameCounts(NamedTuple):
    """Pixels of one frame: the masks' intersection and union; the boundaries' pixels and those of them that match."""

    intersection: int
    union: int
    prediction_boundary: int
    target_boundary: int
    matched_prediction: int
    matched_target: int


def frame_counts(prediction: np.ndarray, target: np.ndarray, void: np.ndarray | None = None) -> FrameCounts:
    """Counts of two bool masks (H, W) of one frame; pixels of `void`, bool (H, W), belong to neither.

    Raises:
        ValueError: masks that are not bool, or of different shapes.
    """
    prediction, target = np.asarray(prediction), np.asarray(target)
    masks = [prediction, target, *([] if void is None else [np.asarray(void)])]
    if any(mask.dtype != np.bool_ or mask.ndim != 2 or mask.shape != target.shape for mask in masks):
        shown = ", ".join(f"{mask.dtype} {mask.shape}" for mask in masks)
        raise ValueError(f"the masks of a frame are bool (height, width) of one shape, but these are {shown}")
    if void is not None:
        prediction, target = prediction & ~masks[2], target & ~masks[2]
    areas = np.count_nonzero(prediction), np.count_nonzero(target)
    intersection = np.count_nonzero(prediction & target) if all(areas) else 0
    of_prediction, of_target = boundary(prediction), boundary(target)
    edges = np.count_nonzero(of_prediction), np.count_nonzero(of_target)
    matched = (0, 0)
    if all(edges):
        radius = math.ceil(BOUNDARY_TOLERANCE * math.hypot(*target.shape))
        matched = (
            np.count_nonzero(of_prediction & dilate(of_target, radius)),
            np.count_nonzero(of_target & dilate(of_prediction, radius)),
        )
    return FrameCounts(*map(int, (intersection, sum(areas) - intersection, *edges, *matched)))


def boundary(mask: np.ndarray) -> np.ndarray:
    """Bool (H, W): pixels that differ from the one to the right, below, or right below; one pixel wide."""
    edges = np.zeros_like(mask)
    edges[:, :-1] |= mask[:, :-1] ^ mask[:, 1:]
    edges[:-1] |= mask[:-1] ^ mask[1:]
    edges[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return edges


@cache
def _half_widths(radius: int) -> list[int]:
    """Of a disk's rows, from its middle outwards."""
    return [math.isqrt(radius * radius - row * row) for row in range(radius + 1)]


def dilate(mask: np.ndarray, radius: int) -> np.ndarray:
    """Bool (H, W): pixels with a True one in the disk around them, centre distance at most `radius`."""
    grown = np.zeros_like(mask)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        return grown
    # only the part that the mask can reach
    top, left = max(rows[0] - radius, 0), max(columns[0] - radius, 0)
    part = (slice(top, rows[-1] + radius + 1), slice(left, columns[-1] + radius + 1))
    source, target = mask[part], grown[part]
    wide, width = source.copy(), 0
    for row in range(radius, -1, -1):  # the disk's rows grow wider towards its middle
        while width < _half_widths(radius)[row]:
            width += 1
            wide[:, width:] |= source[:, :-width]
            wide[:, :-width] |= source[:, width:]
        rest = max(len(wide) - row, 0)
        target[row:] |= wide[:rest]
        target[:rest] |= wide[row:]
    return grown


def region_similarity(counts: np.ndarray) -> np.ndarray:
    """J of each frame, float64 (N,), from `FrameCounts` as int (N, 6); 1 where both masks are empty."""
    intersection, union = np.asarray(counts).T[:2]
    return np.where(union > 0, intersection / np.maximum(union, 1), 1.0)


def contour_accuracy(counts: np.ndarray) -> np.ndarray:
    """F of each frame, float64 (N,), from `FrameCounts` as int (N, 6); 1 where both boundaries are empty."""
    _, _, of_prediction, of_target, matched_prediction, matched_target = np.asarray(counts).T
    precision = np.where(of_prediction > 0, matched_prediction / np.maximum(of_prediction, 1), 1.0)
    recall = np.where(of_target > 0, matched_target / np.maximum(of_target, 1), 1.0)
    # an empty boundary against one that is not: one of the two is 1, the other must be 0
    precision = np.where((of_prediction > 0) & (of_target == 0), 0.0, precision)
    recall = np.where((of_target > 0) & (of_prediction == 0), 0.0, recall)
    total = precision + recall
    return np.where(total > 0, 2 * precision * recall / np.where(total > 0, total, 1.0), 0.0)


def video_jf(counts: np.ndarray, group: np.ndarray) -> dict[str, float]:
    """J, F and their mean J&F in [0, 1]: means over the frames of each group (an object's answer), then over groups.

    counts: int (N, 6), rows of `FrameCounts`. group: int (N,), frames of one answer share a number.
    """
    j, f = mean_by_group(region_similarity(counts), group), mean_by_group(contour_accuracy(counts), group)
    return {"J&F": float((j.mean() + f.mean()) / 2), "J": float(j.mean()), "F": float(f.mean())}


def mean_by_group(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Mean of `values` (N,) over each distinct number of `group` (N,), by rising number."""
    _, place = np.unique(np.asarray(group), return_inverse=True)
    return np.bincount(place, values) / np.bincount(place)
