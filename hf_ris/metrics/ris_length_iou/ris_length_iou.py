"""`evaluate` module: IoU of referring image segmentation by expression length, in groups of about equal size."""

import datasets
import evaluate
import numpy as np

from .length_groups import length_groups


_DESCRIPTION = """
IoU of referring image segmentation by expression length: the expressions are parted into groups of about equal size by
their number of words, and oIoU and mIoU are given for each group.
"""

_INPUTS = """
Args:
    intersection (list of int): pixels in prediction and target, one number per expression.
    union (list of int): pixels in prediction or target.
    length (list of int): words of the expression.
    groups (int): how many groups; default 4.
    empty_value (float): IoU where prediction and target are both empty; default 0.
Returns:
    dict of lists, short to long: words (label such as "1-2"), expressions (their number), oIoU and mIoU (floats in
    [0, 1]; oIoU is None where all unions of the group are empty).
Examples:
    >>> metric = evaluate.load("hf_ris/metrics/ris_length_iou")
    >>> metric.compute(intersection=[5, 6, 7, 8], union=[10, 10, 10, 10], length=[1, 2, 3, 9], groups=2)
    {'words': ['1-2', '3-9'], 'expressions': [2, 2], 'oIoU': [0.55, 0.75], 'mIoU': [0.55, 0.75]}
"""

_CITATION = """
@article{nguyentruong2024improving,
  title={Improving Referring Image Segmentation using Vision-Aware Text Features},
  author={Nguyen-Truong, Hai and Nguyen, E-Ro and Vu, Tuan-Anh and Tran, Minh-Triet and Hua, Binh-Son and
          Yeung, Sai-Kit},
  journal={arXiv preprint arXiv:2404.08590}, year={2024}
}
"""


class RisLengthIou(evaluate.Metric):
    """See `_DESCRIPTION`; `length_groups.py` makes the groups."""

    def _info(self) -> evaluate.MetricInfo:
        counts = {name: datasets.Value("int64") for name in ("intersection", "union", "length")}
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(counts),
        )

    def _compute(self, intersection, union, length, groups=4, empty_value=0.0):
        intersection, union = np.asarray(intersection), np.asarray(union)
        iou = np.where(union > 0, intersection / np.maximum(union, 1), empty_value)
        result = {"words": [], "expressions": [], "oIoU": [], "mIoU": []}
        for label, members in length_groups(length, groups):
            total = int(union[members].sum())
            result["words"].append(label)
            result["expressions"].append(int(members.sum()))
            result["oIoU"].append(int(intersection[members].sum()) / total if total else None)
            result["mIoU"].append(float(iou[members].mean()))
        return result
