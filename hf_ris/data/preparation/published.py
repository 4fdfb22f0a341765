"""The data sets that can be prepared, and how many references, expressions and images are published of their splits."""

from collections.abc import Mapping
from typing import NamedTuple


JOINT = ("refcoco", "refcoco+", "refcocog", "grefcoco", "phrasecut")  # what a joint set can be made of
NAMES = (*JOINT, "joint")
VIDEO_NAMES = ("ref_youtube_vos", "ref_davis17")


class Counts(NamedTuple):
    """Of one split; None is not published."""

    references: int | None
    expressions: int
    images: int | None


PUBLISHED: dict[str, dict[str, Counts]] = {
    "refcoco (unc)": {
        "train": Counts(42_404, 120_624, 16_994),
        "val": Counts(3_811, 10_834, 1_500),
        "testA": Counts(1_975, 5_657, 750),
        "testB": Counts(1_810, 5_095, 750),
    },
    "refcoco+ (unc)": {
        "train": Counts(42_278, 120_191, 16_992),
        "val": Counts(3_805, 10_758, 1_500),
        "testA": Counts(1_975, 5_726, 750),
        "testB": Counts(1_798, 4_889, 750),
    },
    "refcocog (umd)": {
        "train": Counts(42_226, 80_512, 21_899),
        "val": Counts(2_573, 4_896, 1_300),
        "test": Counts(5_023, 9_602, 2_600),
    },
    "refcocog (google)": {
        "train": Counts(44_822, 85_474, 24_698),
        "val": Counts(5_000, 9_536, 4_650),
    },
    "phrasecut": {
        "train": Counts(None, 310_816, None),
        "val": Counts(None, 20_316, None),
        "test": Counts(None, 14_354, None),
        "miniv": Counts(None, 821, None),
    },
}


def differences(counts: Mapping[str, Counts], published: Mapping[str, Counts]) -> list[str]:
    """What differs from the published counts, a phrase each: "val has 2 references, but 3,811 are published"."""
    found = []
    for split in dict.fromkeys([*published, *counts]):
        if split not in published:
            found.append(f"there is a split {split}, but only {', '.join(published)} are published")
            continue
        have = counts.get(split, Counts(0, 0, 0))
        for what, mine, theirs in zip(Counts._fields, have, published[split], strict=True):
            if theirs is not None and mine != theirs:
                found.append(f"{split} has {mine:,} {what}, but {theirs:,} are published")
    return found
