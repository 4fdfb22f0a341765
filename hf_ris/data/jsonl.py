"""A user's own data: a folder of images and one JSONL per split (`train.jsonl`, `val.jsonl`: the stem names the split).

Each line is one image with everything said of it:

    {"file_name": "images/7.jpg",
     "objects": [{"mask": {"size": [480, 640], "counts": "..."}, "category": "dog"},
                 {"mask": "masks/7_1.png"}],
     "expressions": [{"text": "the left dog", "object": 0}, {"text": "both animals", "objects": [0, 1]}]}

or, in the short form, one expression about one object; the lines of an image become one row, equal masks one object:

    {"file_name": "images/7.jpg", "text": "the left dog", "mask": "masks/7_0.png"}

A mask is a COCO RLE (compressed string, or a list of run lengths) or the path of an image file whose nonzero, not
wholly transparent pixels are the object; of a palette image the indices count. An object's pixels have one value: label
maps, soft masks and what a lossy format blurred are refused, for nobody says where to cut them. Paths are relative to
the folder and stay inside it, links followed. Masks and boxes refer to the image **as displayed**, that is after its
EXIF orientation is applied, which is also how `datasets` decodes it; an RLE's size and a mask file's must equal that
size (a mask file's own EXIF is not applied).
`"objects": []` in an expression says that nothing in the image fits it.

Optional: `image_id`, `category`, `bbox` [x, y, width, height] in pixels (else the mask's), `object_id` (not in the
short form), `expression_id`, `ref_id`. Each kind of id is given everywhere in a file or nowhere; then it is numbered,
with a `ref_id` for each distinct set of objects of an image. Unknown fields are errors: no misspelt one is lost.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, concatenate_datasets
from PIL import ExifTags, Image
from pycocotools import mask as coco_mask

from ..models.images_ris import DAMAGE, FORMATS, open_image
from .schema import FEATURES, check_rle, encode_mask


_LINE_FIELDS = ("file_name", "objects", "expressions", "image_id")
_SHORT_FIELDS = ("file_name", "text", "mask", "category", "bbox", "image_id", "expression_id", "ref_id")
_OBJECT_FIELDS = ("mask", "category", "bbox", "object_id")
_EXPRESSION_FIELDS = ("text", "objects", "object", "expression_id", "ref_id")
_MASK_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L", "F", "RGB", "LA", "PA", "RGBA")  # in which 0 is black
_ROWS_PER_CHUNK = 1000


def load_jsonl_folder(path: str | Path, split: str | None = None) -> Dataset | DatasetDict:
    """The folder's one JSONL, or the one of `split`, as Dataset; several without `split` as DatasetDict.

    Image files are only opened for their size: the rows point at them. Raises ValueError with file and line number at
    the first line that does not fit.
    """
    root = Path(path).expanduser().resolve()
    if not root.is_dir():
        raise ValueError(f"{path} is not a folder: give the folder that holds the images and the JSONL files")
    files = {file.stem: file for file in sorted(root.glob("*.jsonl"))}
    if not files:
        raise ValueError(f"{path} holds no JSONL file: put one per split beside the images, such as train.jsonl")
    if split is None and len(files) > 1:
        return DatasetDict({stem: _read(file, root) for stem, file in files.items()})
    if split is not None and split not in files:
        raise ValueError(f"{path} has no {split}.jsonl for the split {split!r}: it holds {_listed(files)} (.jsonl)")
    return _read(files[split or next(iter(files))], root)


def _read(file: Path, root: Path) -> Dataset:
    rows, chunks = [], []
    for row in _rows(file, root):
        rows.append(row)
        if len(rows) == _ROWS_PER_CHUNK:  # as Arrow, rows take a fraction of the memory of dicts
            chunks.append(Dataset.from_list(rows, features=FEATURES))
            rows = []
    if rows:
        chunks.append(Dataset.from_list(rows, features=FEATURES))
    if not chunks:
        raise ValueError(f"{file.name} holds no line: each line describes one image")
    return concatenate_datasets(chunks)


def _rows(file: Path, root: Path) -> Iterator[dict[str, Any]]:
    """Rows in the order in which their images first appear."""
    ids = _Ids()
    first_line: dict[str, int] = {}
    short_rows: dict[str, _Row] = {}
    for number, line in _parsed_lines(file):
        with _prefixed(f"{file.name} line {number}"):
            short = "text" in line or "mask" in line
            _only(line, _SHORT_FIELDS if short else _LINE_FIELDS, "a line of one expression" if short else "a line")
            if first_line and short != bool(short_rows):
                raise ValueError("lines of one image and lines of one expression do not mix in a file")
            name = line.get("file_name")
            if not isinstance(name, str) or not name:
                raise ValueError(f'"file_name" must be the path of an image inside the folder, not {_show(name)}')
            if name in first_line and not short:
                raise ValueError(
                    f"{name} is described in line {first_line[name]} already: one line holds all of an image"
                )
            row = short_rows[name] if name in first_line else _Row(line, root, ids)
            first_line.setdefault(name, number)
            if short:
                row.add_short_line(line)
                short_rows[name] = row
            else:
                row.add_whole_line(line)
        if not short:
            yield row.fields
    for row in short_rows.values():
        yield row.fields


def _parsed_lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with file.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            with _prefixed(f"{file.name} line {number}"):
                try:
                    text = raw.decode("utf-8-sig").strip()
                    line = json.loads(text) if text else None
                except UnicodeDecodeError as error:
                    raise ValueError(f"the text is not UTF-8: {error}") from error
                except (json.JSONDecodeError, RecursionError) as error:
                    raise ValueError(f"this is not JSON ({error}): each line is one whole JSON object") from error
                if text and not isinstance(line, dict):
                    raise ValueError(f"a line must be a JSON object {{...}}, not {_show(line)}")
            if text:
                yield number, line


class _Ids:
    """The ids of a file: of each kind either all are the user's, or all are running numbers."""

    def __init__(self):
        self.given: dict[str, bool] = {}
        self.seen: dict[str, set[int]] = {}

    def take(self, kind: str, entry: dict[str, Any], shared: bool = False) -> int | None:
        """The id of `kind` in `entry`; None if the file has none of them. Only a `shared` one may come twice."""
        given, value = kind in entry, entry.get(kind)
        if given and (not _is_int(value) or abs(value) >= 2**63):
            raise ValueError(f'"{kind}" must be a whole number, not {_show(value)}')
        if self.given.setdefault(kind, given) != given:
            raise ValueError(f'"{kind}" must be given everywhere in the file or nowhere')
        if not given:
            return None
        seen = self.seen.setdefault(kind, set())
        if value in seen and not shared:
            raise ValueError(f'"{kind}" {value} is taken already: each must be unique in the file')
        seen.add(value)
        return value

    def take_or_number(self, kind: str, entry: dict[str, Any]) -> int:
        value = self.take(kind, entry)
        return self.next(kind) if value is None else value

    def next(self, kind: str) -> int:
        seen = self.seen.setdefault(kind, set())
        seen.add(len(seen))
        return len(seen) - 1


