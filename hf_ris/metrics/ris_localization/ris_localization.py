"""`evaluate` module: localisation hit rate, the share of expressions whose heatmap peaks inside the target."""

import datasets
import evaluate
import numpy as np


_DESCRIPTION = """
Localisation hit rate of referring image segmentation: the share of expressions for which the maximum of the model's
localisation heatmap lies in the ground-truth mask.
"""

_INPUTS = """
Args:
    hit (list of int): 1 where the maximum of the heatmap lies in the target, 0 where it does not; expressions
        without target are left out by the caller.
Returns:
    dict: localization, float in [0, 1].
Examples:
    >>> metric = evaluate.load("hf_ris/metrics/ris_localization")
    >>> metric.compute(hit=[1, 0, 1, 1])
    {'localization': 0.75}
"""

_CITATION = """
@inproceedings{jing2021locate,
  title={Locate then Segment: A Strong Pipeline for Referring Image Segmentation},
  author={Jing, Ya and Kong, Tao and Wang, Wei and Wang, Liang and Li, Lei and Tan, Tieniu},
  booktitle={CVPR}, year={2021}
}
"""


class RisLocalization(evaluate.Metric):
    """See `_DESCRIPTION`; `hit.py` finds the hit of one expression from its heatmap and target."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"hit": datasets.Value("int64")}),
        )

    def _compute(self, hit):
        hit = np.asarray(hit)
        if hit.size == 0 or not np.isin(hit, (0, 1)).all():
            raise ValueError("hit holds a 0 or a 1 for each expression, and at least one of them")
        return {"localization": float(hit.mean())}
