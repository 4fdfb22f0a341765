"""CLIPSeg: CLIP with a small decoder, zero-shot.

Lüddecke and Ecker, "Image Segmentation Using Text and Image Prompts", CVPR 2022 (https://arxiv.org/abs/2112.10003).
Trained on PhraseCut: the expression itself is the prompt. Network: transformers' `CLIPSegForImageSegmentation`.
"""

from torch import Tensor, nn
from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor

from ..models.modeling_ris import RisOutput, RisPreTrainedModel
from ..models.processing_ris import RisImageProcessor, RisProcessor
from .loading import load_part


THRESHOLD = 0.3  # ours: the public weights were not at hand to choose one by


class Clipseg(nn.Module):
    """CLIPSeg for N expressions over B images, each of which is encoded once."""

    def __init__(self, network: CLIPSegForImageSegmentation):
        super().__init__()
        self.network = network

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        image_index: Tensor | None = None,
        object_index: Tensor | None = None,
    ) -> RisOutput:
        """The inputs of every architecture (object_index, as collators give it, is not read) -> logits (N, h, w)."""
        image_index = RisPreTrainedModel.image_index_of(pixel_values, input_ids, image_index)
        clip, layers = self.network.clip, self.network.extract_layers
        states = clip.get_image_features(pixel_values, output_hidden_states=True).hidden_states
        levels = [states[layer + 1].index_select(0, image_index) for layer in layers]  # state 0 is the embedding
        condition = clip.get_text_features(input_ids, attention_mask=attention_mask).pooler_output
        logits = self.network.decoder(levels, condition).logits
        return RisOutput(logits=logits.view(len(input_ids), *logits.shape[-2:]))  # it drops an N of 1


class ClipsegProcessor(RisProcessor):
    """A checkpoint's own preprocessing (squashed to 352x352), and the way back."""

    @classmethod
    def of(cls, processor: CLIPSegProcessor, max_text_length: int) -> "ClipsegProcessor":
        images = processor.image_processor
        geometry = RisImageProcessor("squash", images.size["height"], images.image_mean, images.image_std)
        return cls(geometry, processor.tokenizer, max_text_length, THRESHOLD)


def load(source: str) -> tuple[Clipseg, ClipsegProcessor]:
    """From a Hub id or a folder; raises as `load_part`."""
    network, processor = load_part(source, CLIPSegForImageSegmentation, CLIPSegProcessor)
    words = network.config.text_config.max_position_embeddings
    return Clipseg(network).eval(), ClipsegProcessor.of(processor, words)
