"""Answers in the form that Ref-YouTube-VOS's server takes.

A zip of `Annotations/<video>/<expression>/<frame>.png`, 8-bit grey, 0 or 255, one for every listed frame of every
expression.
"""

import os
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image


_NAMED = 5  # missing frames in a message


class Submission:
    """Written while a model answers, by each process its part, and put together by `close`."""

    def __init__(self, path: str | Path, accelerator: Accelerator):
        self.path, self.accelerator = Path(path), accelerator
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.archive = zipfile.ZipFile(self._part(accelerator.process_index), "w", zipfile.ZIP_STORED)
        self.written: set[str] = set()

    def _part(self, rank: int) -> Path:
        return self.path.with_name(f"{self.path.name}.part{rank}")

    def record(
        self, row: dict[str, Any], frame: int, expressions: list[dict[str, Any]], masks: list[np.ndarray]
    ) -> None:
        """The answers to some of a video's expressions in one frame: bool (H, W) each."""
        for said, mask in zip(expressions, masks, strict=True):
            name = member(row, said, frame)
            if name not in self.written:
                self.written.add(name)
                self.archive.writestr(name, _png(mask))

    def close(self, dataset) -> None:
        """Put the parts together, sorted, and check that `dataset` is answered whole.

        Raises:
            ValueError: frames that are missing, by name; then no file is left.
        """
        self.archive.close()
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return
        parts = [self._part(rank) for rank in range(self.accelerator.num_processes)]
        temporary = self.path.with_name(self.path.name + ".tmp")
        held: dict[str, Path] = {}
        for part in parts:
            with zipfile.ZipFile(part) as archive:
                held |= {name: part for name in archive.namelist() if name not in held}
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as whole:
            opened = {part: zipfile.ZipFile(part) for part in parts}
            for name in sorted(held):
                whole.writestr(zipfile.ZipInfo(name), opened[held[name]].read(name))
            for archive in opened.values():
                archive.close()
        for part in parts:
            part.unlink()
        try:
            check_submission(temporary, dataset)
        except ValueError:
            temporary.unlink()
            raise
        os.replace(temporary, self.path)


def member(row: dict[str, Any], expression: dict[str, Any], frame: int) -> str:
    """Where an answer lies in the zip."""
    return f"Annotations/{row['file_name']}/{expression['name']}/{row['frame_names'][frame]}.png"


def _png(mask: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(file, "PNG")
    return file.getvalue()


def check_submission(path: str | Path, dataset) -> int:
    """How many masks a submission holds.

    Args:
        dataset: the video rows that it answers; their frames are not read.

    Raises:
        ValueError: a file that is no zip, or frames that are missing or that the data set does not list, by name.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = {name for name in archive.namelist() if not name.endswith("/")}
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"{path} is no zip archive that can be read: {error}") from error
    listed = {
        member(row, said, frame)
        for row in dataset.select_columns(["file_name", "frame_names", "expressions"])
        for said in row["expressions"]
        for frame in range(len(row["frame_names"]))
    }
    for what, names in (("lacks", sorted(listed - found)), ("holds what is not asked for:", sorted(found - listed))):
        if names:
            more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
            raise ValueError(f"the submission {what} {', '.join(names[:_NAMED])}{more}")
    return len(found)
