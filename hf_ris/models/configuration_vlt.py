"""Configuration of VLT (see modeling_vlt.py)."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import BertConfig

from .configuration_ris import RisConfig, VisionEncoderConfig


# Darknet-53 with levels of stride 8, 16 and 32.
_DARKNET53 = {"name": "darknet53", "output_stages": [3, 4, 5]}


@strict
class VltConfig(RisConfig):
    """Configuration of `VltForReferringSegmentation`; without arguments it is the model of the paper of 2021.

    The later variant, which EAVL compares with, is `vision_config={"name": "swin_base_patch4_window12_384",
    "pretrained_tag": "ms_in22k", "arguments": {"window_size": 12}}, text_encoder="bert"`.

    Args:
        vision_config: the visual backbone, three or more consecutive levels; a dict overrides single fields.
        text_encoder: `gru` (word table and bidirectional GRU) or `bert`.
        vocab_size: rows of the GRU's word table, padding and unknown word included: the length of the tokenizer. The
            paper prints no vocabulary; the default only sizes a model built without a tokenizer.
        embedding_dim: of a word of that table (GloVe's 300).
        hidden_size: of the GRU, whose directions are summed.
        gru_dropout: of the vectors that the GRU reads; the published configuration's.
        text_config: BERT (without pooler), for `text_encoder="bert"`. A dict overrides single fields.
        text_pretrained: Hub name or folder of the BERT weights that `from_pretrained_encoders` loads.
        fusion_stage: the one of `vision_config.output_stages` whose size the fused features and the queries' maps have.
        fusion_dim: channels of the necks.
        hidden_dim: C, of the transformer, the queries and the mask decoder.
        num_heads, ffn_dim, num_encoder_layers, num_decoder_layers, dropout: of the transformer.
        num_queries: N_q.
        mask_upsamplings: by 2, of the mask decoder: with 2 the logits have four times the size of the fused features.
        memory_positions: add the pixels' rows and columns, as sines, to what the transformer reads, so that its values
            tell where they are. Not of the paper, whose positions are in queries and keys alone.
        query_positions: learned, added to the queries in each attention of the decoder, as DETR's. Not of the paper,
            where the queries from few words are nearly one.
        query_balance: weigh each query's response by its score (query balance module).
        fused_loss_weight: of a further loss, not of the paper: the same cross-entropy for a 1x1 convolution of the
            fused features, so that small models find their objects early; 0 leaves it out.
        aligner: EAVL's Vision-Language Aligner instead of the mask decoder's last convolution (EAVL, Table V).
    """

    model_type = "vlt"
    sub_configs = {"vision_config": VisionEncoderConfig, "text_config": BertConfig}
    nested_defaults = {"vision_config": _DARKNET53}

    vision_config: VisionEncoderConfig | dict | None = None
    text_encoder: Literal["gru", "bert"] = "gru"
    image_size: int = 416
    max_text_length: int = 15
    vocab_size: int = 10_000
    embedding_dim: int = 300
    hidden_size: int = 1024
    gru_dropout: float | int = 0.1
    text_config: BertConfig | dict | None = None
    text_pretrained: str = "bert-base-uncased"
    fusion_stage: int = 4
    fusion_dim: int = 512
    hidden_dim: int = 256
    num_heads: int = 8
    ffn_dim: int = 1024
    num_encoder_layers: int = 2
    num_decoder_layers: int = 2
    dropout: float | int = 0.1
    num_queries: int = 16
    mask_upsamplings: Literal[0, 1, 2] = 2
    memory_positions: bool = False
    query_positions: bool = False
    query_balance: bool = True
    fused_loss_weight: float | int = 0.0
    aligner: bool = False

    @property
    def text_part(self) -> str | None:
        return "text_config" if self.text_encoder == "bert" else None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self._check_values()

    def _check_values(self) -> None:
        positive = "vocab_size embedding_dim hidden_size fusion_dim hidden_dim num_heads ffn_dim num_encoder_layers"
        for name in [*positive.split(), "num_decoder_layers", "num_queries"]:
            if getattr(self, name) < 1:
                raise ValueError(f"VltConfig: {name} must be at least 1, got {getattr(self, name)}.")
        if self.fused_loss_weight < 0:
            raise ValueError(f"VltConfig: fused_loss_weight must not be negative, got {self.fused_loss_weight}.")
        if self.hidden_dim % self.num_heads or self.hidden_dim % 4:
            raise ValueError(
                "VltConfig: hidden_dim must be a multiple of num_heads, and of 4 (sine and cosine of y and x), got "
                f"{self.hidden_dim} with {self.num_heads} heads."
            )
        for name in ("dropout", "gru_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"VltConfig: {name} must lie in [0, 1), got {getattr(self, name)}.")
        stages = list(self.vision_config.output_stages)
        if len(stages) < 2 or self.fusion_stage not in stages:
            raise ValueError(
                f"VltConfig: fusion_stage must be one of two or more vision_config.output_stages {stages}, got "
                f"{self.fusion_stage}."
            )
        if self.text_encoder == "bert" and self.max_text_length > self.text_config.max_position_embeddings:
            raise ValueError(
                f"VltConfig: max_text_length is {self.max_text_length}, but text_config has max_position_embeddings="
                f"{self.text_config.max_position_embeddings}."
            )


VltConfig.register_for_auto_class()
