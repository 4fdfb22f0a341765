"""From what a visitor sends to what a model takes: an upright RGB picture and a list of expressions.

Every function answers bad input with `Refusal`, one sentence for the visitor.
"""

import os
import stat
import struct
import unicodedata
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from hf_ris.models.images_ris import to_rgb


# Formats that Pillow decodes by itself; EPS would start Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
MAX_PIXELS = 64_000_000  # of a file; a few bytes can claim gigapixels
WORKING_PIXELS = 640_000  # what the models see and the page shows; the largest model input has a third of it
FLAT_SHARE = 0.35  # of neighbours of one colour: RefScenes' pictures have 0.85, and 0.5 as JPEG; photographs below 0.3
MAX_EXPRESSIONS = 8
MAX_CHARACTERS = 60_000  # of all expressions together: 5,000 words pass

# What Pillow's decoders raise on damaged files: beside OSError, whatever their parsing stumbles over.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, OverflowError, struct.error, zlib.error)


class Refusal(ValueError):
    """Input that cannot be answered; the message is one sentence that says so to the visitor."""


@dataclass(frozen=True)
class Picture:
    """A picture as the models see it.

    Attributes:
        image: upright RGB of at most `WORKING_PIXELS`.
        width, height: of the file's picture, upright, in pixels.
        name: file name without folder.
    """

    image: Image.Image
    width: int
    height: int
    name: str


def open_picture(path: str | Path | None, name: str | None = None) -> Picture:
    """Read a file of any of `FORMATS` as `open_image` does, scaled down to `WORKING_PIXELS`.

    Args:
        name: the file's own name, if `path` is a stored copy.

    Raises:
        Refusal: no file, not a picture, damaged, or larger than `MAX_PIXELS`.
    """
    image = open_image(path)
    return Picture(reduced(image), image.width, image.height, Path(name or path).name)


def open_image(path: str | Path | None) -> Image.Image:
    """A picture in its own size: EXIF orientation applied, transparency over white, first frame of an animation."""
    if path is None:
        raise Refusal("There is no picture yet: upload one, paste one, or choose an example.")
    try:
        with open_regular(path) as file:
            refuse_heic(file)
            with Image.open(file, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Refusal(_too_large(f"{image.width:,} x {image.height:,} pixels"))
                return to_rgb(image)
    except Image.DecompressionBombError as error:
        raise Refusal(_too_large("more pixels than are safe to decode")) from error
    except UnidentifiedImageError as error:
        raise Refusal("This file is not a picture that can be read; use JPEG, PNG, WebP, GIF, BMP or TIFF.") from error
    except Refusal:
        raise
    except _DAMAGE as error:
        raise Refusal("This picture is damaged or cut short; try saving or sending it again.") from error


def refuse_heic(file: BinaryIO) -> None:
    """Raises Refusal for the format of Apple's telephones, which nothing here decodes, with the way round it."""
    head = file.read(12)
    file.seek(0)
    if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"):
        raise Refusal(
            "This is a HEIC photograph, which cannot be read here: export it as JPEG, or set the telephone's camera "
            "to “Most Compatible”."
        )


def open_regular(path: str | Path) -> BinaryIO:
    """A regular file, opened for reading; a pipe or device would keep its reader waiting. Raises Refusal."""
    try:
        file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")
    except (OSError, ValueError, TypeError) as error:
        raise Refusal("There is no such picture here any more; upload it again.") from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise Refusal("There is no such picture here any more; upload it again.")
    return file


def _too_large(size: str) -> str:
    return f"This picture has {size}; the limit is {MAX_PIXELS // 1_000_000} megapixels."


def reduced(image: Image.Image, pixels: int = WORKING_PIXELS) -> Image.Image:
    """The image, scaled down to so many pixels if it has more."""
    scale = (pixels / (image.width * image.height)) ** 0.5
    if scale >= 1:
        return image
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def is_drawn(image: Image.Image) -> bool:
    """Whether a picture looks drawn, not photographed: much of it is of one colour with its neighbour on the right."""
    pixels = np.asarray(image)
    if pixels.shape[1] < 2:
        return True
    return float((pixels[:, 1:] == pixels[:, :-1]).all(2).mean()) > FLAT_SHARE


def split_expressions(text: Any) -> list[str]:
    """Expressions out of one text, one a line, or out of a list of texts; runs of white space become one space.

    Raises:
        Refusal: none, more than `MAX_EXPRESSIONS`, more than `MAX_CHARACTERS`, one without any visible character, or
            something else than text.
    """
    texts = [text] if isinstance(text, str) else [] if text is None else text
    if not isinstance(texts, list) or not all(isinstance(item, str) for item in texts):
        raise Refusal("Expressions are text: one a line, or a list of texts.")
    length = sum(map(len, texts))
    if length > MAX_CHARACTERS:
        raise Refusal(f"These expressions have {length:,} characters; the limit is {MAX_CHARACTERS:,}.")
    expressions = [" ".join(line.split()) for item in texts for line in item.splitlines()]
    expressions = [expression for expression in expressions if any(map(is_visible, expression))]
    if not expressions:
        raise Refusal("There is no expression yet: write what to find, such as “the red umbrella on the left”.")
    if len(expressions) > MAX_EXPRESSIONS:
        raise Refusal(f"Write at most {MAX_EXPRESSIONS} expressions, one a line; these are {len(expressions)}.")
    return expressions


def is_visible(character: str) -> bool:
    """Whether a character is more than white space, a control or format character (such as a zero-width one)."""
    return not character.isspace() and unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Cn", "Zs")
