"""Expressions of RefScenes that hinge on a second thing, with that thing told: "the star next to the green car".

For training alone. A row of the benchmark says what an expression refers to, not how one gets there; here it is also
known which object is the landmark (the green car) and which ones are candidates (all stars but a landmark).
"""

from typing import NamedTuple

from .layout import Stream
from .scenes import VERSION, RefScenes
from .sentences import BESIDE, Claim, Kind, World, pick_anchor, settle


# What the candidates have in common; often nothing, which RefScenes itself seldom says ("the thing next to the cup"):
# then they are many, and only the landmark tells which one is meant.
_HEADS: tuple[tuple[Kind, float], ...] = (
    ((), 40),
    (("category",), 25),
    (("colour",), 20),
    (("texture",), 10),
    (("size",), 5),
)
_WAYS = (("closest", 16), ("next", 12), ("left", 2), ("right", 2), ("top", 2), ("bottom", 2))
_PER_OBJECT = 2
_TRIES = 25


class ByLandmark(NamedTuple):
    """An expression and indices into a row's `objects`: what it refers to, the landmark, and at least two candidates,
    of which the target is one. `head` and `name` are the parts of the text that say candidates and landmark."""

    text: str
    head: str
    name: str
    target: int
    landmark: int
    candidates: tuple[int, ...]


def by_landmark(scenes: RefScenes, index: int) -> list[ByLandmark]:
    """Expressions for row `index` of `scenes`, up to two for each object; the same whenever asked."""
    world = World(scenes.seen(index), Stream(VERSION, scenes.family, scenes.split, index, "landmarks"))
    said: dict[str, ByLandmark] = {}
    for k in range(world.n):
        wanted = len(said) + _PER_OBJECT
        for _ in range(_TRIES):
            made = _relate(world, k)
            if made is not None:
                said.setdefault(made.text, made)
            if len(said) == wanted:
                break
    return list(said.values())


def _relate(world: World, k: int) -> ByLandmark | None:
    rng = world.rng
    kind = rng.weighted(_HEADS)
    anchored = pick_anchor(world, k)
    if anchored is None or not world.sayable(k, kind):
        return None
    (landmark, name), head = anchored, world.like(k, kind)
    candidates = head.but_not(Claim(1 << landmark, 0))
    how = rng.weighted(_WAYS)
    if head.maybe or candidates.yes.bit_count() < 2 or not world.plainly(how, k, landmark):
        return None
    link = " that is " if rng.chance(15) else " "
    said = world.noun_phrase(k, kind)
    text = world.article(f"{said}{link}{rng.pick(BESIDE[how])} {name}")
    if settle(text, world.beside(how, head, landmark), k) is None:
        return None
    return ByLandmark(text, said, name, k, landmark, tuple(j for j in range(world.n) if candidates.yes >> j & 1))
