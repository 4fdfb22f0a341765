"""VATEX on video: `VatexVideoConfig()` is the paper's model with Video-Swin-B."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_vatex import VatexConfig


@strict
class VatexVideoConfig(VatexConfig):
    """Configuration of `VatexVideoForReferringSegmentation`: that of VATEX, and how it sees time.

    The rows of the supplementary's Table 8 are, as for images, `clip_prior`, `cmd` and `mcc`. The paper's backbones are
    the default, Video-Swin-B (torchvision's `swin3d_b` with patches of 1x4x4), ResNet-50, which is
    `vision_config={"name": "resnet50", "pretrained_tag": None}`, and Swin-L, which is
    `vision_config={"name": "swin_large_patch4_window12_384", "pretrained_tag": "ms_in22k"}`; the latter two see frame
    by frame.

    Args:
        loss_points: in each frame; as in the published program, since all pixels of all frames are too many.
        window_frames: frames that the model sees at once when it answers; a longer video goes in windows, see the head
            of `modeling_vatex_video.py`. In training a clip is always seen at once.
        prior_frames: CLIP looks at so many frames, evenly spaced; None is all.
        temporal_shift: ours, not the paper's: the share of channels that a ResNet's blocks take from the frame before
            and as many from the frame after; 0 is none (at most 0.5).
    """

    model_type = "vatex_video"
    nested_defaults = VatexConfig.nested_defaults | {
        "vision_config": {"name": "swin3d_b", "pretrained_tag": "KINETICS400_V1"}
    }
    vision_families: ClassVar[tuple[str, ...]] = ("swin3d_", "swin_", "resnet")
    vision_names: ClassVar[str] = "torchvision's swin3d_* or a timm swin_* or resnet* name"

    loss_points: int = 12_544
    window_frames: int = 4
    prior_frames: int | None = None
    temporal_shift: float | int = 0.0

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        for name in ("window_frames", "prior_frames"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"VatexVideoConfig: {name} must be at least 1, got {value}.")
        if self.refinement is not None or self.loss_size != "logits":
            raise ValueError("VatexVideoConfig: refinement and loss_size are for images; leave them at their defaults.")
        if not 0 <= self.temporal_shift <= 0.5:
            raise ValueError(f"VatexVideoConfig: temporal_shift must lie between 0 and 0.5, got {self.temporal_shift}.")
        if self.temporal_shift and not self.vision_config.name.startswith("resnet"):
            raise ValueError(
                f"VatexVideoConfig: temporal_shift is for ResNets, but vision_config names {self.vision_config.name!r}."
            )

    @property
    def stride(self) -> int:
        return 32 if self.vision_config.name.startswith("swin3d_") else super().stride

    def further_inputs(self, images: int, expressions: int, words: int) -> dict[str, tuple[int, ...]]:
        inputs = super().further_inputs(images, expressions, words)
        if "clip_pixel_values" in inputs:  # one frame for each video
            count, *view = inputs["clip_pixel_values"]
            inputs["clip_pixel_values"] = (count, 1, *view)
        return inputs


VatexVideoConfig.register_for_auto_class()
