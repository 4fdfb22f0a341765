"""Processor of VATEX on video: that of VATEX for the frames of clips."""

from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature

from .arguments_ris import check_return_tensors
from .configuration_ris import RisConfig
from .images_ris import as_pil, is_upright_rgb
from .lazy_videos import LazyVideos
from .processing_ris import _nest, refuse_unknown
from .processing_vatex import VatexProcessor


class VatexVideoProcessor(VatexProcessor):
    """Makes the inputs of `VatexVideoForReferringSegmentation` and turns its logits into masks of each frame.

    Args:
        prior_frames: CLIP sees so many frames of each video, evenly spaced; None is all of them. The rest is as for
            `VatexProcessor`.
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        max_text_length: int = 77,
        threshold: float = 0.5,
        clip_image_size: int | None = 224,
        clip_crop: bool = False,
        prompt: str = "object",
        template: str = "a photo of {}",
        noun_phrases: str = "auto",
        enlarges: str = "logits",
        prior_frames: int | None = None,
    ):
        super().__init__(
            image_processor,
            tokenizer,
            max_text_length,
            threshold,
            clip_image_size,
            clip_crop,
            prompt,
            template,
            noun_phrases,
            enlarges,
        )
        self.prior_frames = prior_frames

    @classmethod
    def from_config(cls, config: RisConfig, tokenizer) -> "VatexVideoProcessor":
        """The preprocessing that goes with a `VatexVideoConfig`."""
        processor = super().from_config(config, tokenizer)
        processor.prior_frames = config.prior_frames
        return processor

    def __call__(
        self, videos, text, masks=None, lazy: bool = False, return_tensors: str | None = "pt", **unknown
    ) -> BatchFeature:
        """Make a model's inputs.

        Args:
            videos: one video or a list of B. A video is a sequence of frames of one size (PIL, path, uint8 array), a
                uint8 array (T, H, W, 3), or a single image, which is a video of one frame where `text` nests by it.
            text: one expression; a list (several of one video, or one for each video); or a list of lists.
            masks: boolean masks (T, H, W) of the original frames, nested like `text`; they become `labels`.
            lazy: pixel_values_videos is a `LazyVideos`, which the model asks for one window of frames after the other,
                so that memory does not grow with a video's length.

        Returns:
            pixel_values_videos (B, T, 3, H, W), frame_mask (B, T) where lengths differ, pixel_mask (B, H, W),
            input_ids and attention_mask (N, L), video_index (N,), with a prior clip_pixel_values (B, K, 3, S, S), where
            lengths differ clip_frame_mask (B, K), prompt_ids and prompt_mask, with masks also labels (N, T, H, W)
            float32.

        Raises:
            ValueError: a video without frames or with frames of several sizes, an empty expression, or counts or sizes
                that do not match; the message names which.
        """
        check_return_tensors(return_tensors)
        refuse_unknown(type(self).__name__, unknown, ("videos", "text", "masks", "lazy", "return_tensors"))
        clips = [self._frames(video, number) for number, video in enumerate(_videos(videos))]
        texts = _nest(text, len(clips), "expressions")
        said = [expression for group in texts for expression in group]
        inputs = self._tokenize(said)
        inputs["video_index"] = torch.tensor([index for index, group in enumerate(texts) for _ in group])
        inputs |= self._pixels_of(clips, lazy)
        if masks is not None:
            inputs["labels"] = self._clip_labels(clips, texts, masks, inputs["pixel_values_videos"])
        if self.clip_image_size is not None:
            inputs |= self._clip_views(clips)
            inputs |= self.prompts(said)
        videos = inputs.pop("pixel_values_videos")
        features = BatchFeature(inputs, tensor_type=return_tensors)
        features["pixel_values_videos"] = videos
        return features

    def _frames(self, video, number: int) -> list[Image.Image]:
        frames = [
            frame if is_upright_rgb(frame) else as_pil(frame, f"Frame {place} of video {number}")  # else a copy of it
            for place, frame in enumerate(video)
        ]
        sizes = sorted({frame.size for frame in frames})
        if len(sizes) != 1:
            found = ", ".join(f"{width}x{height}" for width, height in sizes) or "none"
            raise ValueError(f"Video {number} needs frames of one size, but it has: {found}.")
        return frames

    def _pixels_of(self, clips: list[list[Image.Image]], lazy: bool) -> dict[str, Tensor | LazyVideos]:
        lengths, first = [len(frames) for frames in clips], [frames[0] for frames in clips]
        canvas = self.image_processor.checked_canvas(first)  # all frames of a video have one size
        videos = LazyVideos(clips, canvas, self.image_processor.write_pixels)
        inputs = {"pixel_mask": self.image_processor.pixel_mask(first, canvas)}
        inputs["pixel_values_videos"] = videos if lazy else videos[:, :]
        if len(set(lengths)) > 1:
            inputs["frame_mask"] = _frame_mask(lengths)
        return inputs

    def _clip_views(self, clips: list[list[Image.Image]]) -> dict[str, Tensor]:
        """clip_pixel_values (B, K, 3, S, S), and where videos have several lengths and all frames are seen,
        clip_frame_mask (B, K)."""
        view, side = self.clip_view(), self.clip_image_size
        lengths = [self.prior_frames or len(frames) for frames in clips]
        seen = torch.zeros(len(clips), max(lengths), 3, side, side)
        for views, frames, count in zip(seen, clips, lengths):
            view.write_pixels(views[:count], [frames[place] for place in evenly(len(frames), count)])
        inputs = {"clip_pixel_values": seen}
        if len(set(lengths)) > 1:
            inputs["clip_frame_mask"] = _frame_mask(lengths)
        return inputs

    def _clip_labels(self, clips, texts: list[list[str]], masks, videos: Tensor) -> Tensor:
        nested, canvas = _nest(masks, len(clips), "masks"), tuple(videos.shape[-2:])
        labels = []
        for number, (frames, group, of_video) in enumerate(zip(clips, texts, nested)):
            if len(group) != len(of_video):
                raise ValueError(
                    f"Video {number} has {len(group)} expressions and {len(of_video)} masks; give one each."
                )
            height, width = frames[0].height, frames[0].width
            for mask in of_video:
                mask = np.asarray(mask)
                mask = mask[None] if mask.ndim == 2 else mask
                if mask.shape != (len(frames), height, width):
                    raise ValueError(
                        f"A mask of video {number} has shape {mask.shape}; the video is {(len(frames), height, width)}."
                    )
                placed = torch.stack([self.image_processor.preprocess_mask(one, canvas) for one in mask])
                labels.append(torch.nn.functional.pad(placed, (0, 0, 0, 0, 0, videos.shape[1] - len(placed))))
        return torch.stack(labels)

    def post_process_frames(
        self, outputs, target_sizes: list[tuple[int, int]], threshold: float | None = None
    ) -> Iterator[list[dict]]:
        """Frame by frame, for each of the N expressions, `{"mask", "probability", "score"}` as of an image: memory for
        one frame at a time."""
        for frame in range(outputs.logits.shape[1]):
            view = {"logits": outputs.logits[:, frame], "input_size": outputs.get("input_size")}
            view = SimpleNamespace(**view, get=view.get)
            yield super().post_process_referring_segmentation(view, target_sizes, threshold)

    def post_process_referring_segmentation(
        self, outputs, target_sizes: list[tuple[int, int]], threshold: float | None = None
    ) -> list[dict]:
        """Masks at the original size, one per expression: `mask` bool and `probability` float32 (T, H, W); `score`, the
        mean probability inside the mask over all frames, 0 for an empty one. Arguments as for images."""
        frames = list(self.post_process_frames(outputs, target_sizes, threshold))
        results = []
        for of_frames in zip(*frames):
            mask, probability = (torch.stack([one[name] for one in of_frames]) for name in ("mask", "probability"))
            score = probability[mask].mean().item() if mask.any() else 0.0
            results.append({"mask": mask, "probability": probability, "score": score})
        return results


def _frame_mask(lengths: list[int]) -> Tensor:
    """(B, T) long: 1 = frame, 0 = padding at the end."""
    return (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()


def evenly(length: int, count: int) -> list[int]:
    """`count` of `length` frame numbers, evenly spaced, the middles of equal parts; more than there are repeat some."""
    return [(2 * place + 1) * length // (2 * count) for place in range(count)]


def _videos(videos) -> list:
    """One video or several as a list of sequences of frames."""
    if isinstance(videos, (Image.Image, str)):
        return [[videos]]
    if isinstance(videos, (np.ndarray, torch.Tensor)):
        return [videos] if videos.ndim == 4 else [[videos]] if videos.ndim == 3 else list(videos)
    if not isinstance(videos, Sequence) or not len(videos):
        raise ValueError("A video is a sequence of frames; give one with at least one frame, or a list of videos.")
    first = videos[0]
    several = isinstance(first, (list, tuple)) or getattr(first, "ndim", 0) == 4
    several = several or (isinstance(first, Sequence) and not isinstance(first, str))
    return list(videos) if several else [videos]


VatexVideoProcessor.register_for_auto_class("AutoProcessor")
