"""`load`: built-in scenes, prepared folders, a user's own images and the Hub, all as data sets of the one schema."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from datasets.distributed import split_dataset_by_node

from .jsonl import load_jsonl_folder
from .refscenes.moving import NAME as MOVING
from .refscenes.moving import load_moving_scenes
from .refscenes.scenes import NAMES, SPLITS, load_refscenes
from .schema import FEATURES, Picture
from .video_jsonl import is_video_folder, load_video_folder
from .video_schema import VIDEO_FEATURES, is_video_data, lazy_frames


_REAL = ("refcoco", "refcoco+", "refcocog", "grefcoco", "phrasecut", "joint")
_RAW = ("refs(*).p", "grefs(*).*", "refer_*.json", "ref*.zip")
_PREPARE = "hf-ris prepare {} --raw FOLDER --out FOLDER"

AnyDataset = Dataset | DatasetDict | IterableDataset | IterableDatasetDict

_SHARD = re.compile(r"(?P<split>\w+?)(-\d{5}-of-\d{5}(-\w+)?)?\.parquet")
_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_WANTED = (
    f"give a RefScenes name ({', '.join((*NAMES, MOVING))}), a folder made by save_to_disk or with Parquet shards "
    "(train-00000-of-00001.parquet), a folder of images or videos with JSONL files (train.jsonl), or a "
    "Hub id (user/name)"
)


def load(name_or_path: str | Path, split: str | None = None, *, streaming: bool = False, **kwargs: Any) -> AnyDataset:
    """A data set of `FEATURES` (further columns may follow), or without `split` a dict of all splits.

    Args:
        name_or_path: tried in this order: a RefScenes name; a folder (made by `save_to_disk`; with Parquet shards in it
            or in its `data/`; with JSONL files, see `jsonl.py`); a Hub id, downloaded by `datasets.load_dataset`.
        split: name of one split. A JSONL folder with one file is one split, returned as such without `split`.
        streaming: return iterable data sets; from the Hub and Parquet nothing is then downloaded or copied beforehand.
        kwargs: for RefScenes `size`, `image_size`; for the Hub those of `load_dataset` (`revision`, `token`, ...).

    Raises ValueError with one sentence when the thing is not there or not of the schema.
    """
    name, path = str(name_or_path), Path(name_or_path).expanduser()
    if name == MOVING:
        splits = SPLITS if split is None else [split]
        parts = {part: load_moving_scenes(part, **kwargs) for part in splits}
        loaded = DatasetDict(parts) if split is None else parts[split]
    elif name in NAMES:
        loaded = _load_refscenes(name, split, **kwargs)
    elif path.exists():
        if kwargs:
            raise ValueError(f"a folder takes no {', '.join(kwargs)}: only `split` and `streaming`")
        loaded = _load_folder(path, split, streaming)
    elif _HUB_ID.fullmatch(name):
        loaded = _load_hub(name, split, streaming, **kwargs)
    else:
        hint = f"{name} is made from its raw download by {_PREPARE.format(name)}; then " if name in _REAL else ""
        raise ValueError(f"there is no data set {name!r}: {hint}{_WANTED}")
    for part in loaded.values() if isinstance(loaded, Mapping) else [loaded]:
        check_columns(part, name)
    loaded = _own_decoding(loaded)
    if not streaming or isinstance(loaded, (IterableDataset, IterableDatasetDict)):
        return loaded
    if isinstance(loaded, Mapping):
        return IterableDatasetDict({key: part.to_iterable_dataset() for key, part in loaded.items()})
    return loaded.to_iterable_dataset()


def _own_decoding(loaded: AnyDataset) -> AnyDataset:
    """The same, its images decoded by `Picture`, whatever wrote it."""
    first = next(iter(loaded.values())) if isinstance(loaded, Mapping) else loaded
    return loaded if is_video_data(first) else loaded.cast_column("image", Picture())


def check_columns(dataset: Dataset | IterableDataset, name: str = "the data set") -> None:
    """Raise ValueError unless `dataset` has every column of `FEATURES` with the same type."""
    features = dataset.features
    if features is None:
        raise ValueError(f"{name} does not declare its columns; it needs {', '.join(FEATURES)} (hf_ris.data.FEATURES)")
    needed = VIDEO_FEATURES if is_video_data(dataset) else FEATURES
    missing = [column for column in needed if column not in features]
    if missing:
        raise ValueError(
            f"{name} lacks {', '.join(missing)}: it has {', '.join(features)}, but a row of referring segmentation has "
            f"{', '.join(needed)} (hf_ris.data.{'VIDEO_' * is_video_data(dataset)}FEATURES)"
        )
    wrong = [column for column, feature in needed.items() if features[column] != feature]
    if wrong:
        raise ValueError(f"{name} has {wrong[0]} as {features[wrong[0]]}, but it must be {needed[wrong[0]]}")


def split_by_rank(dataset: Dataset | IterableDataset, rank: int, world_size: int) -> Dataset | IterableDataset:
    """The part of process `rank` of `world_size`: parts do not overlap and together hold every row.

    A map-style data set is cut into contiguous parts; of a streamed one each rank reads its own shards where their
    number is a multiple of `world_size`, else every `world_size`-th row.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be from 0 to world_size - 1 = {world_size - 1}, got {rank}")
    return split_dataset_by_node(dataset, rank=rank, world_size=world_size)


