"""SAM 3: the expression as the prompt of a concept segmenter.

"SAM 3: Segment Anything with Concepts", 2025 (https://arxiv.org/abs/2511.16719). Network: transformers' `Sam3Model`.
Its weights are gated: their terms are accepted on the Hub first.

Readings: SAM 3 finds every instance of a noun phrase, while a referring expression speaks of one thing. The baseline
`sam3` takes the mask that scores best, `sam3-all` the union of all that score above 0.3, transformers' default; where
none scores above it, the mask of either is empty. A score is that of the query times that of the phrase being there.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import Sam3Model, Sam3Processor
from transformers.models.sam3.modeling_sam3 import Sam3VisionEncoderOutput

from ..models.modeling_ris import RisOutput, RisPreTrainedModel
from ..models.processing_ris import RisProcessor
from .loading import OwnView, load_part


NOTHING = -1e4  # a logit whose sigmoid is 0
WORDS = 32  # tokens, which its text encoder was trained with


@dataclass
class Sam3Output(RisOutput):
    """A `RisOutput` that also tells the scores.

    Args:
        mask_scores: (N, Q) in [0, 1], of all that was found for an expression.
    """

    mask_scores: Tensor | None = None


class Sam3(nn.Module):
    """SAM 3 for N expressions over B images, each of which is encoded once.

    Args:
        select: `best`, the highest-scoring mask alone, or `all`, the union of those above `score_threshold`.
        score_threshold: below it there is nothing.
        expressions_at_once: bounds the memory.
    """

    def __init__(
        self,
        network: Sam3Model,
        select: Literal["best", "all"] = "best",
        score_threshold: float = 0.3,
        expressions_at_once: int = 4,
    ):
        super().__init__()
        self.network, self.select, self.score_threshold = network, select, score_threshold
        self.expressions_at_once = expressions_at_once

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        image_index: Tensor | None = None,
        object_index: Tensor | None = None,
    ) -> Sam3Output:
        """The inputs of every architecture (object_index is not read) -> logits (N, h, w)."""
        image_index = RisPreTrainedModel.image_index_of(pixel_values, input_ids, image_index)
        vision = self.network.get_vision_features(pixel_values)
        logits, scores = [], []
        for chosen in torch.arange(len(input_ids), device=input_ids.device).split(self.expressions_at_once):
            found = self.network(
                vision_embeds=_of(vision, image_index[chosen]),
                input_ids=input_ids[chosen],
                attention_mask=attention_mask[chosen],
            )
            score = found.pred_logits.sigmoid() * found.presence_logits.sigmoid()
            logits.append(self.choose(found.pred_masks, score))
            scores.append(score)
        return Sam3Output(logits=torch.cat(logits), mask_scores=torch.cat(scores))

    def choose(self, masks: Tensor, scores: Tensor) -> Tensor:
        """Mask logits (n, Q, h, w) and their scores (n, Q) -> (n, h, w)."""
        kept = scores > self.score_threshold
        if self.select == "best":
            kept = kept & torch.nn.functional.one_hot(scores.argmax(1), scores.shape[1]).bool()
        return masks.masked_fill(~kept[..., None, None], NOTHING).amax(1)


def _of(vision: Sam3VisionEncoderOutput, index: Tensor) -> Sam3VisionEncoderOutput:
    """What the encoder says of the images at `index` (n,)."""
    return Sam3VisionEncoderOutput(
        fpn_hidden_states=tuple(level[index] for level in vision.fpn_hidden_states),
        fpn_position_encoding=tuple(level[index] for level in vision.fpn_position_encoding),
    )


def load(source: str, select: Literal["best", "all"] = "best") -> tuple[Sam3, RisProcessor]:
    """From a Hub id or a folder; raises as `load_part`."""
    network, processor = load_part(source, Sam3Model, Sam3Processor)
    view = OwnView(processor.image_processor, "squash", processor.image_processor.size["height"])
    return Sam3(network, select).eval(), RisProcessor(view, processor.tokenizer, WORDS, 0.5)
