"""What every referring-segmentation configuration shares: strict fields, no silent extras, nested encoder configs."""

from dataclasses import fields
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


# Keys that transformers itself passes through a config's constructor or writes into its JSON.
_TRANSFORMERS_KEYS = frozenset(
    "_name_or_path name_or_path _commit_hash model_type auto_map custom_pipelines torch_dtype num_labels "
    "attn_implementation _attn_implementation_internal experts_implementation _experts_implementation_internal "
    "output_attentions use_cache transformers_version".split()
)


# Arguments of timm.create_model that read files or the network.
_TIMM_LOADING_KEYS = frozenset("pretrained pretrained_cfg pretrained_cfg_overlay checkpoint_path cache_dir".split())


@strict
class StrictConfig(PreTrainedConfig):
    """A `PreTrainedConfig` that refuses a field it does not know, naming the field and what it could have been."""

    def __post_init__(self, **kwargs):
        known = {field.name for field in fields(self)}
        unknown = sorted(set(kwargs) - known - _TRANSFORMERS_KEYS)
        if unknown:
            own = sorted(known - {field.name for field in fields(PreTrainedConfig)})
            raise ValueError(
                f"{type(self).__name__} has no field {', '.join(unknown)}; its fields are {', '.join(own)}."
            )
        # `sub_configs = {"vision_config": VisionEncoderConfig, ...}` on a class makes dicts of those fields configs; a
        # class sets its own defaults before it calls this. (transformers' `sub_configs_defaults` is younger than 5.17.)
        for name, config_class in self.sub_configs.items():
            value = self.__dict__[name]
            if not isinstance(value, PreTrainedConfig):
                setattr(self, name, config_class(**(value or {})))
        super().__post_init__(**kwargs)


@strict
class VisionEncoderConfig(StrictConfig):
    """A timm backbone that gives a feature pyramid.

    Args:
        name: a timm model of the families darknet, resnet or swin, as `darknet53` or `swin_base_patch4_window12_384`.
        pretrained_tag: the timm weights that `from_pretrained_encoders` loads; None is timm's default for the model.
        arguments: overrides of timm's architecture arguments (`embed_dim`, `depths`, `window_size`, `drop_path_rate`,
            `layers`, `channels`, ...; for darknet `depths`, `widths`, `stem_width`). Tiny configurations live here.
        output_stages: the pyramid levels that leave the encoder, finest first, as powers of two of the stride
            (2 is stride 4, 5 is stride 32).
    """

    model_type = "ris_vision_encoder"

    name: str = "swin_base_patch4_window12_384"
    pretrained_tag: str | None = None
    arguments: dict[str, Any] | None = None
    output_stages: list[int] | tuple[int, ...] = (2, 3, 4, 5)

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        loading = sorted(_TIMM_LOADING_KEYS & set(self.arguments or ()))
        if loading:  # a config from the Hub must not make timm read files or the network
            raise ValueError(f"VisionEncoderConfig: arguments shape an encoder and load nothing; drop {loading}.")


# What shapes an open_clip model of ours; the rest of its configs names files, hubs and other libraries' towers.
_CLIP_ARGUMENTS = {
    "vision_cfg": "layers width head_width mlp_ratio patch_size image_size".split(),
    "text_cfg": "context_length width heads layers mlp_ratio".split(),
}


@strict
class ClipEncoderConfig(StrictConfig):
    """CLIP's two encoders as open_clip builds them.

    Args:
        name: an open_clip model config; those that end in `-quickgelu` belong to OpenAI's weights.
        pretrained: what `from_pretrained_encoders` loads: a tag that open_clip lists for the name, or the path of a
            file with an open_clip state dict.
        vocab_size: rows of the word table, the tokenizer's length.
        arguments: overrides of open_clip's config: `embed_dim`, `quick_gelu`, and dicts `vision_cfg` (`layers`,
            `width`, `head_width`, `mlp_ratio`, `patch_size`, `image_size`, which only sizes the table of positions) and
            `text_cfg` (`context_length`, `width`, `heads`, `layers`, `mlp_ratio`). Tiny configurations live here.
    """

    model_type = "ris_clip_encoder"

    name: str = "RN101-quickgelu"
    pretrained: str = "openai"
    vocab_size: int = 49_408
    arguments: dict[str, Any] | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        arguments = self.arguments or {}
        known = {"embed_dim", "quick_gelu", *_CLIP_ARGUMENTS}
        unknown = sorted(set(arguments) - known)
        for part, names in _CLIP_ARGUMENTS.items():
            unknown += sorted(f"{part}.{key}" for key in set(arguments.get(part, ())) - set(names))
        if unknown:
            takes = ", ".join(f"{part} ({', '.join(names)})" for part, names in _CLIP_ARGUMENTS.items())
            raise ValueError(
                f"ClipEncoderConfig: arguments has no {', '.join(unknown)}; it takes embed_dim, quick_gelu, {takes}."
            )
        if self.vocab_size < 1:
            raise ValueError(f"ClipEncoderConfig: vocab_size must be at least 1, got {self.vocab_size}.")


@strict
class RisConfig(StrictConfig):
    """Fields that every architecture has.

    Args:
        image_size: side in pixels of the squashed or letterboxed input, or its short side.
        max_text_length: tokens kept of an expression, special tokens included.
        refinement: stride in pixels of the input, 4, 2 or 1, to which the logits are enlarged with the vision encoder's
            finer maps and the pixels (`refinement.py`); None leaves them as the paper has them.
        refinement_dim: channels inside of it.
        loss_size: the mask's loss is taken at the size of the "logits", or at the "full" size of the labels on logits
            that are enlarged to it. The processor then enlarges logits too, and not probabilities.
    """

    image_size: int = 480
    max_text_length: int = 20
    refinement: Literal[1, 2, 4] | None = None
    refinement_dim: int = 16
    loss_size: Literal["logits", "full"] = "logits"

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        for name in ("image_size", "max_text_length", "refinement_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{type(self).__name__}: {name} must be at least 1, got {getattr(self, name)}.")

    def further_inputs(self, images: int, expressions: int, words: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors that forward takes beside those of every architecture, by name (for measuring)."""
        return {}
