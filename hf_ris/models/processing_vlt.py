"""Processor of VLT: images letterboxed to 416x416 on grey, words of a lower-casing vocabulary, threshold 0.35."""

from .configuration_ris import RisConfig
from .processing_ris import RisImageProcessor, RisProcessor


class VltProcessor(RisProcessor):
    """Makes the inputs of VLT and turns its logits into masks.

    Args:
        image_processor: None is the published one's geometry: letterboxed to 416x416 with a grey border.
        tokenizer: from `text_encoders.word_tokenizer` or `word_tokenizer_from_corpus`, or BERT's; its length is
            the `vocab_size` of the model, or of its `text_config`.
        max_text_length: in tokens; 15, and 20 for RefCOCOg.
        threshold: of the probability.
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        max_text_length: int = 15,
        threshold: float = 0.35,
        enlarges: str = "probabilities",
    ):
        if image_processor is None:
            image_processor = letterbox(416)
        super().__init__(image_processor, tokenizer, max_text_length, threshold, enlarges)

    @classmethod
    def from_config(cls, config: RisConfig, tokenizer) -> "VltProcessor":
        """The published preprocessing at the config's image and text size."""
        return cls(letterbox(config.image_size), tokenizer, **cls.settings(config))


def letterbox(image_size: int) -> RisImageProcessor:
    return RisImageProcessor(geometry="letterbox", image_size=image_size, fill=[128.0, 128.0, 128.0])


VltProcessor.register_for_auto_class("AutoProcessor")
