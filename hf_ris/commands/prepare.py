"""Convert a raw download of a referring segmentation data set to Parquet shards that `hf_ris.data.load` takes.

    hf-ris prepare refcoco --raw downloads --out data/refcoco
    hf-ris prepare refcocog --split-by google --raw downloads --out data/refcocog_google
    hf-ris prepare joint --sets refcoco refcoco+ refcocog grefcoco --raw downloads --out data/joint
    hf-ris prepare refcoco --raw downloads --out data/refcoco --push-to-hub user/refcoco --private

RAW holds the downloads as they are, unpacked or in their zip archives:

    refcoco/  refs(unc).p  instances.json       (or refcoco.zip; likewise refcoco+)
    refcocog/ refs(umd).p  refs(google).p  instances.json
    grefcoco/ grefs(unc).json  instances.json
    phrasecut/ refer_train.json ... image_data_split.json
    images/train2014/COCO_train2014_*.jpg       (or train2014.zip; PhraseCut: VG_100K and VG_100K_2, or their archives)
    meta_expressions/{train,valid,test}/meta_expressions.json  train/{JPEGImages,Annotations}/  valid/JPEGImages/
                                                (ref_youtube_vos)
    DAVIS/ davis_text_annotations/              (ref_davis17)
    NAME/     refs(WHO).p  instances.json       (any other set in refer's format, as RRSIS-D; images in any folder)

A run that was killed goes on when it is started again.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

from hf_ris.data.preparation.published import JOINT, NAMES, VIDEO_NAMES

from . import command


_OF_SETS = {  # options that some data sets alone have, with their defaults
    "text": ("sent", [name for name in NAMES if name != "phrasecut"]),
    "split_by": ("umd", ["refcocog"]),
    "sets": (JOINT[:3], ["joint"]),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", metavar="NAME", help=", ".join((*NAMES, *VIDEO_NAMES)) + ", or the folder of another in refer's format"
    )
    parser.add_argument("--raw", type=Path, required=True, metavar="DIR", help="folder of the downloads")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    parser.add_argument("--images", type=Path, nargs="+", default=[], help="folders or zip archives of the images")
    parser.add_argument("--ground-truth", choices=("union", "sum_equals_one"), default="union")
    parser.add_argument("--text", choices=("sent", "raw"), help="of a sentence (default sent); not of phrasecut")
    parser.add_argument(
        "--split-by", metavar="WHO", help="refcocog: umd (default) or google; other names: of refs(WHO).p"
    )
    parser.add_argument("--sets", nargs="+", choices=JOINT, help=f"of joint (default {' '.join(JOINT[:3])})")
    parser.add_argument("--images-per-shard", type=int, default=500, metavar="N")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="default: one per core")
    parser.add_argument("--skip-count-check", action="store_true", help="do not compare with the published counts")
    parser.add_argument("--allow-problems", action="store_true", help="leave out images that cannot be used; list them")
    parser.add_argument("--push-to-hub", metavar="ID", help="upload the finished folder")
    parser.add_argument("--private", action="store_true", help="of the repository on the Hub")


def run(options: argparse.Namespace) -> dict[str, Any]:
    if options.name in VIDEO_NAMES:
        return run_videos(options)
    for option, (default, names) in _OF_SETS.items():
        if options.name not in NAMES and option == "split_by":
            continue
        if options.name not in names and (options.name in NAMES or option == "sets"):
            command.refuse_unused(options, [option], f"it is for {', '.join(names)}, not for {options.name}")
        else:
            command.fill_in(options, {option: default})
    if options.push_to_hub is None:
        command.refuse_unused(options, ["private"], "it is for --push-to-hub")
    from hf_ris.data.preparation.preparing import Options, prepare

    chosen = {name: vars(options)[name] for name in _OF_SETS if vars(options)[name] is not None}
    start, imported = time.perf_counter(), peak_memory()["main"]
    report = prepare(
        options.raw,
        options.out,
        Options(options.name, ground_truth=options.ground_truth, images_per_shard=options.images_per_shard, **chosen),
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
    for kind in ("problems", "remarks"):
        if report[kind]:
            print(f"{len(report[kind])} {kind}: they are listed in {options.out / 'report.json'}", file=sys.stderr)
    if options.push_to_hub is not None:
        print(f"pushed to {push(options.out, options.push_to_hub, options.private)}")
    return report


def run_videos(options: argparse.Namespace) -> dict[str, Any]:
    """A data set of videos, which fewer options are for."""
    command.refuse_unused(options, ["text", "split_by", "sets"], f"{options.name} has no such choice")
    if options.images:
        raise ValueError(f"--images is for data sets of images: the frames of {options.name} lie in --raw.")
    if options.push_to_hub is None:
        command.refuse_unused(options, ["private"], "it is for --push-to-hub")
    from hf_ris.data.preparation.videos.preparing import prepare_video_set

    report = prepare_video_set(options.name, options.raw, options.out, check_counts=not options.skip_count_check)
    for split, of in report["splits"].items():
        print(f"{split}: {of['videos']:,} videos, {of['expressions']:,} expressions, {of['frames']:,} frames")
    if options.push_to_hub is not None:
        print(f"pushed to {push(options.out, options.push_to_hub, options.private)}")
    return report


def push(folder: Path, repo_id: str, private: bool) -> str:
    """Upload a prepared folder, with its card, as a data set on the Hub; returns its address."""
    from huggingface_hub import HfApi

    api = HfApi()
    address = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
    api.upload_folder(repo_id=repo_id, repo_type="dataset", folder_path=folder, commit_message="Prepared by hf_ris")
    return str(address)


def peak_memory() -> dict[str, int]:
    """The most bytes that this process, and the largest of its workers, have held."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    of = {"main": resource.RUSAGE_SELF, "worker": resource.RUSAGE_CHILDREN}
    return {name: resource.getrusage(who).ru_maxrss * unit for name, who in of.items()}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    return command.run("prepare", arguments)
