"""Moving RefScenes: short clips in which things of the same look are told apart by how they move.

    python -m hf_ris.data.refscenes.moving --contact-sheet sheet.png --split train

A clip holds three or four things that look alike and move differently (to a side, fast or slowly, stopping, starting,
turning around, bouncing, standing still, passing behind another), and one or two others. Most expressions need the
motion; the rest speak of looks alone. Splits, outlines, colours and backgrounds are those of RefScenes, and as there
clip i depends on the version, split and i alone. `frames` (8 to 16) and `image_size` (96 to 128) only sample the same
clip in time and space: its texts are the same. It studies words of motion and is no claim about films.
"""

import argparse
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
from PIL import Image, ImageDraw

from ..video_schema import VIDEO_FEATURES
from .layout import FIELD, Item, Look, Stream
from .motion import CLAIMS, MOTION_WORDS, Motion, draw_motion, holds, path, place_at, said_of
from .scenes import SPLITS, background, draw, encode_owners
from .sentences import COLOUR_WORDS, NOUNS, TEXTURE_WORDS
from .shapes import CATEGORIES, COLOURS, HELD_OUT, SIZE_STEPS, TEXTURES, sprite


VERSION = "1.0"  # a change of any pixel, mask or text is a new version
NAME = "refscenes_video"
VIDEO_SPLITS = {"train": 6_000, "val": 200, "test": 500, "test_compositional": 500}
MOVING_VOCABULARY = tuple(sorted(MOTION_WORDS | set("the thing that of".split())))
_PERIODS = {"small": 22, "medium": 28, "large": 36}  # of textures, in quarter pixels
_TICKS = 16  # times at which overlaps are looked at
_OVERLAP = 0.25  # of the smaller box, at most, at any time
_MAX_EXPRESSIONS = 8
_BROAD = frozenset("ball heart cup chair house tree umbrella hat".split())  # outlines that can hide another


class Actor(NamedTuple):
    """An object of a clip: its look and sprite, how and where it moves, and the actor it passes behind (else -1)."""

    item: Item
    motion: Motion
    corners: list[tuple[int, int, int]]
    behind: int


def _look(rng: Stream, compositional: bool, sizes: tuple[tuple[str, int], ...]) -> Look:
    """compositional: a held-out pair; else none of them."""
    texture = rng.weighted((("plain", 55), *((name, 15) for name in TEXTURES[1:])))
    size = rng.weighted(sizes)
    if compositional:
        return Look(*rng.pick(sorted(HELD_OUT)), texture, size)
    while True:
        look = Look(rng.pick(CATEGORIES), rng.pick(tuple(COLOURS)), texture, size)
        if (look.category, look.colour) not in HELD_OUT:
            return look


def _cast(rng: Stream, compositional: bool) -> list[tuple[Look, Motion, int]]:
    """(look, motion, whom it passes behind or -1) of a clip: things of one look with different motions, and others."""
    look = _look(rng, compositional, (("small", 20), ("medium", 80)))
    twins = 4 if rng.chance(65) else 3
    motions: list[Motion] = []
    while len(motions) < twins:
        motion = draw_motion(rng)
        kin = [one for one in motions if (one.kind, one.direction) == (motion.kind, motion.direction)]
        # two that go the same way must differ clearly in speed, and nothing else can be told apart
        if not kin or motion.kind == "steady" and all(abs(one.length - motion.length) > 20 for one in kin):
            motions.append(motion)
    cast = [(look, motion, -1) for motion in motions]
    hiding = rng.chance(30)
    if hiding:  # a large thing that stands still, and one of the twins passes behind it
        hider = _look(rng, False, (("large", 100),))
        if hider.category in _BROAD and hider.category != look.category:
            direction = rng.pick(("left", "right"))
            cast[rng.below(twins)] = (look, Motion("behind", direction, rng.between(70, 84)), twins)
            return [*cast, (hider, Motion("still", "", 0), -1)]
    other = _look(rng, False, (("small", 20), ("medium", 55), ("large", 25)))
    if rng.chance(50):
        other = other._replace(category=look.category)
        if (other.category, other.colour) in HELD_OUT:
            other = other._replace(colour=look.colour, texture=rng.pick([t for t in TEXTURES if t != look.texture]))
    return [*cast, (other, draw_motion(rng), -1)]


