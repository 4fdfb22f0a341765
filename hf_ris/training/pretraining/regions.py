"""Pretrain a recipe's encoders on whole scenes, region by region.

Each object's vector is the mean of the image's map over the object, and is to be found among all objects of the batch
by one of the data's own expressions, places included ("the left cup"; in a mirrored scene, the right one). The levels
of a convolutional encoder also say which category lies at each position and where its box is, as in
`pretrain_vision.py`. All losses are summed. Made for two CPU cores.

It is the second half of a tiny CLIP's pretraining, whose first half shows one object at a time (CRIS, SegVLM, EAVL):

    python train/pretrain_clip.py --recipe train/recipes/cris/refscenes.yaml --out outputs/clip-crops
    python train/pretrain_regions.py --recipe train/recipes/cris/refscenes.yaml --clip outputs/clip-crops \\
        --sizes 128 256 --out outputs/clip-refscenes

With --frozen-clip that CLIP stays as it is, and the recipe's own vision encoder learns to fit it, for
`initialize.vision_encoder` (VATEX):

    python train/pretrain_regions.py --recipe train/recipes/vatex/refscenes.yaml --clip outputs/clip-refscenes \\
        --frozen-clip --out outputs/vatex-vision

Without --clip the recipe's vision encoder and its Bi-GRU learn together, for `initialize.vision_encoder` and
`initialize.text_encoder` (VLT):

    python train/pretrain_regions.py --recipe train/recipes/vlt/refscenes.yaml --out outputs/vlt-regions

To see that it works, in seconds: --steps 20 --scenes 64. Of the recipe only the encoders' configs, model.image_size (a
CLIP's own: model.clip_image_size, where there is one), processor.tokenizer, names, splits, image_size and
validation_size of data, and training.seed matter. A CLIP's folder is one that open_clip loads, as the first half's is.
Each folder has log.jsonl and pretraining.json (arguments, versions, hardware, seconds, how often an object of the
validation split finds its "a red cup" among all pairs of colour and category at each size, and under `after` what the
CLIP's own says).
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import open_clip
import torch
from accelerate.utils import set_seed
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForImageSegmentation, AutoTokenizer

from hf_ris.data import load_split
from hf_ris.data.refscenes.scenes import CATEGORIES
from hf_ris.data.refscenes.sentences import COLOUR_WORDS
from hf_ris.data.transforms import mirror_text
from hf_ris.models.clip_encoders import ClipResNet, build_clip_image_encoder
from hf_ris.models.processing_ris import RisImageProcessor
from hf_ris.models.text_encoders import BiGru
from hf_ris.models.vision_encoders import build_vision_encoder
from hf_ris.training.build import build_config, build_tokenizer
from hf_ris.training.order import StepBatches, seed_of
from hf_ris.training.pretraining.clip import TinyClip, looks, prompt
from hf_ris.training.pretraining.run import Run, by_dimensions, options_parser, run
from hf_ris.training.pretraining.vision import (
    DenseHeads,
    ObjectRows,
    dense_loss,
    label_counts,
    save_vision_encoder,
)
from hf_ris.training.recipe import load_recipe


class SceneRegions(ObjectRows):
    """Scenes by key (epoch, index): `ObjectRows`' item, regions (K, S/4, S/4) of the described objects in [0, 1],
    K captions and K (colour, category). Training draws the captions, by the key; validation takes the first.
    """

    def __init__(self, dataset: Dataset, name: str, image_size: int, seed: int, augment: bool, of_clip: bool = True):
        super().__init__(dataset, CATEGORIES, image_size, seed, augment, name)
        if of_clip:  # whose pixels are normalised otherwise
            self.image_processor = RisImageProcessor(
                image_size=image_size,
                image_mean=open_clip.OPENAI_DATASET_MEAN,
                image_std=open_clip.OPENAI_DATASET_STD,
            )

    def __getitem__(self, key: tuple[int, int]):
        row = self.dataset[key[1]]
        things = self.things(row, key)
        regions, captions, truths = [], [], []
        for position, (colour, texts) in looks(row).items():
            inside = things == position
            if self.mirrored(key):
                texts = [mirrored for text in texts if (mirrored := mirror_text(text)) is not None]
            if inside.any() and texts:  # not wholly behind others, nor smaller than a position
                regions.append(torch.from_numpy(inside.astype(np.float32)))
                choice = seed_of(self.seed, *key, position) % len(texts) if self.augment else 0
                captions.append(texts[choice])
                truths.append((colour, row["objects"][position]["category"]))
        regions = torch.stack(regions) if regions else torch.empty(0, self.side, self.side)
        return *super().__getitem__(key), regions, captions, truths

    @staticmethod
    def collate(items: list) -> tuple:
        """-> pixels, labels, boxes (B, ...), regions (N, ...), the scene (N,) of each, N captions, N truths."""
        pixels, labels, boxes, regions, captions, truths = zip(*items)
        scene = torch.arange(len(items)).repeat_interleave(torch.tensor([len(region) for region in regions]))
        batch = [torch.stack(column) for column in (pixels, labels, boxes)]
        return *batch, torch.cat(regions), scene, sum(captions, []), sum(truths, [])


def region_features(joint: Tensor, regions: Tensor, scene: Tensor) -> Tensor:
    """Maps (B, E, h, w), regions (N, S, S) in [0, 1] of scenes (N,) -> (N, E) float32 of length 1."""
    share = F.adaptive_avg_pool2d(regions[:, None], joint.shape[-2:])[:, 0]
    return F.normalize(torch.einsum("nehw,nhw->ne", joint.float().index_select(0, scene), share), dim=-1)


class SceneClip(nn.Module):
    """A pretrained folder's two towers, the image tower seen as the models see it, and heads for a ResNet's levels."""

    def __init__(self, config, folder: Path, counts: list[int]):
        super().__init__()
        self.clip = TinyClip(config, AutoTokenizer.from_pretrained(folder))
        try:
            self.clip.model.load_state_dict(load_file(folder / "open_clip_model.safetensors"))
        except RuntimeError as error:
            raise ValueError(f"--clip: {folder} is another CLIP than model.clip_config asks for.") from error
        self.text_tower, self.encoder = self.clip.model, build_clip_image_encoder(config)
        self.encoder.backbone.load_state_dict(self.text_tower.visual.state_dict())
        self.text_tower.visual.requires_grad_(False)  # its twin in `encoder` learns, and is written back at the end
        self.logit_scale = self.text_tower.logit_scale
        dense = isinstance(self.encoder, ClipResNet)
        self.heads = DenseHeads(self.encoder.channels, counts) if dense else None

    def joint(self, pixels: Tensor, side: int) -> tuple[Tensor, list[Tensor]]:
        """(B, 3, S, S) -> the map in CLIP's joint space (B, E, h, w), and what the heads answer at side x side."""
        if self.heads is None:
            return self.encoder.joint(pixels)[0], []
        levels = self.encoder(pixels)
        return self.encoder.pool(levels[-1])[0], self.heads(levels, side)

    def sentences(self, texts: list[str]) -> Tensor:
        """N texts -> (N, E) float32 of length 1."""
        return F.normalize(self.text_tower.encode_text(self.clip.tokenize(texts)).float(), dim=-1)

    def save(self, folder: Path) -> None:
        self.text_tower.visual.load_state_dict(self.encoder.backbone.state_dict())
        self.clip.save(folder, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)


