"""A recipe: all that decides a training run, as one strict YAML file plus `nested.key=value` overrides.

Unknown keys and wrong types raise a ValueError that names the key and what it takes. `model` alone is free: it holds
fields of the architecture's config, which checks them itself.
"""

import dataclasses
import re
import types
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from hf_ris import ALIASES, ARCHITECTURES, VIDEO_ARCHITECTURES
from hf_ris.metrics.protocols import PROTOCOLS
from hf_ris.metrics.slices import KINDS
from hf_ris.metrics.video import VIDEO_PROTOCOLS
from hf_ris.resources import recipe_path


_LARGEST_FILE = 1_000_000  # bytes
_MOST_VALUES, _DEEPEST = 10_000, 20  # of a recipe; YAML's aliases can make of a few lines more than a memory holds
ANY = "any"  # an architecture: that of the checkpoint


@dataclass(kw_only=True)
class ProcessorRecipe:
    """How text becomes ids. Ignored when `initialize.weights` is a checkpoint, which brings its processor.

    tokenizer: `corpus` builds a word vocabulary from the training expressions; `wordpiece` does the same in BERT's
        manner, with `[CLS]`, `[SEP]` and letters; `clip` is CLIP's, which open_clip carries; `vocabulary` reads a word
        vocabulary from `path`, a word a line; `pretrained` loads `path`, a name on the Hub or a folder.
    min_count: words seen less often in the corpus become [UNK].
    threshold: of the probability; None is the architecture's own.
    """

    tokenizer: Literal["corpus", "wordpiece", "clip", "vocabulary", "pretrained"] = "corpus"
    path: str | None = None
    min_count: int = 1
    threshold: float | None = None


@dataclass(kw_only=True)
class InitializeRecipe:
    """Where the weights come from.

    weights: `scratch`; `encoders` (public weights of the encoders, the rest random); or a folder or Hub id of a whole
        checkpoint, whose config the recipe's `model` fields then override. An architecture that extends another
        (a video model its image model, SegVLM CRIS) also takes a checkpoint of that one.
    extend_vocabulary: of a whole checkpoint, by words of the training expressions, whose vectors are drawn at random:
        those that are `unknown` to its tokenizer, or also those that it cuts into pieces (`spelled`).
    glove: a GloVe text file for the word embedding of a Bi-GRU.
    vision_encoder: a safetensors file of the vision encoder's own weights, as `training.pretraining.vision`
        and `.regions` write it.
    text_encoder: a safetensors file of the Bi-GRU's own weights, as `training.pretraining.regions` does.
    clip: a safetensors file of CLIP's weights as open_clip names them, as `training.pretraining.clip` does.
    """

    weights: str = "scratch"
    extend_vocabulary: Literal["no", "unknown", "spelled"] = "no"
    glove: str | None = None
    vision_encoder: str | None = None
    text_encoder: str | None = None
    clip: str | None = None


