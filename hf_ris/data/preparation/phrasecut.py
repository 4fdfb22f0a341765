"""PhraseCut from `refer_{train,val,test,miniv}.json` and `image_data_split.json`; photos of Visual Genome.

Each split is optional, but one must be there. A phrase's target is the union of its instances. Ids are places in the
files: the expression with id 2,000,017 is entry 17 of refer_test.json (train 0, val 1,000,000, test 2,000,000, miniv
3,000,000), whose `task_id` the official evaluation asks for. Masks are drawn as the official program draws them.
"""

from typing import Any

from tqdm import tqdm

from .brief import brief
from .raw_files import RawFile, RawFiles, check_name, iterate_json
from .raw_index import RawIndex, is_text


SPLIT_BY = {"phrasecut": (None,)}
PICTURES = ("VG_100K", "VG_100K_2", "images")
_FOLDERS = ("phrasecut", "VGPhraseCut_v0")
_SPLITS = ("train", "val", "test", "miniv")
_STRIDE = 1_000_000


def fill(index: RawIndex, raw: RawFiles, name: str, split_by: None = None, image_offset: int = 0) -> list[RawFile]:
    """Put PhraseCut into `index`; returns the files that were read. image_offset is added to Visual Genome's ids."""
    images, *tasks = find(raw, name, split_by)
    with images.open() as stream:
        for _, entry in tqdm(iterate_json(stream, images.name), desc=images.name, unit="image"):
            try:
                number, coco = entry["image_id"], entry.get("coco_id")
                # COCO's id of the same photograph, where there is one
                photo = -number if coco is None else int(coco)
                name = check_name(f"{number + 0}.jpg", images.name)
                index.add_image(number + image_offset, name, entry["height"], entry["width"], photo)
            except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
                raise ValueError(f"{images.name} has an entry that is no image ({error}): {brief(entry)}") from error
    objects = 0
    for file in tasks:
        split = file.name.rsplit("refer_", 1)[1].removesuffix(".json")
        with file.open() as stream:
            for place, (_, task) in enumerate(tqdm(iterate_json(stream, file.name), desc=file.name, unit="phrase")):
                number = _SPLITS.index(split) * _STRIDE + place
                try:
                    targets, objects = _add_instances(index, task, task["image_id"] + image_offset, objects)
                    image, phrase = task["image_id"] + image_offset, task["phrase"].strip()
                except (KeyError, TypeError, AttributeError, ValueError) as error:
                    raise ValueError(f"entry {place} of {file.name} is no task of PhraseCut: {error}") from error
                index.add_expression(split, image, number, number, phrase, targets)
    return [images, *tasks]


def find(raw: RawFiles, name: str, split_by: None) -> list[RawFile]:
    """The list of images, then the files of the splits that are there."""
    folder = next((folder for folder in _FOLDERS if (raw.root / folder).is_dir()), name)
    found = [raw.find(folder, "image_data_split.json", "image_data_split3000.json")]
    for split in _SPLITS:
        try:
            found.append(raw.find(folder, f"refer_{split}.json"))
        except ValueError:
            continue
    if len(found) == 1:
        raw.find(folder, *(f"refer_{split}.json" for split in _SPLITS))
    return found


def _add_instances(index: RawIndex, task: dict[str, Any], image: int, objects: int) -> tuple[list[int], int]:
    """(object ids of the phrase's instances, number of objects so far); an instance drawn before is the same object."""
    structure = task.get("phrase_structure") or {}
    targets = []
    for box, polygons in zip(task["instance_boxes"], task["Polygons"], strict=True):
        category, segmentation = structure.get("name") or "", {"points": polygons}
        if not is_text(category):
            raise TypeError(f"its name is {brief(category)}")
        known = index.find_object(image, category, segmentation)
        if known is None:
            known, objects = objects, objects + 1
            index.add_object(image, known, category, list(box), segmentation, crowd=False)
        targets.append(known)
    return list(dict.fromkeys(targets)), objects
