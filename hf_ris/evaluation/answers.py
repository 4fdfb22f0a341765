"""A model's answers to a data set: gathered by an evaluator over all processes, or as a file of predictions.

Results do not depend on the number of processes: every expression counts once, by its id. `control` measures what a
benchmark gives away (see `hf-ris evaluate --help`).
"""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm
from transformers import AutoModelForImageSegmentation, AutoProcessor

from hf_ris.baselines import is_baseline, load_baseline
from hf_ris.data import (
    EvaluationRows,
    RisCollator,
    change_ground_truth,
    decode_mask,
    expression_mask,
    target_parts,
)
from hf_ris.data.collator import batches_of
from hf_ris.data.transforms import read_row
from hf_ris.metrics import PROTOCOLS, THRESHOLDS, Evaluator, expression_metadata, prediction_line


class ScoredRows(EvaluationRows):
    """`EvaluationRows` that also carry, per expression, `metadata`, the mask of its target, bool (H, W), and its parts.

    Of a prepared data set, whose column `overlaps` tells the conventions of ground truth apart, targets are unions
    whichever it stores, and parts serve the protocols that add polygons up; else parts are None.

    control: "other_scene_expression" and "other_object_expression" exchange the texts (and nothing else) for others,
    drawn by expression_id; an expression without another object's in its image is left out.
    """

    def __init__(self, dataset, max_expressions: int | None = None, control: str | None = None):
        super().__init__(dataset, max_expressions)
        self.control = control
        self.sayings = dataset.select_columns(["expressions"])  # read without decoding images
        self.has_parts = "overlaps" in dataset.column_names

    def __getitem__(self, index: int) -> dict[str, Any]:
        position, start, stop = self.items[index]
        row = read_row(self.dataset, position)
        row = change_ground_truth(row, "union") if self.has_parts else row
        chosen = row["expressions"][start:stop]
        texts = [self._text(row, position, said) for said in chosen]
        kept = [(said, text) for said, text in zip(chosen, texts) if text is not None]
        return {
            **row,
            "expressions": [{**said, "text": text} for said, text in kept],
            "metadata": [expression_metadata(row, said) | _uncrowded(row, said) for said, _ in kept],
            "targets": [expression_mask(row, said) for said, _ in kept],
            "parts": [target_parts(row, said) if self.has_parts else None for said, _ in kept],
        }

    def _text(self, row: dict[str, Any], position: int, said: dict[str, Any]) -> str | None:
        draw = random.Random(said["expression_id"])
        if self.control == "other_scene_expression":
            others = []
            while not others:  # rows without expressions have nothing to give
                other = (position + draw.randrange(1, len(self.sayings))) % len(self.sayings)
                others = self.sayings[other]["expressions"]
        elif self.control == "other_object_expression":
            own = set(said["object_indices"])
            others = [other for other in row["expressions"] if own.isdisjoint(other["object_indices"])]
        else:
            return said["text"]
        return draw.choice(others)["text"] if others else None


def _uncrowded(row: dict[str, Any], said: dict[str, Any]) -> dict[str, np.ndarray]:
    """`target_without_crowds`, the mask of the targets that are no regions of a crowd, where some are."""
    crowds = set(row.get("crowds") or ())
    if crowds.isdisjoint(said["object_indices"]):
        return {}
    plain = {**said, "object_indices": [index for index in said["object_indices"] if index not in crowds]}
    return {"target_without_crowds": expression_mask(row, plain)}


class ScoringCollator:
    """Rows of `ScoredRows` -> (a model's inputs or None; of expressions: metadata, target, parts, image's objects)."""

    def __init__(self, processor=None):
        self.collate = None if processor is None else RisCollator(processor, labels=False)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> tuple:
        rows = [row for row in rows if row["expressions"]]
        inputs = self.collate(rows) if self.collate and rows else None
        metadata = [entry for row in rows for entry in row["metadata"]]
        targets = [mask for row in rows for mask in row["targets"]]
        parts = [of_target for row in rows for of_target in row["parts"]]
        objects = [row["objects"] for row in rows for _ in row["expressions"]]
        return inputs, metadata, targets, parts, objects


def evaluate_model(
    accelerator: Accelerator,
    model: torch.nn.Module | None,
    processor,
    dataset,
    *,
    protocols: Sequence[str] = ("original",),
    batch_size: int = 16,
    max_expressions: int | None = 32,
    workers: int = 0,
    control: str | None = None,
    channels_last: bool = False,
    record: Callable[[dict[str, Any]], None] | None = None,
    observe: Callable[[Any, list[dict[str, Any]]], None] | None = None,
    look: Callable[[dict[str, Any], np.ndarray, np.ndarray], None] | None = None,
    progress: bool = False,
) -> Evaluator:
    """Answers of `model` to every expression of `dataset`, gathered over all processes.

    Args:
        model: on the accelerator's device, with its `processor`; both None for control "largest_object".
        batch_size: images; max_expressions: of one image in a batch.
        record: called in each process with every line of its predictions (`metrics.prediction_line`), which holds what
            every protocol needs, whichever `protocols` are asked for.
        observe: called in each process with every output of the model and the metadata of its expressions.
        look: called in each process with metadata, answer and target, bool (H, W), of every expression, to draw them.

    Returns:
        the `Evaluator`, equal in every process: `compute(protocol)` gives the metrics.
    """
    own_thresholds = any(PROTOCOLS[name].threshold is not None for name in protocols)
    rows = ScoredRows(dataset, max_expressions, control)
    probabilities = own_thresholds and model is not None
    evaluator = Evaluator(protocols, probabilities=probabilities, target_parts=rows.has_parts)
    if not len(rows):
        raise ValueError("The data set has no expression to evaluate.")
    collator = ScoringCollator(processor)
    loader = DataLoader(own_share(rows, accelerator), batch_size, collate_fn=collator, num_workers=workers)
    whole = probabilities or (record is not None and model is not None)
    fixed = record is not None or any(PROTOCOLS[name].size is not None for name in protocols)
    if model is not None:
        model.eval()
    batches = tqdm(batches_of(loader), total=len(loader), unit="batch", disable=not progress)
    for inputs, metadata, targets, parts, objects in batches:
        if not metadata:
            continue
        if model is None:
            answers = [largest_object(of_row) for of_row in objects]
        else:
            answers = answer(accelerator, model, processor, inputs, metadata, whole, fixed, channels_last, observe)
        for reply, entry, target, of_target in zip(answers, metadata, targets, parts, strict=True):
            plain = entry.get("target_without_crowds")
            extra = {**reply["extra"], "target_parts": of_target, "target_without_crowds": plain}
            evaluator.add(reply["mask"], target, entry, **extra)
            if look is not None:
                look(entry, reply["mask"], target)
            if record is not None:
                record(line_of(reply, entry, target, of_target, processor))
    evaluator.merge(gather_object([evaluator.state()]))
    return evaluator


