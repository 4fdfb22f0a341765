"""Answers of a model to every expression of videos, scored frame by frame; an image model sees each frame alone.

A video's frames are decoded, answered and scored in pieces, so that memory does not grow with its length: a video model
gets the whole video (its own windows bound what it holds), an image model one frame after the other.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm

from hf_ris.data.video_schema import annotated_frames, frames_of, mask_of
from hf_ris.metrics import VideoEvaluator

from .video_predictions import VideoLines


@torch.no_grad()
def evaluate_videos(
    accelerator: Accelerator,
    model: torch.nn.Module,
    processor,
    dataset,
    *,
    protocols: Sequence[str] = ("youtube_vos",),
    max_expressions: int | None = 32,
    control: str | None = None,
    record: Callable[[dict[str, Any], int, list[dict[str, Any]], list[np.ndarray]], None] | None = None,
    record_line: Callable[[dict[str, Any]], None] | None = None,
    progress: bool = False,
) -> VideoEvaluator:
    """Every expression of `dataset` (video rows, frames as stored), gathered over all processes.

    Args:
        model: a video model or, frame by frame, an image model, with its `processor`.
        max_expressions: of one video at a time.
        control: what a benchmark gives away. `shuffled_frames`: the model sees the frames in a random order (answers
            are put back into the right one); `first_frame`: it sees the first frame instead of each;
            `other_object_expression`: it reads an expression of another object of the same video.
        record: called in each process as record(row, frame, expressions, masks) with the answers of each frame.
        record_line: called in each process with every line of its predictions (`metrics/video_predictions.py`), which
            holds what every protocol needs, whichever `protocols` are asked for.

    Returns:
        the `VideoEvaluator`, equal in every process.
    """
    evaluator = VideoEvaluator(protocols)
    model.eval()
    for position in tqdm(own_videos(dataset, accelerator), unit="video", disable=not progress):
        row = dataset[position]
        scored = annotated_frames(row) if row["objects"] else []
        whole = "davis" in protocols or record_line is not None
        for said, texts in expression_groups(row, max_expressions, control, whole):
            scorer, lines = evaluator.video(said, len(row["objects"])), VideoLines(row, said, scored)
            frames = FramesUnderControl(row, control)
            for frame, results in answer_video(accelerator, model, processor, frames, texts):
                frame = frames.place(frame)
                masks = [result["mask"].cpu().numpy() for result in results]
                if record is not None:
                    record(row, frame, said, masks)
                if frame in scored:
                    probabilities = np.stack([result["probability"].float().cpu().numpy() for result in results])
                    targets = [mask_of(entry["masks"][frame]) for entry in row["objects"]]
                    scorer.add(np.stack(masks), targets, probabilities, mask_of(row["void"][frame]))
                    if record_line is not None:
                        lines.add(frame, masks, probabilities)
            evaluator.add(row["video_id"], scorer)
            for line in () if record_line is None else lines.finished(processor.threshold):
                record_line(line)
    evaluator.merge(gather_object([evaluator.state()]))
    return evaluator


def answer_video(
    accelerator: Accelerator, model: torch.nn.Module, processor, frames: Sequence, texts: list[str]
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """(frame number, an answer of `post_process_referring_segmentation` per text), frame by frame."""
    if is_video_model(model):
        inputs = processor([frames[index] for index in range(len(frames))], texts, lazy=True)
        inputs = {name: value.to(accelerator.device) for name, value in inputs.items()}
        with accelerator.autocast():
            outputs = model(**inputs)
        size = (frames[0].height, frames[0].width)
        yield from enumerate(processor.post_process_frames(outputs, [size] * len(texts)))
        return
    for index in range(len(frames)):
        frame = frames[index]
        inputs = {name: value.to(accelerator.device) for name, value in processor(frame, texts).items()}
        with accelerator.autocast():
            outputs = model(**inputs)
        yield index, processor.post_process_referring_segmentation(outputs, [(frame.height, frame.width)] * len(texts))


def is_video_model(model: torch.nn.Module) -> bool:
    """Whether its forward takes clips; a wrapped one (DDP) counts as what it wraps."""
    return getattr(model, "module", model).main_input_name == "pixel_values_videos"


class FramesUnderControl(Sequence):
    """A video's frames as the model is shown them; `place` says which frame of the video an answer is of."""

    def __init__(self, row: dict[str, Any], control: str | None):
        self.frames, self.control = frames_of(row), control
        self.order = list(range(len(self.frames)))
        if control == "shuffled_frames":
            random.Random(int(row["video_id"])).shuffle(self.order)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int):
        if not 0 <= index < len(self.order):
            raise IndexError(index)
        return self.frames[0 if self.control == "first_frame" else self.order[index]]

    def place(self, index: int) -> int:
        return self.order[index]


def own_videos(dataset, accelerator: Accelerator) -> list[int]:
    """Positions of this process's videos. All have equally many, as every forward may wait for the others; what is
    answered twice for that counts once."""
    count, processes = len(dataset), accelerator.num_processes
    return [(accelerator.process_index + processes * index) % count for index in range(-(-count // processes))]


def expression_groups(
    row: dict[str, Any], max_expressions: int | None, control: str | None = None, whole: bool = False
) -> Iterator[tuple[list[dict[str, Any]], list[str]]]:
    """Groups of a video's expressions, and what the model is given to read of each; `whole` keeps them together."""
    said, texts = list(row["expressions"]), [entry["text"] for entry in row["expressions"]]
    if control == "other_object_expression":
        others = [
            [other["text"] for other in said if set(other["object_indices"]).isdisjoint(entry["object_indices"])]
            for entry in said
        ]
        said = [entry for entry, texts_of in zip(said, others) if texts_of]
        texts = [random.Random(e["expression_id"]).choice(t) for e, t in zip(said, [t for t in others if t])]
    step = len(said) if whole or max_expressions is None else max_expressions
    for start in range(0, len(said), step or 1):
        yield said[start : start + step], texts[start : start + step]


def video_report(evaluator: VideoEvaluator, **settings) -> dict[str, Any]:
    """What an evaluator found, ready for JSON; `settings` are those of `VideoEvaluator.report`. Where nothing is
    annotated (masks that are not public), `protocols` is empty."""
    report = {"videos": evaluator.videos, "expressions": len(evaluator), "protocols": {}}
    if evaluator.has_answers:
        report["protocols"] = {name: evaluator.report(name, **settings) for name in evaluator.protocols}
    return report | {"bootstrap": settings | {"unit": "video"}}


def format_video_report(report: dict[str, Any]) -> str:
    """`video_report` as plain text, per cent with intervals."""
    text = [
        f"{report['expressions']:,} expressions of {report['videos']:,} videos, per cent, with intervals over videos"
    ]

    def line(label: str, metrics: dict[str, dict[str, Any]], count: str = "") -> str:
        cells = [
            f"{name} {100 * entry['value']:.1f}"
            + ("" if entry["low"] is None else f" ({100 * entry['low']:.1f} {100 * entry['high']:.1f})")
            for name, entry in metrics.items()
        ]
        return f"  {label:<24}{count:>7}  {'  '.join(cells)}"

    for name, found in report["protocols"].items():
        text += ["", f"{name}: {found['description']}", line("all", found["overall"])]
        for kind, parts in found["slices"].items():
            text += [line(f"{kind}: {k}", part["metrics"], f"{part['expressions']:,}") for k, part in parts.items()]
    if not report["protocols"]:
        text.append("no frame is annotated, so that there is nothing to measure")
    if report.get("submission"):
        text += ["", f"submission: {report['submission']}"]
    return "\n".join(text)
