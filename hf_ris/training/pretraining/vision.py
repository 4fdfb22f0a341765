"""Pretrain a recipe's vision encoder on a data set's objects, without any expression.

The published models start from an image encoder that has seen ImageNet. What is small enough to be trained here has no
such weights to start from; this gives it some: at each position of the pyramid, say which category lies there and
where its box is. `initialize.vision_encoder` of a recipe reads the file:

    python train/pretrain_vision.py --recipe train/recipes/lavt/refscenes.yaml --steps 5000 \
        --out outputs/vision-refscenes
    python train/train.py --recipe train/recipes/lavt/refscenes.yaml \
        initialize.vision_encoder=outputs/vision-refscenes/vision_encoder.safetensors

To see that it works, in seconds: --steps 20 data.size=64. Only the recipe's model.vision_config, model.image_size,
data.name, data.size and training.seed matter. The folder also gets log.jsonl and pretraining.json (arguments,
versions, hardware, seconds, accuracy on the validation split).
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from datasets import Dataset
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from hf_ris.data import load_split
from hf_ris.data.schema import decode_mask
from hf_ris.models.processing_ris import RisImageProcessor
from hf_ris.models.vision_encoders import VisionEncoder, build_vision_encoder
from hf_ris.training.build import build_config
from hf_ris.training.order import StepBatches, seed_of
from hf_ris.training.pretraining.run import Run, by_dimensions, options_parser, run
from hf_ris.training.recipe import load_recipe


class ObjectRows(torch.utils.data.Dataset):
    """Rows by key (epoch, index): pixels (3, S, S), categories (S/4, S/4) long (0: background), boxes (4, S/4, S/4).

    Boxes are x0, y0, x1, y1 in [0, 1] of the object at that position. Half of the rows are mirrored, by their key.
    """

    def __init__(self, dataset: Dataset, categories: list[str], image_size: int, seed: int, augment: bool):
        self.dataset, self.seed, self.augment = dataset, seed, augment
        self.number = {name: index + 1 for index, name in enumerate(categories)}
        self.image_processor = RisImageProcessor(geometry="squash", image_size=image_size)
        self.side = image_size // 4

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        row = self.dataset[key[1]]
        pixels = self.image_processor(row["image"], return_tensors="pt")["pixel_values"][0]
        things = self.things(row, key)
        categories = np.zeros(things.shape, np.int64)
        boxes = np.zeros((4, *things.shape), np.float32)
        for index, thing in enumerate(row["objects"]):
            left, top, width, height = thing["bbox"]
            x0, x1 = left / row["width"], (left + width) / row["width"]
            y0, y1 = top / row["height"], (top + height) / row["height"]
            box = (1 - x1, y0, 1 - x0, y1) if self.mirrored(key) else (x0, y0, x1, y1)
            categories[things == index] = self.number[thing["category"]]
            boxes[:, things == index] = np.array(box, np.float32)[:, None]
        pixels = pixels.flip(-1) if self.mirrored(key) else pixels
        return pixels, torch.from_numpy(categories), torch.from_numpy(boxes)

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


class DenseHeads(nn.Module):
    """A 1x1 convolution per level; each level's answer, and their sum, at a quarter of the image's side."""

    def __init__(self, channels: list[int], categories: int):
        super().__init__()
        self.heads = nn.ModuleList(nn.Conv2d(width, categories + 1 + 4, 1) for width in channels)

    def forward(self, levels: list[Tensor], side: int) -> list[Tensor]:
        """Maps (B, C_i, h_i, w_i) -> [sum, level 1, ...], each (B, categories + 5, side, side)."""
        answers = [
            F.interpolate(head(level), size=(side, side), mode="bilinear", align_corners=False)
            for head, level in zip(self.heads, levels, strict=True)
        ]
        return [sum(answers), *answers]


def dense_loss(answer: Tensor, categories: Tensor, boxes: Tensor) -> Tensor:
    """Cross-entropy (background counts 0.3: it covers most positions) plus four times the L1 error of the boxes."""
    answer = answer.float()
    scores, places = answer[:, :-4], answer[:, -4:]
    weight = scores.new_ones(scores.shape[1])
    weight[0] = 0.3
    inside = categories > 0
    error = ((places - boxes).abs().mean(1) * inside).sum() / inside.sum().clamp(min=1)
    return F.cross_entropy(scores, categories, weight=weight) + 4 * error


@torch.no_grad()
def measure(encoder: VisionEncoder, heads: DenseHeads, rows: ObjectRows) -> dict[str, float]:
    """Of the positions that objects cover: share with the right category, mean error of the box (share of the side)."""
    right = error = count = 0.0
    encoder.eval()
    for start in range(0, len(rows), 50):
        batch = [rows[0, index] for index in range(start, min(start + 50, len(rows)))]
        pixels, categories, boxes = (torch.stack(column) for column in zip(*batch))
        answer = heads(encoder(pixels), rows.side)[0]
        inside = categories > 0
        right += ((answer[:, :-4].argmax(1) == categories) & inside).sum().item()
        error += ((answer[:, -4:] - boxes).abs().mean(1) * inside).sum().item()
        count += inside.sum().item()
    encoder.train()
    return {"category_accuracy": right / count, "box_error": error / count}


def pretrain(options: argparse.Namespace) -> None:
    recipe = load_recipe(options.recipe, options.overrides)
    data, seed = recipe.data, recipe.training.seed
    set_seed(seed)
    train = load_split(data.name, data.split, data.size, data.image_size)
    val = load_split(data.name, data.validation_split, data.validation_size, data.image_size)
    categories = sorted({thing["category"] for objects in train["objects"] for thing in objects})
    config = build_config(recipe, words=8)  # only its image side is read
    rows = ObjectRows(train, categories, config.image_size, seed, augment="flip" in data.augment)
    encoder = build_vision_encoder(config.vision_config)
    heads = DenseHeads(encoder.channels, len(categories))
    encoder.to(memory_format=torch.channels_last)
    val_rows = ObjectRows(val, categories, config.image_size, seed, augment=False)
    parameters = by_dimensions([*encoder.parameters(), *heads.parameters()])
    work = Run(options, *parameters, 200, 100, lambda: measure(encoder, heads, val_rows))
    order = StepBatches(len(rows), options.batch_size, seed, 0, options.steps)
    loader = torch.utils.data.DataLoader(rows, batch_sampler=order, num_workers=options.workers)
    for pixels, labels, boxes in tqdm(loader, unit="step"):
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            answers = heads(encoder(pixels), rows.side)
        total, *levels = [dense_loss(answer, labels, boxes) for answer in answers]
        work.step(total + sum(levels) / len(levels), shown=total)
    save_vision_encoder(encoder, options.out)
    work.write(seed)


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
