"""LAVT's preprocessing: images squashed to 480x480, BERT's uncased WordPiece, 20 tokens, threshold 0.5."""

from torch import Tensor

from .configuration_lavt import LavtConfig
from .processing_ris import RisImageProcessor, RisProcessor


class LavtProcessor(RisProcessor):
    """Images and expressions for `LavtForReferringSegmentation`. `LavtProcessor.from_config` builds one."""

    @classmethod
    def from_config(cls, config: LavtConfig, tokenizer) -> "LavtProcessor":
        """The paper's preprocessing at the config's image size and text length.

        Raises:
            ValueError: a tokenizer with more words than the config's BERT.
        """
        if len(tokenizer) > config.text_config.vocab_size:
            raise ValueError(
                f"The tokenizer has {len(tokenizer)} words, but text_config has vocab_size={config.text_config.vocab_size}."
            )
        image_processor = RisImageProcessor(geometry="squash", image_size=config.image_size)
        return cls(image_processor, tokenizer, max_text_length=config.max_text_length)

    def _tokenize(self, texts: list[str]) -> dict[str, Tensor]:
        """As the published program: a long expression is cut to its first tokens and so loses its `[SEP]`."""
        return super()._tokenize(texts)


LavtProcessor.register_for_auto_class("AutoProcessor")
