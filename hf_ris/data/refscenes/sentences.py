"""Referring expressions of RefScenes: what can be said of a scene, in words that are true of exactly their target.

Each candidate is a claim over all objects with three answers (yes, no, too close to call), and is kept only if the
answer is clear for every object. Sets of objects are bit masks, lengths pixels of a 128-pixel image.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from .layout import FIELD, Stream
from .shapes import CATEGORIES, COLOURS, SIZES


# Words for each value; the first is the usual one and is listed twice to be twice as likely.
NOUNS = {category: (category,) for category in CATEGORIES} | {
    "cup": ("cup", "cup", "mug"),
    "moon": ("moon", "moon", "crescent"),
    "chair": ("chair", "chair", "seat"),
    "umbrella": ("umbrella", "umbrella", "parasol"),
    "boat": ("boat", "boat", "ship"),
}
_PLURALS = {"fish": "fish"}
COLOUR_WORDS = {colour: (colour,) for colour in COLOURS} | {"purple": ("purple", "purple", "violet")}
SIZE_WORDS = {"small": ("small", "small", "little"), "medium": ("medium",), "large": ("large", "big")}
TEXTURE_WORDS = {
    "plain": ("plain",),
    "striped": ("striped",),
    "dotted": ("dotted", "dotted", "spotted"),
    "checkered": ("checkered", "checkered", "checked"),
}
_PATTERNS = {"striped": "stripes", "dotted": "dots", "checkered": "checks"}
_SIDES = ("left", "right", "top", "bottom")
_CORNERS = (("top", "left"), ("top", "right"), ("bottom", "left"), ("bottom", "right"))
_FURTHEST = {
    "left": ("leftmost {}", "far left {}", "{} furthest to the left", "{} furthest left"),
    "right": ("rightmost {}", "far right {}", "{} furthest to the right", "{} furthest right"),
    "top": ("topmost {}", "highest {}", "{} closest to the top", "{} nearest the top"),
    "bottom": ("bottommost {}", "lowest {}", "{} closest to the bottom", "{} nearest the bottom"),
}
BESIDE = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "top": ("above", "over"),
    "bottom": ("below", "under"),
    "closest": ("closest to", "nearest to"),
    "next": ("next to", "beside"),
}
_ORDINALS = ("first", "second", "third", "fourth")
LOCATION_WORDS = frozenset(
    "left right top bottom upper lower middle center corner side leftmost rightmost topmost bottommost far furthest "
    "highest lowest first second third fourth from above over below under next beside closest nearest picture "
    "image".split()
)
# Lengths in pixels of the 128-pixel field, (yes up to, no from); between them it is too close to call.
_HALF = (0.42 * FIELD, 0.56 * FIELD)
_CORNER = (0.30 * FIELD, 0.42 * FIELD)
_MIDDLE = (0.13 * FIELD, 0.25 * FIELD)
_CLEAR_SIZES = {"small": (0, 285), "medium": (309, 700), "large": (760, FIELD * FIELD)}
_RELATION = (-9.0, 6.0)  # of the coordinate seen from the other object
_GAP = 8.0  # between neighbours in an order


def plural(noun: str) -> str:
    return _PLURALS.get(noun, noun + "s")


def _vocabulary() -> tuple[str, ...]:
    words = set(LOCATION_WORDS) | set(_PATTERNS.values())
    for table in (NOUNS, COLOUR_WORDS, SIZE_WORDS, TEXTURE_WORDS):
        words.update(word for options in table.values() for word in options)
    words.update(plural(noun) for options in NOUNS.values() for noun in options)
    words.update(
        "a an the all one ones thing things object objects that which is are not with without in on at to of".split()
    )
    words.update("and biggest largest smallest".split())
    return tuple(sorted(words))


VOCABULARY = _vocabulary()


Point = tuple[float, float]


class Seen(NamedTuple):
    """What can be seen of an object: its look, its visible pixels, how many they were if nothing hid it, its place.

    A place is clear if the middle of the box around the visible pixels and their centroid both say so; `places` holds
    the two. width and height are the box's.
    """

    category: str
    colour: str
    texture: str
    area: int
    whole: int
    places: tuple[Point, Point]
    width: float
    height: float


def along(x: float, y: float, side: str) -> float:
    """How far a point lies from a side of the picture."""
    if side in ("left", "top"):
        return x if side == "left" else y
    return FIELD - (x if side == "right" else y)


class Claim(NamedTuple):
    """Bit masks of the objects it is true of, and of those too close to call."""

    yes: int
    maybe: int

    def __and__(self, other: "Claim") -> "Claim":
        yes = self.yes & other.yes
        return Claim(yes, (self.yes | self.maybe) & (other.yes | other.maybe) & ~yes)

    def but_not(self, other: "Claim") -> "Claim":
        yes = self.yes & ~(other.yes | other.maybe)
        return Claim(yes, (self.yes | self.maybe) & ~other.yes & ~yes)


Kind = tuple[str, ...]  # attribute names
Sentence = tuple[str, int]  # text, bit mask of its targets
_SUBSETS: tuple[Kind, ...] = tuple(
    tuple(name for k, name in enumerate(("category", "colour", "texture", "size")) if bits >> k & 1)
    for bits in range(16)
)


class World:
    """A scene as its visible objects, with the claims that can be made about them."""

    def __init__(self, objects: list[Seen], rng: Stream):
        self.objects, self.rng = objects, rng
        self.n = len(objects)
        self.all = (1 << self.n) - 1
        self.sizes = [
            next((size for size in SIZES if _CLEAR_SIZES[size][0] <= o.area <= _CLEAR_SIZES[size][1]), "")
            for o in objects
        ]
        self.unsized = sum(1 << k for k, size in enumerate(self.sizes) if not size)
        self.has: dict[tuple[str, str], int] = {}
        for k in range(self.n):
            for name in ("category", "colour", "texture", "size"):
                key = (name, self.value(k, name))
                self.has[key] = self.has.get(key, 0) | 1 << k
        # Tries ask the same things again and again.
        self._names: dict[int, list[tuple[Kind, float]]] = {}
        self._likes: dict[tuple[int, Kind], Claim] = {}
        self._wheres: dict[tuple[str, int], Claim] = {}

    def value(self, k: int, name: str) -> str:
        return self.sizes[k] if name == "size" else getattr(self.objects[k], name)

    def attribute(self, name: str, value: str) -> Claim:
        return Claim(self.has.get((name, value), 0), self.unsized if name == "size" else 0)

    def like(self, k: int, kind: Kind) -> Claim:
        """True of the objects that share these attributes with object k."""
        if (k, kind) not in self._likes:
            claim = Claim(self.all, 0)
            for name in kind:
                claim &= self.attribute(name, self.value(k, name))
            self._likes[k, kind] = claim
        return self._likes[k, kind]

    def sayable(self, k: int, kind: Kind) -> bool:
        return "size" not in kind or bool(self.sizes[k])

    # --- words of a noun phrase

    def noun_phrase(self, k: int, kind: Kind, many: bool = False) -> str:
        """ "small red cup with stripes" out of the attributes `kind` of object k."""
        rng = self.rng
        before, after = [], ""
        if "colour" in kind:
            before.append(rng.pick(COLOUR_WORDS[self.objects[k].colour]))
        if "texture" in kind:
            name = self.objects[k].texture
            if name != "plain" and rng.chance(30):
                after = " with " + _PATTERNS[name]
            else:
                before.append(rng.pick(TEXTURE_WORDS[name]))
        before = rng.shuffled(before)
        if "size" in kind:
            before.insert(0, rng.pick(SIZE_WORDS[self.sizes[k]]))
        if "category" in kind:
            noun = rng.pick(NOUNS[self.objects[k].category])
        else:
            noun = rng.pick(("thing", "object", "one", "one") if before else ("thing", "object"))
        noun = plural(noun) if many else noun
        return " ".join([*before, noun]) + after

    def article(self, text: str, formal: bool = False) -> str:
        """The same with "the", or in formal texts sometimes with "a"; often with nothing."""
        if formal and self.rng.chance(35):
            return an(text)
        return "the " + text if formal or self.rng.chance(50) else text

    # --- places

    def where(
        self, name: str, test: Callable[[float, float], float], bounds: tuple[float, float], anchor: int = -1
    ) -> Claim:
        """Yes where test(x, y) is below the first bound, no where it is not below the second.

        With an anchor, x and y are seen from that object. One name, one test.
        """
        if (name, anchor) in self._wheres:
            return self._wheres[name, anchor]
        yes = maybe = 0
        for k in range(self.n):
            values = self._values(test, k, anchor)
            if max(values) < bounds[0]:
                yes |= 1 << k
            elif min(values) < bounds[1]:
                maybe |= 1 << k
        self._wheres[name, anchor] = Claim(yes, maybe)
        return self._wheres[name, anchor]

    def _values(self, test: Callable[[float, float], float], k: int, anchor: int) -> tuple[float, ...]:
        origins = self.objects[anchor].places if anchor >= 0 else ((0.0, 0.0), (0.0, 0.0))
        return tuple(test(x - u, y - v) for (x, y), (u, v) in zip(self.objects[k].places, origins, strict=True))

    def side(self, side: str) -> Claim:
        return self.where(side, lambda x, y: along(x, y, side), _HALF)

    def sides(self, k: int) -> list[str]:
        """The sides of the picture that object k lies at, in the middle of it all of them."""
        return [side for side in _SIDES if along(*self.objects[k].places[0], side) < _HALF[0]] or list(_SIDES)

    def corner(self, first: str, second: str) -> Claim:
        return self.where(first + second, lambda x, y: max(along(x, y, first), along(x, y, second)), _CORNER)

    def middle(self) -> Claim:
        return self.where("middle", lambda x, y: max(abs(x - FIELD / 2), abs(y - FIELD / 2)), _MIDDLE)

    def order(self, head: Claim, test: Callable[[float, float], float], depth: int, anchor: int = -1) -> list[int]:
        """The head's objects by test(x, y), lowest first; empty unless the head and its first `depth` ranks are clear.

        A rank is clear if whoever holds it comes well before all later ones.
        """
        if head.maybe:
            return []
        ranked = sorted((self._values(test, k, anchor), k) for k in range(self.n) if head.yes >> k & 1)
        for i in range(min(depth, len(ranked) - 1)):
            for values, _ in ranked[i + 1 :]:
                if any(b - a < _GAP for a, b in zip(ranked[i][0], values, strict=True)):
                    return []
        return [k for _, k in ranked]

    def beside(self, relation: str, head: Claim, anchor: int) -> Claim:
        """Objects of the head in this relation to the anchor object."""
        others = head.but_not(Claim(1 << anchor, 0))
        if relation in _SIDES:
            sign = 1 if relation in ("left", "top") else -1
            axis = 0 if relation in ("left", "right") else 1
            return others & self.where(relation, lambda *point: sign * point[axis], _RELATION, anchor)
        unclear = Claim(0, self.all)
        ranked = self.order(others, lambda x, y: math.sqrt(x * x + y * y), 1, anchor)
        if not ranked:
            return unclear
        if relation == "next":
            near, there = self.objects[ranked[0]], self.objects[anchor]
            dx, dy = (abs(a - b) for a, b in zip(near.places[0], there.places[0], strict=True))
            if max(dx - (near.width + there.width) / 2, dy - (near.height + there.height) / 2) > 10:
                return unclear
        return Claim(1 << ranked[0], 0)

    def plainly(self, relation: str, k: int, anchor: int) -> bool:
        """Whether one would naturally name this relation: mostly sideways for left, mostly upwards for above."""
        (x, y), (u, v) = self.objects[k].places[0], self.objects[anchor].places[0]
        if relation in ("left", "right"):
            return abs(y - v) <= 1.2 * abs(x - u)
        return relation not in ("top", "bottom") or abs(x - u) <= 1.2 * abs(y - v)

    def names(self, k: int) -> list[tuple[Kind, float]]:
        """Ways to name object k by its look alone, with weights: short ones preferred, needless words seldom."""
        if k in self._names:
            return self._names[k]
        unique = [
            kind for kind in _SUBSETS if kind and self.sayable(k, kind) and self.like(k, kind) == Claim(1 << k, 0)
        ]
        options = []
        for kind in unique:
            weight = (0.0, 3.0, 6.0, 3.0, 1.0)[len(kind)]
            weight *= 1.0 if "category" in kind else 0.4
            weight *= 0.3 if "texture" in kind and self.objects[k].texture == "plain" else 1.0
            weight *= 1.0 if "size" not in kind else 0.2 if self.sizes[k] == "medium" else 0.6
            weight *= 0.35 if any(set(other) < set(kind) for other in unique) else 1.0
            options.append((kind, weight))
        self._names[k] = options
        return options


def an(text: str) -> str:
    return ("an " if text[0] in "aeiou" else "a ") + text


_HEADS = (
    (("category",), 40),
    (("category", "colour"), 22),
    (("colour",), 16),
    ((), 8),
    (("texture",), 4),
    (("category", "texture"), 6),
    (("category", "size"), 4),
)


def _head(world: World, k: int, crowd: int = 80) -> tuple[Kind, Claim] | None:
    """A noun phrase true of object k for something to be added to; with `crowd` percent it must not be k's alone."""
    kind = world.rng.weighted(_HEADS)
    if not world.sayable(k, kind):
        return None
    claim = world.like(k, kind)
    alone = claim.yes == 1 << k
    return None if alone and world.rng.chance(crowd) else (kind, claim)


