"""What every conversion shares: reading a stranger's file without running it, and placing its tensors completely."""

import argparse
import math
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn


# What reading a file with flipped bytes was seen to raise: a pickle's misread instructions fail in any of these ways.
_DAMAGE = (
    SafetensorError,
    zipfile.BadZipFile,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    OverflowError,
    MemoryError,
    AssertionError,
    struct.error,
)
_LARGEST_RATIO = 2  # of what a checkpoint has unpacked to the file: PyTorch does not compress


class ConversionError(ValueError):
    """A checkpoint or an override that does not fit.

    The message is one sentence for the user; `details` are lines that name every tensor it speaks of.
    """

    def __init__(self, message: str, details: Sequence[str] = ()):
        super().__init__(message)
        self.details = list(details)


@dataclass(frozen=True, eq=False)
class Conversion:
    """What a conversion has made and written.

    Attributes:
        model, processor: as saved.
        placed: number of the model's tensors that were found in the checkpoint, which are all of them.
        unplaced: keys of the checkpoint that have no place in the model.
        unread: keys that were left out knowingly, since nothing would read them.
    """

    model: nn.Module
    processor: Any
    placed: int
    unplaced: list[str]
    unread: list[str]


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
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                size = sum(entry.file_size for entry in archive.infolist())
            if size > _LARGEST_RATIO * path.stat().st_size:
                raise ConversionError(f"{path} would have {size:,} bytes unpacked, which no checkpoint has.")
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except ConversionError:
        raise
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
    for key, tensor in value.items():
        if not isinstance(key, str):
            raise ConversionError(f"{where} has the key {str(key)[:60]}, a {type(key).__name__}; keys are names.")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
            raise ConversionError(f"{where} holds {key[:200]}, which is no plain tensor of numbers.")
        if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
            raise ConversionError(f"{where} holds {key[:200]} of shape {list(tensor.shape)}, which repeats its values.")
    return dict(value)


def without(state: dict[str, Tensor], pattern: re.Pattern) -> tuple[dict[str, Tensor], list[str]]:
    """A state dict less the keys in which the pattern is found, and those keys."""
    kept = {key: tensor for key, tensor in state.items() if not pattern.search(key)}
    return kept, sorted(state.keys() - kept.keys())


def merged(base: dict, over: dict) -> dict:
    """`base` with `over` laid over it, nested dictionaries key by key."""
    nested = {key for key in base.keys() & over.keys() if isinstance(base[key], dict) and isinstance(over[key], dict)}
    return base | over | {key: merged(base[key], over[key]) for key in nested}


def gather(source: dict[str, Tensor], names: dict[str, str], model: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
    """A state dict for `model` out of a foreign one, either of which may be on the meta device: shapes decide.

    Args:
        source: the foreign state dict; a trailing axis of 1 is dropped where ours has one axis less (1x1 convolutions
            over tokens are our linear layers).
        names: our key -> foreign key, for every key of `model`.

    Returns:
        our state dict, and the foreign keys that found no place.

    Raises:
        ConversionError: naming, by their foreign names, tensors that are missing, of another shape or without a place.
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
    unplaced = sorted(source.keys() - set(names.values()))
    if missing or shapes:
        problems = [f"it lacks {_few(missing)}"] if missing else []
        problems += [_few(shapes)] if shapes else []
        problems += [f"it has no use for {_few(unplaced)}"] if unplaced else []
        details = [f"the checkpoint lacks {key}" for key in missing] + shapes
        details += [f"no place in the model for {key}" for key in unplaced]
        raise ConversionError(f"The checkpoint does not fit the model: {'; '.join(problems)}.", details)
    return state, unplaced


class Shapes:
    """What a foreign state dict, said to be of `architecture`, tells of its model's sizes."""

    def __init__(self, state: dict[str, Tensor], architecture: str):
        self.state, self.architecture = state, architecture

    def of(self, key: str, axes: int | None = None) -> torch.Size:
        """Raises ConversionError for a key that every checkpoint of the architecture has and this one lacks.

        axes: raise it for a tensor of another number of axes too.
        """
        if key not in self.state:
            raise ConversionError(f"The checkpoint does not look like {self.architecture}: it lacks {key}.")
        shape = self.state[key].shape
        if len(shape) == 0 or axes not in (None, len(shape)):
            raise ConversionError(
                f"The checkpoint does not look like {self.architecture}: {key} is {list(shape)}, not {axes or 1} axes."
            )
        return shape

    def count(self, pattern: str) -> int:
        """How many values the first group of a regular expression takes over the keys that begin with it."""
        return len({match[1] for match in map(re.compile(pattern).match, self.state) if match})

    def side(self, key: str, extra: int = 0) -> int:
        """The side of the square whose cells, and `extra` more, are the rows of a table.

        Raises:
            ConversionError: a table of another number of rows.
        """
        rows = self.of(key)[0]
        side = math.isqrt(max(rows - extra, 0))
        if side * side + extra != rows:
            also = f" and {extra} more" if extra else ""
            raise ConversionError(f"{key} has {rows} rows; the cells of a square{also} were expected.")
        return side


def save_converted(
    state: dict[str, Tensor],
    unread: list[str],
    config,
    model_class: type,
    foreign_name: Callable[[str], str],
    make_processor: Callable,
    out_dir: str | Path,
) -> Conversion:
    """Write model and processor made of a foreign state dict.

    Args:
        state, unread: from `without`.
        foreign_name: of a key of our state dict.
        make_processor: called, without arguments, once the weights are known to fit.

    Raises:
        ConversionError: whatever does not fit; nothing is written then.
    """
    with torch.device("meta"):
        skeleton = model_class(config)
    names = {key: foreign_name(key) for key in skeleton.state_dict()}
    ours, unplaced = gather(state, names, skeleton)
    odd = [names[key] for key, tensor in ours.items() if tensor.is_meta or not tensor.isfinite().all()]
    if odd:
        details = [f"{key} holds values that are not finite" for key in odd]
        raise ConversionError(f"The checkpoint has values that are not finite in {_few(odd)}.", details)
    processor = make_processor()
    model = model_class.from_pretrained(None, config=config, state_dict=ours, dtype=torch.float32)
    model.save_pretrained(out_dir)
    processor.save_pretrained(out_dir)
    return Conversion(model, processor, len(ours), unplaced, unread)


def _few(items: list[str], shown: int = 8) -> str:
    return ", ".join(items[:shown]) + (f" and {len(items) - shown} more" if len(items) > shown else "")
