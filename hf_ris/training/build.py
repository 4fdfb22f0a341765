"""From a recipe to data, tokenizer, model and processor. Knows no architecture by name: the Auto classes find each."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import torch
from accelerate import PartialState
from datasets import Dataset
from safetensors.torch import load_file
from tokenizers import AddedToken
from transformers import (
    AutoConfig,
    AutoModelForImageSegmentation,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_SEGMENTATION_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from hf_ris.data import TrainingRows, VideoTrainingRows, is_video_data, load_split
from hf_ris.data.refscenes.scenes import NAMES as REFSCENES
from hf_ris.data.transforms import expression_texts, read_row
from hf_ris.metrics.slices import expression_kind
from hf_ris.models.clip_encoders import ClipResNet, ClipTextEncoder, ClipViT, load_clip_weights
from hf_ris.models.clip_tokenizer import clip_tokenizer
from hf_ris.models.configuration_ris import ClipEncoderConfig
from hf_ris.models.text_encoders import (
    BiGru,
    corpus_words,
    word_tokenizer,
    wordpiece_tokenizer,
)
from hf_ris.training.recipe import ANY, DataRecipe, InitializeRecipe, ProcessorRecipe, Recipe


Corpus = Dataset | Sequence[dict[str, Any]]  # rows with `expressions`


class References:
    """A view of a data set: one row per referred object of an image, with the expressions of that object alone."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        table = dataset.select_columns(["expressions"]).with_format("arrow")[:]
        of_rows = pc.struct_field(pc.list_flatten(table["expressions"]), "ref_id").to_pylist()
        counts = pc.list_value_length(table["expressions"]).to_pylist()
        self.keys, start = [], 0
        for position, count in enumerate(counts):
            self.keys += [(position, ref) for ref in dict.fromkeys(of_rows[start : start + count])]
            start += count

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> dict[str, Any]:
        position, ref = self.keys[index]
        row = read_row(self.dataset, position)
        return {**row, "expressions": [said for said in row["expressions"] if said["ref_id"] == ref]}


