"""Strategies of hypothesis for inputs as people come to give them: each with what is right to make of it.

A drawn thing is a `Case`: the value, and its `truth`, which is `REFUSED` where only a sentence is right, `OPEN` where
either is, and else what the value means.
"""

import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image


REFUSED, OPEN = "refused", "open"
FOLDER = Path(tempfile.mkdtemp(prefix="odd-"))


class Case(NamedTuple):
    name: str
    value: Any
    truth: Any


@st.composite
def pixels(draw) -> np.ndarray:
    """uint8 (H, W, 3), at least 5 x 5, which no array could take for channels, with black and white in it."""
    height, width, seed = draw(st.integers(5, 48)), draw(st.integers(5, 48)), draw(st.integers(0, 2**16))
    array = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    array[0, 0], array[-1, -1] = 0, 255
    return array


def _file(image: Image.Image, name: str, **kwargs) -> str:
    path = FOLDER / name
    image.save(path, **kwargs)
    return str(path)


def _bytes(image: Image.Image, form: str) -> bytes:
    buffer = BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def _turned(array: np.ndarray) -> Image.Image:
    image = Image.fromarray(array).transpose(Image.Transpose.ROTATE_90)
    image.getexif()[0x0112] = 6
    return image


def _over_white(array: np.ndarray, alpha: np.ndarray) -> Image.Image:
    return Image.composite(Image.fromarray(array), Image.new("RGB", alpha.shape[::-1], "white"), Image.fromarray(alpha))


# name -> (value, meaning) of a picture (H, W, 3); the meaning is RGB, or the same grey for all channels
_RGB = {
    "PIL": lambda a: Image.fromarray(a),
    "array": lambda a: a,
    "array, channels first": lambda a: a.transpose(2, 0, 1),
    "array, upside down in memory": lambda a: a[::-1].copy()[::-1],
    "floats to 1": lambda a: a / 255,
    "half floats to 1": lambda a: (a / 255).astype(np.float16),
    "floats to 255": lambda a: a.astype(np.float32),
    "whole numbers": lambda a: a.astype(np.int64),
    "16 bits": lambda a: a.astype(np.uint16) * 257,
    "tensor": lambda a: torch.from_numpy(a),
    "tensor, channels first": lambda a: torch.from_numpy(a).permute(2, 0, 1),
    "tensor of floats": lambda a: torch.from_numpy(a).permute(2, 0, 1) / 255,
    "PNG by path": lambda a: _file(Image.fromarray(a), "a.png"),
    "PNG by Path": lambda a: Path(_file(Image.fromarray(a), "a.png")),
    "TIFF by path": lambda a: _file(Image.fromarray(a), "a.tiff"),
    "BMP as bytes": lambda a: _bytes(Image.fromarray(a), "BMP"),
    "turned by EXIF": lambda a: _file(_turned(a), "turned.png", exif=_turned(a).getexif()),
    "opaque": lambda a: Image.fromarray(np.dstack([a, np.full(a.shape[:2], 255, np.uint8)])),
}
_GREY = {
    "L": lambda g: Image.fromarray(g),
    "grey array": lambda g: g,
    "grey with one channel": lambda g: g[..., None],
    "grey, channel first": lambda g: g[None],
    "I;16": lambda g: Image.fromarray(g.astype(np.uint16) * 257),
    "I of 8 bits": lambda g: Image.fromarray(g.astype(np.int32)),
    "I of 16 bits": lambda g: Image.fromarray(g.astype(np.int32) * 257),
    "F to 1": lambda g: Image.fromarray((g / 255).astype(np.float32)),
    "F to 255": lambda g: Image.fromarray(g.astype(np.float32)),
    "16-bit PNG by path": lambda g: _file(Image.fromarray(g.astype(np.uint16) * 257), "deep.png"),
    "float TIFF by path": lambda g: _file(Image.fromarray((g / 255).astype(np.float32)), "deep.tiff"),
}
_NEVER = {
    "floats from -1": lambda a: a / 127.5 - 1,
    "normalised": lambda a: (a / 255 - 0.45) / 0.225,
    "floats to 2": lambda a: a / 127.5,
    "floats to 65535": lambda a: a * 257.0,
    "NaN": lambda a: np.where(a == 0, np.nan, a / 255),
    "infinite": lambda a: np.where(a == 0, np.inf, a / 255),
    "8 bits in 16": lambda a: a.astype(np.uint16),
    "32 bits": lambda a: a.astype(np.int64) * 10**6,
    "complex": lambda a: a * 1j,
    "texts": lambda a: a.astype(str),
    "five channels": lambda a: np.concatenate([a, a], -1)[..., :5],
    "a batch": lambda a: a[None],
    "a batch of tensors": lambda a: torch.from_numpy(a[None]),
    "a row": lambda a: a[0, :, 0],
    "no rows": lambda a: a[:0],
    "PIL without pixels": lambda a: Image.new("RGB", (0, 9)),
    "meta": lambda a: torch.zeros(3, 9, 9, device="meta"),
    "cut short": lambda a: _bytes(Image.fromarray(a), "PNG")[:-60],
    "no picture": lambda a: b"GIF89a" + bytes(a.flat[:9]),
    "PostScript": lambda a: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "no such file": lambda a: "no/such/file.png",
    "a folder": lambda a: str(FOLDER),
    "an empty path": lambda a: "",
    "a null character": lambda a: "a\0.png",
    "half a character": lambda a: "\ud800.png",
    "a path without end": lambda a: "x" * 10**4,
    "no address": lambda a: "http://127.0.0.1:1/a.png",
    "no base64": lambda a: "data:image/png;base64,???",
    "None": lambda a: None,
    "a number": lambda a: 10**400,
    "a dict": lambda a: {"image": a},
    "an object": lambda a: object(),
}


