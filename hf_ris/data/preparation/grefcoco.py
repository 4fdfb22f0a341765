"""gRefCOCO from `grefs(unc).json` (or `.p`) and `instances.json`: expressions with one, several or no targets."""

from collections.abc import Iterator
from typing import Any

from .plain_pickle import iterate_pickled_list
from .raw_files import RawFile, RawFiles, iterate_json
from .raw_index import RawIndex
from .refcoco import add_instances, add_references


SPLIT_BY = {"grefcoco": ("unc",)}
PICTURES = ("train2014",)


def fill(index: RawIndex, raw: RawFiles, name: str, split_by: str, text: str = "sent") -> list[RawFile]:
    """Put gRefCOCO into `index`; returns the files that were read. `text` as in `refcoco.fill`."""
    return fill_from(index, *find(raw, name, split_by), text)


def fill_from(index: RawIndex, references: RawFile, instances: RawFile, text: str) -> list[RawFile]:
    """Put these two files into `index`; returns them."""
    add_instances(index, instances)
    add_references(index, _references(references), references.name, text)
    return [references, instances]


def find(raw: RawFiles, name: str, split_by: str) -> tuple[RawFile, RawFile]:
    references = raw.find(name, f"grefs({split_by}).json", f"grefs({split_by}).p")
    return references, raw.find(name, "instances.json")


def _references(file: RawFile) -> Iterator[Any]:
    if file.name.endswith(".p"):
        yield from iterate_pickled_list(file.open, file.name)
        return
    with file.open() as stream:
        for _, reference in iterate_json(stream, file.name):
            yield reference