def load_split(name: str, split: str, size: int | None = None, image_size: int | None = None) -> Dataset:
    """The first `size` rows of a split (None: all); `image_size` is for RefScenes, which draws at any.

    The frames of videos stay as they are stored (`video_schema.frames_of` decodes those that are wanted).
    """
    if name in (*NAMES, MOVING):
        rows = load(name, split, size=size, **({} if image_size is None else {"image_size": image_size}))
        return lazy_frames(rows) if is_video_data(rows) else rows
    if image_size is not None:
        known = ", ".join((*NAMES, MOVING))
        raise ValueError(f"data.image_size is for RefScenes ({known}); {name} has its own images.")
    rows = load(name, split)
    rows = lazy_frames(rows) if is_video_data(rows) else rows
    return rows if size is None else rows.select(range(min(size, len(rows))))


def _load_refscenes(name: str, split: str | None, **kwargs: Any) -> Dataset | DatasetDict:
    if split is not None:
        return load_refscenes(name, split, **kwargs)
    return DatasetDict({split: load_refscenes(name, split, **kwargs) for split in SPLITS})


def _load_folder(path: Path, split: str | None, streaming: bool) -> AnyDataset:
    if not path.is_dir():
        raise ValueError(f"{path} is a file: {_WANTED}")
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _pick(datasets.load_from_disk(path), split, path)
    if (path / "progress/plan.json").is_file():
        raise ValueError(f"{path} was not finished: run the same `hf-ris prepare` again, which goes on")
    shards = sorted(path.glob("*.parquet")) or sorted(path.glob("data/*.parquet"))
    if shards:
        return _load_parquet(shards, split, streaming, path)
    if any(path.glob("*.jsonl")):
        return load_video_folder(path, split) if is_video_folder(path) else load_jsonl_folder(path, split)
    if any(found for pattern in _RAW for folder in (path, *path.glob("ref*/")) for found in folder.glob(pattern)):
        raise ValueError(f"{path} is a raw download: prepare it first, with {_PREPARE.format('NAME')}")
    raise ValueError(f"the folder {path} holds no data set: {_WANTED}")


def _pick(loaded: Dataset | DatasetDict, split: str | None, path: Path) -> Dataset | DatasetDict:
    if split is None:
        return loaded
    if isinstance(loaded, Dataset):
        raise ValueError(f"{path} holds one data set without splits: leave out split={split!r}")
    _check_split(split, loaded, path)
    return loaded[split]


def _check_split(split: str | None, splits: Mapping[str, Any], path: Path) -> None:
    if split is not None and split not in splits:
        raise ValueError(f"{path} has no split {split!r}: it has {', '.join(splits)}")


def _load_parquet(shards: list[Path], split: str | None, streaming: bool, path: Path) -> AnyDataset:
    files: dict[str, list[str]] = {}
    for shard in shards:
        match = _SHARD.fullmatch(shard.name)
        if match is None:
            raise ValueError(f"{shard} does not name its split: shards are called like train-00000-of-00001.parquet")
        files.setdefault(match["split"], []).append(str(shard))
    _check_split(split, files, path)
    return datasets.load_dataset("parquet", data_files=files, split=split, streaming=streaming)


def _load_hub(name: str, split: str | None, streaming: bool, **kwargs: Any) -> AnyDataset:
    try:
        return datasets.load_dataset(name, split=split, streaming=streaming, **kwargs)
    except (datasets.exceptions.DatasetNotFoundError, OSError) as error:  # requests' errors are OSErrors
        raise ValueError(
            f"{name!r} is neither a folder here nor a data set that can be had from the Hub "
            f"({str(error).splitlines()[0]}): {_WANTED}"
        ) from error
