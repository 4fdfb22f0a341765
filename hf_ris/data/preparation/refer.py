"""Any other data set in the format of refer's: references with the ids of annotations, and a COCO instances file.

RRSIS-D, RefZOM, ReferIt and many more come so. The set NAME lies in the folder NAME, with `refs(WHO).p` or `.json`, or
`grefs(WHO).p` or `.json`, and `instances.json`; an expression may have one, several or no targets. Its pictures are
looked for by their file names in all folders and archives below the raw folder.
"""

import re

from . import grefcoco
from .raw_files import RawFile, RawFiles
from .raw_index import RawIndex


PICTURES = ("train2014", "JPEGImages", "images")  # these first
_NAME = re.compile(r"\w[\w.+-]{0,63}", re.ASCII)
_REFERENCES = re.compile(r"g?refs\((?P<who>[\w.+-]+)\)\.(p|json)", re.ASCII)


def check_name(name: str, split_by: str | None, known: tuple[str, ...]) -> None:
    """ValueError for what cannot be the name of a folder, or of who split it."""
    for value in (name, *([] if split_by is None else [split_by])):
        if not isinstance(value, str) or not _NAME.fullmatch(value):
            raise ValueError(
                f"{value!r:.80} is no name of a data set to prepare: choose one of {', '.join(known)}, or the folder "
                "of another one in refer's format"
            )


def fill(index: RawIndex, raw: RawFiles, name: str, split_by: str | None, text: str = "sent") -> list[RawFile]:
    """Put the data set `name` into `index`; returns the files that were read. `text` as in `refcoco.fill`."""
    return grefcoco.fill_from(index, *find(raw, name, split_by), text)


def find(raw: RawFiles, name: str, split_by: str | None) -> tuple[RawFile, RawFile]:
    """References and instances; ValueError where there is none, or several and none is chosen."""
    found = raw.names(name, _REFERENCES.pattern)
    chosen = [file for file in found if split_by in (None, _REFERENCES.fullmatch(file)["who"])]
    if len(chosen) > 1:
        raise ValueError(f"{raw.root / name} holds {', '.join(chosen)}: say by --split-by which of them is meant")
    if not chosen:
        raise ValueError(
            f"there is no data set {name!r} to prepare: {raw.root} holds no {name}/refs({split_by or '...'}).p, "
            "neither as a file nor in a zip archive; the sets that are known by name are refcoco, refcoco+, refcocog, "
            "grefcoco, phrasecut and joint"
        )
    return raw.find(name, chosen[0]), raw.find(name, "instances.json")
