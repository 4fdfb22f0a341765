"""Pretrain a recipe's CLIP, image tower and text tower together, on crops of RefScenes objects and their captions.

CRIS and its kind start from an image and a text encoder that CLIP has aligned. What is small enough to be trained here
has no public CLIP; this makes one with open_clip's model and loss: each object is cut out of its scene and is to be
found among all objects of the batch by one of its captions, and the caption by the object. Made for two CPU cores:

    python train/pretrain_clip.py --recipe train/recipes/cris/refscenes.yaml --out outputs/clip-refscenes
    python train/train.py --recipe train/recipes/cris/refscenes.yaml

The second recipe names the weights (`initialize.clip`). Its tokenizer must number the words as the first's did: with
other data it takes `processor.tokenizer=pretrained processor.path=outputs/clip-refscenes`.

To see that it works, in seconds: --steps 20 --scenes 64 data.size=64. Of the recipe only model.clip_config, processor,
data.image_size, data.validation_size, training.seed and the data whose words the tokenizer learns (data.name,
data.split, data.size) matter.

Captions say how an object looks: those expressions of `refscenes_plus`, which has no places, that speak of it alone,
what it is not among them ("the cup without stripes"); where they name its colour also "a red cup", and all that they
name of size, texture and colour together, "a small striped red cup". The folder is one that open_clip loads
(`local-dir:outputs/clip-refscenes`), with the tokenizer, log.jsonl and pretraining.json (arguments, versions, hardware,
seconds, and how often a crop of the validation split finds its "a red cup" among all pairs of colour and category).
"""

import argparse
import json
import math
import random
import re
from pathlib import Path
from typing import Any

import open_clip
import torch
from accelerate.utils import set_seed
from datasets import Dataset
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from hf_ris.data import load_split
from hf_ris.data.refscenes.scenes import CATEGORIES
from hf_ris.data.refscenes.sentences import COLOUR_WORDS, SIZE_WORDS, TEXTURE_WORDS, an
from hf_ris.models.clip_encoders import clip_model_config
from hf_ris.models.configuration_ris import ClipEncoderConfig
from hf_ris.models.processing_ris import RisImageProcessor
from hf_ris.training.build import build_config, build_tokenizer
from hf_ris.training.order import StepBatches
from hf_ris.training.pretraining.run import Run, options_parser, run
from hf_ris.training.recipe import load_recipe


CAPTIONS = "refscenes_plus"
# Words that name a value, in the order in which a prompt has them: attribute -> word -> value
_VALUES = {
    "size": {word: size for size, words in SIZE_WORDS.items() for word in words},
    "texture": {word: texture for texture, words in TEXTURE_WORDS.items() for word in words},
    "colour": {word: colour for colour, words in COLOUR_WORDS.items() for word in words},
}


_DENIAL = re.compile(r"\b(?:not|without)\b")


def looks(row: dict[str, Any]) -> dict[int, tuple[str | None, list[str]]]:
    """Of each object that an expression describes alone: its colour, where one is named, and the captions it may get.

    These are its expressions, and prompts of what they say of it ahead of a "not" or "without".
    """
    said: dict[int, list[str]] = {}
    for expression in row["expressions"]:
        if len(expression["object_indices"]) == 1:
            said.setdefault(expression["object_indices"][0], []).append(expression["text"])
    described = {}
    for index, texts in said.items():
        words = [word for text in texts for word in _DENIAL.split(text)[0].split()]
        # they are true of one object, so they name one value
        named = {name: of[word] for name, of in _VALUES.items() for word in words if word in of}
        colour, category = named.get("colour"), row["objects"][index]["category"]
        plain = [prompt(colour, category)] if colour else []
        if len(named) > len(plain):
            plain.append(an(" ".join([*(named[name] for name in _VALUES if name in named), category])))
        described[index] = colour, texts + plain
    return described


def prompt(colour: str, category: str) -> str:
    return an(f"{colour} {category}")