class Expressions:
    """A view of a data set: one row per expression, with its image."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        counts = pc.list_value_length(dataset.select_columns(["expressions"]).with_format("arrow")[:]["expressions"])
        self.keys = [(position, index) for position, count in enumerate(counts.to_pylist()) for index in range(count)]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> dict[str, Any]:
        position, number = self.keys[index]
        row = read_row(self.dataset, position)
        return {**row, "expressions": row["expressions"][number : number + 1]}


class UnitRows(TrainingRows):
    """`TrainingRows` over a view, each of whose rows has an expression by construction: nothing to read beforehand."""

    def __init__(
        self,
        dataset: Dataset,
        view: type[References] | type[Expressions],
        max_expressions: int | None,
        seed: int,
        augment: list[str],
        weigh: Callable | None = None,
    ):
        super().__init__(dataset, max_expressions, seed, augment, weigh=weigh)
        self.dataset = view(dataset)
        self.positions = range(len(self.dataset))


def build_rows(recipe: DataRecipe, seed: int) -> tuple[Corpus, TrainingRows | VideoTrainingRows, Dataset]:
    """The training split as it is stored (of videos and images together their expressions alone), its rows by key
    (epoch, index), sampled and augmented, and the validation.

    Raises:
        ValueError: options that the data have no use for.
    """
    dataset = load_split(recipe.name, recipe.split, recipe.size, recipe.image_size)
    if recipe.validation_fraction:
        dataset, validation = set_apart(dataset, recipe.validation_fraction)
        if recipe.validation_size is not None:
            validation = validation.select(range(min(recipe.validation_size, len(validation))))
    else:
        validation = load_split(recipe.name, recipe.validation_split, recipe.validation_size, recipe.image_size)
    weigh = partial(weight, recipe.emphasis) if recipe.emphasis else None
    if is_video_data(dataset):
        if recipe.augment or recipe.unit != "image":
            raise ValueError("data.augment and data.unit are for images; leave them out where the data are videos.")
        images = None if recipe.images is None else load_images(recipe)
        clips = recipe.clip_frames, recipe.clip_sampling
        rows = VideoTrainingRows(dataset, recipe.max_expressions, *clips, seed, recipe.triplets, weigh, images)
        if images is not None:  # two schemas, of which the expressions' texts are what both have
            dataset = [row for part in (dataset, images) for row in part.select_columns(["expressions"])]
        return dataset, rows, validation
    for name in ("clip_frames", "images"):
        if getattr(recipe, name) is not None:
            raise ValueError(f"data.{name} is for videos, but {recipe.name} holds images.")
    if recipe.unit != "image":
        view = References if recipe.unit == "reference" else Expressions
        return dataset, UnitRows(dataset, view, recipe.max_expressions, seed, recipe.augment, weigh), validation
    rows = TrainingRows(dataset, recipe.max_expressions, seed, recipe.augment, recipe.triplets, weigh)
    return dataset, rows, validation


def load_images(recipe: DataRecipe) -> Dataset:
    """The images that are trained on beside videos.

    Raises:
        ValueError: they are videos.
    """
    drawn = recipe.images in REFSCENES  # at any size, so at that of the drawn videos
    images = load_split(recipe.images, recipe.split, recipe.images_size, recipe.image_size if drawn else None)
    if is_video_data(images):
        raise ValueError(f"data.images takes a data set of images, but {recipe.images} holds videos.")
    return images


def set_apart(rows: Dataset, fraction: float) -> tuple[Dataset, Dataset]:
    """(rest, share): a share of the photos, whole ones, chosen by their names, so that it is the same in every run.

    Rows of one file stay together, and so does every expression of a photo. At least one photo is on either side.

    Raises:
        ValueError: fewer than two photos.
    """
    names = rows["file_name"] if "file_name" in rows.column_names else list(map(str, range(len(rows))))
    photos = sorted(set(names), key=lambda name: hashlib.sha256(name.encode()).digest())
    if len(photos) < 2:
        raise ValueError(
            f"data.validation_fraction: {len(photos)} photo cannot be parted into training and validation."
        )
    share = set(photos[: min(max(1, round(fraction * len(photos))), len(photos) - 1)])
    inside = [place for place, name in enumerate(names) if name in share]
    outside = [place for place, name in enumerate(names) if name not in share]
    return rows.select(outside), rows.select(inside)


def weight(emphasis: dict[str, float], text: str) -> float:
    """Of a text by its kind; for a kind that `emphasis` leaves out 1, and for proximity that of relations."""
    kind = expression_kind(text)
    if kind == "proximity" and kind not in emphasis:
        kind = "relation"
    return emphasis.get(kind, 1.0)


def build_tokenizer(recipe: ProcessorRecipe, dataset: Corpus):
    """The recipe's tokenizer; `dataset` is the corpus of a `corpus` or `wordpiece` vocabulary."""
    if recipe.tokenizer == "pretrained":
        return AutoTokenizer.from_pretrained(recipe.path)
    if recipe.tokenizer == "clip":
        return clip_tokenizer()
    if recipe.tokenizer == "vocabulary":
        return word_tokenizer(Path(recipe.path).read_text(encoding="utf-8").split())
    make = wordpiece_tokenizer if recipe.tokenizer == "wordpiece" else word_tokenizer
    return make(corpus_words(expression_texts(dataset), recipe.min_count))


def build_config(recipe: Recipe, words: int):
    """The architecture's config; its vocabulary is the tokenizer's `words` unless the recipe says otherwise."""
    fields = dict(recipe.model)
    defaults = AutoConfig.for_model(recipe.architecture)
    if "vocab_size" in defaults.to_dict():
        fields.setdefault("vocab_size", words)
    for name in defaults.sub_configs:
        if not isinstance(fields.get(name, {}), dict):
            raise ValueError(f"model.{name} takes keys, got {fields[name]!r}.")
        if "vocab_size" in defaults.to_dict()[name]:
            fields[name] = {"vocab_size": words} | fields.get(name, {})
    return AutoConfig.for_model(recipe.architecture, **fields)


