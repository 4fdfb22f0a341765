"""`evaluate` module: J, F and J&F of referring video segmentation."""

import datasets
import evaluate
import numpy as np

from .region_contour import FrameCounts, video_jf


_DESCRIPTION = """
J, F and J&F of video object segmentation (DAVIS 2017): region similarity J is the IoU of a frame's masks, contour
accuracy F the harmonic mean of the precision and recall of their boundaries, J&F their mean. Each is averaged over the
frames of an answer, then over answers.
"""

_INPUTS = """
Args:
    intersection, union (list of int): per frame, pixels in both masks and in either.
    prediction_boundary, target_boundary (list of int): per frame, pixels of the two masks' boundaries.
    matched_prediction, matched_target (list of int): per frame, those of them that the other boundary is near to.
    group (list of int): per frame, the answer (the mask of one object or expression through a video) it is part of.
Returns:
    dict: J&F, J and F, floats in [0, 1].
Examples:
    >>> metric = evaluate.load("hf_ris/metrics/ris_video_jf")
    >>> frames = dict(intersection=[50, 0], union=[100, 0], prediction_boundary=[40, 0], target_boundary=[20, 0])
    >>> metric.compute(**frames, matched_prediction=[20, 0], matched_target=[20, 0], group=[0, 0])
    {'J&F': 0.7916666666666666, 'J': 0.75, 'F': 0.8333333333333333}
"""

_CITATION = """
@article{ponttuset2017davis,
  title={The 2017 DAVIS Challenge on Video Object Segmentation},
  author={Pont-Tuset, Jordi and Perazzi, Federico and Caelles, Sergi and Arbel{\\'a}ez, Pablo and
          Sorkine-Hornung, Alexander and Van Gool, Luc},
  journal={arXiv preprint arXiv:1704.00675}, year={2017}
}
"""


class RisVideoJf(evaluate.Metric):
    """See `_DESCRIPTION`; `region_contour.py` counts a frame's pixels (`frame_counts`) and holds the formulas."""

    def _info(self) -> evaluate.MetricInfo:
        names = (*FrameCounts._fields, "group")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({name: datasets.Value("int64") for name in names}),
        )

    def _compute(self, group, **columns):
        return video_jf(np.array([columns[name] for name in FrameCounts._fields], np.int64).T, np.array(group))
