"""Finer masks: logits enlarged with what the image shows at a finer stride. Ours, off by default; in no paper here.

An architecture's logits have stride 4 or more, and what they are read from has seen the image at stride 8 or 16, so
outlines are rounded and thin parts lost. `MaskRefinement` corrects the enlarged logits by a small convolutional network
over them and the image. Its image part, `encode`, runs once for each image; `forward` is what each expression pays for.
The first convolution over both is split for that into one over the image's maps and one over the logits.

It starts as plain bilinear enlargement, since its last convolution starts at zero. It has no batch statistics and reads
nothing beyond an image's own content, so no other image or expression changes its answer.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .vision_encoders import cells, inside, repeat_edges


COARSEST = 4  # strides divide it, and images are padded to multiples of it


class MaskRefinement(nn.Module):
    """Logits of any stride to logits of stride `stride`.

    Args:
        channels: of the vision encoder's maps that `encode` reads beside the pixels.
        stride: of the refined logits, in pixels of the input: 4, 2 or 1.
        dim: channels inside.
    """

    def __init__(self, channels: list[int], stride: int, dim: int):
        super().__init__()
        self.stride = stride
        # the patch of a cell reaches half a stride, and at least one pixel, beyond it
        self.reach = max(stride // 2, 1)
        self.pixels = nn.Conv2d(3, dim, stride + 2 * self.reach, stride)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in channels)
        self.maps = nn.ModuleList(nn.Conv2d(width, dim, 1) for width in channels)
        self.image1 = nn.Conv2d(dim, dim, 3, padding=1)
        self.image2 = nn.Conv2d(dim, dim, 3, padding=1)
        self.logits = nn.Conv2d(1, dim, 3, padding=1, bias=False)
        self.hidden = nn.Conv2d(dim, dim, 3, padding=1)
        self.output = ZeroConv2d(dim, 1, 3, padding=1)

    def encode(self, pixel_values: Tensor, maps: list[Tensor], content: Tensor | None = None) -> Tensor:
        """The image part.

        Args:
            pixel_values: (B, 3, H, W). maps: (B, channels[i], h_i, w_i), covering the same.
            content: (B, 2) long, rows and columns of the pixels that are not padding; None is all.

        Returns:
            (B, dim, H', W'), H' = H / stride with H rounded up to a multiple of 4.
        """
        height, width = pixel_values.shape[-2:]
        reach, below, right = self.reach, -height % COARSEST, -width % COARSEST
        pixel_values = hide(pixel_values, content)
        x = self.pixels(F.pad(pixel_values, (reach, right + reach, reach, below + reach)))
        for level, norm, convolution in zip(maps, self.norms, self.maps, strict=True):
            level = convolution(norm(level.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
            if content is not None:
                level = repeat_edges(level, cells(content, -(-height // level.shape[-2])))
            x = x + enlarge(level, x.shape[-2:])
        content = None if content is None else cells(content, self.stride)
        x = F.relu(self.image1(hide(F.relu(x), content)))
        return self.image2(hide(x, content))

    def forward(self, logits: Tensor, image: Tensor, image_index: Tensor, content: Tensor | None = None) -> Tensor:
        """The expressions' part.

        Args:
            logits: (N, h, w). image: `encode`'s (B, dim, H', W'). image_index: (N,) long.
            content: (N, 2) long, in pixels; None is all.

        Returns:
            logits (N, H', W'); in the padding, those of the content's edge.
        """
        logits = enlarge(logits[:, None], image.shape[-2:])
        content = None if content is None else cells(content, self.stride)
        x = self.logits(hide(logits, content)) + image.index_select(0, image_index)
        x = F.relu(self.hidden(hide(F.relu(x), content)))
        refined = logits + self.output(hide(x, content))
        return (refined if content is None else repeat_edges(refined, content))[:, 0]


class ZeroConv2d(nn.Conv2d):
    """A convolution that starts at zero, so that what it corrects starts as it is."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


def enlarge(x: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """(N, C, h, w) bilinearly to (N, C, *size); borders, not centres of corner cells, fall together."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def hide(x: Tensor, content: Tensor | None) -> Tensor:
    """(N, C, h, w) with zeros, a convolution's own padding, beyond its content (N, 2) in cells."""
    return x if content is None else x * inside(content, *x.shape[-2:])[:, None]
