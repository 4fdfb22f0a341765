"""Files to take away: masks and cut-outs as PNG in a ZIP, and a COCO annotation file with RLE masks."""

import io
import json
import re
import zipfile
from collections.abc import Iterator

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from comparison.answers import Answer, from_png
from comparison.comparing import ModelAnswers
from comparison.inference import cut
from comparison.limits import check_time
from comparison.pictures import Picture
from hf_ris.data.schema import encode_mask


CUT_OUT_PIXELS = 4_000_000  # of a cut-out; a larger picture is scaled down for it


def slug(text: str, length: int = 40) -> str:
    """A file name's worth of a text: letters and digits of any script, the rest as single hyphens."""
    return re.sub(r"[\W_]+", "-", text.lower()).strip("-")[:length].rstrip("-") or "expression"


def mask_at(answer: Answer, threshold: float, width: int, height: int) -> np.ndarray:
    """Bool mask (height, width)."""
    values = from_png(answer.probability)
    if values.shape != (height, width):
        values = np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR))
    return values > 255 * threshold


def _each(
    models: list[ModelAnswers], expressions: list[str], thresholds: list[float]
) -> Iterator[tuple[ModelAnswers, float, int, str, Answer]]:
    """(model, threshold, number of the expression from 1, its text, answer), one after the other, within the time."""
    for model, threshold in zip(models, thresholds, strict=True):
        for number, (text, answer) in enumerate(zip(expressions, model.answers, strict=True), 1):
            check_time()
            yield model, threshold, number, text, answer


def _zip(files: Iterator[tuple[str, Image.Image]]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # PNG is compressed already
        for name, image in files:
            png = io.BytesIO()
            image.save(png, "PNG", compress_level=3)
            archive.writestr(name, png.getvalue())
    return buffer.getvalue()


def masks_zip(picture: Picture, models: list[ModelAnswers], expressions: list[str], thresholds: list[float]) -> bytes:
    """A ZIP of `<model>/<number>-<expression>.png`, 0 or 255, at the picture's own size; a threshold per model."""
    return _zip(
        (f"{slug(model.entry.key)}/{number:02}-{slug(text)}.png",
         Image.fromarray(mask_at(answer, threshold, picture.width, picture.height).astype(np.uint8) * 255))
        for model, threshold, number, text, answer in _each(models, expressions, thresholds)
    )  # fmt: skip


def cutouts_zip(
    image: Image.Image, models: list[ModelAnswers], expressions: list[str], thresholds: list[float]
) -> bytes:
    """A ZIP like that of the masks: what each covers of the image (RGB), transparent elsewhere, trimmed to it."""

    def cut_out(answer: Answer, threshold: float) -> Image.Image:
        values = Image.fromarray(mask_at(answer, threshold, *image.size).astype(np.uint8) * 255)
        whole = image.convert("RGBA")
        whole.putalpha(values)
        return whole.crop(values.getbbox() or (0, 0, 1, 1))

    return _zip(
        (f"{slug(model.entry.key)}/{number:02}-{slug(text)}.png", cut_out(answer, threshold))
        for model, threshold, number, text, answer in _each(models, expressions, thresholds)
    )


def coco_annotations(
    picture: Picture, models: list[ModelAnswers], expressions: list[str], thresholds: list[float]
) -> dict:
    """The content of a COCO annotation file: the picture, a category per expression, an annotation per model and one.

    Beside COCO's own fields an annotation holds `expression`, `model`, `threshold` and `score`.
    """
    annotations = []
    for model, threshold, number, text, answer in _each(models, expressions, thresholds):
        mask = mask_at(answer, threshold, picture.width, picture.height)
        rle = encode_mask(mask)
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": 1,
                "category_id": number,
                "segmentation": rle,
                "area": int(mask.sum()),
                "bbox": [float(side) for side in coco_mask.toBbox(rle)],
                "iscrowd": 0,
                "expression": text,
                "model": model.entry.key,
                "threshold": round(float(threshold), 4),
                "score": round(cut(from_png(answer.probability), threshold)[1], 4),
            }
        )
    return {
        "images": [{"id": 1, "file_name": picture.name, "width": picture.width, "height": picture.height}],
        "categories": [{"id": number, "name": text} for number, text in enumerate(expressions, 1)],
        "annotations": annotations,
    }


def coco_json(picture: Picture, models: list[ModelAnswers], expressions: list[str], thresholds: list[float]) -> bytes:
    return json.dumps(coco_annotations(picture, models, expressions, thresholds), ensure_ascii=False, indent=1).encode()
