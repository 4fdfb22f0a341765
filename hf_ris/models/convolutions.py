"""Convolution blocks of CRIS, SegVLM, EAVL and VLT."""

from torch import Tensor, nn
from torch.nn import functional as F


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm; keeps the map's size."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, h, w) -> (N, out_channels, h, w)."""
        return self.norm(self.conv(x))


class ConvNormReLU(ConvNorm):
    """Convolution without bias, batch norm, ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


def upsample(x: Tensor) -> Tensor:
    """(N, C, h, w) bilinearly to (N, C, 2h, 2w)."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
