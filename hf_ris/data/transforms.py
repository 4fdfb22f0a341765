"""Rows on their way to training and evaluation: which expressions are taken, and augmentation that keeps them true."""

import random
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset, IterableDataset
from PIL import Image, ImageEnhance

from .ground_truth import mirror_overlaps
from .schema import mirror_rle


AUGMENTATIONS = ("flip", "color", "gray")
GRAY_SHARE = 1 / 3  # of the rows, which "gray" shows without colours

_SIDES = {"left": "right", "right": "left", "lft": "rt", "rt": "lft", "lhs": "rhs", "rhs": "lhs"}
_SIDE = re.compile(r"\b(left|right|lft|rt|lhs|rhs)(?=(?:most|est|hand|side|ward|wards|er|y)?\b)", re.IGNORECASE)
# Clock faces, the compass, one-letter sides and slips of the pen.
_NO_MIRROR = re.compile(
    r"\b((counter|anti)?clockwise|o'?\s?clock|(north|south)?(east|west)(ern)?|[lr]|lt|letf|lefft|rigth|rihgt|rigt|righ)\b",
    re.IGNORECASE,
)
# "right" as an adverb and "left" as what remains, unless the word before makes it a side ("on the right in red").
_NO_SIDE = re.compile(
    r"(?<!\bthe )(?<!\bon )(?<!\bto )(?<!\bfar )(?<!\btop )(?<!\bbottom )(?<!\bupper )(?<!\blower )\b("
    r"right (now|away|here|there|next|besides?|behind|before|after|above|below|under|underneath|over|in|inside|outside"
    r"|on|onto|at|by|near|against|across|along|around|up|down|where|when|to|angles?|way)"
    r"|left (over|alone|behind|out|in|on))\b|\b(all|just) right\b(?! of\b)",
    re.IGNORECASE,
)
_ORDINAL = re.compile(
    r"\b(first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|1st|2nd|3rd|\d+th|last)\b", re.IGNORECASE
)
# What an ordinal may count from or along; without one, English counts from the left.
_COUNTED_FROM = re.compile(
    rf"{_SIDE.pattern}|\b(top|bottom|front|back|(larg|bigg|small|tall|short|clos|near|farth|furth|high|low)est|most)\b",
    re.IGNORECASE,
)
# Names of colours as referring expressions have them, "reddish" and "dark-blue" among them; hair is coloured too.
_COLOUR = re.compile(
    r"(?<![a-z])(red|blue|green|yellow|orange|purple|violet|pink|brown|black|white|gr[ae]y|beige|tan|cream|khaki|olive"
    r"|teal|turquoise|cyan|aqua|navy|magenta|maroon|burgundy|lavender|lilac|peach|gold|silver|bronze|blonde?|brunette"
    r"|redhead|colou?r|multicolou?r)(n?e?d|d?ish|y|e?n|s|ful|less)?(?![a-z])|(?<![a-z])(blu|purpl|whit|oliv|beig)ish",
    re.IGNORECASE,
)


def mirror_text(text: str) -> str | None:
    """`text` with left and right exchanged, or None where exchanging words may not give what the mirrored image shows.

    English only: a text with letters beyond ASCII is refused, as are clock faces, "right behind", "one slice left over"
    and ordinals that do not say from where they count ("the second cup" is counted from the left).
    """
    if any(char.isalpha() and not char.isascii() for char in text):
        return None
    if _NO_MIRROR.search(text) or _NO_SIDE.search(text) or (_ORDINAL.search(text) and not _COUNTED_FROM.search(text)):
        return None
    return _SIDE.sub(lambda match: _like(match[0], _SIDES[match[0].lower()]), text)


def _like(model: str, word: str) -> str:
    """`word` in the letter case of `model`."""
    if model.isupper():
        return word.upper()
    return word.capitalize() if model[0].isupper() else word


def horizontal_flip(row: dict[str, Any]) -> dict[str, Any] | None:
    """A mirrored copy of `row`: image, masks, boxes, left and right in its texts; None if a text has no safe mirror."""
    texts = [mirror_text(expression["text"]) for expression in row["expressions"]]
    if None in texts:
        return None
    objects = []
    for entry in row["objects"]:
        x, y, width, height = entry["bbox"]
        mask = mirror_rle(entry["mask"])
        objects.append({**entry, "bbox": [row["width"] - x - width, y, width, height], "mask": mask})
    return {
        **row,
        "image": row["image"].transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "objects": objects,
        "expressions": [{**said, "text": text} for said, text in zip(row["expressions"], texts, strict=True)],
        **mirror_overlaps(row),
    }


