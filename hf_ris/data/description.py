"""`describe`: what is in a data set, in numbers, and a contact sheet to look at it."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from PIL import Image

from hf_ris.drawing import Panel, Strip, overlay, sheet

from .preparation.published import PUBLISHED, Counts, differences
from .schema import expression_mask


_BATCH = 500
_WORDS = 20  # most frequent ones that are listed
_EXAMPLES, _COLUMNS = 12, 4  # of a split on the contact sheet


class Description(dict):
    """Numbers of every split, ready for JSON; `str()` is a text for people."""

    def __str__(self) -> str:
        lines = []
        for split, of in self["splits"].items():
            lengths, objects = of["words_per_expression"], of["objects_per_image"]
            said, categories = (
                ", ".join(f"{name} {count:,}" for name, count in of[key]) for key in ("words", "categories")
            )
            lines += [
                f"{split}: {of['images']:,} images, {of['references']:,} references, {of['expressions']:,} expressions",
                f"  words in an expression: mean {lengths['mean']:.2f}, median {lengths['median']}, 95% have at most "
                f"{lengths['95%']}, longest {lengths['max']}",
                f"  objects in an image: mean {objects['mean']:.2f}, median {objects['median']}, most {objects['max']}",
                f"  expressions of an image: mean {of['expressions_per_image']['mean']:.2f}",
                f"  targets of an expression: none {of['targets'].get('0', 0):,}, one {of['targets'].get('1', 0):,}, "
                f"several {sum(n for count, n in of['targets'].items() if int(count) > 1):,}",
                f"  {of['distinct_words']:,} words: {said}",
                f"  {of['distinct_categories']:,} categories: {categories}",
            ]
        return "\n".join([*lines, self["published"]])


def describe(
    dataset: Dataset | DatasetDict | IterableDataset | IterableDatasetDict,
    published: str | None = None,
    contact_sheet: str | Path | None = None,
) -> Description:
    """Counts, expression lengths in words, objects per image, words and categories of every split of `dataset`.

    Args:
        dataset: of the schema; one that is not a dict of splits counts as a split "all".
        published: a key of `PUBLISHED`, such as "refcoco (unc)", to compare the counts with; None compares with each.
        contact_sheet: a PNG to write, with images, masks and expressions spread over every split.

    Images are decoded for the contact sheet only.
    """
    if published is not None and published not in PUBLISHED:
        raise ValueError(f"there are no published counts of {published!r}: there are {', '.join(PUBLISHED)}")
    splits = dict(dataset) if isinstance(dataset, Mapping) else {"all": dataset}
    described = {split: _describe_split(rows) for split, rows in splits.items()}
    counts = {split: Counts(of["references"], of["expressions"], of["images"]) for split, of in described.items()}
    if contact_sheet is not None:
        draw_contact_sheet(splits).save(contact_sheet, "PNG")
    return Description(splits=described, published=_comparison(counts, published))


def _comparison(counts: dict[str, Counts], published: str | None) -> str:
    if published is not None:
        wrong = differences(counts, PUBLISHED[published])
        return f"{published}: {'; '.join(wrong)}" if wrong else f"the counts are the published ones of {published}"
    equal = [name for name, theirs in PUBLISHED.items() if not differences(counts, theirs)]
    return f"the counts are {f'the published ones of {equal[0]}' if equal else 'of no published data set'}"


def _describe_split(rows: Dataset | IterableDataset) -> dict[str, Any]:
    words, categories, targets = Counter(), Counter(), Counter()
    lengths, objects, said, references = Counter(), Counter(), Counter(), 0
    for of_image, expressions in _annotations(rows):
        objects[len(of_image)] += 1
        said[len(expressions)] += 1
        references += len({entry["ref_id"] for entry in expressions})
        categories.update(entry["category"] or "(none)" for entry in of_image)
        for entry in expressions:
            split = entry["text"].lower().split()
            words.update(split)
            lengths[len(split)] += 1
            targets[len(entry["object_indices"])] += 1
    return {
        "images": objects.total(),
        "references": references,
        "expressions": lengths.total(),
        "objects": sum(number * count for number, count in objects.items()),
        "words_per_expression": _spread(lengths),
        "objects_per_image": _spread(objects),
        "expressions_per_image": _spread(said),
        "targets": {str(number): targets[number] for number in sorted(targets)},
        "distinct_words": len(words),
        "words": _most_common(words),
        "distinct_categories": len(categories),
        "categories": _most_common(categories),
    }


def _annotations(rows: Dataset | IterableDataset) -> Iterator[tuple[list[dict], list[dict]]]:
    for batch in rows.select_columns(["objects", "expressions"]).iter(batch_size=_BATCH):
        yield from zip(batch["objects"], batch["expressions"], strict=True)


def _most_common(counter: Counter) -> list[tuple[str, int]]:
    return sorted(counter.items(), key=lambda item: (-item[1], item[0]))[:_WORDS]


def _spread(histogram: Counter) -> dict[str, Any]:
    """Mean, median, 95% and the histogram itself."""
    total, below, quantiles = histogram.total(), 0, {}
    for number in sorted(histogram):
        below += histogram[number]
        for name, share in (("median", 0.5), ("95%", 0.95)):
            if name not in quantiles and below >= share * total:
                quantiles[name] = number
    return {
        "mean": sum(number * count for number, count in histogram.items()) / max(total, 1),
        "median": quantiles.get("median", 0),
        "95%": quantiles.get("95%", 0),
        "max": max(histogram, default=0),
        "histogram": {str(number): histogram[number] for number in sorted(histogram)},
    }


def draw_contact_sheet(splits: Mapping[str, Dataset | IterableDataset], examples: int = _EXAMPLES) -> Image.Image:
    """Of every split, images with the target of one of their expressions outlined, and the expression beneath."""
    strips = []
    for split, rows in splits.items():
        if isinstance(rows, IterableDataset):
            chosen = list(rows.take(examples))
        else:
            count = min(examples, len(rows))
            chosen = [rows[place * len(rows) // count] for place in range(count)]
        panels = [_panel(row, cell) for cell, row in enumerate(chosen)]
        for start in range(0, len(panels), _COLUMNS):
            strips.append(Strip(split if start == 0 else "", panels[start : start + _COLUMNS]))
    return sheet(strips)


def _panel(row: dict[str, Any], number: int) -> Panel:
    """The image with the target of its expression `number`, counted around."""
    image, expressions = row["image"].convert("RGB"), row["expressions"]
    if not expressions:
        return Panel(image, "(no expression)")
    said = expressions[number % len(expressions)]
    note = "" if said["object_indices"] else "(no target)"
    return Panel(overlay(image, [expression_mask(row, said)]), said["text"], note)
