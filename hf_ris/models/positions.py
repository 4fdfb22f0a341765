"""Where a cell of a map lies: coordinates to concatenate, sines to add."""

import math

import torch
from torch import Tensor


def coordinates_like(x: Tensor) -> Tensor:
    """(B, 2, h, w): x and y of the cell centres of a map (B, C, h, w), from -1 at one edge to 1 at the other."""
    height, width = x.shape[-2:]
    rows = (2 * torch.arange(height, device=x.device, dtype=x.dtype) + 1) / height - 1
    columns = (2 * torch.arange(width, device=x.device, dtype=x.dtype) + 1) / width - 1
    grid = torch.stack([columns.expand(height, width), rows[:, None].expand(height, width)])
    return grid.expand(x.shape[0], -1, -1, -1)


def sine_positions(x: Tensor) -> Tensor:
    """Fixed positions (hw, C) of a map (B, C, h, w): sines and cosines of y, then of x, in full turns of the map."""
    channels, height, width = x.shape[1:]
    frequencies = torch.arange(channels // 4, device=x.device, dtype=torch.float32) * (-4 * math.log(10_000) / channels)
    frequencies = 2 * math.pi * frequencies.exp()
    parts = []
    for size in (height, width):
        angles = (torch.arange(size, device=x.device, dtype=torch.float32) + 0.5)[:, None] / size * frequencies
        parts.append(torch.cat([angles.sin(), angles.cos()], 1))
    grid = torch.cat([parts[0][:, None].expand(-1, width, -1), parts[1][None].expand(height, -1, -1)], 2)
    return grid.flatten(0, 1).to(x.dtype)