def settle(text: str, claim: Claim, k: int) -> Sentence | None:
    return (text, 1 << k) if claim == Claim(1 << k, 0) else None


def appearance(world: World, k: int) -> Sentence | None:
    """ "red cup", "the small striped fish", "biggest hat"."""
    rng = world.rng
    if rng.chance(14):
        return _size_superlative(world, k)
    options = world.names(k)
    if not options:
        return None
    kind = rng.weighted(options)
    if kind == ("category", "colour") and rng.chance(7):
        text = f"{world.noun_phrase(k, ('category',))} that is {rng.pick(COLOUR_WORDS[world.objects[k].colour])}"
    else:
        text = world.noun_phrase(k, kind)
    return world.article(text), 1 << k


def _size_superlative(world: World, k: int) -> Sentence | None:
    kind = world.rng.weighted(((("category",), 50), (("colour",), 20), (("category", "colour"), 15), ((), 15)))
    head, this = world.like(k, kind), world.objects[k]
    others = [o for j, o in enumerate(world.objects) if head.yes >> j & 1 and j != k]
    if head.maybe or not others:
        return None
    if all(this.area > 1.35 * o.area and this.whole > 1.15 * o.whole for o in others):
        word = world.rng.pick(("biggest", "largest"))
    elif all(1.35 * this.area < o.area and 1.15 * this.whole < o.whole for o in others):
        word = "smallest"
    else:
        return None
    return world.article(f"{word} {world.noun_phrase(k, kind)}"), 1 << k


