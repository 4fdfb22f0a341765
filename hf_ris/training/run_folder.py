"""The folder of a run: what it was (run.json), what happened (log.jsonl), checkpoints to resume from, models to use."""

import dataclasses
import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from filelock import FileLock

from hf_ris.environment import git_revision, hardware, versions
from hf_ris.hub.run_log import read_log
from hf_ris.processes import agreed, take_lock
from hf_ris.training.recipe import Recipe


CHECKPOINT = re.compile(r"step_\d+")
MANIFEST = "files.json"  # of a checkpoint: size and hash of each of its files, so that damage shows
MODELS = ("best", "last")
WRITTEN = ("run.json", "log.jsonl", "checkpoints", "tracking", *MODELS)
_TEMPORARY = (".tmp", ".old")  # a folder while it is written; the one that it is about to replace


class RunFolder:
    """Layout: run.json, log.jsonl, checkpoints/step_N, best/, last/. Whatever has its name is whole.

    Folders are written under a temporary name and renamed, so a run killed at any moment leaves none half written, and
    files that somebody put into best/ or last/ stay there. As a context it is locked: one run at a time writes to it.

    `facts` is for run.json: what the run knows of itself besides its recipe.

    Raises:
        ValueError: a folder that holds a run already, unless `resume`; or things of somebody else's that a run would
            overwrite; or a run.json that no run wrote.
    """

    def __init__(self, path: str | Path, accelerator: Accelerator, resume: bool, keep: int = 2):
        self.path, self.accelerator, self.keep = Path(path), accelerator, keep
        self.checkpoints, self.log_path = self.path / "checkpoints", self.path / "log.jsonl"
        self.facts: dict[str, Any] = {}
        self.resumed_at = 0  # the step of the checkpoint that this run goes on from
        self._lock = FileLock(self.path / ".lock", timeout=0)
        agreed(lambda: self._begin(resume))

    def __enter__(self) -> "RunFolder":
        agreed(lambda: take_lock(self._lock, self.path))
        return self

    def __exit__(self, *_) -> None:
        self._lock.release()

    def _begin(self, resume: bool) -> None:
        if (self.path / "run.json").exists():
            if not resume:
                raise ValueError(
                    f"{self.path} holds a run already: continue it with --resume, or give another output_dir."
                )
            self.recorded()
        else:
            names = [*WRITTEN, *(name + ending for name in MODELS for ending in _TEMPORARY)]
            found = [name for name in names if _holds_something(self.path / name)]
            if found:
                raise ValueError(
                    f"{self.path} holds {', '.join(found)}, but no run.json: that is not a run's, and this one would "
                    "overwrite it; give another output_dir."
                )
        for name in ("checkpoints", *MODELS):
            if (self.path / name).exists() and not (self.path / name).is_dir():
                raise ValueError(f"{self.path / name} is a file, where a run keeps a folder: give another output_dir.")
        self.checkpoints.mkdir(parents=True, exist_ok=True)

    def recorded(self) -> dict[str, Any]:
        """run.json as the run before wrote it; empty where there is none.

        Raises:
            ValueError: it is damaged, or of something else.
        """
        path = self.path / "run.json"
        if not path.exists():
            return {}
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(before["recipe"]["architecture"], str):
                return before
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        raise ValueError(f"{path} is damaged, or no run of ours wrote it: mend it, or give another output_dir.")

    # --- checkpoints

    def steps(self) -> list[int]:
        """Of the checkpoints that have their name, ascending."""
        return sorted(
            int(entry.name[5:]) for entry in self.checkpoints.glob("step_*") if CHECKPOINT.fullmatch(entry.name)
        )

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step_{step:08d}"

    def newest_checkpoint(self) -> Path | None:
        """The newest whole checkpoint, None if there is none. A damaged one is named and put aside as step_N.damaged.

        Raises:
            ValueError: there are checkpoints, and all of them are damaged.
        """
        return agreed(self._newest_whole)

    def _newest_whole(self) -> Path | None:
        for left in self.checkpoints.glob("step_*.old"):  # killed between two renames
            _recover(left.with_suffix(""))
        steps = self.steps()
        damaged = {}
        for step in reversed(steps):
            problem = damage(self.checkpoint(step))
            if problem is None:
                break
            damaged[step] = problem
            print(f"{self.checkpoint(step)} is damaged and not used: {problem}", flush=True)
        if damaged and len(damaged) == len(steps):
            raise ValueError(
                f"All checkpoints in {self.checkpoints} are damaged (step {', '.join(map(str, sorted(damaged)))}): "
                "there is nothing to resume from; give another output_dir."
            )
        for step in damaged:
            aside = self.checkpoint(step).with_suffix(".damaged")
            shutil.rmtree(aside, ignore_errors=True)
            self.checkpoint(step).rename(aside)
        return self.checkpoint(max(set(steps) - set(damaged))) if steps else None

    def save_checkpoint(self, step: int) -> None:
        """All that resuming needs; every process calls it. Older ones beyond `keep` go."""
        target = self.checkpoint(step)
        temporary = target.with_suffix(".tmp")
        if self.accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(temporary))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            files = {name: _fingerprint(temporary / name) for name in _files(temporary)}
            (temporary / MANIFEST).write_text(json.dumps(files, indent=1), encoding="utf-8")
            _replace(temporary, target)
            for old in self.steps()[: -self.keep]:
                shutil.rmtree(self.checkpoint(old))
        self.accelerator.wait_for_everyone()

    # --- models

    def save_model(self, name: str, model, processor, state: dict[str, torch.Tensor]) -> None:
        """`best` or `last`: a plain folder that `from_pretrained` loads; only the main process writes."""
        if self.accelerator.is_main_process:
            target = self.path / name
            temporary = target.with_suffix(".tmp")
            shutil.rmtree(temporary, ignore_errors=True)
            model.save_pretrained(temporary, state_dict=state)
            processor.save_pretrained(temporary)
            _recover(target)
            _keep_additions(target, temporary)
            _replace(temporary, target)
        self.accelerator.wait_for_everyone()

    # --- log.jsonl and run.json

    def log(self, line: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            with self.log_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def cut_log(self, step: int) -> None:
        """Drop what a run resumed at `step` logs again, what was logged only since it ended early, and cut lines."""
        if not self.accelerator.is_main_process or not self.log_path.exists():
            return
        lines = read_log(self.log_path)
        broken = len(self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()) - len(lines)
        if broken:
            print(f"{self.log_path}: left out {broken} line{'s' * (broken > 1)} that cannot be read")
        kept = [line for line in lines if line["step"] <= step and not line.get("early_end")]
        temporary = self.log_path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        os.replace(temporary, self.log_path)

    def describe(self, recipe: Recipe, model: torch.nn.Module) -> None:
        """Write run.json: resolved recipe, revision, versions, hardware, sizes, `facts`.

        Where the recipe of a resumed run differs from before, that is said, and kept as `changes` with the step.
        """
        if not self.accelerator.is_main_process:
            return
        before, resolved = self.recorded(), dataclasses.asdict(recipe)
        changes = list(before.get("changes", []))
        if before:
            old, new = _flat(before["recipe"]), _flat(resolved)
            for key in sorted(old.keys() | new.keys()):
                if old.get(key) != new.get(key):
                    print(f"resumed with another {key}: {new.get(key)!r}, was {old.get(key)!r}")
                    changes.append({"step": self.resumed_at, "key": key, "before": old.get(key), "after": new.get(key)})
        description = {
            "recipe": resolved,
            "revision": git_revision(),
            "versions": versions(),
            "hardware": hardware() | {"processes": self.accelerator.num_processes},
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            **self.facts,
            **({"changes": changes} if changes else {}),
        }
        self._write(description)

    def finish(self, result: dict[str, Any]) -> None:
        """Add the `result` of the run to run.json."""
        if self.accelerator.is_main_process:
            self._write(self.recorded() | {"result": result})

    def _write(self, description: dict[str, Any]) -> None:
        temporary = self.path / "run.json.tmp"
        temporary.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, self.path / "run.json")


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, by the sizes and hashes that were written with them; None: nothing."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        listed = [(name, int(size), str(digest)) for name, (size, digest) in files.items()]
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (ValueError, TypeError, AttributeError, RecursionError):
        return f"{MANIFEST} is damaged"
    if not listed:
        return f"{MANIFEST} lists no file"
    for name, size, digest in listed:
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        found = path.stat().st_size
        if found != size:
            return f"{name} has {found:,} bytes instead of {size:,}"
        if _fingerprint(path)[1] != digest:
            return f"{name} is not what was written"
    return None


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _fingerprint(path: Path) -> list:
    """[size, SHA-256] of a file."""
    with path.open("rb") as stream:
        return [path.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest()]


def _holds_something(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists()


def _replace(source: Path, target: Path) -> None:
    """Rename a folder over another; between the two renames `target` is missing, never half."""
    old = target.with_suffix(".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    source.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _recover(target: Path) -> None:
    """Undo the first half of a `_replace` that was killed before the second."""
    old = target.with_suffix(".old")
    if old.exists() and not target.exists():
        old.rename(target)


def _keep_additions(target: Path, temporary: Path) -> None:
    """Copy to `temporary` what lies in `target` and is not of the model: somebody put it there."""
    for entry in target.iterdir() if target.exists() else ():
        copy = temporary / entry.name
        if entry.is_symlink() or entry.is_file():
            if not copy.exists():
                shutil.copy2(entry, copy, follow_symlinks=False)
        elif not copy.exists():
            shutil.copytree(entry, copy, symlinks=True)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one with dotted keys."""
    flat = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def flat_recipe(recipe: Recipe) -> dict[str, int | float | str | bool]:
    """The recipe with dotted keys and plain values, as trackers take it."""
    plain = (int, float, str, bool)
    flat = _flat(dataclasses.asdict(recipe))
    return {key: value if isinstance(value, plain) else str(value) for key, value in flat.items()}
