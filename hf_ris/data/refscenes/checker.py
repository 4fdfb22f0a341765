"""An independent judge of RefScenes: reads a text, looks at a picture and its visible masks, says what it is true of.

    python -m hf_ris.data.refscenes_checker --name refscenes --split test --scenes 1000

It sees nothing the generator knew: no categories, colours, sizes or places, and it shares no code with the choice of
words. What it takes from `refscenes_shapes` is what things look like: outlines, colours and patterns to compare the
pixels with. For 128-pixel pictures.

A thing is recognised by an outline that covers all its visible pixels and sticks out only where other things could hide
it, and whose parts have the colours seen. Words mean: a side is the half of the picture; the middle and the corners are
squares there; a place is where the centroid of the visible pixels lies; biggest and smallest compare visible pixels;
small, medium and large are the recognised outline's.
"""

import argparse
import time
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ..schema import decode_mask
from .shapes import BODY, CATEGORIES, COLOURS, SIZE_STEPS, TEXTURES, TILTS, sprite, texture, tones


_SIDE = 128
_NOUNS = {name: name for name in CATEGORIES} | {
    "mug": "cup",
    "crescent": "moon",
    "seat": "chair",
    "parasol": "umbrella",
    "ship": "boat",
}
_NOUNS |= {noun + "s": category for noun, category in _NOUNS.items() if noun != "fish"}
_ANYTHING = {"thing", "things", "object", "objects", "one", "ones"}
_ADJECTIVES = {colour: ("colour", colour) for colour in COLOURS} | {
    "violet": ("colour", "purple"),
    "small": ("size", "small"),
    "little": ("size", "small"),
    "medium": ("size", "medium"),
    "large": ("size", "large"),
    "big": ("size", "large"),
    "plain": ("texture", "plain"),
    "striped": ("texture", "striped"),
    "dotted": ("texture", "dotted"),
    "spotted": ("texture", "dotted"),
    "checkered": ("texture", "checkered"),
    "checked": ("texture", "checkered"),
}
_PATTERNS = {"stripes": "striped", "dots": "dotted", "checks": "checkered"}
_SIDE_WORDS = {"left": "left", "right": "right", "top": "top", "upper": "top", "bottom": "bottom", "lower": "bottom"}
_MOST = {
    "leftmost": "left",
    "rightmost": "right",
    "topmost": "top",
    "highest": "top",
    "bottommost": "bottom",
    "lowest": "bottom",
}
_ORDINALS = {"first": 0, "second": 1, "third": 2, "fourth": 3}
_RELATIONS = {
    "to the left of": "left",
    "left of": "left",
    "to the right of": "right",
    "right of": "right",
    "above": "above",
    "over": "above",
    "below": "below",
    "under": "below",
    "closest to": "closest",
    "nearest to": "closest",
    "next to": "closest",
    "beside": "closest",
}


class Thing(NamedTuple):
    """What a look at one visible mask gives; x and y: centroid of the visible pixels, area: their number."""

    category: str
    colour: str
    texture: str
    size: str
    x: float
    y: float
    area: int


# --- looking


class Outline(NamedTuple):
    category: str
    size: str
    key: tuple[str, float, int, bool]
    bits: int
    height: int
    width: int
    area: int
    top: int
    left: int


def _board(mask: np.ndarray) -> int:
    """A bool mask, padded to 128 columns, as an integer: bit 128 y + x."""
    rows = np.zeros((mask.shape[0], _SIDE), np.uint8)
    rows[:, : mask.shape[1]] = mask
    return int.from_bytes(np.packbits(rows, bitorder="little").tobytes(), "little")


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Top, left, height and width of the True pixels."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(rows[0]), int(columns[0]), int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1


@cache
def _outlines() -> list[Outline]:
    outlines = []
    for category in CATEGORIES:
        for size, sides in SIZE_STEPS.items():
            for side in sides:
                for tilt in range(len(TILTS)):
                    for flip in (False, True):
                        mask = sprite(category, side, tilt, flip).mask
                        top, left, height, width = _box(mask)
                        cut = mask[top : top + height, left : left + width]
                        key = (category, side, tilt, flip)
                        entry = (_board(cut), height, width, int(cut.sum()), top, left)
                        outlines.append(Outline(category, size, key, *entry))
    return outlines