def crop(image: Image.Image, bbox: list[float], margin: float, shift: tuple[float, float] = (0, 0)) -> Image.Image:
    """A square of `margin` times the longer side of the box, as far as the image reaches, shifted to lie inside it.

    `shift` moves its centre, in sides of the box.
    """
    x, y, width, height = bbox
    side = max(4, min(round(margin * max(width, height)), image.width, image.height))
    left, top = x + width * (0.5 + shift[0]) - side / 2, y + height * (0.5 + shift[1]) - side / 2
    left, top = (round(min(max(start, 0), most - side)) for start, most in ((left, image.width), (top, image.height)))
    return image.crop((left, top, left + side, top + side))


class ObjectCrops(torch.utils.data.Dataset):
    """Scenes by key (epoch, index): crops (K, 3, S, S) of their described objects, K captions, K (colour, category).

    Training draws the caption, the crop's margin and place, and its mirror image, by the key; validation has none of
    it, and the first caption.
    """

    def __init__(self, dataset: Dataset, image_processor: RisImageProcessor, seed: int, augment: bool):
        self.dataset, self.image_processor = dataset, image_processor
        self.seed, self.augment = seed, augment

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, list[str], list[tuple[str | None, str]]]:
        epoch, index = key
        rng = random.Random(f"{self.seed} {epoch} {index}")
        row = self.dataset[index]
        crops, captions, truths = [], [], []
        for position, (colour, texts) in looks(row).items():
            thing = row["objects"][position]
            if self.augment:
                margin, shift = rng.uniform(1.1, 2.2), (rng.uniform(-0.15, 0.15), rng.uniform(-0.15, 0.15))
                piece = crop(row["image"], thing["bbox"], margin, shift)
                piece = piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else piece
            else:
                piece = crop(row["image"], thing["bbox"], 1.5)
            crops.append(piece)
            captions.append(rng.choice(texts) if self.augment else texts[0])
            truths.append((colour, thing["category"]))
        if not crops:
            return torch.empty(0, 3, self.image_processor.image_size, self.image_processor.image_size), [], []
        return self.image_processor(crops, return_tensors="pt")["pixel_values"], captions, truths

    @staticmethod
    def collate(items: list) -> tuple[Tensor, list[str], list[tuple[str | None, str]]]:
        """Scenes -> all their crops, captions and truths, one after another."""
        pixels, captions, truths = zip(*items)
        return torch.cat(pixels), sum(captions, []), sum(truths, [])


class TinyClip:
    """open_clip's model of a `ClipEncoderConfig`, with the tokenizer that pads to its length."""

    def __init__(self, config: ClipEncoderConfig, tokenizer):
        self.tokenizer = tokenizer
        self.settings = clip_model_config(config)
        word = tokenizer("a", return_special_tokens_mask=True)
        if not word["special_tokens_mask"][-1]:
            raise ValueError(
                "CLIP reads a text's vector from the token after its words: processor.tokenizer must put "
                "one there, as wordpiece and clip do."
            )
        # told by its id: only in CLIP's own vocabulary it is the largest
        self.settings["text_cfg"] |= {"pool_type": "eos", "eos_id": word["input_ids"][-1], "pad_id": 0}
        self.model = open_clip.CLIP(**self.settings)

    def tokenize(self, texts: list[str]) -> Tensor:
        """(N, context length) ids, as the models' processors make them, padded with 0 to the full length."""
        length = self.settings["text_cfg"]["context_length"]
        encoded = self.tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        return encoded["input_ids"] * encoded["attention_mask"]

    def features(self, pixels: Tensor, texts: list[str], bf16: bool) -> tuple[Tensor, Tensor]:
        """Of K images (K, 3, S, S) and N texts: (K, E) and (N, E) float32 of length 1."""
        pixels, ids = pixels.contiguous(memory_format=torch.channels_last), self.tokenize(texts)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            features = self.model.encode_image(pixels), self.model.encode_text(ids)
        image, text = (F.normalize(feature.float(), dim=-1) for feature in features)
        return image, text

    def save(self, folder: Path, mean: list[float], std: list[float]) -> None:
        """As open_clip's `local-dir:` and its Hub repositories are."""
        state = {name: tensor.contiguous() for name, tensor in self.model.state_dict().items()}
        save_file(state, folder / "open_clip_model.safetensors", metadata={"format": "pt"})
        preprocessing = {"mean": mean, "std": std, "resize_mode": "squash"}
        settings = {"model_cfg": self.settings, "preprocess_cfg": preprocessing}
        (folder / "open_clip_config.json").write_text(json.dumps(settings, indent=2) + "\n")
        self.tokenizer.save_pretrained(folder)


