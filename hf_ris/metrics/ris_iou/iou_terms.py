"""IoU metrics of referring segmentation from per-sample counts: every one is a sum divided by a sum (numpy only)."""

from collections.abc import Sequence

import numpy as np


Terms = dict[str, tuple[np.ndarray, np.ndarray]]


def sample_iou(intersection: np.ndarray, union: np.ndarray, empty_value: float = 0.0) -> np.ndarray:
    """IoU per sample, float64 (N,) in [0, 1]; `empty_value` where prediction and target are both empty (union 0)."""
    intersection, union = np.asarray(intersection, np.int64), np.asarray(union, np.int64)
    if intersection.shape != union.shape or intersection.ndim != 1 or intersection.size == 0:
        raise ValueError(
            "intersection and union are two lists of the same length with at least one sample each, "
            f"but their shapes are {intersection.shape} and {union.shape}"
        )
    if (intersection < 0).any() or (intersection > union).any():
        wrong = int(np.flatnonzero((intersection < 0) | (intersection > union))[0])
        raise ValueError(
            f"sample {wrong} has intersection {intersection[wrong]} and union {union[wrong]}, "
            "but 0 <= intersection <= union is needed"
        )
    return np.where(union > 0, intersection / np.maximum(union, 1), empty_value)


def iou_terms(
    intersection: np.ndarray,
    union: np.ndarray,
    *,
    thresholds: Sequence[float] = (0.5, 0.6, 0.7, 0.8, 0.9),
    strict: bool = False,
    empty_value: float = 0.0,
    no_target: np.ndarray | None = None,
    empty_prediction: np.ndarray | None = None,
    no_target_value: float | None = None,
    precision_needs_target: bool = False,
) -> Terms:
    """Numerator and denominator per sample of every IoU metric: the metric is the ratio of their sums.

    intersection, union (N,): pixels. no_target, empty_prediction bool (N,): the expression has no target, the
    prediction is empty; both or neither; with them come N-acc and T-acc where an expression has no target.
    strict: Pr@X counts IoU > X, else IoU >= X. empty_value: IoU where the union is empty; no_target_value, if given,
    stands in its place where the expression has no target. precision_needs_target leaves those out of Pr@X.
    """
    iou = sample_iou(intersection, union, empty_value)
    everyone = np.ones(iou.size)
    no_target = np.zeros(iou.size, bool) if no_target is None else np.asarray(no_target, bool)
    if no_target_value is not None:
        iou = np.where(no_target & (np.asarray(union) == 0), no_target_value, iou)
    terms = {"oIoU": (np.asarray(intersection), np.asarray(union)), "mIoU": (iou, everyone)}
    counted = ~no_target if precision_needs_target else everyone.astype(bool)
    for threshold in thresholds:
        reached = iou > threshold if strict else iou >= threshold
        terms[f"Pr@{threshold:g}"] = (reached & counted, counted)
    if no_target.any():
        empty_prediction = np.asarray(empty_prediction, bool)
        terms["N-acc"] = (no_target & empty_prediction, no_target)
        terms["T-acc"] = (~no_target & ~empty_prediction, ~no_target)
    return terms


def ratios(terms: Terms) -> dict[str, float]:
    """Each metric's value in [0, 1]; one whose denominators sum to zero is undefined and left out."""
    sums = {name: (float(above.sum()), float(below.sum())) for name, (above, below) in terms.items()}
    return {name: above / below for name, (above, below) in sums.items() if below > 0}
