"""Processor of MPG-LQGNet: images squashed to 448x448, BERT's uncased WordPiece, threshold 0.5."""

from .processing_ris import RisImageProcessor, RisProcessor


class MpgLqgnetProcessor(RisProcessor):
    """Makes the inputs of MPG-LQGNet and turns its logits into masks.

    Args:
        image_processor: None is the paper's: squashed to 448x448, ImageNet's mean and deviation.
        tokenizer: BERT's uncased one, or a small one from `text_encoders.wordpiece_tokenizer`; its length is the
            `vocab_size` of the model's `text_config`.
        max_text_length: in WordPiece tokens, `[CLS]` and `[SEP]` included.
        threshold: of the probability; 0.5 is the paper's argmax of two scores.
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        max_text_length: int = 30,
        threshold: float = 0.5,
        enlarges: str = "probabilities",
    ):
        if image_processor is None:
            image_processor = RisImageProcessor(geometry="squash", image_size=448)
        super().__init__(image_processor, tokenizer, max_text_length, threshold, enlarges)


MpgLqgnetProcessor.register_for_auto_class("AutoProcessor")
