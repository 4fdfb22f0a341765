"""A model's logits to masks at the original size."""

import math
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .images_ris import show
from .resampling import Taps, bands


def known_logits(logits: Any) -> tuple[Tensor, set[int]]:
    """Logits (N, h, w) as float32, NaN where they are not finite, and the expressions that have such; it warns of them.

    Raises:
        ValueError: no tensor of this shape.
    """
    if not isinstance(logits, Tensor) or logits.ndim != 3:
        raise ValueError(f"The output's logits must be a tensor (expressions, height, width), got {show(logits)}.")
    logits = logits.float()
    finite = logits.isfinite()
    unknown = (~finite.flatten(1).all(1)).nonzero().flatten().tolist()
    if unknown:
        warnings.warn(
            f"The logits of expression {', '.join(map(str, unknown[:8]))} are not finite, so the score is NaN: weights "
            "or inputs hold NaN or infinite values, or a half precision overflowed.",
            stacklevel=4,
        )
        logits = logits.masked_fill(~finite, math.nan)
    return logits, set(unknown)


def cut(
    values: Tensor, rows: Taps, columns: Taps, threshold: float, of_logits: bool, probabilities: bool
) -> dict[str, Any]:
    """One expression's map (h, w), of logits or of probabilities, sampled at rows by columns and cut at a threshold.

    Returns: `mask` bool (H, W); `score`, the mean probability inside it, 0 where it is empty; and `probability` float32
        (H, W), if asked for. Without it, no more than a band of rows is ever there in floats.
    """
    size, device = (len(rows.places), len(columns.places)), values.device
    mask = torch.empty(size, dtype=torch.bool, device=device)
    whole = torch.empty(size, device=device) if probabilities else None
    sums, counts = [], []
    for part, band in bands(values, rows, columns):
        band = band.sigmoid_() if of_logits else band.clamp_(0, 1)  # bicubic interpolation overshoots
        torch.gt(band, threshold, out=mask[part])
        sums.append(F.threshold(band, threshold, 0.0).sum())
        counts.append(mask[part].count_nonzero())
        if whole is not None:
            whole[part] = band
    count = torch.stack(counts).sum().item()
    score = torch.stack(sums).sum().item() / count if count else 0.0
    return {"mask": mask, **({} if whole is None else {"probability": whole}), "score": score}