@dataclass(kw_only=True)
class DataRecipe:
    """What is read.

    name: a RefScenes flavour, a folder (prepared, or images and JSONL) or a Hub id. size, validation_size: images
        taken; None is all. image_size: side of RefScenes images. clip_frames: of a video; None is all of them.
        clip_sampling: `random` draws them from the whole video and sorts, `spread` draws one from each of as many equal
        parts.
    images: where `name` holds videos, an image data set whose `split` is trained on beside them: an epoch passes over
        each video and each image once, and an image is a clip of one frame repeated. images_size: of these images.
    validation_fraction: share of the training images that is set apart to validate on, where there is no validation
        split; whole photos, the same ones in every run. 0 reads `validation_split`.
    unit: what an epoch passes over once: every `image` with up to `max_expressions` of its expressions (None: all), or
        every `reference` (an image with the expressions of one referred object), or every `expression`, as a paper
        counts.
    emphasis: by kind of expression (`ordinal`, `proximity`, `relation`, `negation`, `location`, `look`), how many times
        as often as 1 it is drawn where an image has more than `max_expressions`; kinds that are left out have 1,
        proximity the number of the other relations.
    triplets: of an image first draw two expressions of one object and one of another, where it has them.
    augment: of "flip" (mirrored, where the texts allow it), "color" (brightness, contrast and saturation vary) and
        "gray" (a third of the images without colours, with their expressions that name none).
    """

    name: str = "refscenes"
    split: str = "train"
    size: int | None = None
    validation_split: str = "val"
    validation_size: int | None = None
    validation_fraction: float = 0.0
    image_size: int | None = None
    clip_frames: int | None = None
    clip_sampling: Literal["random", "spread"] = "random"
    images: str | None = None
    images_size: int | None = None
    unit: Literal["image", "reference", "expression"] = "image"
    max_expressions: int | None = None
    emphasis: dict[str, float] = field(default_factory=dict)
    triplets: bool = False
    augment: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class Rule:
    """Settings of the parameters in whose name the regular expression `pattern` is found; later rules override.

    lr_scale: factor of the learning rate. weight_decay: instead of the optimizer's. freeze: not trained. eval_mode:
        modules whose parameters are all frozen with it also stay in eval mode (dropout off, batch statistics fixed).
    """

    pattern: str
    lr_scale: float | None = None
    weight_decay: float | None = None
    freeze: bool | None = None
    eval_mode: bool | None = None


@dataclass(kw_only=True)
class OptimizerRecipe:
    name: Literal["adam", "adamw"] = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    rules: list[Rule] = field(default_factory=list)


@dataclass(kw_only=True)
class ScheduleRecipe:
    """Factor of the learning rate by optimizer step, after `warmup_steps` of linear rise.

    poly: (1 - progress)^power. cosine: half a wave down to `floor`. step: times `gamma` at each of the `milestones`
    (epochs) and `fractions` (of all steps). constant: 1.
    """

    name: Literal["constant", "poly", "step", "cosine"] = "constant"
    warmup_steps: int = 0
    power: float = 0.9
    milestones: list[float] = field(default_factory=list)
    fractions: list[float] = field(default_factory=list)
    gamma: float = 0.1
    floor: float = 0.0


@dataclass(kw_only=True)
class TrainingRecipe:
    """The loop.

    epochs or max_steps: exactly one; steps are the optimizer's. batch_size: units (`data.unit`) an optimizer step sees,
    over all processes and `accumulation` pieces together, so that the number of processes changes nothing but speed.
    clip_norm: of the gradient, 0 is no clipping. ema_decay: 0 is off; else averaged weights are evaluated and saved.
    workers: processes that load data for each training process. *_every: in steps; 0 is only at the end.
    keep_checkpoints: how many of the newest are kept for resuming.
    """

    epochs: float | None = None
    max_steps: int | None = None
    batch_size: int = 16
    accumulation: int = 1
    clip_norm: float = 0.0
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    channels_last: bool = False
    gradient_checkpointing: bool = False
    sync_batch_norm: bool = False
    seed: int = 0
    ema_decay: float = 0.0
    workers: int = 0
    log_every: int = 10
    evaluate_every: int = 0
    save_every: int = 0
    keep_checkpoints: int = 2


@dataclass(kw_only=True)
class EvaluationRecipe:
    """Of the validation split, during training. batch_size: images; max_expressions: of one image at a time.

    at_start: also before the first step, to see what a fine-tuning brings; `best` is then never worse than its start.
    pictures: expressions drawn at every evaluation, and as many worst and best ones at the end; 0 draws nothing.
    """

    protocol: str = "original"
    batch_size: int = 16
    max_expressions: int | None = 32
    at_start: bool = False
    pictures: int = 8


@dataclass(kw_only=True)
class TrackingRecipe:
    name: Literal["none", "tensorboard", "trackio"] = "none"
    project: str = "hf_ris"


