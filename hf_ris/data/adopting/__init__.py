"""Annotations that people have, brought into a folder of images and JSONL: COCO instances, Label Studio, CVAT.

    problems = adopt("cvat", "annotations.xml", images="photos", out="my_data")

What cannot be taken over is never left out in silence: every such thing is one sentence in `problems.txt`.
"""

from pathlib import Path

from . import coco, cvat, label_studio
from .collecting import Collection


FORMATS = {"coco": coco.read, "label-studio": label_studio.read, "cvat": cvat.read}


def adopt(
    kind: str,
    annotations: str | Path,
    images: str | Path,
    out: str | Path,
    text: str | None = None,
    split: str = "train",
) -> Collection:
    """Write `out`: `<split>.jsonl`, copies of the images that it speaks of, and problems.txt if there are any.

    Args:
        kind: one of `FORMATS`. annotations: the file that it exports. images: the folder that holds the images.
        text: the field (COCO), attribute (CVAT) or text area (Label Studio) that holds an object's expression; None
            takes the first of `expression`, `caption`, `text`, `description` that an object has. An object without
            any is spoken of by its category, together with all of its kind in the image.

    Raises:
        ValueError: no such format, a file that is none, an `out` that holds something, or nothing that can be used.
    """
    if kind not in FORMATS:
        raise ValueError(f"there is no format {kind!r}: there are {', '.join(FORMATS)}")
    collection = Collection(Path(images), text)
    FORMATS[kind](Path(annotations), collection)
    collection.write(Path(out), split)
    return collection
