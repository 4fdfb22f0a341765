"""Pretrain a video model's eyes and words on whole clips: which of a clip's objects does an expression speak of?

Each object's vector is the mean, over its masks in all frames, of the sum of the model's projected levels; an
expression's is the model's own sentence vector (VATEX's F_s, Eq. 5). The right object is to be found among those of the
same clip, most of which look alike, so that the levels have to tell motions apart. No mask is drawn, which costs less
than a training step and says more about the levels. What learns is the vision encoder, the projections of levels and
words, and of the text encoder the vectors of words that `initialize.extend_vocabulary` adds; the rest of it, which
CLIP's heatmap reads too, stays as it is. Made for two CPU cores.

    python train/pretrain_motion.py --recipe vatex_video/refscenes_video --no-bf16 --out outputs/vatex_video-motion \\
        initialize.weights=space/checkpoints/vatex-refscenes

writes a whole checkpoint, for `initialize.weights` of that recipe. To see that it works, in seconds: --steps 20
data.size=16. Of the recipe all that tells model, processor and data matters, and training.seed. The folder also has
log.jsonl and pretraining.json (arguments, versions, hardware, seconds, how often the right object of the validation
split's clips is found, by expressions of motion and others).
"""

import argparse

import numpy as np
import torch
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoProcessor

import hf_ris
from hf_ris.data import VideoTrainingRows, load_split
from hf_ris.data.video_schema import frames_of, mask_of
from hf_ris.metrics import has_motion
from hf_ris.training.build import build_model
from hf_ris.training.order import StepBatches
from hf_ris.training.pretraining.run import Run, by_dimensions, options_parser, run
from hf_ris.training.recipe import load_recipe


class Clips:
    """Rows of `VideoTrainingRows` -> a batch: pixels (B, T, 3, H, W), objects' masks (M, T, H, W) float in [0, 1] and
    clips (M,), texts N, and of each text its object (N,), a number below M. Objects that none of the frames shows and
    expressions of them, or of several objects, are left out."""

    def __init__(self, processor):
        self.processor = processor

    def __call__(self, rows: list[dict]) -> tuple[Tensor, Tensor, Tensor, list[str], Tensor]:
        frames = [[frames_of(row)[place] for place in row["clip"]] for row in rows]
        pictures = [frame for clip in frames for frame in clip]
        pixels = self.processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
        masks, clips, texts, targets = [], [], [], []
        for number, row in enumerate(rows):
            places = {}
            for index, entry in enumerate(row["objects"]):
                found = [mask_of(entry["masks"][place]) for place in row["clip"]]
                shown = np.stack([np.zeros((row["height"], row["width"]), bool) if m is None else m for m in found])
                if shown.any():
                    places[index] = len(masks)
                    masks.append(torch.from_numpy(shown).float())
                    clips.append(number)
            for said in row["expressions"]:
                indices = list(said["object_indices"])
                if len(indices) == 1 and indices[0] in places:
                    texts.append(said["text"])
                    targets.append(places[indices[0]])
        pixels = pixels.unflatten(0, (len(rows), -1))
        return pixels, torch.stack(masks), torch.tensor(clips), texts, torch.tensor(targets)


class Finder(nn.Module):
    """A video model's own levels and sentence vectors, and how sharply they are compared."""

    def __init__(self, model, processor):
        super().__init__()
        self.model, self.processor = model, processor
        self.sharpness = nn.Parameter(torch.tensor(np.log(1 / 0.07), dtype=torch.float32))  # CLIP's own start

    def objects(self, pixels: Tensor, masks: Tensor, clips: Tensor) -> Tensor:
        """(B, T, 3, H, W), (M, T, H, W), (M,) -> (M, C) of length 1."""
        frames = pixels.shape[1]
        levels = self.model.cmd.project(self.model.vision_encoder(pixels)[::-1])  # (B, T, C, h, w), coarsest first
        size = levels[-1].shape[-2:]
        maps = sum(F.interpolate(x.flatten(0, 1), size=size, mode="bilinear", align_corners=False) for x in levels)
        maps = maps.unflatten(0, (-1, frames)).float()
        share = F.adaptive_avg_pool2d(masks, size)
        return F.normalize(torch.einsum("mtchw,mthw->mc", maps.index_select(0, clips), share), dim=-1)

    def sentences(self, texts: list[str]) -> Tensor:
        """N texts -> (N, C) of length 1."""
        said = self.processor.tokenizer(
            texts, padding=True, truncation=True, max_length=self.processor.max_text_length, return_tensors="pt"
        )
        words, _ = self.model.text_encoder(said["input_ids"], said["attention_mask"])
        return F.normalize(self.model.sentence(self.model.text_projection(words), said["attention_mask"]), dim=-1)

    def forward(self, batch: tuple) -> tuple[Tensor, Tensor]:
        """-> logits (N, M), -inf for the objects of other clips, and the right object of each expression (N,)."""
        pixels, masks, clips, texts, targets = batch
        logits = self.sharpness.exp() * self.sentences(texts) @ self.objects(pixels, masks, clips).T
        return logits.masked_fill(clips[targets][:, None] != clips, -torch.inf), targets