class FrozenText(nn.Module):
    """The text tower of a pretrained folder, which stays as it is."""

    def __init__(self, clip: SceneClip):
        super().__init__()
        self.clip, self.width = clip.requires_grad_(False), clip.sentences(["a"]).shape[1]

    @torch.no_grad()
    def sentences(self, texts: list[str]) -> Tensor:
        self.clip.eval()
        return self.clip.sentences(texts)

    def save(self, folder: Path) -> None:
        """Nothing of it is new."""


class GruText(nn.Module):
    """A Bi-GRU with its tokenizer; a sentence is the mean of its words' states."""

    def __init__(self, encoder: BiGru, tokenizer):
        super().__init__()
        self.encoder, self.tokenizer, self.width = encoder, tokenizer, encoder.channels

    def sentences(self, texts: list[str]) -> Tensor:
        encoded = self.tokenizer(texts, padding=True, return_tensors="pt")
        return F.normalize(self.encoder(encoded["input_ids"], encoded["attention_mask"])[1].float(), dim=-1)

    def save(self, folder: Path) -> None:
        save_file(self.encoder.state_dict(), folder / "text_encoder.safetensors", metadata={"format": "pt"})
        self.tokenizer.save_pretrained(folder)


class SceneVision(nn.Module):
    """A vision encoder, which learns beside a text: else as `SceneClip`.

    The joint map is the sum of the levels, each through a 1x1 convolution, at the size of the finest.
    """

    def __init__(self, config, text: FrozenText | GruText, counts: list[int]):
        super().__init__()
        self.text, self.encoder = text, build_vision_encoder(config)
        self.heads = DenseHeads(self.encoder.channels, counts)
        self.projections = nn.ModuleList(nn.Conv2d(channels, text.width, 1) for channels in self.encoder.channels)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # CLIP's own start

    def joint(self, pixels: Tensor, side: int) -> tuple[Tensor, list[Tensor]]:
        levels = self.encoder(pixels)
        maps = [projection(level) for projection, level in zip(self.projections, levels)]
        size = maps[0].shape[-2:]
        joint = sum(F.interpolate(level, size=size, mode="bilinear", align_corners=False) for level in maps)
        return joint, self.heads(levels, side)

    def sentences(self, texts: list[str]) -> Tensor:
        return self.text.sentences(texts)

    def save(self, folder: Path) -> None:
        save_vision_encoder(self.encoder, folder)
        self.text.save(folder)