@dataclass(kw_only=True)
class Recipe:
    """architecture: a model type, as `lts`, or `any`: that of the checkpoint `initialize.weights`. model: fields of its
    config. output_dir: None: outputs/<arch>-<recipe>."""

    architecture: str
    output_dir: str | None = None
    model: dict[str, Any] = field(default_factory=dict)
    processor: ProcessorRecipe = field(default_factory=ProcessorRecipe)
    initialize: InitializeRecipe = field(default_factory=InitializeRecipe)
    data: DataRecipe = field(default_factory=DataRecipe)
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    schedule: ScheduleRecipe = field(default_factory=ScheduleRecipe)
    training: TrainingRecipe = field(default_factory=TrainingRecipe)
    evaluation: EvaluationRecipe = field(default_factory=EvaluationRecipe)
    tracking: TrackingRecipe = field(default_factory=TrackingRecipe)

    def __post_init__(self):
        self.architecture = ALIASES.get(self.architecture, self.architecture)
        training = self.training
        known = [*ARCHITECTURES, *VIDEO_ARCHITECTURES, ANY]
        if self.architecture not in known:
            raise ValueError(f"There is no architecture {self.architecture!r}; there are {', '.join(known)}.")
        if (training.epochs is None) == (training.max_steps is None):
            raise ValueError("training takes either epochs or max_steps; give exactly one (the other is null).")
        for part in LIMITS:
            _check_limits(getattr(self, part), LIMITS[part], part)
        for place, rule in enumerate(self.optimizer.rules):
            _check_limits(rule, _LIMITS_OF_RULES, f"optimizer.rules.{place}")
            try:
                re.compile(rule.pattern)
            except (re.error, RecursionError, OverflowError) as error:
                raise ValueError(f"optimizer.rules.{place}.pattern is no regular expression: {error}.") from error
        if training.batch_size % training.accumulation:
            raise ValueError(
                f"training.batch_size must be a multiple of training.accumulation, got {training.batch_size} and "
                f"{training.accumulation}."
            )
        known = VIDEO_PROTOCOLS if self.architecture in VIDEO_ARCHITECTURES else PROTOCOLS
        if self.evaluation.protocol not in known:
            known = ", ".join(known)
            raise ValueError(f"evaluation.protocol takes one of {known}, got {self.evaluation.protocol!r}.")
        if len(self.optimizer.betas) != 2:
            raise ValueError(f"optimizer.betas takes two numbers, got {self.optimizer.betas}.")
        if self.schedule.name == "step" and not self.schedule.milestones + self.schedule.fractions:
            raise ValueError("schedule.milestones must list the epochs of the steps (or fractions), got none.")
        if self.data.triplets and (self.data.max_expressions or 3) < 3:
            raise ValueError(f"data.triplets needs max_expressions of at least 3, got {self.data.max_expressions}.")
        if self.data.images is None and self.data.images_size is not None:
            raise ValueError("data.images_size is of data.images, which names no data set.")
        if self.data.images is not None and self.architecture in ARCHITECTURES:
            raise ValueError(f"data.images is read beside videos, which {self.architecture} is not trained on.")
        self._check_emphasis()
        if self.data.triplets and self.data.unit != "image":
            raise ValueError("data.triplets needs the expressions of several objects: data.unit must be image.")
        if self.processor.tokenizer in ("vocabulary", "pretrained") and self.processor.path is None:
            raise ValueError(f"processor.path must say which {self.processor.tokenizer} to read.")
        whole = self.initialize.weights not in ("scratch", "encoders")
        if self.architecture == ANY and not whole:
            raise ValueError(
                "This recipe starts from a whole checkpoint: give its folder or Hub id, as initialize.weights=FOLDER."
            )
        if self.initialize.extend_vocabulary != "no" and not whole:
            raise ValueError("initialize.extend_vocabulary is for a whole checkpoint as initialize.weights.")
        for rule in self.optimizer.rules:
            if rule.eval_mode and not rule.freeze:
                raise ValueError(f"optimizer.rules {rule.pattern!r}: eval_mode needs freeze: true.")

    def _check_emphasis(self) -> None:
        data = self.data
        for kind, weight in data.emphasis.items():
            if kind not in KINDS or not isinstance(weight, int | float) or weight <= 0:
                raise ValueError(
                    f"data.emphasis takes kinds ({', '.join(KINDS)}) and numbers greater than 0, got {kind}: {weight}."
                )
        if data.emphasis and (data.max_expressions is None or data.triplets):
            raise ValueError("data.emphasis says what is drawn, so it needs max_expressions and no triplets.")