class _Row:
    """One image while its objects and expressions are collected; `fields` is the row of the schema."""

    def __init__(self, line: dict[str, Any], root: Path, ids: _Ids):
        self.root, self.ids = root, ids
        self.ref_ids: dict[frozenset[int], int] = {}
        self.object_of_mask: dict[str, int] = {}
        name = line["file_name"]
        path = _inside(name, root)
        try:
            with Image.open(path, formats=FORMATS) as image:  # reads no further than the header
                width, height = image.size
                if image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8):  # a quarter turn
                    width, height = height, width
        except DAMAGE as error:
            raise ValueError(f"{_show(name)} cannot be opened as an image: {error}") from error
        self.given_image_id = line.get("image_id")
        self.fields: dict[str, Any] = {
            "image": {"path": str(path), "bytes": None},
            "image_id": ids.take_or_number("image_id", line),
            "file_name": name,
            "height": height,
            "width": width,
            "objects": [],
            "expressions": [],
        }

    def add_whole_line(self, line: dict[str, Any]) -> None:
        for field in ("objects", "expressions"):
            if not isinstance(line.get(field), list):
                raise ValueError(
                    f'"{field}" must be a list, not {_show(line.get(field))}: this line has {_listed(line)}'
                )
        for number, entry in enumerate(line["objects"]):
            with _prefixed(f"object {number}"):
                _only(entry, _OBJECT_FIELDS, "an object")
                self.add_object(entry, self.mask(entry.get("mask")))
        for number, entry in enumerate(line["expressions"]):
            with _prefixed(f"expression {number}"):
                _only(entry, _EXPRESSION_FIELDS, "an expression")
                if ("object" in entry) == ("objects" in entry):
                    raise ValueError(
                        'give "object": index or "objects": [indices], an empty list if nothing fits the text'
                    )
                self.add_expression(entry, entry["objects"] if "objects" in entry else [entry["object"]])

    def add_short_line(self, line: dict[str, Any]) -> None:
        if line.get("image_id") != self.given_image_id:
            raise ValueError(f'"image_id" must be the same in all lines of {self.fields["file_name"]}')
        mask = self.mask(line.get("mask"))
        index = self.object_of_mask.setdefault(mask["counts"], len(self.fields["objects"]))
        if index == len(self.fields["objects"]):
            self.add_object(line, mask)
        elif line.get("category", "") != self.fields["objects"][index]["category"]:
            raise ValueError('"category" must be the same in all lines of this image that have this mask')
        self.add_expression(line, [index])

    def add_object(self, entry: dict[str, Any], mask: dict[str, Any]) -> None:
        category = _text("category", entry.get("category", ""))
        bbox = self.bbox(entry["bbox"]) if "bbox" in entry else coco_mask.toBbox(mask).tolist()
        object_id = self.ids.take_or_number("object_id", entry)
        self.fields["objects"].append({"object_id": object_id, "category": category, "bbox": bbox, "mask": mask})

    def add_expression(self, entry: dict[str, Any], indices: Any) -> None:
        text, count = entry.get("text"), len(self.fields["objects"])
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f'"text" must be a text that is not empty, not {_show(text)}')
        _text("text", text)
        if not isinstance(indices, list) or not all(_is_int(index) for index in indices):
            raise ValueError(f"object indices must be whole numbers, not {_show(indices)}")
        if any(not 0 <= index < count for index in indices) or len(set(indices)) < len(indices):
            have = f"distinct indices from 0 to {count - 1} are needed" if count else "this image has no objects"
            raise ValueError(f"the object indices are {_show(indices)}, but {have}")
        ref_id = self.ids.take("ref_id", entry, shared=True)
        if ref_id is None:
            objects = frozenset(indices)
            if objects not in self.ref_ids:
                self.ref_ids[objects] = self.ids.next("ref_id")
            ref_id = self.ref_ids[objects]
        expression_id = self.ids.take_or_number("expression_id", entry)
        self.fields["expressions"].append(
            {"expression_id": expression_id, "ref_id": ref_id, "text": text.strip(), "object_indices": indices}
        )

    def mask(self, value: Any) -> dict[str, Any]:
        """RLE of a mask given as RLE or as file; it has the image's size and at least one pixel."""
        if isinstance(value, str) and value:
            rle = self.mask_of_file(value)
        elif isinstance(value, dict):
            rle = self.mask_of_rle(value)
        else:
            forms = '{"size": [height, width], "counts": ...} or the path of a mask image'
            raise ValueError(f'"mask" must be a COCO RLE {forms}, not {_show(value)}')
        if coco_mask.area(rle) == 0:
            raise ValueError("the mask holds no pixel of the object")
        return rle

    def mask_of_rle(self, value: dict[str, Any]) -> dict[str, Any]:
        _only(value, ("size", "counts"), "an RLE")
        size, counts = value.get("size"), value.get("counts")
        if not isinstance(size, list) or len(size) != 2 or not all(_is_int(side) for side in size):
            raise ValueError(f'"size" of the RLE must be [height, width], not {_show(size)}')
        self.check_size(*size)
        if isinstance(counts, str):
            check_rle(value)
            return value
        if not isinstance(counts, list) or not all(_is_int(run) and run >= 0 for run in counts):
            raise ValueError(f'"counts" of the RLE must be a string or a list of run lengths, not {_show(counts)}')
        if sum(counts) != size[0] * size[1]:
            raise ValueError(f"the runs of the RLE sum to {sum(counts)}, but its size {size} needs {size[0] * size[1]}")
        return encode_mask(np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(size, order="F"))

    def mask_of_file(self, name: str) -> dict[str, Any]:
        image = open_image(_inside(name, self.root), f"the mask {_show(name)}")
        self.check_size(image.height, image.width)
        return encode_mask(drawn_mask(image, f"the mask {_show(name)}"))

    def check_size(self, height: int, width: int) -> None:
        if (height, width) != (self.fields["height"], self.fields["width"]):
            raise ValueError(
                f"the mask is {height} x {width} (height x width), but the image as displayed, its EXIF orientation "
                f"applied, is {self.fields['height']} x {self.fields['width']}"
            )

    def bbox(self, value: Any) -> list[float]:
        numbers = isinstance(value, list) and all(_is_int(x) or isinstance(x, float) for x in value)
        if not numbers or len(value) != 4 or not all(abs(x) < 2**31 for x in value):
            raise ValueError(f'"bbox" must be [x, y, width, height] in pixels, not {_show(value)}')
        x, y, width, height = value
        right, bottom = self.fields["width"], self.fields["height"]
        if min(x, y) < -1 or min(width, height) <= 0 or x + width > right + 1 or y + height > bottom + 1:
            raise ValueError(
                f'"bbox" {value} does not lie in the image of height {bottom} and width {right}: it must be '
                "[x, y, width, height], not two corners"
            )
        return [float(number) for number in value]


