"""What every architecture costs on the machine at hand, as one Markdown table. Weights are random; only sizes matter.

Ways: float32 as loaded, the recommended one (`optimize_for_inference`), and if asked for that one by `torch.compile`.

Beside each time stands the share of the machine's matrix rate: the model's counted operations, divided by those that
products of square matrices would have made in the same time, measured before and after it. On the CPU both are taken by
CPU time, which other work on the machine changes least, on a GPU by the clock, with TF32 as torch has it set.
"""

import gc
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageSegmentation

from hf_ris.benchmark import flop_parts, peak_memory, random_inputs, timings
from hf_ris.environment import git_revision, hardware, versions
from hf_ris.models.inference_ris import optimize_for_inference
from hf_ris.training.build import build_config
from hf_ris.training.recipe import load_recipe


WORDS, MANY, BATCH = 10, 8, 2  # tokens of an expression, expressions of an image, images of a training step
_SMALL_VOCABULARY = 100


def matrix_rate(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """Operations a second (a multiply-add is two) of products of square matrices, by the clock of `_clock`."""
    one, other = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / timings(lambda: one @ other, device, 3)[_clock(device)]


def _clock(device: torch.device) -> str:
    return "wall" if device.type == "cuda" else "cpu"


def measure(
    architecture: str, device: torch.device, repeats: int, small: bool, compiled: bool = False
) -> dict[str, Any]:
    """One architecture: `ways` holds one after the other, each with times, shares and, but of compiled ones, memory.

    Args:
        small: at the size of its `refscenes` recipe instead of the paper's.
        compiled: also the recommended way by `torch.compile`; its entry has the `compile_seconds` of the first answers.
    """
    if small:
        config = build_config(load_recipe(f"{architecture}/refscenes"), _SMALL_VOCABULARY)
    else:
        config = AutoConfig.for_model(architecture)
    torch.manual_seed(0)
    model = AutoModelForImageSegmentation.from_config(config).to(device)
    result = {
        "architecture": architecture,
        "image_size": config.image_size,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "flops": flop_parts(config, MANY, WORDS),
        "ways": [],
    }
    step = timings(_training_step(model, config, device), device, max(1, repeats // 2))
    del model
    gc.collect()
    for way in ("float32", "recommended", *(["compiled"] if compiled else [])):
        torch.manual_seed(0)
        model = AutoModelForImageSegmentation.from_config(config).to(device).eval()
        done = optimize_for_inference(model) if way != "float32" else None
        dtype = torch.float32 if done is None else done.dtype
        entry = {"way": way, "done": str(done or "as loaded"), "training_step": step if done is None else None}
        if way == "compiled":
            entry["compile_seconds"] = _compile(model, config, device)
        result["ways"].append(entry | _answers(model, config, device, dtype, repeats, result["flops"], small))
        del model
        gc.collect()
    return result


def _compile(model, config, device: torch.device) -> float:
    """Compile in place; returns the wall seconds of the first answers to 1 and to `MANY` expressions."""
    torch.compiler.reset()
    model.compile()
    begun = time.perf_counter()
    with torch.inference_mode():
        for count in (1, MANY):
            model(**random_inputs(config, count, device, WORDS))
    return time.perf_counter() - begun


def _answers(model, config, device, dtype, repeats: int, flops: dict[str, int], small: bool) -> dict[str, Any]:
    """By number of expressions of one image: `seconds`, `share` of the matrix rate and `memory` in bytes."""
    side = 256 if small else 8192 if device.type == "cuda" else 2048
    found = {"seconds": {}, "share": {}, "memory": {}}
    for count in (1, MANY):
        inputs = random_inputs(config, count, device, WORDS)
        before = matrix_rate(device, dtype, side)
        with torch.inference_mode():
            seconds = timings(lambda inputs=inputs: model(**inputs), device, repeats)
        rate = (before + matrix_rate(device, dtype, side)) / 2
        operations = flops["image"] + count * flops["expression"]
        found["seconds"][str(count)] = seconds
        found["share"][str(count)] = operations / seconds[_clock(device)] / rate
        if model._compiled_call_impl is None:  # whose tensors the counter would not see
            found["memory"][str(count)] = peak_memory(model, inputs, device)
    return found


def _training_step(model, config, device: torch.device) -> Callable[[], None]:
    """A step of AdamW in float32 over `BATCH` images with an expression each."""
    inputs = random_inputs(config, BATCH, device, WORDS, BATCH)
    inputs["labels"] = (torch.rand(BATCH, config.image_size, config.image_size, device=device) > 0.5).float()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-5)

    def step() -> None:
        optimizer.zero_grad()
        model(**inputs).loss.backward()
        optimizer.step()

    return step


def suite(
    architectures: list[str], device: torch.device, repeats: int, small: bool = False, compiled: bool = False
) -> dict[str, Any]:
    """All of them, ready for JSON; each row is printed when it is known."""
    facts = hardware()
    machine = facts["gpus"][0] if device.type == "cuda" else f"{facts['cpu']}, {facts['threads']} threads"
    size = "tiny, of the recipes `refscenes`" if small else "the papers' sizes"
    print(f"{machine}; torch {torch.__version__}; {size}; medians of {repeats} calls; one image, {WORDS} words\n")
    print(
        f"| | parameters, 10^6 | GFLOP, 1 / {MANY} expressions | way | s, 1 / {MANY} | CPU s, 1 / {MANY} | share of "
        f"the matrix rate, 1 / {MANY} | MiB beyond the weights, 1 / {MANY} | training step of {BATCH}, s (CPU s) |"
    )
    print("| --- " * 9 + "|", flush=True)
    rows = []
    for architecture in architectures:
        rows.append(measure(architecture, device, repeats, small, compiled))
        for line in lines(rows[-1]):
            print(line, flush=True)
    return {"rows": rows, "small": small, "revision": git_revision(), "hardware": facts, "versions": versions()}


def lines(row: dict[str, Any]) -> list[str]:
    """The rows of the table that an architecture has."""
    flops = row["flops"]
    operations = [(flops["image"] + count * flops["expression"]) / 1e9 for count in (1, MANY)]
    told = []
    for way in row["ways"]:
        first = way["way"] == "float32"
        counts = ("1", str(MANY))
        cells = [
            row["architecture"] if first else "",
            f"{row['parameters'] / 1e6:.1f}" if first else "",
            " / ".join(f"{value:.3g}" for value in operations) if first else "",
            _name(way),
            *(" / ".join(f"{way['seconds'][count][clock]:.3g}" for count in counts) for clock in ("wall", "cpu")),
            " / ".join(f"{way['share'][count]:.2f}" for count in counts),
            " / ".join(f"{way['memory'][count] / 2**20:.0f}" for count in counts if count in way["memory"]),
            f"{way['training_step']['wall']:.3g} ({way['training_step']['cpu']:.3g})" if first else "",
        ]
        told.append("| " + " | ".join(cells) + " |")
    return told


def _name(way: dict[str, Any]) -> str:
    if way["way"] == "compiled":
        return f"the same by torch.compile, which takes {way['compile_seconds']:.0f} s"
    return way["way"] if way["way"] == "float32" else f"recommended: {way['done']}"
