"""The models of the Space: bundled folders, zero-shot baselines, and Hub repositories or folders that a visitor adds.

Models are fetched and loaded by threads of their own, bundled ones apart from all others, and whoever asks waits a
limited time: a Hub that does not answer, or a large download, keeps nobody else from an answer.
"""

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as WaitedTooLong
from dataclasses import replace
from pathlib import Path

import torch

import hf_ris
from comparison.entries import BASELINE_NOTE, Entry, read_entry
from comparison.opening import LoadedModel, check_config, check_files, fetch, load
from comparison.pictures import Refusal
from hf_ris.baselines import BASELINES


MAX_ADDED = 2  # added models in memory; the one longest unused makes room
MAX_KNOWN = 200  # added models that can be named without adding them again
WAIT_SECONDS = 20  # for a model in a comparison
ADD_SECONDS = 120  # for one that is being added
MAX_WAITING = 8  # models being fetched or waiting to be, at once


class Zoo:
    """Finds, checks and loads models; each is loaded once, when it is first used.

    Args:
        bundled: folder whose subfolders are checkpoints (`save_pretrained` of model and processor).
        allow_folders: whether visitors may name local folders; not on a public server, whose disk they could probe.
        baselines: names of `hf_ris.baselines` to offer beside them.

    Attributes:
        bundled: entries that the page starts with.
        video: entries of bundled models whose input is a video; the tab of moving pictures offers them.
        offered: these and the baselines.
    """

    def __init__(self, bundled: str | Path, allow_folders: bool, baselines: Iterable[str] = ()):
        self.allow_folders = allow_folders
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.entries: OrderedDict[str, Entry] = OrderedDict()
        self.video: list[Entry] = []
        for config in sorted(Path(bundled).glob("*/config.json")):
            entry = read_entry(config.parent, config.parent.name)
            if entry.model_type in hf_ris.VIDEO_ARCHITECTURES:
                self.video.append(entry)
                continue
            if entry.title in {other.title for other in self.entries.values()}:
                entry = replace(entry, title=f"{entry.title} ({entry.key})")
            self.entries[entry.key] = entry
        self.bundled = list(self.entries.values())
        for name in baselines:
            title, gigabytes = BASELINES[name].title, BASELINES[name].gigabytes
            self.entries[name] = Entry(name, title, title, None, f"{BASELINE_NOTE} ({gigabytes} GB)")
        self.offered = list(self.entries.values())
        self._jobs: OrderedDict[str, Future[LoadedModel]] = OrderedDict()
        self._lock = threading.Lock()  # of the two dictionaries; never held while anything is fetched or loaded
        self._bundled_loader = ThreadPoolExecutor(2, "bundled")
        self._fetcher = ThreadPoolExecutor(2, "fetch")

    def choose(self, keys: list[str]) -> list[Entry]:
        """The entries of these keys, in the zoo's order. Raises Refusal for none or an unknown one."""
        with self._lock:
            entries = dict(self.entries)
        unknown = [key for key in keys if key not in entries]
        if unknown:
            offered = ", ".join(entry.key for entry in self.offered)
            raise Refusal(f"There is no model “{str(unknown[0])[:100]}” here; there are {offered}.")
        if not keys:
            raise Refusal("No model is chosen: choose at least one.")
        return [entry for key, entry in entries.items() if key in keys]

    def add(self, reference: str | None, seconds: float = ADD_SECONDS) -> Entry:
        """Check, fetch and load the model of a Hub id (`owner/name` or `owner/name@revision`) or a local folder.

        Raises:
            Refusal: not found, not one of our architectures, no safetensors, too large, files that do not fit, or not
                there within `seconds`; then it is fetched on, and the next call may find it.
        """
        reference = reference.strip() if isinstance(reference, str) else ""
        if len(reference) > 500:
            raise Refusal("That is too long for a Hub id or a folder.")
        with self._lock:
            if reference in self.entries:
                return self.entries[reference]
        if self.allow_folders and reference and Path(reference).is_dir():
            self._wait(reference, reference, lambda: self._open(reference, Path(reference).resolve()), seconds)
        elif re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", reference):
            self._wait(reference, reference, lambda: self._open(reference, None), seconds)
        else:
            wanted = "a Hub id (owner/name)" + (" or a folder on this machine" if self.allow_folders else "")
            raise Refusal(f"Give {wanted}; “{reference[:100]}” is not one." if reference else f"Give {wanted}.")
        return self.entries[reference]

    def _open(self, reference: str, folder: Path | None) -> LoadedModel:
        """Fetch (without a folder), check and load what somebody added, and make it known."""
        title = reference if folder is None else folder.name
        if folder is None:
            folder = fetch(reference)
        else:
            check_files(reference, {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()})
        check_config(reference, folder)
        entry = read_entry(folder, reference, title)
        loaded = load(entry, self.device)
        with self._lock:
            self.entries[reference] = entry
            fixed = {entry.key for entry in self.offered}
            for key in [key for key in self.entries if key not in fixed][:-MAX_KNOWN]:
                del self.entries[key]
                self._jobs.pop(key, None)
        return loaded

    def get(self, entry: Entry, seconds: float = WAIT_SECONDS) -> LoadedModel:
        """The model of an entry, loaded if it is not in memory.

        Raises:
            Refusal: it cannot be loaded, or not within `seconds`; then it is loaded on.
        """
        return self._wait(entry.key, entry.title, lambda: load(entry, self.device), seconds)

    def _wait(self, key: str, title: str, work: Callable[[], LoadedModel], seconds: float) -> LoadedModel:
        """What `work` gives; done once for all who ask, by another thread."""
        with self._lock:
            job = self._jobs.get(key)
            if job is None or (job.done() and job.exception() is not None):
                job = self._jobs[key] = self._submit(key, title, work)
            self._jobs.move_to_end(key)
        try:
            return job.result(seconds)
        except WaitedTooLong as error:
            raise Refusal(f"{title} is still being fetched; try it again in a minute.") from error
        finally:
            self._make_room()

    def _submit(self, key: str, title: str, work: Callable[[], LoadedModel]) -> Future[LoadedModel]:
        if key in {entry.key for entry in (*self.bundled, *self.video)}:
            return self._bundled_loader.submit(work)
        if sum(not job.done() for job in self._jobs.values()) >= MAX_WAITING:
            raise Refusal(f"{title} has to wait: other models are being fetched; try it again in a minute.")
        return self._fetcher.submit(work)

    def _make_room(self) -> None:
        """Forget the added models in memory that were longest not asked for, and failures with all they hold."""
        bundled = {entry.key for entry in (*self.bundled, *self.video)}
        with self._lock:
            done = [key for key, job in self._jobs.items() if job.done()]
            failed = [key for key in done if self._jobs[key].exception() is not None]
            added = [key for key in done if key not in bundled and key not in failed]
            for key in [*failed, *added[:-MAX_ADDED]]:
                del self._jobs[key]
