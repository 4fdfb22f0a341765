"""SegVLM configuration: `SegvlmConfig()` is the model of the paper (CLIP RN101, 416x416)."""

from typing import Literal

from huggingface_hub.dataclasses import strict

from .configuration_cris import CrisConfig


@strict
class SegvlmConfig(CrisConfig):
    """Configuration of `SegvlmForReferringSegmentation`: the fields of `CrisConfig`, and SegVLM's.

    Rows of Table 2, by fields:

    - Baseline: `deformable=False, residual=False, squeeze_excitation=False, focal_weight=0, dice_weight=0`, which is
      CRIS. + RAF loss: `deformable=False, residual=False, squeeze_excitation=False`. + deformable + residual:
      `squeeze_excitation=False`. + SE block: the default.

    Args:
        deformable: the enhancement block's convolution bends its grid (Eq. 1); without, it is an ordinary one.
        squeeze_excitation: the block weighs its channels (Eq. 2).
        squeeze_ratio: of the channels to those between W_1 and W_2 of Eq. 2.
        residual: a 1x1 convolution of the block's input is added to its output (Eq. 3).
        cross_entropy_weight, focal_weight, dice_weight: lambda 1 to 3 of the RAF loss (Eq. 8); a term of weight 0 is
            left out.
        focal_alpha: weight of the foreground in the focal loss, 1 - alpha that of the background (Eq. 5).
        focal_gamma: the exponent of Eq. 5 and of Eq. 7's second choice.
        dice_pixel_weight: Eq. 7's choice: `error` is |p - y|, `focal` is (1 - p)^gamma.
        dice_epsilon: of Eq. 6, in pixels.
    """

    model_type = "segvlm"

    deformable: bool = True
    squeeze_excitation: bool = True
    squeeze_ratio: int = 16
    residual: bool = True
    cross_entropy_weight: float | int = 1.0
    focal_weight: float | int = 1.0
    dice_weight: float | int = 1.0
    focal_alpha: float | int = 0.25
    focal_gamma: float | int = 2.0
    dice_pixel_weight: Literal["error", "focal"] = "error"
    dice_epsilon: float | int = 1.0

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        weights = self.cross_entropy_weight, self.focal_weight, self.dice_weight
        if min(weights) < 0 or not any(weights):
            raise ValueError(
                "SegvlmConfig: cross_entropy_weight, focal_weight and dice_weight must not be negative, and one of "
                f"them not 0, got {', '.join(map(str, weights))}."
            )
        if not 0 <= self.focal_alpha <= 1:
            raise ValueError(f"SegvlmConfig: focal_alpha must lie in [0, 1], got {self.focal_alpha}.")
        if self.focal_gamma < 0:
            raise ValueError(f"SegvlmConfig: focal_gamma must not be negative, got {self.focal_gamma}.")
        if self.dice_epsilon <= 0:
            raise ValueError(f"SegvlmConfig: dice_epsilon must be positive, got {self.dice_epsilon}.")
        channels = self.neck_dims[1] // 2
        if self.squeeze_excitation and not 1 <= self.squeeze_ratio <= channels:
            raise ValueError(
                f"SegvlmConfig: squeeze_ratio must lie between 1 and the block's {channels} channels (half of "
                f"neck_dims[1]), got {self.squeeze_ratio}."
            )


SegvlmConfig.register_for_auto_class()
