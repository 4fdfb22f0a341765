"""`pipeline("referring-video-segmentation")`: a video and expressions in, masks of every frame out."""

import math
from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm
from transformers import Pipeline

from .arguments_ris import checked_threshold, refuse_unknown
from .hub_ris import HubMixin
from .images_ris import as_pil, show
from .video_files import FRAME_RATE, frame_rate, frames_in_folder, read_frames, write_video


VIDEO_TASK = "referring-video-segmentation"

_PARAMETERS = ("threshold", "progress", "overlay", "fps")
_COLOURS = ((225, 29, 72), (37, 99, 235), (217, 119, 6), (5, 150, 105), (147, 51, 234), (8, 145, 178))


class ReferringVideoSegmentationPipeline(HubMixin, Pipeline):
    """Segments what expressions refer to, in every frame of a video.

    `pipe("clip.mp4", ["the ball that moves to the left", "the dog"])` gives, per expression, `{"text", "masks",
    "score", "rle"}`: masks are PIL images of mode L (0 or 255) of the frames' size, one for each frame; score in [0, 1]
    is the mean probability inside all masks; rle holds for each frame COCO's run lengths, `{"size": [height, width],
    "counts": [...]}`, column by column, beginning with the pixels that are outside.

    A video is a file (whatever ffmpeg reads, GIFs too), a folder of frames, a list of frames (PIL images, paths, uint8
    arrays), or a uint8 array (T, H, W, 3). The model is a video model, which sees frames together, or an image model,
    which answers each frame by itself.

    To the pipeline or to a call can be given: `threshold`, of the probability, in the processor's place; `progress`,
    True for a bar or a function of (done, total) steps; `overlay`, the name of a video (or GIF) that is written with
    the masks laid over the frames, at `fps` frames a second (the file's own, else 10).

    Raises:
        ValueError: a video or expression that cannot be read, or an answer that is not finite; the message names which.
        TypeError: an unknown parameter.
    """

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    @property
    def architecture(self) -> str:
        return self.model.config.model_type

    def __call__(self, video, text, **kwargs) -> list[dict[str, Any]]:
        unknown = set(kwargs) - set(_PARAMETERS)
        refuse_unknown(type(self).__name__, dict.fromkeys(unknown), _PARAMETERS)
        settings = {**self._settings, **kwargs}
        texts = list(text) if isinstance(text, (list, tuple)) else [text]
        threshold = settings.get("threshold")
        threshold = None if threshold is None else checked_threshold(threshold)
        frames = load_frames(video)
        results = [{"text": said, "masks": [], "score": 0.0, "rle": []} for said in texts]
        totals = np.zeros((len(texts), 2))  # sum of probabilities inside, pixels inside
        for answers in self._answers(frames, texts, threshold, settings.get("progress")):
            for number, (result, answer) in enumerate(zip(results, answers)):
                if math.isnan(answer["score"]):
                    raise ValueError(
                        f"The model's answer to {show(result['text'])} is not finite: weights or inputs hold NaN or "
                        "infinite values, or a half precision overflowed."
                    )
                mask = answer["mask"].cpu().numpy()
                area = int(mask.sum())
                totals[number] += answer["score"] * area, area
                result["masks"].append(Image.fromarray(mask.astype(np.uint8) * 255))
                result["rle"].append(run_lengths(mask))
        for result, (inside, area) in zip(results, totals.tolist()):
            result["score"] = inside / area if area else 0.0
        if settings.get("overlay") is not None:
            rate = settings.get("fps") or (frame_rate(video) if _is_file(video) else FRAME_RATE)
            write_video(settings["overlay"], overlaid(frames, results), rate)
        return results

    def _sanitize_parameters(self, **parameters):
        refuse_unknown(type(self).__name__, {k: v for k, v in parameters.items() if k not in _PARAMETERS}, _PARAMETERS)
        self._settings = parameters
        return {}, {}, {}

    def _answers(self, frames: Sequence[Image.Image], texts: list[str], threshold, progress) -> Iterator[list[dict]]:
        """The processor's answers to all texts, frame by frame."""
        size = (frames[0].height, frames[0].width)
        if self.model.main_input_name == "pixel_values_videos":
            steps = -(-len(frames) // self.model.config.window_frames)
            with Progress(progress, steps) as advance:
                hook = self.model.vision_encoder.register_forward_hook(lambda *_: advance())
                try:
                    outputs = self.forward(self.preprocess({"frames": frames, "texts": texts}))
                finally:
                    hook.remove()
            yield from self.processor.post_process_frames(outputs, [size] * len(texts), threshold)
            return
        with Progress(progress, len(frames)) as advance:
            for frame in frames:
                outputs = self.forward(self.preprocess({"frames": frame, "texts": texts}))
                sizes = [(frame.height, frame.width)] * len(texts)
                yield self.processor.post_process_referring_segmentation(outputs, sizes, threshold)
                advance()

    def preprocess(self, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Frames (one, of an image model) and texts -> the model's inputs, floating ones in its dtype."""
        lazy = {"lazy": True} if self.model.main_input_name == "pixel_values_videos" else {}
        return dict(self.processor(inputs["frames"], inputs["texts"], **lazy).to(self.dtype))

    def _forward(self, inputs):
        return self.model(**inputs)

    def postprocess(self, outputs, **parameters):
        return outputs

    def save_pretrained(self, save_directory, **kwargs):
        """The model's files and the processor's; the base class leaves the latter's configuration out."""
        self.processor.save_pretrained(save_directory)
        self.model.save_pretrained(save_directory, **kwargs)


class Progress:
    """A bar (True), a function of (done, total), or nothing (None, False), as a context that gives a function to call
    after each step."""

    def __init__(self, progress: bool | Callable[[int, int], Any] | None, total: int):
        self.progress, self.total, self.done = progress, total, 0
        self.bar = tqdm(total=total, disable=progress is not True)

    def __enter__(self) -> Callable[[], None]:
        return self.advance

    def advance(self) -> None:
        self.done += 1
        self.bar.update()
        if callable(self.progress):
            self.progress(self.done, self.total)

    def __exit__(self, *error) -> None:
        self.bar.close()


def load_frames(video: Any) -> list[Image.Image]:
    """All frames of anything that the pipeline takes, upright RGB of one size.

    Raises:
        ValueError: nothing that is a video, no frame, or frames of several sizes.
    """
    if isinstance(video, (str, PathLike)):
        path = Path(video)
        frames = [as_pil(file) for file in frames_in_folder(path)] if path.is_dir() else list(read_frames(path))
    elif isinstance(video, (np.ndarray, torch.Tensor)) and video.ndim != 4:
        raise ValueError(f"A video is an array (frames, height, width, 3), got one of shape {tuple(video.shape)}.")
    elif isinstance(video, (Sequence, np.ndarray, torch.Tensor)):
        frames = [as_pil(frame, f"Frame {number}") for number, frame in enumerate(video)]
    else:
        raise ValueError(f"A video is a file, a folder, a list of frames or an array, got {show(video)}.")
    sizes = sorted({frame.size for frame in frames})
    if len(sizes) != 1:
        found = ", ".join(f"{width}x{height}" for width, height in sizes) or "no frame"
        raise ValueError(f"The frames of a video are of one size, but these are {found}.")
    return frames


def run_lengths(mask: np.ndarray) -> dict[str, list[int]]:
    """Bool (H, W) -> COCO's uncompressed run-length encoding, column by column, outside first."""
    flat = mask.flatten(order="F")
    ends = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def overlaid(frames: Sequence[Image.Image], results: list[dict[str, Any]]) -> Iterator[Image.Image]:
    """The frames, dimmed where no mask lies, each expression's masks tinted in its colour."""
    for number, frame in enumerate(frames):
        pixels = np.asarray(frame, np.float32)
        masks = [np.asarray(result["masks"][number]) > 0 for result in results]
        shown = np.where(np.any(masks, axis=0)[..., None], pixels, 0.45 * pixels + 20)
        for index, mask in enumerate(masks):
            shown[mask] = 0.6 * shown[mask] + 0.4 * np.array(_COLOURS[index % len(_COLOURS)], np.float32)
        yield Image.fromarray(shown.clip(0, 255).astype(np.uint8))


def _is_file(video: Any) -> bool:
    return isinstance(video, (str, PathLike)) and Path(video).is_file()