def own_share(rows: ScoredRows, accelerator: Accelerator) -> Subset:
    """This process's rows. All processes have equally many, since in a sharded or DDP model each forward waits for the
    others; what is answered twice for that counts once, by its id."""
    each, processes = -(-len(rows) // accelerator.num_processes), accelerator.num_processes
    return Subset(rows, [(accelerator.process_index + processes * index) % len(rows) for index in range(each)])


@torch.no_grad()
def answer(
    accelerator, model, processor, inputs, metadata, whole: bool, fixed: bool, channels_last: bool, observe=None
) -> list[dict]:
    """One dict per expression: mask bool (H, W), score, and `extra` arguments of `Evaluator.add`.

    whole: with probabilities; fixed: with what a model that works on squashed images gives at 480x480.
    """
    inputs = {name: value.to(accelerator.device) for name, value in inputs.items()}
    if channels_last:
        inputs["pixel_values"] = inputs["pixel_values"].contiguous(memory_format=torch.channels_last)
    with accelerator.autocast():
        outputs = model(**inputs)
    if observe is not None:
        observe(outputs, metadata)
    sizes = [(entry["height"], entry["width"]) for entry in metadata]
    results = processor.post_process_referring_segmentation(outputs, sizes, probabilities=whole)
    # where the model looks: its last prior, else its mask; logits, since saturated probabilities tie
    peaks = outputs.logits[:, None] if outputs.prior_logits is None else outputs.prior_logits[:, -1:]
    peaks = processor.post_process_maps(peaks.float(), sizes, outputs.input_size)
    answers = [
        {"mask": result["mask"].cpu().numpy(), "score": result["score"], "extra": {"heatmap": peak[0].cpu().numpy()}}
        for result, peak in zip(results, peaks, strict=True)
    ]
    if whole:
        for reply, result in zip(answers, results):
            reply["extra"]["probability"] = result["probability"].cpu().numpy()
    if fixed and processor.image_processor.geometry == "squash":  # else the evaluator resizes the answer
        squashed = processor.post_process_referring_segmentation(
            outputs, [(480, 480)] * len(sizes), threshold=0.5, probabilities=False
        )
        for reply, result in zip(answers, squashed):
            reply["extra"]["prediction_480"] = result["mask"].cpu().numpy()
    return answers


def largest_object(objects: list[dict[str, Any]]) -> dict[str, Any]:
    """The answer of one who does not read: the object with most pixels."""
    masks = [decode_mask(entry["mask"]) for entry in objects]
    return {"mask": max(masks, key=np.count_nonzero), "score": 1.0, "extra": {}}


def line_of(
    reply: dict[str, Any], metadata: dict[str, Any], target: np.ndarray, parts: list[np.ndarray] | None, processor
) -> dict[str, Any]:
    extra = reply["extra"]
    heatmap, probability = extra.get("heatmap"), extra.get("probability")
    threshold = None if processor is None else processor.threshold
    return prediction_line(
        metadata,
        reply["mask"],
        target,
        target_parts=parts,
        target_without_crowds=metadata.get("target_without_crowds"),
        prediction_480=extra.get("prediction_480"),
        cuts=None if probability is None else {at: probability > at for at in THRESHOLDS if at != threshold},
        threshold=threshold,
        score=reply["score"],
        hit=None if heatmap is None or not target.any() else bool(target.flat[heatmap.argmax()]),
    )


class PredictionsFile:
    """A predictions file that several processes write: each its part, put together sorted by expression_id."""

    def __init__(self, path: Path, accelerator: Accelerator):
        self.path, self.accelerator = path, accelerator
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = self._part(accelerator.process_index).open("w", encoding="utf-8")

    def _part(self, rank: int) -> Path:
        return self.path.with_name(f"{self.path.name}.part{rank}")

    def record(self, line: dict[str, Any]) -> None:
        self.file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        self.file.close()
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            parts = [self._part(rank) for rank in range(self.accelerator.num_processes)]
            lines = [line for part in parts for line in part.read_text(encoding="utf-8").splitlines()]
            by_id = {json.loads(line)["expression_id"]: line for line in reversed(lines)}
            self.path.write_text("".join(f"{by_id[key]}\n" for key in sorted(by_id)), encoding="utf-8")
            for part in parts:
                part.unlink()


def load_model(reference: str) -> tuple[torch.nn.Module, Any]:
    """Model and processor of a folder, a Hub id or a baseline."""
    if is_baseline(reference):
        return load_baseline(reference)
    processor = AutoProcessor.from_pretrained(reference)
    return AutoModelForImageSegmentation.from_pretrained(reference), processor
