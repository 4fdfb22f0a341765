"""LAVT checkpoints of https://github.com/yz93/LAVT-RIS to ours.

Two formats are known, both a dictionary with `model`: `lavt` keeps BERT in a second dictionary `bert_model`; `lavt_one`
has it inside, under `text_encoder.`. A bare state dict (as in a `.safetensors` file) is read like the latter.

Widths, depths, window and Swin's heads follow from the shapes; Swin-T, S, B and L are told by width and depths. What
shapes cannot tell is taken from the overrides, or else from the options of training that the file holds under `args`
(`img_size`, and `mha`, the heads of the fusions as "4-4-4-4"), or else from the paper: `image_size` 480,
`max_text_length` 20, `fusion_num_heads` 1 each, BERT's heads 64 wide.
"""

import argparse
import re
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import BertConfig, BertTokenizer

from ..models.configuration_lavt import LavtConfig
from ..models.modeling_lavt import LavtForReferringSegmentation
from ..models.processing_lavt import LavtProcessor
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


# Index tables that the model computes, and BERT's pooler.
_UNREAD = re.compile(r"relative_position_index$|^text_encoder\.(pooler\.|embeddings\.position_ids$)")
# timm's names of Swin-B, T, S and L, width and depths; the first stands in for what is none of them
_SWINS = {
    "swin_base_patch4_window12_384": (128, [2, 2, 18, 2]),
    "swin_tiny_patch4_window7_224": (96, [2, 2, 6, 2]),
    "swin_small_patch4_window7_224": (96, [2, 2, 18, 2]),
    "swin_large_patch4_window12_384": (192, [2, 2, 18, 2]),
}


def _prefixes() -> dict[str, str]:
    """Our prefixes to those of `lavt_one`; the first that fits a name counts."""
    prefixes = {"decoder.classifier.": "classifier.conv1_1."}
    for i in range(4):
        stage = f"backbone.layers.{i}."
        prefixes |= {
            f"vision_encoder.backbone.layers.{i + 1}.downsample.": f"{stage}downsample.",  # timm merges at the start
            f"vision_encoder.norms.{i}.": f"backbone.norm{i}.",
            f"fusions.{i}.visual_projection.": f"{stage}fusion.vis_project.0.",
            f"fusions.{i}.attention.query.": f"{stage}fusion.image_lang_att.f_query.0.",
            f"fusions.{i}.attention.key.": f"{stage}fusion.image_lang_att.f_key.0.",
            f"fusions.{i}.attention.value.": f"{stage}fusion.image_lang_att.f_value.0.",
            f"fusions.{i}.attention.output.": f"{stage}fusion.image_lang_att.W.0.",
            f"fusions.{i}.output_projection.": f"{stage}fusion.project_mm.0.",
            f"gates.{i}.hidden.": f"{stage}res_gate.0.",
            f"gates.{i}.output.": f"{stage}res_gate.2.",
        }
    for i in range(3):  # levels are numbered 4, 3, 2 there
        for ours, theirs in {"conv1": "conv1", "norm1": "bn1", "conv2": "conv2", "norm2": "bn2"}.items():
            prefixes[f"decoder.levels.{i}.{ours}."] = f"classifier.{theirs}_{4 - i}."
    return prefixes | {"vision_encoder.backbone.": "backbone."}


_PREFIXES = _prefixes()


def official_name(key: str) -> str:
    """The `lavt_one` name of a key of our state dict."""
    return next((theirs + key[len(ours) :] for ours, theirs in _PREFIXES.items() if key.startswith(ours)), key)


def all_tensors(content: dict) -> dict[str, Tensor]:
    """Either format as one state dict with the names of `lavt_one`.

    Raises:
        ConversionError: a dictionary that is neither format.
    """
    if "model" not in content:
        return tensors_of(content, "The checkpoint (which has no 'model')")
    state = tensors_of(content["model"], "'model' in the checkpoint")
    if "bert_model" in content:
        bert = tensors_of(content["bert_model"], "'bert_model' in the checkpoint")
        state |= {f"text_encoder.{key}": tensor for key, tensor in bert.items()}
    return state


def official_state(content: dict) -> dict[str, Tensor]:
    """`all_tensors` without those that nothing reads."""
    return without(all_tensors(content), _UNREAD)[0]


def told_by_args(content: dict) -> dict[str, Any]:
    """The fields of `LavtConfig` that the options of training, where the file holds them, tell.

    Raises:
        ConversionError: heads that are no four numbers.
    """
    options = content.get("args")
    options = vars(options) if isinstance(options, argparse.Namespace) else {}
    fields = {}
    if isinstance(options.get("img_size"), int):
        fields["image_size"] = options["img_size"]
    if options.get("mha"):
        if not re.fullmatch(r"[1-9]\d*(-[1-9]\d*){3}", str(options["mha"])):
            raise ConversionError(f"args.mha in the checkpoint is {options['mha']!r}; it should be as 4-4-4-4.")
        fields["fusion_num_heads"] = [int(heads) for heads in options["mha"].split("-")]
    return fields


