"""Configuration of LTS (see modeling_lts.py)."""

from typing import Literal

from huggingface_hub.dataclasses import strict

from .configuration_ris import RisConfig, VisionEncoderConfig


# Darknet-53 with levels of stride 8, 16 and 32: F_v3, F_v2 and F_v1 of the paper.
_DARKNET53 = {"name": "darknet53", "output_stages": [3, 4, 5]}


@strict
class LtsConfig(RisConfig):
    """Configuration of `LtsForReferringSegmentation`; without arguments it is the paper's model.

    Rows of the paper's tables, by fields:

    - Table 2: Fusion `localization="none", use_segmentation=False`; Filter `use_fusion=False, use_segmentation=False`;
      Fusion+Filter `use_segmentation=False`; Fusion+Seg `localization="none"`; Filter+Seg `use_fusion=False`; all
      three: the default; each of these with `locating_loss_weight=0.0`. All three + L_loc: the default.
    - Table 4: `localization="transformer"`. Table 5: `num_filterings` 1 to 3; `localization="word_filter"`.
    - Table 6: `image_size` 320 to 480.
    - Table 7, LTS*: `localization="transformer", num_filterings=2, image_size=480`.

    Args:
        vision_config: the visual backbone, three levels of stride 8, 16 and 32; a dict overrides single fields.
        vocab_size: rows of the word table, padding and unknown word included: the length of the tokenizer. The paper
            does not print its vocabulary; the default only sizes a model built without a tokenizer.
        embedding_dim: of a word (GloVe's 300).
        hidden_size: of the GRU in one direction; f_text has twice as many channels (Eq. 4).
        fusion_dim: channels of F_m1, F_m2 and F_m3 (Eq. 5-7), even; so also d_k of the filtering kernel (Eq. 8).
        use_fusion: the text product of Eq. 5; without it the visual pyramid stays (rows "Filter" of Table 2).
        coordinate_features: append normalised x and y in [-1, 1] to F_v1, F_v2 and F_v3. Ours, not the paper's: a small
            backbone on small images sees position only through its zero padding.
        localization: `filter` (Eq. 8), `transformer` (Eq. 9), `word_filter` (Table 5) or `none`.
        num_filterings: n of Table 5, filterings in a cascade; decoder layers of the transformer.
        decoder_heads, decoder_ffn_dim: of the transformer variant.
        use_segmentation: the segmentation module (Eq. 10); without it the response map, or without localization a 1x1
            convolution of F_m3, is the prediction, at stride 8.
        segmentation_dim: channels of each ASPP branch and of its output.
        aspp_rates: dilations of the 3x3 branches, in cells of stride 8.
        locating_loss_weight: lambda of Eq. 13.
        loss_reduction: `sum` over pixels (Eq. 11-12) or `mean`; with `mean`, lambda 0.025 keeps the ratio of 0.1 with
            `sum`, since L_seg has four times as many pixels as L_loc.
    """

    model_type = "lts"
    sub_configs = {"vision_config": VisionEncoderConfig}
    nested_defaults = {"vision_config": _DARKNET53}

    vision_config: VisionEncoderConfig | dict | None = None
    image_size: int = 416
    max_text_length: int = 15
    vocab_size: int = 10_000
    embedding_dim: int = 300
    hidden_size: int = 512
    fusion_dim: int = 1024
    use_fusion: bool = True
    coordinate_features: bool = False
    localization: Literal["filter", "transformer", "word_filter", "none"] = "filter"
    num_filterings: int = 1
    decoder_heads: int = 4
    decoder_ffn_dim: int = 1024
    use_segmentation: bool = True
    segmentation_dim: int = 256
    aspp_rates: list[int] | tuple[int, ...] = (6, 12, 18)
    locating_loss_weight: float | int = 0.1
    loss_reduction: Literal["sum", "mean"] = "sum"

    def __post_init__(self, **kwargs):
        self.aspp_rates = list(self.aspp_rates)
        super().__post_init__(**kwargs)
        self._check_values()
        self._check_combinations()

    def _check_values(self) -> None:
        positive = "vocab_size embedding_dim hidden_size fusion_dim num_filterings decoder_heads decoder_ffn_dim"
        for name in [*positive.split(), "segmentation_dim"]:
            if getattr(self, name) < 1:
                raise ValueError(f"LtsConfig: {name} must be at least 1, got {getattr(self, name)}.")
        if not self.aspp_rates or min(self.aspp_rates) < 1:
            raise ValueError(
                f"LtsConfig: aspp_rates must be one or more dilations of at least 1, got {self.aspp_rates}."
            )
        if self.locating_loss_weight < 0:
            raise ValueError(f"LtsConfig: locating_loss_weight must not be negative, got {self.locating_loss_weight}.")
        if self.fusion_dim % 2:
            raise ValueError(f"LtsConfig: fusion_dim is two halves (Eq. 7) and must be even, got {self.fusion_dim}.")
        if list(self.vision_config.output_stages) != [3, 4, 5]:
            raise ValueError(
                "LtsConfig: vision_config.output_stages must be [3, 4, 5] (strides 8, 16 and 32), got "
                f"{list(self.vision_config.output_stages)}."
            )

    def _check_combinations(self) -> None:
        located = self.localization != "none"
        if not located and not self.use_fusion:
            raise ValueError(
                "LtsConfig: with localization='none' and use_fusion=False the expression would be ignored."
            )
        if not located and self.num_filterings != 1:
            raise ValueError(f"LtsConfig: localization='none' filters nothing; num_filterings={self.num_filterings}.")
        if self.locating_loss_weight and not located:
            raise ValueError(
                "LtsConfig: localization='none' has no response map; set locating_loss_weight=0.0 "
                f"(got {self.locating_loss_weight})."
            )
        if self.locating_loss_weight and not self.use_segmentation:
            raise ValueError(
                "LtsConfig: with use_segmentation=False the response map is the prediction and has L_seg already; set "
                f"locating_loss_weight=0.0 (got {self.locating_loss_weight})."
            )
        if self.localization == "transformer" and self.fusion_dim % (4 * self.decoder_heads):
            raise ValueError(
                "LtsConfig: localization='transformer' needs a fusion_dim that 4 (sine and cosine of y and x) times "
                f"decoder_heads divides; got fusion_dim={self.fusion_dim}, decoder_heads={self.decoder_heads}."
            )


LtsConfig.register_for_auto_class()
