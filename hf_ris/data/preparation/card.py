"""The data card (README.md) of a prepared data set, from its report."""

import json
from typing import Any

from .published import PUBLISHED, Counts, differences


_COCO_LICENCE = (
    "Photographs: COCO train2014, from Flickr; each keeps its photographer's licence. COCO's annotations: CC BY 4.0."
)
_LISTED = 10  # problems
_TITLES = {
    "refcoco": "RefCOCO",
    "refcoco+": "RefCOCO+",
    "refcocog": "RefCOCOg",
    "grefcoco": "gRefCOCO",
    "phrasecut": "PhraseCut",
    "joint": "Joint referring segmentation",
}
_PAPERS = {
    "refcoco": 'Yu, Poirson, Yang, Berg and Berg, "Modeling Context in Referring Expressions", ECCV 2016',
    "refcoco+": 'Yu, Poirson, Yang, Berg and Berg, "Modeling Context in Referring Expressions", ECCV 2016',
    "refcocog": 'Mao, Huang, Toshev, Camburu, Yuille and Murphy, "Generation and Comprehension of Unambiguous Object '
    'Descriptions", CVPR 2016; split by Nagaraja, Morariu and Davis (umd), "Modeling Context Between Objects for '
    'Referring Expression Understanding", ECCV 2016',
    "grefcoco": 'Liu, Ding and Jiang, "GRES: Generalized Referring Expression Segmentation", CVPR 2023',
    "phrasecut": 'Wu, Lin, Cohen, Bui and Maji, "PhraseCut: Language-Based Image Segmentation in the Wild", CVPR 2020',
}
_NOTES = {
    "refcocog (umd)": "Papers often print 104,560 expressions, 54,822 objects and 26,711 images for RefCOCOg; the "
    "released umd files hold 95,010, 49,822 and 25,799.",
    "refcocog (google)": "Of this split, train and val share photographs: numbers on val are not clean.",
    "joint": "Photographs in any val or test split of any of the sets are not in train, those in any test split "
    "are not in val. Ids are the sets' own plus 1,000,000,000 times the place of the set in the list of sets.",
    "phrasecut": "A phrase's target is the union of its instances. Expression ids are places in the files: 2,000,017 "
    "is entry 17 of refer_test.json (train 0, val 1,000,000, test 2,000,000, miniv 3,000,000). miniv is a part of val.",
    "grefcoco": "Expressions have one, several or no targets.",
}
_GROUND_TRUTH = {
    "union": "`mask` is the union of an object's polygons (`union`)",
    "sum_equals_one": "`mask` is what exactly one polygon of an object covers (`sum_equals_one`, as in LAVT's program)",
}
_TEMPLATE = """---
license: other
license_name: several
language:
- en
pretty_name: {title}
task_categories:
- image-segmentation
tags:
- referring-image-segmentation
- referring-expression-segmentation
size_categories:
- {size}
configs:
- config_name: default
  data_files:
{files}
---

# {title}

{papers}. Converted from the raw download by `hf-ris prepare {command}`.

```python
from hf_ris.data import load

data = load("FOLDER_OR_HUB_ID")  # also: datasets.load_dataset("HUB_ID")
```

One row is one image: `image`, `image_id`, `file_name`, `height`, `width`, `objects` (`object_id`, `category`, `bbox`
[x, y, width, height], `mask` as COCO RLE), `expressions` (`expression_id`, `ref_id`, `text`, `object_indices` into
`objects`), `crowds` (indices of objects that are regions of a crowd) and `overlaps` (pixels that several polygons of an
object cover). All annotated objects of an image are there, not only those spoken of. {ground_truth}; the
other convention is `hf_ris.data.change_ground_truth(row, ...)`. Texts are the `{text}` ones of the raw files.
{note}

## Counts

{counts}
{published}
{problems}
## Sources

{sources}

SHA-256 over the lines `sha256  file name` of all images, in the order of the rows: `{images}`.

## Licence

{licence}
"""


