"""Pictures and masks of any kind as what is computed with: upright 8-bit RGB, and booleans.

A file named by its path, its bytes and the same file opened by Pillow give the same picture. What the values of an
array mean is told by their type and range; where these leave it open, or nothing fits, a sentence says so: a picture
that is read at a wrong scale is black, and looks to a model like any other.

Every error here is a ValueError of one sentence that names the picture.
"""

import base64
import binascii
import math
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from io import BytesIO
from os import PathLike
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ExifTags import Base


# Pillow decodes these by itself. Others start programs (EPS: Ghostscript) or are no pictures.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")

# What Pillow's decoders raise on damaged files: beside OSError, whatever their parsing stumbles over.
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

URL_SECONDS = 30.0
URL_BYTES = 256 * 2**20

_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")
_CHANNELS = (1, 2, 3, 4)
_KINDS = "a PIL image, a path, a URL, or an array or tensor (height, width, 3) or (3, height, width)"


def as_pil(image: Any, name: str = "The image", timeout: float = URL_SECONDS) -> Image.Image:
    """A picture as upright 8-bit RGB (`to_rgb`).

    Args:
        image: a PIL image; a path, an http(s) URL or a `data:image/...;base64,` URL; the bytes of a file; a numpy array
            or torch tensor (H, W), (H, W, C) or (C, H, W), with C grey, grey and alpha, RGB or RGBA. Where an array's
            first and last side could both be C, it is the last of an array and the first of a tensor. Values: uint8;
            boolean; uint16 (0 to 65,535); other integers up to 255 or up to 65,535; floats in [0, 1] or in [0, 255].
        name: what error messages call it.
        timeout: seconds that a URL may take in all.
    """
    if isinstance(image, (str, PathLike)):
        name = f"{name} ({show(image)})"
        image = open_image(_source(image, name, timeout), name)
    elif isinstance(image, bytes):
        image = open_image(image, name)
    elif not isinstance(image, Image.Image):
        image = _from_array(image, name)
    return to_rgb(image, name)


def pictures(images: Any, timeout: float = URL_SECONDS) -> list[Image.Image]:
    """One image or a list, of anything that `as_pil` takes, as upright RGB."""
    if not isinstance(images, (list, tuple)):
        return [as_pil(images, timeout=timeout)]
    if not images:
        raise ValueError("No image: give at least one.")
    return [as_pil(image, f"Image {index}", timeout) for index, image in enumerate(images)]


def is_upright_rgb(image: Any) -> bool:
    """Whether `to_rgb` would give a copy of a decoded picture."""
    plain = isinstance(image, Image.Image) and image.mode == "RGB" and not image.has_transparency_data
    return plain and type(image) is Image.Image and image.getexif().get(Base.Orientation, 1) == 1


def to_rgb(image: Image.Image, name: str = "The image") -> Image.Image:
    """A PIL image of any mode as upright RGB: EXIF orientation applied, deep values scaled, transparency over white."""
    if image.width < 1 or image.height < 1:
        raise ValueError(f"{name} has no pixels: it is {image.width} x {image.height}.")
    with decoding(name):
        image = ImageOps.exif_transpose(image)
        image.load()
    if image.mode in _SIXTEEN_BITS or image.mode in ("I", "F"):
        clear = image.info.get("transparency")
        values = np.asarray(image)
        image = Image.fromarray(eight_bits(values, name))
        if isinstance(clear, int):  # the one grey that is transparent
            image.putalpha(Image.fromarray((values != clear).astype(np.uint8) * 255))
    try:
        if image.has_transparency_data:
            image = image.convert("LA") if image.mode == "La" else image
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")
    except ValueError as error:
        raise ValueError(f"{name} has mode {image.mode}, which Pillow cannot make RGB of ({error}).") from error


def open_image(source: str | Path | bytes, name: str = "The image") -> Image.Image:
    """A file or its bytes, decoded as they are: in their own mode, EXIF orientation not applied, the first frame."""
    if not isinstance(source, bytes):
        source = existing_file(source, name)
    with decoding(name), Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
        image.load()
        return image


