"""Teach a model relations by their landmarks: "the cup next to the blue fish" means looking for the fish first.

An architecture trained on masks alone learns "left of" and "above", since among the cups it is nearly always the
leftmost or topmost one that is meant, but stays near chance with "next to" and "closest to": nothing tells it that it
should have looked for the fish. Here linear heads on maps inside the model also say, for such expressions, where the
landmark is and where the candidates are (the cups). With that at hand, the mask's own loss teaches the rest. The heads
serve training alone and are thrown away.

    python train/pretrain_landmarks.py --recipe finer_masks --out outputs/vlt-landmarks \\
        initialize.weights=space/checkpoints/vlt-refscenes model.overlap_loss_weight=0.4

writes a whole checkpoint, for `initialize.weights` of the same recipe. Its scenes are the first `data.size` of `train`
of RefScenes; each gives up to two expressions of the kind above (`hf_ris.data.refscenes.landmarks`) and up to
`data.max_expressions` of its own, drawn by `data.emphasis`. To see that it works, in seconds: --steps 20 data.size=16.
Of the recipe all that tells model and processor matters beside these, "gray" in data.augment, data.validation_size,
training.seed and training.ema_decay. Most of a step's time goes into finer masks, which have little to learn of
relations: with --refine-every 4 three steps of four leave them out. Where heads do not find the landmark, as CRIS's
after a thousand steps, --hints-first 1500 lets that many steps teach them alone, with more such expressions and passes
that end there.
The folder also has log.jsonl and pretraining.json (arguments, versions, hardware, seconds, and of the validation
split's expressions with a landmark how often the right object is found, the landmark taken for it, how often a blind
choice among the candidates is right, and how often the last head finds the landmark, in the weights before averaging).
"""

import argparse
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.nn import functional as F

from hf_ris.data.collator import RisCollator
from hf_ris.data.refscenes.landmarks import ByLandmark, by_landmark
from hf_ris.data.refscenes.scenes import NAMES, RefScenes, load_refscenes
from hf_ris.data.schema import decode_mask
from hf_ris.data.transforms import GRAY_SHARE, names_colour, sample_expressions, without_colours
from hf_ris.models.clip_encoders import ClipTextEncoder
from hf_ris.models.losses import resize_labels
from hf_ris.models.refinement import COARSEST
from hf_ris.training.build import build_model, weight
from hf_ris.training.optimizer import AveragedWeights
from hf_ris.training.order import StepBatches, seed_of
from hf_ris.training.pretraining.run import Run, by_dimensions, options_parser, run
from hf_ris.training.recipe import load_recipe


# Modules that hold an expression's pixels, as maps (N, C, h, w) or as square grids (N, h w, C); of a tuple the first.
PIXELS = {
    "lts": ("fusion", "segmentation.aspp"),
    "vlt": ("project", "transformer.encoder_norm"),
    "eavl": ("neck", "decoder.layers.0"),
    "cris": ("neck", "decoder.layers.0"),
    "segvlm": ("neck", "decoder.layers.0"),
    "lavt": ("fusions.1", "fusions.2", "decoder.levels.1"),
    "mpg_lqgnet": ("fusions.1", "fusions.2", "pixel_decoder.levels.1"),
    "vatex": ("cmd.attentions.1", "cmd.convolutions.1", "cmd.convolutions.2"),
}
# Modules that hold queries (N, Q, C) about an expression: their mean gives a map of this side.
QUERIES = {"vlt": ("transformer.decoder.0",)}
QUERY_SIDE = 8
BY_LANDMARK, BY_LANDMARK_ALONE = 2, 6  # expressions of an image in a step, and in one that teaches the heads alone
PHRASES = 0.25  # the weight of what is read off sentences beside what is read off maps


class LandmarkBatch(NamedTuple):
    """A model's inputs, and what is known of their N expressions.

    related: which expressions have a landmark (N,), M of them. wanted: (M, 2, S, S), the landmark and the candidates in
    [0, 1]. known: of each of the M its `masks` (K, S, S) of the scene's objects, `target` and `landmark`.
    said: all expressions with a landmark that the scenes could give.
    """

    inputs: dict[str, Tensor]
    related: Tensor
    wanted: Tensor
    known: list[dict]
    said: list[ByLandmark]