def data_card(report: dict[str, Any]) -> str:
    """The card as Markdown with its YAML head."""
    plan = report["plan"]
    name, title = plan["name"], _TITLES.get(plan["name"], plan["name"])
    full = name if plan["split_by"] is None else f"{name} ({plan['split_by']})"
    papers = [_PAPERS.get(entry, f"{entry}, a data set in refer's format") for entry in plan["sets"] or [name]]
    others = name == "refcocog" or (name not in _TITLES and plan["split_by"] is not None)
    command = " ".join([name] + [f"--split-by {plan['split_by']}"] * others)
    command += f" --sets {' '.join(plan['sets'])}" if plan["sets"] else ""
    command += f" --ground-truth {plan['ground_truth']}" + f" --text {plan['text']}" * (name != "phrasecut")
    files = "\n".join(f"  - split: {split}\n    path: data/{split}-*" for split in report["splits"])
    return _TEMPLATE.format(
        title=title if plan["split_by"] is None else f"{title} ({plan['split_by']})",
        size=_size_category(sum(split["expressions"] for split in report["splits"].values())),
        files=files,
        papers=". ".join(dict.fromkeys(papers)),
        command=command,
        ground_truth=_GROUND_TRUTH[plan["ground_truth"]],
        text="phrase" if name == "phrasecut" else plan["text"],
        note="".join(f"\n{_NOTES[key]}\n" for key in (full, name) if key in _NOTES),
        counts=_counts(report["splits"]),
        published=_published(full, report),
        problems=_problems(report["problems"], report["remarks"]),
        sources="\n".join(f"- `{source['file']}`: SHA-256 `{source['sha256']}`" for source in plan["sources"]),
        images=report["images_sha256"],
        licence=_licence(plan),
    )


def _counts(splits: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| split | references | expressions | images | objects | no / one / several targets | with overlaps |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for split, of in splits.items():
        kinds = ("without_target", "with_one_target", "with_several_targets")
        targets = " / ".join(f"{of[kind]:,}" for kind in kinds)
        values = [f"{of[what]:,}" for what in ("references", "expressions", "images", "objects")]
        lines.append(f"| {split} | {' | '.join(values)} | {targets} | {of['overlapping_objects']:,} |")
    return "\n".join(lines) + "\n"


def _published(title: str, report: dict[str, Any]) -> str:
    if report["dropped"]:
        lines = ["Left out, since an evaluation sees the photograph:", ""]
        for name, splits in report["dropped"].items():
            for split, lost in splits.items():
                lines.append(f"- {name} {split}: {lost['images']:,} images with {lost['expressions']:,} expressions")
        return "\n".join(lines) + "\n"
    if title not in PUBLISHED:
        return "There are no published counts by split to compare with.\n"
    have = report["raw_counts"][report["plan"]["name"]]
    equal = not differences({split: Counts(*counts) for split, counts in have.items()}, PUBLISHED[title])
    word = "are" if equal else "are NOT"
    return f"References, expressions and images of the raw files {word} those of the published data set.\n"


def _problems(problems: list[dict[str, Any]], remarks: list[str]) -> str:
    lines = []
    if problems:
        lines += [f"\nLeft out: {len(problems)} images or expressions, all listed in report.json, such as\n"]
        lines += [f"- {json.dumps(problem)}" for problem in problems[:_LISTED]]
    if remarks:
        lines += [
            f"\nAnnotations that no expression needed and that could not be drawn, or only in part: {len(remarks)}"
        ]
        lines[-1] += ", all listed in report.json."
    return "\n".join(lines) + "\n" * bool(lines)


def _licence(plan: dict[str, Any]) -> str:
    names = set(plan["sets"] or [plan["name"]])
    parts = [_COCO_LICENCE] if names & {"refcoco", "refcoco+", "refcocog", "grefcoco"} else []
    if "phrasecut" in names:
        parts.append("Photographs: Visual Genome, from Flickr; each keeps its photographer's licence.")
    parts.append("The expressions are under the terms of their authors (see the papers named above).")
    return " ".join(parts)


def _size_category(number: int) -> str:
    for limit, name in ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")):
        if number < limit:
            return name
    return "1M<n<10M"
