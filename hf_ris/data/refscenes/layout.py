"""Which objects a RefScenes picture holds, with deliberate distractors, and where, with partial occlusion."""

import hashlib
import random
from collections.abc import Sequence
from operator import lt
from typing import Any, NamedTuple

import numpy as np

from .shapes import CATEGORIES, COLOURS, HELD_OUT, SIZE_STEPS, SIZES, TEXTURES, TILTS, Sprite, sprite


FIELD = 128  # scenes are laid out on a square of this side, whatever size they are drawn at
MIN_VISIBLE = 0.65  # of an object's own area, and of its body's
MAX_OBJECTS = 9
_COUNTS = ((3, 8), (4, 14), (5, 18), (6, 20), (7, 17), (8, 13), (9, 10))
_COLOURS = tuple(COLOURS)
_HELD_OUT_PAIRS = sorted(HELD_OUT)
_TILTS = tuple(zip(range(len(TILTS)), (50, 25, 25), strict=True))
_PERIODS = {"small": 22, "medium": 28, "large": 36}  # of textures, in quarter pixels


class Stream:
    """Random numbers that are the same in every Python: made of `random.Random.random()`, which is guaranteed to be."""

    def __init__(self, *key: Any):
        digest = hashlib.blake2b("/".join(str(part) for part in key).encode(), digest_size=8).digest()
        self.random = random.Random(int.from_bytes(digest, "big")).random

    def below(self, n: int) -> int:
        """An integer in [0, n)."""
        return int(self.random() * n)

    def between(self, low: int, high: int) -> int:
        """An integer in [low, high]."""
        return low + int(self.random() * (high - low + 1))

    def chance(self, percent: float) -> bool:
        return self.random() * 100 < percent

    def pick(self, options: Sequence[Any]) -> Any:
        return options[int(self.random() * len(options))]

    def weighted(self, options: Sequence[tuple[Any, float]]) -> Any:
        """One of (option, weight)."""
        left = self.random() * sum(weight for _, weight in options)
        for option, weight in options:
            left -= weight
            if left < 0:
                return option
        return options[-1][0]

    def shuffled(self, options: Sequence[Any]) -> list[Any]:
        mixed = list(options)
        for i in range(len(mixed) - 1, 0, -1):
            j = self.below(i + 1)
            mixed[i], mixed[j] = mixed[j], mixed[i]
        return mixed


class Look(NamedTuple):
    category: str
    colour: str
    texture: str
    size: str


class Item(NamedTuple):
    """An object of a scene: its look, how its sprite is drawn, and its centre on the field."""

    look: Look
    side: float
    tilt: int
    flip: bool
    direction: int
    period: int
    x: int
    y: int


def is_held_out(look: Look) -> bool:
    return (look.category, look.colour) in HELD_OUT


def _random_look(rng: Stream, compositional: bool) -> Look:
    texture = rng.weighted((("plain", 40), ("striped", 20), ("dotted", 20), ("checkered", 20)))
    size = rng.weighted((("small", 35), ("medium", 37), ("large", 28)))
    if compositional and rng.chance(60):
        return Look(*rng.pick(_HELD_OUT_PAIRS), texture, size)
    return Look(rng.pick(CATEGORIES), rng.pick(_COLOURS), texture, size)


def _distractor(rng: Stream, like: Look, compositional: bool, twins: int) -> Look:
    """A look that shares something with `like`, so that one word rarely tells an object from the others."""
    fresh = _random_look(rng, compositional)
    kind = rng.weighted((("category", 28), ("colour", 17), ("texture", 12), ("size", 8), ("twin", twins), ("none", 30)))
    if kind == "category":
        return fresh._replace(category=like.category, texture=like.texture if rng.chance(50) else fresh.texture)
    if kind == "colour":
        return fresh._replace(colour=like.colour, texture=like.texture if rng.chance(30) else fresh.texture)
    if kind == "texture":
        return like._replace(texture=rng.pick([t for t in TEXTURES if t != like.texture]), size=fresh.size)
    if kind == "size":
        return like._replace(size=rng.pick([s for s in SIZES if s != like.size]))
    return like if kind == "twin" else fresh


