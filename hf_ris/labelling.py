"""Labels from a teacher: a data set of the one schema that a model draws on a folder of images.

Under `accelerate launch` every process takes its share, on any number of machines that see the same folder. What is
done is kept image by image in `progress/`, so that a killed run goes on where it was, with any number of processes.
"""

import csv
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from filelock import FileLock
from tqdm import tqdm

from hf_ris.data.schema import encode_mask
from hf_ris.models.images_ris import as_pil
from hf_ris.processes import agreed, take_lock


IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")

_CARD = """---
task_categories: [image-segmentation]
tags: [referring-image-segmentation, machine-generated]
---

# Made by a model

The masks of this data set were drawn by **{model}**, not by people, on {images} images with {expressions} expressions
({command}). A mask is kept where the model's score is at least {threshold}; {dropped} of {asked} answers were below it
or empty and are left out. `scores.csv` holds the score of each. Who learns from it learns the teacher's errors too.
"""


def find_images(folder: Path) -> list[str]:
    """Paths of the images under a folder, relative to it, sorted. Raises ValueError for none."""
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder} with images.")
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix.lower() in IMAGES)
    if not names:
        raise ValueError(f"{folder} holds no image ({', '.join(IMAGES)}).")
    return names


def label(
    pipe,
    images: Path,
    expressions: Sequence[str] | Mapping[str, Sequence[str]],
    out: Path,
    model: str,
    min_score: float = 0.3,
    split: str = "train",
    accelerator: Accelerator | None = None,
) -> dict[str, int]:
    """Write `out`: images/, `<split>.jsonl`, scores.csv and README.md.

    Args:
        pipe: as `hf_ris.pipeline` gives it.
        expressions: for every image, or by an image's path relative to `images`.
        model: its name, for the card.
        min_score: in [0, 1]; an answer below it, and an empty mask, is not written.

    Returns:
        counts: images, expressions, dropped.

    Raises:
        ValueError: no images, a folder that another run still writes, an unfinished run with other settings, or a
            finished one, or no answer that scored enough; in every process.
    """
    if not 0 <= min_score <= 1:
        raise ValueError(f"--min-score is a score in [0, 1], got {min_score}.")
    accelerator = accelerator or Accelerator()
    names = find_images(images)
    if isinstance(expressions, Mapping):
        unknown = [name for name in expressions if name not in names]
        if unknown:
            raise ValueError(f"There is no image {unknown[0]} in {images}, of which expressions are given.")
        names = [name for name in names if expressions.get(name)]
    with _Progress(
        out, {"model": model, "min_score": min_score, "images": str(images)}, split, accelerator
    ) as progress:
        done = progress.done()
        left = [name for name in names if name not in done]
        own = left[accelerator.process_index :: accelerator.num_processes]
        for name in tqdm(own, unit="image", disable=not accelerator.is_main_process):
            texts = expressions.get(name, []) if isinstance(expressions, Mapping) else expressions
            answers = _answers(pipe, images / name, list(texts), min_score)
            target = out / "images" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(images / name, target)  # before the line that says it is done
            progress.add(name, answers)
        accelerator.wait_for_everyone()
        return agreed(lambda: progress.finish(names))


def _answers(pipe, path: Path, texts: list[str], min_score: float) -> dict[str, Any]:
    """One image's objects and expressions as a line of JSONL has them, and the score of every answer."""
    image = as_pil(path)
    objects, said, scores = [], [], []
    for answer in pipe(image, texts):
        mask = np.asarray(answer["mask"]) > 0
        kept = bool(mask.any()) and answer["score"] >= min_score
        scores.append({"text": answer["text"], "score": round(float(answer["score"]), 4), "kept": kept})
        if not kept:
            continue
        rle = encode_mask(mask)
        if rle not in objects:
            objects.append(rle)
        said.append({"text": answer["text"], "object": objects.index(rle)})
    return {"objects": [{"mask": rle} for rle in objects], "expressions": said, "scores": scores}


class _Progress:
    """What is done, a line per image, in `progress/<process>.jsonl`; a half-written last line is forgotten.

    As a context it is locked: workers may outlive a killed launch, and would write beside those that go on.
    """

    def __init__(self, out: Path, settings: dict[str, Any], split: str, accelerator: Accelerator):
        self.out, self.settings, self.split, self.folder = out, settings, split, out / "progress"
        self.accelerator, self._lock = accelerator, FileLock(self.folder / ".lock", timeout=0)

    def __enter__(self) -> "_Progress":
        agreed(self._begin)
        return self

    def __exit__(self, *_) -> None:
        self._lock.release()

    def _begin(self) -> None:
        known = self.folder / "settings.json"
        if (self.out / f"{self.split}.jsonl").exists():
            raise ValueError(f"{self.out} is finished already: give a new folder.")
        if known.exists() and json.loads(known.read_text(encoding="utf-8")) != self.settings:
            raise ValueError(f"{self.out} was begun with other settings ({known}): give them again, or a new folder.")
        self.folder.mkdir(parents=True, exist_ok=True)
        take_lock(self._lock, self.out)
        known.write_text(json.dumps(self.settings), encoding="utf-8")

    def done(self) -> dict[str, dict[str, Any]]:
        """By image, its line; read by every process before anyone writes."""
        lines = self._lines()
        self.accelerator.wait_for_everyone()
        return lines

    def add(self, name: str, answers: dict[str, Any]) -> None:
        path = self.folder / f"{self.accelerator.process_index:05d}.jsonl"
        broken = path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
        with path.open("a", encoding="utf-8") as file:
            file.write(("\n" if broken else "") + json.dumps({"file_name": name, **answers}) + "\n")

    def finish(self, names: list[str]) -> dict[str, int]:
        """The data set of all that is done; then progress/ goes."""
        lines = self._lines()
        kept = [lines[name] for name in names if lines[name]["expressions"]]
        scores = [(name, *entry.values()) for name in names for entry in lines[name]["scores"]]
        if not kept:
            raise ValueError(f"No answer scored at least {self.settings['min_score']}: lower --min-score.")
        with (self.out / "scores.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("file_name", "text", "score", "kept"), *scores])
        counts = {
            "images": len(kept),
            "expressions": sum(len(line["expressions"]) for line in kept),
            "dropped": sum(not entry[-1] for entry in scores),
        }
        card = _CARD.format(
            model=self.settings["model"],
            images=counts["images"],
            expressions=counts["expressions"],
            command=f"hf-ris label --model {self.settings['model']}",
            threshold=self.settings["min_score"],
            dropped=counts["dropped"],
            asked=len(scores),
        )
        (self.out / "README.md").write_text(card, encoding="utf-8")
        wanted = ("objects", "expressions")
        text = "".join(
            json.dumps({"file_name": f"images/{line['file_name']}"} | {key: line[key] for key in wanted}) + "\n"
            for line in kept
        )
        (self.out / f"{self.split}.jsonl").write_text(text, encoding="utf-8")
        for name in names:
            if not lines[name]["expressions"]:
                (self.out / "images" / name).unlink(missing_ok=True)
        shutil.rmtree(self.folder)
        return counts

    def _lines(self) -> dict[str, dict[str, Any]]:
        lines: dict[str, dict[str, Any]] = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            for text in path.read_text(encoding="utf-8").splitlines():
                if text.endswith("}"):  # not half written by a killed run
                    line = json.loads(text)
                    lines[line["file_name"]] = line
        return lines
