"""Processor of LAVT: images squashed to 480x480, BERT's uncased WordPiece, threshold 0.5."""

from .clip_tokenizer import clean_text
from .configuration_ris import RisConfig
from .processing_ris import RisImageProcessor, RisProcessor


class LavtProcessor(RisProcessor):
    """Makes the inputs of LAVT and turns its logits into masks.

    Args:
        image_processor: None is the paper's: squashed to 480x480, ImageNet's mean and deviation.
        tokenizer: BERT's uncased one, or a small one from `text_encoders.wordpiece_tokenizer`; its length is the
            `vocab_size` of the model's `text_config`.
        max_text_length: in WordPiece tokens, `[CLS]` and `[SEP]` included.
        threshold: of the probability; 0.5 is the published program's argmax.
        clip_text: the tokenizer is CLIP's, which wants its text cleaned; for a model with `text_encoder="clip"`.
    """

    keeps_end_token = False  # as published: a long expression loses its `[SEP]`

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        max_text_length: int = 20,
        threshold: float = 0.5,
        clip_text: bool = False,
        enlarges: str = "probabilities",
    ):
        if image_processor is None:
            image_processor = RisImageProcessor(geometry="squash", image_size=480)
        super().__init__(image_processor, tokenizer, max_text_length, threshold, enlarges)
        self.clip_text = clip_text

    @classmethod
    def from_config(cls, config: RisConfig, tokenizer) -> "LavtProcessor":
        processor = super().from_config(config, tokenizer)
        processor.clip_text = config.text_encoder == "clip"
        return processor

    def clean(self, text: str) -> str:
        return clean_text(text) if self.clip_text else text


LavtProcessor.register_for_auto_class("AutoProcessor")