_COUNT = (lambda value: value >= 1, "at least 1")
_NOT_NEGATIVE = (lambda value: value >= 0, "at least 0")
_POSITIVE = (lambda value: value > 0, "above 0")
_SHARE = (lambda value: 0 <= value <= 1, "from 0 to 1")
_BELOW_ONE = (lambda value: 0 <= value < 1, "at least 0 and below 1")
# What numbers may be, and each number of a list, by section: found wrong before anything is read or built.
LIMITS = {
    "processor": {"min_count": _COUNT, "threshold": _BELOW_ONE},
    "data": {
        **dict.fromkeys(("size", "validation_size", "image_size", "clip_frames", "max_expressions"), _COUNT),
        "images_size": _COUNT,
        "validation_fraction": _BELOW_ONE,
    },
    "optimizer": {"learning_rate": _POSITIVE, "weight_decay": _NOT_NEGATIVE, "betas": _BELOW_ONE},
    "schedule": {
        "warmup_steps": _NOT_NEGATIVE,
        "power": _POSITIVE,
        "milestones": _NOT_NEGATIVE,
        "fractions": _SHARE,
        "gamma": _POSITIVE,
        "floor": _SHARE,
    },
    "training": {
        "epochs": _POSITIVE,
        **dict.fromkeys(("max_steps", "batch_size", "accumulation", "log_every", "keep_checkpoints"), _COUNT),
        **dict.fromkeys(("clip_norm", "workers", "evaluate_every", "save_every"), _NOT_NEGATIVE),
        "seed": (lambda value: 0 <= value < 1 << 32, "at least 0 and below 2^32"),
        "ema_decay": _BELOW_ONE,
    },
    "evaluation": {"batch_size": _COUNT, "max_expressions": _COUNT, "pictures": _NOT_NEGATIVE},
}
_LIMITS_OF_RULES = {"lr_scale": _NOT_NEGATIVE, "weight_decay": _NOT_NEGATIVE}


