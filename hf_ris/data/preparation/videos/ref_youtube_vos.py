"""Ref-YouTube-VOS (Seo, Lee, Han: URVOS, ECCV 2020) from its download.

    meta_expressions/{train,valid,test}/meta_expressions.json
    train/{JPEGImages,Annotations}/<video>/<frame>.{jpg,png}    train/meta.json
    valid/JPEGImages/<video>/<frame>.jpg    test/JPEGImages/...

Annotations are palette PNGs whose value is the object's number; `obj_id` stands in train alone. The valid file lists
the videos of valid and of test together, and the test file tells them apart. Masks of valid and test are not public:
their objects have none, and answers are handed in (`hf-ris evaluate --submission`).
"""

from pathlib import PurePosixPath
from typing import Any

from .video_sets import Tree, VideoSource


PUBLISHED = {"train": 3_471, "val": 202, "test": 305}  # videos: 3,978 together
_FOLDERS = {"train": "train", "val": "valid", "test": "test"}


def videos(tree: Tree) -> dict[str, list[VideoSource]]:
    """The videos of each split that the download holds.

    Raises:
        ValueError: no expressions, or frames or annotations that they name and that are not there.
    """
    meta = {
        split: tree.json(f"meta_expressions/{folder}", "meta_expressions.json") for split, folder in _FOLDERS.items()
    }
    listed = {split: _listed(of_split, split) for split, of_split in meta.items()}
    categories = _categories(tree)
    found = {
        "train": [
            _video(tree, "train", name, entry, categories.get(name, {})) for name, entry in listed["train"].items()
        ],
        "val": [
            _video(tree, "val", name, entry) for name, entry in listed["val"].items() if name not in listed["test"]
        ],
    }
    if any(tree.names(f"test/JPEGImages/{name}") for name in list(listed["test"])[:1]):  # often not downloaded
        found["test"] = [_video(tree, "test", name, entry) for name, entry in listed["test"].items()]
    return found


def _listed(meta: Any, split: str) -> dict[str, Any]:
    """Videos by name, sorted; ValueError for a file of another form."""
    where = f"meta_expressions/{_FOLDERS[split]}/meta_expressions.json"
    if not isinstance(meta, dict) or not isinstance(meta.get("videos"), dict):
        raise ValueError(f"{where} should hold {{'videos': {{...}}}}")
    for name, entry in meta["videos"].items():
        if not isinstance(entry, dict) or not {"expressions", "frames"} <= entry.keys():
            raise ValueError(f"{where}: video {name} lacks expressions or frames")
    return dict(sorted(meta["videos"].items()))


def _categories(tree: Tree) -> dict[str, dict[int, str]]:
    if "meta.json" not in tree.names("train"):
        return {}
    entries = tree.json("train", "meta.json")["videos"]
    return {
        name: {int(number): one.get("category", "") for number, one in entry["objects"].items()}
        for name, entry in entries.items()
    }


def _video(
    tree: Tree, split: str, name: str, entry: dict[str, Any], categories: dict[int, str] | None = None
) -> VideoSource:
    folder = _FOLDERS[split]
    pictures, names = f"{folder}/JPEGImages/{name}", list(entry["frames"])
    there = {PurePosixPath(file).stem: file for file in tree.names(pictures)}
    missing = [frame for frame in names if frame not in there]
    if missing or not names:
        what = f"frame {missing[0]} and {len(missing) - 1} more" if missing else "all frames"
        raise ValueError(f"{pictures} lacks {what} that meta_expressions/{folder} lists")
    frames = [(pictures, there[frame]) for frame in names]
    said = sorted(entry["expressions"].items(), key=lambda pair: (len(pair[0]), pair[0]))
    if split != "train":  # which object is meant is not public: each expression has one of its own, without masks
        expressions = [
            {"name": key, "text": one["exp"], "objects": [place], "annotation_set": 0}
            for place, (key, one) in enumerate(said)
        ]
        return VideoSource(name, frames, None, list(range(1, len(said) + 1)), expressions)
    numbers = sorted({int(one["obj_id"]) for _, one in said})
    maps = f"train/Annotations/{name}"
    drawn = {PurePosixPath(file).stem: file for file in tree.names(maps)}
    if not drawn:
        raise ValueError(f"{maps} holds no annotation")
    annotations = [(maps, drawn[frame]) if frame in drawn else None for frame in names]
    expressions = [
        {"name": key, "text": one["exp"], "objects": [numbers.index(int(one["obj_id"]))], "annotation_set": 0}
        for key, one in said
    ]
    return VideoSource(name, frames, annotations, numbers, expressions, categories or {})