class LandmarkScenes:
    """Scenes by index -> a `LandmarkBatch`.

    Args:
        name, split, size, side: as of `load_refscenes`.
        related, others: expressions with a landmark and of the scene's own, so many at most; None is all.
        emphasis: of a recipe's data, for the scene's own.
        gray: show a third of the scenes without colours, as "gray" of a recipe's `augment` does.
    """

    def __init__(
        self,
        name: str,
        split: str,
        size: int | None,
        side: int,
        processor,
        related: int | None = None,
        others: int | None = 0,
        emphasis: dict[str, float] | None = None,
        gray: bool = False,
    ):
        self.scenes, self.rows = RefScenes(name, split, side), load_refscenes(name, split, size, image_size=side)
        self.collate, self.weigh = RisCollator(processor), partial(weight, emphasis or {})
        self.related, self.others, self.gray = related, others, gray

    def __len__(self) -> int:
        return len(self.rows)

    def __call__(self, indices: list[int], seed: int) -> LandmarkBatch:
        rng, rows, known, every = random.Random(seed), [], [], []
        for index in indices:
            row, by = self.rows[index], by_landmark(self.scenes, index)
            every += by
            plain = [one for one in by if not names_colour(one.text)]
            if plain and self.gray and rng.random() < GRAY_SHARE:
                row, by = without_colours(row), plain
            by = rng.sample(by, len(by) if self.related is None else min(len(by), self.related))
            said = row["expressions"] if self.others is None else []
            if self.others:
                said = sample_expressions(row, self.others, rng, self.weigh)["expressions"]
            rows.append(
                row | {"expressions": [{"text": one.text, "object_indices": [one.target]} for one in by] + said}
            )
            masks = torch.from_numpy(np.stack([decode_mask(thing["mask"]) for thing in row["objects"]])).float()
            known += [{"masks": masks, **one._asdict()} for one in by] + [None] * len(said)
        inputs = self.collate(rows)
        related = [one for one in known if one is not None]
        maps = torch.zeros(len(related), 2, *masks.shape[1:])
        for wanted, one in zip(maps, related, strict=True):
            wanted[0] = one["masks"][one["landmark"]]
            wanted[1] = one["masks"][list(one["candidates"])].sum(0)
        return LandmarkBatch(inputs, torch.tensor([one is not None for one in known]), maps, related, every)


class Seen(Exception):
    """A pass of the model has made the last of the maps that heads read."""