@st.composite
def images(draw) -> Case:
    """One picture; the truth is a PIL image."""
    array = draw(pixels())
    kind = draw(st.sampled_from(["rgb", "grey", "alpha", "never"]))
    if kind == "rgb":
        name = draw(st.sampled_from(sorted(_RGB)))
        return Case(name, _RGB[name](array), Image.fromarray(array))
    if kind == "grey":
        name, grey = draw(st.sampled_from(sorted(_GREY))), array[..., 0].copy()
        return Case(name, _GREY[name](grey), Image.fromarray(np.repeat(grey[..., None], 3, -1)))
    if kind == "alpha":
        clear = np.dstack([array, array[..., 0]])
        image = Image.fromarray(clear)
        value = draw(st.sampled_from([image, clear, _file(image, "clear.png"), _bytes(image, "PNG")]))
        return Case("transparent", value, _over_white(array, array[..., 0]))
    name = draw(st.sampled_from(sorted(_NEVER)))
    return Case(name, _NEVER[name](array), REFUSED)


SENTENCES = ["the red cup", "star", "the small blue car on the left", "second ball from the right", "Grüner Fisch!"]
_SURROGATES = st.characters(categories=["Cs"]).map(lambda half: f"red {half} cup")
_NO_TEXTS = st.sampled_from([None, 7, 1.5, b"cup", {"text": "cup"}, object(), np.array("cup"), "", "  ", "\n\t"])


