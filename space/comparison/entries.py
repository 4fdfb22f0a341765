"""The models that can be chosen, before any of them is loaded: what each is, and what it was trained on."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hf_ris.data.refscenes.scenes import NAMES as REFSCENES


SCENES_NOTE = "trained on RefScenes: drawn scenes, not photographs"
BASELINE_NOTE = "zero-shot baseline; its weights come from the Hub when it is first used"

_MIXED_CASE = {
    "mpg_lqgnet": "MPG-LQGNet",
    "segvlm": "SegVLM",
    "clipseg_ris": "CLIPSeg",
    "vatex_video": "VATEX Video",
}  # the others are written in capitals


@dataclass(frozen=True)
class Entry:
    """A model that can be chosen.

    Attributes:
        key: what names it in the page and the API: a bundled folder's name, a baseline's, a Hub id or a folder's path.
        title: name to show.
        architecture: as its paper writes it; a baseline's title.
        folder: where its files lie; None for a baseline.
        note: what it was trained on, where that limits what to expect of it.
        scenes: whether that was drawn scenes.
        model_type: of its config; None for a baseline.
    """

    key: str
    title: str
    architecture: str
    folder: Path | None
    note: str | None
    scenes: bool = False
    model_type: str | None = None


def read_entry(folder: Path, key: str, title: str | None = None) -> Entry:
    """The entry of a checkpoint folder; without a title, its architecture is the title."""
    model_type = str(read_json(folder / "config.json").get("model_type"))
    architecture = _MIXED_CASE.get(model_type, model_type.upper())
    scenes = any(name.rsplit("/", 1)[-1].startswith(REFSCENES) for name in training_data(folder))
    return Entry(key, title or architecture, architecture, folder, SCENES_NOTE if scenes else None, scenes, model_type)


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
