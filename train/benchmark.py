"""What a model costs: counted FLOPs, latency, memory, parameters. Weights are random; only sizes matter.

    python train/benchmark.py --arch lts
    python train/benchmark.py --arch lavt --config overrides.json --expressions 8 --result lavt.json
    python train/benchmark.py --model space/checkpoints/lts-refscenes

FLOPs of K expressions on one image are image part + K x expression part, both solved from counts with 1 and K
expressions and checked on a third. They are printed with a multiply-add as one (as papers count) and as two (as torch
counts); operators that are no matrix product, convolution or attention count nothing. Latency is a median, after a
warm-up, for 1 expression, for K at once and for K separate calls. Memory is the peak of all tensors of one forward pass
without gradient, weights and input left out; on CUDA as the allocator saw it, on the CPU without operators' scratch.
"""

import argparse
import json
import statistics
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForImageSegmentation


if __name__ == "__main__":  # the repository's root instead of this folder, whose evaluate.py would hide the library
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import hf_ris
from train.run_folder import hardware, versions


def random_inputs(config, expressions: int, device: torch.device, words: int) -> dict[str, Tensor]:
    """One square image at the config's size and `expressions` of `words` tokens, all different."""
    generator = torch.Generator().manual_seed(0)
    side = config.image_size
    inputs = {
        "pixel_values": torch.randn(1, 3, side, side, generator=generator),
        "input_ids": torch.randint(2, 50, (expressions, words), generator=generator),
        "attention_mask": torch.ones(expressions, words, dtype=torch.long),
        "image_index": torch.zeros(expressions, dtype=torch.long),
    }
    return {name: value.to(device) for name, value in inputs.items()}


@torch.no_grad()
def count_flops(model, inputs: dict[str, Tensor]) -> int:
    """As torch counts: a multiply-add is two."""
    with FlopCounterMode(display=False) as counter:
        model(**inputs)
    return counter.get_total_flops()


def flop_parts(config, expressions: int, words: int) -> dict[str, int]:
    """Image and expression part of the FLOPs, from runs with 1 and `expressions` expressions.

    With fake tensors: nothing is computed, no device hides what it does (cuDNN's recurrent layers count 0), and
    transformers, which looks into the values of a mask where there are any, does not.

    Raises:
        RuntimeError: a third run contradicts them, so the cost is not image + K x expression.
    """
    counts = [1, expressions, expressions + 1]
    with torch.device("meta"):
        model = AutoModelForImageSegmentation.from_config(config).eval()
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        one, many, again = (count_flops(model, random_inputs(config, k, torch.device("cpu"), words)) for k in counts)
    each, rest = divmod(many - one, expressions - 1)
    if rest or again != one + expressions * each:
        raise RuntimeError(f"FLOPs are not image + K x expression: K = {counts} gives {one}, {many}, {again}.")
    return {"image": one - each, "expression": each}


