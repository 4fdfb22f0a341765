"""The models of the Space: bundled folders, zero-shot baselines, and Hub repositories or folders that a visitor adds.

A stranger's repository is data here, never code: only its JSON, text and safetensors files are fetched, its model type
must be one of ours, and neither remote code nor a pickle is ever opened.
"""

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassError,
)
from pictures import Refusal
from PIL import Image
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForImageSegmentation, AutoProcessor

import hf_ris
from hf_ris.baselines import BASELINES, load_baseline
from hf_ris.data.refscenes.scenes import NAMES as REFSCENES


MAX_BYTES = 2_000_000_000  # of an added model's files; LAVT as in the paper has 0.9e9
MAX_INPUT = 4_000_000  # pixels that a model may make of a picture; the papers' models take 480 x 480
MAX_TOKENS = 512
MAX_ADDED = 2  # added models in memory; the one longest unused makes room
SCENES_NOTE = "trained on RefScenes: drawn scenes, not photographs"
BASELINE_NOTE = "zero-shot baseline; its weights come from the Hub when it is first used"

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


_MIXED_CASE = {"mpg_lqgnet": "MPG-LQGNet", "segvlm": "SegVLM"}  # the others are written in capitals


@dataclass(frozen=True)
class Entry:
    """A model that can be chosen.

    Attributes:
        key: what names it in the page and the API: a bundled folder's name, a baseline's, a Hub id or a folder's path.
        title: name to show.
        architecture: as its paper writes it; a baseline's title.
        folder: where its files lie; None for a baseline.
        note: what it was trained on, where that limits what to expect of it.
    """

    key: str
    title: str
    architecture: str
    folder: Path | None
    note: str | None

    @property
    def label(self) -> str:
        return f"{self.title} · {self.note}" if self.note else self.title


@dataclass(frozen=True)
class LoadedModel:
    model: torch.nn.Module
    processor: Any
    parameters: int


class Zoo:
    """Finds, checks and loads models; each is loaded once, when it is first used.

    Args:
        bundled: folder whose subfolders are checkpoints (`save_pretrained` of model and processor).
        allow_folders: whether visitors may name local folders; not on a public server, whose disk they could probe.
        baselines: names of `hf_ris.baselines` to offer beside them.

    Attributes:
        bundled: entries that the page starts with.
        offered: these and the baselines.
    """

    def __init__(self, bundled: str | Path, allow_folders: bool, baselines: Iterable[str] = ()):
        self.allow_folders = allow_folders
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.entries: dict[str, Entry] = {}
        for config in sorted(Path(bundled).glob("*/config.json")):
            entry = read_entry(config.parent, config.parent.name)
            if entry.title in {other.title for other in self.entries.values()}:
                entry = replace(entry, title=f"{entry.title} ({entry.key})")
            self.entries[entry.key] = entry
        self.bundled = list(self.entries.values())
        for name in baselines:
            title = BASELINES[name].title
            self.entries[name] = Entry(name, title, title, None, BASELINE_NOTE)
        self.offered = list(self.entries.values())
        self._loaded: OrderedDict[str, LoadedModel] = OrderedDict()
        self._lock = threading.Lock()

    def choose(self, keys: list[str] | None) -> list[Entry]:
        """The entries of these keys, in the zoo's order. Raises Refusal for none or an unknown one."""
        keys = keys or []
        unknown = [key for key in keys if key not in self.entries]
        if unknown:
            raise Refusal(f"There is no model “{str(unknown[0])[:100]}” here; there are {', '.join(self.entries)}.")
        if not keys:
            raise Refusal("No model is chosen: tick at least one.")
        return [entry for key, entry in self.entries.items() if key in keys]

    def add(self, reference: str | None) -> Entry:
        """Check, fetch and load the model of a Hub id (`owner/name` or `owner/name@revision`) or a local folder.

        Raises:
            Refusal: not found, not one of our architectures, no safetensors, too large, or files that do not fit.
        """
        reference = (reference or "").strip()
        if len(reference) > 500:
            raise Refusal("That is too long for a Hub id or a folder.")
        if reference in self.entries:
            return self.entries[reference]
        if self.allow_folders and reference and Path(reference).is_dir():
            folder = Path(reference).resolve()
            check_files(reference, {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()})
            title = folder.name
        elif re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", reference):
            folder, title = fetch(reference), reference
        else:
            wanted = "a Hub id (owner/name)" + (" or a folder on this machine" if self.allow_folders else "")
            raise Refusal(f"Give {wanted}; “{reference[:100]}” is not one." if reference else f"Give {wanted}.")
        check_config(reference, folder)
        entry = read_entry(folder, reference, title)
        with self._lock:
            self._load(entry)
            self.entries[reference] = entry
        return entry

    def get(self, entry: Entry) -> LoadedModel:
        """The model of an entry, loaded if it is not in memory."""
        with self._lock:
            if entry.key not in self._loaded:
                self._load(entry)
            self._loaded.move_to_end(entry.key)
            return self._loaded[entry.key]

    def _load(self, entry: Entry) -> None:
        self._loaded[entry.key] = load(entry, self.device)
        bundled = {entry.key for entry in self.bundled}
        added = [key for key in self._loaded if key not in bundled]
        for key in added[:-MAX_ADDED]:
            del self._loaded[key]


def read_entry(folder: Path, key: str, title: str | None = None) -> Entry:
    """The entry of a checkpoint folder; without a title, its architecture is the title."""
    model_type = str(read_json(folder / "config.json").get("model_type"))
    architecture = _MIXED_CASE.get(model_type, model_type.upper())
    scenes = any(name.rsplit("/", 1)[-1].startswith(REFSCENES) for name in training_data(folder))
    return Entry(key, title or architecture, architecture, folder, SCENES_NOTE if scenes else None)


def training_data(folder: Path) -> list[str]:
    """Data sets a checkpoint says it was trained on: `datasets` of its card, `trained_on` of its results.json."""
    said = [read_json(folder / "results.json").get("trained_on"), read_card(folder / "README.md").get("datasets")]
    names = [name for value in said for name in (value if isinstance(value, list) else [value])]
    return [name for name in names if isinstance(name, str)]


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no file, or anything else in it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def read_card(path: Path) -> dict[str, Any]:
    """The YAML head of a model card; empty if there is none that can be read."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    head = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    try:
        content = yaml.safe_load(head[1]) if head else {}
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


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
        info = HfApi(token=False).model_info(name, revision=revision or None, files_metadata=True)
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
    """Model (float32, eval mode) and processor of a baseline, or of a checked folder, tried out.

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
    return _on(device, model, processor)


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
