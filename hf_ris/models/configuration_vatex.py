"""VATEX configuration: `VatexConfig()` is the model of the paper (Swin-B, CLIP ViT-B/16, short side 480, 5 queries)."""

from typing import ClassVar, Literal

from huggingface_hub.dataclasses import strict

from .configuration_ris import ClipEncoderConfig, RisConfig, VisionEncoderConfig


_SWIN_B = {
    "name": "swin_base_patch4_window12_384",
    "pretrained_tag": "ms_in22k",
    "arguments": {"window_size": 12, "drop_path_rate": 0.3},
}
_VIT_B = {"name": "ViT-B-16-quickgelu"}


@strict
class VatexConfig(RisConfig):
    """Configuration of `VatexForReferringSegmentation`.

    The eight rows of the supplementary's Table 8 are `clip_prior`, `cmd` and `mcc`; those of Table 5 are
    `clip_prior=False` and the three of `prior_prompt`. Swin-L is `vision_config={"name":
    "swin_large_patch4_window12_384"}`, the paper's ResNets are `vision_config={"name": "resnet101"}`. The fields from
    `early_fusion` on are what the published program adds to the paper or does otherwise; by default they are off.

    Args:
        vision_config: a Swin or ResNet of which all four levels are used. A dict overrides single fields.
        clip_config: CLIP, frozen: the text encoder reads the expression and the prompts, the image encoder (a vision
            transformer or a ResNet) makes the prior. A dict overrides single fields.
        image_size: the short side.
        clip_image_size: side of CLIP's view of the image, which fixes the size of the prior.
        max_text_length: in tokens, start and end included; CLIP's own by default.
        hidden_dim: C, of everything between the encoders and the answer.
        num_heads, ffn_dim, decoder_layers: of the masked-attention decoder; `num_heads` also of the CMD.
        num_queries: N.
        clip_prior: begin the queries with CLIP's heatmap and the sentence; else with the sentence alone.
        prior_prompt: what CLIP reads: "a photo of [object]", the whole expression, or the mean of ImageNet's prompts.
        prior_template: of the first, with `{}` for the object.
        noun_phrases: how [object] is found: by spaCy, by rules, or by spaCy where it is installed (`noun_phrase.py`).
        cmd: words learn from the pixels at every level (Eq. 2); else the pixels read the same words at every level.
        mcc: the meaning consistency constraint, a loss between the expressions of a batch.
        mcc_loss: Eq. 6 (`triplet`), or InfoNCE over the expressions of all processes.
        mcc_temperature: of InfoNCE; Eq. 6 has none.
        loss_weights: of the losses class, mask (binary cross-entropy), dice and mcc.
        loss_points: places in each mask that the mask and dice losses look at, 12,544 in the published program; None is
            every pixel of the logits, as in the paper.
        early_fusion: words and pixels meet at every level before the decoder too, and the words forget it.
        pixel_encoder_layers: of multi-scale deformable attention between encoder and CMD (6 in the program).
        prior_norm: normalise the similarities (Eq. 1).
        prior_class_token: the similarity of the whole image is among them.
        prior_crop: CLIP sees the central square, not the whole image squashed.
        prior_ffn: two layers embed the prior instead of one.
        sentence: mean over an expression's tokens, or their sum divided by the tokens of the whole batch.
        class_loss: each query's probability for itself, or two classes with a tenth of the weight on "no object" and a
            softmax over the queries at inference.
        train_text_encoder: CLIP's text encoder learns too, unless a recipe freezes it. Ours, not the paper's or the
            program's: a CLIP that knows neither "not" nor "second" never will, frozen.
    """

    model_type = "vatex"
    sub_configs = {"vision_config": VisionEncoderConfig, "clip_config": ClipEncoderConfig}
    nested_defaults = {"vision_config": _SWIN_B, "clip_config": _VIT_B}
    vision_families: ClassVar[tuple[str, ...]] = ("swin_", "resnet")  # how the names begin that are taken
    vision_names: ClassVar[str] = "a timm swin_* or resnet* name"

    vision_config: VisionEncoderConfig | dict | None = None
    clip_config: ClipEncoderConfig | dict | None = None
    image_size: int = 480
    clip_image_size: int = 224
    max_text_length: int = 77
    hidden_dim: int = 256
    num_heads: int = 8
    ffn_dim: int = 2048
    decoder_layers: int = 9
    num_queries: int = 5
    clip_prior: bool = True
    prior_prompt: Literal["object", "expression", "imagenet"] = "object"
    prior_template: str = "a photo of {}"
    noun_phrases: Literal["auto", "spacy", "rules"] = "auto"
    cmd: bool = True
    mcc: bool = True
    mcc_loss: Literal["triplet", "info_nce"] = "triplet"
    mcc_temperature: float | int = 0.07
    loss_weights: list[float | int] | tuple[float | int, ...] = (2.0, 5.0, 5.0, 2.0)
    loss_points: int | None = None
    early_fusion: bool = False
    pixel_encoder_layers: int = 0
    prior_norm: bool = True
    prior_class_token: bool = True
    prior_crop: bool = False
    prior_ffn: bool = False
    sentence: Literal["mean", "batch"] = "mean"
    class_loss: Literal["binary", "softmax"] = "binary"
    train_text_encoder: bool = False

    @property
    def text_part(self) -> str | None:
        return "clip_config"

    def __post_init__(self, **kwargs):
        self.loss_weights = list(self.loss_weights)
        super().__post_init__(**kwargs)
        for name in "clip_image_size hidden_dim num_heads ffn_dim decoder_layers num_queries loss_points".split():
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"VatexConfig: {name} must be at least 1, got {value}.")
        vision = self.vision_config
        if not vision.name.startswith(self.vision_families) or list(vision.output_stages) != [2, 3, 4, 5]:
            raise ValueError(
                f"VATEX reads four levels of a Swin or ResNet: vision_config takes {self.vision_names} and "
                f"output_stages [2, 3, 4, 5], got {vision.name!r} and {list(vision.output_stages)}."
            )
        if self.hidden_dim % self.num_heads or self.hidden_dim % 4:
            raise ValueError(
                "VatexConfig: hidden_dim must be a multiple of num_heads, and of 4 (sine and cosine of y and x), got "
                f"{self.hidden_dim} with {self.num_heads} heads."
            )
        if len(self.loss_weights) != 4 or min(self.loss_weights) < 0:
            raise ValueError(
                "VatexConfig: loss_weights takes four numbers that are not negative, of class, mask, dice and mcc, got "
                f"{self.loss_weights}."
            )
        if self.overlap_loss_weight:
            raise ValueError(
                f"{type(self).__name__}: overlap_loss_weight is for losses without Dice; VATEX's has it, its weight is "
                "the third of loss_weights."
            )
        if self.pixel_encoder_layers < 0:
            raise ValueError(
                f"VatexConfig: pixel_encoder_layers must not be negative, got {self.pixel_encoder_layers}."
            )
        if self.prior_template.count("{}") != 1:
            raise ValueError(f"VatexConfig: prior_template must hold {{}} once, got {self.prior_template!r}.")
        if self.mcc_temperature <= 0:
            raise ValueError(f"VatexConfig: mcc_temperature must be greater than 0, got {self.mcc_temperature}.")

    @property
    def stride(self) -> int:
        """Pixels of a cell of the coarsest level; the input's sides are multiples of it."""
        patch = (self.vision_config.arguments or {}).get("patch_size", 4)
        return 8 * patch if self.vision_config.name.startswith("swin_") else 32

    def further_inputs(self, images: int, expressions: int, words: int) -> dict[str, tuple[int, ...]]:
        if not self.clip_prior:
            return {}
        prompts = (expressions, 80 if self.prior_prompt == "imagenet" else 1, words)
        view = (images, 3, self.clip_image_size, self.clip_image_size)
        return {"clip_pixel_values": view, "prompt_ids": prompts, "prompt_mask": prompts}


VatexConfig.register_for_auto_class()