def drawn_mask(image: Image.Image, name: str) -> np.ndarray:
    """Bool (H, W): the pixels of a mask file that are not 0 and not wholly transparent, which must be of one value.

    Raises ValueError for a mode in which 0 is not black, and for pixels of several values or half transparent.
    """
    if image.mode not in _MASK_MODES:
        raise ValueError(f"{name} has the mode {image.mode}; a mask has one of {', '.join(_MASK_MODES)}")
    values = np.asarray(image.convert("L") if image.mode == "1" else image)  # of a palette image its indices
    values = values[..., None] if values.ndim == 2 else values
    if image.mode in ("LA", "PA", "RGBA"):
        values = values[..., :-1]
    drawn = (values != 0).any(-1)
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        alpha = np.asarray(image.convert("RGBA").getchannel("A"))
        drawn &= alpha != 0
        values = np.concatenate([values, alpha[..., None]], -1)
    found = values[drawn]
    if len(found) and ((found != found[0]).any() or (found[0] < 0).any()):  # NaN differs from itself
        other = found[(found != found[0]).any(-1)][:1]
        told = " and ".join(str(value.tolist()) for value in (found[0], *other))
        raise ValueError(
            f"{name} is not the mask of one object: beside 0 its pixels have the values {told}; draw an object in one "
            "value on 0, each in a file of its own, in a format without loss (JPEG blurs edges)"
        )
    return drawn


