"""Oc-IoU (VATEX, Eq. 9-10) from per-object pixel counts (numpy only)."""

import numpy as np


def object_iou(intersection: np.ndarray, union: np.ndarray, empty_value: float = 0.0) -> np.ndarray:
    """Eq. 9 per object, float64 (N,): the pixels that the ground truth and *all* predictions for the object share, over
    the pixels that any of them has; `empty_value` where none has any. Eq. 10 is the mean over objects."""
    intersection, union = np.asarray(intersection, np.int64), np.asarray(union, np.int64)
    if intersection.shape != union.shape or intersection.ndim != 1 or intersection.size == 0:
        raise ValueError(
            "intersection and union are two lists of the same length with at least one object each, "
            f"but their shapes are {intersection.shape} and {union.shape}"
        )
    return np.where(union > 0, intersection / np.maximum(union, 1), empty_value)
