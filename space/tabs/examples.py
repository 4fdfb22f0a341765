"""The example pictures: scenes of RefScenes' test split, so that what is said of them has a true mask."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from hf_ris.data.refscenes.scenes import RefScenes
from hf_ris.data.schema import expression_mask


FOLDER = Path(__file__).resolve().parent.parent / "examples"
SIDE = 384  # pixels of the pictures


@dataclass(frozen=True)
class Example:
    """A picture with expressions to begin with.

    Attributes:
        name: its file's name without ending, which links use.
        expressions: those that are filled in.
        known: every expression of the scene; of these the truth is known.
    """

    name: str
    file: Path
    expressions: tuple[str, ...]
    known: dict[str, np.ndarray]


@cache
def examples() -> dict[str, Example]:
    """All of them by name, in the order of the page. `known` holds bool masks (SIDE, SIDE)."""
    found = {}
    for entry in json.loads((FOLDER / "examples.json").read_text(encoding="utf-8")):
        row = RefScenes("refscenes", "test", SIDE)[entry["scene"]]
        known = {said["text"]: expression_mask(row, said) for said in row["expressions"]}
        file = FOLDER / entry["file"]
        found[file.stem] = Example(file.stem, file, tuple(entry["expressions"]), known)
    return found
