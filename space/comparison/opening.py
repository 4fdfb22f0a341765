"""Opening a checkpoint that somebody else made: which files, of which architecture, and whether they fit each other.

A stranger's repository is data here, never code: only its JSON, text and safetensors files are fetched, its model type
must be one of ours, and neither remote code nor a pickle is ever opened.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassError,
)
from PIL import Image
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForImageSegmentation, AutoProcessor

import hf_ris
from comparison.entries import Entry, read_json
from comparison.pictures import Refusal
from hf_ris.baselines import load_baseline


MAX_BYTES = 2_000_000_000  # of an added model's files; LAVT as in the paper has 0.9e9
MAX_INPUT = 4_000_000  # pixels that a model may make of a picture; the papers' models take 480 x 480
MAX_TOKENS = 512
HUB_SECONDS = 10  # for the Hub to begin an answer

_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_TEXT_FILES = (
    "config.json preprocessor_config.json processor_config.json tokenizer.json tokenizer_config.json "
    "vocab.txt vocab.json merges.txt special_tokens_map.json added_tokens.json model.safetensors.index.json "
    "README.md results.json"
).split()
# what a config, tokenizer or weight file that does not hold what it claims makes the libraries raise
_MISFITS = (
    OSError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    RuntimeError,
    AssertionError,
    StrictDataclassError,
    SafetensorError,
)


@dataclass(frozen=True)
class LoadedModel:
    model: torch.nn.Module
    processor: Any
    parameters: int


def check_files(reference: str, sizes: dict[str, int]) -> list[str]:
    """The names of the files to open, out of a repository's files and their sizes in bytes.

    Raises:
        Refusal: no config, no safetensors weights, or more than `MAX_BYTES`.
    """
    if "config.json" not in sizes:
        raise Refusal(f"{reference} has no config.json, so it is not a transformers model.")
    weights = [name for name in sizes if _WEIGHTS.fullmatch(name)]
    if not weights:
        pickled = [name for name in sizes if name.endswith(_PICKLES)]
        found = f"only pickled ones ({pickled[0]}), which can run code" if pickled else "none at all"
        raise Refusal(f"{reference} has no safetensors weights but {found}; save it with safetensors to use it here.")
    names = weights + [name for name in _TEXT_FILES if name in sizes]
    total = sum(sizes[name] for name in names)
    if total > MAX_BYTES:
        raise Refusal(f"{reference} has {total / 1e9:.1f} GB of files; the limit here is {MAX_BYTES / 1e9:.0f} GB.")
    return names


def fetch(reference: str) -> Path:
    """Download the permitted files of a Hub repository into the Hub cache, as anonymous: no token of this server.

    Raises:
        Refusal: not found, not reachable, or see `check_files`.
    """
    name, _, revision = reference.partition("@")
    try:
        info = HfApi(token=False).model_info(name, revision=revision or None, files_metadata=True, timeout=HUB_SECONDS)
        names = check_files(reference, {file.rfilename: file.size or 0 for file in info.siblings})
        return Path(snapshot_download(name, revision=info.sha, allow_patterns=names, token=False))
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise Refusal(f"The Hub has no public model {reference}.") from error
    except (OfflineModeIsEnabled, HTTPError, OSError) as error:
        raise Refusal(f"The Hub could not be reached for {reference}; try again later.") from error


def check_config(reference: str, folder: Path) -> None:
    """Refuse a config of another architecture, one that it refuses itself, or one that the weights do not fill."""
    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    if kind not in hf_ris.ARCHITECTURES:
        known = ", ".join(hf_ris.ARCHITECTURES)
        raise Refusal(f"{reference} is a model of type {str(kind)[:50]!r}; this page knows {known}.")
    stored = {}
    try:
        for path in folder.iterdir():
            if _WEIGHTS.fullmatch(path.name):
                with safe_open(path, "pt") as file:
                    stored |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):  # shapes only: a config may ask for any amount of memory
            model = AutoModelForImageSegmentation.from_config(config)
    except _MISFITS as error:
        raise _misfit(reference, error) from error
    wrong = [name for name, tensor in model.state_dict().items() if stored.get(name) != tuple(tensor.shape)]
    if wrong:
        raise Refusal(f"The weights of {reference} do not fit its config: {wrong[0]} is missing or of another shape.")


def load(entry: Entry, device: torch.device) -> LoadedModel:
    """Model (optimized for inference) and processor of a baseline, or of a checked folder, tried out.

    Raises:
        Refusal: where they do not fit, or cannot be had.
    """
    try:
        if entry.folder is None:
            return _on(device, *load_baseline(entry.key))
        model = AutoModelForImageSegmentation.from_pretrained(
            entry.folder, trust_remote_code=False, use_safetensors=True, local_files_only=True, dtype=torch.float32
        )
        processor = AutoProcessor.from_pretrained(entry.folder, trust_remote_code=False, local_files_only=True)
        try_out(entry.title, model.eval(), processor)
    except Refusal:
        raise
    except (*_MISFITS, HTTPError) as error:
        raise _misfit(entry.title, error) from error
    loaded = _on(device, model, processor)
    hf_ris.optimize_for_inference(loaded.model)
    return loaded


def _on(device: torch.device, model: torch.nn.Module, processor: Any) -> LoadedModel:
    return LoadedModel(model.to(device), processor, sum(parameter.numel() for parameter in model.parameters()))


def try_out(title: str, model: torch.nn.Module, processor: Any) -> None:
    """One run, so that a model and a processor that do not fit fail here, and no visitor's time is a cold start's.

    It holds the tokenizer's last word: on a GPU, a word beyond the model's table would break the whole server.
    """
    if not 0 <= processor.threshold <= 1 or not 1 <= processor.max_text_length <= MAX_TOKENS:
        raise ValueError(
            f"its processor has threshold {processor.threshold} and max_text_length {processor.max_text_length}; "
            f"they must lie in [0, 1] and 1 to {MAX_TOKENS}"
        )
    check_input_size(title, processor, 64, 64)
    inputs = processor(Image.new("RGB", (64, 64)), ["a star"])
    inputs["input_ids"][:, 0] = max(processor.tokenizer.get_vocab().values())
    with torch.inference_mode():
        processor.post_process_referring_segmentation(model(**inputs), [(64, 64)])


def check_input_size(title: str, processor: Any, height: int, width: int) -> None:
    """Refuse a picture of this size if the model would make more than `MAX_INPUT` pixels of it."""
    rows, columns = processor.image_processor.canvas_size([(height, width)])
    if rows * columns > MAX_INPUT:
        raise Refusal(f"{title} would scale this picture to {columns:,} x {rows:,} pixels, which is too large here.")


def _misfit(reference: str, error: BaseException) -> Refusal:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return Refusal(f"{reference} could not be loaded: {reason[:200].rstrip('.')}.")
