"""Layers of the architectures whose words enter inside Swin: LAVT, MPG-LQGNet."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def instance_norm(x: Tensor, eps: float = 1e-5) -> Tensor:
    """(N, T, C) normalised over its T positions, each sample and channel on its own, without affine parameters.

    At least float32 inside: an attention average varies little over the pixels, and its spread is the divisor.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = wide - wide.mean(1, keepdim=True)
    variance = centred.square().mean(1, keepdim=True)  # torch.var_mean takes longer on CPUs
    return (centred * (variance + eps).rsqrt()).to(x.dtype)


class LanguageGate(nn.Module):
    """S = Tanh(W2 ReLU(W1 F)) in (-1, 1), for each pixel and channel.

    Language pathway of LAVT (Eq. 8-9); a variant of MPG-LQGNet's fusion gate (its Table 4).
    """

    def __init__(self, dim: int):
        super().__init__()
        self.hidden = nn.Linear(dim, dim, bias=False)
        self.output = nn.Linear(dim, dim, bias=False)
        for layer in (self.hidden, self.output):
            nn.init.trunc_normal_(layer.weight, std=0.02)  # like Swin's own linear layers

    def forward(self, fused: Tensor) -> Tensor:
        """F (N, T, C) -> S (N, T, C)."""
        return torch.tanh(self.output(F.relu(self.hidden(fused))))


class TopDownLevel(nn.Module):
    """Upsample, concatenate with the finer map, two 3x3 convolutions with batch norm and ReLU.

    One step of the decoders of LAVT (Eq. 10) and MPG-LQGNet (Eq. 12).
    """

    def __init__(self, coarse_dim: int, fine_dim: int, dim: int):
        super().__init__()
        self.conv1 = nn.Conv2d(coarse_dim + fine_dim, dim, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(dim)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(dim)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """(N, C', h, w) and (N, C, H, W) -> (N, dim, H, W)."""
        # no name for the enlarged map: where the finest maps are convolved, it would be a ninth of all memory
        x = torch.cat([F.interpolate(coarse, fine.shape[-2:], mode="bilinear", align_corners=True), fine], dim=1)
        x = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(x)))
