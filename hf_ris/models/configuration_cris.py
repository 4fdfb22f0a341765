"""CRIS configuration: `CrisConfig()` is the model of the paper (CLIP RN101, 416x416, 17 words)."""

from huggingface_hub.dataclasses import strict

from .configuration_ris import ClipEncoderConfig, RisConfig


@strict
class CrisConfig(RisConfig):
    """Configuration of `CrisForReferringSegmentation`.

    The paper's ResNet-50 is `clip_config={"name": "RN50-quickgelu"}`; its numbers of decoder layers are
    `decoder_layers`, and the row without a decoder is `decoder_layers=0`. RefCOCOg has `max_text_length=22`.

    Args:
        clip_config: CLIP's two encoders, the image encoder one of its ResNets. A dict overrides single fields.
        neck_dims: channels of the projected C3, C4 and C5; the second is also the width of neck and decoder, and must
            be that of CLIP's words.
        decoder_layers: of the vision-language decoder; 0 leaves it out.
        decoder_heads, decoder_ffn_dim, decoder_dropout: of each of its layers.
        masked_token_id: words of this id are hidden from the decoder as padding is. The published program pads with 0
            and tells padding by it, so that it hides the word "!", whose id is 0, too: converted checkpoints have 0.
        aligner: EAVL's Vision-Language Aligner instead of the sentence's kernel (EAVL, Table V).
        aligner_queries: its N_q.
    """

    model_type = "cris"
    sub_configs = {"clip_config": ClipEncoderConfig}

    clip_config: ClipEncoderConfig | dict | None = None
    image_size: int = 416
    max_text_length: int = 17
    neck_dims: list[int] | tuple[int, ...] = (256, 512, 1024)
    decoder_layers: int = 3
    decoder_heads: int = 8
    decoder_ffn_dim: int = 2048
    decoder_dropout: float | int = 0.1
    masked_token_id: int | None = None
    aligner: bool = False
    aligner_queries: int = 24

    @property
    def text_part(self) -> str | None:
        return "clip_config"

    def __post_init__(self, **kwargs):
        self.neck_dims = list(self.neck_dims)
        super().__post_init__(**kwargs)
        name = type(self).__name__
        if self.image_size % 32:
            raise ValueError(f"{name}: image_size must be a multiple of 32, CLIP's stride, got {self.image_size}.")
        if len(self.neck_dims) != 3 or min(self.neck_dims) < 1:
            raise ValueError(f"{name}: neck_dims takes three positive numbers, got {self.neck_dims}.")
        if self.decoder_layers < 0:
            raise ValueError(f"{name}: decoder_layers must not be negative, got {self.decoder_layers}.")
        for field in ("decoder_heads", "decoder_ffn_dim", "aligner_queries"):
            if getattr(self, field) < 1:
                raise ValueError(f"{name}: {field} must be at least 1, got {getattr(self, field)}.")
        width = self.neck_dims[1]
        if (self.decoder_layers or self.aligner) and (width % self.decoder_heads or width % 4):
            raise ValueError(
                f"{name}: neck_dims[1], the width of decoder and aligner, must be a multiple of decoder_heads, and of "
                f"4 (sine and cosine of column and row), got {width} with {self.decoder_heads} heads."
            )
        if not 0 <= self.decoder_dropout < 1:
            raise ValueError(f"{name}: decoder_dropout must lie in [0, 1), got {self.decoder_dropout}.")


CrisConfig.register_for_auto_class()
