"""What forward refuses: inputs that would give wrong numbers without a word, or an error from deep inside.

Shapes are looked at for nothing. Values are looked at together, so that a step on a GPU waits once, and only where
they can be: not while a graph is traced, compiled, exported or captured, and not on the meta device.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


class Condition(NamedTuple):
    """A scalar boolean tensor that must be true, and what to say where it is not."""

    holds: Tensor
    sentence: str


def can_be_looked_at(x: Tensor) -> bool:
    """Whether a tensor's values can be read here and now."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or x.is_meta or isinstance(x, FakeTensor):
        return False
    return not (x.is_cuda and torch.cuda.is_current_stream_capturing())


def check_values(conditions: list[Condition]) -> None:
    """Raise ValueError with the sentence of the first condition that does not hold."""
    device = conditions[0].holds.device
    holds = torch.stack([condition.holds.to(device) for condition in conditions]).tolist()
    for held, condition in zip(holds, conditions):
        if not held:
            raise ValueError(condition.sentence)


def check_shape(name: str, x: Tensor | None, shape: tuple[int, ...], meaning: str) -> None:
    """Raise ValueError unless a tensor has this shape. meaning: of the sides, as `(expressions, tokens)`."""
    if not isinstance(x, Tensor) or tuple(x.shape) != shape:
        raise ValueError(f"{name} must be a tensor of shape {shape}, {meaning}, got {_told(x)}.")


def check_pixels(pixel_values: Tensor) -> None:
    """(B, 3, H, W) floats."""
    shaped = isinstance(pixel_values, Tensor) and pixel_values.ndim == 4 and pixel_values.shape[1] == 3
    if not shaped or not pixel_values.is_floating_point() or not pixel_values.numel():
        raise ValueError(
            f"pixel_values must be floats of shape (images, 3, height, width), as the processor makes them, got "
            f"{_told(pixel_values)}."
        )


def check_words(name: str, ids: Tensor, mask: Tensor, mask_name: str) -> None:
    """Ids (N, ..., L) of whole numbers, at least one, and a mask of their shape."""
    if not isinstance(ids, Tensor) or _is_real(ids) or ids.ndim < 2 or not ids.numel():
        raise ValueError(f"{name} must be whole numbers of shape (expressions, tokens), got {_told(ids)}.")
    check_shape(mask_name, mask, tuple(ids.shape), f"that of {name}")


def word_conditions(name: str, ids: Tensor, mask: Tensor, mask_name: str, vocabulary: int) -> Iterator[Condition]:
    """Ids of the vocabulary, and a mask (..., L) of ones before zeros with at least one in each row."""
    lowest, highest = ids.aminmax()
    yield Condition(
        (lowest >= 0) & (highest < vocabulary),
        f"{name} must lie in [0, {vocabulary}), the rows of the word table: tokenizer and model do not go together.",
    )
    yield Condition(
        ((mask == 0) | (mask == 1)).all() & (mask[..., 0] == 1).all() & (mask[..., 1:] <= mask[..., :-1]).all(),
        f"{mask_name} must be 1 for an expression's tokens, of which there is at least one, and then 0 for padding: "
        "padding at the start, holes and other values are not read.",
    )


def check_index(name: str, index: Tensor | None, expressions: int) -> None:
    """(N,) whole numbers, or None."""
    if index is None:
        return
    check_shape(name, index, (expressions,), "one number per expression")
    if _is_real(index):
        raise ValueError(f"{name} must be whole numbers, got {index.dtype}.")


def check_labels(labels: Tensor, expressions: int, height: int, width: int) -> None:
    """(N, h, w) at any size of the input's aspect ratio, a pixel of rounding allowed."""
    if not isinstance(labels, Tensor) or labels.ndim != 3 or labels.shape[0] != expressions or not labels.numel():
        raise ValueError(f"labels must be ({expressions}, height, width), a mask per expression, got {_told(labels)}.")
    if abs(labels.shape[1] * width - labels.shape[2] * height) > max(height, width):
        raise ValueError(
            f"labels of {labels.shape[1]} x {labels.shape[2]} (height x width) do not lie over inputs of {height} x "
            f"{width}: they must cover the input, as the processor's labels do."
        )


def label_conditions(labels: Tensor) -> Iterator[Condition]:
    """Masks in [0, 1]; NaN compares with nothing."""
    if labels.dtype != torch.bool:
        lowest, highest = labels.aminmax()
        yield Condition(
            (lowest >= 0) & (highest <= 1), "labels must be finite and in [0, 1]: masks of 0 and 255 are to be divided."
        )


def rectangle_conditions(pixel_mask: Tensor) -> Iterator[Condition]:
    """(B, H, W): ones from the upper left corner, and zeros right of and below them."""
    real = pixel_mask != 0
    rows, columns = real.any(2), real.any(1)
    corner = rows[:, :1].all() & (rows[:, 1:] <= rows[:, :-1]).all() & (columns[:, 1:] <= columns[:, :-1]).all()
    yield Condition(
        corner & (real == rows[:, :, None] & columns[:, None]).all() & (pixel_mask == real.to(pixel_mask.dtype)).all(),
        "pixel_mask must be 1 on a rectangle from the upper left corner, the image, and 0 on the padding.",
    )


def _is_real(x: Tensor) -> bool:
    return x.is_floating_point() or x.is_complex() or x.dtype == torch.bool


def _told(x: object) -> str:
    return f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