@st.composite
def texts(draw) -> Case:
    """What is said of one picture; the truth is a list of expressions."""
    kind = draw(st.sampled_from(["one", "several", "any", "long", "never", "half", "none"]))
    if kind == "one":
        text = draw(st.sampled_from(SENTENCES))
        return Case(kind, text, [text])
    if kind == "several":
        said = draw(st.lists(st.sampled_from(SENTENCES), min_size=1, max_size=4))
        return Case(kind, draw(st.sampled_from([said, tuple(said), [said]])), said)
    if kind == "any":
        return Case(kind, draw(st.text(min_size=1, max_size=40)), OPEN)
    if kind == "long":
        return Case(
            kind, draw(st.sampled_from(["cup " * 3000, "x" * 10**4, "[PAD] [SEP] <|endoftext|>", "😀" * 99])), OPEN
        )
    if kind == "none":
        return Case(kind, draw(st.sampled_from([[], (), [[]]])), REFUSED)
    odd = draw(_SURROGATES if kind == "half" else _NO_TEXTS)
    return Case(kind, draw(st.sampled_from([odd, [odd], ["star", odd]])), REFUSED)


_MASKS = {
    "booleans": lambda m: m,
    "0 and 1": lambda m: m.astype(np.uint8),
    "0 and 255": lambda m: m.astype(np.uint8) * 255,
    "floats": lambda m: m.astype(np.float32),
    "PIL L": lambda m: Image.fromarray(m.astype(np.uint8) * 255),
    "PIL 1": lambda m: Image.fromarray(m),
    "tensor": lambda m: torch.from_numpy(m),
    "nothing": lambda m: m & False,
}
_NO_MASKS = {
    "soft": lambda m: m * 0.9,
    "labels": lambda m: m * 3,
    "NaN": lambda m: np.where(m, np.nan, 0),
    "negative": lambda m: -m.astype(int),
    "sideways": lambda m: np.zeros((m.shape[0] + 1, m.shape[1])),
    "RGB": lambda m: Image.fromarray(m).convert("RGB"),
    "a path": lambda m: "mask.png",
    "a number": lambda m: 1,
    "an object": lambda m: object(),
}


@st.composite
def masks(draw, size: tuple[int, int]) -> Case:
    """One mask of a picture of this (height, width); the truth is its booleans."""
    mask = np.add.outer(np.arange(size[0]), np.arange(size[1])) < draw(st.integers(1, sum(size)))
    name = draw(st.sampled_from(sorted(_MASKS) * 2 + sorted(_NO_MASKS)))
    if name in _NO_MASKS:
        return Case(name, _NO_MASKS[name](mask), REFUSED)
    return Case(name, _MASKS[name](mask), mask & (name != "nothing"))


MISSPELT = st.sampled_from(
    [{}] * 8 + [{"mask": 1}, {"padding": True}, {"max_lenght": 5}, {"size": 64}, {"return_tensors": "tf"}]
)
SIZES = st.one_of(
    st.tuples(st.integers(1, 90), st.integers(1, 90)).map(lambda size: Case("size", size, size)),
    st.sampled_from([(10.5, 9), ("9", 9), (0, 9), (-1, 9), (9,), (9, 9, 9), 9, None, (10**6, 10**6), (True, 9)]).map(
        lambda size: Case("no size", size, REFUSED)
    ),
)
THRESHOLDS = st.one_of(
    st.floats(0, 1).map(lambda value: Case("threshold", value, value)),
    st.none().map(lambda value: Case("own threshold", value, value)),
    st.sampled_from([-0.1, 1.1, float("nan"), float("inf"), "0.5", True, [0.5]]).map(
        lambda value: Case("no threshold", value, REFUSED)
    ),
)
PARAMETERS = st.sampled_from(
    [({}, None)] * 6
    + [({"batch_size": 2}, None), ({"num_workers": 0}, None), ({"timeout": 5}, None)]
    + [({name: value}, REFUSED) for name, value in (("treshold", 0.5), ("batch_size", 0), ("batch_size", 1.5))]
    + [({name: value}, REFUSED) for name, value in (("timeout", -1), ("timeout", "1"), ("num_workers", -1))]
).map(lambda case: Case("parameters", *case))


def _at(value: float):
    def change(x: torch.Tensor) -> torch.Tensor:
        x = x.clone() if x.is_floating_point() else x.float()
        x.view(-1)[0] = value
        return x

    return change