def _check_limits(part: Any, limits: dict[str, tuple], where: str) -> None:
    for name, (fits, words) in limits.items():
        value = getattr(part, name)
        for one in value if isinstance(value, list) else [value]:
            if one is not None and not fits(one):
                raise ValueError(f"{where}.{name} must be {words}, got {value}.")


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a name or a YAML file, with `nested.key=value` overrides of YAML values (`[1, 2]`, `null`, `1e-3`).

    Raises:
        ValueError: what is wrong with it, naming the key; also for what is no YAML.
    """
    path = recipe_path(path)
    if path.stat().st_size > _LARGEST_FILE:
        raise ValueError(f"{path} is no recipe: it has {path.stat().st_size:,} bytes.")
    tree = _read_yaml(path.read_bytes(), str(path))
    if not isinstance(tree, dict):
        raise ValueError(f"{path} is not a recipe: its top level must be keys such as architecture and training.")
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ValueError(f"{override!r} is not an override; write nested.key=value, as training.seed=1.")
        _set(tree, key, _read_yaml(value, f"The value in {override[:80]!r}"))
    # the two exclude each other: to ask for one on the command line is to drop the file's other
    asked = {override.partition("=")[0] for override in overrides}
    for one, other in (("epochs", "max_steps"), ("max_steps", "epochs")):
        if f"training.{one}" in asked and f"training.{other}" not in asked:
            tree["training"].pop(other, None)
    return _convert(tree, Recipe, "")


def _read_yaml(text: str | bytes, what: str) -> Any:
    try:
        tree = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"{what} is not YAML: {error}") from error
    values, level = 0, [tree]
    for depth in range(_DEEPEST + 2):
        values += len(level)
        if values > _MOST_VALUES or depth > _DEEPEST and level:
            raise ValueError(f"{what} is no recipe: it nests, or repeats itself, beyond any measure.")
        below = [
            value.values() if isinstance(value, dict) else value for value in level if isinstance(value, (dict, list))
        ]
        if sum(map(len, below)) > _MOST_VALUES:
            raise ValueError(f"{what} is no recipe: it nests, or repeats itself, beyond any measure.")
        level = [value for values_of in below for value in values_of]
    return tree


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for depth, part in enumerate(parents):
        tree = tree[_place(tree, part, key)] if isinstance(tree, list) else tree.setdefault(part, {})
        if tree is None or not isinstance(tree, (dict, list)):
            raise ValueError(f"{key} cannot be set: {'.'.join(parents[: depth + 1])} is {tree!r}, which holds no keys.")
    tree[_place(tree, last, key) if isinstance(tree, list) else last] = value


def _place(items: list, part: str, key: str) -> int:
    if not re.fullmatch(r"\d{1,6}", part, re.ASCII) or int(part) >= len(items):
        raise ValueError(f"{key} cannot be set: {part!r} is no place in a list of {len(items)}, counted from 0.")
    return int(part)


def _convert(value: Any, kind: Any, where: str) -> Any:
    """`value` from YAML as the annotated type `kind`; `where` is its dotted key, for messages."""
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, where)
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        if value is None and types.NoneType in get_args(kind):
            return None
        return _convert(value, next(arg for arg in get_args(kind) if arg is not types.NoneType), where)
    if origin is Literal:
        value = "no" if value is False else value  # YAML 1.1 takes an unquoted no for false
        if value in get_args(kind):
            return value
    if origin is list and isinstance(value, list):
        return [_convert(item, get_args(kind)[0], f"{where}.{index}") for index, item in enumerate(value)]
    if origin is dict and isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return value
    if kind is float:
        # YAML 1.1 reads 5e-5 (without a point) as text
        if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?e[+-]?\d{1,3}", value, re.IGNORECASE):
            value = float(value)
        # no number of a recipe may be infinite, or an integer beyond any float
        if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300:
            return float(value)
    if kind in (int, str, bool) and type(value) is kind and (kind is not int or abs(value) < 1 << 40):
        return value
    raise ValueError(f"{where} takes {_described(kind)}, got {repr(value)[:200]}.")


def _build(kind: type, tree: Any, where: str) -> Any:
    hints = get_type_hints(kind)
    if not isinstance(tree, dict):
        raise ValueError(f"{where} takes keys ({', '.join(hints)}), got {repr(tree)[:200]}.")
    unknown = [key for key in tree if key not in hints]
    if unknown:
        raise ValueError(f"{where or 'The recipe'} has no key {unknown[0]!r}; it takes {', '.join(hints)}.")
    missing = [
        f.name
        for f in dataclasses.fields(kind)
        if f.default is f.default_factory is dataclasses.MISSING and f.name not in tree
    ]
    if missing:
        raise ValueError(f"{where or 'The recipe'} lacks {missing[0]!r}.")
    prefix = f"{where}." if where else ""
    return kind(**{key: _convert(value, hints[key], prefix + key) for key, value in tree.items()})


def _described(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    if get_origin(kind) is list:
        return "a list"
    return {float: "a number", int: "a whole number", str: "text", bool: "true or false"}.get(kind, "keys")
