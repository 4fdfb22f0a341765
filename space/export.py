"""Files to take away: masks as PNG in a ZIP, and a COCO annotation file with RLE masks."""

import io
import json
import re
import zipfile

import numpy as np
from inference import Comparison, ModelMaps, cut, full_size_masks
from PIL import Image
from pycocotools import mask as coco_mask

from hf_ris.data.schema import encode_mask


def slug(text: str, length: int = 40) -> str:
    """A file name's worth of a text: letters and digits of any script, the rest as single hyphens."""
    return re.sub(r"[\W_]+", "-", text.lower()).strip("-")[:length].rstrip("-") or "expression"


def masks_zip(comparison: Comparison, thresholds: list[float]) -> bytes:
    """A ZIP of `<model>/<number>-<expression>.png`, 0 or 255, at the picture's own size; a threshold per model."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # PNG is compressed already
        for maps, threshold in zip(comparison.models, thresholds):
            masks = full_size_masks(comparison, maps, threshold)
            for number, (text, mask) in enumerate(zip(comparison.expressions, masks), 1):
                png = io.BytesIO()
                Image.fromarray(mask.astype(np.uint8) * 255).save(png, "PNG")
                archive.writestr(f"{slug(maps.entry.key)}/{number:02}-{slug(text)}.png", png.getvalue())
    return buffer.getvalue()


def coco_json(comparison: Comparison, thresholds: list[float]) -> bytes:
    """A COCO annotation file: the picture, a category per expression, an annotation per model and expression.

    Beside COCO's own fields an annotation holds `expression`, `model`, `threshold` and `score`.
    """
    picture = comparison.picture
    annotations = [
        {"id": number, **annotation}
        for number, annotation in enumerate(
            (
                annotation
                for maps, threshold in zip(comparison.models, thresholds)
                for annotation in _annotations(comparison, maps, threshold)
            ),
            1,
        )
    ]
    categories = [{"id": number, "name": text} for number, text in enumerate(comparison.expressions, 1)]
    image = {"id": 1, "file_name": picture.name, "width": picture.width, "height": picture.height}
    content = {"images": [image], "categories": categories, "annotations": annotations}
    return json.dumps(content, ensure_ascii=False, indent=1).encode()


def _annotations(comparison: Comparison, maps: ModelMaps, threshold: float) -> list[dict]:
    scores = cut(maps.probabilities, threshold)[1]
    masks = full_size_masks(comparison, maps, threshold)
    found = []
    for number, (text, mask, score) in enumerate(zip(comparison.expressions, masks, scores), 1):
        rle = encode_mask(mask)
        found.append(
            {
                "image_id": 1,
                "category_id": number,
                "segmentation": rle,
                "area": int(mask.sum()),
                "bbox": [float(side) for side in coco_mask.toBbox(rle)],
                "iscrowd": 0,
                "expression": text,
                "model": maps.entry.key,
                "threshold": round(float(threshold), 4),
                "score": round(score, 4),
            }
        )
    return found
