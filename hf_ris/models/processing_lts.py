"""Processor of LTS: images squashed to 416x416, words of a lower-casing vocabulary, threshold 0.25."""

from .processing_ris import RisImageProcessor, RisProcessor


class LtsProcessor(RisProcessor):
    """Makes the inputs of LTS and turns its logits into masks.

    Args:
        image_processor: None is the paper's: squashed to 416x416, ImageNet's mean and deviation.
        tokenizer: from `text_encoders.word_tokenizer` or `word_tokenizer_from_corpus`; its length is the model's
            `vocab_size`.
        max_text_length: in words; the paper has 15 for RefCOCO and RefCOCO+, 20 for RefCOCOg.
        threshold: of the probability, upsampled to the original size before it is cut (section 3.4).
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        max_text_length: int = 15,
        threshold: float = 0.25,
        enlarges: str = "probabilities",
    ):
        if image_processor is None:
            image_processor = RisImageProcessor(geometry="squash", image_size=416)
        super().__init__(image_processor, tokenizer, max_text_length, threshold, enlarges)


LtsProcessor.register_for_auto_class("AutoProcessor")
