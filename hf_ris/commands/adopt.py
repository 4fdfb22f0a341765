"""Bring annotations that you have into a folder of images and JSONL, which training takes as data.name.

    hf-ris adopt coco instances.json --images photos --out my_data
    hf-ris adopt label-studio project-1.json --images photos --out my_data
    hf-ris adopt cvat annotations.xml --images photos --out my_data --text expression

An object's expression is the first of the fields (COCO), attributes (CVAT) or text areas (Label Studio) expression,
caption, text, description that it has, or the one that --text names; without any it is spoken of by its category,
together with all of its kind in the image. What cannot be taken over is listed, a sentence each, in problems.txt.
"""

import argparse
from pathlib import Path
from typing import Any

from . import command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("format", choices=("coco", "label-studio", "cvat"))
    parser.add_argument("annotations", type=Path, help="the exported file; of CVAT also its ZIP or folder")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder that holds the images")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--text", metavar="NAME", help="of the field, attribute or text area with the expression")
    parser.add_argument("--split", default="train", help="name of the split (default train)")


def run(options: argparse.Namespace) -> Any:
    from hf_ris.data.adopting import adopt

    collection = adopt(options.format, options.annotations, options.images, options.out, options.text, options.split)
    objects = sum(len(photo.objects) for photo in collection.photos)
    print(f"{len(collection.photos)} images with {objects} objects: {options.out}")
    if collection.problems:
        print(f"{len(collection.problems)} things could not be taken over ({options.out / 'problems.txt'}):")
        print("\n".join(f"  {problem}" for problem in collection.problems[:10]))
    return collection


def main(arguments: list[str] | None = None) -> Any:
    return command.run("adopt", arguments)
