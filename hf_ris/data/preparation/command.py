"""Convert a raw download of a referring segmentation data set to Parquet shards that `hf_ris.data.load` takes.

    python train/prepare_data.py refcoco --raw downloads --out data/refcoco
    python train/prepare_data.py refcocog --split-by google --raw downloads --out data/refcocog_google
    python train/prepare_data.py joint --sets refcoco refcoco+ refcocog grefcoco --raw downloads --out data/joint
    python train/prepare_data.py refcoco --raw downloads --out data/refcoco --push-to-hub user/refcoco --private
    python train/prepare_data.py describe data/refcoco --contact-sheet sheet.png

RAW holds the downloads as they are, unpacked or in their zip archives:

    refcoco/  refs(unc).p  instances.json       (or refcoco.zip; likewise refcoco+)
    refcocog/ refs(umd).p  refs(google).p  instances.json
    grefcoco/ grefs(unc).json  instances.json
    phrasecut/ refer_train.json ... image_data_split.json
    images/train2014/COCO_train2014_*.jpg       (or train2014.zip; PhraseCut: VG_100K and VG_100K_2, or their archives)

A run that was killed goes on when it is started again. A tiny one, for a CPU: tests/raw_refcoco.py makes a raw folder.
"""

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from hf_ris.data import PUBLISHED, describe, load
from hf_ris.data.preparation.joint import CHOICES, DEFAULT_SETS
from hf_ris.data.preparation.preparing import NAMES, Options, prepare


def push(folder: Path, repo_id: str, private: bool) -> str:
    """Upload a prepared folder, with its card, as a data set on the Hub; returns its address."""
    api = HfApi()
    address = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
    api.upload_folder(repo_id=repo_id, repo_type="dataset", folder_path=folder, commit_message="Prepared by hf_ris")
    return str(address)


def peak_memory() -> dict[str, int]:
    """The most bytes that this process, and the largest of its workers, have held."""
    unit = 1 if sys.platform == "darwin" else 1024
    of = {"main": resource.RUSAGE_SELF, "worker": resource.RUSAGE_CHILDREN}
    return {name: resource.getrusage(who).ru_maxrss * unit for name, who in of.items()}


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--raw", type=Path, required=True, metavar="DIR", help="folder of the downloads")
    shared.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    shared.add_argument("--images", type=Path, nargs="+", default=[], help="folders or zip archives of the images")
    shared.add_argument("--ground-truth", choices=("union", "sum_equals_one"), default="union")
    shared.add_argument("--images-per-shard", type=int, default=500, metavar="N")
    shared.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="default: one per core")
    shared.add_argument("--skip-count-check", action="store_true", help="do not compare with the published counts")
    shared.add_argument("--allow-problems", action="store_true", help="leave out images that cannot be used; list them")
    shared.add_argument("--push-to-hub", metavar="ID", help="upload the finished folder")
    shared.add_argument("--private", action="store_true", help="of the repository on the Hub")
    for name in NAMES:
        command = commands.add_parser(name, parents=[shared], help=f"prepare {name}")
        if name != "phrasecut":
            command.add_argument("--text", choices=("sent", "raw"), default="sent", help="of a sentence (default sent)")
        if name == "refcocog":
            command.add_argument("--split-by", choices=("umd", "google"), default="umd")
        if name == "joint":
            command.add_argument("--sets", nargs="+", choices=CHOICES, default=DEFAULT_SETS)
    command = commands.add_parser("describe", help="numbers and a contact sheet of a data set")
    command.add_argument("data", help="what hf_ris.data.load takes")
    command.add_argument("--published", choices=list(PUBLISHED), help="compare the counts with these")
    command.add_argument("--contact-sheet", type=Path, metavar="FILE.png")
    command.add_argument("--result", type=Path, metavar="FILE.json")
    return parser.parse_args(arguments)


def describe_data(options: argparse.Namespace) -> dict[str, Any]:
    description = describe(load(options.data), options.published, options.contact_sheet)
    print(description)
    if options.result is not None:
        options.result.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    return description


def prepare_data(options: argparse.Namespace) -> dict[str, Any]:
    chosen = {name: vars(options)[name] for name in ("split_by", "sets", "text") if name in vars(options)}
    start, imported = time.perf_counter(), peak_memory()["main"]
    report = prepare(
        options.raw,
        options.out,
        Options(
            options.name,
            ground_truth=options.ground_truth,
            images_per_shard=options.images_per_shard,
            **chosen,
        ),
        images=options.images,
        workers=options.workers,
        check_counts=not options.skip_count_check,
        allow_problems=options.allow_problems,
    )
    seconds = time.perf_counter() - start
    for split, of in report["splits"].items():
        print(f"{split}: {of['images']:,} images, {of['references']:,} references, {of['expressions']:,} expressions")
    images = sum(of["images"] for of in report["splits"].values())
    print(f"{options.out}: {images:,} images in {seconds:.1f} s, {images / seconds:.1f} a second")
    memory = ", ".join(f"{name} {value / 2**20:.0f} MiB" for name, value in peak_memory().items())
    print(f"peak memory: {memory}; {imported / 2**20:.0f} MiB before the work began, for libraries")
    if report["problems"]:
        print(f"{len(report['problems'])} problems: they are listed in {options.out / 'report.json'}", file=sys.stderr)
    if options.push_to_hub is not None:
        print(f"pushed to {push(options.out, options.push_to_hub, options.private)}")
    return report


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    options = parse_arguments(arguments)
    try:
        return describe_data(options) if options.name == "describe" else prepare_data(options)
    except ValueError as error:  # the user's to mend: one sentence, no traceback
        sys.exit(f"prepare: {error}")


if __name__ == "__main__":
    main()
