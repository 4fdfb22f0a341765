"""The neck that merges an image's levels, and a sentence, into one map: EAVL's (Eq. 2-7), which VLT takes too."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .convolutions import ConvNormReLU
from .positions import coordinates_like


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, C, h, w) bilinearly to (N, C, *size)."""
    if x.shape[-2:] == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


class FusionNeck(nn.Module):
    """Levels of an image and a sentence -> F_inte (Eq. 2-5); without a sentence, Eq. 6 and what follows it.

    From the coarsest level on, each fused map is mapped by a 1x1 convolution, upsampled and concatenated with the next
    finer level; a 1x1 convolution aggregates all of them at the size of one, and a 3x3 convolution reads the result
    beside its coordinates. The equations have three levels, of which the middle one gives the size: coarser maps are
    upsampled to it, finer ones averaged.

    A convolution of a concatenation is the sum of the convolutions of its parts, and a 1x1 convolution commutes with
    bilinear upsampling. So each part is convolved alone, at its own size, and what no sentence touches is computed once
    for each image (`project`).

    Args:
        channels: of the levels, finest first.
        target: index of the level that gives the size.
        dim: C, of every map inside and of the result.
        text_dim: of the sentence; None is a neck without one.
    """

    def __init__(self, channels: list[int], target: int, dim: int, text_dim: int | None = None):
        super().__init__()
        self.target = target
        self.visual = nn.ModuleList(ConvNormReLU(width, dim) for width in channels)  # W_v2, W_v3, W_v4
        self.text = None if text_dim is None else nn.Linear(text_dim, dim)  # W_tg
        # W_m3 and W_m4, split: of the fused half of a map and, where it has one, of the level beside it
        self.step_fused = nn.ModuleList(_part(dim) for _ in channels[1:])
        self.step_visual = nn.ModuleList(_part(dim) for _ in channels[1:-1])
        self.step_norms = nn.ModuleList(nn.BatchNorm2d(dim) for _ in channels[1:])
        # the convolution of Eq. 4, split in the same way
        self.aggregate_fused = nn.ModuleList(_part(dim) for _ in channels)
        self.aggregate_visual = nn.ModuleList(_part(dim) for _ in channels[:-1])
        self.aggregate_norm = nn.BatchNorm2d(dim)
        self.coordinates = ConvNormReLU(dim + 2, dim, 3)  # Eq. 5

    def project(self, levels: list[Tensor]) -> tuple[Tensor, ...]:
        """The part without text: levels of B images, finest first -> maps of B images for `forward`."""
        size = levels[self.target].shape[-2:]
        finer = [F.adaptive_avg_pool2d(level, size) for level in levels[: self.target]]  # Avg of Eq. 3
        visual = [conv(level) for conv, level in zip(self.visual, [*finer, *levels[self.target :]], strict=True)]
        aggregate = sum(resize(conv(v), size) for conv, v in zip(self.aggregate_visual, visual[:-1], strict=True))
        steps = [conv(v) for conv, v in zip(self.step_visual, visual[1:-1], strict=True)]
        return visual[-1], aggregate, *steps

    def forward(self, projected: tuple[Tensor, ...], sentence: Tensor | None = None) -> Tensor:
        """Maps of `project`, chosen for N expressions, and their sentences (N, text_dim) -> F_inte (N, C, h, w)."""
        fused, aggregate, *steps = projected
        size = aggregate.shape[-2:]
        if sentence is not None:
            fused = fused * F.relu(self.text(sentence))[..., None, None]  # Eq. 2
        total = aggregate + resize(self.aggregate_fused[-1](fused), size)
        for index in reversed(range(len(self.step_fused))):  # Eq. 3; index counts levels, finest first
            x = self.step_fused[index](fused)
            if index < len(steps):
                x = x + steps[index]
            x = resize(x, size if index <= self.target else steps[index - 1].shape[-2:])
            fused = F.relu(self.step_norms[index](x))
            total = total + resize(self.aggregate_fused[index](fused), size)
        x = F.relu(self.aggregate_norm(total))  # Eq. 4
        return self.coordinates(torch.cat([x, coordinates_like(x)], 1))


def _part(dim: int) -> nn.Conv2d:
    return nn.Conv2d(dim, dim, 1, bias=False)
