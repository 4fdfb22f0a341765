"""An independent judge of Moving RefScenes: reads a text, looks at the frames and their masks, says what it is true of.

    python -m hf_ris.data.refscenes.moving_checker --split test --clips 200

It knows nothing of the generator's motions: how a thing moves is read from where its visible pixels lie, frame by
frame, what it looks like from the first frame as in `checker.py`. For 128-pixel frames.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..schema import decode_mask
from .checker import Reader, look


_WHOLE = 0.93  # of a thing's largest visible area: there its middle is where it is seen to be
_STEADY = 2.0  # pixels that a thing at rest may seem to move
_MOVED = 6.0


class Track(NamedTuple):
    """What the masks of one thing show: frames in which it is whole, its middle there (n, 2), and its area in all."""

    frames: np.ndarray
    places: np.ndarray
    areas: np.ndarray


def track(masks: list[np.ndarray]) -> Track:
    """masks: bool (H, W) of each frame."""
    areas = np.array([np.count_nonzero(mask) for mask in masks])
    frames = np.flatnonzero(areas >= _WHOLE * areas.max())
    places = np.array([np.argwhere(masks[frame]).mean(0)[::-1] for frame in frames])
    return Track(frames, places, areas)


def _spread(places: np.ndarray) -> float:
    return float((places.max(0) - places.min(0)).max()) if len(places) else 0.0


def stands(one: Track) -> bool:
    return _spread(one.places) <= _STEADY


def returns(one: Track) -> bool:
    """It ends where it began, and was elsewhere; where its last frames do not show it whole, it went on as before."""
    if _spread(one.places) <= _MOVED:
        return False
    last = one.places[-1]
    unseen = len(one.areas) - 1 - one.frames[-1]
    end = last + unseen * (last - one.places[-2]) / (one.frames[-1] - one.frames[-2])
    first, low, high = one.places[0], np.minimum(last, end) - 3, np.maximum(last, end) + 3
    return bool(np.all((low <= first) & (first <= high)))


def heads(one: Track, side: str) -> bool:
    """It ends clearly on that side of where it began, and nowhere turned back."""
    axis, sign = {"left": (0, -1), "right": (0, 1), "up": (1, -1), "down": (1, 1)}[side]
    way = sign * one.places[:, axis]
    return not returns(one) and way[-1] - way[0] > _MOVED and float(np.diff(way).min()) > -1.5


def _rests(one: Track, last: bool) -> bool:
    """It is at rest in the last (first) third of the clip, but not in all of it."""
    third = len(one.areas) // 3
    near = one.frames >= len(one.areas) - third if last else one.frames < third
    return not stands(one) and not returns(one) and bool(near.any()) and _spread(one.places[near]) <= _STEADY


def turns(one: Track, upright: bool) -> bool:
    """It comes back, on an upright way or a level one."""
    spread = one.places.max(0) - one.places.min(0)
    return returns(one) and bool(spread[1] > spread[0]) == upright


def hidden_by(one: Track, other: Track, other_masks: list[np.ndarray]) -> bool:
    """In the frames in which little of `one` is seen, where it must be then is inside the other, which is whole.

    Or up to 4 pixels beside it: a thing of which 0.6 are still to be seen has its middle at the other's edge.
    """
    least = np.flatnonzero(one.areas < 0.6 * one.areas.max())
    if not len(least) or other.areas[least].min() < _WHOLE * other.areas.max():
        return False
    x, y = (np.interp(least, one.frames, one.places[:, axis]) for axis in (0, 1))
    rows, columns = (np.flatnonzero(other_masks[least[0]].any(axis)) for axis in (1, 0))
    inside = [(edge[0] - 4 <= at) & (at <= edge[-1] + 4) for at, edge in ((x, columns), (y, rows))]
    return bool(np.all(inside))


_SAID: dict[str, Callable[[Track], bool]] = {
    "stands still and then moves": lambda one: _rests(one, last=False),
    "starts to move": lambda one: _rests(one, last=False),
    "moves and then stops": lambda one: _rests(one, last=True),
    "stops": lambda one: _rests(one, last=True),
    "stands still": stands,
    "standing still": stands,
    "does not move": stands,
    "turns around": lambda one: turns(one, upright=False),
    "goes back": lambda one: turns(one, upright=False),
    "jumps up and down": lambda one: turns(one, upright=True),
    "bounces": lambda one: turns(one, upright=True),
    "bouncing": lambda one: turns(one, upright=True),
    "rises": lambda one: heads(one, "up"),
    "falls": lambda one: heads(one, "down"),
}
_SIDES = ("left", "right", "up", "down")
_GOES = {
    f"{verb} {way}": side
    for verb in ("moves", "moving", "goes")
    for side in _SIDES
    for way in ((f"to the {side}", side) if side in ("left", "right") else (side,))
}
_BEHIND = ("passes behind the", "passing behind the", "moves behind the")


def true_of(text: str, things: list, tracks: list[Track], masks: list[list[np.ndarray]]) -> set[int]:
    """Indices of the things that the text is true of. masks: of each thing, of each frame.

    Raises ValueError if it cannot be read.
    """
    reader, everything = Reader(text), set(range(len(things)))
    reader.need("the")
    speed = reader.sees("fastest", "slowest")
    named = reader.noun_phrase()(things, everything)
    if reader.at == len(reader.words) and speed is None:
        return named
    reader.sees("that", "which")
    if speed is None:
        ending = reader.sees("moves fastest", "moves slowest")
        speed = ending and ending.split()[1]
    if speed is not None:
        lengths = {k: float(np.abs(tracks[k].places[-1] - tracks[k].places[0]).max()) for k in named}
        order = sorted(named, key=lengths.__getitem__, reverse=speed == "fastest")
        return set(order[:1])
    if reader.sees(*_BEHIND):
        hiders = reader.noun_phrase()(things, everything)
        if len(hiders) != 1:
            raise ValueError(f"{text!r} names one thing that hides another, but {len(hiders)} are called so")
        hider = hiders.pop()
        return {k for k in named - {hider} if hidden_by(tracks[k], tracks[hider], masks[hider])}
    verb = reader.need(*_GOES, *_SAID)
    if verb in _GOES:
        return {k for k in named if heads(tracks[k], _GOES[verb])}
    return {k for k in named if _SAID[verb](tracks[k])}


def disagreements(row: dict[str, Any]) -> list[tuple[str, set[int], set[int]]]:
    """Expressions of a row that are true of other objects than it says: text, said, seen (-1 if it cannot be read)."""
    masks = [[decode_mask(rle) for rle in entry["masks"]] for entry in row["objects"]]
    things = look(np.asarray(row["frames"][0]), [of_thing[0] for of_thing in masks])
    tracks = [track(of_thing) for of_thing in masks]
    wrong = []
    for expression in row["expressions"]:
        said = set(expression["object_indices"])
        try:
            seen = true_of(expression["text"], things, tracks, masks)
        except ValueError:
            seen = {-1}
        if said != seen:
            wrong.append((expression["text"], said, seen))
    return wrong


def main() -> None:
    from .moving import SPLITS, MovingScenes

    parser = argparse.ArgumentParser(description="Compare what Moving RefScenes says with what can be seen.")
    parser.add_argument("--split", default="train", choices=list(SPLITS))
    parser.add_argument("--clips", type=int, default=50)
    parser.add_argument("--start", type=int, default=0)
    options = parser.parse_args()
    scenes, begin, texts, wrong = MovingScenes(options.split, 128, 16), time.perf_counter(), 0, 0
    for index in range(options.start, options.start + options.clips):
        row = scenes[index]
        texts += len(row["expressions"])
        for text, said, seen in disagreements(row):
            wrong += 1
            print(f"clip {index}: {text!r} is said of {sorted(said)}, but true of {sorted(seen)}")
    seconds = time.perf_counter() - begin
    print(f"{options.split}: {texts - wrong} of {texts} expressions agree in {options.clips} clips ({seconds:.0f} s)")


if __name__ == "__main__":
    main()