def _side_words(rng: Stream, side: str) -> str:
    if side in ("left", "right"):
        return rng.pick((f"on the {side}", f"on the {side}", f"on the {side} side"))
    return f"at the {side}"


def location(world: World, k: int) -> Sentence | None:
    """ "cup on the left", "top left star", "leftmost red ball", "second tree from the right"."""
    rng = world.rng
    found = _head(world, k)
    if found is None:
        return None
    kind, head = found
    form = rng.weighted((("side", 32), ("corner", 14), ("middle", 12), ("furthest", 24), ("ordinal", 18)))
    if form == "furthest":
        side = rng.pick(_SIDES)
        ranked = world.order(head, lambda x, y: along(x, y, side), 1)
        if len(ranked) < 2 or ranked[0] != k:
            return None
        return world.article(rng.pick(_FURTHEST[side]).format(world.noun_phrase(k, kind))), 1 << k
    if form == "ordinal":
        return _ordinal(world, k, kind, head)
    phrase = world.noun_phrase(k, kind)
    if form == "side":
        side = rng.pick(world.sides(k))
        claim = head & world.side(side)
        short = {"top": rng.pick(("top", "upper")), "bottom": rng.pick(("bottom", "lower"))}.get(side, side)
        text = f"{short} {phrase}" if rng.chance(45) else f"{phrase} {_side_words(rng, side)}"
    elif form == "corner":
        corner = rng.pick(_CORNERS)
        claim = head & world.corner(*corner)
        name = " ".join(corner)
        text = (
            f"{name} {phrase}" if rng.chance(45) else f"{phrase} in the {name}" + (" corner" if rng.chance(60) else "")
        )
    else:
        claim = head & world.middle()
        word = rng.pick(("middle", "center"))
        text = f"{word} {phrase}" if rng.chance(40) else f"{phrase} in the {word}"
    return settle(world.article(text), claim, k)