def infer_swin(shapes: Shapes) -> dict[str, Any]:
    """`vision_config` of a Swin's shapes.

    Raises:
        ConversionError: a Swin that ours cannot be; the sentence says why.
    """
    width, _, patch, _ = shapes.of("backbone.patch_embed.proj.weight", axes=4)
    stages = shapes.count(r"backbone\.layers\.(\d+)\.")
    if stages != 4:
        raise ConversionError(f"The checkpoint's Swin has {stages} stages; LAVT fuses words in four.")
    if "backbone.absolute_pos_embed" in shapes.state:
        raise ConversionError(
            "The checkpoint's Swin adds absolute positions (backbone.absolute_pos_embed), which ours has no place for."
        )
    tables = [key for key in shapes.state if re.fullmatch(r"backbone\..*\.relative_position_bias_table", key)]
    windows = {(shapes.side(key) + 1) // 2: key for key in tables}
    if len(windows) > 1:
        found = ", ".join(f"{window} in {key}" for window, key in sorted(windows.items()))
        raise ConversionError(f"The checkpoint's Swin has windows of several sizes ({found}); ours has one size.")
    heads = [shapes.of(f"backbone.layers.{i}.blocks.0.attn.relative_position_bias_table", axes=2)[1] for i in range(4)]
    for stage, count in enumerate(heads):
        if count == 0 or width * 2**stage % count:
            raise ConversionError(
                f"Stage {stage + 1} of the checkpoint's Swin has {count} heads, which do not divide its width "
                f"{width * 2**stage}."
            )
    depths = [shapes.count(rf"backbone\.layers\.{i}\.blocks\.(\d+)\.") for i in range(4)]
    name = next((name for name, design in _SWINS.items() if design == (width, depths)), next(iter(_SWINS)))
    swin = {
        "embed_dim": width,
        "depths": depths,
        "num_heads": heads,
        "mlp_ratio": shapes.of("backbone.layers.0.blocks.0.mlp.fc1.weight")[0] / width,
        "patch_size": patch,
    }
    of_name = dict(zip(swin, (*_SWINS[name], [_SWINS[name][0] // 32 * 2**i for i in range(4)], 4.0, 4), strict=True))
    arguments = {
        "window_size": next(iter(windows)),
        "drop_path_rate": 0.3,
        **{field: value for field, value in swin.items() if value != of_name[field]},
    }
    return {"name": name, "pretrained_tag": "ms_in22k", "arguments": arguments}


def infer_config(state: dict[str, Tensor]) -> dict[str, Any]:
    """The fields of `LavtConfig` that the shapes of `official_state` tell.

    Raises:
        ConversionError: a state dict that is not LAVT's, or of a LAVT that ours cannot be.
    """
    shapes = Shapes(state, "LAVT")
    words, hidden = shapes.of("text_encoder.embeddings.word_embeddings.weight", axes=2)
    positions = shapes.of("text_encoder.embeddings.position_embeddings.weight")[0]
    text = {
        "vocab_size": words,
        "hidden_size": hidden,
        "num_hidden_layers": shapes.count(r"text_encoder\.encoder\.layer\.(\d+)\."),
        "num_attention_heads": max(1, hidden // 64),
        "intermediate_size": shapes.of("text_encoder.encoder.layer.0.intermediate.dense.weight")[0],
        "max_position_embeddings": positions,
        "type_vocab_size": shapes.of("text_encoder.embeddings.token_type_embeddings.weight")[0],
    }
    return {
        "vision_config": infer_swin(shapes),
        "text_config": text,
        "max_text_length": min(20, positions),
        "decoder_dim": shapes.of("classifier.conv1_4.weight")[0],
    }


def build_config(
    state: dict[str, Tensor], overrides: dict[str, Any] | None = None, told: dict[str, Any] | None = None
) -> LavtConfig:
    """`infer_config` with what is `told_by_args` and the overrides laid over it, nested dictionaries key by key.

    Raises:
        ConversionError: no LAVT checkpoint, one that ours cannot be, or an override that BERT's config does not know.
        ValueError, StrictDataclassError: an override that `LavtConfig` does not know or take; the message names it.
    """
    overrides = overrides or {}
    unknown = sorted(set(overrides.get("text_config", {})) - set(BertConfig().to_dict()))
    if unknown:
        raise ConversionError(f"text_config in the overrides has no field {', '.join(unknown)}.")
    return LavtConfig(**merged(infer_config(state) | (told or {}), overrides))


def read_tokenizer(vocabulary: str | Path | None, config: LavtConfig) -> BertTokenizer:
    """The uncased WordPiece tokenizer of a `vocab.txt`, or of `config.text_pretrained` from the cache or the Hub.

    Raises:
        ConversionError: a vocabulary that is missing, not reachable, or of another size than the checkpoint's.
    """
    if vocabulary is None:
        try:
            tokenizer = BertTokenizer.from_pretrained(config.text_pretrained)
        except OSError as error:
            raise ConversionError(
                f"The vocabulary of {config.text_pretrained} is neither cached nor reachable; connect once, or pass "
                "--vocab with its vocab.txt."
            ) from error
    else:
        try:
            with open(vocabulary, encoding="utf-8") as file:
                words = [line.rstrip("\n") for line in file]
        except (OSError, UnicodeDecodeError) as error:
            raise ConversionError(f"The vocabulary {vocabulary} cannot be read ({error}).") from error
        tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(words)})
    if len(tokenizer) != config.text_config.vocab_size:
        raise ConversionError(
            f"The vocabulary has {len(tokenizer)} words, but the checkpoint's BERT has {config.text_config.vocab_size}."
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
        overrides: fields of `LavtConfig`, nested ones key by key; see the head of this file.
        vocabulary: BERT's `vocab.txt`; None takes the one of `text_pretrained`.

    Raises:
        ConversionError: whatever does not fit, in one sentence; nothing is written then.
    """
    content = read_checkpoint(checkpoint)
    state, unread = without(all_tensors(content), _UNREAD)
    config = build_config(state, overrides, told_by_args(content))
    return save_converted(
        state,
        unread,
        config,
        LavtForReferringSegmentation,
        official_name,
        lambda: LavtProcessor.from_config(config, read_tokenizer(vocabulary, config)),
        out_dir,
    )
