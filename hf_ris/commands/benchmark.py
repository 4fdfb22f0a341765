"""What a model costs: counted FLOPs, latency, memory, parameters. Weights are random; only sizes matter.

    hf-ris benchmark --arch lts
    hf-ris benchmark --arch lavt --config overrides.json --expressions 8 --result lavt.json
    hf-ris benchmark --model outputs/lts-refscenes/best
    hf-ris benchmark --suite
    hf-ris benchmark --suite lavt cris --small --compile
    hf-ris benchmark --arch lavt --against ../other --expressions 1
    hf-ris benchmark --arch lavt --data data/refcoco --raw downloads --split val --workers 2

FLOPs of K expressions on one image are image part + K x expression part, both solved from counts with 1 and K
expressions and checked on a third. They are printed with a multiply-add as one (as papers count) and as two (as torch
counts); operators that are no matrix product, convolution or attention count nothing. Latency is a median, after a
warm-up, for 1 expression, for K at once and for K separate calls, and beside it stands what masks of K logits take at
640x480 and at 4000x3000, on one thread. Memory is the peak of all tensors of one forward pass without gradient, weights
and input left out; on CUDA as the allocator saw it, on the CPU without operators' scratch.

With --suite all architectures, or those named, are measured in one Markdown table: time, memory and share of the
machine's matrix rate for 1 and 8 expressions of an image, in float32 and in the recommended way
(`optimize_for_inference`), and a training step; --small takes the tiny sizes of the recipes `refscenes`, which is
seconds instead of minutes, and --compile adds the recommended way by `torch.compile`.

With --against the same model is run here and in another checkout of this project, by turns, each in a process of its
own; printed are medians of wall and CPU time, in float32 and in the recommended way, the ratios, and by how much the
outputs differ. --training-step times a step of as many images as expressions instead.

With --data no model is run, but one epoch of a prepared data set is decoded, preprocessed and collated for the
architecture, and with --raw the same expressions by a plain PyTorch data set over the raw RefCOCO files, which opens
the JPEG and draws the polygons for every expression, as the programs of the field do. Both must bring every expression
once.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from hf_ris import ARCHITECTURES

from . import command


_OF_DATA = {"raw": None, "raw_name": "refcoco", "split": "train", "images": None, "batch_size": 8, "workers": 2}
_OF_A_MODEL = {"expressions": 8, "words": 10, "repeats": 10}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--arch", choices=list(ARCHITECTURES), help="the paper's configuration")
    which.add_argument("--model", help="the configuration of a saved model, folder or Hub id")
    which.add_argument("--suite", nargs="*", metavar="NAME", help="a table of all architectures, or of these")
    parser.add_argument("--small", action="store_true", help="of --suite: tiny sizes")
    parser.add_argument("--compile", action="store_true", help="of --suite: also by torch.compile, which takes minutes")
    parser.add_argument("--config", type=Path, metavar="FILE.json", help="fields of the configuration to override")
    parser.add_argument("--expressions", type=int, metavar="K", help="at least 2 (default 8)")
    parser.add_argument("--words", type=int, help="tokens of an expression (default 10)")
    parser.add_argument("--repeats", type=int, help="timed calls (default 10, of --suite 3)")
    parser.add_argument("--cpu", action="store_true", help="even where there is a GPU")
    parser.add_argument("--result", type=Path, metavar="FILE.json", help="write the result here")
    other = parser.add_argument_group("comparison with another state of this project")
    other.add_argument("--against", type=Path, metavar="FOLDER", help="the root of another checkout")
    other.add_argument("--training-step", action="store_true", help="a step, not an answer")
    data = parser.add_argument_group("loading of data instead of a model")
    data.add_argument("--data", metavar="DIR_OR_ID", help="a prepared data set")
    data.add_argument("--raw", type=Path, metavar="DIR", help="its raw files, unpacked: compare with plain loading")
    data.add_argument("--raw-name", help="folder in RAW with refs(*).p (default refcoco)")
    data.add_argument("--split", help="(default train)")
    data.add_argument("--images", type=int, help="images taken (default: the whole split)")
    data.add_argument("--batch-size", type=int, help="images (default 8)")
    data.add_argument("--workers", type=int, help="processes (default 2)")


def check(options: argparse.Namespace) -> None:
    """ValueError for options that would be ignored or are out of range."""
    if options.suite is None:
        command.refuse_unused(options, ["small", "compile"], "it is for --suite")
    else:
        ignored = ["config", "expressions", "words", "data", "against"]
        command.refuse_unused(options, ignored, "--suite measures each architecture alike")
        unknown = [name for name in options.suite if name not in ARCHITECTURES]
        if unknown:
            raise ValueError(f"There is no architecture {unknown[0]}; there are {', '.join(ARCHITECTURES)}.")
        command.fill_in(options, {"repeats": 3})
    if options.data is None:
        command.refuse_unused(options, list(_OF_DATA), "it is for --data")
    else:
        command.refuse_unused(options, [*_OF_A_MODEL, "cpu", "against", "training_step"], "--data runs no model")
    if options.against is None:
        command.refuse_unused(options, ["training_step"], "it is for --against")
    else:
        command.refuse_unused(options, ["cpu"], "--against runs on the CPU alone")
        if options.arch is None:
            raise ValueError("--against takes --arch: another checkout may not read the model's folder.")
    command.fill_in(options, _OF_DATA | _OF_A_MODEL)
    if options.expressions < 2 and options.against is None:
        raise ValueError("--expressions must be at least 2: image and expression part are told apart by it.")
    for name in ("expressions", "words", "repeats", "batch_size"):
        if vars(options)[name] < 1:
            raise ValueError(f"--{name.replace('_', '-')} is at least 1, not {vars(options)[name]}.")


def run(options: argparse.Namespace) -> dict[str, Any]:
    check(options)
    fields = command.read_object(options.config)
    if options.against is not None:
        return compare_with(options, fields)
    import torch
    from transformers import AutoConfig

    from hf_ris.benchmark import benchmark, benchmark_data, show, show_data

    device = torch.device("cuda" if torch.cuda.is_available() and not options.cpu else "cpu")
    if options.suite is not None:
        from hf_ris.benchmark_suite import suite

        named = options.suite or list(ARCHITECTURES)
        return write(suite(named, device, options.repeats, options.small, options.compile), options)
    if options.model is None:
        config = AutoConfig.for_model(options.arch, **fields)
    else:
        with command.loading(options.model):
            config = AutoConfig.from_pretrained(options.model, **fields)
    if options.data is not None:
        result = benchmark_data(config, options)
        show_data(result)
    else:
        result = benchmark(config, device, options.expressions, options.words, options.repeats)
        show(result)
    return write(result, options)


def write(result: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    if options.result is not None:
        options.result.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def compare_with(options: argparse.Namespace, fields: dict[str, Any]) -> dict[str, Any]:
    from hf_ris.benchmark_against import compare, show
    from hf_ris.environment import git_revision, hardware, versions

    counts = (options.expressions, options.words)
    rows = compare(options.arch, options.against, options.repeats, *counts, fields, options.training_step)
    show(rows)
    result = {"rows": rows, "revision": git_revision(), "hardware": hardware(), "versions": versions()}
    return write(result, options)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    return command.run("benchmark", arguments)
