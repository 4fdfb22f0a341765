"""`pipeline("referring-image-segmentation")`: images and expressions in, masks out."""

import math
from collections.abc import Iterator, Sized
from itertools import chain
from os import PathLike
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import Pipeline
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator

from .arguments_ris import check_whole, checked_seconds, checked_threshold, refuse_unknown
from .hub_ris import HubMixin
from .images_ris import URL_SECONDS, as_pil, show
from .inference_ris import optimize_for_inference


TASK = "referring-image-segmentation"

_PARAMETERS = ("threshold", "timeout", "batch_size", "num_workers")


class ReferringImageSegmentationPipeline(HubMixin, Pipeline):
    """Segments what expressions refer to.

    `pipe(image, ["the man in red", "left dog"])` gives, per expression, `{"text", "mask", "score", "heatmap"}`: mask is
    a PIL image of mode L (0 or 255) at the image's size, score lies in [0, 1], heatmap is a PIL image of mode L: the
    probability times 255. An image is whatever the processor takes: a PIL image, a path, a URL, a uint8 array.

    Several images, each with one or several expressions, give one such list for each: `pipe([image, other], [["a cup"],
    ["left dog", "right dog"]])`, or `pipe(items)` with items `{"image": ..., "text": ...}` in a list, a generator or a
    torch `Dataset`; the latter two are read and answered one batch after the other.

    Named by a folder or a Hub id, a model runs in the recommended way for the machine (`optimize_for_inference`),
    unless `dtype` is given and not "auto". Given as an object with its processor, it stays as it is.

    To the pipeline or to a call can be given: `threshold`, of the probability, in the processor's place; `timeout`,
    seconds that a URL may take (30); `batch_size`, images that the model sees at once (1); `num_workers`, processes
    that prepare them (0).

    Raises:
        ValueError: an image or expression that cannot be read, a parameter out of its range, or an answer that is not
            finite; the message names which.
        TypeError: an unknown parameter.
    """

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, model, *args, dtype: torch.dtype | str | None = None, **kwargs):
        super().__init__(model, *args, **kwargs)
        if self.processor.loaded_by_pipeline and dtype == "auto" and "hf_device_map" not in model.__dict__:
            optimize_for_inference(self.model)

    @property
    def architecture(self) -> str:
        return self.model.config.model_type

    def __call__(self, image, text=None, **kwargs):
        check_whole("The pipeline", batch_size=kwargs.get("batch_size"))
        check_whole("The pipeline", 0, num_workers=kwargs.get("num_workers"))
        if text is None:
            if isinstance(image, str | bytes | PathLike | Image.Image | np.ndarray | torch.Tensor):
                raise ValueError("Pass the expressions too: pipe(image, ['the man in red']).")
            return [] if isinstance(image, list) and not image else super().__call__(image, **kwargs)
        if not isinstance(image, (list, tuple)):
            return super().__call__({"image": image, "text": text}, **kwargs)
        if not isinstance(text, (list, tuple)) or len(text) != len(image):
            raise ValueError(
                f"{len(image)} images take a list of {len(image)} expressions or lists of expressions, one for each."
            )
        return super().__call__([{"image": of, "text": said} for of, said in zip(image, text)], **kwargs)

    def _sanitize_parameters(self, threshold: float | None = None, timeout: float | None = None, **unknown):
        refuse_unknown(type(self).__name__, unknown, _PARAMETERS)
        before = {} if timeout is None else {"timeout": checked_seconds(timeout)}
        return before, {}, {} if threshold is None else {"threshold": checked_threshold(threshold)}

    def preprocess(self, inputs: dict[str, Any], timeout: float = URL_SECONDS) -> dict[str, Any]:
        """One item with its image loaded and upright and its expressions in a list."""
        if not isinstance(inputs, dict) or not {"image", "text"} <= inputs.keys():
            had = f"one with {', '.join(map(show, list(inputs)[:8]))}" if isinstance(inputs, dict) else show(inputs)
            raise ValueError(f"The pipeline takes items {{'image': ..., 'text': ...}}, got {had}.")
        text = inputs["text"]
        return {
            "image": as_pil(inputs["image"], timeout=timeout),
            "text": list(text) if isinstance(text, (list, tuple)) else [text],
        }

    def collate(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        """The model's inputs for several images, floating ones in the model's dtype."""
        features = self.processor([item["image"] for item in items], [item["text"] for item in items])
        return {
            "features": features.to(self.dtype),
            "text": [item["text"] for item in items],
            "size": [(item["image"].height, item["image"].width) for item in items],
        }

    def _forward(self, inputs):
        return {"outputs": self.model(**inputs["features"]), "text": inputs["text"], "size": inputs["size"]}

    def postprocess(self, outputs, threshold: float | None = None) -> list[list[dict[str, Any]]]:
        """For each image of a batch the answers to its expressions."""
        sizes = [size for size, texts in zip(outputs["size"], outputs["text"]) for _ in texts]
        results = self.processor.post_process_referring_segmentation(outputs["outputs"], sizes, threshold)
        for said, result in zip(chain.from_iterable(outputs["text"]), results):
            if math.isnan(result["score"]):
                raise ValueError(
                    f"The model's answer to {show(said)} is not finite: weights or inputs hold NaN or infinite values, "
                    "or a half precision overflowed."
                )
        results = iter(results)
        return [[_answer(text, next(results)) for text in texts] for texts in outputs["text"]]

    def run_single(self, inputs, preprocess_params, forward_params, postprocess_params):
        batch = self.collate([self.preprocess(inputs, **preprocess_params)])
        return self.postprocess(self.forward(batch, **forward_params), **postprocess_params)[0]

    def get_iterator(
        self, inputs, num_workers: int, batch_size: int, preprocess_params, forward_params, postprocess_params
    ) -> Iterator[list[dict[str, Any]]]:
        """Answers image by image. The base class would cut a batch's outputs by image, but they are by expression."""
        check_whole("The pipeline", batch_size=batch_size)
        check_whole("The pipeline", 0, num_workers=num_workers)
        sized = isinstance(inputs, Sized)
        items = (PipelineDataset if sized else PipelineIterator)(inputs, self.preprocess, preprocess_params)
        workers = num_workers if sized else min(num_workers, 1)  # several would each read all of it
        for batch in DataLoader(items, batch_size=batch_size, num_workers=workers, collate_fn=self.collate):
            yield from self.postprocess(self.forward(batch, **forward_params), **postprocess_params)

    def save_pretrained(self, save_directory, **kwargs):
        """The model's files and the processor's; the base class leaves the latter's configuration out."""
        self.processor.save_pretrained(save_directory)
        self.model.save_pretrained(save_directory, **kwargs)


def _answer(text: str, result: dict[str, Any]) -> dict[str, Any]:
    mask = result["mask"].to(torch.uint8).mul_(255)
    heatmap = result["probability"].mul(255).round_().to(torch.uint8)
    return {"text": text, "mask": _to_pil(mask), "score": result["score"], "heatmap": _to_pil(heatmap)}


def _to_pil(values: torch.Tensor) -> Image.Image:
    return Image.fromarray(values.cpu().numpy())
