"""Grounding DINO + SAM 2: as `grounded_sam.py`, its readings included, with the younger segmenter.

Ravi et al., "SAM 2: Segment Anything in Images and Videos", ICLR 2025 (https://arxiv.org/abs/2408.00714). Network:
transformers' `Sam2Model`, which takes images squashed to 1024x1024.
"""

import torch
from torch import Tensor
from transformers import (
    BatchFeature,
    GroundingDinoForObjectDetection,
    GroundingDinoProcessor,
    Sam2Model,
    Sam2Processor,
)

from ..models.arguments_ris import check_return_tensors
from .grounded_sam import GroundedSam, GroundedSamProcessor
from .loading import OwnView, load_part


class GroundedSam2(GroundedSam):
    """Grounding DINO, then SAM 2, for N expressions over B images; each image is encoded once by SAM 2."""

    def embeddings_of(self, embeddings: list[Tensor], index: Tensor) -> list[Tensor]:
        return [level[index] for level in embeddings]


class GroundedSam2Processor(GroundedSamProcessor):
    """Both views of an image, each by its checkpoint's own preprocessing, the prompts, and the way back."""

    @classmethod
    def of(
        cls, detector: GroundingDinoProcessor, segmenter: Sam2Processor, max_text_length: int
    ) -> "GroundedSam2Processor":
        images = segmenter.image_processor
        view = OwnView(images, "squash", images.size["height"])
        return cls(view, detector.tokenizer, max_text_length, 0.5, cls.detector_view_of(detector))

    def __call__(self, images, text, masks=None, return_tensors: str | None = "pt", **unknown) -> BatchFeature:
        """As `GroundedSamProcessor`; a squashed image has no padding."""
        check_return_tensors(return_tensors)
        inputs = super().__call__(images, text, masks, **unknown)
        pixels = inputs["pixel_values"]
        inputs["pixel_mask"] = torch.ones(len(pixels), *pixels.shape[-2:], dtype=torch.long)
        return BatchFeature(inputs, tensor_type=return_tensors)


def load(detector: str, segmenter: str) -> tuple[GroundedSam2, GroundedSam2Processor]:
    """From two Hub ids or folders; raises as `load_part`."""
    network, of_detector = load_part(detector, GroundingDinoForObjectDetection, GroundingDinoProcessor)
    sam, of_sam = load_part(segmenter, Sam2Model, Sam2Processor)
    return GroundedSam2(network, sam).eval(), GroundedSam2Processor.of(of_detector, of_sam, network.config.max_text_len)
