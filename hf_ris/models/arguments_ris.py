"""Arguments that cannot be: each check raises one sentence that names the argument and what it takes."""

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from torch import Tensor

from .images_ris import show


MAX_TARGET_PIXELS = 2**28


def refuse_unknown(owner: str, unknown: Iterable[str], known: Iterable[str]) -> None:
    """Raise TypeError for arguments that nothing would read, naming those there are."""
    if unknown := sorted(unknown):
        raise TypeError(f"{owner} takes no argument {', '.join(unknown)}; it takes {', '.join(known)}.")


def argument_names(function: Callable) -> list[str]:
    """The names that a function's parameters have, without `self` and `**kwargs`."""
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.name != "self" and p.kind is not inspect.Parameter.VAR_KEYWORD]


def check_whole(owner: str, at_least: int = 1, **values: int | None) -> None:
    """Of arguments by name: whole numbers that are not too small, or None."""
    for name, value in values.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, Integral) or value < at_least):
            raise ValueError(f"{owner}: {name} must be a whole number of at least {at_least}, got {show(value)}.")


def checked_triple(owner: str, name: str, values: Any) -> list[float]:
    """Three finite numbers, one for each channel."""
    if not isinstance(values, Sequence) or len(values) != 3 or not all(_is_finite(value) for value in values):
        raise ValueError(f"{owner}: {name} must be three numbers, for red, green and blue, got {show(values)}.")
    return [float(value) for value in values]


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def checked_threshold(threshold: Any) -> float:
    if not _is_finite(threshold) or not 0 <= threshold <= 1:
        raise ValueError(f"threshold is a probability in [0, 1], got {show(threshold)}.")
    return float(threshold)


def checked_seconds(timeout: Any) -> float:
    if not _is_finite(timeout) or timeout <= 0:
        raise ValueError(f"timeout is a number of seconds above 0, got {show(timeout)}.")
    return float(timeout)


def checked_sizes(target_sizes: Any, expressions: int) -> list[tuple[int, int]]:
    """(height, width) of each expression's image, as whole numbers.

    Raises:
        ValueError: another number of sizes than expressions, or what is no size of an image.
    """
    sizes = target_sizes.tolist() if isinstance(target_sizes, (Tensor, np.ndarray)) else target_sizes
    if not isinstance(sizes, (list, tuple)):
        raise ValueError(f"target_sizes is a list of (height, width), one per expression, got {show(sizes)}.")
    if len(sizes) != expressions:
        raise ValueError(f"{expressions} expressions and {len(sizes)} target sizes; give one per expression.")
    checked = []
    for index, size in enumerate(sizes):
        size = size.tolist() if isinstance(size, (Tensor, np.ndarray)) else size
        whole = isinstance(size, (list, tuple)) and len(size) == 2
        whole = whole and all(isinstance(side, Integral) and not isinstance(side, bool) and side > 0 for side in size)
        if not whole or size[0] * size[1] > MAX_TARGET_PIXELS:
            given = [show(side) for side in size][:4] if isinstance(size, (list, tuple)) else show(size)
            raise ValueError(
                f"Target size {index} must be (height, width) in whole pixels of an image of at most "
                f"{MAX_TARGET_PIXELS:,}, got {given}."
            )
        checked.append((int(size[0]), int(size[1])))
    return checked


def check_return_tensors(return_tensors: Any) -> None:
    if return_tensors not in ("pt", "np", None):
        raise ValueError(f"return_tensors is 'pt' (torch) or 'np' (numpy), got {show(return_tensors)}.")


def check_expression(expression: Any, name: str) -> None:
    if not isinstance(expression, str):
        raise ValueError(f"{name} must be a text, got {show(expression)}.")
    if not expression.strip():
        raise ValueError(f"{name} is empty; write what to segment, as in 'the man in red'.")
    try:
        expression.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} holds half a character (a lone surrogate) at place {error.start}; decode the text anew."
        ) from error
