"""Metrics of referring segmentation, evaluation protocols by name, and evaluators that know no model.

The folders `ris_iou`, `ris_oc_iou`, `ris_localization`, `ris_length_iou` and `ris_video_jf` are `evaluate` modules of
their own: `evaluate.load(hf_ris.metrics.module_path("ris_iou"))`.
"""

import importlib
from pathlib import Path


_MODULES = {
    "bootstrap": ["ImageBootstrap"],
    "consistency": ["ObjectConsistency", "object_counts"],
    "evaluator": ["Evaluator", "expression_metadata"],
    "predictions": ["prediction_line", "read_predictions"],
    "protocols": [
        "PROTOCOLS",
        "THRESHOLDS",
        "Counts",
        "Protocol",
        "counts",
        "get_protocol",
        "leading_metrics",
    ],
    "slices": ["has_location_word", "has_motion", "has_negation", "has_ordinal"],
    "video_predictions": ["is_of_videos", "read_video_predictions"],
    "video": ["VIDEO_PROTOCOLS", "VideoEvaluator", "merge_answers"],
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
__all__ = [*_MODULE_OF, "module_path"]


def __getattr__(name: str):
    """Import the module of a public name when it is first asked for."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__


def module_path(name: str) -> str:
    """The folder of an `evaluate` module, as `ris_iou`, for `evaluate.load`, whatever folder one works in.

    Raises:
        ValueError: there is no such module, with the names that there are.
    """
    root = Path(__file__).resolve().parent
    names = sorted(path.parent.name for path in root.glob("*/app.py"))
    if name not in names:
        raise ValueError(f"There is no metric {name!r}; there are {', '.join(names)}.")
    return str(root / name)
