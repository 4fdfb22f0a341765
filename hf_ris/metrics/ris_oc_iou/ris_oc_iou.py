"""`evaluate` module: object-centric IoU, the consistency of the masks of all expressions of one object."""

import datasets
import evaluate

from .object_iou import object_iou


_DESCRIPTION = """
Oc-IoU of referring image segmentation: per object, the pixels shared by the ground truth and the predictions of all
expressions of that object, over the pixels in any of them; the mean over objects. It is high only where every wording
gives the right mask.
"""

_INPUTS = """
Args:
    intersection (list of int): per object, pixels in the ground truth and in every prediction for it.
    union (list of int): per object, pixels in the ground truth or in any prediction for it.
    empty_value (float): value of an object with an empty union; default 0.
Returns:
    dict: Oc-IoU, float in [0, 1].
Examples:
    >>> metric = evaluate.load("hf_ris/metrics/ris_oc_iou")
    >>> metric.compute(intersection=[30, 80], union=[120, 100])
    {'Oc-IoU': 0.525}
"""

_CITATION = """
@article{nguyentruong2024improving,
  title={Improving Referring Image Segmentation using Vision-Aware Text Features},
  author={Nguyen-Truong, Hai and Nguyen, E-Ro and Vu, Tuan-Anh and Tran, Minh-Triet and Hua, Binh-Son and
          Yeung, Sai-Kit},
  journal={arXiv preprint arXiv:2404.08590}, year={2024}
}
"""


class RisOcIou(evaluate.Metric):
    """See `_DESCRIPTION`; the formula lives in `object_iou.py`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"intersection": datasets.Value("int64"), "union": datasets.Value("int64")}),
        )

    def _compute(self, intersection, union, empty_value=0.0):
        return {"Oc-IoU": float(object_iou(intersection, union, empty_value).mean())}
