"""From rows of the schema to a batch of a model's inputs."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from .schema import decode_mask, target_rle


def batches_of(loader: torch.utils.data.DataLoader) -> Iterator[Any]:
    """The batches of a loader. Of a ValueError that a worker hands on as the text of its traceback, the sentence."""
    iterator = iter(loader)
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except ValueError as error:
            told = str(error).strip()
            if not told.startswith("Caught "):
                raise
            raise ValueError(told.splitlines()[-1].partition(": ")[2]) from error
        yield batch


class RisCollator:
    """Rows -> what `processor` makes of their B images and N expressions, plus `object_index`.

    `object_index` (N,) long numbers the distinct targets of the batch: expressions of the same objects of one row share
    a number. An expression without a target has a number of its own: two such texts have nothing in common.

    Args:
        processor: called as `processor(images, text=[[...]], masks=[[...]], return_tensors="pt")`, parallel to images.
        labels: give the processor the target masks, bool (height, width) each, so that it returns `labels`.
        metadata: add `metadata`, a list of N dicts for evaluation (no model's input): `expression_id, ref_id, image_id,
            text, object_ids, category` (the first object's, or ""), `height, width, same_class_distractors` (other
            objects of the image with that category, 0 if it is unknown) and `target`, the RLE of the mask.

    Rows without expressions are left out; a batch without any raises ValueError.
    """

    def __init__(self, processor: Callable[..., Any], labels: bool = True, metadata: bool = False):
        self.processor, self.labels, self.metadata = processor, labels, metadata

    def __call__(self, rows: Sequence[dict[str, Any]]) -> Any:
        rows = [row for row in rows if row["expressions"]]
        if not rows:
            raise ValueError("the batch has no expression: leave out rows without any, or make the batch larger")
        texts = [[expression["text"] for expression in row["expressions"]] for row in rows]
        # sorted: the same objects in another order are the same target
        targets = [[tuple(sorted(said["object_indices"])) for said in row["expressions"]] for row in rows]
        masks = {"masks": [_masks(row, of) for row, of in zip(rows, targets, strict=True)]} if self.labels else {}
        batch = self.processor([row["image"] for row in rows], text=texts, return_tensors="pt", **masks)
        batch["object_index"] = object_index(targets)
        if self.metadata:
            batch["metadata"] = [_metadata(row, expression) for row in rows for expression in row["expressions"]]
        return batch


def _masks(row: dict[str, Any], targets: list[tuple[int, ...]]) -> list[np.ndarray]:
    """Bool (height, width) of every expression; those with the same target share one array."""
    decoded = {}
    for target, expression in zip(targets, row["expressions"], strict=True):
        if target not in decoded:
            decoded[target] = decode_mask(target_rle(row, expression))
    return [decoded[target] for target in targets]


def object_index(targets: list[list[tuple[int, ...]]]) -> torch.Tensor:
    numbers: dict[Any, int] = {}
    index = []
    for image, of_image in enumerate(targets):
        for place, target in enumerate(of_image):
            index.append(numbers.setdefault((image, target or f"none {place}"), len(numbers)))
    return torch.tensor(index)


def _metadata(row: dict[str, Any], expression: dict[str, Any]) -> dict[str, Any]:
    objects, indices = row["objects"], expression["object_indices"]
    category = objects[indices[0]]["category"] if indices else ""
    others = [entry for place, entry in enumerate(objects) if place not in indices]
    return {
        "expression_id": expression["expression_id"],
        "ref_id": expression["ref_id"],
        "image_id": row["image_id"],
        "text": expression["text"],
        "object_ids": [objects[index]["object_id"] for index in indices],
        "category": category,
        "height": row["height"],
        "width": row["width"],
        "same_class_distractors": sum(entry["category"] == category for entry in others) if category else 0,
        "target": target_rle(row, expression),
    }