def existing_file(path: str | Path, name: str) -> Path:
    """The path, if a regular file lies there: a pipe would be waited for."""
    try:
        found, other = Path(path).is_file(), Path(path).exists()
    except (OSError, ValueError) as error:  # longer than a path may be, or with a null character
        raise ValueError(f"{name} cannot be a path: {_first_line(error)}.") from error
    if not found:
        raise ValueError(f"{name} is no regular file." if other else f"{name}: there is no such file.")
    return Path(path)


@contextmanager
def decoding(name: str) -> Iterator[None]:
    """What Pillow raises inside, as one sentence that names the picture."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} has more pixels than are safe to decode: {_first_line(error)}") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} is no picture that is read here; the formats are {', '.join(FORMATS)}.") from error
    except DAMAGE as error:
        raise ValueError(
            f"{name} cannot be decoded: it is damaged, cut short or closed ({_first_line(error)})."
        ) from error


def eight_bits(values: np.ndarray, name: str = "The image") -> np.ndarray:
    """Values of any type as uint8 in [0, 255], by their type and range; see `as_pil`."""
    kind = values.dtype.kind
    if values.dtype == np.uint8:
        return values
    if kind == "b":
        return values.astype(np.uint8) * np.uint8(255)
    if kind not in "uif":
        raise ValueError(f"{name} has values of type {values.dtype}; it takes integers, floats or booleans.")
    lowest, highest = float(values.min()), float(values.max())
    if not math.isfinite(lowest) or not math.isfinite(highest):
        raise ValueError(f"{name} holds values that are not finite (NaN or infinite).")
    scale = _float_scale(values, lowest, highest) if kind == "f" else _integer_scale(values.dtype, lowest, highest)
    if scale is None:
        raise ValueError(
            f"{name} has {values.dtype} values from {lowest:g} to {highest:g}, whose scale is unclear: give uint8, "
            "floats in [0, 1], floats in [0, 255], or 16-bit integers that use their range."
        )
    return (values * np.float64(scale)).round().clip(0, 255).astype(np.uint8)


def _integer_scale(dtype: np.dtype, lowest: float, highest: float) -> float | None:
    if lowest < 0 or highest > 65535:
        return None
    if dtype.kind == "u" and dtype.itemsize == 2:  # 8-bit values held wide, or a picture that is all but black
        return None if 0 < highest <= 255 else 1 / 257
    if highest == 1:
        return None
    return 1.0 if highest <= 255 else 1 / 257


def _float_scale(values: np.ndarray, lowest: float, highest: float) -> float | None:
    if -1e-3 <= lowest and highest <= 1 + 1e-3:  # what rounding may add
        return 255.0
    if lowest < 0 or highest > 255:
        return None
    # between the two scales: a bright picture that sharpening took beyond 1 is not a dark one of 255 steps
    return 1.0 if highest >= 16 or bool((values == np.round(values)).all()) else None


def _from_array(image: Any, name: str) -> Image.Image:
    is_tensor = isinstance(image, torch.Tensor)
    array = _numbers(image, f"{name} must be {_KINDS}; got {show(image)}.")
    if array.ndim not in (2, 3):
        raise ValueError(f"{name} must be {_KINDS}; got {array.dtype} {array.shape}.")
    if array.ndim == 3:
        first, last = array.shape[0] in _CHANNELS, array.shape[-1] in _CHANNELS
        if not first and not last:
            raise ValueError(f"{name} must be {_KINDS}; got {array.dtype} {array.shape}.")
        if first and (is_tensor or not last):
            array = array.transpose(1, 2, 0)
    if not array.size:
        raise ValueError(f"{name} has no pixels: its shape is {array.shape}.")
    array = np.ascontiguousarray(eight_bits(array, name))
    return Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array)


def _numbers(values: Any, otherwise: str) -> np.ndarray:
    """An array, tensor or nested list as a numpy array of numbers; ValueError(otherwise) for anything else."""
    if isinstance(values, torch.Tensor):
        if values.is_meta or values.layout != torch.strided:
            raise ValueError(otherwise)
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:  # ragged lists, and what has no values
        raise ValueError(otherwise) from error
    if array.dtype.kind not in "buif":
        raise ValueError(otherwise)
    return array


def binary_mask(mask: Any, name: str = "The mask") -> np.ndarray:
    """A mask (H, W) as booleans.

    Args:
        mask: an array, tensor, nested list or PIL image whose values are booleans, 0 and 1, or 0 and 255. Label maps
            and soft masks are refused: which label, and where to cut, is the caller's to say.
        name: what error messages call it.
    """
    if isinstance(mask, Image.Image):
        with decoding(name):
            mask = mask.convert("L") if mask.mode == "1" else mask  # Pillow's booleans are bytes of 255
            mask.load()
    array = _numbers(mask, f"{name} must be an array (height, width) of booleans; got {show(mask)}.")
    if array.dtype.kind == "b":
        return array
    if array.size:
        highest = array.max()  # NaN, if there is one
        odd = array[(array != 0) & (array != highest)]
        if highest not in (0, 1, 255) or odd.size:
            value = odd[0] if odd.size else highest
            raise ValueError(
                f"{name} holds {value:g} where booleans, 0 and 1, or 0 and 255 are due: make a mask of a label map by "
                "`mask == label` and of a soft mask by `mask > 0.5`."
            )
    return array != 0


def show(value: Any) -> str:
    """A value in an error message: short and printable, whatever it is."""
    if isinstance(value, (str, bytes, PathLike)):
        text = str(value) if isinstance(value, PathLike) else value
        return repr(text) if len(text) <= 80 else f"{text[:80]!r}..."
    if isinstance(value, (bool, int, float)) or value is None:
        text = repr(value) if not isinstance(value, int) or abs(value) < 10**30 else "a number beyond all bounds"
        return text
    shape = f" of shape {tuple(value.shape)}" if isinstance(value, (np.ndarray, torch.Tensor)) else ""
    return f"a {type(value).__name__}{shape}"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(".")


def _source(image: str | PathLike, name: str, timeout: float) -> str | Path | bytes:
    if isinstance(image, str) and image.startswith(("http://", "https://")):
        return _download(image, name, timeout)
    if isinstance(image, str) and image.startswith("data:image/"):
        try:
            return base64.b64decode(image.partition(",")[2], validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"{name} is no base64 after its comma ({_first_line(error)}).") from error
    return image


def _download(url: str, name: str, timeout: float) -> bytes:
    """The bytes at an address, within `timeout` seconds in all, however slowly they come."""
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout < math.inf:
        raise ValueError(f"timeout is a number of seconds above 0, got {show(timeout)}.")
    found: list[bytes | Exception] = []

    def fetch() -> None:
        deadline = time.monotonic() + timeout
        data = BytesIO()
        try:
            with urlopen(Request(url, headers={"User-Agent": "hf_ris"}), timeout=timeout) as answer:
                while (chunk := answer.read1(2**16)) and data.tell() <= URL_BYTES:
                    data.write(chunk)
                    if time.monotonic() > deadline:
                        raise TimeoutError
        except (OSError, HTTPException, ValueError) as error:
            found.append(error)
        else:
            found.append(data.getvalue())

    # a thread: neither looking a host up nor its dripping headers heed a socket's timeout
    thread = Thread(target=fetch, daemon=True)
    thread.start()
    thread.join(timeout)
    result = found[0] if found else TimeoutError("timed out")
    if isinstance(result, TimeoutError):
        raise ValueError(f"{name} did not come within {timeout:g} seconds.") from result
    if isinstance(result, Exception):
        raise ValueError(f"{name} could not be fetched ({_first_line(result)}).") from result
    if len(result) > URL_BYTES:
        raise ValueError(f"{name} has more than {URL_BYTES // 2**20} MiB.")
    return result
