"""RefScenes: procedural referring segmentation, the same scenes on every machine, without a download.

    python -m hf_ris.data.refscenes --contact-sheet sheet.png --name refscenes --split train

Crowded pictures of drawn things with several expressions per object, in the flavours of the real data sets:

    refscenes       short expressions, location words allowed          (as RefCOCO)
    refscenes_plus  appearance only: no location words                 (as RefCOCO+)
    refscenes_g     long sentences with relations                      (as RefCOCOg)
    phrasescenes    phrases that may be true of several instances      (as PhraseCut)

The first three share their pictures, as the real sets share COCO's. Splits: train, val, test, and test_compositional,
whose targets are category-colour pairs that no other split holds. Scene i depends on the version, family, split and i
alone. It is a smoke test and a study of words (colour, category, size, place, order, relation, negation), not a claim
about photographs.
"""

import argparse
import hashlib
import io
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from ..schema import FEATURES, decode_mask, target_rle
from .layout import FIELD, MAX_OBJECTS, Item, Look, Stream, is_held_out, lay_out
from .sentences import VOCABULARY, Seen, expressions
from .shapes import BODY, CATEGORIES, COLOURS, sprite, texture, tones


__all__ = ["CATEGORIES", "COLOURS", "NAMES", "SPLITS", "VERSION", "VOCABULARY", "RefScenes", "load_refscenes"]

VERSION = "1.0"  # a change of any pixel, mask or text is a new version
NAMES = ("refscenes", "refscenes_plus", "refscenes_g", "phrasescenes")
SPLITS = {"train": 20_000, "val": 1_000, "test": 2_000, "test_compositional": 2_000}
_MUTED = (
    (160, 202, 226), (232, 206, 164), (162, 198, 154), (228, 186, 164), (150, 172, 208), (204, 188, 220),
    (164, 208, 194), (232, 214, 190), (136, 170, 172), (184, 168, 208), (198, 176, 142), (200, 218, 184),
    (148, 188, 206), (222, 180, 188), (158, 152, 188), (194, 198, 150),
)  # fmt: skip
_SCENERIES = (("gradient", 14), ("hills", 22), ("room", 20), ("tiles", 14), ("bubbles", 16), ("clouds", 14))
_SHADES = 64  # per layer of a background; 4 layers fill a byte