@torch.no_grad()
def measure(model: SceneClip | SceneVision, rows: SceneRegions) -> float:
    """Of the objects whose colour is named: how often the best "a <colour> <category>" of all pairs is right."""
    model.eval()
    pairs = [(colour, category) for colour in COLOUR_WORDS for category in CATEGORIES]
    texts = model.sentences([prompt(*pair) for pair in pairs])
    answers, truths = [], []
    for start in range(0, len(rows), 50):
        items = [rows[0, index] for index in range(start, min(start + 50, len(rows)))]
        pixels, _, _, regions, scene, _, of_items = rows.collate(items)
        image = region_features(model.joint(pixels, rows.side)[0], regions, scene)
        answers += [pairs[best] for best in (image @ texts.T).argmax(1).tolist()]
        truths += of_items
    model.train()
    right = [answer == truth for answer, truth in zip(answers, truths) if truth[0] is not None]
    return sum(right) / len(right)


def scene_model(
    architecture: str, config, tokenizer, options: argparse.Namespace, counts: list[int]
) -> SceneClip | SceneVision:
    """What `options` say is to learn; counts: values of the labels that its heads tell."""
    if options.clip is None:
        kind = AutoModelForImageSegmentation.from_config(config)
        encoder = getattr(kind, "text_encoder", None)
        if options.frozen_clip or not isinstance(encoder, BiGru):
            raise ValueError(f"--clip: {architecture} has no Bi-GRU that could learn in its place; name a folder.")
        return SceneVision(config.vision_config, GruText(encoder, tokenizer), counts)
    if "clip_config" not in config.sub_configs:
        raise ValueError(f"--clip: {architecture} has no CLIP: no model.clip_config.")
    clip = SceneClip(config.clip_config, options.clip, counts)
    if not options.frozen_clip:
        return clip
    if "vision_config" not in config.sub_configs:
        raise ValueError(f"--frozen-clip: {architecture} has no vision encoder beside its CLIP.")
    return SceneVision(config.vision_config, FrozenText(clip), counts)


