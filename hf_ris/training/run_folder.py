"""The folder of a run: what it was (run.json), what happened (log.jsonl), checkpoints to resume from, models to use."""

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from hf_ris.environment import git_revision, hardware, versions
from hf_ris.training.recipe import Recipe


CHECKPOINT = re.compile(r"step_\d+")


class RunFolder:
    """Layout: run.json, log.jsonl, checkpoints/step_N, best/, last/. Whatever has its name is whole.

    Folders are written under a temporary name and renamed, so a run killed at any moment leaves none half written.

    Raises:
        ValueError: a folder that holds a run already, unless `resume`.
    """

    def __init__(self, path: str | Path, accelerator: Accelerator, resume: bool, keep: int = 2):
        self.path, self.accelerator, self.keep = Path(path), accelerator, keep
        self.checkpoints, self.log_path = self.path / "checkpoints", self.path / "log.jsonl"
        if not resume and (self.path / "run.json").exists():
            raise ValueError(f"{path} holds a run already: continue it with --resume, or give another output_dir.")
        accelerator.wait_for_everyone()  # nobody writes before all have looked
        if accelerator.is_main_process:
            self.checkpoints.mkdir(parents=True, exist_ok=True)

    def newest_checkpoint(self) -> Path | None:
        """The last whole checkpoint, None if there is none."""
        whole = [entry for entry in self.checkpoints.glob("step_*") if CHECKPOINT.fullmatch(entry.name)]
        return max(whole, key=lambda entry: int(entry.name[5:]), default=None)

    def save_checkpoint(self, step: int) -> None:
        """All that resuming needs; every process calls it. Older ones beyond `keep` go."""
        target = self.checkpoints / f"step_{step:08d}"
        temporary = target.with_name(target.name + ".tmp")
        if self.accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(temporary))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            _replace(temporary, target)
            whole = sorted(entry for entry in self.checkpoints.glob("step_*") if CHECKPOINT.fullmatch(entry.name))
            for old in whole[: -self.keep]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def save_model(self, name: str, model, processor, state: dict[str, torch.Tensor]) -> None:
        """`best` or `last`: a plain folder that `from_pretrained` loads; only the main process writes."""
        if self.accelerator.is_main_process:
            temporary = self.path / f"{name}.tmp"
            shutil.rmtree(temporary, ignore_errors=True)
            model.save_pretrained(temporary, state_dict=state)
            processor.save_pretrained(temporary)
            _replace(temporary, self.path / name)
        self.accelerator.wait_for_everyone()

    def log(self, line: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            with self.log_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def cut_log(self, step: int) -> None:
        """Drop what a killed run logged after the checkpoint at `step`: it will be logged again."""
        if not self.accelerator.is_main_process or not self.log_path.exists():
            return
        kept = []
        for line in self.log_path.read_text(encoding="utf-8").splitlines():
            # the last line of a killed run may be half written
            if line.endswith("}") and json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        temporary = self.log_path.with_suffix(".tmp")
        temporary.write_text("".join(kept), encoding="utf-8")
        os.replace(temporary, self.log_path)

    def describe(self, recipe: Recipe, model: torch.nn.Module) -> None:
        """Write run.json: resolved recipe, revision, versions, hardware, sizes. Says where a resumed one differs."""
        path, resolved = self.path / "run.json", dataclasses.asdict(recipe)
        if not self.accelerator.is_main_process:
            return
        if path.exists():
            before = _flat(json.loads(path.read_text(encoding="utf-8"))["recipe"])
            for key, value in _flat(resolved).items():
                if before.get(key) != value:
                    print(f"resumed with another {key}: {value!r}, was {before.get(key)!r}")
        description = {
            "recipe": resolved,
            "revision": git_revision(),
            "versions": versions(),
            "hardware": hardware() | {"processes": self.accelerator.num_processes},
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        }
        self._write(description)

    def finish(self, result: dict[str, Any]) -> None:
        """Add the `result` of the run to run.json."""
        if self.accelerator.is_main_process:
            path = self.path / "run.json"
            self._write(json.loads(path.read_text(encoding="utf-8")) | {"result": result})

    def _write(self, description: dict[str, Any]) -> None:
        temporary = self.path / "run.json.tmp"
        temporary.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, self.path / "run.json")


def _replace(source: Path, target: Path) -> None:
    """Rename a folder over another; between the two renames `target` is missing, never half."""
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    source.rename(target)
    shutil.rmtree(old, ignore_errors=True)


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