@torch.no_grad()
def measure(finder: Finder, rows: VideoTrainingRows, collate: Clips) -> dict[str, float]:
    """How often the right object is found, by expressions of motion and by others."""
    finder.eval()
    right: dict[bool, list[bool]] = {True: [], False: []}
    for start in range(0, len(rows), 10):
        batch = collate([rows[0, index] for index in range(start, min(start + 10, len(rows)))])
        logits, targets = finder(batch)
        for text, hit in zip(batch[3], (logits.argmax(1) == targets).tolist()):
            right[has_motion(text)].append(hit)
    finder.train()
    return {
        f"right_object_of_{name}": sum(right[of]) / len(right[of])
        for name, of in (("motion", True), ("looks", False))
        if right[of]
    }


def learning(model, known: int) -> list[nn.Parameter]:
    """Freezes what stays and returns what learns; of the words those whose number is not below `known`."""
    model.requires_grad_(False)
    for part in (model.vision_encoder, model.cmd.projections, model.text_projection):
        part.requires_grad_(True)
    table = model.get_input_embeddings().weight
    if known < len(table):
        table.requires_grad_(True)
        table.register_hook(lambda gradient: torch.cat([torch.zeros_like(gradient[:known]), gradient[known:]]))
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def pretrain(options: argparse.Namespace) -> None:
    recipe = load_recipe(options.recipe, options.overrides)
    data, seed = recipe.data, recipe.training.seed
    if recipe.architecture not in hf_ris.VIDEO_ARCHITECTURES:
        raise ValueError(f"{options.recipe} is for {recipe.architecture}, which sees no videos.")
    if recipe.initialize.weights in ("scratch", "encoders"):
        raise ValueError("initialize.weights is to name a checkpoint, of an image model or a video model.")
    set_seed(seed)
    train = load_split(data.name, data.split, data.size, data.image_size)
    val = load_split(data.name, data.validation_split, data.validation_size, data.image_size)
    model, processor = build_model(recipe, train)
    known = len(AutoProcessor.from_pretrained(recipe.initialize.weights).tokenizer)
    parameters = learning(model, known)
    finder, collate = Finder(model, processor), Clips(processor)
    rows = VideoTrainingRows(train, None, data.clip_frames, data.clip_sampling, seed)
    validation = VideoTrainingRows(val, None, data.clip_frames, data.clip_sampling, seed)
    table = model.get_input_embeddings().weight
    decayed, others = by_dimensions([p for p in parameters if p is not table])
    others = [*others, finder.sharpness, *([table] if table.requires_grad else [])]  # decay would move all its rows
    work = Run(
        options,
        seed,
        [finder],
        decayed,
        others,
        100,
        log_every=50,
        measure=lambda: measure(finder, validation, collate),
    )
    finder.train()
    for keys in work.seeded(StepBatches(len(rows), options.batch_size, seed, work.steps, options.steps)):
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            logits, targets = finder(collate([rows[key] for key in keys]))
        work.step(F.cross_entropy(logits.float(), targets))
    model.requires_grad_(True)
    model.save_pretrained(options.out)
    processor.save_pretrained(options.out)
    work.write(clips=len(train))


def main(arguments: list[str] | None = None) -> None:
    parser = options_parser(__doc__, steps=1000, batch_size=8, learning_rate=1.5e-3, evaluate_every=250)
    run(pretrain, parser, arguments)


if __name__ == "__main__":
    main()