def _ordinal(world: World, k: int, kind: Kind, head: Claim) -> Sentence | None:
    side = world.rng.weighted((("left", 35), ("right", 35), ("top", 15), ("bottom", 15)))
    place = world.rng.weighted(((0, 14), (1, 50), (2, 26), (3, 10)))
    # Every place up to the target's must be clear, or people would count differently.
    ranked = world.order(head, lambda x, y: along(x, y, side), place + 1)
    if len(ranked) < 2 or ranked[place : place + 1] != [k]:
        return None
    return world.article(f"{_ORDINALS[place]} {world.noun_phrase(k, kind)} from the {side}"), 1 << k


def pick_anchor(world: World, k: int) -> tuple[int, str] | None:
    """Another object that its look alone names, and its name."""
    anchor = world.rng.below(world.n)
    options = [(kind, weight * (1.0 if "category" in kind else 0.3)) for kind, weight in world.names(anchor)]
    if anchor == k or not options:
        return None
    return anchor, "the " + world.noun_phrase(anchor, world.rng.weighted(options))


def relation(world: World, k: int) -> Sentence | None:
    """ "the star above the green car", "cup next to the blue fish"."""
    rng = world.rng
    found, anchored = _head(world, k, crowd=85), pick_anchor(world, k)
    if found is None or anchored is None:
        return None
    (kind, head), (anchor, name) = found, anchored
    how = rng.weighted((("left", 18), ("right", 18), ("top", 18), ("bottom", 18), ("closest", 16), ("next", 12)))
    if not world.plainly(how, k, anchor):
        return None
    link = " that is " if rng.chance(15) else " "
    text = f"{world.noun_phrase(k, kind)}{link}{rng.pick(BESIDE[how])} {name}"
    return settle(world.article(text), world.beside(how, head, anchor), k)


