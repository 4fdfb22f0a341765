"""Configuration of EAVL (see modeling_eavl.py)."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import BertConfig

from .configuration_ris import ClipEncoderConfig, RisConfig, VisionEncoderConfig


# Swin-B with levels of stride 8, 16 and 32: x_2, x_3 and x_4 of the paper.
_SWIN_BASE = {
    "name": "swin_base_patch4_window12_384",
    "pretrained_tag": "ms_in22k",
    "arguments": {"window_size": 12, "drop_path_rate": 0.3},
    "output_stages": [3, 4, 5],
}


@strict
class EavlConfig(RisConfig):
    """Configuration of `EavlForReferringSegmentation`; without arguments it is the paper's Swin-B and BERT model.

    Its ResNet-101 model is `encoders="clip"`. Rows of the tables, by fields: Table II `num_queries`; Table III
    `aligner` and `num_queries`; Table IV, from above, the default, `use_query_estimator=False`, then also
    `use_vision_global=False`, then also `use_language_global=False`.

    Args:
        encoders: `swin_bert` (`vision_config`, `text_config`) or `clip` (`clip_config`).
        vision_config: a Swin with three levels or more, of which the coarsest passes the attention pooling. A dict
            overrides single fields, and of `arguments` single ones.
        text_config: BERT (without pooler). A dict overrides single fields of BERT-base's.
        text_pretrained: Hub name or folder of the BERT weights that `from_pretrained_encoders` loads.
        clip_config: CLIP's two encoders, the image encoder one of its ResNets. A dict overrides single fields.
        fusion_stage: the level (one of `vision_config.output_stages`; 3, 4 or 5 with CLIP) whose size the fused
            features have: H_3 x W_3 in the paper.
        hidden_dim: C.
        num_heads: of every attention but CLIP's and BERT's.
        ffn_dim, num_decoder_layers, dropout: of the transformer decoder.
        num_queries: N_q.
        aligner: the Vision-Language Aligner; without it one 3x3 convolution gives the mask (Table III).
        use_language_global: F_tg in Eq. 2. use_vision_global: F_vg in Eq. 8. use_query_estimator: Eq. 13; without it
            all masks weigh the same.
    """

    model_type = "eavl"
    sub_configs = {"vision_config": VisionEncoderConfig, "text_config": BertConfig, "clip_config": ClipEncoderConfig}
    nested_defaults = {"vision_config": _SWIN_BASE}

    encoders: Literal["swin_bert", "clip"] = "swin_bert"
    vision_config: VisionEncoderConfig | dict | None = None
    text_config: BertConfig | dict | None = None
    text_pretrained: str = "bert-base-uncased"
    clip_config: ClipEncoderConfig | dict | None = None
    image_size: int = 480
    max_text_length: int = 17
    fusion_stage: int = 4
    hidden_dim: int = 512
    num_heads: int = 8
    ffn_dim: int = 2048
    num_decoder_layers: int = 3
    dropout: float | int = 0.1
    num_queries: int = 24
    aligner: bool = True
    use_language_global: bool = True
    use_vision_global: bool = True
    use_query_estimator: bool = True

    @property
    def text_part(self) -> str | None:
        return "text_config" if self.encoders == "swin_bert" else "clip_config"

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self._check_values()
        self._check_combinations()

    def _check_values(self) -> None:
        for name in "hidden_dim num_heads ffn_dim num_decoder_layers num_queries".split():
            if getattr(self, name) < 1:
                raise ValueError(f"EavlConfig: {name} must be at least 1, got {getattr(self, name)}.")
        if self.hidden_dim % self.num_heads or self.hidden_dim % 4:
            raise ValueError(
                "EavlConfig: hidden_dim must be a multiple of num_heads, and of 4 (sine and cosine of y and x), got "
                f"{self.hidden_dim} with {self.num_heads} heads."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"EavlConfig: dropout must lie in [0, 1), got {self.dropout}.")
        if not self.aligner and not self.use_query_estimator:
            raise ValueError(
                "EavlConfig: with aligner=False there are no masks to weigh, so that use_query_estimator=False says "
                "nothing; leave it True."
            )

    def _check_combinations(self) -> None:
        if self.encoders == "clip":
            stages = [3, 4, 5]
        else:
            stages = list(self.vision_config.output_stages)
            if not self.vision_config.name.startswith("swin_") or len(stages) < 3:
                raise ValueError(
                    "EavlConfig: vision_config takes a timm swin_* name and three output_stages or more, got "
                    f"{self.vision_config.name!r} and {stages}."
                )
            if self.max_text_length > self.text_config.max_position_embeddings:
                raise ValueError(
                    f"EavlConfig: max_text_length is {self.max_text_length}, but text_config has "
                    f"max_position_embeddings={self.text_config.max_position_embeddings}."
                )
        if self.fusion_stage not in stages:
            raise ValueError(f"EavlConfig: fusion_stage must be one of the levels {stages}, got {self.fusion_stage}.")


EavlConfig.register_for_auto_class()
