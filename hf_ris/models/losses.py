"""Losses as pure functions of logits and masks. All compute in float32, whatever the autocast dtype."""

import torch
from torch import Tensor
from torch.nn import functional as F


def resize_labels(labels: Tensor, size: tuple[int, int], mode: str = "area") -> Tensor:
    """(N, H, W) masks in [0, 1] to (N, h, w) float32: `area` averages what a cell covers, `nearest` picks a pixel."""
    labels = labels.float()
    if labels.shape[-2:] == tuple(size):
        return labels
    return F.interpolate(labels[:, None], size=tuple(size), mode=mode)[:, 0]


def binary_cross_entropy(logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    """Sigmoid binary cross-entropy of (N, h, w) logits against soft masks of the same shape.

    `reduction="mean"` is over all elements; `"sum"` is the sum over pixels, averaged over the N expressions.
    """
    loss = F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none")
    return loss.mean() if reduction == "mean" else loss.flatten(1).sum(1).mean()


def weighted_cross_entropy(logits: Tensor, labels: Tensor, weights: tuple[float, float] | list[float]) -> Tensor:
    """Two-class cross-entropy of (N, 2, H, W) logits against (N, H, W) masks cut at 0.5, weighted mean (LAVT)."""
    weight = torch.tensor(weights, dtype=torch.float32, device=logits.device)
    return F.cross_entropy(logits.float(), (labels > 0.5).long(), weight=weight)
