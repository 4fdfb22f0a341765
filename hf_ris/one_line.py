"""`hf_ris.pipeline("florence-2")(photo, ["the man in red"])`: from a name to masks on a photograph in one line."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageSegmentation, AutoProcessor

from .baselines import is_baseline, load_baseline
from .models.images_ris import as_pil


class OneLine:
    """A model and its processor as one call.

    `pipe(photo, ["the man in red", "left dog"])` gives, per expression, a dict: `text`, `mask` (a PIL image of mode L,
    0 or 255, of the photo's size), `score` in [0, 1], `heatmap` (mode L, probability times 255), where the
    architecture locates before it segments (LTS, MPG-LQGNet) `location`, a map like it, and from Florence-2
    `remark`, a sentence where its answer was no mask, else None. A photo is a PIL image, a path, a URL or an array.
    """

    def __init__(self, model: torch.nn.Module, processor: Any, device: str | torch.device):
        self.model, self.processor, self.device = model.to(device).eval(), processor, torch.device(device)

    @torch.no_grad()
    def __call__(self, photo: Any, text: str | list[str], threshold: float | None = None) -> list[dict[str, Any]]:
        """threshold: of the probability, in [0, 1]; None is the processor's own."""
        image = as_pil(photo)
        texts = [text] if isinstance(text, str) else list(text)
        outputs = self.model(**self.processor(image, [texts]).to(self.device))
        sizes = [(image.height, image.width)] * len(texts)
        results = self.processor.post_process_referring_segmentation(outputs, sizes, threshold)
        answers = [
            {"text": said, "mask": _grey(of["mask"]), "score": of["score"], "heatmap": _grey(of["probability"])}
            | ({"remark": of["remark"]} if "remark" in of else {})
            for said, of in zip(texts, results, strict=True)
        ]
        if outputs.prior_logits is not None:
            last = outputs.prior_logits[:, -1:].float().sigmoid()
            for answer, place in zip(answers, self.processor.post_process_maps(last, sizes, outputs.input_size)):
                answer["location"] = _grey(place[0].clamp(0, 1))
        return answers


def _grey(values: torch.Tensor) -> Image.Image:
    return Image.fromarray((values.float().cpu().numpy() * 255).round().astype(np.uint8))


def pipeline(model: str, device: str | torch.device | None = None) -> OneLine:
    """A baseline by its name (`florence-2`, `sam3`, `clipseg`, ...), or a folder or Hub id of a model of ours.

    device: None is a GPU where there is one, else the CPU. The weights are fetched when they are first used.

    Raises:
        ValueError, OSError: what is no model, or cannot be had; one sentence says which and why.
    """
    if is_baseline(model):
        loaded, processor = load_baseline(model)
    else:
        processor = AutoProcessor.from_pretrained(model)
        loaded = AutoModelForImageSegmentation.from_pretrained(model)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return OneLine(loaded, processor, device)
