"""Florence-2: polygons written as text, drawn as masks.

Xiao et al., "Florence-2: Advancing a Unified Representation for a Variety of Vision Tasks", CVPR 2024
(https://arxiv.org/abs/2311.06242). Network: transformers' `Florence2ForConditionalGeneration`, with its task of
referring expression segmentation; beam search with 3 beams, as its authors' examples have it.

Readings: an answer may hold several instances, each of several polygons. Their masks are joined; a polygon that lies
wholly inside a larger one of its own instance is a hole in it. Fewer than three points are no polygon. An answer
without any polygon is an empty mask, and the result's `remark` quotes it. The score is the beam's mean probability per
token, since the network gives none.
"""

from dataclasses import dataclass

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor, nn
from transformers import Florence2ForConditionalGeneration, Florence2Processor
from transformers.modeling_outputs import BaseModelOutput

from ..models.arguments_ris import check_expression, checked_threshold
from ..models.modeling_ris import RisOutput, RisPreTrainedModel
from ..models.processing_ris import RisProcessor
from .loading import OwnView, load_part


TASK = "<REFERRING_EXPRESSION_SEGMENTATION>"
CERTAIN = 1e4  # a logit whose sigmoid is 1
LONGEST = 1024  # tokens of an answer
WORDS = 128  # tokens of an expression; all prompts together have a few more


@dataclass
class FlorenceOutput(RisOutput):
    """A `RisOutput` that also tells the answers.

    Args:
        texts: N answers as written, location tokens included.
        scores: (N,) in [0, 1].
    """

    texts: list[str] | None = None
    scores: Tensor | None = None


class Florence(nn.Module):
    """Florence-2 for N expressions over B images, each of which is encoded once.

    Args:
        processor: the checkpoint's own, which reads the answers.
        expressions_at_once: bounds the memory of the beams.
    """

    def __init__(
        self,
        network: Florence2ForConditionalGeneration,
        processor: Florence2Processor,
        beams: int = 3,
        longest: int = LONGEST,
        expressions_at_once: int = 8,
    ):
        super().__init__()
        self.network, self.processor = network, processor
        self.beams, self.longest, self.expressions_at_once = beams, longest, expressions_at_once

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        image_index: Tensor | None = None,
        object_index: Tensor | None = None,
    ) -> FlorenceOutput:
        """The inputs of every architecture (object_index is not read) -> logits (N, H, W), texts and scores."""
        image_index = RisPreTrainedModel.image_index_of(pixel_values, input_ids, image_index)
        features = self.network.get_image_features(pixel_values).pooler_output
        texts, scores = [], []
        for chosen in torch.arange(len(input_ids), device=input_ids.device).split(self.expressions_at_once):
            found = self.answer(features[image_index[chosen]], input_ids[chosen], attention_mask[chosen])
            texts += found[0]
            scores.append(found[1])
        size = tuple(pixel_values.shape[-2:])
        masks = np.stack([draw(self.polygons(text, size), size) for text in texts])
        logits = torch.from_numpy(np.where(masks, np.float32(CERTAIN), np.float32(-CERTAIN))).to(pixel_values.device)
        return FlorenceOutput(logits=logits, texts=texts, scores=torch.cat(scores))

    @torch.no_grad()
    def answer(self, features: Tensor, input_ids: Tensor, attention_mask: Tensor) -> tuple[list[str], Tensor]:
        """Image features (n, K, D) and prompts (n, L) -> n answers and their scores (n,)."""
        embeddings = self.network.get_input_embeddings()(input_ids)
        places = self.network.get_placeholder_mask(input_ids, embeddings, features)
        embeddings = embeddings.masked_scatter(places, features.to(embeddings.dtype))
        encoder = self.network.model.language_model.encoder
        states = encoder(inputs_embeds=embeddings, attention_mask=attention_mask).last_hidden_state
        found = self.network.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=attention_mask,
            max_new_tokens=self.longest,
            num_beams=self.beams,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
        )
        texts = self.processor.batch_decode(found.sequences, skip_special_tokens=False)
        return texts, found.sequences_scores.float().exp().clamp(0, 1)

    def polygons(self, text: str, size: tuple[int, int]) -> list[list[list[int]]]:
        """An answer -> of each instance its polygons [x, y, x, y, ...], in pixels of an image of `size` (H, W)."""
        read = self.processor.post_process_generation(text=text, task=TASK, image_size=(size[1], size[0]))
        return read[TASK]["polygons"]


