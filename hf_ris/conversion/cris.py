"""CRIS checkpoints of https://github.com/DerrickWang005/CRIS.pytorch to ours.

Published files are dictionaries with `state_dict`, whose keys carry a leading `module.`. A bare state dict (as in a
`.safetensors` file), with that prefix or without, is read too.

Widths, depths and CLIP's sizes follow from the shapes, which also tell RN50, RN101 and their wider kin apart. What
shapes cannot tell is taken from the overrides, or else from the paper: `image_size` 416, `max_text_length` 17 (22 on
RefCOCOg), 8 heads in the decoder; CLIP's are 64 wide.
"""

import re
from pathlib import Path
from typing import Any

import open_clip
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..models.clip_tokenizer import clip_tokenizer
from ..models.configuration_cris import CrisConfig
from ..models.modeling_cris import CrisForReferringSegmentation
from ..models.processing_cris import CrisProcessor
from .checkpoint import (
    Conversion,
    ConversionError,
    Shapes,
    merged,
    read_checkpoint,
    save_converted,
    tensors_of,
    without,
)


# CLIP's temperature
_UNREAD = re.compile(r"^backbone\.logit_scale$")
# CLIP's ResNets as open_clip names them; the first stands in for what is none of them
_RESNETS = [f"RN{size}-quickgelu" for size in ("101", "50", "50x4", "50x16", "50x64")]

# Our modules to theirs; a convolution with batch norm is numbered 0 and 1 there.
_CONV_NORM = {
    "connect": "backbone.visual.attnpool.connect",
    "neck.visual5": "neck.f1_v_proj",
    "neck.visual4": "neck.f2_v_proj",
    "neck.visual3": "neck.f3_v_proj",
    "neck.fuse4": "neck.f2_cat",
    "neck.fuse3": "neck.f3_cat",
    "neck.refine5": "neck.f4_proj5",
    "neck.refine4": "neck.f4_proj4",
    "neck.refine3": "neck.f4_proj3",
    "neck.aggregate": "neck.aggr",
    "neck.coordinates": "neck.coordconv.0.conv1",
    "neck.output": "neck.coordconv.1",
    "projector.visual1": "proj.vis.1",
    "projector.visual2": "proj.vis.3",
}
_PREFIXES = {
    **{f"{ours}.conv.": f"{theirs}.0." for ours, theirs in _CONV_NORM.items()},
    **{f"{ours}.norm.": f"{theirs}.1." for ours, theirs in _CONV_NORM.items()},
    "vision_encoder.backbone.": "backbone.visual.",
    "text_encoder.tower.": "backbone.",
    "neck.text.": "neck.txt_proj.0.",
    "neck.text_norm.": "neck.txt_proj.1.",
    "neck.product_norm.": "neck.norm_layer.0.",
    "projector.visual_output.": "proj.vis.4.",
    "projector.kernel.": "proj.txt.",
}
_LAYER = {
    "self_attention_norm": "self_attn_norm",
    "cross_attention_norm": "cross_attn_norm",
    "self_attention": "self_attn",
    "cross_attention": "multihead_attn",
    "linear1": "ffn.0",
    "ffn_norm": "ffn.3",
    "linear2": "ffn.4",
}


def official_name(key: str) -> str:
    """The published name, without `module.`, of a key of our state dict."""
    for ours, theirs in _PREFIXES.items():
        if key.startswith(ours):
            return theirs + key[len(ours) :]
    if match := re.fullmatch(r"(decoder\.layers\.\d+\.)(\w+)(\..+)", key):
        return match[1] + _LAYER.get(match[2], match[2]) + match[3]
    return key


def all_tensors(content: dict) -> dict[str, Tensor]:
    """The state dict of a checkpoint without `module.`.

    Raises:
        ConversionError: a dictionary that is no state dict and has none.
    """
    if "state_dict" in content:
        state = tensors_of(content["state_dict"], "'state_dict' in the checkpoint")
    else:
        state = tensors_of(content, "The checkpoint (which has no 'state_dict')")
    return {key.removeprefix("module."): tensor for key, tensor in state.items()}


def official_state(content: dict) -> dict[str, Tensor]:
    """`all_tensors` without those that nothing reads."""
    return without(all_tensors(content), _UNREAD)[0]


