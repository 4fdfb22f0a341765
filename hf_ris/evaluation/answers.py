"""Evaluate a model on referring segmentation, or a file of predictions without any model.

    python train/evaluate.py --model outputs/lts-refscenes/best --data refscenes --split test --result result.json
    accelerate launch --config_file train/accelerate/cpu_two.yaml train/evaluate.py --model ... --output answers.jsonl
    python train/evaluate.py --predictions a.jsonl --compare b.jsonl
    python train/evaluate.py --model clipseg --data data/refcoco --split val

`--model` also takes the name of a zero-shot baseline, `clipseg` or `grounded-sam`, whose weights come from the Hub, or
from where the name says (`grounded-sam:IDEA-Research/grounding-dino-base,facebook/sam-vit-huge`).

Results do not depend on the number of processes: every expression counts once, by its id. `--protocols` names one or
more conventions (original, lavt480, cris, ...: hf_ris/metrics/protocols.py). `--control` measures what a benchmark
gives away: `largest_object` answers with the largest object's mask (needs no model); `other_scene_expression` and
`other_object_expression` give the model an expression of another scene, or of another object of the same image, and
compare with the target of the right one. `--analyse DIR` adds plots of lengths and of the inside (train/analyses.py).
"""

import argparse
import json
import random
import sys
import time
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
    load_split,
    target_parts,
)
from hf_ris.environment import git_revision, hardware, versions
from hf_ris.evaluation.report import add_arguments, run
from hf_ris.metrics import PROTOCOLS, Evaluator, expression_metadata, prediction_line


