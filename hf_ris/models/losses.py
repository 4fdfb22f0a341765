"""Losses as pure functions of logits and masks. All compute in float32 at least, whatever the autocast dtype."""

from typing import Literal

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
    logits = _precise(logits)
    loss = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")
    return loss.mean() if reduction == "mean" else loss.flatten(1).sum(1).mean()


def weighted_cross_entropy(logits: Tensor, labels: Tensor, weights: tuple[float, float] | list[float]) -> Tensor:
    """Two-class cross-entropy of (N, 2, H, W) logits against (N, H, W) masks cut at 0.5, weighted mean (LAVT)."""
    weight = torch.tensor(weights, dtype=torch.float32, device=logits.device)
    return F.cross_entropy(logits.float(), (labels > 0.5).long(), weight=weight)


def focal_loss(logits: Tensor, labels: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss of (N, h, w) logits against soft masks of the same shape, mean over all elements (SegVLM Eq. 5).

    `alpha` in [0, 1] weighs foreground, 1 - alpha background; `gamma` >= 0 dims what is answered well already. The
    powers are taken of log-probabilities, whose gradient is finite where p or 1 - p rounds to 0.
    """
    logits = _precise(logits)
    labels = labels.to(logits.dtype)
    log_p, log_not_p = F.logsigmoid(logits), F.logsigmoid(-logits)
    foreground = alpha * labels * (gamma * log_not_p).exp() * log_p
    background = (1 - alpha) * (1 - labels) * (gamma * log_p).exp() * log_not_p
    return -(foreground + background).mean()


def adaptive_dice_loss(
    logits: Tensor,
    labels: Tensor,
    pixel_weight: Literal["error", "focal"] = "error",
    gamma: float = 2.0,
    epsilon: float = 1.0,
) -> Tensor:
    """Dice loss of (N, h, w) logits against soft masks of the same shape with a weight per pixel (SegVLM Eq. 6-7).

    One Dice value per expression over its pixels, then the mean over expressions. `pixel_weight` is |p - y| ("error")
    or (1 - p)^gamma ("focal"). It is a weight and carries no gradient: through it, the loss would fall by pushing
    confident foreground down and background up.
    """
    logits = _precise(logits)
    labels = labels.to(logits.dtype).flatten(1)
    p = logits.sigmoid().flatten(1)
    weight = ((p - labels).abs() if pixel_weight == "error" else (1 - p) ** gamma).detach()
    overlap = 2 * (weight * p * labels).sum(1) + epsilon
    total = (weight * p).sum(1) + (weight * labels).sum(1) + epsilon
    return (1 - overlap / total).mean()


def _precise(x: Tensor) -> Tensor:
    """float64 as it is, everything else as float32."""
    return x if x.dtype == torch.float64 else x.float()
