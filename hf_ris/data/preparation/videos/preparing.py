"""`prepare_video_set`: a referring video data set by name, from its raw download to a folder that `load` takes."""

from pathlib import Path
from typing import Any

from . import ref_davis17, ref_youtube_vos
from .video_sets import Tree, prepare_videos


_SETS = {"ref_youtube_vos": ref_youtube_vos, "ref_davis17": ref_davis17}
_TITLES = {"ref_youtube_vos": "Ref-YouTube-VOS", "ref_davis17": "Ref-DAVIS17"}
_PAPERS = {
    "ref_youtube_vos": 'Seo, Lee and Han, "URVOS: Unified Referring Video Object Segmentation Network with a '
    'Large-Scale Benchmark", ECCV 2020; videos and masks: Xu et al., "YouTube-VOS", 2018',
    "ref_davis17": 'Khoreva, Rohrbach and Schiele, "Video Object Segmentation with Language Referring Expressions", '
    'ACCV 2018; videos and masks: Pont-Tuset et al., "The 2017 DAVIS Challenge on Video Object Segmentation", 2017',
}
_NOTES = {
    "ref_youtube_vos": "Masks of val and test are not public: their objects have none, one for each expression. "
    "Answers are handed in as a zip: `hf-ris evaluate --submission`.",
    "ref_davis17": "`annotation_set` is 0 and 1 for the first annotator (by the first frame, by the whole video), 2 "
    "and 3 for the second. The score is the mean over the four.",
}
_CARD = """---
license: other
language:
- en
pretty_name: {title}
task_categories:
- image-segmentation
tags:
- referring-video-segmentation
---

# {title}

{paper}. Converted by hf_ris to its video schema: a row is a video, with its frames as they were published, a mask for
each object and annotated frame (COCO's run-length encoding), and expressions.

| split | videos | objects | expressions | frames |
| --- | --- | --- | --- | --- |
{rows}

{note}

Licence: that of the original data; this copy adds none.
"""


def prepare_video_set(
    name: str, raw: str | Path, out: str | Path, *, check_counts: bool = True, videos_per_shard: int = 20
) -> dict[str, Any]:
    """Convert the download in `raw` (folders or zip archives) to the folder `out`; returns its report.

    Args:
        name: ref_youtube_vos or ref_davis17. check_counts: compare with the published number of videos.

    Raises:
        ValueError: what is wrong, in one sentence; then no `out` appears.
    """
    tree, module = Tree(raw), _SETS[name]
    splits = module.videos(tree)
    wrong = [
        f"{split} has {len(found):,} videos, but {module.PUBLISHED[split]:,} are published"
        for split, found in splits.items()
        if len(found) != module.PUBLISHED[split]
    ]
    if wrong and check_counts:
        raise ValueError(
            f"this is not the published {_TITLES[name]}: {'; '.join(wrong)}; --skip-count-check prepares it anyway"
        )

    def card(report: dict[str, Any]) -> str:
        rows = "\n".join(
            f"| {split} | {of['videos']:,} | {of['objects']:,} | {of['expressions']:,} | {of['frames']:,} |"
            for split, of in report["splits"].items()
        )
        return _CARD.format(title=_TITLES[name], paper=_PAPERS[name], rows=rows, note=_NOTES[name])

    return prepare_videos(tree, out, name, splits, card, videos_per_shard)
