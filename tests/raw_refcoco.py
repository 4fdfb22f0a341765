"""A synthetic data set of any size in the raw layout of RefCOCO, made from RefScenes.

python tests/raw_refcoco.py FOLDER --images 20000 --size 480 --workers 2
"""

import argparse
import json
import os
import pickle
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from hf_ris.data import decode_mask
from hf_ris.data.refscenes.scenes import CATEGORIES, RefScenes


_SPLITS = ("val", "testA", "testB")  # of every 20 images one each, the others are train
_REFERRED = 3  # objects of an image that are spoken of, as RefCOCO has 2.5


def split_of(number: int) -> str:
    return dict(enumerate(_SPLITS)).get(number % 20, "train")


def outline(mask: np.ndarray, points: int = 24) -> list[float]:
    """A polygon [x1, y1, ...] down the left edge of a mask and up its right edge."""
    rows = np.flatnonzero(mask.any(1))
    rows = np.unique(rows[np.linspace(0, len(rows) - 1, points // 2).round().astype(int)])
    left, right = mask[rows].argmax(1), mask.shape[1] - mask[rows][:, ::-1].argmax(1)
    corners = [(int(x), int(y)) for x, y in zip(left, rows)]
    corners += [(int(x), int(y) + 1) for x, y in zip(right[::-1], rows[::-1])]
    return [float(value) for corner in corners for value in corner]


def runs(mask: np.ndarray) -> list[int]:
    """Uncompressed RLE, column by column, beginning with zeros."""
    flat = mask.T.reshape(-1)
    edges = np.flatnonzero(np.diff(flat, prepend=False))
    return np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()


def segmentation(mask: np.ndarray, number: int) -> tuple[Any, int]:
    """(segmentation, iscrowd): mostly one polygon, sometimes two that overlap, sometimes the RLE of a crowd."""
    if number % 40 == 39:
        return {"size": list(mask.shape), "counts": runs(mask)}, 1
    rows = np.flatnonzero(mask.any(1))
    if number % 5 == 4 and len(rows) >= 8:
        third, upper, lower = len(rows) // 3, mask.copy(), mask.copy()
        upper[rows[-third] :], lower[: rows[third]] = False, False
        return [outline(upper), outline(lower)], 0
    return [outline(mask)], 0


def scene(number: int, folder: Path, size: int) -> tuple[dict, list[dict], list[dict]]:
    """Write image `number` (from 1 on) and return its entries: image, annotations, references."""
    row = RefScenes("refscenes", "train", size)[number]
    file_name = f"COCO_train2014_{number:012d}.jpg"
    row["image"].save(folder / file_name, quality=90)
    annotations = []
    for place, entry in enumerate(row["objects"]):
        mask = decode_mask(entry["mask"])
        drawn, crowd = segmentation(mask, number + place)
        annotations.append(
            {
                "id": number * 100 + place,
                "image_id": number,
                "category_id": CATEGORIES.index(entry["category"]) + 1,
                "iscrowd": crowd,
                "area": int(mask.sum()),
                "bbox": entry["bbox"],
                "segmentation": drawn,
            }
        )
    said: dict[int, list[str]] = {}
    for expression in row["expressions"]:
        if len(expression["object_indices"]) == 1:
            said.setdefault(expression["object_indices"][0], []).append(expression["text"])
    references = []
    for place, texts in list(said.items())[:_REFERRED]:
        first = (number * 100 + place) * 100
        sentences = [
            {"tokens": text.split(), "raw": text.capitalize(), "sent_id": first + k, "sent": text}
            for k, text in enumerate(texts[:3])
        ]
        references.append(
            {
                "ref_id": number * 100 + place,
                "ann_id": number * 100 + place,
                "image_id": number,
                "category_id": annotations[place]["category_id"],
                "file_name": f"COCO_train2014_{number:012d}_{number * 100 + place}.jpg",
                "split": split_of(number),
                "sent_ids": [sentence["sent_id"] for sentence in sentences],
                "sentences": sentences,
            }
        )
    image = {"id": number, "file_name": file_name, "height": size, "width": size}
    return image, annotations, references


def scenes(folder: Path, images: int, size: int, workers: int) -> Iterator[tuple[dict, list[dict], list[dict]]]:
    draw = partial(scene, folder=folder, size=size)
    if workers == 1:
        yield from map(draw, range(1, images + 1))
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(draw, range(1, images + 1), chunksize=50)


def write_raw_refcoco(root: Path, images: int, size: int = 128, workers: int = 1, name: str = "refcoco") -> None:
    """`root/refcoco/{refs(unc).p,instances.json}` and `root/images/train2014/*.jpg`."""
    pictures, annotations = root / "images/train2014", root / name
    pictures.mkdir(parents=True, exist_ok=True)
    annotations.mkdir(parents=True, exist_ok=True)
    listed: dict[str, list] = {"images": [], "annotations": []}
    references = []
    drawn = scenes(pictures, images, size, workers)
    for image, of_image, spoken in tqdm(drawn, total=images, unit="image", disable=images < 1000):
        listed["images"].append(image)
        listed["annotations"] += of_image
        references += spoken
    categories = [{"id": place + 1, "name": category} for place, category in enumerate(CATEGORIES)]
    with (annotations / "instances.json").open("w") as stream:
        json.dump({"info": {"description": "synthetic"}, **listed, "categories": categories}, stream)
    with (annotations / "refs(unc).p").open("wb") as stream:
        pickle.dump(references, stream, protocol=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=480)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    write_raw_refcoco(options.folder, options.images, options.size, options.workers)


if __name__ == "__main__":
    main()