def infer_config(state: dict[str, Tensor]) -> dict[str, Any]:
    """The fields of `CrisConfig` that the shapes of `official_state` tell.

    Raises:
        ConversionError: a state dict that is not CRIS's, or of a CRIS that ours cannot be.
    """
    shapes = Shapes(state, "CRIS")
    vocab_size, text_width = shapes.of("backbone.token_embedding.weight", axes=2)
    if shapes.count(r"backbone\.visual\.transformer\.(\w+)"):
        raise ConversionError(
            "The checkpoint's image encoder is a vision transformer; CRIS reads three levels of one of CLIP's ResNets."
        )
    layers = [shapes.count(rf"backbone\.visual\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4)]
    width = shapes.of("backbone.visual.conv3.weight")[0]
    designs = {name: open_clip.get_model_config(name) for name in _RESNETS}
    own = {"layers": layers, "width": width}
    name = next((name for name in _RESNETS if own.items() <= designs[name]["vision_cfg"].items()), _RESNETS[0])
    context_length = shapes.of("backbone.positional_embedding")[0]
    found = {
        "embed_dim": shapes.of("backbone.text_projection", axes=2)[1],
        "vision_cfg": {
            **own,
            "image_size": 32 * shapes.side("backbone.visual.attnpool.positional_embedding", extra=1),
        },
        "text_cfg": {
            "context_length": context_length,
            "width": text_width,
            "heads": max(1, text_width // 64),
            "layers": shapes.count(r"backbone\.transformer\.resblocks\.(\d+)\."),
        },
    }
    arguments = {}
    for key, value in found.items():
        if isinstance(value, dict):
            value = {field: size for field, size in value.items() if size != designs[name][key][field]}
        if value and value != designs[name][key]:
            arguments[key] = value
    decoder_layers = shapes.count(r"decoder\.layers\.(\d+)\.")
    fields = {
        "clip_config": {"name": name, "vocab_size": vocab_size, "arguments": arguments or None},
        "neck_dims": [shapes.of(f"neck.f{level}_v_proj.0.weight")[0] for level in (3, 2, 1)],
        "max_text_length": min(17, context_length),
        "decoder_layers": decoder_layers,
        "masked_token_id": 0,
    }
    if decoder_layers:
        fields["decoder_ffn_dim"] = shapes.of("decoder.layers.0.ffn.0.weight")[0]
    return fields


def build_config(state: dict[str, Tensor], overrides: dict[str, Any] | None = None) -> CrisConfig:
    """`infer_config` with the overrides laid over it, nested dictionaries key by key.

    Raises:
        ConversionError: no CRIS checkpoint, one that ours cannot be, or more words than it has positions.
        ValueError, StrictDataclassError: an override that `CrisConfig` does not know or take; the message names it.
    """
    config = CrisConfig(**merged(infer_config(state), overrides or {}))
    positions = len(state["backbone.positional_embedding"])
    if config.max_text_length > positions:
        raise ConversionError(
            f"max_text_length is {config.max_text_length}, but the checkpoint has positions for {positions} tokens."
        )
    return config


def read_tokenizer(folder: str | Path | None, config: CrisConfig) -> PreTrainedTokenizerBase:
    """CLIP's tokenizer, or one saved in a folder.

    Raises:
        ConversionError: a folder without a tokenizer, or a tokenizer of another size than the checkpoint's word table.
    """
    if folder is None:
        tokenizer = clip_tokenizer()
    else:
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise ConversionError(f"There is no tokenizer in {folder} ({error}).") from error
    size = config.clip_config.vocab_size
    if len(tokenizer) != size:
        raise ConversionError(
            f"The tokenizer has {len(tokenizer)} entries, but the checkpoint's word table {size}; pass --vocab with "
            "the folder of a tokenizer of that size."
        )
    return tokenizer


def convert(
    checkpoint: str | Path,
    out_dir: str | Path,
    overrides: dict[str, Any] | None = None,
    vocabulary: str | Path | None = None,
) -> Conversion:
    """Write model and processor made of an official checkpoint.

    Args:
        checkpoint: `.pth` (or any PyTorch file) or `.safetensors`.
        out_dir: folder to write.
        overrides: fields of `CrisConfig`, nested ones key by key; see the head of this file.
        vocabulary: folder of a saved tokenizer; None is CLIP's.

    Raises:
        ConversionError: whatever does not fit, in one sentence; nothing is written then.
    """
    state, unread = without(all_tensors(read_checkpoint(checkpoint)), _UNREAD)
    config = build_config(state, overrides)
    return save_converted(
        state,
        unread,
        config,
        CrisForReferringSegmentation,
        official_name,
        lambda: CrisProcessor.from_config(config, read_tokenizer(vocabulary, config)),
        out_dir,
    )