def _looks(rng: Stream, compositional: bool, twins: int) -> list[Look]:
    """The looks of a scene in painting order: at least two held-out pairs if compositional, otherwise none."""
    count = rng.weighted(_COUNTS)
    looks: list[Look] = []
    while len(looks) < count:
        if len(looks) < (2 if compositional else 1):
            look = _random_look(rng, compositional)
            wanted = is_held_out(look) == compositional
        else:
            look = _distractor(rng, rng.pick(looks), compositional, twins)
            wanted = compositional or not is_held_out(look)
        if wanted:
            looks.append(look)
    # Mostly large before small, so that small objects lie on top of large ones and stay visible.
    return sorted(looks, key=lambda look: -SIZES.index(look.size) + (2 * rng.random() if rng.chance(20) else 0))


class _Field:
    """What lies on the field so far, and how much of each object is still visible."""

    def __init__(self):
        self.items: list[Item] = []
        # Who is seen at each pixel, as the whole object and as its body alone, which shows colour and texture.
        self.layers = [np.zeros((FIELD, FIELD), np.uint8), np.zeros((FIELD, FIELD), np.uint8)]
        self.seen: list[list[int]] = [[], []]
        self.needed: list[list[float]] = [[], []]

    def place(self, rng: Stream, item: Item) -> None:
        """Put the item where it hides no more of the others than allowed; leave it out if no such place is found."""
        drawn = sprite(item.look.category, item.side, item.tilt, item.flip)
        half_h, half_w = drawn.mask.shape[0] // 2, drawn.mask.shape[1] // 2
        near = rng.pick(self.items) if self.items and rng.chance(40) else None
        for attempt in range(24):
            if near is not None and attempt < 8:
                reach = int(near.side + item.side) // 2
                x, y = near.x + rng.between(-reach, reach), near.y + rng.between(-reach, reach)
                if not (half_w <= x < FIELD - half_w and half_h <= y < FIELD - half_h):
                    continue
            else:
                x, y = rng.between(half_w, FIELD - 1 - half_w), rng.between(half_h, FIELD - 1 - half_h)
            region = (slice(y - half_h, y + half_h + 1), slice(x - half_w, x + half_w + 1))
            apart = near is None and attempt < 12
            if self._cover(region, drawn, apart):
                self.items.append(item._replace(x=x, y=y))
                return

    def _cover(self, region: tuple[slice, slice], drawn: Sprite, apart: bool) -> bool:
        """Paint the sprite over the region unless that hides too much, or anything at all if it should lie apart."""
        count = len(self.items)
        left = []
        for layer, seen, needed in zip(self.layers, self.seen, self.needed, strict=True):
            hidden = np.bincount(layer[region][drawn.mask], minlength=count + 1).tolist()[1:]
            left.append([had - lost for had, lost in zip(seen, hidden, strict=True)])
            if apart and any(hidden) or any(map(lt, left[-1], needed)):
                return False
        for k, shape in enumerate((drawn.mask, drawn.body)):
            self.layers[k][region][drawn.mask] = 0
            self.layers[k][region][shape] = count + 1
            area = int(shape.sum())
            self.seen[k] = [*left[k], area]
            self.needed[k].append(MIN_VISIBLE * area)
        return True


def lay_out(rng: Stream, compositional: bool, twins: int) -> tuple[list[Item], np.ndarray]:
    """Objects in painting order, and the owner of each pixel of the field: uint8 (128, 128), 0 nothing, k + 1 object k.

    compositional: hold HELD_OUT pairs (otherwise there are none); twins: weight of exact copies among the distractors.
    """
    while True:
        field = _Field()
        for look in _looks(rng, compositional, twins):
            side = rng.pick(SIZE_STEPS[look.size])
            tilt = rng.weighted(_TILTS)
            field.place(rng, Item(look, side, tilt, rng.chance(50), rng.below(3), _PERIODS[look.size], 0, 0))
        held_out = any(is_held_out(item.look) for item in field.items)
        if len(field.items) >= 3 and (held_out or not compositional):
            return field.items, field.layers[0]
