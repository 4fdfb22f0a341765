"""Referring segmentation from the command line: prepare data, train, evaluate, push.

`hf-ris VERB --help` tells what a verb does and takes; `python -m hf_ris VERB` is the same command.
"""

import argparse
import sys

from hf_ris import __version__
from hf_ris.commands import command


VERBS = {
    "prepare": "convert a raw download (RefCOCO, ...) to a data set of the one schema",
    "describe": "numbers and a contact sheet of a data set",
    "train": "train an architecture by a recipe",
    "evaluate": "measure a model, or a file of predictions",
    "draw": "draw a model's answer on a photo, or galleries of a file of predictions",
    "label": "write a data set of masks that a model draws on a folder of images",
    "adopt": "bring in annotations: COCO instances, a Label Studio or CVAT export",
    "convert": "convert an official checkpoint (LAVT, CRIS)",
    "export": "write a model as torch.export program or ONNX",
    "push": "push a trained model to the Hub, with its card",
    "benchmark": "what a model costs: FLOPs, latency, memory",
}


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        prog="hf-ris", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"hf_ris {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, says in VERBS.items():
        verbs.add_parser(verb, help=says, add_help=False)
    verb = parser.parse_args(arguments[:1]).verb  # its own options are read by its own file, the only one imported
    command.run(verb, arguments[1:])


if __name__ == "__main__":
    main()
