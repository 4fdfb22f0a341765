"""Grounding DINO + SAM: a box for the expression, and the mask of that box (VATEX, supplementary, Table 4).

Liu et al., "Grounding DINO: Marrying DINO with Grounded Pre-Training for Open-Set Object Detection", ECCV 2024
(https://arxiv.org/abs/2303.05499); Kirillov et al., "Segment Anything", ICCV 2023 (https://arxiv.org/abs/2304.02643).
Networks: transformers' `GroundingDinoForObjectDetection` and `SamModel`.

Readings (the supplementary says no more than that the box goes to SAM): the highest-scoring box alone; one mask for it,
not SAM's choice of three; below a score of 0.25, transformers' default for this detector, there is no box, and the mask
is empty. The paper does not name the sizes of the two networks.
"""

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import (
    BatchFeature,
    GroundingDinoForObjectDetection,
    GroundingDinoProcessor,
    SamModel,
    SamProcessor,
)
from transformers.image_transforms import center_to_corners_format

from ..models.arguments_ris import check_return_tensors
from ..models.images_ris import pictures
from ..models.modeling_ris import RisOutput, RisPreTrainedModel
from ..models.processing_ris import RisImageProcessor, RisProcessor
from .loading import load_part


NOTHING = -1e4  # a logit whose sigmoid is 0


@dataclass
class GroundedSamOutput(RisOutput):
    """A `RisOutput` that also tells the box.

    Args:
        boxes: (N, 4) left, top, right, bottom, as shares of the image's width and height.
        box_scores: (N,) in [0, 1].
    """

    boxes: Tensor | None = None
    box_scores: Tensor | None = None


