"""The threshold of a model's masks, chosen on validation images and written into its processor with the curve.

    hf-ris evaluate --model outputs/lts-refscenes/best --calibrate

takes the threshold with the highest mIoU of `THRESHOLDS` and writes it into the folder's processor config.
"""

from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from tqdm import tqdm

from .answers import ScoredRows, ScoringCollator, own_share


THRESHOLDS = tuple(round(0.025 * step, 3) for step in range(2, 39))  # 0.05 to 0.95


def ious(probability: np.ndarray, target: np.ndarray, thresholds: tuple[float, ...] = THRESHOLDS) -> np.ndarray:
    """IoU with a mask (H, W) of where probabilities (H, W) are greater than each of the rising thresholds."""
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
    everything: dict[int, np.ndarray] = {}
    for part in gather_object([found]):
        everything |= part
    return np.stack([everything[identity] for identity in sorted(everything)]).mean(0)


def chosen(values: np.ndarray, told: dict[str, Any]) -> dict[str, Any]:
    """What a processor keeps as `calibration`: the best threshold, the curve, and `told`, what it was measured on."""
    return {"threshold": THRESHOLDS[int(values.argmax())], "thresholds": list(THRESHOLDS)} | {
        "mIoU": [round(float(value), 5) for value in values],
        **told,
    }