def build_model(recipe: Recipe, dataset: Corpus):
    """(model, processor) as `initialize` says: random, with the encoders' public weights, or a whole checkpoint."""
    source = recipe.initialize.weights
    if source not in ("scratch", "encoders"):
        processor = AutoProcessor.from_pretrained(source)
        if _extends(recipe):
            model, processor = _from_base_model(recipe, processor)
        else:
            model = _from_checkpoint(source, recipe.model)
        if recipe.architecture not in (ANY, model.config.model_type):
            raise ValueError(f"{source} holds a {model.config.model_type}; the recipe is for {recipe.architecture}.")
        if recipe.initialize.extend_vocabulary != "no":
            _extend_vocabulary(model, processor, recipe.initialize.extend_vocabulary == "spelled", dataset)
    else:
        tokenizer = build_tokenizer(recipe.processor, dataset)
        config = build_config(recipe, len(tokenizer))
        kind = MODEL_FOR_IMAGE_SEGMENTATION_MAPPING[type(config)]
        model = kind.from_pretrained_encoders(config) if source == "encoders" else kind(config)
        processor = PROCESSOR_MAPPING[type(config)].from_config(config, tokenizer)
        _load_glove(model, processor, recipe.initialize)
        _load_part(model, "vision_encoder", recipe.initialize.vision_encoder)
        _load_part(model, "text_encoder", recipe.initialize.text_encoder, processor)
        _load_clip(model, processor, recipe.initialize)
    # of a checkpoint, whose config may be overridden, and whose weights will not be those that were calibrated
    processor.enlarges, processor.calibration = processor.settings(model.config)["enlarges"], None
    if recipe.processor.threshold is not None:
        processor.threshold = recipe.processor.threshold
    return model, processor


def _extends(recipe: Recipe) -> bool:
    """Whether the recipe's architecture extends the checkpoint's: a video model its image model, SegVLM CRIS."""
    if recipe.architecture == ANY:
        return False
    own = type(AutoConfig.for_model(recipe.architecture))
    return issubclass(own, found := type(AutoConfig.from_pretrained(recipe.initialize.weights))) and own is not found


def _from_checkpoint(source: str, overrides: dict[str, Any]):
    """The model with `overrides` of its config; says so where another refinement than the checkpoint's starts anew."""
    model, info = AutoModelForImageSegmentation.from_pretrained(
        source, ignore_mismatched_sizes=True, output_loading_info=True, **overrides
    )
    unfit = sorted(name for name, *_ in info["mismatched_keys"])
    wrong = [name for name in unfit if not name.startswith("refinement.")]
    if wrong:
        raise ValueError(
            f"{len(wrong)} weights of {source}, the first {wrong[0]}, have other shapes than its config with the "
            f"recipe's model ({', '.join(overrides) or 'nothing'}) asks for; leave out what changes them, or begin "
            "with initialize.weights=scratch."
        )
    if unfit:  # what fits was learned at another stride
        PartialState().print(
            f"The refinement starts anew: {source} has one of other sizes than "
            f"model.refinement={model.config.refinement} model.refinement_dim={model.config.refinement_dim}."
        )
        fresh = type(model)(deepcopy(model.config)).refinement
        model.refinement.load_state_dict(fresh.state_dict())
    return model


def _from_base_model(recipe: Recipe, processor):
    """A model with the weights and, where not overridden, the config of one that it extends, and the processor."""
    base = AutoModelForImageSegmentation.from_pretrained(recipe.initialize.weights)
    fields = _own_fields(base.config)
    for name, value in recipe.model.items():  # nested configs key by key
        fields[name] = fields[name] | value if isinstance(value, dict) and name in fields else value
    config = AutoConfig.for_model(recipe.architecture, **fields)
    model = MODEL_FOR_IMAGE_SEGMENTATION_MAPPING[type(config)](config)
    if "vision_encoder." in model.own_weights:  # the image's backbone does not see time
        model.vision_encoder.load_pretrained()
    model.load_base_weights(base.state_dict())
    kind = PROCESSOR_MAPPING[type(config)]
    made = kind.from_config(config, processor.tokenizer)
    made.threshold = processor.threshold
    return model, made


def _own_fields(config) -> dict[str, Any]:
    """What an architecture's config adds to transformers' own, nested configs as dicts."""
    common = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name not in common}
    return {
        name: _own_fields(value) if isinstance(value, PreTrainedConfig) else value for name, value in values.items()
    }


def _extend_vocabulary(model: torch.nn.Module, processor, spelled: bool, dataset: Corpus) -> None:
    """Adds the data's words that a checkpoint does not know, and says how many."""
    added = extend_vocabulary(model, processor, expression_texts(dataset), spelled)
    such = f", such as {', '.join(map(repr, added[:5]))}" if added else ""
    PartialState().print(f"{len(added)} words of the data are added to the vocabulary{such}")


