"""Where a cell of a map lies: coordinates to concatenate, sines to add; learned rows to add."""

import math

import torch
from torch import Tensor, nn


def coordinates_like(x: Tensor) -> Tensor:
    """(B, 2, h, w): x and y of the cell centres of a map (B, C, h, w), from -1 at one edge to 1 at the other."""
    height, width = x.shape[-2:]
    rows = (2 * torch.arange(height, device=x.device, dtype=x.dtype) + 1) / height - 1
    columns = (2 * torch.arange(width, device=x.device, dtype=x.dtype) + 1) / width - 1
    grid = torch.stack([columns.expand(height, width), rows[:, None].expand(height, width)])
    return grid.expand(x.shape[0], -1, -1, -1)


def sine_positions(x: Tensor, content: Tensor | None = None) -> Tensor:
    """Fixed positions (hw, C) of a map (B, C, h, w): sines and cosines of y, then of x, in full turns of the map.

    With `content` (B, 2), the rows and columns of each map that are not padding, turns are those of the content, and
    positions are (B, hw, C).
    """
    channels, height, width = x.shape[1:]
    frequencies = torch.arange(channels // 4, device=x.device, dtype=torch.float32) * (-4 * math.log(10_000) / channels)
    frequencies = 2 * math.pi * frequencies.exp()
    parts = []
    for axis, size in enumerate((height, width)):
        turns = torch.arange(size, device=x.device, dtype=torch.float32) + 0.5
        turns = turns / size if content is None else turns / content[:, axis, None]
        angles = turns[..., None] * frequencies
        parts.append(torch.cat([angles.sin(), angles.cos()], -1))
    rows, columns = parts[0].unsqueeze(-2), parts[1].unsqueeze(-3)
    rows, columns = rows.expand(*rows.shape[:-2], width, -1), columns.expand(*columns.shape[:-3], height, -1, -1)
    return torch.cat([rows, columns], -1).flatten(-3, -2).to(x.dtype)


def sequence_positions(length: int, channels: int, device: torch.device) -> Tensor:
    """(length, channels) float32: sines of 0, 1, 2, ... in even channels, cosines in odd ones, base 10,000."""
    steps = torch.arange(0, channels, 2, device=device, dtype=torch.float32)
    frequencies = (steps * (-math.log(10_000) / channels)).exp()
    angles = torch.arange(length, device=device, dtype=torch.float32)[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)


def plane_positions(x: Tensor) -> Tensor:
    """(hw, C) of a map (N, C, h, w): `sequence_positions` of the column, then of the row, half the channels each."""
    channels, height, width = x.shape[1:]
    columns = sequence_positions(width, channels // 2, x.device)[None].expand(height, -1, -1)
    rows = sequence_positions(height, channels // 2, x.device)[:, None].expand(-1, width, -1)
    return torch.cat([columns, rows], -1).flatten(0, 1).to(x.dtype)


class LearnedRows(nn.Embedding):
    """A table of which all rows are added to something: of queries, of levels.

    It gives them itself, so that they are there where weights wait on another device or a disk to be asked for.
    """

    def forward(self) -> Tensor:
        """(rows, C)."""
        return self.weight
