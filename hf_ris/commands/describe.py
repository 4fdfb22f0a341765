"""Numbers of every split of a data set, and a contact sheet to look at it.

hf-ris describe data/refcoco --contact-sheet sheet.png
hf-ris describe my_data --contact-sheet sheet.png        # a folder of images with JSONL files
"""

import argparse
import json
from pathlib import Path
from typing import Any

from hf_ris.data.preparation.published import PUBLISHED

from . import command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", help="what hf_ris.data.load takes")
    parser.add_argument("--published", choices=list(PUBLISHED), help="compare the counts with these")
    parser.add_argument("--contact-sheet", type=Path, metavar="FILE.png")
    parser.add_argument("--result", type=Path, metavar="FILE.json")


def run(options: argparse.Namespace) -> dict[str, Any]:
    from hf_ris.data import describe, load

    description = describe(load(options.data), options.published, options.contact_sheet)
    print(description)
    if options.result is not None:
        options.result.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    return description


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    return command.run("describe", arguments)
