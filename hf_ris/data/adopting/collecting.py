"""What the readers of annotations share: images found and checked, objects, expressions, and the list of problems."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from pycocotools import mask as coco_mask

from ..schema import encode_mask, union_rle


TEXT_FIELDS = ("expression", "caption", "text", "description")


@dataclass
class Photo:
    """One image with what is said of it; the size is that of the image as displayed."""

    path: Path
    name: str
    height: int
    width: int
    objects: list[dict[str, Any]] = field(default_factory=list)
    texts: list[list[str]] = field(default_factory=list)


class Collection:
    """Photos and problems, filled by a reader.

    Args:
        root: folder of the images. text: name of the field with expressions, or None.
    """

    def __init__(self, root: Path, text: str | None):
        if not root.is_dir():
            raise ValueError(f"{root} is not a folder: give the folder that holds the images")
        self.root, self.text_fields = root.resolve(), (text,) if text else TEXT_FIELDS
        self.photos: list[Photo] = []
        self.problems: list[str] = []
        self.by_name: dict[str, list[Path]] = {}
        for path in sorted(self.root.rglob("*")):
            if path.is_file():
                self.by_name.setdefault(path.name, []).append(path)

    def problem(self, where: str, what: str) -> None:
        self.problems.append(f"{where}: {what}")

    def photo(self, name: str, height: int, width: int, alternatives: tuple[str, ...] = ()) -> Photo | None:
        """The image of this name under `root`, by its path or else its file name; None, and a problem, if it cannot be.

        height, width: as the annotations say. alternatives: file names to look for next.
        """
        path = next((found for found in map(self._find, (name, *alternatives)) if found is not None), None)
        if path is None:
            same = self.by_name.get(Path(name).name, [])
            why = f"{len(same)} files have this name, so it is not clear which is meant" if same else "there is none"
            return self.problem(name, f"the image is not found in {self.root}: {why}")
        try:
            with Image.open(path) as image:
                raw = image.size
                size = ImageOps.exif_transpose(image).size
        except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            return self.problem(name, f"the image cannot be opened ({error})")
        if size != (width, height):
            turned = ", which its EXIF orientation turns" if raw != size else ""
            return self.problem(
                name,
                f"annotated as {width} x {height} (width x height), but the image is {size[0]} x {size[1]}{turned}",
            )
        if any(photo.path == path for photo in self.photos):
            return self.problem(name, "the image is annotated twice; the second time was left out")
        photo = Photo(path, path.relative_to(self.root).as_posix(), height, width)
        self.photos.append(photo)
        return photo

    def _find(self, name: str) -> Path | None:
        path = (self.root / name).resolve()
        if path.is_relative_to(self.root) and path.is_file():
            return path
        same = self.by_name.get(Path(name).name, [])
        return same[0] if len(same) == 1 else None

    def add(self, photo: Photo, mask: dict[str, Any], category: str, texts: list[str], where: str) -> None:
        """An object by its RLE, with the expressions about it alone."""
        if coco_mask.area(mask) == 0:
            return self.problem(where, "the mask holds no pixel of the image")
        photo.objects.append({"mask": mask, "category": category})
        photo.texts.append([text.strip() for text in texts if isinstance(text, str) and text.strip()])

    def texts_of(self, fields: dict[str, Any]) -> list[str]:
        """The expressions among an object's fields: of the first field there is, a text or a list of them."""
        for name in self.text_fields:
            value = fields.get(name)
            values = value if isinstance(value, list) else [value]
            texts = [text for text in values if isinstance(text, str) and text.strip()]
            if texts:
                return texts
        return []

    def write(self, out: Path, split: str) -> None:
        """Raises ValueError if `out` holds something already, or if there is nothing to write."""
        described = [(photo, line) for photo in self.photos if (line := self._line(photo))]
        if not described:
            said = f"; the first of {len(self.problems)} problems: {self.problems[0]}" if self.problems else ""
            raise ValueError(f"nothing in the annotations can be used{said}")
        if out.exists() and any(out.iterdir()):
            raise ValueError(f"{out} holds something already: give a new folder")
        (out / "images").mkdir(parents=True, exist_ok=True)
        for photo, _ in described:
            target = out / "images" / photo.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(photo.path, target)
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for _, line in described)
        (out / f"{split}.jsonl").write_text(text, encoding="utf-8")
        if self.problems:
            (out / "problems.txt").write_text("\n".join(self.problems) + "\n", encoding="utf-8")

    def _line(self, photo: Photo) -> dict[str, Any] | None:
        """The image's line; objects without an expression of their own are spoken of by category, all of a kind."""
        expressions = [
            {"text": text, "object": index} for index, texts in enumerate(photo.texts) for text in dict.fromkeys(texts)
        ]
        unnamed: dict[str, list[int]] = {}
        for index, (entry, texts) in enumerate(zip(photo.objects, photo.texts, strict=True)):
            if not texts and entry["category"]:
                unnamed.setdefault(entry["category"], [])
            elif not texts:
                self.problem(photo.name, f"object {index} has neither an expression nor a category")
        for category in unnamed:
            same = [index for index, entry in enumerate(photo.objects) if entry["category"] == category]
            expressions.append({"text": category, "objects": same})
        if not expressions:
            return self.problem(photo.name, "nothing is said of anything in the image")
        return {"file_name": f"images/{photo.name}", "objects": photo.objects, "expressions": expressions}


def polygon_rle(polygons: list[list[float]], height: int, width: int) -> dict[str, Any]:
    """RLE of the union of polygons [x, y, x, y, ...] in pixels. ValueError for one of fewer than three points."""
    for polygon in polygons:
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"a polygon of {len(polygon)} numbers has fewer than three points")
        if not np.isfinite(np.asarray(polygon, float)).all():
            raise ValueError("a polygon holds numbers that are not finite")
    rles = coco_mask.frPyObjects([[float(number) for number in polygon] for polygon in polygons], height, width)
    rles = [{"size": [height, width], "counts": rle["counts"].decode("ascii")} for rle in rles]
    return union_rle(rles, (height, width))


def mask_rle(mask: np.ndarray) -> dict[str, Any]:
    return encode_mask(mask)