CONTROLS = ("largest_object", "other_scene_expression", "other_object_expression")


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
        row = self.dataset[position]
        row = change_ground_truth(row, "union") if self.has_parts else row
        chosen = row["expressions"][start:stop]
        texts = [self._text(row, position, said) for said in chosen]
        kept = [(said, text) for said, text in zip(chosen, texts) if text is not None]
        return {
            **row,
            "expressions": [{**said, "text": text} for said, text in kept],
            "metadata": [expression_metadata(row, said) for said, _ in kept],
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
    progress: bool = False,
) -> Evaluator:
    """Answers of `model` to every expression of `dataset`, gathered over all processes.

    Args:
        model: on the accelerator's device, with its `processor`; both None for control "largest_object".
        batch_size: images; max_expressions: of one image in a batch.
        record: called in each process with every line of its predictions (`metrics.prediction_line`).
        observe: called in each process with every output of the model and the metadata of its expressions.

    Returns:
        the `Evaluator`, equal in every process: `compute(protocol)` gives the metrics.
    """
    own_thresholds = any(PROTOCOLS[name].threshold is not None for name in protocols)
    rows = ScoredRows(dataset, max_expressions, control)
    probabilities = own_thresholds and model is not None
    evaluator = Evaluator(protocols, probabilities=probabilities, target_parts=rows.has_parts)
    if not len(rows):
        raise ValueError("The data set has no expression to evaluate.")
    # All processes have equally many batches, since in a sharded or DDP model each forward waits for the others; what
    # is answered twice for that counts once, by its id.
    each, processes = -(-len(rows) // accelerator.num_processes), accelerator.num_processes
    own = [(accelerator.process_index + processes * index) % len(rows) for index in range(each)]
    loader = DataLoader(Subset(rows, own), batch_size, collate_fn=ScoringCollator(processor), num_workers=workers)
    if model is not None:
        model.eval()
    for inputs, metadata, targets, parts, objects in tqdm(loader, unit="batch", disable=not progress):
        if not metadata:
            continue
        if model is None:
            answers = [largest_object(of_row) for of_row in objects]
        else:
            answers = answer(accelerator, model, processor, inputs, metadata, evaluator, channels_last, observe)
        for reply, entry, target, of_target in zip(answers, metadata, targets, parts, strict=True):
            evaluator.add(reply["mask"], target, entry, **reply["extra"], target_parts=of_target)
            if record is not None:
                record(line_of(reply, entry, target, of_target, processor))
    evaluator.merge(gather_object([evaluator.state()]))
    return evaluator


@torch.no_grad()
def answer(
    accelerator, model, processor, inputs, metadata, evaluator: Evaluator, channels_last: bool, observe=None
) -> list[dict]:
    """One dict per expression: mask bool (H, W), score, and `extra` arguments of `Evaluator.add`."""
    inputs = {name: value.to(accelerator.device) for name, value in inputs.items()}
    if channels_last:
        inputs["pixel_values"] = inputs["pixel_values"].contiguous(memory_format=torch.channels_last)
    with accelerator.autocast():
        outputs = model(**inputs)
    if observe is not None:
        observe(outputs, metadata)
    sizes = [(entry["height"], entry["width"]) for entry in metadata]
    results = processor.post_process_referring_segmentation(outputs, sizes)
    # where the model looks: its last prior, else its mask; logits, since saturated probabilities tie
    peaks = outputs.logits[:, None] if outputs.prior_logits is None else outputs.prior_logits[:, -1:]
    peaks = processor.post_process_maps(peaks.float(), sizes, outputs.input_size)
    answers = [
        {"mask": result["mask"].cpu().numpy(), "score": result["score"], "extra": {"heatmap": peak[0].cpu().numpy()}}
        for result, peak in zip(results, peaks, strict=True)
    ]
    if evaluator.probabilities:
        for reply, result in zip(answers, results):
            reply["extra"]["probability"] = result["probability"].cpu().numpy()
    fixed = any(protocol.size is not None for protocol in evaluator.protocols.values())
    if fixed and processor.image_processor.geometry == "squash":  # else the evaluator resizes the answer
        squashed = processor.post_process_referring_segmentation(outputs, [(480, 480)] * len(sizes))
        for reply, result in zip(answers, squashed):
            kind = "probability" if evaluator.probabilities else "mask"
            reply["extra"]["prediction_480"] = result[kind].cpu().numpy()
    return answers


def largest_object(objects: list[dict[str, Any]]) -> dict[str, Any]:
    """The answer of one who does not read: the object with most pixels."""
    masks = [decode_mask(entry["mask"]) for entry in objects]
    return {"mask": max(masks, key=np.count_nonzero), "score": 1.0, "extra": {}}


def line_of(
    reply: dict[str, Any], metadata: dict[str, Any], target: np.ndarray, parts: list[np.ndarray] | None, processor
) -> dict[str, Any]:
    heatmap = reply["extra"].get("heatmap")
    hit = None if heatmap is None or not target.any() else bool(target.flat[heatmap.argmax()])
    threshold = None if processor is None else processor.threshold
    return prediction_line(
        metadata, reply["mask"], target, target_parts=parts, threshold=threshold, score=reply["score"], hit=hit
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


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or Hub id of a saved model and processor, or the name of a baseline")
    parser.add_argument("--data", default="refscenes", help="RefScenes flavour, folder or Hub id (default refscenes)")
    parser.add_argument("--split", default="test")
    parser.add_argument("--size", type=int, help="images taken (default: the whole split)")
    parser.add_argument("--image-size", type=int, help="side of RefScenes images (default 128)")
    parser.add_argument("--control", choices=CONTROLS)
    parser.add_argument("--batch-size", type=int, default=16, help="images (default 16)")
    parser.add_argument("--max-expressions", type=int, default=32, help="of one image in a batch (default 32)")
    parser.add_argument("--workers", type=int, default=0, help="processes that load data, per process (default 0)")
    parser.add_argument("--mixed-precision", choices=("no", "bf16", "fp16"), default="no")
    parser.add_argument("--output", type=Path, metavar="FILE.jsonl", help="write the predictions here")
    parser.add_argument("--analyse", type=Path, metavar="DIR", help="write analyses and plots here (train/analyses.py)")
    add_arguments(parser)
    options = parser.parse_args(arguments)
    needs_model = options.predictions is None and options.control != "largest_object"
    if needs_model and options.model is None:
        parser.error("give --model DIR_OR_HUB_ID, or --predictions FILE.jsonl, or --control largest_object")
    if options.analyse is not None and options.predictions is not None:
        parser.error("--analyse looks into a model, and a file of --predictions has none")
    return options


def load_model(reference: str) -> tuple[torch.nn.Module, Any]:
    """Model and processor of a folder, a Hub id or a baseline. Ends the program with a sentence if a baseline fails."""
    if not is_baseline(reference):
        processor = AutoProcessor.from_pretrained(reference)
        return AutoModelForImageSegmentation.from_pretrained(reference), processor
    try:
        return load_baseline(reference)
    except (OSError, ValueError) as error:
        sys.exit(str(error))


def report(options: argparse.Namespace, accelerator: Accelerator, evaluator: Evaluator, seconds: float) -> dict:
    """The result as JSON, metrics in [0, 1]."""
    protocols = {name: evaluator.compute(name, options.length_groups) for name in evaluator.protocols}
    return {
        "model": options.model,
        "data": options.data,
        "split": options.split,
        "control": options.control,
        "expressions": len(evaluator),
        "images": len(np.unique(evaluator.samples(next(iter(protocols))).image_id)),
        "protocols": protocols,
        "seconds": round(seconds, 1),
        "revision": git_revision(),
        "versions": versions(),
        "hardware": hardware() | {"processes": accelerator.num_processes},
    }


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    options = parse_arguments(arguments)
    if options.predictions is not None:
        return run(options)
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=options.mixed_precision)
    with accelerator.main_process_first():
        dataset = load_split(options.data, options.split, options.size, options.image_size)
    model, processor = None, None
    if options.control != "largest_object":
        model, processor = load_model(options.model)
        model = model.to(accelerator.device)
    predictions = None if options.output is None else PredictionsFile(options.output, accelerator)
    if options.analyse is not None:  # not above: it needs matplotlib, of the extra `train`
        from hf_ris.evaluation import analyses

        similarity = analyses.TextSimilarity()
    start = time.perf_counter()
    evaluator = evaluate_model(
        accelerator,
        model,
        processor,
        dataset,
        protocols=options.protocols or ["original"],
        batch_size=options.batch_size,
        max_expressions=options.max_expressions,
        workers=options.workers,
        control=options.control,
        record=None if predictions is None else predictions.record,
        observe=None if options.analyse is None else similarity.observe,
        progress=accelerator.is_main_process,
    )
    result = report(options, accelerator, evaluator, time.perf_counter() - start)
    if predictions is not None:
        predictions.close()
    if options.analyse is not None:
        similarity.merge(gather_object([similarity.state()]))
    if accelerator.is_main_process:
        for name, metrics in result["protocols"].items():
            print(f"{name}: {result['expressions']} expressions of {result['images']} images")
            print("\n".join(f"  {metric:<24}{100 * value:6.2f}" for metric, value in metrics.items()))
        if options.result is not None:
            options.result.parent.mkdir(parents=True, exist_ok=True)
            options.result.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        if options.analyse is not None:
            metrics = next(iter(result["protocols"].values()))
            analyses.write(options.analyse, model, processor, dataset, similarity, metrics)
    accelerator.end_training()
    return result


if __name__ == "__main__":
    main()
