"""Push a trained model to the Hub: weights, processor, code, card, recipe, log and results, in one commit.

    hf-ris evaluate --model outputs/lts-refscenes/best --split test --result outputs/lts-refscenes/test.json
    hf-ris push outputs/lts-refscenes user/lts-refscenes outputs/lts-refscenes/test.json --private
    hf-ris push outputs/lts-refscenes user/lts-refscenes --out repository

The first argument is a run's folder (`hf-ris train`; its best model is taken) or a bundle (train/bundle.py), further
ones are JSON files that `hf-ris evaluate --result` wrote. Of a run that started from encoders pretrained here, or from
an earlier run, `--pretraining` names the folders. The card is the architecture's with these numbers; without any it
says so. `--out DIR` writes the repository there instead, to look at. Log in first: `hf auth login`, or set HF_TOKEN.
"""

import argparse
from pathlib import Path

from . import command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="RUN_OR_BUNDLE", help="folder")
    parser.add_argument("repo_id", metavar="ID", help="repository on the Hub, as user/name; made if it is not there")
    parser.add_argument("evaluations", type=Path, nargs="*", help="files that `hf-ris evaluate --result` wrote")
    parser.add_argument("--private", action="store_true", help="of a repository that is made")
    parser.add_argument(
        "--pretraining",
        type=Path,
        nargs="+",
        default=[],
        help="folders of pretraining, or of earlier runs, that it started from",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="write the repository here and push nothing")


def run(options: argparse.Namespace) -> None:
    if options.out is not None:
        command.refuse_unused(options, ["private"], "--out pushes nothing")
    from hf_ris.hub.push import push, write_repository

    if options.out is not None:
        write_repository(options.source, options.out, options.repo_id, options.evaluations, options.pretraining)
        print(f"wrote {options.out}")
    else:
        arguments = options.private, options.evaluations, options.pretraining
        print(f"pushed: {push(options.source, options.repo_id, *arguments)}")


def main(arguments: list[str] | None = None) -> None:
    return command.run("push", arguments)
