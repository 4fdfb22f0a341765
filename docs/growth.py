"""Draw docs/growth.png: how the cost of an answer grows with the expressions of an image, and with its side.

python docs/growth.py

Sizes of the bundled models on the CPU, random weights, float32 without autograd: CPU seconds of a forward pass (medians
of three), and its tensors beside weights and inputs at their peak. The numbers are printed too, as a Markdown table.
"""

import sys
from pathlib import Path

import torch


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that a clone works that is not installed

from matplotlib.figure import Figure  # noqa: E402, not pyplot, which looks for a display
from transformers import AutoModelForImageSegmentation  # noqa: E402

import hf_ris  # noqa: E402, F401, registers the architectures
from hf_ris.benchmark import peak_memory, random_inputs, timings  # noqa: E402
from hf_ris.training.build import build_config  # noqa: E402
from hf_ris.training.recipe import load_recipe  # noqa: E402


ARCHITECTURES = ("cris", "lavt")  # whose expressions share nearly all of the image's encoding, and hardly any
COUNTS, SIDES = (1, 2, 4, 8, 16, 32, 64), (224, 320, 480, 640, 960)  # every side a multiple of 32
WORDS, VOCABULARY = 10, 100
CPU = torch.device("cpu")


@torch.inference_mode()
def cost(model, expressions: int, side: int) -> tuple[float, float]:
    """CPU seconds and MiB of one answer."""
    model.config.image_size = side  # of the inputs; the weights do not depend on it
    inputs = random_inputs(model.config, expressions, CPU, WORDS)
    return timings(lambda: model(**inputs), CPU, 3)["cpu"], peak_memory(model, inputs, CPU) / 2**20


def main() -> None:
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots(2, 2, sharex="col")
    for name in ARCHITECTURES:
        torch.manual_seed(0)
        config = build_config(load_recipe(f"{name}/refscenes"), VOCABULARY)
        own, model = config.image_size, AutoModelForImageSegmentation.from_config(config).eval()
        cases = [(COUNTS, [(count, own) for count in COUNTS]), (SIDES, [(1, side) for side in SIDES])]
        for column, (x, arguments) in enumerate(cases):
            costs = [cost(model, *case) for case in arguments]
            for row, y in enumerate(zip(*costs)):
                label = name if column else f"{name}, {own} px"
                axes[row, column].plot(x, y, marker="o", markersize=3, label=label)
            for case, (seconds, memory) in zip(arguments, costs):
                print(f"| {name} | {case[0]} | {case[1]} | {seconds:.3f} | {memory:.0f} |", flush=True)
    for row, title in enumerate(("CPU seconds of a forward pass", "MiB beside weights and inputs")):
        axes[row, 0].set_ylabel(title)
        for column, (label, ticks) in enumerate((("expressions of one image", COUNTS), ("side of the image", SIDES))):
            axes[row, column].set(ylim=(0, None), xticks=[tick for tick in ticks if tick not in (2, 4)])
            axes[row, column].grid(alpha=0.25)
            axes[row, column].legend(frameon=False)
            if row:
                axes[row, column].set_xlabel(label)
    figure.savefig(ROOT / "docs" / "growth.png", dpi=110)


if __name__ == "__main__":
    main()
