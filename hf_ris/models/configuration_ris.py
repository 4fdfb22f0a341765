"""What every referring-segmentation configuration shares: strict fields, no silent extras, nested encoder configs.

A `config.json` may come from anyone: a size in it that no model of this kind has is refused before anything is built.
"""

import re
from copy import deepcopy
from dataclasses import fields
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


# Keys that transformers itself passes through a config's constructor or writes into its JSON.
_TRANSFORMERS_KEYS = frozenset(
    "_name_or_path name_or_path _commit_hash model_type auto_map custom_pipelines torch_dtype num_labels "
    "attn_implementation _attn_implementation_internal experts_implementation _experts_implementation_internal "
    "output_attentions use_cache transformers_version pad_token_id bos_token_id eos_token_id "
    "quantization_config".split()
)

# Bounds of what a configuration may say, far beyond every published model.
_LARGEST = 2**14
_LARGEST_NAMED = {
    **dict.fromkeys("vocab_size pad_token_id bos_token_id eos_token_id masked_token_id loss_points".split(), 2**20),
    **dict.fromkeys(["image_size", "clip_image_size"], 4_096),
    "window_size": 32,
    "patch_size": 512,
    "num_labels": 1_000,
}
_LAYERS, _MOST_LAYERS = re.compile(r"(^|_)(layers|depths?|filterings)$"), 256  # of a list, in all
_SIZES = re.compile(r"(size|widths?|dims?|heads|layers|depths?|channels|position_embeddings|length)$")
_LONGEST_LIST, _LONGEST_TEXT, _DEEPEST = 1_000, 10_000, 20


# Arguments of timm.create_model that read files or the network.
_TIMM_LOADING_KEYS = frozenset("pretrained pretrained_cfg pretrained_cfg_overlay checkpoint_path cache_dir".split())


@strict
class StrictConfig(PreTrainedConfig):
    """A `PreTrainedConfig` that refuses a field it does not know, naming the field and what it could have been.

    `sub_configs = {"vision_config": VisionEncoderConfig, ...}` on a class makes dicts of those fields configs, and
    `nested_defaults` holds what its architecture's own differ in. A dict overrides single keys of these, those of
    `arguments` included; None in a dict is None. (transformers' `sub_configs_defaults` is younger than 5.17.)

    An attribute that was added to a config (`config.note = "..."`) is saved and read again.

    Raises:
        ValueError: an unknown field, or a size that no model has.
    """

    nested_defaults: ClassVar[dict[str, dict[str, Any]]] = {}

    def __post_init__(self, **kwargs):
        added = kwargs.pop("added_attributes", None) or ()
        if not type(self).__module__.startswith("transformers_modules."):
            kwargs.pop("custom_pipelines", None)  # for those without this package; where it is, the task is registered
        _refuse_unknown(type(self).__name__, type(self), set(kwargs) - set(added))
        own = {field.name for field in fields(self)} - {field.name for field in fields(PreTrainedConfig)}
        sized = own | {"num_labels", "id2label", "label2id"}  # a list of as many labels is made
        values = {**self.__dict__, **kwargs}
        _check_sizes(type(self).__name__, {name: values[name] for name in sorted(sized & values.keys())})
        for field, config_class in self.sub_configs.items():
            value = self.__dict__[field]
            if not isinstance(value, PreTrainedConfig):
                place = f"{type(self).__name__}: {field}"
                value = _overriding(place, config_class, value or {}, self.nested_defaults.get(field, {}))
                setattr(self, field, config_class(**value))
        super().__post_init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """As in transformers, with the names of added attributes, so that they are read again."""
        values = super().to_dict()
        added = sorted(set(values) - {field.name for field in fields(self)} - _TRANSFORMERS_KEYS)
        return values | {"added_attributes": added} if added else values

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """As in transformers; fields given beside the dict override it key by key, and are checked as all are."""
        own = {field.name for field in fields(cls)} - {field.name for field in fields(PreTrainedConfig)}
        given = {key: kwargs.pop(key) for key in sorted(own & kwargs.keys())}
        for field in cls.sub_configs.keys() & given.keys():
            if isinstance(given[field], dict) and config_dict.get(field):
                place = f"{cls.__name__}: {field}"
                given[field] = _overriding(place, cls.sub_configs[field], given[field], config_dict[field])
        return super().from_dict({**config_dict, **given}, **kwargs)


