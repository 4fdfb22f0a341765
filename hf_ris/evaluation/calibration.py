"""The threshold of a model's masks, chosen on validation images or videos and kept by its processor with the curve.

    hf-ris evaluate --model outputs/lts-refscenes/best --calibrate

takes the threshold of `THRESHOLDS` with the highest mIoU, of videos with the highest J, and writes it into the folder's
processor config.
"""

from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from tqdm import tqdm

from hf_ris.data.video_schema import annotated_frames, expression_masks, frames_of, mask_of

from .answers import ScoredRows, ScoringCollator, own_share
from .videos import answer_video, expression_groups, own_videos


THRESHOLDS = tuple(round(0.025 * step, 3) for step in range(2, 39))  # 0.05 to 0.95


def ious(probability: np.ndarray, target: np.ndarray, thresholds: tuple[float, ...] = THRESHOLDS) -> np.ndarray:
    """IoU with a mask of where probabilities, of the same shape, are greater than each of the rising thresholds."""
    # how many thresholds a pixel passes; then, from the highest, how many pixels pass each
    passed = np.searchsorted(np.array(thresholds, probability.dtype), probability, side="left")
    inside, outside = (
        np.bincount(passed[part], minlength=len(thresholds) + 1)[::-1].cumsum()[::-1][1:] for part in (target, ~target)
    )
    union = target.sum() + outside
    return np.where(union > 0, inside / np.maximum(union, 1), 1.0)


@torch.no_grad()
def curve(
    accelerator: Accelerator,
    model: torch.nn.Module,
    processor,
    dataset,
    batch_size: int = 16,
    max_expressions: int | None = 32,
    progress: bool = False,
) -> np.ndarray:
    """mIoU over all expressions of `dataset` at each of `THRESHOLDS`, equal in every process."""
    rows = ScoredRows(dataset, max_expressions)
    found: dict[int, np.ndarray] = {}  # by expression: what is answered twice counts once
    model.eval()
    loader = DataLoader(own_share(rows, accelerator), batch_size, collate_fn=ScoringCollator(processor))
    for inputs, metadata, targets, _, _ in tqdm(loader, unit="batch", disable=not progress):
        if not metadata:
            continue
        inputs = {name: value.to(accelerator.device) for name, value in inputs.items()}
        with accelerator.autocast():
            outputs = model(**inputs)
        sizes = [(entry["height"], entry["width"]) for entry in metadata]
        for result, entry, target in zip(
            processor.post_process_referring_segmentation(outputs, sizes), metadata, targets, strict=True
        ):
            found[entry["expression_id"]] = ious(result["probability"].cpu().numpy(), target)
    return _mean_of_all(found)


@torch.no_grad()
def video_curve(
    accelerator: Accelerator,
    model: torch.nn.Module,
    processor,
    dataset,
    max_expressions: int | None = 32,
    progress: bool = False,
) -> np.ndarray:
    """J at each of `THRESHOLDS`, the mean over an expression's annotated frames, then over all expressions of `dataset`
    (video rows, frames as stored); equal in every process. An image model answers each frame by itself.

    Raises:
        ValueError: no frame is annotated.
    """
    found: dict[int, np.ndarray] = {}
    model.eval()
    for position in tqdm(own_videos(dataset, accelerator), unit="video", disable=not progress):
        row = dataset[position]
        annotated = set(annotated_frames(row) if row["objects"] else ())
        for said, texts in expression_groups(row, max_expressions):
            curves: list[list[np.ndarray]] = [[] for _ in said]
            for frame, results in answer_video(accelerator, model, processor, frames_of(row), texts):
                if frame not in annotated:
                    continue
                void = mask_of(row["void"][frame])
                counts = np.ones((row["height"], row["width"]), bool) if void is None else ~void
                for entry, result, curve_of in zip(said, results, curves, strict=True):
                    (target,) = expression_masks(row, entry, [frame])
                    if target is not None:
                        probability = result["probability"].float().cpu().numpy()
                        curve_of.append(ious(probability[counts], target[counts]))
            found |= {entry["expression_id"]: np.mean(c, axis=0) for entry, c in zip(said, curves) if c}
    return _mean_of_all(found)


def _mean_of_all(found: dict[int, np.ndarray]) -> np.ndarray:
    """Of the curves by expression of all processes; what several of them answered counts once."""
    everything: dict[int, np.ndarray] = {}
    for part in gather_object([found]):
        everything |= part
    if not everything:
        raise ValueError("The data have no annotated expression, so that no threshold can be chosen on them.")
    return np.stack([everything[identity] for identity in sorted(everything)]).mean(0)


def chosen(values: np.ndarray, told: dict[str, Any], measure: str = "mIoU") -> dict[str, Any]:
    """What a processor keeps as `calibration`: the best threshold, the curve by the name of what was measured, and
    `told`, what it was measured on."""
    return {"threshold": THRESHOLDS[int(values.argmax())], "thresholds": list(THRESHOLDS)} | {
        measure: [round(float(value), 5) for value in values],
        **told,
    }
