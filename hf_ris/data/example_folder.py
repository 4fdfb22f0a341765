"""A folder as one's own data are kept, to try things with: drawn "photographs" of a ball and a box each."""

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from .schema import encode_mask


COLOURS = {"red": (215, 40, 45), "blue": (40, 80, 210), "green": (40, 160, 70), "yellow": (235, 205, 50)}


def write_example_folder(folder: str | Path, count: int = 30, seed: int = 0) -> Path:
    """A new `folder` with images/*.jpg (160 x 120) and train.jsonl: "the red ball", "red", ... of two things each."""
    folder = Path(folder)
    random = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    lines = []
    for number in range(count):
        ground = random.integers(90, 200, 3)[None, None] + random.normal(0, 12, (120, 160, 1))
        image = Image.fromarray(ground.clip(0, 255).astype(np.uint8))
        colours = random.permutation(list(COLOURS))[:2]
        objects, expressions = [], []
        for index, (shape, colour) in enumerate(zip(("ball", "box"), colours)):
            side = int(random.integers(44, 64))
            left = int(random.integers(2, 76 - side)) + 80 * ((index + number) % 2)
            top = int(random.integers(4, 116 - side))
            mask = Image.new("L", image.size)
            for canvas, fill in ((image, COLOURS[colour]), (mask, 255)):
                pen = ImageDraw.Draw(canvas)
                outline = pen.ellipse if shape == "ball" else pen.rectangle
                outline((left, top, left + side, top + side), fill=fill)
            objects.append({"mask": encode_mask(np.asarray(mask) > 0), "category": shape})
            expressions += [{"text": f"the {colour} {shape}", "object": index}, {"text": f"{colour}", "object": index}]
        image.save(folder / "images" / f"{number:03}.jpg", quality=90)
        lines.append({"file_name": f"images/{number:03}.jpg", "objects": objects, "expressions": expressions})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "train.jsonl").write_text(text, encoding="utf-8")
    return folder