def _refuse_unknown(place: str, config_class: type[PreTrainedConfig], given: set[str]) -> None:
    known = {field.name for field in fields(config_class)}
    unknown = sorted(given - known - _TRANSFORMERS_KEYS - config_class.attribute_map.keys())
    if unknown:
        own = sorted(known - {field.name for field in fields(PreTrainedConfig)})
        raise ValueError(f"{place} has no field {', '.join(unknown)[:200]}; its fields are {', '.join(own)}.")


def _overriding(
    place: str, config_class: type[PreTrainedConfig], given: dict[str, Any], default: dict[str, Any]
) -> dict[str, Any]:
    """A nested config's dict in full: the default's keys, where `given` has them its own, `arguments` key by key."""
    own = {field.name for field in fields(config_class)} - {field.name for field in fields(PreTrainedConfig)}
    if {"model_type", *own} <= given.keys():  # saved, and so whole
        return given
    if "model_type" not in given:
        _refuse_unknown(place, config_class, set(given) - {"dtype"})
    names = [str(values.get("name") or "").partition("_")[0] for values in (given, default)]
    if all(names) and names[0] != names[1]:  # arguments and weights of a Swin say nothing of a ResNet
        default = {key: value for key, value in default.items() if key not in ("pretrained_tag", "arguments")}
    return _merged(default, given)


def _merged(default: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    both = {
        key: _merged(default[key], value)
        for key, value in given.items()
        if isinstance(value, dict) and isinstance(default.get(key), dict)
    }
    return deepcopy(default) | given | both


def _check_sizes(place: str, value: Any, key: str = "") -> None:
    """Raises ValueError where a number, list or text, at any depth, is larger than any model's."""
    if isinstance(value, dict):
        _check_bound(place, len(value), _LONGEST_LIST, "entries")
        _check_bound(place, place.count("."), _DEEPEST, "levels deep")
        for name, inner in value.items():
            _check_sizes(f"{place}.{str(name)[:50]}", inner, str(name))
    elif isinstance(value, (list, tuple)):
        _check_bound(place, len(value), _LONGEST_LIST, "entries")
        for inner in value:
            _check_sizes(place, inner, key)
        if _LAYERS.search(key) and all(type(inner) is int for inner in value):
            _check_bound(place, sum(map(abs, value)), _MOST_LAYERS, "in all")
    elif isinstance(value, str):
        _check_bound(place, len(value), _LONGEST_TEXT, "characters")
    elif type(value) in (int, float):
        bound = _MOST_LAYERS if _LAYERS.search(key) else _LARGEST_NAMED.get(key, _LARGEST)
        _check_bound(place, abs(value), bound, "")
        lowest = 1 if _SIZES.search(key) else 0
        if place.count(".") > 1 and value < lowest:  # a nested one; an architecture's own fields are checked by it
            raise ValueError(f"{place} must be at least {lowest}, got {value}.")


def _check_bound(place: str, value: float, bound: int, unit: str) -> None:
    if not value <= bound:  # NaN neither
        shown = value if value < 10**15 or value != value else "more than 10^15"
        raise ValueError(f"{place} must be at most {bound} {unit}".rstrip() + f", got {shown}.")


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
        overlap_loss_weight: of a Dice loss of the mask that is added to the paper's, at the same size. It counts by
            expression, as mIoU does, where a mean over pixels hardly sees small objects. 0 leaves the paper's loss.
    """

    # transformers' Trainer hands all other outputs to `compute_metrics`: the logits alone
    keys_to_ignore_at_inference = "losses prior_logits heatmap query_logits query_scores text_states input_size".split()

    image_size: int = 480
    max_text_length: int = 20
    refinement: Literal[1, 2, 4] | None = None
    refinement_dim: int = 16
    loss_size: Literal["logits", "full"] = "logits"
    overlap_loss_weight: float | int = 0.0

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        for name in ("image_size", "max_text_length", "refinement_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{type(self).__name__}: {name} must be at least 1, got {getattr(self, name)}.")
        if not 0 <= self.overlap_loss_weight < float("inf"):
            raise ValueError(
                f"{type(self).__name__}: overlap_loss_weight must be at least 0 and finite, got "
                f"{self.overlap_loss_weight}."
            )

    @property
    def text_part(self) -> str | None:
        """Name of the nested config with the words' table; None where that is this config's own."""
        return None

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """The config that has the words' `vocab_size`; there is one text encoder, whatever is asked for."""
        return self if self.text_part is None else self.__dict__[self.text_part]

    def further_inputs(self, images: int, expressions: int, words: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors that forward takes beside those of every architecture, by name (for measuring)."""
        return {}
