"""Processor of CLIPSeg: images squashed to 352x352, CLIP's byte pairs, threshold 0.3."""

from transformers import CLIPSegProcessor

from .clip_tokenizer import clean_text
from .configuration_ris import RisConfig
from .processing_ris import RisImageProcessor, RisProcessor


class ClipsegProcessor(RisProcessor):
    """Makes the inputs of CLIPSeg and turns its logits into masks.

    Args:
        image_processor: None is the published preprocessing: squashed to 352x352, ImageNet's mean and deviation.
        tokenizer: CLIP's, or a small one that puts a token before and after the words.
        max_text_length: in tokens, start and end included; 77 are CLIP's positions.
        threshold: of the probability; 0.3 is the paper's (Table 3).
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        max_text_length: int = 77,
        threshold: float = 0.3,
        enlarges: str = "probabilities",
    ):
        if image_processor is None:
            image_processor = RisImageProcessor(image_size=352)
        super().__init__(image_processor, tokenizer, max_text_length, threshold, enlarges)

    @classmethod
    def from_config(cls, config: RisConfig, tokenizer) -> "ClipsegProcessor":
        return cls(RisImageProcessor(image_size=config.image_size), tokenizer, **cls.settings(config))

    @classmethod
    def of(cls, processor: CLIPSegProcessor, max_text_length: int) -> "ClipsegProcessor":
        """The preprocessing of a transformers CLIPSeg's processor."""
        images = processor.image_processor
        geometry = RisImageProcessor("squash", images.size["height"], images.image_mean, images.image_std)
        return cls(geometry, processor.tokenizer, max_text_length)

    def clean(self, text: str) -> str:
        return clean_text(text)


ClipsegProcessor.register_for_auto_class("AutoProcessor")