@torch.no_grad()
def measure(clip: TinyClip, crops: ObjectCrops) -> dict[str, float]:
    """How often a crop's best "a <colour> <category>" of all pairs is right, and right in colour and in category.

    Of the crops whose colour an expression names.
    """
    clip.model.eval()
    pairs = [(colour, category) for colour in COLOUR_WORDS for category in CATEGORIES]
    answers, truths = [], []
    for start in range(0, len(crops), 50):
        items = [crops[0, index] for index in range(start, min(start + 50, len(crops)))]
        pixels, _, of_items = crops.collate(items)
        image, text = clip.features(pixels, [prompt(*pair) for pair in pairs], bf16=False)
        answers += [pairs[best] for best in (image @ text.T).argmax(1).tolist()]
        truths += of_items
    clip.model.train()
    right = [(a[0] == t[0], a[1] == t[1]) for a, t in zip(answers, truths) if t[0] is not None]
    names = ("retrieval_accuracy", "colour_accuracy", "category_accuracy")
    counts = sum(map(all, right)), sum(colour for colour, _ in right), sum(category for _, category in right)
    return {name: count / len(right) for name, count in zip(names, counts)}


def pretrain(options: argparse.Namespace) -> None:
    recipe = load_recipe(options.recipe, options.overrides)
    data, seed = recipe.data, recipe.training.seed
    set_seed(seed)
    train = load_split(CAPTIONS, "train", options.scenes, data.image_size)
    val = load_split(CAPTIONS, "val", data.validation_size, data.image_size)
    tokenizer = build_tokenizer(recipe.processor, load_split(data.name, data.split, data.size, data.image_size))
    config = build_config(recipe, words=len(tokenizer))
    if "clip_config" not in config.sub_configs:
        raise ValueError(f"{options.recipe} is for {recipe.architecture}, which has no CLIP: no model.clip_config.")
    clip = TinyClip(config.clip_config, tokenizer)
    clip.model.to(memory_format=torch.channels_last)
    image_processor = RisImageProcessor(
        image_size=clip.settings["vision_cfg"]["image_size"],
        image_mean=open_clip.OPENAI_DATASET_MEAN,
        image_std=open_clip.OPENAI_DATASET_STD,
    )
    parameters = dict(clip.model.named_parameters())
    decayed = {name for name, p in parameters.items() if p.ndim > 1 and "positional_embedding" not in name}
    crops = ObjectCrops(train, image_processor, seed, augment=True)
    validation = ObjectCrops(val, image_processor, seed, augment=False)
    contrast = open_clip.ClipLoss()
    work = Run(
        options,
        seed,
        [clip.model],
        [p for name, p in parameters.items() if name in decayed],
        [p for name, p in parameters.items() if name not in decayed],
        warmup_steps=100,
        log_every=50,
        measure=lambda: measure(clip, validation),
    )
    order = StepBatches(len(crops), options.batch_size, seed, work.steps, options.steps)
    loader = torch.utils.data.DataLoader(
        crops, batch_sampler=order, num_workers=options.workers, collate_fn=crops.collate
    )
    for pixels, captions, _ in work.seeded(loader):
        image, text = clip.features(pixels, captions, options.bf16)
        work.step(contrast(image, text, clip.model.logit_scale.exp()))
        with torch.no_grad():
            clip.model.logit_scale.clamp_(0, math.log(100))  # as CLIP was trained
    clip.save(options.out, image_processor.image_mean, image_processor.image_std)
    work.write(scenes=options.scenes)


def main(arguments: list[str] | None = None) -> None:
    parser = options_parser(__doc__, steps=3000, batch_size=24, learning_rate=2e-3, evaluate_every=500)
    parser.add_argument("--scenes", type=int, default=10_000, help="of the training split; a batch is of scenes")
    parser.add_argument("--workers", type=int, default=0, help="processes that load data")
    run(pretrain, parser, arguments)


if __name__ == "__main__":
    main()
