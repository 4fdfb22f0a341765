"""`evaluate` module: oIoU, mIoU and Pr@X of referring image segmentation from per-sample pixel counts."""

import datasets
import evaluate
import numpy as np

from .iou_terms import iou_terms, ratios


_DESCRIPTION = """
IoU of referring image segmentation from pixel counts per expression: oIoU (also cIoU) is the sum of all intersections
over the sum of all unions, mIoU (also gIoU) the mean IoU, Pr@X the share of expressions whose IoU reaches X.
"""

_INPUTS = """
Args:
    intersection (list of int): pixels in prediction and target, one number per expression.
    union (list of int): pixels in prediction or target.
    prediction_area, target_area (lists of int, optional, both): their pixels. Where a target is empty they add N-acc
        (expressions without target answered by an empty mask) and T-acc (those with one answered by some mask).
    thresholds (list of float): the X of Pr@X, default .5 .6 .7 .8 .9.
    strict (bool): Pr@X counts IoU > X; default False, IoU >= X.
    empty_value (float): IoU where prediction and target are both empty; default 0.
    no_target_value (float, optional): the same, but only where the target is empty (needs the areas).
    precision_needs_target (bool): leave expressions without target out of Pr@X (needs the areas); default False.
Returns:
    dict of float in [0, 1]: oIoU, mIoU, Pr@0.5, ... and N-acc, T-acc where defined.
Examples:
    >>> metric = evaluate.load("hf_ris/metrics/ris_iou")
    >>> metric.compute(intersection=[50, 90], union=[100, 100])["mIoU"]
    0.7
"""

_CITATION = """
@inproceedings{hu2016segmentation,
  title={Segmentation from Natural Language Expressions},
  author={Hu, Ronghang and Rohrbach, Marcus and Darrell, Trevor},
  booktitle={ECCV}, year={2016}
}
"""

_COUNTS = {"intersection": datasets.Value("int64"), "union": datasets.Value("int64")}
_AREAS = {"prediction_area": datasets.Value("int64"), "target_area": datasets.Value("int64")}


class RisIou(evaluate.Metric):
    """See `_DESCRIPTION`; the formulas live in `iou_terms.py`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=[datasets.Features(_COUNTS), datasets.Features(_COUNTS | _AREAS)],
        )

    def _compute(
        self,
        intersection,
        union,
        prediction_area=None,
        target_area=None,
        thresholds=(0.5, 0.6, 0.7, 0.8, 0.9),
        strict=False,
        empty_value=0.0,
        no_target_value=None,
        precision_needs_target=False,
    ):
        areas = {}
        if target_area is not None:
            areas = {"no_target": np.asarray(target_area) == 0, "empty_prediction": np.asarray(prediction_area) == 0}
        terms = iou_terms(
            intersection,
            union,
            thresholds=thresholds,
            strict=strict,
            empty_value=empty_value,
            no_target_value=no_target_value,
            precision_needs_target=precision_needs_target,
            **areas,
        )
        return ratios(terms)