def _fits(mask: np.ndarray, others: np.ndarray) -> list[tuple[Outline, int, int]]:
    """Outlines, with their top and left, that cover the mask and nothing else that is in plain sight."""
    top, left, height, width = _box(mask)
    area, board = int(mask.sum()), _board(mask)
    free = _board(~(mask | others))
    found = []
    for outline in _outlines():
        if not (outline.height >= height and outline.width >= width and area <= outline.area <= area / 0.6):
            continue
        for y in range(max(0, top + height - outline.height), min(top, _SIDE - outline.height) + 1):
            for x in range(max(0, left + width - outline.width), min(left, _SIDE - outline.width) + 1):
                placed = outline.bits << (_SIDE * y + x)
                if not board & ~placed and not placed & free:
                    found.append((outline, y, x))
    return found


def _apart(mask: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The mask without pixels that touch another thing: its smooth edge runs into them."""
    padded = np.pad(others, 1)
    touched = np.zeros_like(mask)
    for y in range(3):
        for x in range(3):
            touched |= padded[y : y + _SIDE, x : x + _SIDE]
    return mask & ~touched


def _parts(outline: Outline, top: int, left: int, clear: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clear pixels that hold nothing but body, so pure colour and texture, and those that hold none of it.

    Returns rows and columns of either, (n, 2) and (m, 2), and the shares (m, 7) of the tones in the latter.
    """
    drawn = sprite(*outline.key)
    corner = (top - outline.top, left - outline.left)
    found = []
    for wanted in (drawn.body, (drawn.weights[..., BODY] == 0) & (drawn.alpha == 16)):
        places = np.argwhere(wanted)
        rows, columns = (places + corner).T
        found.append(places[clear[rows, columns]])
    shares = drawn.weights[found[1][:, 0], found[1][:, 1]] / 16
    return found[0] + corner, found[1] + corner, shares


def _colour_of(pixels: np.ndarray) -> tuple[str, float]:
    """The colour on whose line from base to second tone the pixels (n, 3) lie, and their summed distance from it."""
    best = ("", np.inf)
    for colour in COLOURS:
        base, second = tones(colour)[0], tones(colour)[-1]
        step = second - base
        part = np.clip((pixels - base) @ step / (step @ step), 0, 1)
        distance = float(np.abs(pixels - base - part[:, None] * step).sum())
        # A picture of second tone alone would fit two colours: the base must be there.
        if distance < best[1] and part.min() < 0.2:
            best = (colour, distance)
    return best


@cache
def _patterns() -> list[tuple[str, np.ndarray]]:
    """Drawn textures with all their shifts: name, (rows, columns) share of the second tone."""
    kinds = [("striped", 0), ("striped", 1), ("striped", 2), ("dotted", 0), ("checkered", 0)]
    return [(name, texture(name, turn, period, 160) / 16) for period in (22, 28, 36) for name, turn in kinds]


def _texture_of(places: np.ndarray, pixels: np.ndarray, colour: str) -> str:
    """plain, or the pattern that under some shift comes nearest to the pixels (n, 3) at places (n, 2)."""
    base, second = tones(colour)[0], tones(colour)[-1]
    step = second - base
    part = (pixels - base) @ step / (step @ step)
    if part.max() < 0.2:
        return TEXTURES[0]
    chosen = np.linspace(0, len(places) - 1, min(len(places), 150)).astype(int)
    rows, columns = (places[chosen] - places.min(0)).T
    shifts = np.arange(26)
    best = (float(np.abs(part[chosen]).mean()), TEXTURES[0])  # plain, with a highlight that looks like a second tone
    for name, tile in _patterns():
        seen = tile[rows[None, None] + shifts[:, None, None], columns[None, None] + shifts[None, :, None]]
        best = min(best, (float(np.abs(seen - part[chosen]).mean(-1).min()), name))
    return best[1]


def look(image: np.ndarray, masks: list[np.ndarray]) -> list[Thing]:
    """The things of a picture. image: uint8 (128, 128, 3); masks: bool (128, 128), the visible pixels of each.

    Raises ValueError if a mask has the outline of nothing that is drawn.
    """
    things = []
    everything = np.any(masks, axis=0)
    for number, mask in enumerate(masks):
        around = everything & ~mask
        fits, clear = _fits(mask, around), _apart(mask, around)
        views = []
        for outline, top, left in fits:
            places, others, shares = _parts(outline, top, left, clear)
            if len(places):
                pixels, rest = (image[where[:, 0], where[:, 1]].astype(np.float32) for where in (places, others))
                colour, distance = _colour_of(pixels)
                distance += float(np.abs(rest - shares @ tones(colour)[:-1]).sum())
                mean = round(distance / (len(places) + len(others)), 2)
                views.append((mean, outline.area, outline.category, outline.size, colour, places, pixels))
        if not views:
            raise ValueError(f"mask {number} has the outline of nothing that is drawn")
        # Inside a larger thing much would fit, hidden by it: of what looks alike, least hidden is likeliest.
        _, _, category, size, colour, places, pixels = min(views, key=lambda view: view[:2])
        y, x = np.nonzero(mask)
        pattern = _texture_of(places, pixels, colour)
        things.append(Thing(category, colour, pattern, size, float(x.mean()) + 0.5, float(y.mean()) + 0.5, len(x)))
    return things


# --- reading

Test = Callable[[list[Thing], set[int]], set[int]]  # those of the given things that pass


def _from_side(thing: Thing, side: str) -> float:
    return {"left": thing.x, "right": _SIDE - thing.x, "top": thing.y, "bottom": _SIDE - thing.y}[side]


def _where(holds: Callable[[Thing], bool]) -> Test:
    return lambda things, among: {k for k in among if holds(things[k])}


def _at_sides(sides: list[str]) -> Test:
    """One side: that half of the picture. Two: the corner between them."""
    reach = 0.5 * _SIDE if len(sides) == 1 else 0.36 * _SIDE
    return _where(lambda thing: all(_from_side(thing, side) < reach for side in sides))


def _in_middle() -> Test:
    return _where(lambda thing: max(abs(thing.x - _SIDE / 2), abs(thing.y - _SIDE / 2)) < 0.19 * _SIDE)


def _nth(key: Callable[[Thing], float], place: int) -> Test:
    return lambda things, among: set(sorted(among, key=lambda k: key(things[k]))[place:][:1])


def _without(test: Test) -> Test:
    return lambda things, among: among - test(things, among)


class Reader:
    """Recursive descent over the words of one expression."""

    def __init__(self, text: str):
        self.words, self.at = text.split(), 0

    def sees(self, *options: str) -> str | None:
        """Step over the first of these word sequences that comes next, and return it."""
        for option in options:
            words = option.split()
            if self.words[self.at : self.at + len(words)] == words:
                self.at += len(words)
                return option
        return None

    def need(self, *options: str) -> str:
        seen = self.sees(*options)
        if seen is None:
            rest = " ".join(self.words[self.at :])
            raise ValueError(f"cannot read {' '.join(self.words)!r}: one of {options} should come before {rest!r}")
        return seen

    def expression(self) -> Test:
        """[all | the | a] [which one] noun phrase, then what else is said of it, up to the end."""
        self.sees("all", "the", "a", "an")
        picks = self._which_one()
        noun = self.noun_phrase()
        tests: list[Test] = []
        while self.at < len(self.words):
            picked = self._picked_after(picks)
            if picked is not None:
                picks = picked
                continue
            self.sees("and")
            tests.append(self._said())
        pick = picks[0] if picks else None

        def meaning(things: list[Thing], among: set[int]) -> set[int]:
            named = noun(things, among)
            left = set(named)
            for test in tests + ([pick] if pick else []):
                left &= test(things, named)
            return left

        return meaning

    def _which_one(self) -> list[Any]:
        """Words before the noun that choose among the things it names: a test, or an ordinal still to be finished."""
        if self.sees("biggest", "largest"):
            return [_nth(lambda thing: -thing.area, 0)]
        if self.sees("smallest"):
            return [_nth(lambda thing: thing.area, 0)]
        most = self.sees(*_MOST)
        if most:
            return [self._most(_MOST[most])]
        if self.sees("far"):
            return [self._most(self.need("left", "right"))]
        ordinal = self.sees(*_ORDINALS)
        if ordinal:
            return [None, _ORDINALS[ordinal]]
        if self.sees("middle", "center"):
            return [_in_middle()]
        sides = []
        while (side := self.sees(*_SIDE_WORDS)) is not None:
            sides.append(_SIDE_WORDS[side])
        return [_at_sides(sides)] if sides else []

    def _most(self, side: str, place: int = 0) -> Test:
        return _nth(lambda thing: _from_side(thing, side), place)

    def _picked_after(self, picks: list[Any]) -> list[Any] | None:
        """Words after the noun that choose among the things it names."""
        if len(picks) == 2 and self.sees("from the"):
            return [self._most(self.need("left", "right", "top", "bottom"), picks[1])]
        if self.sees("furthest to the", "furthest"):
            return [self._most(self.need("left", "right"))]
        end = self.sees("closest to the top", "closest to the bottom", "nearest the top", "nearest the bottom")
        return [self._most(end.split()[-1])] if end else None

    def noun_phrase(self) -> Test:
        """Adjectives, a noun, and perhaps "with stripes"."""
        wanted: list[tuple[str, str]] = []
        while (word := self.sees(*_ADJECTIVES)) is not None:
            wanted.append(_ADJECTIVES[word])
        noun = self.need(*_NOUNS, *_ANYTHING)
        if noun in _NOUNS:
            wanted.append(("category", _NOUNS[noun]))
        if self.sees("with"):
            wanted.append(("texture", _PATTERNS[self.need(*_PATTERNS)]))
        return _where(lambda thing: all(thing._asdict()[name] == value for name, value in wanted))

    def _said(self) -> Test:
        """One thing said after the noun: a look, a place, a relation or the denial of one."""
        if self.sees("without"):
            pattern = _PATTERNS[self.need(*_PATTERNS)]
            return _where(lambda thing: thing.texture != pattern)
        if self.sees("that", "which"):
            self.need("is", "are")
        if self.sees("not"):
            return _without(self._said())
        adjective = self.sees(*_ADJECTIVES)
        if adjective:
            name, value = _ADJECTIVES[adjective]
            return _where(lambda thing: thing._asdict()[name] == value)
        relation = self.sees(*_RELATIONS)
        if relation:
            self.need("the")
            return self._related(_RELATIONS[relation], self.noun_phrase())
        if self.sees("on the", "at the", "in the"):
            return self._place()
        self.sees("a", "an")
        category = _NOUNS[self.need(*_NOUNS)]
        return _where(lambda thing: thing.category == category)

    def _place(self) -> Test:
        if self.sees("middle", "center"):
            test = _in_middle()
        else:
            sides = [_SIDE_WORDS[self.need(*_SIDE_WORDS)]]
            while (side := self.sees(*_SIDE_WORDS)) is not None:
                sides.append(_SIDE_WORDS[side])
            test = _at_sides(sides)
            self.sees("side", "corner")
        self.sees("of the picture", "of the image")
        return test

    def _related(self, relation: str, noun: Test) -> Test:
        def test(things: list[Thing], among: set[int]) -> set[int]:
            anchors = noun(things, set(range(len(things))))
            if len(anchors) != 1:
                raise ValueError(f"{' '.join(self.words)!r} refers to one thing, but {len(anchors)} are called so")
            anchor = things[next(iter(anchors))]
            rest = among - anchors
            if relation == "closest":
                return set(sorted(rest, key=lambda k: np.hypot(things[k].x - anchor.x, things[k].y - anchor.y))[:1])
            side = {"above": "top", "below": "bottom"}.get(relation, relation)
            return {k for k in rest if _from_side(things[k], side) < _from_side(anchor, side)}

        return test


def true_of(text: str, things: list[Thing]) -> set[int]:
    """Indices of the things that the text is true of. Raises ValueError if it cannot be read."""
    return Reader(text).expression()(things, set(range(len(things))))


def disagreements(row: dict[str, Any]) -> list[tuple[str, set[int], set[int], list[Thing]]]:
    """Expressions of a row that are true of other objects than it says: text, said, seen, and the things as seen.

    Seen is -1 where an expression cannot be understood.
    """
    things = look(np.asarray(row["image"]), [decode_mask(thing["mask"]) for thing in row["objects"]])
    wrong = []
    for expression in row["expressions"]:
        said = set(expression["object_indices"])
        try:
            seen = true_of(expression["text"], things)
        except ValueError:
            seen = {-1}
        if said != seen:
            wrong.append((expression["text"], said, seen, things))
    return wrong


def main() -> None:
    from .scenes import NAMES, SPLITS, RefScenes

    parser = argparse.ArgumentParser(description="Compare what RefScenes says with what can be seen.")
    parser.add_argument("--name", default="refscenes", choices=NAMES)
    parser.add_argument("--split", default="train", choices=list(SPLITS))
    parser.add_argument("--scenes", type=int, default=100)
    options = parser.parse_args()
    scenes, begin, texts, wrong = RefScenes(options.name, options.split), time.perf_counter(), 0, 0
    for index in range(options.scenes):
        row = scenes[index]
        texts += len(row["expressions"])
        for text, said, seen, things in disagreements(row):
            wrong += 1
            print(f"scene {index}: {text!r} is said of {sorted(said)}, but true of {sorted(seen)} among {things}")
    seconds = time.perf_counter() - begin
    print(
        f"{options.name} {options.split}: {texts - wrong} of {texts} expressions agree "
        f"in {options.scenes} scenes ({seconds:.0f} s)"
    )


if __name__ == "__main__":
    main()
