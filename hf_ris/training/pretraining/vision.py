"""Pretrain a recipe's vision encoder on a data set's objects, without any expression.

The published models start from an image encoder that has seen ImageNet. What is small enough to be trained here has no
such weights to start from; this gives it some: at each position of the pyramid, say which category lies there, where
its box is and, of RefScenes, its colour, texture and size. `initialize.vision_encoder` of a recipe reads the file:

    python train/pretrain_vision.py --recipe train/recipes/lavt/refscenes.yaml --steps 5000 \
        --out outputs/vision-refscenes
    python train/train.py --recipe train/recipes/lavt/refscenes.yaml \
        initialize.vision_encoder=outputs/vision-refscenes/vision_encoder.safetensors

To see that it works, in seconds: --steps 20 data.size=64. Only the recipe's model.vision_config, model.image_size,
data.name, data.size and training.seed matter. The folder also gets log.jsonl and pretraining.json (arguments,
versions, hardware, seconds, and on the validation split the `category_accuracy` of positions, the `box_error`, and the
`object_accuracy`: how often what is read off an object's positions, by linear maps, is right in all of category, colour
and texture). A run that was killed goes on with --resume.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from datasets import Dataset
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from hf_ris.data import load_split
from hf_ris.data.refscenes.scenes import NAMES, SPLITS, RefScenes
from hf_ris.data.refscenes.shapes import COLOURS, SIZES, TEXTURES
from hf_ris.data.schema import decode_mask
from hf_ris.models.processing_ris import RisImageProcessor
from hf_ris.models.vision_encoders import VisionEncoder, build_vision_encoder
from hf_ris.training.build import build_config
from hf_ris.training.order import StepBatches, seed_of
from hf_ris.training.pretraining.run import Run, by_dimensions, options_parser, run
from hf_ris.training.recipe import load_recipe


_ATTRIBUTES = {"colour": tuple(COLOURS), "texture": TEXTURES, "size": SIZES}


class ObjectRows(torch.utils.data.Dataset):
    """Rows by key (epoch, index): pixels (3, S, S), labels (1 + A, S/4, S/4) long, boxes (4, S/4, S/4).

    Labels are the category (0: background) and, of a RefScenes flavour `name`, whose A is 3, colour, texture and size,
    whose background is -1. Boxes are x0, y0, x1, y1 in [0, 1] of the object at that position. Half of the rows are
    mirrored, by their key. `counts` is how many values each label has.
    """

    def __init__(
        self, dataset: Dataset, categories: list[str], image_size: int, seed: int, augment: bool, name: str = ""
    ):
        self.dataset, self.seed, self.augment = dataset, seed, augment
        self.number = {name: index + 1 for index, name in enumerate(categories)}
        self.scenes = {split: RefScenes(name, split) for split in SPLITS} if name in NAMES else None
        self.counts = label_counts(categories, name)
        self.image_processor = RisImageProcessor(geometry="squash", image_size=image_size)
        self.side = image_size // 4

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        row = self.dataset[key[1]]
        pixels = self.image_processor(row["image"], return_tensors="pt")["pixel_values"][0]
        things = self.things(row, key)
        looks = self.looks(row)
        labels = np.full((len(self.counts), *things.shape), -1, np.int64)
        labels[0] = 0
        boxes = np.zeros((4, *things.shape), np.float32)
        for index, thing in enumerate(row["objects"]):
            left, top, width, height = thing["bbox"]
            x0, x1 = left / row["width"], (left + width) / row["width"]
            y0, y1 = top / row["height"], (top + height) / row["height"]
            box = (1 - x1, y0, 1 - x0, y1) if self.mirrored(key) else (x0, y0, x1, y1)
            labels[:, things == index] = np.array([self.number[thing["category"]], *looks[index]])[:, None]
            boxes[:, things == index] = np.array(box, np.float32)[:, None]
        pixels = pixels.flip(-1) if self.mirrored(key) else pixels
        return pixels, torch.from_numpy(labels), torch.from_numpy(boxes)

    def looks(self, row: dict[str, Any]) -> list[list[int]]:
        """The numbers of colour, texture and size of each object; none where the data set does not say them."""
        if self.scenes is None:
            return [[] for _ in row["objects"]]
        split, index = divmod(row["image_id"], 10_000_000)
        looks = self.scenes[list(SPLITS)[split]].looks(index)
        return [[values.index(getattr(look, name)) for name, values in _ATTRIBUTES.items()] for look in looks]

    def mirrored(self, key: tuple[int, int]) -> bool:
        return self.augment and bool(seed_of(self.seed, *key) % 2)

    def things(self, row: dict[str, Any], key: tuple[int, int]) -> np.ndarray:
        """(S/4, S/4): the index of the object at each position, -1 where none is; mirrored as the key says."""
        y = (np.arange(self.side) * 2 + 1) * row["height"] // (2 * self.side)
        x = (np.arange(self.side) * 2 + 1) * row["width"] // (2 * self.side)
        things = np.full((self.side, self.side), -1)
        for index, thing in enumerate(row["objects"]):
            things[decode_mask(thing["mask"])[np.ix_(y, x)]] = index
        return things[:, ::-1] if self.mirrored(key) else things


def label_counts(categories: Sequence[str], name: str) -> list[int]:
    """How many values each label of `ObjectRows` has, for these categories and the data set `name`."""
    return [len(categories) + 1, *(map(len, _ATTRIBUTES.values()) if name in NAMES else ())]


class DenseHeads(nn.Module):
    """A 1x1 convolution per level; each level's answer, and their sum, at a quarter of the image's side.

    counts: how many values each label has, as `ObjectRows.counts`.
    """

    def __init__(self, channels: list[int], counts: list[int]):
        super().__init__()
        self.heads = nn.ModuleList(nn.Conv2d(width, sum(counts) + 4, 1) for width in channels)

    def forward(self, levels: list[Tensor], side: int) -> list[Tensor]:
        """Maps (B, C_i, h_i, w_i) -> [sum, level 1, ...], each (B, sum of the counts + 4, side, side)."""
        answers = [
            F.interpolate(head(level), size=(side, side), mode="bilinear", align_corners=False)
            for head, level in zip(self.heads, levels, strict=True)
        ]
        return [sum(answers), *answers]


def dense_loss(answer: Tensor, labels: Tensor, boxes: Tensor, counts: list[int]) -> Tensor:
    """Cross-entropies of the labels, summed, plus four times the L1 error of the boxes.

    Background counts 0.3 among the categories: it covers most positions. It has no other label.
    """
    *scores, places = answer.float().split([*counts, 4], 1)
    weight = places.new_ones(counts[0])
    weight[0] = 0.3
    inside = labels[:, 0] > 0
    covered = inside.sum().clamp(min=1)
    loss = F.cross_entropy(scores[0], labels[:, 0], weight=weight)
    loss = loss + 4 * ((places - boxes).abs().mean(1) * inside).sum() / covered
    for of_label, values in zip(scores[1:], labels.unbind(1)[1:], strict=True):
        loss = loss + F.cross_entropy(of_label, values, ignore_index=-1, reduction="sum") / covered
    return loss


@torch.no_grad()
def measure(encoder: VisionEncoder, heads: DenseHeads, rows: ObjectRows) -> dict[str, float]:
    """Figures of the validation rows, see the head of this file; a box's error is in shares of the side."""
    right = error = count = whole = objects = 0.0
    encoder.eval()
    for start in range(0, len(rows), 50):
        batch = [rows[0, index] for index in range(start, min(start + 50, len(rows)))]
        pixels, labels, boxes = (torch.stack(column) for column in zip(*batch))
        *scores, places = heads(encoder(pixels), rows.side)[0].split([*rows.counts, 4], 1)
        inside = labels[:, 0] > 0
        right += ((scores[0].argmax(1) == labels[:, 0]) & inside).sum().item()
        error += ((places - boxes).abs().mean(1) * inside).sum().item()
        count += inside.sum().item()
        of_objects = objects_right(scores[:3], labels, boxes)
        whole, objects = whole + sum(of_objects), objects + len(of_objects)
    encoder.train()
    return {"category_accuracy": right / count, "object_accuracy": whole / objects, "box_error": error / count}


