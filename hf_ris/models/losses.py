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


def dice_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """1 - Dice, smoothed by 1, of logits (..., P) against soft labels of that shape over the last axis -> (...)."""
    logits = _precise(logits)
    labels = labels.to(logits.dtype)
    p = logits.sigmoid()
    return 1 - (2 * (p * labels).sum(-1) + 1) / (p.sum(-1) + labels.sum(-1) + 1)


def point_sample(maps: Tensor, points: Tensor) -> Tensor:
    """Maps (N, K, h, w), bilinear at points (N, P, 2) = x, y in [0, 1] of the map's sides -> (N, K, P) float32."""
    maps = _precise(maps)
    return F.grid_sample(maps, 2 * points[:, :, None].to(maps.dtype) - 1, align_corners=False)[..., 0]


def pixel_centres(maps: Tensor) -> Tensor:
    """The points (N, h w, 2) = x, y in [0, 1] of the pixels of maps (N, K, h, w), row by row."""
    height, width = maps.shape[-2:]
    y = (torch.arange(height, device=maps.device) + 0.5) / height
    x = (torch.arange(width, device=maps.device) + 0.5) / width
    points = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], -1)
    return points.flatten(0, 1).expand(len(maps), -1, -1)


def uncertain_points(
    logits: Tensor, count: int, extent: Tensor | None = None, oversample: float = 3.0, importance: float = 0.75
) -> Tensor:
    """Random points (N, count, 2) = x, y in [0, 1], a share of them where logits (N, h, w) are nearest to 0.

    Of `oversample * count` random points the `importance * count` most uncertain are taken; the rest is random again.

    Args:
        extent: (N, 2), the share of each map's width and height that the points may lie in; None is all of it.
    """
    chosen = round(importance * count)
    points = torch.rand(len(logits), round(oversample * count), 2, device=logits.device)
    points = points if extent is None else points * extent[:, None]
    doubt = -point_sample(logits.detach()[:, None], points)[:, 0].abs()
    places = doubt.topk(chosen, dim=1, sorted=False).indices
    rest = torch.rand(len(logits), count - chosen, 2, device=logits.device)
    rest = rest if extent is None else rest * extent[:, None]
    return torch.cat([points.gather(1, places[..., None].expand(-1, -1, 2)), rest], 1)


def triplet_consistency(features: Tensor, object_index: Tensor, image_index: Tensor) -> Tensor:
    """Meaning consistency constraint (VATEX Eq. 6): -log(s(p1, p2) / (s(p1, n) + s(p2, n))), s = exp of the cosine.

    A triplet is two expressions of one object and one of another in the same image; the loss is the mean over all
    triplets of all processes, 0 where there is none. It lies between log 2 - 2 and log 2 + 2.

    Args:
        features: (N, C) sentence features. object_index, image_index: (N,) long.
    """
    with torch.autocast(features.device.type, enabled=False):  # bfloat16 has three digits for what exp enlarges
        features = F.normalize(_precise(features), dim=-1)
        cosine = features @ features.T
    same_object = object_index[:, None] == object_index
    other_object = (image_index[:, None] == image_index) & ~same_object
    pairs = same_object.triu(1)
    # [i, j, n]: p1 = i, p2 = j
    terms = torch.logaddexp(cosine[:, None], cosine[None]) - cosine[:, :, None]
    chosen = pairs[:, :, None] & other_object[:, None]
    total, count = (terms * chosen).sum(), chosen.sum()
    processes = _processes()
    if processes > 1:  # images are not shared, so a process has all it needs but the number of triplets
        torch.distributed.all_reduce(count)
    return total * processes / count.clamp(min=1)


def info_nce_consistency(features: Tensor, object_index: Tensor, temperature: float) -> Tensor:
    """Symmetric InfoNCE: each expression finds each other one of its object among those of all other objects.

    The negatives are the expressions of all processes; the loss is the mean over ordered pairs of expressions of one
    object, 0 where there is none.

    Args:
        features: (N, C) sentence features. object_index: (N,) long. temperature: > 0, of the cosines.
    """
    features, owners = gather_rows(_precise(features)), gather_rows(object_index)
    if _processes() > 1:  # objects are numbered anew in each process
        ranks = gather_rows(torch.full_like(object_index, torch.distributed.get_rank()))
        owners = owners + ranks * (owners.max() + 1)
    with torch.autocast(features.device.type, enabled=False):
        features = F.normalize(features, dim=-1)
        logits = features @ features.T / temperature
    same_object = owners[:, None] == owners
    pairs = same_object & ~torch.eye(len(owners), dtype=torch.bool, device=owners.device)
    others = logits.masked_fill(same_object, torch.finfo(logits.dtype).min).logsumexp(1, keepdim=True)
    terms = F.softplus(others - logits)
    return (terms * pairs).sum() / pairs.sum().clamp(min=1)


def gather_rows(x: Tensor) -> Tensor:
    """The rows (n, ...) of all processes, in the order of the processes; x itself where there is one.

    A gradient flows to this process's rows, as many times as there are processes: after the mean that data parallelism
    takes over processes, it is that of a loss of all rows.
    """
    processes = _processes()
    if processes == 1:
        return x
    count = torch.tensor([len(x)], device=x.device)
    counts = [torch.empty_like(count) for _ in range(processes)]
    torch.distributed.all_gather(counts, count)
    padded = x.new_zeros(int(max(counts)), *x.shape[1:])
    padded[: len(x)] = x.detach()
    gathered = [torch.empty_like(padded) for _ in range(processes)]
    torch.distributed.all_gather(gathered, padded)
    rows = [part[: int(n)] for part, n in zip(gathered, counts)]
    if x.requires_grad:
        own = torch.distributed.get_rank()
        rows[own] = rows[own] + processes * (x - x.detach())
    return torch.cat(rows)


def _processes() -> int:
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