@cache
def _noise(kind: int, size: int) -> np.ndarray:
    """Smooth integer noise 0..255, int32 (2 size, 2 size), for a picture of this size to take a piece of."""
    rng = Stream(VERSION, "noise", kind)
    cell = (16, 24, 32, 44)[kind % 4]
    knots = 2 * FIELD // cell + 3
    lattice = np.array([[rng.below(256) for _ in range(knots)] for _ in range(knots)], np.int32)
    place = np.arange(2 * size, dtype=np.int64) * FIELD * 256 // size  # 1/256 field pixels
    index, part = (place // (cell * 256)).astype(np.int32), (place % (cell * 256) // cell).astype(np.int32)
    part = part * part * (768 - 2 * part) >> 16  # smoothstep on 0..256
    rows = (lattice[index] * (256 - part)[:, None] + lattice[index + 1] * part[:, None]) >> 8
    return (rows[:, index] * (256 - part) + rows[:, index + 1] * part) >> 8


def _patch(rng: Stream, size: int, kinds: tuple[int, ...] = tuple(range(8))) -> np.ndarray:
    """A random piece of smooth noise, 0..255, int32 (size, size)."""
    field = _noise(rng.pick(kinds), size)
    x, y = rng.below(FIELD) * size // FIELD, rng.below(FIELD) * size // FIELD
    return field[y : y + size, x : x + size]


def background(rng: Stream, size: int) -> np.ndarray:
    """A muted picture to put the objects on: float32 (size, size, 3).

    Painted as one byte per pixel, layer * 64 + shade, and coloured by a palette with a gradient per layer.
    """
    scenery = rng.weighted(_SCENERIES)
    muted = rng.shuffled(_MUTED)
    ramp = np.arange(size, dtype=np.int32) * 255 // max(size - 1, 1)
    x, y = ramp[None, :], ramp[:, None]
    unit = np.arange(size, dtype=np.int32) * FIELD // size
    ux, uy = unit[None, :], unit[:, None]
    shade, layer = np.broadcast_to(rng.pick((y, x, (x + y) // 2, (255 - x + y) // 2)), (size, size)), np.int32(0)
    if scenery == "hills":
        shade = np.broadcast_to(y, (size, size))
        for k in range(1, rng.between(2, 3) + 1):
            profile = _patch(rng, size, kinds=(3, 7))[0] * rng.between(24, 48) // 255 + 22 + 24 * k
            below = uy > profile[None, :]
            layer, shade = np.where(below, k, layer), np.where(below, np.minimum(255, (uy - profile) * 5), shade)
    elif scenery == "room":
        floor = uy > rng.between(60, 96)
        width = rng.between(6, 14)
        wall = (ux // width % 2) * 50 + y // 3 if rng.chance(60) else ((ux // width + uy // width) % 2) * 40 + y // 3
        planks = (uy // rng.between(7, 12) % 2) * 60 + x // 4
        layer, shade = np.where(floor, 1, 0), np.where(floor, planks, wall)
    elif scenery == "tiles":
        width = rng.between(12, 30)
        u, v = (ux + rng.below(width)), (uy + rng.below(width))
        u, v = (u + v, u - v + 4 * FIELD) if rng.chance(40) else (u, v)
        layer = (u // width + v // width) % 2
    elif scenery == "bubbles":
        spots = np.zeros((size, size), np.int32)
        for _ in range(rng.between(6, 12)):
            cx, cy, radius = rng.below(FIELD), rng.below(FIELD), rng.between(8, 26)
            spots += ((ux - cx) ** 2 + (uy - cy) ** 2 < radius * radius) * rng.between(30, 60)
        shade = np.minimum(255, shade // 2 + spots)
    elif scenery == "clouds":
        shade = _patch(rng, size)
    grain = _patch(rng, size)
    level = (layer * _SHADES + np.clip(shade * 3 // 16 + grain // 20, 0, _SHADES - 1)).astype(np.uint8)
    palette = np.empty((4, _SHADES, 3), np.int32)
    steps = np.arange(_SHADES)[:, None]
    for k in range(4):
        start, stop = (np.array(muted[(2 * k + j) % len(muted)], np.int32) for j in (0, 1))
        if scenery in ("room", "bubbles"):  # a faint pattern: stay near one colour
            stop = start + (stop - start) // 3 + rng.pick((-14, 14))
        elif scenery == "tiles" and k == 1:
            start, stop = palette[0, 0] + 14, palette[0, -1] + 14
        palette[k] = (start * (_SHADES - 1 - steps) + stop * steps) // (_SHADES - 1)
    return palette.reshape(-1, 3).astype(np.float32)[level]


def draw(canvas: np.ndarray, items: list[Item], owner: np.ndarray) -> None:
    """Paint shadows, then objects in order, into canvas float32 (S, S, 3); owner uint8 (S, S) gets k + 1 for object k.

    Sums stay below 2**24, so float32 holds them exactly and no order of summation changes them.
    """
    size = canvas.shape[0]
    drawn = []
    for item in items:
        shape = sprite(item.look.category, item.side * size / FIELD, item.tilt, item.flip)
        height, width = shape.mask.shape
        top, left = (
            (2 * item.y + 1) * size // (2 * FIELD) - height // 2,
            (2 * item.x + 1) * size // (2 * FIELD) - width // 2,
        )
        drawn.append((item, shape, top, left))
    drop = max(1, size * 2 // FIELD)
    for _, shape, top, left in drawn:
        target, source = _overlap(size, shape.mask.shape, top + drop, left + drop)
        canvas[target] -= np.floor(canvas[target] * (shape.alpha[source] * 5)[..., None] / 256)
    for k, (item, shape, top, left) in enumerate(drawn):
        target, source = _overlap(size, shape.mask.shape, top, left)
        weights, palette = shape.weights[source] * 16, tones(item.look.colour)
        colours = weights @ palette[:-1]
        if item.look.texture != "plain":
            height, width = shape.mask.shape
            pattern = texture(item.look.texture, item.direction, item.period * size // FIELD, size)
            pattern = pattern[:height, :width][source]
            colours += (shape.weights[source][..., BODY] * pattern)[..., None] * (palette[-1] - palette[BODY])
        kept = canvas[target] * (256 - 16 * shape.alpha[source])[..., None]
        canvas[target] = np.floor((kept + colours) / 256)
        owner[target][shape.mask[source]] = k + 1


def _overlap(size: int, shape: tuple[int, int], top: int, left: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Slices of the canvas, and of a sprite put at (top, left), where the two overlap."""
    (height, width) = shape
    y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + height, size), min(left + width, size)
    return (slice(y0, y1), slice(x0, x1)), (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))


def encode_owners(owner: np.ndarray, count: int) -> list[dict[str, Any]]:
    planes = owner[:, :, None] == np.arange(1, count + 1, dtype=np.uint8)
    return coco_mask.encode(np.asfortranarray(planes, dtype=np.uint8))


def _look(items: list[Item], owner: np.ndarray, boxes: list[list[float]]) -> list[Seen]:
    """What the 128-pixel picture shows of each object; boxes: x, y, width, height of its visible pixels."""
    owners = owner.ravel()
    rows, columns = np.divmod(np.arange(owners.size), FIELD)
    areas = np.bincount(owners, minlength=len(items) + 1)[1:]
    xs = (np.bincount(owners, columns, len(items) + 1)[1:] / areas + 0.5).tolist()
    ys = (np.bincount(owners, rows, len(items) + 1)[1:] / areas + 0.5).tolist()
    seen = []
    for item, area, centroid, (x, y, width, height) in zip(items, areas.tolist(), zip(xs, ys), boxes, strict=True):
        whole = sprite(item.look.category, item.side, item.tilt, item.flip).area
        places = ((x + width / 2, y + height / 2), centroid)
        seen.append(Seen(*item.look[:3], area, whole, places, width, height))
    return seen


class RefScenes:
    """Scenes by index: `RefScenes("refscenes", "train")[7]` is a row of the schema with a PIL RGB image.

    Args:
        name: refscenes, refscenes_plus, refscenes_g or phrasescenes.
        split: train, val, test or test_compositional.
        image_size: side of the square picture, 64 to 1024 pixels. The scene and its texts are the same at every size;
            sizes, places and visibility are judged on the 128-pixel one.

    Any index in [0, 10,000,000) is a scene; there is no end to a split but the one its user chooses (`load_refscenes`).
    """

    def __init__(self, name: str, split: str = "train", image_size: int = 128):
        if name not in NAMES:
            raise ValueError(f"there is no RefScenes flavour {name!r}: choose one of {', '.join(NAMES)}")
        if split not in SPLITS:
            raise ValueError(f"RefScenes has no split {split!r}: choose one of {', '.join(SPLITS)}")
        if not isinstance(image_size, int) or not 64 <= image_size <= 1024:
            raise ValueError(f"image_size is {image_size!r}, but RefScenes draws squares of 64 to 1024 pixels")
        self.name, self.split, self.image_size = name, split, image_size
        self.family = "phrases" if name == "phrasescenes" else "references"

    def __getitem__(self, index: int) -> dict[str, Any]:
        compositional, key = self.split == "test_compositional", self._key(index)
        items, plan = self._lay_out(index)
        encoded = encode_owners(plan, len(items))
        boxes = coco_mask.toBbox(encoded).tolist()
        seen = _look(items, plan, boxes)
        allowed = sum(1 << k for k, item in enumerate(items) if is_held_out(item.look) or not compositional)
        said = expressions(seen, self.name, allowed, Stream(*key, self.name))

        size = self.image_size
        canvas, owner = background(Stream(*key, "background"), size), np.zeros((size, size), np.uint8)
        draw(canvas, items, owner)
        if size != FIELD:
            encoded = encode_owners(owner, len(items))
            boxes = coco_mask.toBbox(encoded).tolist()
        image_id = list(SPLITS).index(self.split) * 10_000_000 + index
        return {
            "image": Image.fromarray(canvas.astype(np.uint8)),
            "image_id": image_id,
            "file_name": f"{self.name}_{self.split}_{index:06d}.png",
            "height": size,
            "width": size,
            "objects": [
                {
                    "object_id": image_id * 16 + k,
                    "category": item.look.category,
                    "bbox": boxes[k],
                    "mask": {"size": [size, size], "counts": encoded[k]["counts"].decode("ascii")},
                }
                for k, item in enumerate(items)
            ],
            "expressions": [
                {
                    "expression_id": image_id * 64 + j,
                    "ref_id": image_id * (1 << MAX_OBJECTS) + targets,
                    "text": text,
                    "object_indices": [k for k in range(len(items)) if targets >> k & 1],
                }
                for j, (text, targets) in enumerate(said)
            ],
        }

    def looks(self, index: int) -> list[Look]:
        """Category, colour, texture and size of each of a row's `objects`, in their order; no picture is drawn."""
        return [item.look for item in self._lay_out(index)[0]]

    def seen(self, index: int) -> list[Seen]:
        """What the 128-pixel picture shows of each of a row's `objects`, in their order."""
        items, plan = self._lay_out(index)
        return _look(items, plan, coco_mask.toBbox(encode_owners(plan, len(items))).tolist())

    def _key(self, index: int) -> tuple[str, str, str, int]:
        if not 0 <= index < 10_000_000:
            raise IndexError(f"scene {index} of RefScenes: an index lies in [0, 10000000)")
        return VERSION, self.family, self.split, index

    def _lay_out(self, index: int) -> tuple[list[Item], np.ndarray]:
        compositional, twins = self.split == "test_compositional", 16 if self.family == "phrases" else 5
        return lay_out(Stream(*self._key(index), "layout"), compositional, twins)


def _rows(name: str, split: str, size: int, image_size: int) -> Iterator[dict[str, Any]]:
    """Rows with PNG bytes."""
    scenes = RefScenes(name, split, image_size)
    for index in range(size):
        row = scenes[index]
        stored = io.BytesIO()
        row["image"].save(stored, "PNG", compress_level=1)
        yield row | {"image": {"bytes": stored.getvalue(), "path": row["file_name"]}}


def load_refscenes(
    name: str = "refscenes", split: str = "train", size: int | None = None, *, image_size: int = 128
) -> datasets.Dataset:
    """The first `size` scenes of a split as a `datasets.Dataset` of the schema, cached on disk between runs.

    size: None means 20,000 (train), 1,000 (val), 2,000 (test, test_compositional).
    Raises ValueError for an unknown name or split, or a size that is not positive.
    """
    RefScenes(name, split, image_size)  # says what is wrong before the cache is asked
    size = SPLITS[split] if size is None else size
    if not isinstance(size, int) or not 1 <= size <= 10_000_000:
        raise ValueError(f"size is {size!r}, but a split holds 1 to 10,000,000 scenes (None for {SPLITS[split]})")
    arguments = {"name": name, "split": split, "size": size, "image_size": image_size}
    # The generator's own source is part of the cache's name: a changed one never serves what an older one drew.
    digest = hashlib.sha256(repr((VERSION, sorted(arguments.items()), FEATURES)).encode())
    for source in ("layout", "scenes", "sentences", "shapes"):
        digest.update(Path(__file__).with_name(f"{source}.py").read_bytes())
    return datasets.Dataset.from_generator(
        _rows, features=FEATURES, gen_kwargs=arguments, fingerprint=digest.hexdigest()[:16]
    )


def contact_sheet(name: str, split: str, columns: int = 4, rows: int = 3, zoom: int = 2) -> Image.Image:
    """Scenes with one expression each beneath them and its target outlined, to be looked at."""
    scenes, side, caption = RefScenes(name, split), 128 * zoom, 64
    sheet = Image.new("RGB", (columns * (side + 8), rows * (side + caption + 8)), "white")
    pen = ImageDraw.Draw(sheet)
    for cell in range(columns * rows):
        row = scenes[cell]
        x, y = cell % columns * (side + 8) + 4, cell // columns * (side + caption + 8) + 4
        picture = np.asarray(row["image"].resize((side, side), Image.Resampling.NEAREST)).copy()
        target = decode_mask(target_rle(row, row["expressions"][0])).repeat(zoom, 0).repeat(zoom, 1)
        inner = target.copy()
        for axis in (0, 1):
            inner &= np.roll(target, 1, axis) & np.roll(target, -1, axis)
        picture[target & ~inner] = (255, 0, 255)
        sheet.paste(Image.fromarray(picture), (x, y))
        for line, expression in enumerate(row["expressions"][:5]):
            pen.text((x, y + side + 1 + 12 * line), expression["text"][:46], fill="magenta" if line == 0 else "black")
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw a contact sheet of RefScenes.")
    parser.add_argument("--contact-sheet", required=True, metavar="OUT.png")
    parser.add_argument("--name", default="refscenes", choices=NAMES)
    parser.add_argument("--split", default="train", choices=list(SPLITS))
    options = parser.parse_args()
    contact_sheet(options.name, options.split).save(options.contact_sheet)


if __name__ == "__main__":
    main()