def objects_right(scores: list[Tensor], labels: Tensor, boxes: Tensor) -> list[bool]:
    """Of each object of B images: whether the mean of its positions' scores (B, values, s, s) is right in all labels.

    Labels (B, labels, s, s), of which the first are meant; objects are told apart by their boxes (B, 4, s, s).
    """
    verdicts = []
    for image in range(len(labels)):
        inside = labels[image, 0] > 0
        _, owner = boxes[image][:, inside].unique(dim=1, return_inverse=True)
        for index in range(int(owner.max()) + 1 if owner.numel() else 0):
            own = owner == index
            truth = labels[image][:, inside][:, own][:, 0]
            means = [of_label[image][:, inside][:, own].mean(1) for of_label in scores]
            verdicts.append(all(int(mean.argmax()) == int(truth[k]) for k, mean in enumerate(means)))
    return verdicts


def pretrain(options: argparse.Namespace) -> None:
    recipe = load_recipe(options.recipe, options.overrides)
    data, seed = recipe.data, recipe.training.seed
    set_seed(seed)
    train = load_split(data.name, data.split, data.size, data.image_size)
    val = load_split(data.name, data.validation_split, data.validation_size, data.image_size)
    categories = sorted({thing["category"] for objects in train["objects"] for thing in objects})
    config = build_config(recipe, words=8)  # only its image side is read
    rows = ObjectRows(train, categories, config.image_size, seed, "flip" in data.augment, data.name)
    encoder = build_vision_encoder(config.vision_config)
    heads = DenseHeads(encoder.channels, rows.counts)
    encoder.to(memory_format=torch.channels_last)
    val_rows = ObjectRows(val, categories, config.image_size, seed, False, data.name)
    parameters = by_dimensions([*encoder.parameters(), *heads.parameters()])
    work = Run(options, seed, [encoder, heads], *parameters, 200, 20, lambda: measure(encoder, heads, val_rows))
    order = StepBatches(len(rows), options.batch_size, seed, work.steps, options.steps)
    loader = torch.utils.data.DataLoader(rows, batch_sampler=order, num_workers=options.workers)
    for pixels, labels, boxes in work.seeded(loader):
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            answers = heads(encoder(pixels), rows.side)
        total, *levels = [dense_loss(answer, labels, boxes, rows.counts) for answer in answers]
        work.step(total + sum(levels) / len(levels), shown=total)
    save_vision_encoder(encoder, options.out)
    work.write()


def save_vision_encoder(encoder: VisionEncoder, folder: Path) -> None:
    """vision_encoder.safetensors, which a recipe's `initialize.vision_encoder` reads."""
    state = {name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}
    save_file(state, folder / "vision_encoder.safetensors", metadata={"format": "pt"})


def main(arguments: list[str] | None = None) -> None:
    parser = options_parser(__doc__, steps=5000, batch_size=32, learning_rate=1.5e-3, evaluate_every=1000)
    parser.add_argument("--workers", type=int, default=0, help="processes that load data")
    run(pretrain, parser, arguments)


if __name__ == "__main__":
    main()