def draw(instances: list[list[list[int]]], size: tuple[int, int]) -> np.ndarray:
    """Instances of polygons [x, y, ...] -> bool (H, W), by COCO's rule of what a polygon covers."""
    union = np.zeros(size, bool)
    for polygons in instances:
        masks = [_filled(polygon, size) for polygon in polygons if len(polygon) >= 6]
        instance = np.zeros(size, bool)
        for mask in sorted(masks, key=np.count_nonzero, reverse=True):
            hole = mask.any() and not (mask & ~instance).any()
            instance = instance & ~mask if hole else instance | mask
        union |= instance
    return union


def _filled(polygon: list[int], size: tuple[int, int]) -> np.ndarray:
    return coco_mask.decode(coco_mask.frPyObjects([[float(x) for x in polygon]], *size))[..., 0].astype(bool)


class FlorenceProcessor(RisProcessor):
    """The checkpoint's own preprocessing (squashed to 768x768) and prompt, and polygons drawn at the original size.

    Args:
        reader: the checkpoint's processor.
    """

    def __init__(self, image_processor, tokenizer, max_text_length: int, threshold: float, reader: Florence):
        super().__init__(image_processor, tokenizer, max_text_length, threshold)
        self.reader = reader

    @classmethod
    def of(cls, processor: Florence2Processor, reader: Florence) -> "FlorenceProcessor":
        images = processor.image_processor
        side = images.size["height"]
        return cls(OwnView(images, "squash", side), processor.tokenizer, WORDS, 0.5, reader)

    def _tokenize(self, texts: list[str]) -> dict[str, Tensor]:
        for number, expression in enumerate(texts):
            check_expression(expression, f"Expression {number}")
        own, tokenizer = self.reader.processor, self.tokenizer
        images = own.image_token * own.num_image_tokens + tokenizer.bos_token
        prompts = [
            images + own.task_prompts_with_input[TASK].format(input=self._cut(text.strip())) + tokenizer.eos_token
            for text in texts
        ]
        encoded = tokenizer(
            prompts, padding=True, add_special_tokens=False, return_tensors="pt", return_token_type_ids=False
        )
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}

    def _cut(self, text: str) -> str:
        """The text, or its first `max_text_length` tokens."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return text if len(ids) <= self.max_text_length else self.tokenizer.decode(ids[: self.max_text_length])

    def post_process_referring_segmentation(
        self,
        outputs: FlorenceOutput,
        target_sizes: list[tuple[int, int]],
        threshold: float | None = None,
        probabilities: bool = True,
    ) -> list[dict]:
        """As every processor's; `remark` quotes an answer that holds no polygon, else it is None."""
        threshold = checked_threshold(self.threshold if threshold is None else threshold)
        if len(outputs.texts) != len(target_sizes):
            raise ValueError(
                f"{len(outputs.texts)} expressions and {len(target_sizes)} target sizes; give one per expression."
            )
        results = []
        for text, score, size in zip(outputs.texts, outputs.scores.tolist(), target_sizes):
            size = (int(size[0]), int(size[1]))
            instances = self.reader.polygons(text, size)
            drawn = torch.from_numpy(draw(instances, size))
            probability = drawn.float()
            mask = probability > threshold
            remark = None if drawn.any() else f"Florence-2 answered without a polygon: {text[:200]!r}."
            score = score if mask.any() else 0.0
            result = {"mask": mask, "score": score, "remark": remark}
            results.append(result | {"probability": probability} if probabilities else result)
        return results


def load(source: str) -> tuple[Florence, FlorenceProcessor]:
    """From a Hub id or a folder; raises as `load_part`."""
    network, processor = load_part(source, Florence2ForConditionalGeneration, Florence2Processor)
    model = Florence(network, processor).eval()
    return model, FlorenceProcessor.of(processor, model)