def _overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Share of the smaller box that two objects have in common at each tick; boxes: left, top, right, bottom (n, 4)."""
    low, high = np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, 2:], b[:, 2:])
    sides = np.maximum(high - low, 0)
    return sides[:, 0] * sides[:, 1] / min(np.prod(a[0, 2:] - a[0, :2]), np.prod(b[0, 2:] - b[0, :2]))


def _place(rng: Stream, cast: list[tuple[Look, Motion, int]]) -> list[Actor] | None:
    """Places for all, or None: all lie apart in the first frame and hide little of each other later."""
    actors: dict[int, Actor] = {}
    boxes: dict[int, np.ndarray] = {}
    hidden_by = {behind: k for k, (_, _, behind) in enumerate(cast) if behind >= 0}
    # who is hidden first, then who hides: they need most room
    for k in sorted(range(len(cast)), key=lambda k: (k not in hidden_by.values(), k not in hidden_by, k)):
        look, motion, behind = cast[k]
        side, tilt, flip = rng.pick(SIZE_STEPS[look.size]), rng.weighted(((0, 50), (1, 25), (2, 25))), rng.chance(50)
        item = Item(look, side, tilt, flip, rng.below(3), _PERIODS[look.size], 0, 0)
        height, width = sprite(look.category, side, tilt, flip).mask.shape
        half = np.array((width // 2, height // 2))
        way = path(motion, rng)
        ticks = np.array([place_at(way, tick, _TICKS) for tick in range(_TICKS + 1)])
        least, most = half - ticks.min(0), FIELD - 1 - half - ticks.max(0)  # where it may begin to stay in the picture
        if (least > most).any():
            return None
        for _ in range(20):
            x, y = (rng.between(int(low), int(high)) for low, high in zip(least, most))
            if k in hidden_by:
                x, y = place_at(actors[hidden_by[k]].corners, 1, 2)
                x, y = (int(min(max(at, low), high)) for at, low, high in zip((x, y + rng.between(-4, 4)), least, most))
            places = ticks + (x, y)
            own = np.concatenate([places - half, places + half], 1)
            if all(_agree(own, box, behind == other or hidden_by.get(k) == other) for other, box in boxes.items()):
                corners = [(time, x + dx, y + dy) for time, dx, dy in way]
                actors[k], boxes[k] = Actor(item, motion, corners, behind), own
                break
        else:
            return None
    return [actors[k] for k in range(len(cast))]


def _agree(a: np.ndarray, b: np.ndarray, one_hides: bool) -> bool:
    shares = _overlaps(a, b)
    return bool(shares[0] == 0 and (shares[-1] == 0 if one_hides else shares.max() <= _OVERLAP))


def stage(rng: Stream, compositional: bool) -> list[Actor]:
    """The actors of a clip in painting order: who is passed behind comes last."""
    while True:
        actors = _place(rng, _cast(rng, compositional))
        if actors is not None:
            return actors


# --- words


def _named(actors: list[Actor], nouns: dict[str, str]) -> set[int]:
    return {k for k, actor in enumerate(actors) if all(getattr(actor.item.look, n) == v for n, v in nouns.items())}


def _noun_phrase(look: Look, names: tuple[str, ...], rng: Stream) -> str:
    """`names`: of colour, texture and category, those that are said."""
    words = []
    if "texture" in names:
        words.append(rng.pick(TEXTURE_WORDS[look.texture]))
    if "colour" in names:
        words.append(rng.pick(COLOUR_WORDS[look.colour]))
    words.append(rng.pick(NOUNS[look.category]) if "category" in names else "thing")
    return " ".join(words)


def _fastest(actors: list[Actor], named: set[int], slow: bool) -> int | None:
    """The steady one among `named` that is clearly faster (slower) than every other, if all move steadily or stand."""
    steady = [k for k in named if actors[k].motion.kind == "steady"]
    if len(steady) < 2 or any(actors[k].motion.kind not in ("steady", "still") for k in named):
        return None
    steady.sort(key=lambda k: actors[k].motion.length, reverse=not slow)
    best, second = (actors[k].motion.length for k in steady[:2])
    return steady[0] if max(best, second) >= 1.6 * min(best, second) else None


def _motion_sentence(actors: list[Actor], k: int, rng: Stream) -> str | None:
    """An expression of actor k that is true of it alone, by its motion."""
    actor, look = actors[k], actors[k].item.look
    names = rng.weighted(
        ((("category",), 42), (("colour", "category"), 38), (("texture", "category"), 10), (("colour",), 10))
    )
    named = _named(actors, {name: getattr(look, name) for name in names})
    if len(named) < 2:  # the look alone would do
        return None
    noun = _noun_phrase(look, names, rng)
    if actor.behind >= 0 and rng.chance(60):
        hider = actors[actor.behind].item.look
        for kind in (("category",), ("colour", "category")):
            if len(_named(actors, {name: getattr(hider, name) for name in kind})) == 1:
                verb = rng.pick(("that passes behind", "passing behind", "that moves behind"))
                return f"the {noun} {verb} the {_noun_phrase(hider, kind, rng)}"
        return None
    if actor.motion.kind == "steady" and rng.chance(35):
        for slow, forms in (
            (False, ("fastest {}", "{} that moves fastest")),
            (True, ("slowest {}", "{} that moves slowest")),
        ):
            if _fastest(actors, named, slow) == k and not (
                slow and any(actors[j].motion.kind == "still" for j in named)
            ):
                return "the " + rng.pick(forms).format(noun)
    claims = [claim for claim in CLAIMS if holds(claim, actor.motion)]
    claim = rng.pick(claims)
    if any(holds(claim, actors[j].motion) is not False for j in named - {k}):
        return None
    return f"the {noun} {said_of(claim, rng)}"


def _look_sentence(actors: list[Actor], k: int, rng: Stream) -> str | None:
    """An expression of actor k that is true of it alone, by its look; every second one also says how it moves."""
    look = actors[k].item.look
    for names in (("category",), ("colour", "category"), ("texture", "category"), ("texture", "colour", "category")):
        if _named(actors, {name: getattr(look, name) for name in names}) == {k}:
            return f"the {_noun_phrase(look, names, rng)}"
    return None


def expressions(actors: list[Actor], compositional: bool, rng: Stream) -> list[tuple[str, int]]:
    """(text, actor): up to two by motion and one by look for each actor, no text twice."""
    allowed = [
        k for k, a in enumerate(actors) if not compositional or (a.item.look.category, a.item.look.colour) in HELD_OUT
    ]
    said: list[tuple[str, int]] = []
    for _ in range(2):
        for k in allowed:
            for _ in range(6):
                text = _motion_sentence(actors, k, rng)
                if text is not None and all(text != other for other, _ in said):
                    said.append((text, k))
                    break
    said = rng.shuffled(said)[: _MAX_EXPRESSIONS - 2]
    looks = [(text, k) for k in allowed if (text := _look_sentence(actors, k, rng)) is not None]
    return rng.shuffled(said + looks[:2])


# --- rows


class MovingScenes:
    """Clips by index: `MovingScenes("train")[7]` is a row of the video schema with PIL RGB frames.

    Args:
        split: train, val, test or test_compositional.
        image_size: side of the square frames, 96 to 128 pixels. frames: 8 to 16. Neither changes the texts.
    """

    def __init__(self, split: str = "train", image_size: int = 96, frames: int = 8):
        if split not in SPLITS:
            raise ValueError(f"RefScenes has no split {split!r}: choose one of {', '.join(SPLITS)}")
        for name, value, low, high in (("image_size", image_size, 96, 128), ("frames", frames, 8, 16)):
            if not isinstance(value, int) or not low <= value <= high:
                raise ValueError(f"{name} is {value!r}, but Moving RefScenes takes {low} to {high}")
        self.split, self.image_size, self.frames = split, image_size, frames

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < 10_000_000:
            raise IndexError(f"clip {index} of Moving RefScenes: an index lies in [0, 10000000)")
        compositional = self.split == "test_compositional"
        key = (VERSION, NAME, self.split, index)
        actors, said, attempt = [], [], 0
        while not said:
            actors = stage(Stream(*key, "layout", attempt), compositional)
            said = expressions(actors, compositional, Stream(*key, "text", attempt))
            attempt += 1
        size = self.image_size
        ground = background(Stream(*key, "background"), size)
        pictures, masks = [], []
        for step in range(self.frames):
            canvas, owner = ground.copy(), np.zeros((size, size), np.uint8)
            places = [place_at(actor.corners, step, self.frames - 1) for actor in actors]
            draw(canvas, [actor.item._replace(x=x, y=y) for actor, (x, y) in zip(actors, places)], owner)
            pictures.append(Image.fromarray(canvas.astype(np.uint8)))
            masks.append(
                [
                    {"size": [size, size], "counts": e["counts"].decode("ascii")}
                    for e in encode_owners(owner, len(actors))
                ]
            )
        video_id = list(SPLITS).index(self.split) * 10_000_000 + index
        return {
            "frames": pictures,
            "frame_names": [f"{step:05d}" for step in range(self.frames)],
            "video_id": video_id,
            "file_name": f"{NAME}_{self.split}_{index:06d}",
            "height": size,
            "width": size,
            "objects": [
                {
                    "object_id": video_id * 16 + k,
                    "category": actor.item.look.category,
                    "masks": [of_frame[k] for of_frame in masks],
                }
                for k, actor in enumerate(actors)
            ],
            "expressions": [
                {
                    "expression_id": video_id * 16 + j,
                    "name": str(j),
                    "ref_id": video_id * 16 + k,
                    "text": text,
                    "object_indices": [k],
                    "annotation_set": 0,
                }
                for j, (text, k) in enumerate(said)
            ],
            "void": [None] * self.frames,
        }


def _rows(split: str, size: int, image_size: int, frames: int) -> Iterator[dict[str, Any]]:
    """Rows with PNG bytes."""
    scenes = MovingScenes(split, image_size, frames)
    for index in range(size):
        row = scenes[index]
        stored = []
        for frame in row["frames"]:
            file = io.BytesIO()
            frame.save(file, "PNG", compress_level=1)
            stored.append({"bytes": file.getvalue(), "path": None})
        yield row | {"frames": stored}


def load_moving_scenes(
    split: str = "train", size: int | None = None, *, image_size: int = 96, frames: int = 8
) -> datasets.Dataset:
    """The first `size` clips of a split as a `datasets.Dataset` of the video schema, cached on disk between runs.

    size: None means 6,000 (train), 200 (val), 500 (test, test_compositional).
    Raises ValueError for an unknown split, or numbers that are out of range.
    """
    MovingScenes(split, image_size, frames)  # says what is wrong before the cache is asked
    size = VIDEO_SPLITS[split] if size is None else size
    if not isinstance(size, int) or not 1 <= size <= 10_000_000:
        raise ValueError(f"size is {size!r}, but a split holds 1 to 10,000,000 clips (None for {VIDEO_SPLITS[split]})")
    arguments = {"split": split, "size": size, "image_size": image_size, "frames": frames}
    # The generator's own source is part of the cache's name: a changed one never serves what an older one drew.
    digest = hashlib.sha256(repr((VERSION, sorted(arguments.items()), VIDEO_FEATURES)).encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return datasets.Dataset.from_generator(
        _rows, features=VIDEO_FEATURES, gen_kwargs=arguments, fingerprint=digest.hexdigest()[:16]
    )


def contact_sheet(split: str, clips: int = 8, frames: int = 8) -> Image.Image:
    """Clips as rows of frames, their expressions below, to be looked at."""
    scenes, side, caption = MovingScenes(split, 96, frames), 98, 76
    sheet = Image.new("RGB", (frames * side, clips * (side + caption)), "white")
    pen = ImageDraw.Draw(sheet)
    for number in range(clips):
        row, top = scenes[number], number * (side + caption)
        for step, frame in enumerate(row["frames"]):
            sheet.paste(frame, (step * side, top))
        for line, said in enumerate(row["expressions"][:6]):
            pen.text((4, top + side + 12 * line), f"{said['object_indices'][0]}: {said['text']}", fill="black")
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw a contact sheet of Moving RefScenes.")
    parser.add_argument("--contact-sheet", required=True, metavar="OUT.png")
    parser.add_argument("--split", default="train", choices=list(SPLITS))
    options = parser.parse_args()
    contact_sheet(options.split).save(options.contact_sheet)


if __name__ == "__main__":
    main()
