"""Maps sampled at a grid of rows by columns.

A grid that is axis-aligned needs no two-dimensional sampler such as `sample_grid`, which the published warp is: each
axis has its few taps (places and weights), which are made once for all maps of one image. The rows come in bands that
fit a cache, so that what is made of them, such as a mask, needs no map of the full size in floats.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


# Numbers in a band: what a CPU's cache holds, and elsewhere few enough to leave memory alone.
CPU_BAND, BAND = 2**18, 2**24
SOURCE_ROWS = 16  # of a map, at most, from which a CPU makes a band by one product


class Taps(NamedTuple):
    """The samples along one axis: sample i is the sum over k of weights[i, k] times the map at places[i, k]."""

    places: Tensor  # (n, k) long
    weights: Tensor  # (n, k) float32

    def to(self, device: torch.device) -> "Taps":
        return Taps(self.places.to(device), self.weights.to(device))

    def after(self, first: "Taps") -> "Taps":
        """One sampling for two: `first` from the map to an axis that these taps then read."""
        places = first.places[self.places].flatten(1)
        weights = (self.weights[..., None] * first.weights[self.places]).flatten(1)
        start = places.amin(1, keepdim=True)
        width = int((places - start).amax()) + 1
        merged = weights.new_zeros(len(weights), width).scatter_add_(1, places - start, weights)
        # a row with fewer places than others ends in zero weights
        return Taps((start + torch.arange(width)).minimum(places.amax()), merged)


def taps(positions: Tensor, size: int, mode: str) -> Taps:
    """Taps at `positions` (n,) float64, in pixels of an axis of `size` pixels; beyond its ends the map repeats them.

    mode: "bilinear", or "bicubic" with A = -0.75, as torch has it.
    """
    first = positions.floor()
    t = positions - first
    if mode == "bilinear":
        offsets, weights = (0, 1), [1 - t, t]
    elif mode == "bicubic":
        offsets, weights = (-1, 0, 1, 2), [_outer(1 + t), _inner(t), _inner(1 - t), _outer(2 - t)]
    else:
        raise ValueError(f"mode is bilinear or bicubic, got {mode!r}.")
    places = (first.long()[:, None] + torch.tensor(offsets)).clamp(0, size - 1)
    return Taps(places, torch.stack(weights, 1).float())


def _inner(x: Tensor, a: float = -0.75) -> Tensor:
    """The cubic convolution kernel at distances in [0, 1]."""
    return ((a + 2) * x - (a + 3)) * x * x + 1


def _outer(x: Tensor, a: float = -0.75) -> Tensor:
    """The cubic convolution kernel at distances in [1, 2]."""
    return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a


def corner_taps(target: int, size: int, mode: str) -> Taps:
    """Taps that take an axis of `size` pixels to one of `target`, first pixel to first and last to last."""
    return taps(torch.arange(target, dtype=torch.float64) * ((size - 1) / max(1, target - 1)), size, mode)


def gather_rows(maps: Tensor, rows: Taps) -> Tensor:
    """Maps (..., h, w) sampled at `rows` of their columns: (..., H, w)."""
    places, weights = rows.places, rows.weights[:, :, None]
    sampled = maps.index_select(-2, places[:, 0]).mul_(weights[:, 0])
    for tap in range(1, places.shape[1]):
        sampled.addcmul_(maps.index_select(-2, places[:, tap]), weights[:, tap])
    return sampled


def gather_columns(maps: Tensor, columns: Taps) -> Tensor:
    """Maps (..., h, w) sampled at `columns` of their rows: (..., h, W). Whole rows are gathered faster than numbers."""
    return gather_rows(maps.transpose(-1, -2).contiguous(), columns).transpose(-1, -2).contiguous()


def multiply_rows(maps: Tensor, rows: Taps) -> Tensor:
    """`gather_rows` of finite maps as one product with the rows that the taps reach: quicker on a CPU."""
    low, high = int(rows.places.min()), int(rows.places.max()) + 1
    matrix = maps.new_zeros(len(rows.places), high - low).scatter_add_(1, rows.places - low, rows.weights)
    with torch.autocast(maps.device.type, enabled=False):
        return matrix @ maps[..., low:high, :]


def bands(maps: Tensor, rows: Taps, columns: Taps) -> Iterator[tuple[slice, Tensor]]:
    """float32 maps (..., h, w) sampled at rows by columns, band by band: which rows, and (..., rows, W) to keep."""
    height = len(rows.places)
    if height < maps.shape[-2]:
        yield slice(0, height), gather_columns(gather_rows(maps, rows), columns)
        return
    wide = gather_columns(maps, columns)
    step = max(1, (CPU_BAND if maps.is_cpu else BAND) // max(1, wide[..., 0, :].numel()))
    sample, few = gather_rows, SOURCE_ROWS * height // maps.shape[-2]
    # where many rows are made of few; a product would spread what is not finite, and on a GPU may have fewer digits
    if maps.is_cpu and 4 * few >= step and maps.isfinite().all():
        sample, step = multiply_rows, min(step, few)
    for start in range(0, height, step):
        part = slice(start, start + step)
        yield part, sample(wide, Taps(rows.places[part], rows.weights[part]))


def resample(maps: Tensor, rows: Taps, columns: Taps) -> Tensor:
    """float32 maps (..., h, w) sampled at rows by columns: (..., H, W)."""
    return torch.cat([band for _, band in bands(maps, rows, columns)], -2)


def sample_grid(maps: Tensor, y: Tensor, x: Tensor, mode: str, padding: str) -> Tensor:
    """(B, C, h, w) sampled at the grid of pixel indices y (H,) by x (W,): (B, C, H, W)."""
    height, width = maps.shape[-2:]
    grid_y, grid_x = (2 * y + 1) / height - 1, (2 * x + 1) / width - 1
    grid = torch.stack(torch.broadcast_tensors(grid_x[None], grid_y[:, None]), -1).to(maps.dtype)
    grid = grid.expand(maps.shape[0], -1, -1, -1)
    return F.grid_sample(maps, grid, mode=mode, padding_mode=padding, align_corners=False)
