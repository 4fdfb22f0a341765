"""Processor of EAVL: images squashed to 480x480, BERT's uncased WordPiece or CLIP's byte pairs, threshold 0.5."""

from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

from .clip_tokenizer import clean_text
from .configuration_ris import RisConfig
from .processing_ris import RisImageProcessor, RisProcessor


class EavlProcessor(RisProcessor):
    """Makes the inputs of EAVL and turns its logits into masks.

    Args:
        image_processor: None is the paper's: squashed to 480x480, here with ImageNet's mean and deviation.
        tokenizer: BERT's uncased one, or a small one from `text_encoders.wordpiece_tokenizer`; for CLIP,
            `clip_tokenizer.clip_tokenizer`. Its length is the `vocab_size` of `text_config` or `clip_config`.
        max_text_length: in tokens, special ones included; 17, and 22 for RefCOCOg.
        threshold: of the probability.
        clip_text: clean expressions as CLIP's training texts were.
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        max_text_length: int = 17,
        threshold: float = 0.5,
        clip_text: bool = False,
        enlarges: str = "probabilities",
    ):
        if image_processor is None:
            image_processor = RisImageProcessor(geometry="squash", image_size=480)
        super().__init__(image_processor, tokenizer, max_text_length, threshold, enlarges)
        self.clip_text = clip_text

    @classmethod
    def from_config(cls, config: RisConfig, tokenizer) -> "EavlProcessor":
        """The paper's preprocessing at the config's image and text size, with its encoders' normalisation."""
        clip = config.encoders == "clip"
        normalisation = {"image_mean": OPENAI_DATASET_MEAN, "image_std": OPENAI_DATASET_STD} if clip else {}
        image_processor = RisImageProcessor(geometry="squash", image_size=config.image_size, **normalisation)
        return cls(image_processor, tokenizer, clip_text=clip, **cls.settings(config))

    def clean(self, text: str) -> str:
        return clean_text(text) if self.clip_text else text


EavlProcessor.register_for_auto_class("AutoProcessor")