def _denial(world: World, k: int, kind: Kind, head: Claim, places: bool, many: bool) -> tuple[str, Claim] | None:
    """Something that is not true of k but of another object of the head, as words and as the claim that remains."""
    rng = world.rng
    names = [name for name in ("category", "colour", "texture", "size") if name not in kind]
    name = rng.pick([*names, "place", "place"] if places else names)
    link = f"{rng.pick(('that', 'which'))} {'are' if many else 'is'} not "
    if name == "place":
        side = rng.pick(_SIDES)
        denied, words = world.side(side), _side_words(rng, side)
        link = rng.pick((link, "not "))
    else:
        other = rng.below(world.n)
        value = world.value(other, name)
        if not head.yes >> other & 1 or value in ("", "medium", world.value(k, name)):
            return None
        denied = world.attribute(name, value)
        if name == "category":
            noun = rng.pick(NOUNS[value])
            words = plural(noun) if many else an(noun)
        elif name == "texture" and value != "plain" and rng.chance(40):
            link, words = "without ", _PATTERNS[value]
        else:
            words = rng.pick({"colour": COLOUR_WORDS, "texture": TEXTURE_WORDS, "size": SIZE_WORDS}[name][value])
    return (link + words, head.but_not(denied)) if head.yes & denied.yes else None


def negation(world: World, k: int, places: bool = True) -> Sentence | None:
    """ "cup that is not red", "the dog not on the left", "star without stripes"."""
    found = _head(world, k, crowd=100)
    if found is None:
        return None
    denial = _denial(world, k, *found, places, many=False)
    if denial is None:
        return None
    return settle(world.article(f"{world.noun_phrase(k, found[0])} {denial[0]}"), denial[1], k)


def appearance_negation(world: World, k: int) -> Sentence | None:
    return negation(world, k, places=False)


def _clause(world: World, k: int, kind: Kind, head: Claim) -> tuple[str, Claim] | None:
    """One relative clause of a long sentence: a relation, or a place in the picture."""
    rng = world.rng
    if rng.chance(70):
        anchored = pick_anchor(world, k)
        how = rng.weighted((("left", 20), ("right", 20), ("top", 20), ("bottom", 20), ("closest", 10), ("next", 10)))
        if anchored is None or not world.plainly(how, k, anchored[0]):
            return None
        return f"{rng.pick(BESIDE[how])} {anchored[1]}", world.beside(how, head, anchored[0])
    frame = rng.pick(("picture", "image"))
    form = rng.weighted((("side", 60), ("corner", 25), ("middle", 15)))
    if form == "side":
        side = rng.pick(world.sides(k))
        words = f"on the {side} side of" if side in ("left", "right") else f"at the {side} of"
        return f"{words} the {frame}", head & world.side(side)
    if form == "corner":
        corner = rng.pick(_CORNERS)
        return f"in the {' '.join(corner)} corner of the {frame}", head & world.corner(*corner)
    return f"in the {rng.pick(('middle', 'center'))} of the {frame}", head & world.middle()