@torch.no_grad()
def latency(call: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Median seconds of `call`."""
    call()
    seconds = []
    for _ in range(repeats):
        _wait(device)
        start = time.perf_counter()
        call()
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class LiveTensors(TorchDispatchMode):
    """Sums the bytes of the storages that operators make inside it, until they are freed; `peak` is the most."""

    def __init__(self):
        super().__init__()
        self.live, self.peak, self.known = 0, 0, weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.known.update(storage for storage in _storages((args, kwargs)))  # weights, inputs
        result = function(*args, **(kwargs or {}))
        for storage in _storages(result):
            if storage not in self.known:  # neither a view nor in place
                self.known.add(storage)
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._free, storage.nbytes())
        return result

    def _free(self, size: int) -> None:
        self.live -= size


def _storages(tree) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


@torch.no_grad()
def peak_memory(model, inputs: dict[str, Tensor], device: torch.device) -> int:
    """Bytes that one forward pass adds to weights and inputs, at its peak."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        model(**inputs)
        return torch.cuda.max_memory_allocated(device) - before
    with LiveTensors() as tensors:
        model(**inputs)
    return tensors.peak


def parameter_parts(model) -> dict[str, int]:
    """Number of parameters of each direct part of the model, and their total."""
    parts = {name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()}
    parts |= {name: parameter.numel() for name, parameter in model.named_parameters(recurse=False)}
    parts["total"] = sum(parts.values())
    return {name: count for name, count in parts.items() if count}


def benchmark(config, device: torch.device, expressions: int, words: int, repeats: int) -> dict[str, Any]:
    """Everything this script prints, ready for JSON."""
    flops = flop_parts(config, expressions, words)
    model = AutoModelForImageSegmentation.from_config(config).to(device).eval()
    single, many = (random_inputs(config, count, device, words) for count in (1, expressions))

    def separately():
        for _ in range(expressions):
            model(**single)

    return {
        "architecture": config.model_type,
        "image_size": config.image_size,
        "words": words,
        "expressions": expressions,
        "parameters": parameter_parts(model),
        "flops": flops,
        "multiply_adds": {name: count / 2 for name, count in flops.items()},
        "latency_seconds": {
            "1": latency(lambda: model(**single), device, repeats),
            str(expressions): latency(lambda: model(**many), device, repeats),
            f"{expressions} calls": latency(separately, device, repeats),
        },
        "peak_memory_bytes": {
            "1": peak_memory(model, single, device),
            str(expressions): peak_memory(model, many, device),
        },
        "device": str(device),
        "hardware": hardware(),
        "versions": versions(),
    }


def show(result: dict[str, Any]) -> None:
    expressions, flops, seconds = result["expressions"], result["flops"], result["latency_seconds"]
    print(f"{result['architecture']} at {result['image_size']}, {result['words']} words, on {result['device']}")
    print("parameters (millions)")
    for name, count in result["parameters"].items():
        print(f"  {name:<20}{count / 1e6:10.2f}")
    print(f"{'operations (10^9)':<22}{'mul-add = 1':>12}{'mul-add = 2':>12}")
    rows = {"image": flops["image"], "expression": flops["expression"]}
    rows |= {f"K = {count}": flops["image"] + count * flops["expression"] for count in (1, expressions)}
    rows |= {f"{expressions} calls": expressions * (flops["image"] + flops["expression"])}
    for name, count in rows.items():
        print(f"  {name:<20}{count / 2e9:12.3f}{count / 1e9:12.3f}")
    print("latency (ms, median)")
    for name, value in seconds.items():
        print(f"  {'K = ' + name if name.isdigit() else name:<20}{1000 * value:12.1f}")
    print("peak memory beyond weights and inputs (MiB)")
    for name, value in result["peak_memory_bytes"].items():
        print(f"  {'K = ' + name:<20}{value / 2**20:12.1f}")


def build_config(options: argparse.Namespace):
    """The config of a saved model, or of an architecture, with overrides of its fields."""
    fields = {} if options.config is None else json.loads(options.config.read_text(encoding="utf-8"))
    if options.model is not None:
        return AutoConfig.from_pretrained(options.model, **fields)
    return AutoConfig.for_model(options.arch, **fields)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--arch", choices=list(hf_ris.ARCHITECTURES), help="the paper's configuration")
    which.add_argument("--model", help="the configuration of a saved model, folder or Hub id")
    parser.add_argument("--config", type=Path, metavar="FILE.json", help="fields of the configuration to override")
    parser.add_argument("--expressions", type=int, default=8, metavar="K", help="at least 2 (default 8)")
    parser.add_argument("--words", type=int, default=10, help="tokens of an expression (default 10)")
    parser.add_argument("--repeats", type=int, default=10, help="timed calls (default 10)")
    parser.add_argument("--cpu", action="store_true", help="even where there is a GPU")
    parser.add_argument("--result", type=Path, metavar="FILE.json", help="write the result here")
    options = parser.parse_args(arguments)
    if options.expressions < 2:
        parser.error("--expressions must be at least 2: image and expression part are told apart by it")
    device = torch.device("cuda" if torch.cuda.is_available() and not options.cpu else "cpu")
    result = benchmark(build_config(options), device, options.expressions, options.words, options.repeats)
    show(result)
    if options.result is not None:
        options.result.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


if __name__ == "__main__":
    main()
