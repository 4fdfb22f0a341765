"""`pipeline("referring-image-segmentation")`: an image and expressions in, masks out."""

import numpy as np
import torch
from PIL import Image
from transformers import Pipeline
from transformers.image_utils import load_image


TASK = "referring-image-segmentation"


class ReferringImageSegmentationPipeline(Pipeline):
    """Segments what expressions refer to.

    `pipe(image, ["the man in red", "left dog"])` gives, per expression, `{"text", "mask", "score", "heatmap"}`: mask is
    a PIL image of mode L (0 or 255) at the image's size, score lies in [0, 1], heatmap is a PIL image of mode L: the
    probability times 255. `pipe([{"image": ..., "text": [...]}, ...])` takes several images. The image is a PIL image,
    a path or a URL; `threshold=` replaces the processor's own.
    """

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def __call__(self, image, text=None, **kwargs):
        if text is None:
            if not isinstance(image, (dict, list)):
                raise ValueError("Pass the expressions too: pipe(image, ['the man in red']).")
            return super().__call__(image, **kwargs)
        return super().__call__({"image": image, "text": text}, **kwargs)

    def _sanitize_parameters(self, threshold: float | None = None, **kwargs):
        return {}, {}, {} if threshold is None else {"threshold": threshold}

    def preprocess(self, inputs):
        image = inputs["image"]
        image = load_image(image) if isinstance(image, str) else image
        text = [inputs["text"]] if isinstance(inputs["text"], str) else list(inputs["text"])
        features = self.processor(images=image, text=[text], return_tensors="pt")
        # sizes as the processor sees them: after EXIF orientation
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8) if isinstance(image, Image.Image) else False
        height, width = (image.width, image.height) if turned else (image.height, image.width)
        features["pixel_values"] = features["pixel_values"].to(self.dtype)
        return {"features": features, "text": text, "size": (height, width)}

    def _forward(self, inputs):
        return {"outputs": self.model(**inputs["features"]), "text": inputs["text"], "size": inputs["size"]}

    def postprocess(self, outputs, threshold: float | None = None):
        results = self.processor.post_process_referring_segmentation(
            outputs["outputs"], [outputs["size"]] * len(outputs["text"]), threshold
        )
        return [
            {
                "text": text,
                "mask": _to_pil(result["mask"].float()),
                "score": result["score"],
                "heatmap": _to_pil(result["probability"]),
            }
            for text, result in zip(outputs["text"], results)
        ]


def _to_pil(values: torch.Tensor) -> Image.Image:
    return Image.fromarray((values.cpu().numpy() * 255).round().astype(np.uint8))