class GroundedSam(nn.Module):
    """Grounding DINO, then SAM, for N expressions over B images.

    SAM encodes an image once. Grounding DINO mixes words into the image early, so it runs for every expression; each
    image goes through it alone and without padding, so that no other image of the batch changes its boxes.

    Args:
        box_threshold: an expression whose best box does not score above it has an empty mask.
        expressions_at_once: bounds the memory.
    """

    def __init__(
        self,
        detector: GroundingDinoForObjectDetection,
        segmenter: SamModel,
        box_threshold: float = 0.25,
        expressions_at_once: int = 4,
    ):
        super().__init__()
        self.detector, self.segmenter = detector, segmenter
        self.box_threshold, self.expressions_at_once = box_threshold, expressions_at_once

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor,
        detector_pixel_values: Tensor,
        detector_pixel_mask: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        image_index: Tensor | None = None,
        object_index: Tensor | None = None,
    ) -> GroundedSamOutput:
        """Segment N expressions over B images.

        Args:
            pixel_values, pixel_mask: (B, 3, S, S) and (B, S, S), SAM's view.
            detector_pixel_values, detector_pixel_mask: (B, 3, H, W) and (B, H, W), Grounding DINO's.
            input_ids, attention_mask: (N, L), the prompts.
            image_index: (N,) long in [0, B); None is one expression per image.
            object_index: as collators give it; not read.

        Returns:
            `GroundedSamOutput` with logits (N, S/4, S/4).
        """
        image_index = RisPreTrainedModel.image_index_of(pixel_values, input_ids, image_index)
        views = content(detector_pixel_mask)
        boxes = detector_pixel_values.new_zeros(len(input_ids), 4)
        scores = detector_pixel_values.new_zeros(len(input_ids))
        for image in image_index.unique().tolist():
            height, width = views[image].tolist()
            view = detector_pixel_values[image : image + 1, :, :height, :width]
            for chosen in (image_index == image).nonzero().flatten().split(self.expressions_at_once):
                found = self.detect(view, input_ids[chosen], attention_mask[chosen])
                boxes[chosen], scores[chosen] = (values.to(boxes.dtype) for values in found)
        heights, widths = content(pixel_mask)[image_index].unbind(1)
        prompts = boxes * torch.stack([widths, heights, widths, heights], 1)
        embeddings = self.segmenter.get_image_embeddings(pixel_values)
        logits = torch.cat(
            [
                self.segment(self.embeddings_of(embeddings, image_index[chosen]), prompts[chosen])
                for chosen in torch.arange(len(prompts), device=prompts.device).split(self.expressions_at_once)
            ]
        )
        logits = logits.masked_fill((scores <= self.box_threshold)[:, None, None], NOTHING)
        return GroundedSamOutput(logits=logits, boxes=boxes, box_scores=scores)

    def detect(self, view: Tensor, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """One image (1, 3, h, w) and n prompts -> the best box of each (n, 4), and its score (n,)."""
        pixels = view.expand(len(input_ids), -1, -1, -1)
        outputs = self.detector(pixels, input_ids, attention_mask=attention_mask)
        scores, best = outputs.logits.sigmoid().amax(2).max(1)  # of all words, then of all boxes
        boxes = outputs.pred_boxes[torch.arange(len(best), device=best.device), best]
        return center_to_corners_format(boxes), scores

    def embeddings_of(self, embeddings: Tensor, index: Tensor) -> Tensor:
        """The segmenter's embeddings of B images -> those of the images at `index` (n,)."""
        return embeddings[index]

    def segment(self, embeddings: Tensor, boxes: Tensor) -> Tensor:
        """SAM's image embeddings (n, C, h, w), boxes (n, 4) in its pixels -> logits (n, 4h, 4w)."""
        outputs = self.segmenter(image_embeddings=embeddings, input_boxes=boxes[:, None], multimask_output=False)
        return outputs.pred_masks[:, 0, 0]


def content(pixel_mask: Tensor) -> Tensor:
    """(B, H, W) -> (B, 2): rows and columns that are not padding."""
    return torch.stack([pixel_mask[:, :, 0].sum(1), pixel_mask[:, 0].sum(1)], 1)


def prompt(expression: str) -> str:
    """An expression as Grounding DINO reads one phrase: lower case, a dot at the end and none before it.

    Dots and question marks part phrases, which would be looked for one by one. Without any word: "".
    """
    words = [word for word in re.split(r"[\s.?]+", expression.lower()) if word]
    return " ".join(words) + "." if words else ""


class GroundedSamProcessor(RisProcessor):
    """Both views of an image, each by its checkpoint's own preprocessing, the prompts, and the way back from SAM's map.

    Args:
        image_processor: SAM's view: the long side is 1,024, padded right and below to a square.
        detector_view: Grounding DINO's: the short side is 800, the long one at most 1,333.
    """

    def __init__(
        self,
        image_processor: RisImageProcessor,
        tokenizer,
        max_text_length: int,
        threshold: float,
        detector_view: RisImageProcessor,
    ):
        super().__init__(image_processor, tokenizer, max_text_length, threshold, enlarges="logits")  # as in SAM
        self.detector_view = detector_view

    @classmethod
    def of(
        cls, detector: GroundingDinoProcessor, segmenter: SamProcessor, max_text_length: int
    ) -> "GroundedSamProcessor":
        """The preprocessing of two checkpoints. 0.5 is where SAM's logits are 0."""
        square = segmenter.image_processor
        side = square.size["longest_edge"]
        view = RisImageProcessor(
            "short_side", side, square.image_mean, square.image_std, max_size=side, size_divisor=side
        )
        return cls(view, detector.tokenizer, max_text_length, 0.5, cls.detector_view_of(detector))

    @staticmethod
    def detector_view_of(detector: GroundingDinoProcessor) -> RisImageProcessor:
        """Grounding DINO's preprocessing: short side and longest side as its checkpoint says, not padded further."""
        small = detector.image_processor
        return RisImageProcessor(
            "short_side",
            small.size["shortest_edge"],
            small.image_mean,
            small.image_std,
            max_size=small.size["longest_edge"],
            size_divisor=1,
        )

    def __call__(self, images, text, masks=None, return_tensors: str | None = "pt", **unknown) -> BatchFeature:
        """As `RisProcessor`, with pixel_mask, detector_pixel_values and detector_pixel_mask."""
        check_return_tensors(return_tensors)
        images = pictures(images)
        inputs = super().__call__(images, text, masks, **unknown)
        views = self.detector_view(images)
        inputs |= {f"detector_{name}": value for name, value in views.items()}
        return BatchFeature(inputs, tensor_type=return_tensors)

    def clean(self, text: str) -> str:
        return prompt(text)

    def _tokenize(self, texts: list[str]) -> dict[str, Tensor]:
        tokens = super()._tokenize(texts)
        cut = tokens["attention_mask"].sum(1) == self.max_text_length
        tokens["input_ids"][cut, -2] = self.tokenizer.convert_tokens_to_ids(".")  # without which it were no phrase
        return tokens


def load(detector: str, segmenter: str) -> tuple[GroundedSam, GroundedSamProcessor]:
    """From two Hub ids or folders; raises as `load_part`."""
    network, of_detector = load_part(detector, GroundingDinoForObjectDetection, GroundingDinoProcessor)
    sam, of_sam = load_part(segmenter, SamModel, SamProcessor)
    words = network.config.max_text_len
    return GroundedSam(network, sam).eval(), GroundedSamProcessor.of(of_detector, of_sam, words)