class LandmarkHeads(nn.Module):
    """Linear heads on the outputs of a model's modules, which say where the landmark and the candidates are."""

    def __init__(self, model, architecture: str):
        super().__init__()
        self.outputs: dict[str, Tensor] = {}
        self.until: str | None = None  # the module behind which a pass ends
        self.pixels, self.queries = PIXELS[architecture], QUERIES.get(architecture, ())
        self.hooks = [
            model.get_submodule(name).register_forward_hook(self.keep(name)) for name in self.pixels + self.queries
        ]
        self.heads = nn.ModuleList(
            [nn.LazyLinear(2) for _ in self.pixels] + [nn.LazyLinear(2 * QUERY_SIDE**2) for _ in self.queries]
        )

    def keep(self, name: str):
        def hook(module: nn.Module, inputs: tuple, output) -> None:
            self.outputs[name] = output if isinstance(output, Tensor) else output[0]
            if name == self.until:
                raise Seen

        return hook

    @contextmanager
    def alone(self) -> Iterator[None]:
        """A pass of the model inside ends where the heads have what they read, without an answer."""
        self.until = (self.pixels + self.queries)[-1]  # they are named in the order of the pass
        try:
            yield
        except Seen:
            pass
        finally:
            self.until = None

    def forward(self, related: Tensor, wanted: Tensor) -> Tensor:
        """What the last pass of the model left, the expressions that count (N,) bool, (M, 2, S, S) -> a loss.

        The sum over modules and the two maps of the mean binary cross-entropy.
        """
        loss = wanted.new_zeros(())
        if not len(wanted):
            return loss
        for logits in self.logits(related):
            share = F.adaptive_avg_pool2d(wanted, logits.shape[-2:])
            loss = loss + 2 * F.binary_cross_entropy_with_logits(logits, share)
        return loss

    def logits(self, related: Tensor) -> Iterator[Tensor]:
        """Each head's logits (M, 2, h, w) of the landmark and the candidates, from what the last pass left."""
        for name, head in zip(self.pixels + self.queries, self.heads, strict=True):
            output = self.outputs[name][related]
            if name in self.queries:
                logits = head(output).mean(1).unflatten(1, (2, QUERY_SIDE, QUERY_SIDE))
            elif output.ndim == 4:
                logits = head(output.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            else:
                side = math.isqrt(output.shape[1])
                logits = head(output).transpose(1, 2).unflatten(2, (side, side))
            yield logits.float()

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()


class PhraseHeads(nn.Module):
    """Linear heads on the words and sentences of CLIP's text encoder: what candidates and landmark are called.

    By CLIP's own training a sentence holds what its first noun phrase says, and nothing of the landmark, which no map
    can then show.
    """

    def __init__(self, model, processor):
        super().__init__()
        self.encoder, self.processor = [model.text_encoder], processor  # in a list: not this module's own
        self.words = nn.LazyLinear(2)
        self.sentence = nn.LazyLinear(2 * model.text_encoder.vocab_size)

    def forward(self, said: list[ByLandmark]) -> Tensor:
        """The mean cross-entropies of each word's part, and of the tokens of each part among all tokens."""
        texts, tags, tokens = self.targets(said)
        words, sentences = self.encoder[0](**texts)
        real = texts["attention_mask"].bool()
        roles = F.binary_cross_entropy_with_logits(self.words(words).float()[real], tags[real])
        logits = self.sentence(sentences).float().unflatten(1, (2, -1))
        return 2 * roles + F.cross_entropy(logits.flatten(0, 1), tokens.flatten(0, 1))

    def targets(self, said: list[ByLandmark]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """M expressions -> ids and mask (M, L) by name; whether each token says the candidates and whether it says the
        landmark (M, L, 2); of both which tokens of the vocabulary do (M, 2, V), as shares that sum to 1."""
        texts = self.processor._tokenize([one.text for one in said])
        ids = texts["input_ids"]
        tags, tokens = torch.zeros(*ids.shape, 2), torch.zeros(len(said), 2, self.encoder[0].vocab_size)
        for part, field in enumerate(("head", "name")):
            phrases = [self.processor.clean(getattr(one, field)) for one in said]
            phrases = self.processor.tokenizer(phrases, add_special_tokens=False)["input_ids"]
            for row, (line, phrase) in enumerate(zip(ids.tolist(), phrases, strict=True)):
                tokens[row, part, phrase] = 1 / len(set(phrase))
                places = [at for at in range(len(line)) if line[at : at + len(phrase)] == phrase]
                if places:  # not of a text that was cut off
                    start = places[0 if field == "head" else -1]  # the landmark's name is the end of the text
                    tags[row, start : start + len(phrase), part] = 1
        return texts, tags, tokens


class Hints(nn.Module):
    """All heads of a model."""

    def __init__(self, model, processor, batch: LandmarkBatch):
        """batch: any one, from which lazy heads see how wide the maps are.

        Raises:
            ValueError: a batch without any expression that has a landmark.
        """
        super().__init__()
        if not batch.said:
            raise ValueError("the first scenes have no expression with a landmark: raise data.size.")
        self.places = LandmarkHeads(model, model.config.model_type)
        # VATEX's encoder learns only where its config says so
        learns = isinstance(model.text_encoder, ClipTextEncoder) and getattr(model.config, "train_text_encoder", True)
        self.phrases = PhraseHeads(model, processor) if learns else None
        with torch.no_grad():
            model.eval()(**batch.inputs)
            self(batch)

    def forward(self, batch: LandmarkBatch) -> Tensor:
        """The loss of what the last pass of the model, over this batch, left behind."""
        loss = self.places(batch.related, batch.wanted)
        if self.phrases is not None and batch.said:
            loss = loss + PHRASES * self.phrases(batch.said)
        return loss


class Unrefined(nn.Module):
    """In the place of a `MaskRefinement`: the logits stay as they are."""

    def encode(self, pixel_values: Tensor, maps: list[Tensor], content: Tensor | None = None) -> Tensor:
        return pixel_values

    def forward(self, logits: Tensor, image: Tensor, image_index: Tensor, content: Tensor | None = None) -> Tensor:
        return logits


@contextmanager
def coarse(model, inputs: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The model without its refinement, and its inputs with the labels' shares of cells of stride 4."""
    kept, model.refinement = model.refinement, Unrefined()
    size = [side // COARSEST for side in inputs["pixel_values"].shape[-2:]]
    try:
        yield inputs | {"labels": resize_labels(inputs["labels"], size)}
    finally:
        model.refinement = kept


def most_covered(logits: Tensor, masks: Tensor) -> int:
    """Logits (h, w), masks (K, S, S) of objects -> the object that is most probable on average over its pixels."""
    shares = F.adaptive_avg_pool2d(masks[None], logits.shape)[0]
    return int(((shares * logits.float().sigmoid()).sum((1, 2)) / shares.sum((1, 2))).argmax())


@torch.no_grad()
def measure(model, answering, hints: Hints, scenes: LandmarkScenes, bf16: bool) -> dict[str, float]:
    """Shares of the expressions with a landmark: see the head of this file.

    model: whom the heads read. answering: whose masks count, its average or itself.
    """
    model.eval()
    right, taken, found, chance = [], [], [], []
    for start in range(0, len(scenes), 10):
        batch = scenes(list(range(start, min(start + 10, len(scenes)))), 0)
        inputs = {name: value for name, value in batch.inputs.items() if name != "labels"}
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            with hints.places.alone():
                model(**inputs)
            *_, heads = hints.places.logits(batch.related)
            masks = answering(**inputs).logits[batch.related]
        for logits, head, one in zip(masks, heads[:, 0], batch.known, strict=True):
            answer = most_covered(logits, one["masks"])
            right.append(answer == one["target"])
            taken.append(answer == one["landmark"])
            found.append(most_covered(head, one["masks"]) == one["landmark"])
            chance.append(1 / len(one["candidates"]))
    model.train()
    figures = {"right_object": right, "landmark_taken": taken, "landmark_found": found, "chance": chance}
    return {name: float(np.mean(values)) for name, values in figures.items()}


def lesson(model, hints: Hints, batch: LandmarkBatch, alone: bool, finer: bool) -> tuple[Tensor, Tensor]:
    """The model's loss, 0 where the heads learn alone, and theirs; not `finer` is without finer masks."""
    if alone:
        with hints.places.alone():
            model(**batch.inputs)
        return torch.zeros(()), hints(batch)
    with nullcontext(batch.inputs) if finer else coarse(model, batch.inputs) as inputs:
        return model(**inputs).loss, hints(batch)


def pretrain(options: argparse.Namespace) -> None:
    recipe = load_recipe(options.recipe, options.overrides)
    data, seed = recipe.data, recipe.training.seed
    if recipe.initialize.weights in ("scratch", "encoders"):
        raise ValueError("initialize.weights is to name a checkpoint: relations come after looks and places.")
    if data.name not in NAMES:
        raise ValueError(f"data.name is to be one of {', '.join(NAMES)}: of {data.name} no landmarks are known.")
    set_seed(seed)
    model, processor = build_model(recipe, [])
    architecture = model.config.model_type
    if architecture not in PIXELS:
        raise ValueError(
            f"Landmarks can be shown to {', '.join(PIXELS)}, but {recipe.initialize.weights} is {architecture}."
        )
    if recipe.training.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if options.refine_every < 1 or options.refine_every > 1 and model.refinement is None:
        raise ValueError(
            f"--refine-every {options.refine_every}: 1 is every step, and a model without refinement has no other."
        )
    side = data.image_size or 128
    scenes = (data.name, data.split, data.size, side, processor)
    gray = "gray" in data.augment
    first = LandmarkScenes(*scenes, BY_LANDMARK_ALONE, gray=gray)
    train = LandmarkScenes(*scenes, BY_LANDMARK, data.max_expressions, data.emphasis, gray)
    val = LandmarkScenes(data.name, data.validation_split, data.validation_size, side, processor)
    average = AveragedWeights(model, recipe.training.ema_decay) if recipe.training.ema_decay else None
    answering = average.model if average else model
    hints = Hints(model, processor, train(list(range(min(8, len(train)))), seed))
    work = Run(
        options,
        seed,
        [model, hints, *([answering] if average else [])],
        *by_dimensions([p for p in [*model.parameters(), *hints.parameters()] if p.requires_grad]),
        warmup_steps=50,
        log_every=50,
        measure=lambda: measure(model, answering, hints, val, options.bf16),
    )
    model.train()
    for keys in work.seeded(StepBatches(len(train), options.batch_size, seed, work.steps, options.steps)):
        indices, alone = [index for _, index in keys], work.steps < options.hints_first
        batch = (first if alone else train)(indices, seed_of(seed, work.steps))
        finer = work.steps % options.refine_every == 0
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            loss, hint = lesson(model, hints, batch, alone, finer)
        if average:  # before the step: what is measured and saved in it is the same
            average.update(model, work.steps)
        work.step(loss + options.weight * hint, shown=hint if alone else loss)
    hints.places.remove()
    answering.save_pretrained(options.out)
    processor.save_pretrained(options.out)
    work.write(scenes=len(train))


def main(arguments: list[str] | None = None) -> None:
    parser = options_parser(__doc__, steps=3000, batch_size=8, learning_rate=1e-3, evaluate_every=500)
    parser.add_argument("--refine-every", type=int, default=1, metavar="STEPS", help="so often masks are made finer")
    parser.add_argument("--hints-first", type=int, default=0, metavar="STEPS", help="so many, of the heads' loss alone")
    parser.add_argument("--weight", type=float, default=1.0, help="of the heads' loss beside the model's own")
    run(pretrain, parser, arguments)


if __name__ == "__main__":
    main()
