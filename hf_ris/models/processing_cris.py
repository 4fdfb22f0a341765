"""Processor of CRIS: images letterboxed to 416x416, CLIP's byte pairs, threshold 0.35."""

from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import Tensor

from .clip_tokenizer import clean_text
from .configuration_ris import RisConfig
from .processing_ris import RisImageProcessor, RisProcessor
from .resampling import Taps, corner_taps


class CrisProcessor(RisProcessor):
    """Makes the inputs of CRIS and turns its logits into masks.

    Probabilities are enlarged to the input's size bicubically, corner to corner, and from there to the original size
    bicubically, as the published evaluation does.

    Args:
        image_processor: None is the paper's: letterboxed to 416x416 with a border of CLIP's mean colour.
        tokenizer: from `clip_tokenizer.clip_tokenizer`, or a small one that puts a token before and after the words;
            its length is the `vocab_size` of the model's `clip_config`.
        max_text_length: in tokens, start and end included; 17, and 22 for RefCOCOg.
        threshold: of the probability, after it is enlarged.
    """

    interpolation = "bicubic"

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        max_text_length: int = 17,
        threshold: float = 0.35,
        enlarges: str = "probabilities",
    ):
        if image_processor is None:
            image_processor = letterbox(416)
        super().__init__(image_processor, tokenizer, max_text_length, threshold, enlarges)

    @classmethod
    def from_config(cls, config: RisConfig, tokenizer) -> "CrisProcessor":
        """The published preprocessing at the config's image and text size."""
        return cls(letterbox(config.image_size), tokenizer, **cls.settings(config))

    def clean(self, text: str) -> str:
        return clean_text(text)

    def _tokenize(self, texts: list[str]) -> dict[str, Tensor]:
        inputs = super()._tokenize(texts)
        # open_clip pads with 0. The tokenizer cannot: 0 is the word "!", which as a padding token would no longer join
        # its neighbours
        inputs["input_ids"] = inputs["input_ids"] * inputs["attention_mask"]
        return inputs

    def sampling(self, size: tuple[int, int], canvas: tuple[int, int], grid: tuple[int, int]) -> tuple[Taps, Taps]:
        """By way of the canvas; logits at once, as the loss at full size enlarges them."""
        if self.enlarges == "logits":
            return super().sampling(size, canvas, grid)
        rows, columns = super().sampling(size, canvas, canvas)
        to_rows, to_columns = (corner_taps(*sides, self.interpolation) for sides in zip(canvas, grid))
        return rows.after(to_rows), columns.after(to_columns)


def letterbox(image_size: int) -> RisImageProcessor:
    """CLIP's normalisation on a letterboxed square."""
    return RisImageProcessor(
        geometry="letterbox", image_size=image_size, image_mean=OPENAI_DATASET_MEAN, image_std=OPENAI_DATASET_STD
    )


CrisProcessor.register_for_auto_class("AutoProcessor")
