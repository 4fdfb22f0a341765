"""What every conversion shares: reading a stranger's file without running it, and placing its tensors completely."""

import argparse
import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn


# What reading a file with flipped bytes was seen to raise: a pickle's misread instructions fail in any of these ways.
_DAMAGE = (SafetensorError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AssertionError, struct.error)


class ConversionError(ValueError):
    """A checkpoint or an override that does not fit; the message is one sentence for the user."""


def read_checkpoint(path: str | Path) -> dict:
    """The dictionary in a `.safetensors` or PyTorch file, on the CPU.

    A PyTorch file is a pickle, and a pickle can name any code to run. Only tensors, plain containers and
    `argparse.Namespace` (which published training programs store) are built; anything else is refused, not run.

    Raises:
        ConversionError: a file that is missing, damaged, holds another object, or is not a dictionary.
    """
    path = Path(path)
    if not path.is_file():
        raise ConversionError(f"There is no checkpoint file {path}.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        found = f" ({named[1]})" if named else ""
        raise ConversionError(
            f"{path} is damaged, or holds more than tensors, plain containers and argparse.Namespace{found}; "
            "it was not run."
        ) from error
    except _DAMAGE as error:
        raise ConversionError(f"{path} is damaged, or no checkpoint at all ({type(error).__name__}).") from error
    if not isinstance(content, dict):
        raise ConversionError(f"{path} holds a {type(content).__name__}, not a dictionary of weights.")
    return content


def tensors_of(value, where: str) -> dict[str, Tensor]:
    """`value` as a state dict. Raises ConversionError when it is something else."""
    if not isinstance(value, dict) or not value or not all(isinstance(tensor, Tensor) for tensor in value.values()):
        raise ConversionError(f"{where} is not a dictionary of tensors.")
    return dict(value)


def merged(base: dict, over: dict) -> dict:
    """`base` with `over` laid over it, nested dictionaries key by key."""
    nested = {key for key in base.keys() & over.keys() if isinstance(base[key], dict) and isinstance(over[key], dict)}
    return base | over | {key: merged(base[key], over[key]) for key in nested}


def gather(source: dict[str, Tensor], names: dict[str, str], model: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
    """A state dict for `model` (which may be on the meta device) out of a foreign one.

    Args:
        source: the foreign state dict; a trailing axis of 1 is dropped where ours has one axis less (1x1 convolutions
            over tokens are our linear layers).
        names: our key -> foreign key, for every key of `model`.

    Returns:
        our state dict, and the foreign keys that found no place.

    Raises:
        ConversionError: naming, by their foreign names, tensors that are missing or of another shape.
    """
    missing, shapes, state = [], [], {}
    for key, expected in model.state_dict().items():
        foreign = names[key]
        if foreign not in source:
            missing.append(foreign)
            continue
        tensor = source[foreign]
        if tensor.ndim == expected.ndim + 1 and tensor.shape[-1] == 1:
            tensor = tensor.squeeze(-1)
        if tensor.shape != expected.shape:
            shapes.append(f"{foreign} is {list(source[foreign].shape)} instead of {list(expected.shape)}")
        state[key] = tensor
    problems = ([f"it lacks {_few(missing)}"] if missing else []) + ([f"{_few(shapes)}"] if shapes else [])
    if problems:
        raise ConversionError(f"The checkpoint does not fit the model: {'; '.join(problems)}.")
    return state, sorted(source.keys() - set(names.values()))


class Shapes:
    """What a foreign state dict, said to be of `architecture`, tells of its model's sizes."""

    def __init__(self, state: dict[str, Tensor], architecture: str):
        self.state, self.architecture = state, architecture

    def of(self, key: str) -> torch.Size:
        """Raises ConversionError for a key that every checkpoint of the architecture has and this one lacks."""
        if key not in self.state:
            raise ConversionError(f"The checkpoint does not look like {self.architecture}: it lacks {key}.")
        return self.state[key].shape

    def count(self, pattern: str) -> int:
        """How many values the first group of a regular expression takes over the keys that begin with it."""
        return len({match[1] for match in map(re.compile(pattern).match, self.state) if match})


def save_converted(
    state: dict[str, Tensor],
    config,
    model_class: type,
    foreign_name: Callable[[str], str],
    make_processor: Callable,
    out_dir: str | Path,
) -> list[str]:
    """Write model and processor made of a foreign state dict; returns its keys that have no place in the model.

    Args:
        foreign_name: of a key of our state dict.
        make_processor: called, without arguments, once the weights are known to fit.

    Raises:
        ConversionError: whatever does not fit; nothing is written then.
    """
    with torch.device("meta"):
        skeleton = model_class(config)
    ours, unplaced = gather(state, {key: foreign_name(key) for key in skeleton.state_dict()}, skeleton)
    processor = make_processor()
    model = model_class.from_pretrained(None, config=config, state_dict=ours, dtype=torch.float32)
    model.save_pretrained(out_dir)
    processor.save_pretrained(out_dir)
    return unplaced


def _few(items: list[str], shown: int = 8) -> str:
    return ", ".join(items[:shown]) + (f" and {len(items) - shown} more" if len(items) > shown else "")
