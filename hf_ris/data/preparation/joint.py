"""One training set of several, without a photograph that any of them is evaluated on.

Images in any val or test split of any of the sets are dropped from train, those in any test split from val. COCO's
photos are told by their COCO id, which Visual Genome lists for its own. An image's objects and expressions of all sets
are one row. Ids are those of the sets plus 1,000,000,000 times the place of the set in the list (images: Visual
Genome's plus 1,000,000,000).
"""

from typing import Any

from . import grefcoco, phrasecut, refcoco
from .published import Counts
from .raw_files import RawFile, RawFiles
from .raw_index import RawIndex


DEFAULT_SETS = ("refcoco", "refcoco+", "refcocog")
_IMAGE_OFFSET = 1_000_000_000


def add_source(index: RawIndex, raw: RawFiles, name: str, text: str, place: int) -> tuple[list[RawFile], dict]:
    """Put one of the sets into `index`; returns the files that were read and its counts."""
    index.source = place
    if name == "phrasecut":
        files = phrasecut.fill(index, raw, name, image_offset=_IMAGE_OFFSET)
    else:
        module = grefcoco if name == "grefcoco" else refcoco
        files = module.fill(index, raw, name, module.SPLIT_BY[name][0], text)
    return files, index.counts()


def find(raw: RawFiles, name: str) -> list[RawFile]:
    module = {"grefcoco": grefcoco, "phrasecut": phrasecut}.get(name, refcoco)
    return list(module.find(raw, name, module.SPLIT_BY[name][0]))


def drop_leaks(index: RawIndex, sets: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Keep of train and val what no evaluation sees, and no other split.

    Returns, for each set, the images and expressions of its train and val split that were dropped.
    """
    before = _counts(index, sets)
    index.db.execute(
        "CREATE TEMP TABLE seen AS SELECT DISTINCT photo, split IN ('val', 'miniv') AS validation "
        "FROM expression JOIN image USING (image_id) WHERE split != 'train'"
    )
    held_out = "SELECT image_id FROM image JOIN seen USING (photo)"
    index.db.execute("DELETE FROM expression WHERE split NOT IN ('train', 'val')")
    index.db.execute(f"DELETE FROM expression WHERE split = 'train' AND image_id IN ({held_out})")
    index.db.execute(f"DELETE FROM expression WHERE split = 'val' AND image_id IN ({held_out} WHERE NOT validation)")
    index.blank = [(source, problem) for source, problem in index.blank if problem.split in ("train", "val")]
    after = _counts(index, sets)
    nothing = Counts(0, 0, 0)
    return {
        name: {
            split: {
                what: getattr(before[name].get(split, nothing), what) - getattr(after[name].get(split, nothing), what)
                for what in ("images", "expressions")
            }
            for split in ("train", "val")
        }
        for name in sets
    }


def _counts(index: RawIndex, sets: tuple[str, ...]) -> dict[str, dict[str, Counts]]:
    counts = {}
    for index.source, name in enumerate(sets):
        counts[name] = index.counts()
    return counts
