r"""Write a data set of masks that a model (a teacher) draws on a folder of images.

    hf-ris label photos --model florence-2 --expressions "the dog" "the person in front" --out labelled
    hf-ris label photos --model sam3 --expressions-file said.jsonl --out labelled --min-score 0.5
    accelerate launch --config_file train/accelerate/ddp.yaml -m hf_ris.commands.label photos --model sam3 \
        --expressions dog --out labelled

A file of expressions holds one line an image, {"file_name": "a.jpg", "texts": ["the dog"]}. Answers that score below
--min-score are not written. A killed run goes on where it was, with any number of processes.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from . import command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", type=Path, help="folder of images")
    parser.add_argument("--model", required=True, help="the name of a baseline, or a folder or Hub id of a model")
    parser.add_argument("--expressions", nargs="+", metavar="TEXT", help="asked of every image")
    parser.add_argument("--expressions-file", type=Path, metavar="FILE.jsonl", help="what is asked of each image")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder, or one to go on with")
    parser.add_argument("--min-score", type=float, default=0.3, help="below it nothing is written (default 0.3)")
    parser.add_argument("--split", default="train", help="name of the split (default train)")


def run(options: argparse.Namespace) -> dict[str, int]:
    if (options.expressions is None) == (options.expressions_file is None):
        raise ValueError("Give either --expressions or --expressions-file.")
    expressions = options.expressions or read_expressions(options.expressions_file)
    import torch
    from accelerate import Accelerator

    from hf_ris.labelling import find_images, label
    from hf_ris.one_line import pipeline

    find_images(options.images)  # before a model is fetched
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    pipe = pipeline(options.model, accelerator.device)
    counts = label(
        pipe, options.images, expressions, options.out, options.model, options.min_score, options.split, accelerator
    )
    if accelerator.is_main_process:
        said = f"{counts['expressions']} expressions of {counts['images']} images, {counts['dropped']} answers dropped"
        print(f"{said}: {options.out}")
    return counts


def read_expressions(path: Path) -> dict[str, list[str]]:
    """By image. Raises ValueError with the line that is wrong."""
    found: dict[str, list[str]] = {}
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not text.strip():
            continue
        try:
            line: Any = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} line {number} is not JSON: {error}") from error
        fits = isinstance(line, dict) and line.keys() == {"file_name", "texts"} and isinstance(line["texts"], list)
        if not fits or not all(isinstance(said, str) and said.strip() for said in line["texts"]):
            raise ValueError(f'{path} line {number} must be {{"file_name": "a.jpg", "texts": ["the dog"]}}.')
        found.setdefault(line["file_name"], []).extend(line["texts"])
    return found


def main(arguments: list[str] | None = None) -> dict[str, int]:
    return command.run("label", arguments)


if __name__ == "__main__":
    main()