def pretrain(options: argparse.Namespace) -> None:
    recipe = load_recipe(options.recipe, options.overrides)
    data, seed = recipe.data, recipe.training.seed
    if options.clip is not None and not (options.clip / "open_clip_model.safetensors").is_file():
        raise ValueError(
            f"--clip: {options.clip} holds no CLIP; make it with `python -m hf_ris.training.pretraining.clip`."
        )
    set_seed(seed)
    if options.clip is None:
        tokenizer = build_tokenizer(recipe.processor, load_split(data.name, data.split, data.size, data.image_size))
    else:
        tokenizer = AutoTokenizer.from_pretrained(options.clip)
    config = build_config(recipe, words=len(tokenizer))
    model = scene_model(recipe.architecture, config, tokenizer, options, label_counts(CATEGORIES, data.name))
    model.to(memory_format=torch.channels_last)
    train = load_split(data.name, data.split, options.scenes, data.image_size)
    val = load_split(data.name, data.validation_split, data.validation_size, data.image_size)
    of_clip = isinstance(model, SceneClip)
    sizes = options.sizes or [recipe.model.get("clip_image_size", config.image_size) if of_clip else config.image_size]
    rows_of = [SceneRegions(train, data.name, size, seed, augment=True, of_clip=of_clip) for size in sizes]
    validations = [SceneRegions(val, data.name, size, seed, augment=False, of_clip=of_clip) for size in sizes]
    parameters = by_dimensions([parameter for parameter in model.parameters() if parameter.requires_grad])
    work = Run(
        options,
        seed,
        [model],
        *parameters,
        warmup_steps=100,
        log_every=50,
        measure=lambda: {
            f"region_retrieval_accuracy_at_{size}": measure(model, rows) for size, rows in zip(sizes, validations)
        },
    )
    order = StepBatches(len(train), options.batch_size, seed, work.steps, options.steps)
    contrast = open_clip.ClipLoss()
    for step, keys in enumerate(work.seeded(order), work.steps):
        rows = rows_of[step % len(sizes)]
        pixels, labels, boxes, regions, scene, captions, _ = rows.collate([rows[key] for key in keys])
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            joint, answers = model.joint(pixels.contiguous(memory_format=torch.channels_last), rows.side)
            texts = model.sentences(captions)
        loss = contrast(region_features(joint, regions, scene), texts, model.logit_scale.exp())
        if answers:
            total, *levels = [dense_loss(answer, labels, boxes, rows.counts) for answer in answers]
            loss = loss + total + sum(levels) / len(levels)
        work.step(loss)
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))  # as CLIP was trained
    model.save(options.out)
    told = {"scenes": options.scenes, "sizes": sizes, "frozen_clip": options.frozen_clip}
    if options.clip is not None:
        told["after"] = json.loads((options.clip / "pretraining.json").read_text())
    work.write(**told)


def main(arguments: list[str] | None = None) -> None:
    parser = options_parser(__doc__, steps=2000, batch_size=16, learning_rate=1.5e-3, evaluate_every=500)
    parser.add_argument(
        "--clip", type=Path, help="folder of a CLIP that learns on, as the pretraining of CLIP writes it"
    )
    parser.add_argument("--frozen-clip", action="store_true", help="it stays; the model's own vision encoder learns")
    parser.add_argument(
        "--sizes", type=int, nargs="+", metavar="SIDE", help="of the scenes, taken in turns (the recipe's image size)"
    )
    parser.add_argument("--scenes", type=int, default=20_000, help="of the training split; a batch is of scenes")
    run(pretrain, parser, arguments)


if __name__ == "__main__":
    main()
