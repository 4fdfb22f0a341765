"""The one schema of all referring segmentation data: one row is one image with everything that is said of it.

    image        PIL image as displayed (EXIF orientation applied, as `datasets.Image` does when it decodes)
    image_id     int64       file_name string       height, width int32 of the image as displayed
    objects      list of {object_id, category ("" if unknown), bbox [x, y, width, height] in pixels, mask RLE}
    expressions  list of {expression_id, ref_id, text, object_indices}: indices into `objects`, none, one or several

A mask is COCO's compressed run-length encoding, `{"size": [height, width], "counts": ascii string}`, in the pixel grid
of the image as displayed. The target of an expression is the union of its objects' masks; without objects it is empty.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Features, Image, List, Value
from PIL import ExifTags, ImageOps
from PIL import Image as PillowImage
from pycocotools import mask as coco_mask


class Picture(Image):
    """`datasets.Image`, but only the formats of `images_ris.FORMATS` are decoded, and what cannot be is named.

    It is stored, and equal to, the type of `datasets`; `load` gives it to every data set, from wherever it comes.
    """

    def decode_example(self, value: Any, token_per_repo_id: dict[str, Any] | None = None) -> PillowImage.Image:
        """`{"bytes": ..., "path": ...}` to a PIL image as displayed.

        Raises:
            ValueError: a file that is not there, damaged or of another format.
        """
        if not self.decode or not isinstance(value, dict) or (value["bytes"] is None and value["path"] is None):
            return super().decode_example(value, token_per_repo_id)
        from ..models.images_ris import decoding, open_image, show  # brings torch, which preparing data does without

        path, data = value["path"], value["bytes"]
        if data is None and "://" in path:  # of a data set that is streamed
            stored = pa.array([{"bytes": None, "path": path}], self.pa_type)
            data = self.embed_storage(stored, token_per_repo_id)[0]["bytes"].as_py()
        name = "The image" if path is None else f"The image {show(path)}"
        image = open_image(path if data is None else data, name)
        with decoding(name):
            if image.getexif().get(ExifTags.Base.Orientation) is not None:
                image = ImageOps.exif_transpose(image)
            return image.convert(self.mode) if self.mode and self.mode != image.mode else image

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Image):
            return NotImplemented
        return (self.mode, self.decode, self.id) == (other.mode, other.decode, other.id)


FEATURES = Features(
    {
        "image": Picture(),
        "image_id": Value("int64"),
        "file_name": Value("string"),
        "height": Value("int32"),
        "width": Value("int32"),
        "objects": List(
            {
                "object_id": Value("int64"),
                "category": Value("string"),
                "bbox": List(Value("float32")),
                "mask": {"size": List(Value("int32")), "counts": Value("string")},
            }
        ),
        "expressions": List(
            {
                "expression_id": Value("int64"),
                "ref_id": Value("int64"),
                "text": Value("string"),
                "object_indices": List(Value("int32")),
            }
        ),
    }
)


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """Bool (H, W) -> `{"size": [H, W], "counts": str}`; any nonzero value counts as object."""
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise ValueError(f"a mask has two dimensions (height, width), but this one has shape {mask.shape}")
    rle = coco_mask.encode(np.asfortranarray(mask != 0).view(np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode_mask(rle: dict[str, Any]) -> np.ndarray:
    """RLE -> bool (H, W), C-contiguous. The RLE is trusted: check one from outside with `check_rle` first."""
    return np.ascontiguousarray(coco_mask.decode(rle)).view(np.bool_)


def union_rle(rles: Sequence[dict[str, Any]], size: tuple[int, int]) -> dict[str, Any]:
    """Union of RLEs without decoding them; of none: the empty mask of `size` (height, width)."""
    if not rles:
        return encode_mask(np.zeros(size, np.bool_))
    if len(rles) == 1:
        return {"size": list(rles[0]["size"]), "counts": rles[0]["counts"]}
    merged = coco_mask.merge(list(rles))
    return {"size": [int(side) for side in merged["size"]], "counts": merged["counts"].decode("ascii")}


def mirror_rle(rle: dict[str, Any]) -> dict[str, Any]:
    """The RLE of the mask with left and right exchanged (column-major throughout, so no transposing copy)."""
    return encode_mask(coco_mask.decode(rle)[:, ::-1])


def union_mask(rles: Sequence[dict[str, Any]], size: tuple[int, int]) -> np.ndarray:
    """Union of RLEs as bool (H, W); of none: all False of `size` (height, width)."""
    return decode_mask(union_rle(rles, size))


def target_rle(row: dict[str, Any], expression: dict[str, Any]) -> dict[str, Any]:
    """The RLE of what `expression`, one of `row["expressions"]`, speaks of: the union of its objects."""
    rles = [row["objects"][index]["mask"] for index in expression["object_indices"]]
    return union_rle(rles, (row["height"], row["width"]))


def expression_mask(row: dict[str, Any], expression: dict[str, Any]) -> np.ndarray:
    """Bool (height, width): the union of the objects that `expression`, one of `row["expressions"]`, speaks of."""
    return decode_mask(target_rle(row, expression))


def check_rle(rle: dict[str, Any]) -> None:
    """Raise ValueError unless `rle` fills exactly its grid.

    pycocotools checks little: where the runs end early it returns uninitialised memory as mask.

    Each run is a number in groups of 5 bits, lowest first, a character (code 48 + group + 32 if more follow) each, the
    sign in bit 4 of the last; from the fourth run on the number is the difference to the run two before.
    """
    height, width = rle["size"]
    counts = rle["counts"]
    codes = np.frombuffer(counts.encode("utf-8"), np.uint8).astype(np.int64) - 48
    if codes.size == 0 or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError("the counts of the RLE are not a string of COCO's compressed run-length encoding")
    starts = np.flatnonzero(np.concatenate([[True], (codes[:-1] & 32) == 0]))
    place = np.arange(codes.size) - np.repeat(starts, np.diff(np.append(starts, codes.size)))
    if place.max() > 6:  # 7 groups hold every run of a grid below 2**34 pixels
        raise ValueError("the counts of the RLE hold a run longer than any image")
    runs = np.add.reduceat((codes & 31) << (5 * place), starts)
    last = np.append(starts[1:], codes.size) - 1
    runs -= np.where(codes[last] & 16, np.int64(1) << (5 * (place[last] + 1)), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    if runs.min() < 0:
        raise ValueError("the counts of the RLE hold a run of negative length")
    if runs.sum() != height * width:
        raise ValueError(
            f"the runs of the RLE sum to {runs.sum()}, but its size {height} x {width} needs {height * width}"
        )


def validate_row(row: dict[str, Any]) -> None:
    """Raise ValueError with one sentence that names the first thing in `row` that breaks the schema."""
    missing = [name for name in FEATURES if name not in row]
    if missing:
        raise ValueError(f"the row lacks {', '.join(missing)}: a row holds {', '.join(FEATURES)}")
    where = f"image {row['image_id']} ({row['file_name']})"
    size = [row["height"], row["width"]]
    if min(size) < 1 or (row["image"].height, row["image"].width) != tuple(size):
        raise ValueError(
            f"{where}: the row says height x width = {size[0]} x {size[1]}, but the image as displayed is "
            f"{row['image'].height} x {row['image'].width}"
        )
    for number, entry in enumerate(row["objects"]):
        if list(entry["mask"]["size"]) != size:
            raise ValueError(f"{where}: the mask of object {number} has size {entry['mask']['size']}, the image {size}")
        try:
            check_rle(entry["mask"])
        except ValueError as error:
            raise ValueError(f"{where}: the mask of object {number} is broken: {error}") from error
        if len(entry["bbox"]) != 4:
            raise ValueError(
                f"{where}: bbox of object {number} holds {len(entry['bbox'])} numbers, not [x, y, width, height]"
            )
    for number, expression in enumerate(row["expressions"]):
        if not expression["text"].strip():
            raise ValueError(f"{where}: expression {number} has no text")
        indices = expression["object_indices"]
        if len(set(indices)) < len(indices) or any(not 0 <= index < len(row["objects"]) for index in indices):
            raise ValueError(
                f"{where}: expression {number} names objects {list(indices)}, but distinct indices from 0 to "
                f"{len(row['objects']) - 1} are needed"
            )
    for field, entries in (("object_id", row["objects"]), ("expression_id", row["expressions"])):
        if len({entry[field] for entry in entries}) < len(entries):
            raise ValueError(f"{where}: two entries share one {field}")