def color_jitter(row: dict[str, Any], rng: random.Random, strength: float = 0.2) -> dict[str, Any]:
    """A copy with brightness, contrast and saturation scaled by factors from [1 - strength, 1 + strength].

    The hue stays, for texts name colours. Only grey and RGB images change: how others become RGB is the processor's.
    """
    image = row["image"]
    if image.mode in ("L", "RGB"):
        for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            image = enhance(image).enhance(rng.uniform(1 - strength, 1 + strength))
    return {**row, "image": image}


def names_colour(text: str) -> bool:
    """Whether `text` may name a colour. English only: with letters beyond ASCII it may."""
    return _COLOUR.search(text) is not None or any(char.isalpha() and not char.isascii() for char in text)


def without_colours(row: dict[str, Any]) -> dict[str, Any]:
    """A copy of `row` in shades of gray, with those of its expressions that name no colour, which may be none.

    Where one colour or another never meets some category, a model learns that such a thing of that colour cannot be.
    In gray only its shape tells. Only grey and RGB images change, as in `color_jitter`; a row with another stays whole.
    """
    if row["image"].mode not in ("L", "RGB"):
        return row
    kept = [said for said in row["expressions"] if not names_colour(said["text"])]
    image = row["image"].convert("L").convert(row["image"].mode)
    return {**row, "image": image, "expressions": kept}


def sample_expressions(
    row: dict[str, Any], max_expressions: int, rng: random.Random, weigh: Callable[[str], float] | None = None
) -> dict[str, Any]:
    """A copy of `row` with at most `max_expressions` of its expressions, in their order.

    A second expression of the same objects is taken only when all sets of objects have one. `weigh` gives each text
    the weight, greater than 0, with which it is drawn next; None draws all alike.
    """
    expressions = row["expressions"]
    if max_expressions < 1:
        raise ValueError(f"max_expressions must be at least 1, got {max_expressions}")
    if len(expressions) <= max_expressions:
        return dict(row)
    order = list(range(len(expressions)))
    rng.shuffle(order)
    if weigh is not None:  # drawing by weight without putting back: waits are exponential, and the shortest come first
        waits = [rng.expovariate(weigh(said["text"])) for said in expressions]
        order.sort(key=waits.__getitem__)
    taken: dict[frozenset[int], int] = {}
    rounds = {}
    for position in order:
        objects = frozenset(expressions[position]["object_indices"])
        rounds[position] = taken[objects] = taken.get(objects, -1) + 1
    chosen = sorted(order, key=rounds.__getitem__)[:max_expressions]  # stable: the shuffled order within a round
    return {**row, "expressions": [expressions[position] for position in sorted(chosen)]}


def expression_counts(dataset: Dataset | Sequence[dict[str, Any]]) -> list[int]:
    """Number of expressions of every row; of a `datasets.Dataset` without decoding an image."""
    if isinstance(dataset, IterableDataset):
        raise ValueError("a streamed data set has no random access: give its rows to the collator as they come")
    if isinstance(dataset, Dataset):
        table = dataset.select_columns(["expressions"]).with_format("arrow")[:]
        return pc.list_value_length(table["expressions"]).to_pylist()
    return [len(row["expressions"]) for row in dataset]


def expression_texts(dataset: Dataset | Sequence[dict[str, Any]]) -> list[str]:
    """All that is said in a data set; of a `datasets.Dataset` without decoding an image."""
    if isinstance(dataset, Dataset):
        table = dataset.select_columns(["expressions"]).with_format("arrow")[:]
        return pc.struct_field(pc.list_flatten(table["expressions"]), "text").to_pylist()
    return [said["text"] for row in dataset for said in row["expressions"]]


def sample_triplet(row: dict[str, Any], max_expressions: int, rng: random.Random) -> dict[str, Any]:
    """A copy of `row` with `max_expressions` of its expressions, among them a triplet where it has one.

    A triplet is two expressions of one target and one of another that shares no object with it (VATEX's meaning
    consistency): the target is drawn from those with two expressions, then the two, then the other. What is left of
    `max_expressions` is drawn from all others. A row without a triplet gives what `sample_expressions` gives.
    """
    expressions = row["expressions"]
    if max_expressions < 3:
        raise ValueError(f"a triplet has three expressions: max_expressions must be at least 3, got {max_expressions}")
    of_target: dict[frozenset[int], list[int]] = {}
    for position, said in enumerate(expressions):
        if said["object_indices"]:
            of_target.setdefault(frozenset(said["object_indices"]), []).append(position)
    choices = [
        (pair, [position for other, of_other in of_target.items() if not other & target for position in of_other])
        for target, pair in of_target.items()
        if len(pair) > 1
    ]
    choices = [(pair, others) for pair, others in choices if others]
    if not choices:
        return sample_expressions(row, max_expressions, rng)
    pair, others = rng.choice(choices)
    chosen = {*rng.sample(pair, 2), rng.choice(others)}
    rest = [position for position in range(len(expressions)) if position not in chosen]
    chosen.update(rng.sample(rest, min(len(rest), max_expressions - 3)))
    return {**row, "expressions": [expressions[position] for position in sorted(chosen)]}


