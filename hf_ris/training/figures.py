"""What a run shows of itself: `figures/` in its folder, and pictures for the trackers.

step_00000100.png   the same validation expressions at every evaluation, with truth and answer
curves.png          learning curves, from log.jsonl
worst.png best.png  at the last evaluation, and both on one page, answers.html
"""

import heapq
import json
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset
from PIL import Image

from hf_ris.data.schema import decode_mask, encode_mask
from hf_ris.drawing import Strip, curves, save_gallery, sheet
from hf_ris.evaluation.galleries import iou, strip


class Figures:
    """Collects answers while a model is evaluated, and draws them.

    Args:
        folder: of the run.
        validation: the split that is evaluated; one without an `image` column (videos) is not drawn.
        count: of expressions that are shown at every evaluation, and of the worst and the best; 0 draws nothing.
    """

    def __init__(self, folder: Path, validation: Dataset, count: int, accelerator: Accelerator):
        self.folder, self.validation, self.accelerator = folder / "figures", validation, accelerator
        self.count = count if "image" in validation.column_names else 0
        self.log_path = folder / "log.jsonl"
        self.chosen = self._spread() if self.count else []
        self.looked: set[int] = set()
        self.seen: dict[int, dict[str, Any]] = {}
        self.worst: list[tuple] = []  # heaps of (rank, expression_id, answer)
        self.best: list[tuple] = []

    def _spread(self) -> list[int]:
        """Ids of `count` expressions, spread over the images, several of an image only where there are too few."""
        rows = [row for row in self.validation.select_columns(["expressions"])["expressions"] if row]
        images = min(self.count, len(rows))
        rows = [rows[index * len(rows) // images] for index in range(images)]
        rounds = [
            row[(index + turn) % len(row)]["expression_id"]
            for turn in range(max(map(len, rows)))
            for index, row in enumerate(rows)
            if turn < len(row)
        ]
        return [int(identity) for identity in rounds[: self.count]]

    def look(self, metadata: dict[str, Any], answer: np.ndarray, truth: np.ndarray) -> None:
        """Take note of one answer, as `evaluate_model` calls it. answer, truth: bool (H, W)."""
        identity = int(metadata["expression_id"])
        if not self.count or identity in self.looked:  # several processes answer some twice
            return
        self.looked.add(identity)
        score = iou(answer, truth)
        known = {"text": metadata["text"], "image_id": int(metadata["image_id"])}
        shown = identity in self.chosen
        among = [
            (rank, heap)
            for rank, heap in ((-score, self.worst), (score, self.best))
            if len(heap) < self.count or (rank, identity) > heap[0][:2]
        ]
        if shown or among:
            known |= {"answer": encode_mask(answer), "truth": encode_mask(truth), "iou": score}
        if shown:
            self.seen[identity] = known
        for rank, heap in among:
            (heapq.heappush if len(heap) < self.count else heapq.heappushpop)(heap, (rank, identity, known))

    def draw(self, step: int, last: bool) -> None:
        """Pictures of what was seen since the last call; every process calls it, the main one draws."""
        states = gather_object([(self.seen, self.worst, self.best)])
        self.looked, self.seen, self.worst, self.best = set(), {}, [], []
        if not self.count or not self.accelerator.is_main_process:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        seen = {identity: known for of, _, _ in states for identity, known in of.items()}
        strips = [self._strip(identity, seen[identity]) for identity in self.chosen if identity in seen]
        if strips:
            picture = sheet(strips, f"Validation at step {step}", side=200)
            picture.save(self.folder / f"step_{step:08d}.png")
            self._track("validation/answers", picture, step)
        self._curves()
        if last:
            worst, best = ([entry for state in states for entry in state[place]] for place in (1, 2))
            self._extremes(step, worst, best)

    def _extremes(self, step: int, worst: list[tuple], best: list[tuple]) -> None:
        galleries = {}
        for name, entries in (("worst", worst), ("best", best)):
            by_id = {identity: (rank, identity, known) for rank, identity, known in entries}
            ordered = sorted(by_id.values(), key=lambda entry: entry[:2], reverse=True)[: self.count]
            galleries[name] = [self._strip(identity, known) for _, identity, known in ordered]
            save_gallery(self.folder / f"{name}.png", f"The {name} answers at step {step}", galleries[name], side=200)
        strips = [
            Strip(f"{name}: {of.heading}", of.panels, of.note) for name, gallery in galleries.items() for of in gallery
        ]
        save_gallery(self.folder / "answers.html", f"The worst and the best answers at step {step}", strips)

    def _strip(self, identity: int, known: dict[str, Any]) -> Strip:
        positions = {image_id: place for place, image_id in enumerate(self.validation["image_id"])}
        image = self.validation[positions[known["image_id"]]]["image"].convert("RGB")
        answers = {"answer": decode_mask(known["answer"])}
        note = f"image {known['image_id']}, expression {identity}"
        return strip(image, known["text"], decode_mask(known["truth"]), answers, note)

    def _curves(self) -> None:
        """curves.png: the losses and the validation's metrics, of all that is logged."""
        lines = [json.loads(line) for line in self.log_path.read_text(encoding="utf-8").splitlines()]
        trained = [line for line in lines if "loss" in line]
        tested = [line for line in lines if "evaluation" in line]
        steps = [line["step"] for line in tested]
        groups = {
            "training loss": {"loss": ([line["step"] for line in trained], [line["loss"] for line in trained])},
            "validation": {name: (steps, [line["evaluation"][name] for line in tested]) for name in ("mIoU", "oIoU")},
        }
        curves(groups, "Learning curves").savefig(self.folder / "curves.png", dpi=130)

    def _track(self, name: str, picture: Image.Image, step: int) -> None:
        """To TensorBoard and Trackio, whichever is in use."""
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.log_images({name: np.asarray(picture)[None]}, step=step, dataformats="NHWC")
            if tracker.name == "trackio":
                import trackio  # of the extra `train`; whoever tracks by it has it

                tracker.log({name: trackio.Image(picture)}, step=step)
