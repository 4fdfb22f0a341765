"""LAVT configuration: `LavtConfig()` is the model of the paper (Swin-B window 12, BERT-base, 480x480, 20 tokens)."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import BertConfig

from .configuration_ris import ClipEncoderConfig, RisConfig, VisionEncoderConfig


_SWIN_B = {
    "name": "swin_base_patch4_window12_384",
    "pretrained_tag": "ms_in22k",
    "arguments": {"window_size": 12, "drop_path_rate": 0.3},
}
_VIT_B = {"name": "ViT-B-16-quickgelu"}


@strict
class LavtConfig(RisConfig):
    """Configuration of `LavtForReferringSegmentation`.

    Args:
        vision_config: the Swin backbone; all four stages are used. A dict overrides single fields, and of `arguments`
            single ones; `{"arguments": {"drop_path_rate": 0.1}}` is another stochastic depth than the paper's 0.3.
        text_encoder: `bert`, or CLIP's (VATEX's supplementary, Table 1).
        clip_config: of `clip`, of which the text encoder alone is used. A dict overrides single fields of ViT-B/16's.
        text_config: the BERT encoder (without pooler). A dict overrides single fields of BERT-base's.
        text_pretrained: Hub name or folder of the BERT weights that `from_pretrained_encoders` loads.
        fusion_num_heads: attention heads of the pixel-word attention of each stage; they divide the stage's width.
        fusion_dropout: dropout in [0, 1) after the two GELU projections of the pixel-word attention module.
        decoder_dim: channels of the decoder's hidden maps.
        loss_weights: cross-entropy weights of background and foreground.
        aligner: EAVL's Vision-Language Aligner instead of the decoder's last convolution (EAVL, Table V).
        aligner_queries, aligner_dim: N_q and C of the aligner; 8 heads divide C.
    """

    model_type = "lavt"
    sub_configs = {
        "vision_config": VisionEncoderConfig,
        "clip_config": ClipEncoderConfig,
        "text_config": BertConfig,
    }
    nested_defaults = {"vision_config": _SWIN_B, "clip_config": _VIT_B}

    vision_config: VisionEncoderConfig | dict | None = None
    text_encoder: Literal["bert", "clip"] = "bert"
    clip_config: ClipEncoderConfig | dict | None = None
    text_config: BertConfig | dict | None = None
    text_pretrained: str = "bert-base-uncased"
    fusion_num_heads: list[int] | tuple[int, ...] = (1, 1, 1, 1)
    fusion_dropout: float | int = 0.0
    decoder_dim: int = 512
    loss_weights: list[float | int] | tuple[float | int, ...] = (0.9, 1.1)
    aligner: bool = False
    aligner_queries: int = 24
    aligner_dim: int = 512

    @property
    def text_part(self) -> str | None:
        return "text_config" if self.text_encoder == "bert" else "clip_config"

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        vision, text = self.vision_config, self.text_config
        if not vision.name.startswith("swin_") or list(vision.output_stages) != [2, 3, 4, 5]:
            raise ValueError(
                "LAVT fuses words inside the four stages of a Swin: vision_config takes a timm swin_* name and "
                f"output_stages [2, 3, 4, 5], got {vision.name!r} and {list(vision.output_stages)}."
            )
        if len(self.fusion_num_heads) != 4 or min(self.fusion_num_heads) < 1:
            raise ValueError(f"fusion_num_heads takes four positive numbers, got {list(self.fusion_num_heads)}.")
        if len(self.loss_weights) != 2 or min(self.loss_weights) <= 0:
            raise ValueError(
                f"loss_weights takes two positive numbers, background and foreground, got {list(self.loss_weights)}."
            )
        for name in ("decoder_dim", "aligner_queries"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.aligner_dim < 1 or self.aligner_dim % 8:
            raise ValueError(f"aligner_dim must be a multiple of 8, the number of heads, got {self.aligner_dim}.")
        if not 0 <= self.fusion_dropout < 1:
            raise ValueError(f"fusion_dropout must lie in [0, 1), got {self.fusion_dropout}.")
        if self.text_encoder == "bert" and self.max_text_length > text.max_position_embeddings:
            raise ValueError(
                f"max_text_length is {self.max_text_length}, but text_config has max_position_embeddings="
                f"{text.max_position_embeddings}."
            )


LavtConfig.register_for_auto_class()