# What Pillow was seen to raise on pictures that are damaged or too large.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


class UnreadableRow(ValueError):
    """A row whose picture cannot be decoded, with its name.

    A DataLoader's worker hands an error on as the text of its whole traceback: of it only the last line is kept.
    """

    def __init__(self, message: str):
        super().__init__(message.strip().splitlines()[-1].rpartition("UnreadableRow: ")[2])


def read_row(dataset: Dataset | Sequence[dict[str, Any]], position: int) -> dict[str, Any]:
    """`dataset[position]`, which decodes its picture. Raises UnreadableRow where that cannot be done."""
    try:
        return dataset[position]
    except UnreadableRow:  # of a view of a data set
        raise
    except _DAMAGE as error:
        name = ""
        if isinstance(dataset, Dataset) and "file_name" in dataset.column_names:
            name = f" ({dataset.select_columns(['file_name'])[position]['file_name']})"
        reason = " ".join(str(error).split())
        raise UnreadableRow(f"The picture of row {position}{name} cannot be decoded: {reason}") from error


class TrainingRows(torch.utils.data.Dataset):
    """The rows that have expressions, each with some of them and augmented, by key `(epoch, index)`.

    All that is random follows from (seed, epoch, index): a resumed run sees the rows of one that was not interrupted,
    with any number of workers.

    Args:
        dataset: `datasets.Dataset` of the schema (or a sequence of rows, each read once here to count its expressions).
        max_expressions: at most so many expressions of an image; None takes all.
        seed: of the whole run.
        triplets: `sample_triplet` instead of `sample_expressions`; without max_expressions, of three.
        weigh: as in `sample_expressions`; not with triplets.
        augment: any of `AUGMENTATIONS`: "flip" mirrors every second row whose texts can be mirrored, "color" jitters,
            "gray" takes the colours out of a third of the rows and keeps their expressions that name none.
    """

    def __init__(
        self,
        dataset: Dataset | Sequence[dict[str, Any]],
        max_expressions: int | None = None,
        seed: int = 0,
        augment: Sequence[str] = (),
        triplets: bool = False,
        weigh: Callable[[str], float] | None = None,
    ):
        unknown = [name for name in augment if name not in AUGMENTATIONS]
        if unknown:
            raise ValueError(f"augment knows {', '.join(AUGMENTATIONS)}, not {unknown[0]!r}")
        self.dataset, self.max_expressions, self.seed, self.augment = dataset, max_expressions, seed, tuple(augment)
        self.triplets, self.weigh = triplets, weigh
        self.positions = np.flatnonzero(expression_counts(dataset))
        if len(self.positions) == 0:
            raise ValueError("no row of the data set has an expression")

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        rng = random.Random(f"{self.seed} {epoch} {index}")
        row = read_row(self.dataset, int(self.positions[index]))
        if "gray" in self.augment and rng.random() < GRAY_SHARE:
            gray = without_colours(row)
            row = gray if gray["expressions"] else row
        if self.triplets:
            row = sample_triplet(row, self.max_expressions or 3, rng)
        elif self.max_expressions is not None:
            row = sample_expressions(row, self.max_expressions, rng, self.weigh)
        if "flip" in self.augment and rng.random() < 0.5:
            row = horizontal_flip(row) or row
        if "color" in self.augment:
            row = color_jitter(row, rng)
        return row


class EvaluationRows(torch.utils.data.Dataset):
    """Every expression of a data set once, in order: an item is a row with at most `max_expressions_per_item` of them.

    With the limit, an image with more becomes several items, so that memory stays bounded; None keeps an image whole.
    """

    def __init__(self, dataset: Dataset | Sequence[dict[str, Any]], max_expressions_per_item: int | None = None):
        if max_expressions_per_item is not None and max_expressions_per_item < 1:
            raise ValueError(f"max_expressions_per_item must be at least 1 or None, got {max_expressions_per_item}")
        self.dataset = dataset
        self.items = [
            (position, start, start + (max_expressions_per_item or count))
            for position, count in enumerate(expression_counts(dataset))
            for start in range(0, count, max_expressions_per_item or count or 1)
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        position, start, stop = self.items[index]
        row = read_row(self.dataset, position)
        return {**row, "expressions": row["expressions"][start:stop]}
