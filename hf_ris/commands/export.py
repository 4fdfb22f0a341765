"""Export a model as a `torch.export` program (.pt2) or as ONNX, and check the file against the model.

    hf-ris export --model outputs/lts-refscenes/best --out lts.onnx
    hf-ris export --arch lavt --out lavt.pt2        # the paper's configuration with random weights
    hf-ris export --table                           # every architecture in both formats, at its small size

The program takes the tensors that the processor makes, by their names, and gives the logits (N, h, w);
`processor.post_process_referring_segmentation` turns these into masks. Images, expressions and words may be as many as
one likes, but for two things: a GRU is unrolled over the words it is traced with, so that LTS and VLT take expressions
padded to the config's `max_text_length`; and pictures have one size, `--size HEIGHT WIDTH`, by default the config's
square. VATEX is exported without `pixel_mask`, so its pictures must share that shape.

A video model is exported, as .pt2, for clips of one length, `--frames N`, by default its `window_frames`, which is also
the most: a longer video goes in windows, whose number depends on the data. Its logits are (N, T, h, w).

ONNX needs `pip install "hf_ris[export]"`.
"""

import argparse
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

from hf_ris import ARCHITECTURES

from . import command


FORMATS = (".pt2", ".onnx")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", help="folder or Hub id of a saved model")
    which.add_argument("--arch", choices=list(ARCHITECTURES), help="the paper's configuration, random weights")
    which.add_argument("--table", nargs="*", metavar="ARCH", help="print a table of these, or all, architectures")
    parser.add_argument("--out", type=Path, help="file to write, *.pt2 or *.onnx")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="of the pictures")
    parser.add_argument("--frames", type=int, help="of a video model's clips (default and most: its window_frames)")


def check(options: argparse.Namespace) -> None:
    """ValueError for options that do not go together, and for libraries that are not there."""
    if options.table is not None:
        command.refuse_unused(options, ["out", "size", "frames"], "--table writes no file")
    elif options.out is None or options.out.suffix not in FORMATS:
        raise ValueError("Give --out FILE.pt2 or --out FILE.onnx.")
    unknown = sorted(set(options.table or ()) - set(ARCHITECTURES))
    if unknown:
        raise ValueError(f"There is no architecture {unknown[0]}; there are {', '.join(ARCHITECTURES)}.")
    absent = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if absent and (options.table is not None or options.out.suffix == ".onnx"):
        raise ValueError(f'{" and ".join(absent)} must be installed for ONNX: pip install "hf_ris[export]"')


def run(options: argparse.Namespace) -> None:
    check(options)
    from hf_ris.export import export, load, table

    if options.table is not None:
        print(table(options.table or list(ARCHITECTURES)))
        return
    with nullcontext() if options.model is None else command.loading(options.model):
        model = load(options.model, options.arch)
    gap = export(model, options.out, None if options.size is None else tuple(options.size), options.frames)
    print(f"wrote {options.out}; logits differ from the model's by at most {gap:.1e}")


def main(arguments: list[str] | None = None) -> None:
    return command.run("export", arguments)
