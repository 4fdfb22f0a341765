"""The localisation hit of one expression (LTS, section 4.3; numpy only)."""

import numpy as np


def localization_hit(heatmap: np.ndarray, target: np.ndarray) -> bool:
    """Whether the maximum of `heatmap` (H, W), any real scale, lies in `target`, bool (H, W) of the same image.

    Of several equal maxima the first in reading order counts. An empty target raises: there is nothing to hit.
    """
    heatmap, target = np.asarray(heatmap), np.asarray(target)
    if heatmap.shape != target.shape or heatmap.ndim != 2:
        raise ValueError(
            f"heatmap and target have one shape (height, width), but theirs are {heatmap.shape} and {target.shape}"
        )
    if np.isnan(heatmap).any():
        raise ValueError("the heatmap holds NaN, so that it has no maximum")
    if not target.any():
        raise ValueError("the target is empty, so that no maximum can lie in it; leave such an expression out")
    return bool(target.flat[int(heatmap.argmax())])