def _text(field: str, value: Any) -> str:
    """A text that can be stored. Raises ValueError for anything else."""
    if not isinstance(value, str):
        raise ValueError(f'"{field}" must be a text, not {_show(value)}')
    try:
        value.encode()
    except UnicodeEncodeError as error:
        place = error.start
        raise ValueError(f'"{field}" holds half a character (a lone surrogate) at place {place}') from error
    return value


def _inside(name: str, root: Path) -> Path:
    """`root / name`, which must be a file that lies in `root`, links followed."""
    try:
        path = (root / name).resolve()
        found = path.is_file()
    except (OSError, ValueError) as error:  # a null character, or longer than a path may be
        raise ValueError(f"{_show(name)} cannot be a path: {error}") from error
    if not path.is_relative_to(root):
        raise ValueError(f"{_show(name)} leads outside the folder: paths are relative to it and stay inside")
    if not found:
        raise ValueError(f"there is no file {_show(name)} in the folder {root}")
    return path


@contextmanager
def _prefixed(prefix: str) -> Iterator[None]:
    """Says where a ValueError raised inside happened."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{prefix}: {error}") from error


def _only(entry: Any, fields: tuple[str, ...], what: str) -> None:
    if not isinstance(entry, dict):
        raise ValueError(f"{what} must be a JSON object {{...}}, not {_show(entry)}")
    unknown = [field for field in entry if field not in fields]
    if unknown:
        raise ValueError(f"{what} has no field {_show(unknown[0])}: the fields are {_listed(fields)}")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False).encode(errors="backslashreplace").decode()
    return text if len(text) <= 60 else f"{text[:57]}..."