def extend_vocabulary(model: torch.nn.Module, processor, texts: Iterable[str], spelled: bool = False) -> list[str]:
    """Tokens of their own for words of `texts` that the tokenizer does not know; returns them, frequent ones first.

    Their rows of the word table are as long as the others and point in random directions, so that words differ from
    each other even where the text encoder is not trained. Known words keep their tokens, also inside longer ones.

    Args:
        spelled: also words that the tokenizer cuts into pieces.
    """
    tokenizer = processor.tokenizer

    def is_lacking(word: str) -> bool:
        tokens = tokenizer(word, add_special_tokens=False)["input_ids"]
        return tokenizer.unk_token_id in tokens or spelled and len(tokens) > 1

    words = [word for word in corpus_words(map(processor.clean, texts)) if word[0].isalnum() and is_lacking(word)]
    tokenizer.add_tokens([AddedToken(word, single_word=True, normalized=True) for word in words])
    old = model.get_input_embeddings()
    if len(tokenizer) > old.num_embeddings:  # public tables have spare rows
        scale, rows = old.weight.std().item(), old.num_embeddings
        table = model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        with torch.no_grad():
            table.weight[rows:].normal_(0.0, scale)
    return words


def _load_glove(model: torch.nn.Module, processor, recipe: InitializeRecipe) -> None:
    if recipe.glove is None:
        return
    encoders = [module for module in model.modules() if isinstance(module, BiGru)]
    if not encoders:
        raise ValueError(f"initialize.glove is for architectures with a Bi-GRU; {type(model).__name__} has none.")
    for encoder in encoders:
        found = encoder.load_glove(recipe.glove, processor.tokenizer)
        PartialState().print(f"{recipe.glove}: vectors for {found} of {len(processor.tokenizer)} words")


def _load_part(model: torch.nn.Module, name: str, path: str | None, processor=None) -> None:
    parts = dict(model.named_children())
    if path is None:
        return
    if name not in parts:
        raise ValueError(f"initialize.{name}: {type(model).__name__} has no such part, only {', '.join(parts)}.")
    if not Path(path).is_file():
        programs = "`python -m hf_ris.training.pretraining.vision` or `.regions`"
        raise ValueError(f"initialize.{name}: there is no file {path}: make it with {programs}, or give null.")
    if processor is not None:
        _check_vocabulary(f"initialize.{name}", Path(path).parent, processor)
    try:
        state, own = load_file(path), parts[name].state_dict()
        # an encoder that was pretrained with more levels than this model reads is this model's too
        parts[name].load_state_dict({key: value for key, value in state.items() if key in own})
    except RuntimeError as error:
        fields = {"vision_encoder": "model.vision_config", "text_encoder": "the text fields of model"}[name]
        raise ValueError(f"initialize.{name}: {path} does not fit {fields}: {error}") from error


def _check_vocabulary(option: str, folder: Path, processor) -> None:
    """As many words in another order would load, and mean other things."""
    if (folder / "tokenizer.json").is_file():
        if AutoTokenizer.from_pretrained(folder).get_vocab() != processor.tokenizer.get_vocab():
            raise ValueError(
                f"{option}: {folder} has another vocabulary than the recipe; give "
                f"processor.tokenizer=pretrained processor.path={folder}."
            )


def _load_clip(model: torch.nn.Module, processor, recipe: InitializeRecipe) -> None:
    if recipe.clip is None:
        return
    text = [module for module in model.modules() if isinstance(module, ClipTextEncoder)]
    image = [module for module in model.modules() if isinstance(module, (ClipResNet, ClipViT))]
    if not text:
        raise ValueError(f"initialize.clip is for architectures with CLIP's text encoder, not {type(model).__name__}.")
    if not Path(recipe.clip).is_file():
        raise ValueError(
            f"initialize.clip: there is no file {recipe.clip}: make it with "
            "`python -m hf_ris.training.pretraining.clip`, or give null."
        )
    _check_vocabulary("initialize.clip", Path(recipe.clip).parent, processor)
    load_clip_weights(ClipEncoderConfig(pretrained=recipe.clip), image[0] if image else None, text[0])
