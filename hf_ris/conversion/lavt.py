"""LAVT checkpoints of https://github.com/yz93/LAVT-RIS to ours.

Two formats are known, both a dictionary with `model`: `lavt` keeps BERT in a second dictionary `bert_model`; `lavt_one`
has it inside, under `text_encoder.`. A bare state dict (as in a `.safetensors` file) is read like the latter.

Widths, depths, window and Swin's heads follow from the shapes. What shapes cannot tell is taken from the overrides, or
else from the paper: `image_size` 480, `max_text_length` 20, `fusion_num_heads` 1 each, BERT's heads 64 wide.
"""

import math
import re
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import BertConfig, BertTokenizer

from ..models.configuration_lavt import LavtConfig
from ..models.modeling_lavt import LavtForReferringSegmentation
from ..models.processing_lavt import LavtProcessor
from .checkpoint import ConversionError, Shapes, merged, read_checkpoint, save_converted, tensors_of


# Left out knowingly: index tables that the model computes, and BERT's pooler, which nothing reads.
_LEFT_OUT = re.compile(r"relative_position_index$|^text_encoder\.(pooler\.|embeddings\.position_ids$)")
_SWIN_B = {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "mlp_ratio": 4.0}


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


def official_state(content: dict) -> dict[str, Tensor]:
    """Either format as one state dict with the names of `lavt_one`, without what is left out knowingly.

    Raises:
        ConversionError: a dictionary that is neither format.
    """
    if "model" in content:
        state = tensors_of(content["model"], "'model' in the checkpoint")
        if "bert_model" in content:
            bert = tensors_of(content["bert_model"], "'bert_model' in the checkpoint")
            state |= {f"text_encoder.{key}": tensor for key, tensor in bert.items()}
    else:
        state = tensors_of(content, "The checkpoint (which has no 'model')")
    return {key: tensor for key, tensor in state.items() if not _LEFT_OUT.search(key)}


def infer_config(state: dict[str, Tensor]) -> dict[str, Any]:
    """The fields of `LavtConfig` that the shapes of `official_state` tell.

    Raises:
        ConversionError: a state dict that is not LAVT's.
    """

    shapes = Shapes(state, "LAVT")
    table = "backbone.layers.{}.blocks.0.attn.relative_position_bias_table"
    width = shapes.of("backbone.patch_embed.proj.weight")[0]
    swin = {
        "embed_dim": width,
        "depths": [shapes.count(rf"backbone\.layers\.{i}\.blocks\.(\d+)\.") for i in range(4)],
        "num_heads": [shapes.of(table.format(i))[1] for i in range(4)],
        "mlp_ratio": shapes.of("backbone.layers.0.blocks.0.mlp.fc1.weight")[0] / width,
    }
    arguments = {
        "window_size": (math.isqrt(shapes.of(table.format(0))[0]) + 1) // 2,
        "drop_path_rate": 0.3,
        **{name: value for name, value in swin.items() if value != _SWIN_B[name]},
    }
    words, hidden = shapes.of("text_encoder.embeddings.word_embeddings.weight")
    text = {
        "vocab_size": words,
        "hidden_size": hidden,
        "num_hidden_layers": shapes.count(r"text_encoder\.encoder\.layer\.(\d+)\."),
        "num_attention_heads": max(1, hidden // 64),
        "intermediate_size": shapes.of("text_encoder.encoder.layer.0.intermediate.dense.weight")[0],
        "max_position_embeddings": shapes.of("text_encoder.embeddings.position_embeddings.weight")[0],
        "type_vocab_size": shapes.of("text_encoder.embeddings.token_type_embeddings.weight")[0],
    }
    vision = {"name": "swin_base_patch4_window12_384", "pretrained_tag": "ms_in22k", "arguments": arguments}
    return {"vision_config": vision, "text_config": text, "decoder_dim": shapes.of("classifier.conv1_4.weight")[0]}


def build_config(state: dict[str, Tensor], overrides: dict[str, Any] | None = None) -> LavtConfig:
    """`infer_config` with the overrides laid over it, nested dictionaries key by key.

    Raises:
        ConversionError: no LAVT checkpoint, or an override that BERT's config does not know.
        ValueError, StrictDataclassError: an override that `LavtConfig` does not know or take; the message names it.
    """
    overrides = overrides or {}
    unknown = sorted(set(overrides.get("text_config", {})) - set(BertConfig().to_dict()))
    if unknown:
        raise ConversionError(f"text_config in the overrides has no field {', '.join(unknown)}.")
    return LavtConfig(**merged(infer_config(state), overrides))


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
) -> list[str]:
    """Write model and processor made of an official checkpoint.

    Args:
        checkpoint: `.pth` (or any PyTorch file) or `.safetensors`.
        out_dir: folder to write.
        overrides: fields of `LavtConfig`, nested ones key by key; see the head of this file.
        vocabulary: BERT's `vocab.txt`; None takes the one of `text_pretrained`.

    Returns:
        the checkpoint's keys that have no place in the model.

    Raises:
        ConversionError: whatever does not fit, in one sentence; nothing is written then.
    """
    state = official_state(read_checkpoint(checkpoint))
    config = build_config(state, overrides)
    return save_converted(
        state,
        config,
        LavtForReferringSegmentation,
        official_name,
        lambda: LavtProcessor.from_config(config, read_tokenizer(vocabulary, config)),
        out_dir,
    )