def _hole(mask: torch.Tensor) -> torch.Tensor:
    mask = mask.clone()
    mask[..., 0] = 0
    return mask


# name of an input -> changes, and whether they mean the same
CHANGES: dict[str, list[tuple[str, Any, bool]]] = {
    "attention_mask": [
        ("as floats", lambda x: x.float(), True),
        ("as booleans", lambda x: x.bool(), True),
        ("with a hole", _hole, False),
        ("of zeros", lambda x: x * 0, False),
        ("of twos", lambda x: x * 2, False),
        ("of halves", lambda x: x * 0.5, False),
        ("with NaN", _at(float("nan")), False),
        ("with a row more", lambda x: torch.cat([x, x[:1]]), False),
        ("with a word less", lambda x: x[:, :-1], False),
        ("missing", lambda x: None, False),
    ],
    "input_ids": [
        ("as int32", lambda x: x.int(), True),
        ("beyond", lambda x: x + 10**6, False),
        ("below 0", lambda x: x - 10**6, False),
        ("as floats", lambda x: x.float(), False),
        ("of no rows", lambda x: x[:0], False),
        ("without rows", lambda x: x[0], False),
    ],
    "image_index": [
        ("as int32", lambda x: x.int(), True),
        ("beyond", lambda x: x + 1, False),
        ("below 0", lambda x: x - 1, False),
        ("as floats", lambda x: x.float(), False),
        ("with one more", lambda x: torch.cat([x, x[:1]]), False),
        ("with sides", lambda x: x[None], False),
    ],
    "pixel_values": [
        ("contiguous otherwise", lambda x: x.contiguous(memory_format=torch.channels_last), True),
        ("as doubles", lambda x: x.double(), False),
        ("as halves", lambda x: x.half(), False),
        ("as bytes", lambda x: x.to(torch.uint8), False),
        ("of one image", lambda x: x[0], False),
        ("with channels last", lambda x: x.permute(0, 2, 3, 1), False),
        ("of one channel", lambda x: x[:, :1], False),
        ("of none", lambda x: x[:0], False),
    ],
    "labels": [
        ("as halves", lambda x: x.round().half(), True),
        ("as booleans", lambda x: x > 0.5, True),
        ("to 255", lambda x: x * 255, False),
        ("with NaN", _at(float("nan")), False),
        ("infinite", _at(float("inf")), False),
        ("below 0", _at(-0.1), False),
        ("with a row more", lambda x: torch.cat([x, x[:1]]), False),
        ("of a strip", lambda x: x[:, : x.shape[1] // 4], False),
        ("with channels", lambda x: x[:, None], False),
    ],
    "object_index": [
        ("as int32", lambda x: x.int(), True),
        ("with one more", lambda x: torch.cat([x, x[:1]]), False),
        ("as floats", lambda x: x.float(), False),
    ],
    "pixel_mask": [
        ("as booleans", lambda x: x.bool(), True),
        ("as floats", lambda x: x.float(), True),
        ("of zeros", lambda x: x * 0, False),
        ("of 255", lambda x: x * 255, False),
        ("of another size", lambda x: x[:, :-1], False),
        ("with a row more", lambda x: torch.cat([x, x]), False),
    ],
    "clip_pixel_values": [
        ("of more images", lambda x: torch.cat([x, x]), False),
        ("smaller", lambda x: x[..., :-16], False),
        ("missing", lambda x: None, False),
    ],
    "prompt_mask": [
        ("as floats", lambda x: x.float(), True),
        ("with a hole", _hole, False),
        ("with a row more", lambda x: torch.cat([x, x[:1]]), False),
    ],
    "prompt_ids": [
        ("beyond", lambda x: x + 10**6, False),
        ("with a row more", lambda x: torch.cat([x, x[:1]]), False),
        ("without prompts", lambda x: x[:, 0], False),
        ("missing", lambda x: None, False),
    ],
}
