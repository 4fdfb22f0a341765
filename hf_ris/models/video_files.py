"""Video files, animated pictures and folders of frames, read frame by frame and written, through PyAV (ffmpeg).

PyAV is imported where a file is opened: it takes a quarter of a second, and most models see no video.
"""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from os import PathLike
from pathlib import Path

import numpy as np
from PIL import Image

from .images_ris import show


FRAME_RATE = 10.0  # of what has none of its own
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def read_frames(path: str | PathLike) -> Iterator[Image.Image]:
    """The frames of a video file or GIF, upright RGB, decoded one by one.

    Raises:
        ValueError: no such file, no video in it, or one that is damaged; the message names it.
    """
    import av

    path = _existing(path)
    count = 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{show(str(path))} holds no video stream.")
            for frame in container.decode(video=0):
                image = frame.to_image()
                count += 1
                yield image.rotate(frame.rotation, expand=True) if frame.rotation else image
    except av.error.FFmpegError as error:
        raise ValueError(
            f"{show(str(path))} cannot be read as a video beyond frame {count}: {error.strerror}."
        ) from error
    if not count:
        raise ValueError(f"{show(str(path))} holds no frame.")


def frame_rate(path: str | PathLike) -> float:
    """Frames a second of a video file; `FRAME_RATE` where it does not say."""
    import av

    path = _existing(path)
    try:
        with av.open(str(path)) as container:
            rates = [stream.average_rate for stream in container.streams.video]
    except av.error.FFmpegError as error:
        raise ValueError(f"{show(str(path))} cannot be read as a video: {error.strerror}.") from error
    return float(rates[0]) if rates and rates[0] else FRAME_RATE


def frames_in_folder(path: str | PathLike) -> list[Path]:
    """The picture files of a folder, by name. Raises ValueError where there is none."""
    found = sorted(file for file in Path(path).iterdir() if file.suffix.lower() in PICTURES)
    if not found:
        raise ValueError(f"The folder {show(str(path))} holds no frames ({', '.join(PICTURES)}).")
    return found


def write_video(path: str | PathLike, frames: Iterable[Image.Image], rate: float = FRAME_RATE) -> None:
    """Frames of one size as a video that browsers play (H.264; an odd side is extended by one), or a GIF by its name.

    Raises:
        ValueError: no frame, or a name whose ending no container belongs to.
    """
    import av

    path = Path(path)
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise ValueError(f"{show(str(path))}: a video has at least one frame, and there is none to write.")
    if path.suffix.lower() == ".gif":
        first.save(path, save_all=True, append_images=list(frames), duration=round(1000 / rate), loop=0)
        return
    try:
        container = av.open(str(path), "w")
    except (ValueError, av.error.FFmpegError) as error:
        raise ValueError(f"{show(str(path))} cannot be written as a video; a name like out.mp4 can.") from error
    with container:
        stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1001))
        stream.width, stream.height = first.width + first.width % 2, first.height + first.height % 2
        stream.pix_fmt = "yuv420p"
        for image in _chained(first, frames):
            pixels = np.asarray(image.convert("RGB"))
            pixels = np.pad(pixels, ((0, pixels.shape[0] % 2), (0, pixels.shape[1] % 2), (0, 0)), mode="edge")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


def _chained(first: Image.Image, rest: Iterable[Image.Image]) -> Iterator[Image.Image]:
    yield first
    yield from rest


def _existing(path: str | PathLike) -> Path:
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{show(str(path))}: there is no such video file.")
    return path
