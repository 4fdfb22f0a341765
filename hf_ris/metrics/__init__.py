"""Metrics of referring segmentation, evaluation protocols by name, and an evaluator that knows no model.

The folders `ris_iou`, `ris_oc_iou`, `ris_localization`, `ris_length_iou` and `ris_video_jf` are `evaluate` modules of
their own: `evaluate.load("hf_ris/metrics/ris_iou")`.
"""

from .consistency import ObjectConsistency, object_counts
from .evaluator import Evaluator, expression_metadata
from .predictions import prediction_line, read_predictions
from .protocols import PROTOCOLS, Counts, Protocol, counts, get_protocol
from .report import compare_predictions, evaluate_predictions, format_report
from .slices import has_location_word, has_motion, has_negation, has_ordinal
from .video import VIDEO_PROTOCOLS, VideoEvaluator, merge_answers


__all__ = [
    "PROTOCOLS",
    "VIDEO_PROTOCOLS",
    "Counts",
    "Evaluator",
    "ObjectConsistency",
    "Protocol",
    "VideoEvaluator",
    "compare_predictions",
    "counts",
    "evaluate_predictions",
    "expression_metadata",
    "format_report",
    "get_protocol",
    "has_location_word",
    "has_motion",
    "has_negation",
    "has_ordinal",
    "merge_answers",
    "object_counts",
    "prediction_line",
    "read_predictions",
]
