"""Draw docs/masks.png, the picture on top of README: what bundled models answer on examples of the Space.

python docs/figures.py
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that a clone works that is not installed

from transformers import AutoModelForImageSegmentation, AutoProcessor  # noqa: E402

import hf_ris  # noqa: E402, F401, registers the architectures
from hf_ris.drawing import Panel, Strip, overlay, sheet  # noqa: E402


MODELS = {"LTS": "lts", "VLT": "vlt", "EAVL": "eavl", "LAVT": "lavt"}
CHOSEN = {"cups.png": 1, "fishes.png": 2, "hearts.png": 1}  # picture -> which of its expressions


@torch.inference_mode()
def answer(name: str, image: Image.Image, text: str) -> np.ndarray:
    """The mask of a bundled model, bool (H, W)."""
    folder = ROOT / "space" / "checkpoints" / f"{name}-refscenes"
    model = AutoModelForImageSegmentation.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    outputs = model(**processor(image, [text]))
    result = processor.post_process_referring_segmentation(outputs, [(image.height, image.width)])[0]
    return result["mask"].numpy()


def main() -> None:
    examples = {one["file"]: one for one in json.loads((ROOT / "space/examples/examples.json").read_text())}
    strips = []
    for file, number in CHOSEN.items():
        image, text = Image.open(ROOT / "space/examples" / file).convert("RGB"), examples[file]["expressions"][number]
        masks = {title: answer(name, image, text) for title, name in MODELS.items()}
        panels = [Panel(image, "picture")]
        panels += [Panel(overlay(image, [mask], tint=0.45), title) for title, mask in masks.items()]
        strips.append(Strip(f"“{text}”", panels))
    sheet(strips, side=180).save(ROOT / "docs" / "masks.png", optimize=True)


if __name__ == "__main__":
    main()
