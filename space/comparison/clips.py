"""Videos: examples of Moving RefScenes, drawn here when they are wanted, and a visitor's file, read within limits.

A stranger's file goes to ffmpeg as one of four containers, told by its first bytes, each of which holds all that it
shows: playlists and the like, which ffmpeg would guess as well, name further files of this machine.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from PIL import Image

from comparison.limits import check_time, time_limit
from comparison.pictures import Refusal, open_regular, reduced
from hf_ris.data.refscenes.moving import MovingScenes
from hf_ris.data.schema import decode_mask


MAX_SECONDS = 20  # that a video may last
MAX_DECODED = 900  # frames of it that are looked at
MAX_FRAME_PIXELS = 4_000_000
FRAMES = 24  # that models see, evenly spaced
CLIP_PIXELS = 65_536  # of a frame as models see it and the page shows it
READ_SECONDS = 20
RATE = 5.0  # frames a second of the examples, which say none
EXAMPLES = {  # name -> number in Moving RefScenes' test split, expressions to begin with
    "fishes": (4, ("the umbrella", "the fish that goes to the right", "the fish that does not move")),
    "hats": (11, ("the yellow hat", "the hat that turns around", "the green hat that moves down")),
    "balls": (10, ("the tree", "the ball that rises", "the ball that moves fastest")),
    "keys": (8, ("the green key", "the key that does not move", "the white key that bounces")),
    "boat": (7, ("the boat", "the cup that moves to the right", "the violet cup that starts to move")),
}
_GONE = "There is no such video here any more; upload it again."


@dataclass(frozen=True, eq=False)
class Clip:
    """A video as the models see it.

    Attributes:
        frames: RGB, of one size.
        rate: of these frames, a second.
        name: file name without folder.
        expressions: to begin with, of an example.
        known: true masks (T, H, W) of every expression of an example.
        thinned: whether the file has more frames than these.
    """

    frames: list[Image.Image]
    rate: float
    name: str
    expressions: tuple[str, ...] = ()
    known: dict[str, np.ndarray] = field(default_factory=dict)
    thinned: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.frames[0].height, self.frames[0].width

    def digest(self) -> bytes:
        """What tells its content."""
        found = hashlib.sha256(repr(self.frames[0].size).encode())
        for frame in self.frames:
            found.update(frame.tobytes())
        return found.digest()


@cache
def example_clip(name: str) -> Clip:
    """An example by its name in `EXAMPLES`."""
    number, expressions = EXAMPLES[name]
    row = MovingScenes("test", 128, 8)[number]
    known = {
        said["text"]: np.stack([decode_mask(mask) for mask in row["objects"][said["object_indices"][0]]["masks"]])
        for said in row["expressions"]
    }
    return Clip(row["frames"], RATE, name, expressions, known)


def read_clip(value: Any) -> Clip:
    """`{"example": name}` or an uploaded file's data, as gradio hands it over after its check. Raises Refusal."""
    if value is None:
        raise Refusal("There is no video yet: upload one, or choose an example.")
    if isinstance(value, dict) and "example" in value:
        if not isinstance(value["example"], str) or value["example"] not in EXAMPLES:
            raise Refusal(f"There is no example video “{str(value['example'])[:40]}”; there are {', '.join(EXAMPLES)}.")
        return example_clip(value["example"])
    if not isinstance(value, dict) or not isinstance(value.get("path"), str):
        raise Refusal("The video must be an uploaded file (gradio_client's handle_file makes one of a path).")
    name = value.get("orig_name")
    with time_limit(READ_SECONDS, "Reading this video"):
        return open_clip(value["path"], name if isinstance(name, str) else None)


def open_clip(path: str | Path, name: str | None = None) -> Clip:
    """Read a file: at most `FRAMES` of its frames, evenly spaced, upright, scaled down to `CLIP_PIXELS`.

    Raises:
        Refusal: no file, no video of a kind that is read, damaged, too long or too large.
    """
    try:
        file = open_regular(path)
    except Refusal as refusal:
        raise Refusal(_GONE) from refusal
    with file:
        kind = container_of(file)
        try:
            with av.open(file, format=kind) as container:
                frames, rate, thinned = _read(container)
        except (av.error.FFmpegError, ValueError) as error:
            if isinstance(error, Refusal):
                raise
            raise Refusal("This video is damaged or cut short; try saving or sending it again.") from error
    return Clip(frames, rate, Path(name or path).name, thinned=thinned)


def container_of(file: BinaryIO) -> str:
    """ffmpeg's name of a file's container: MP4 and MOV, WebM and Matroska, AVI, GIF. Raises Refusal for any other."""
    head = file.read(12)
    file.seek(0)
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free"):
        return "mov"
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    raise Refusal("This file is not a video that can be read; use MP4, MOV, WebM, AVI or GIF.")


def _read(container) -> tuple[list[Image.Image], float, bool]:
    """(frames, frames a second of these, whether there are more)."""
    if not container.streams.video:
        raise Refusal("This file holds no moving picture.")
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1
    _check_pixels(stream.codec_context.width, stream.codec_context.height)
    if container.duration is not None and container.duration / av.time_base > MAX_SECONDS:
        raise Refusal(f"This video lasts {container.duration / av.time_base:.0f} s; the limit is {MAX_SECONDS} s.")
    kept: list[Image.Image] = []
    stride, count = 1, 0
    for image in _decoded(container, stream):
        if count == MAX_DECODED:
            raise Refusal(f"This video has more than {MAX_DECODED} frames, which is the limit here.")
        if count % stride == 0:
            image = reduced(image, CLIP_PIXELS)
            kept.append(image if not kept or image.size == kept[0].size else image.resize(kept[0].size))
            if len(kept) == 4 * FRAMES:  # memory for so many, however long it is
                kept, stride = kept[::2], 2 * stride
        count += 1
    if not kept:
        raise Refusal("This file holds no moving picture.")
    own = float(stream.average_rate or RATE)
    if count / own > MAX_SECONDS:
        raise Refusal(f"This video lasts {count / own:.0f} s; the limit is {MAX_SECONDS} s.")
    number = min(FRAMES, len(kept))
    frames = [kept[(2 * place + 1) * len(kept) // (2 * number)] for place in range(number)]
    return frames, own * number / count, number < count


def _decoded(container, stream) -> Iterator[Image.Image]:
    for frame in container.decode(stream):
        check_time()
        _check_pixels(frame.width, frame.height)  # which may change within a video
        image = frame.to_image()
        yield image.rotate(frame.rotation, expand=True) if frame.rotation else image


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_FRAME_PIXELS:
        raise Refusal(
            f"This video has {width:,} x {height:,} pixels; the limit is {MAX_FRAME_PIXELS // 1_000_000} megapixels."
        )
