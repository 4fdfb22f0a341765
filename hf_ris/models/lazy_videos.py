"""Videos whose pixels are made when they are asked for, so that memory does not grow with a video's length."""

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor


class LazyVideos:
    """Stands in for pixel_values_videos (B, T, 3, H, W), padded at the end; `videos[a:b, c:d:e]` makes those frames.

    Args:
        clips: the frames of each video, PIL RGB of one size, decoded or in any sequence that decodes them.
        canvas: (H, W). write: called as write(out, frames), writes their pixels into zeros (n, 3, H, W).
    """

    def __init__(
        self,
        clips: Sequence[Sequence[Image.Image]],
        canvas: tuple[int, int],
        write: Callable[[Tensor, list[Image.Image]], Tensor],
    ):
        self.clips, self.write = clips, write
        self.shape = torch.Size((len(clips), max(len(frames) for frames in clips), 3, *canvas))

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: tuple[slice, slice]) -> Tensor:
        """(b, t, 3, H, W) float32 on the CPU of slices of videos and frames."""
        videos, frames = index
        chosen, places = self.clips[videos], range(self.shape[1])[frames]
        pixels = torch.zeros(len(chosen), len(places), *self.shape[2:])
        for out, clip in zip(pixels, chosen):
            real = [place for place in places if place < len(clip)]
            self.write(out[: len(real)], [clip[place] for place in real])
        return pixels

    def to(self, *args, **kwargs) -> "LazyVideos":
        """Itself: pixels go where the model is when they are made."""
        return self
