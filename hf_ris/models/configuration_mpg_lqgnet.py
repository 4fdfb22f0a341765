"""Configuration of MPG-LQGNet (see modeling_mpg_lqgnet.py)."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import BertConfig

from .configuration_ris import RisConfig, VisionEncoderConfig


_SWIN_BASE = {
    "name": "swin_base_patch4_window7_224",
    "pretrained_tag": "ms_in22k",
    "arguments": {"drop_path_rate": 0.3},
}


@strict
class MpgLqgnetConfig(RisConfig):
    """Configuration of `MpgLqgnetForReferringSegmentation`; without arguments it is the paper's model.

    Rows of the paper's tables, by fields ("no LQPG" stands for `num_prior_layers=0, prior_loss_weight=0.0`):

    - Table 2: 1 `fusion="tile", gate="none"`, no LQPG; 2 `fusion="tile"`, no LQPG; 3 `gate="none"`, no LQPG; 4 no LQPG;
      5 `gate="none"`; 6 `prior_loss_weight=0.0`; ours: the default.
    - Table 3: `query_stages` [1, 2], [3, 4], [1], [2], [3] or [4].
    - Table 4: `gate` "single_channel", "spatial_channel", "spatial_spatial" or "language".
    - Table 5: `num_prior_layers` 1 to 8. Table 6: `coordinates=False`.

    Args:
        vision_config: the Swin backbone; all four stages are used. A dict overrides single fields, and of `arguments`
            single ones.
        text_config: the BERT encoder (without pooler). A dict overrides single fields of BERT-base's.
        text_pretrained: Hub name or folder of the BERT weights that `from_pretrained_encoders` loads.
        fusion: `bsam`, bidirectional spatial alignment (Eq. 1-9), or `tile`, the mean word beside every pixel.
        query_stages: the Swin stages, of 1 to 4, whose language queries reach the generator.
        gate: what lets the fused map F_i of stages 1 to 3 pass to the next stage: `channel_channel` (Eq. 10-11), one
            of the variants of Table 4, or `none`, V' = V + F. The first word is CA_1's, the second CA_2's.
        gate_reduction: the gate's hidden width is C_i divided by this.
        gate_norm: Eq. 10's batch norm, of which a channel path cannot train with a single expression; or `layer`, a
            norm over the channels of each expression and position alone (ours).
        decoder_dim: channels of the pixel decoder's hidden maps.
        query_dim: C_q, of queries, keys and the maps F_D.
        num_prior_layers: N_l, layers of the mask prior generator; 0 is without it, and the mask head drops m_p.
        prior_heads, prior_ffn_dim: of each of its layers.
        prior_residual: residual and LayerNorm around the generator's attention as around its feed-forward network.
        coordinates: the map F_o of Eq. 16.
        prior_loss_weight: lambda of Eq. 17.
        loss_weights: cross-entropy weights of background and foreground. The paper's are equal; scenes of small objects
            need others.
    """

    model_type = "mpg_lqgnet"
    sub_configs = {"vision_config": VisionEncoderConfig, "text_config": BertConfig}
    nested_defaults = {"vision_config": _SWIN_BASE}

    vision_config: VisionEncoderConfig | dict | None = None
    text_config: BertConfig | dict | None = None
    image_size: int = 448
    max_text_length: int = 30
    text_pretrained: str = "bert-base-uncased"
    fusion: Literal["bsam", "tile"] = "bsam"
    query_stages: list[int] | tuple[int, ...] = (1, 2, 3, 4)
    gate: Literal["channel_channel", "single_channel", "spatial_channel", "spatial_spatial", "language", "none"] = (
        "channel_channel"
    )
    gate_reduction: int = 4
    gate_norm: Literal["batch", "layer"] = "batch"
    decoder_dim: int = 512
    query_dim: int = 256
    num_prior_layers: int = 6
    prior_heads: int = 8
    prior_ffn_dim: int = 2048
    prior_residual: bool = True
    coordinates: bool = True
    prior_loss_weight: float | int = 0.1
    loss_weights: list[float | int] | tuple[float | int, ...] = (1.0, 1.0)

    @property
    def text_part(self) -> str | None:
        return "text_config"

    def __post_init__(self, **kwargs):
        self.query_stages, self.loss_weights = list(self.query_stages), list(self.loss_weights)
        super().__post_init__(**kwargs)
        self._check_values()
        self._check_combinations()

    def _check_values(self) -> None:
        for name in ("gate_reduction", "decoder_dim", "query_dim", "prior_heads", "prior_ffn_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("num_prior_layers", "prior_loss_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        if self.query_dim % 32:
            raise ValueError(f"query_dim must be a multiple of Eq. 13's 32 groups, got {self.query_dim}.")
        vision, text = self.vision_config, self.text_config
        if not vision.name.startswith("swin_") or list(vision.output_stages) != [2, 3, 4, 5]:
            raise ValueError(
                "MPG-LQGNet fuses words inside the four stages of a Swin: vision_config takes a timm swin_* name and "
                f"output_stages [2, 3, 4, 5], got {vision.name!r} and {list(vision.output_stages)}."
            )
        if self.max_text_length > text.max_position_embeddings:
            raise ValueError(
                f"max_text_length is {self.max_text_length}, but text_config has max_position_embeddings="
                f"{text.max_position_embeddings}."
            )
        if len(self.loss_weights) != 2 or min(self.loss_weights) <= 0:
            raise ValueError(
                f"loss_weights takes two positive numbers, background and foreground, got {self.loss_weights}."
            )
        stages = self.query_stages
        if not stages or stages != sorted(set(stages) & {1, 2, 3, 4}):
            raise ValueError(f"query_stages takes one or more stages of 1, 2, 3, 4 in rising order, got {stages}.")

    def _check_combinations(self) -> None:
        if self.num_prior_layers and self.fusion == "tile":
            raise ValueError("fusion='tile' makes no language queries; set num_prior_layers=0.")
        if self.num_prior_layers and self.query_dim % self.prior_heads:
            raise ValueError(f"prior_heads={self.prior_heads} must divide query_dim={self.query_dim}.")
        if not self.num_prior_layers and self.prior_loss_weight:
            raise ValueError(
                f"num_prior_layers=0 has no mask prior; set prior_loss_weight=0.0 (got {self.prior_loss_weight})."
            )


MpgLqgnetConfig.register_for_auto_class()
