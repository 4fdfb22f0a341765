"""How the objects of Moving RefScenes move, and what can be said of it.

A path is a list of corners (time, x, y) with straight lines between them; time runs from 0 to 64 over the clip, places
are whole pixels of the 128-pixel field. However many frames a clip has, they lie evenly on the same path.
"""

from typing import NamedTuple

from .layout import Stream


CLIP = 64  # units of time in a clip
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SLOW, FAST = (26, 34), (58, 74)  # pixels of a steady motion over the whole clip
KINDS = ("still", "steady", "stops", "starts", "turns", "bounces", "behind")
_WEIGHTS = (("still", 9), ("steady", 46), ("stops", 12), ("starts", 12), ("turns", 10), ("bounces", 11))
_PHRASES = {
    "left": ("moving to the left", "that moves to the left", "moving left", "that goes to the left"),
    "right": ("moving to the right", "that moves to the right", "moving right", "that goes to the right"),
    "up": ("moving up", "that moves up", "that rises"),
    "down": ("moving down", "that moves down", "that falls"),
    "still": ("that stands still", "standing still", "that does not move"),
    "stops": ("that stops", "that moves and then stops"),
    "starts": ("that starts to move", "that stands still and then moves"),
    "turns": ("that turns around", "that goes back"),
    "bounces": ("that bounces", "bouncing", "that jumps up and down"),
}
CLAIMS = tuple(_PHRASES)
MOTION_WORDS = frozenset(" ".join(phrase for phrases in _PHRASES.values() for phrase in phrases).split()) | frozenset(
    "fastest slowest moves moving passes passing behind".split()
)


class Motion(NamedTuple):
    """kind: of KINDS. direction: of the first part of the way, "" for none. length: pixels of its longest straight."""

    kind: str
    direction: str
    length: int


def draw_motion(rng: Stream) -> Motion:
    kind = rng.weighted(_WEIGHTS)
    if kind == "still":
        return Motion(kind, "", 0)
    if kind == "bounces":
        return Motion(kind, "up", rng.between(14, 22))
    if kind == "turns":
        return Motion(kind, rng.pick(("left", "right")), rng.between(34, 50))
    direction = rng.pick(tuple(DIRECTIONS))
    if kind == "steady":
        return Motion(kind, direction, rng.between(*(FAST if rng.chance(50) else SLOW)))
    return Motion(kind, direction, rng.between(38, 60))


def path(motion: Motion, rng: Stream) -> list[tuple[int, int, int]]:
    """Corners (time, x, y) of the motion from the origin."""
    dx, dy = (motion.length * step for step in DIRECTIONS.get(motion.direction, (0, 0)))
    change = rng.between(26, 36)  # when one that stops has stopped, one that starts has not
    if motion.kind == "stops":
        return [(0, 0, 0), (change, dx, dy), (CLIP, dx, dy)]
    if motion.kind == "starts":
        return [(0, 0, 0), (change, 0, 0), (CLIP, dx, dy)]
    if motion.kind == "turns":
        return [(0, 0, 0), (CLIP // 2, dx, dy), (CLIP, 0, 0)]
    if motion.kind == "bounces":
        return [(0, 0, 0), (16, dx, dy), (32, 0, 0), (48, dx, dy), (CLIP, 0, 0)]
    return [(0, 0, 0), (CLIP, dx, dy)]


def place_at(corners: list[tuple[int, int, int]], step: int, last: int) -> tuple[int, int]:
    """Where the path is at frame `step` of 0 to `last`, whole pixels."""
    time = step * CLIP  # in units of 1/last
    for (t0, x0, y0), (t1, x1, y1) in zip(corners, corners[1:]):
        if time <= t1 * last:
            part, whole = time - t0 * last, (t1 - t0) * last
            return _between(x0, x1, part, whole), _between(y0, y1, part, whole)
    raise ValueError(f"frame {step} lies beyond the last one, {last}")


def _between(a: int, b: int, part: int, whole: int) -> int:
    """a + (b - a) * part / whole, rounded to the nearest, halves away from a."""
    way = (2 * abs(b - a) * part + whole) // (2 * whole)
    return a + way if b > a else a - way


def holds(claim: str, motion: Motion) -> bool | None:
    """Whether a claim of CLAIMS is true of the motion; None where one could argue about it."""
    if claim in DIRECTIONS:
        if motion.kind in ("turns", "bounces"):
            sideways = claim in ("left", "right")
            return None if sideways == (motion.kind == "turns") else False
        return motion.kind != "still" and motion.direction == claim
    if claim == "still":
        return None if motion.kind in ("stops", "starts") else motion.kind == "still"
    return motion.kind == claim


def said_of(claim: str, rng: Stream) -> str:
    return rng.pick(_PHRASES[claim])
