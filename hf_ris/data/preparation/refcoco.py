"""RefCOCO, RefCOCO+ and RefCOCOg from `refs(unc|umd|google).p` and `instances.json`; photos of COCO's train2014."""

from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from .brief import brief
from .plain_pickle import iterate_pickled_list
from .raw_files import RawFile, RawFiles, check_name, iterate_json
from .raw_index import RawIndex


SPLIT_BY = {"refcoco": ("unc",), "refcoco+": ("unc",), "refcocog": ("umd", "google")}
PICTURES = ("train2014",)


def fill(index: RawIndex, raw: RawFiles, name: str, split_by: str, text: str = "sent") -> list[RawFile]:
    """Put the data set `name`, split by `split_by`, into `index`; returns the files that were read.

    text: "sent", the expressions as the authors cleaned them (lower case, words and signs apart), or "raw".
    """
    references, instances = find(raw, name, split_by)
    add_instances(index, instances)
    add_references(index, iterate_pickled_list(references.open, references.name), references.name, text)
    return [references, instances]


def find(raw: RawFiles, name: str, split_by: str) -> tuple[RawFile, RawFile]:
    return raw.find(name, f"refs({split_by}).p"), raw.find(name, "instances.json")


def add_instances(index: RawIndex, file: RawFile) -> None:
    """Images, categories and annotations of a COCO instances file; annotations of a crowd are objects too."""
    with file.open() as stream:
        for key, entry in tqdm(iterate_json(stream, file.name), desc=file.name, unit="entry"):
            try:
                if key == "images":
                    name = check_name(entry["file_name"], file.name)
                    index.add_image(entry["id"], name, entry["height"], entry["width"])
                elif key == "categories":
                    index.add_category(entry["id"], entry["name"])
                elif key == "annotations":
                    _add_annotation(index, entry)
            except (KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{file.name} has an entry in {key} that is none of COCO's: {error}") from error


def _add_annotation(index: RawIndex, entry: dict[str, Any]) -> None:
    image, number = entry["image_id"], entry["id"]
    try:
        fields = (entry["category_id"], entry["bbox"], entry["segmentation"])
        index.add_object(image, number, *fields, bool(entry.get("iscrowd", 0)))
    except KeyError as error:
        index.add_broken(image, number, f"annotation {number} has no {error.args[0]}")
    except ValueError as error:
        index.add_broken(image, number, str(error))


def add_references(index: RawIndex, references: Iterable[Any], file: str, text: str) -> None:
    """References of the refer format: annotations of one image, and the sentences that speak of all of them."""
    for reference in tqdm(references, desc=file, unit="reference"):
        try:
            image, ref_id, split = reference["image_id"], reference["ref_id"], reference["split"]
            targets = _targets(reference["ann_id"])
            sentences = [(sentence["sent_id"], sentence[text]) for sentence in reference["sentences"]]
            numbers = [image, ref_id, *targets, *(number for number, _ in sentences)]
            if not all(type(number) is int for number in numbers):
                raise TypeError("an id is no whole number")
            for number, said in sentences:
                index.add_expression(split, image, ref_id, number, said.strip(), targets)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{file}: a reference is not of the refer format ({error!r}): {brief(reference)}"
            ) from error


def _targets(annotations: int | list[int]) -> list[int]:
    """Distinct annotations in their order. RefCOCO has a number, gRefCOCO a list, in which -1 alone says: no target."""
    annotations = annotations if isinstance(annotations, list) else [annotations]
    whole = all(type(number) is int for number in annotations)
    if not whole or not annotations or (-1 in annotations and len(annotations) > 1):
        raise TypeError(f"ann_id is {brief(annotations)}")
    return [] if annotations == [-1] else list(dict.fromkeys(annotations))
