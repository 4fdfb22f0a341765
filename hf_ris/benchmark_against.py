"""Two states of this project, measured by turns: each in a process of its own, one of them at work at a time.

The worker (`python -c WORKER`) imports `hf_ris` from the folder that its PYTHONPATH names, builds a model of a given
seed and answers each line that it reads with the seconds of one call. So both sides see the same machine, minute by
minute, and what is compared are medians. It uses nothing of the package but its configurations and models, so that any
earlier state can be the other side.
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any


# The options are the process's one argument, as JSON: arch, fields, expressions, words, training, recommended.
WORKER = r"""
import json, sys, time
import torch, transformers, hf_ris
from transformers import AutoConfig, AutoModelForImageSegmentation

options = json.loads(sys.argv[1])
torch.manual_seed(0)
config = AutoConfig.for_model(options["arch"], **options["fields"])
model = AutoModelForImageSegmentation.from_config(config)
count, side = options["expressions"], config.image_size
images = count if options["training"] else 1
inputs = {
    "pixel_values": torch.randn(images, 3, side, side),
    "input_ids": torch.randint(2, 50, (count, options["words"])),
    "attention_mask": torch.ones(count, options["words"], dtype=torch.long),
    "image_index": torch.arange(count) % images,
}
for name, shape in config.further_inputs(images, count, options["words"]).items():
    if name.endswith("_mask"):
        inputs[name] = torch.ones(shape, dtype=torch.long)
    elif name.endswith("_ids"):
        inputs[name] = torch.randint(2, 50, shape)
    else:
        inputs[name] = torch.randn(shape)
if options["training"]:
    inputs["labels"] = (torch.rand(count, side, side) > 0.5).float()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-5)
else:
    model.eval()
    if options["recommended"]:
        hf_ris.optimize_for_inference(model)


def call():
    if options["training"]:
        optimizer.zero_grad()
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        return loss.detach()[None]
    with torch.inference_mode():
        return model(**inputs).logits


result = call()
print(json.dumps({"values": result.float().flatten()[:: max(1, result.numel() // 1000)].tolist()}), flush=True)
for line in sys.stdin:
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    print(json.dumps({"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}), flush=True)
"""


class Side:
    """One state of the project at work on a case; it waits until it is called."""

    def __init__(self, folder: Path, case: dict[str, Any]):
        environment = os.environ | {"PYTHONPATH": str(folder)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, json.dumps(case)],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.values = self._read()["values"]

    def call(self) -> dict[str, float]:
        """Wall and CPU seconds of one call."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()

    def _read(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise ValueError("One side of the comparison failed; what it said stands above.")
        return json.loads(line)


def compare(
    arch: str, against: Path, repeats: int, expressions: int, words: int, fields: dict[str, Any], training: bool
) -> list[dict[str, Any]]:
    """One architecture here, in float32 and in the recommended way, and there, by turns.

    Args:
        against: root of another checkout of this project.
        training: a step of as many images as expressions, instead of an answer; then there is no recommended way.

    Returns:
        per way a dict: `wall` and `cpu`, each (here, there, here / there) as medians in seconds, and `difference`, the
        largest of the first outputs (of logits, or of the loss), relative to the largest of them.

    Raises:
        ValueError: a folder that is no checkout, or a side that failed.
    """
    if not (against / "hf_ris" / "__init__.py").is_file():
        raise ValueError(f"--against takes the root of another checkout of this project; {against} holds no hf_ris.")
    here = Path(__file__).resolve().parents[1]
    case = {"arch": arch, "fields": fields, "expressions": expressions, "words": words, "training": training}
    sides, ways = {"there": Side(against.resolve(), case | {"recommended": False})}, ["float32"]
    sides["float32"] = Side(here, case | {"recommended": False})
    if not training:
        ways.append("recommended")
        sides["recommended"] = Side(here, case | {"recommended": True})
    try:
        seconds = {name: [] for name in sides}
        for _ in range(repeats):
            for name, side in sides.items():
                seconds[name].append(side.call())
    finally:
        for side in sides.values():
            side.close()
    return [_row(way, arch, expressions, training, seconds, sides) for way in ways]


def _row(way: str, arch: str, expressions: int, training: bool, seconds: dict, sides: dict[str, Side]) -> dict:
    row = {"architecture": arch, "expressions": expressions, "training": training, "way": way}
    for clock in ("wall", "cpu"):
        ours, theirs = (statistics.median(of[clock] for of in seconds[name]) for name in (way, "there"))
        row[clock] = (ours, theirs, ours / theirs)
    ours, theirs = sides[way].values, sides["there"].values
    size = max(map(abs, theirs))
    row["difference"] = max(abs(one - other) for one, other in zip(ours, theirs, strict=True)) / max(size, 1e-12)
    return row


def show(rows: list[dict[str, Any]]) -> None:
    """A Markdown table."""
    print("| | way | wall s, here / there | ratio | CPU s, here / there | ratio | outputs differ by |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        (wall, wall_there, wall_ratio), (cpu, cpu_there, cpu_ratio) = row["wall"], row["cpu"]
        count = row["expressions"]
        what = f"a step of batch {count}" if row["training"] else f"{count} expression{'s' if count > 1 else ''}"
        print(
            f"| {row['architecture']}, {what} | {row['way']} | {wall:.2f} / {wall_there:.2f} | {wall_ratio:.2f} | "
            f"{cpu:.2f} / {cpu_there:.2f} | {cpu_ratio:.2f} | {row['difference']:.0e} |"
        )
