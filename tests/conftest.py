"""Fixtures that several files share."""

import math
import os
import sys
from functools import cache
from pathlib import Path

import pytest


if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: a thread each, also in what the tests start
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for `train` and `space`, which are scripts and not installed

from hf_ris.data.refscenes.scenes import VOCABULARY  # noqa: E402
from hf_ris.models.text_encoders import word_tokenizer, wordpiece_tokenizer  # noqa: E402


def build_tiny(name: str, *overrides: str):
    """The model and processor of an architecture's `refscenes` recipe, seeded and untrained, in eval mode."""
    from transformers import AutoModelForImageSegmentation
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    from hf_ris.training.build import build_config
    from hf_ris.training.recipe import load_recipe

    data = "refscenes_video" if name.endswith("_video") else "refscenes"
    recipe = load_recipe(ROOT / "train" / "recipes" / name / f"{data}.yaml", overrides)
    tokenizer = (wordpiece_tokenizer if recipe.processor.tokenizer == "wordpiece" else word_tokenizer)(VOCABULARY)
    torch.manual_seed(0)
    config = build_config(recipe, len(tokenizer))
    model = AutoModelForImageSegmentation.from_config(config).eval()
    if name == "segvlm":  # its He start, with batch norms that have no statistics yet, gives logits of 19
        with torch.no_grad():
            for parameter in model.projector.kernel.parameters():  # the logits are linear in them: 1.9
                parameter.mul_(0.1)
    return model, PROCESSOR_MAPPING[type(config)].from_config(config, tokenizer)


def forget_accelerator() -> None:
    """Accelerate keeps one state a process; a program that starts anew has none."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(autouse=True)
def no_accelerator_of_an_earlier_test():
    if "accelerate" in sys.modules:
        forget_accelerator()


def formula(count: int, seed: int) -> torch.Tensor:
    """`count` scattered numbers of unit variance, the same everywhere."""
    n = torch.arange(count, dtype=torch.float64)
    return (((n * n + n) * 0.6180339887498949 + 0.3819660112501051 * seed).frac() - 0.5) * math.sqrt(12)


@torch.no_grad()
def fill_by_formula(model: torch.nn.Module) -> None:
    """Weights of unit gain that are a formula, for tests that freeze a model's numerics."""
    for index, parameter in enumerate(model.parameters()):
        parameter.copy_(formula(parameter.numel(), index).view_as(parameter) / parameter[0].numel() ** 0.5)


@pytest.fixture(scope="session")
def tiny_trio():
    """`tiny_trio(name)` -> (model, processor), one for all tests that leave it as it is; `fresh=True` is one's own."""
    shared = cache(build_tiny)
    return lambda name, fresh=False: build_tiny(name) if fresh else shared(name)


def assert_exports(model, inputs, vocabulary: int, *outputs: str, rtol: float = 0) -> None:
    """torch.export with any number of images, expressions and words: the program gives the model's numbers."""
    free = torch.export.Dim.DYNAMIC
    shapes = {"pixel_values": {0: free}, "image_index": {0: free}}
    shapes |= {name: {0: free, 1: free} for name in ("input_ids", "attention_mask")}
    program = torch.export.export(model, (), inputs, dynamic_shapes=shapes).module()
    other = {
        "pixel_values": torch.randn(3, 3, 64, 64),
        "input_ids": torch.randint(5, vocabulary, (4, 9)),
        "attention_mask": torch.ones(4, 9, dtype=torch.long),
        "image_index": torch.tensor([0, 1, 2, 2]),
    }
    with torch.no_grad():
        result, expected = program(**other), model(**other)
    for name in outputs:
        torch.testing.assert_close(result[name], expected[name], atol=1e-5, rtol=rtol)