def sentence(world: World, k: int) -> Sentence | None:
    """ "a large red cup that is to the left of the striped fish", sometimes with two clauses or a denial."""
    rng = world.rng
    kind = rng.weighted(
        (
            (("category", "colour"), 35),
            (("category", "texture"), 14),
            (("category", "size"), 10),
            (("category", "colour", "texture"), 16),
            (("category", "colour", "size"), 11),
            (("category",), 14),
        )
    )
    if not world.sayable(k, kind):
        return None
    head = world.like(k, kind)
    if head == Claim(1 << k, 0) and rng.chance(45):
        return None
    first = _clause(world, k, kind, head)
    if first is None:
        return None
    text, claim = f"{rng.pick(('that is', 'which is', 'that is', ''))} {first[0]}", first[1]
    extra = rng.below(100)
    if extra < 30:
        second = _clause(world, k, kind, head)
        if second is None or second[0].replace("image", "picture") == first[0].replace("image", "picture"):
            return None
        text, claim = f"{text} and {second[0]}", claim & second[1]
    elif extra < 38:
        denial = _denial(world, k, kind, head, places=False, many=False)
        if denial is None or denial[0].startswith("without"):
            return None
        text, claim = f"{text} and {denial[0]}", claim & denial[1]
    text = " ".join(f"{world.noun_phrase(k, kind)} {text}".split())
    return settle(world.article(text, formal=True), claim, k)


_FORMS = (("look", 58), ("place", 16), ("relation", 14), ("denial", 12))


def group(form: str, world: World, k: int) -> Sentence | None:
    """A phrase for object k and all others it is true of: "red cups", "all striped things", "stars that are not red".

    form: one of _FORMS, what is said besides the noun phrase.
    """
    rng = world.rng
    kind = rng.weighted(
        (
            *_HEADS,
            (("colour", "texture"), 8),
            (("category", "colour", "texture"), 5),
            (("size",), 4),
            (("colour", "size"), 6),
        )
    )
    if not world.sayable(k, kind):
        return None
    claim, tail = world.like(k, kind), None
    many_before = claim.yes & (claim.yes - 1) != 0
    if not kind and form == "look" or form != "look" and not many_before:
        return None
    if form == "place":
        side = rng.pick(_SIDES)
        tail, claim = _side_words(rng, side), claim & world.side(side)
    elif form == "relation":
        anchored, how = pick_anchor(world, k), rng.pick(_SIDES)
        if anchored is None:
            return None
        tail, claim = f"{rng.pick(BESIDE[how])} {anchored[1]}", world.beside(how, claim, anchored[0])
    many = claim.yes & (claim.yes - 1) != 0
    if form == "denial":
        state = rng.below(2) == 1  # the number of targets is known only after the denial is chosen
        denial = _denial(world, k, kind, claim, places=False, many=state)
        if denial is None:
            return None
        tail, claim = denial
        many = claim.yes & (claim.yes - 1) != 0
        if many != state:
            return None
    if claim.maybe or not claim.yes >> k & 1 or not many and rng.chance(45):
        return None
    text = world.noun_phrase(k, kind, many) + (f" {tail}" if tail else "")
    if many and rng.chance(20):
        return f"all {text}", claim.yes
    return ("the " if rng.chance(30) else "") + text, claim.yes


Maker = Callable[[World, int], Sentence | None]
# What is said in which share. Where a scene does not allow the kind drawn, another one is drawn, mostly a look.
MAKERS: dict[str, tuple[tuple[Maker, float], ...]] = {
    "refscenes": ((appearance, 36), (location, 33), (relation, 23), (negation, 10)),
    "refscenes_plus": ((appearance, 85), (appearance_negation, 15)),
    "refscenes_g": ((sentence, 100),),
    "phrasescenes": tuple((partial(group, form), share) for form, share in _FORMS),
}


def expressions(objects: list[Seen], flavour: str, allowed: int, rng: Stream) -> list[Sentence]:
    """Distinct texts for a scene, each with the bit mask of its targets: two to four for an object where possible.

    allowed: bit mask of the objects that may be targets.
    """
    world = World(objects, rng)
    said: dict[str, int] = {}
    for k in range(world.n):
        if not allowed >> k & 1:
            continue
        wanted = rng.weighted(((2, 45), (3, 45), (4, 10)))
        for _ in range(wanted + 3):
            if wanted == 0:
                break
            maker = rng.weighted(MAKERS[flavour])
            for _ in range(14):
                made = maker(world, k)
                if made is not None and made[0] not in said and not made[1] & ~allowed:
                    said[made[0]] = made[1]
                    wanted -= 1
                    break
    return rng.shuffled(list(said.items()))
