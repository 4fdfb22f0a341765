"""Random odd inputs to the bundled models: each gets a right answer or one clear sentence of ours.

python -m pytest tests/test_odd_inputs.py -m slow    # 250 for each of the eight
"""

import traceback
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import odd_inputs
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odd_inputs import OPEN, REFUSED, SENTENCES, Case
from PIL import Image
from transformers import AutoModel, AutoProcessor, pipeline

import hf_ris


ROOT = Path(__file__).resolve().parents[1]
OURS = Path(hf_ris.__file__).parent
BUNDLED = ["cris", "eavl", "lavt", "lts", "mpg_lqgnet", "segvlm", "vatex", "vlt"]
pytestmark = pytest.mark.filterwarnings("ignore:.*not in the vocabulary", "ignore:The logits of expression")


@cache
def bundled(name: str):
    folder = ROOT / "space" / "checkpoints" / f"{name}-refscenes"
    return AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


@contextmanager
def answered(*cases: Case):
    """An error inside must be a sentence of ours, and there must be one just where no right answer is."""
    told = ", ".join(f"{case.name} {str(case.value)[:60]}" for case in cases)
    may_answer = all(case.truth is not REFUSED for case in cases)
    try:
        yield
    except (ValueError, TypeError) as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        assert Path(where.filename).is_relative_to(OURS), f"{told}: foreign error in {where.filename}: {error!r}"
        assert 20 < len(str(error)) < 600 and "\n" not in str(error), f"{told}: no sentence: {error!r}"
        str(error).encode()
        opened = any(case.truth is OPEN for case in cases)
        assert opened or not may_answer, f"{told}: refused, but it can be answered: {error}"
    else:
        assert may_answer, f"{told}: answered without a word"


@cache
def good_inputs(name: str) -> dict:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))
    masks = [np.add.outer(np.arange(30), np.arange(40)) < 30] * 2
    inputs = dict(bundled(name)[1](image, SENTENCES[:2], masks))
    return inputs | {"object_index": torch.tensor([0, 1])}


@cache
def good_outputs(name: str):
    torch.manual_seed(0)
    with torch.no_grad():
        return bundled(name)[0](**good_inputs(name))


def through_the_processor(name: str, data) -> None:
    """Picture, text and mask to inputs: those of the picture's and the mask's truth."""
    processor = bundled(name)[1]
    image, text = data.draw(odd_inputs.images()), data.draw(odd_inputs.texts())
    misspelt = data.draw(odd_inputs.MISSPELT)
    further, arguments = [Case("arguments", misspelt, REFUSED if misspelt else None)], dict(misspelt)
    if image.truth is not REFUSED and isinstance(text.truth, list) and data.draw(st.booleans()):
        mask = data.draw(odd_inputs.masks(image.truth.size[::-1]))
        further.append(mask)
        arguments["masks"] = [mask.value] * len(text.truth)
    listed = [image.value] if data.draw(st.booleans()) else image.value
    with answered(image, text, *further):
        inputs = processor(listed, text.value, **arguments)
        expected = processor(image.truth, text.truth if isinstance(text.truth, list) else text.value)
        assert inputs["input_ids"].shape == inputs["attention_mask"].shape
        for key in ("pixel_values", "clip_pixel_values"):
            if key in expected:
                assert inputs[key].shape == expected[key].shape
                assert (inputs[key] - expected[key]).abs().max() < 0.05, image.name
        if "masks" in arguments:
            labels = processor(image.truth, text.truth, [mask.truth] * len(text.truth))["labels"]
            assert torch.equal(inputs["labels"], labels)


def through_forward(name: str, data) -> None:
    """One input changed: the same logits where it means the same, else a sentence."""
    model, inputs = bundled(name)[0], good_inputs(name)
    key = data.draw(st.sampled_from([key for key in odd_inputs.CHANGES if key in inputs]))
    how, change, same = data.draw(st.sampled_from(odd_inputs.CHANGES[key]))
    with answered(Case(f"{key} {how}", "", None if same else REFUSED)), torch.no_grad():
        output = model(**inputs | {key: change(inputs[key])})
        torch.testing.assert_close(output.logits, good_outputs(name).logits, atol=1e-4, rtol=1e-4)
        assert output.loss.isfinite()


def through_post_processing(name: str, data) -> None:
    """Odd sizes, thresholds and logits: masks of that size and cut there, or a sentence; NaN where nothing is known."""
    processor, outputs = bundled(name)[1], good_outputs(name)
    sizes, threshold = [data.draw(odd_inputs.SIZES), data.draw(odd_inputs.SIZES)], data.draw(odd_inputs.THRESHOLDS)
    spoiled = data.draw(st.sampled_from([None, None, float("nan"), float("inf"), -float("inf")]))
    logits = outputs.logits.clone()
    if spoiled is not None:
        logits[1, ::2] = spoiled
    changed = type(outputs)(**{**outputs, "logits": logits})
    with answered(*sizes, threshold):
        targets = [size.value for size in sizes]
        results = processor.post_process_referring_segmentation(changed, targets, threshold=threshold.value)
        cut = processor.threshold if threshold.value is None else threshold.value
        for size, result in zip(sizes, results, strict=True):
            assert tuple(result["mask"].shape) == size.truth == tuple(result["probability"].shape)
            known = ~result["probability"].isnan()
            assert torch.equal(result["mask"][known], result["probability"][known] > cut)
            assert not result["mask"][~known].any()
        assert 0 <= results[0]["score"] <= 1
        assert np.isnan(results[1]["score"]) if spoiled is not None else 0 <= results[1]["score"] <= 1


def through_the_pipeline(name: str, data) -> None:
    """Picture and text to masks of the picture's size."""
    model, processor = bundled(name)
    pipe = pipeline("referring-image-segmentation", model=model, processor=processor)
    image, text = data.draw(odd_inputs.images()), data.draw(odd_inputs.texts())
    parameters, threshold = data.draw(odd_inputs.PARAMETERS), data.draw(odd_inputs.THRESHOLDS)
    if isinstance(text.value, (list, tuple)) and text.value and isinstance(text.value[0], list):
        text = Case("nested", text.value, REFUSED)  # of a list of images
    with answered(image, text, parameters, threshold):
        answers = pipe(image.value, text.value, threshold=threshold.value, **parameters.value)
        assert isinstance(text.truth, str) or len(answers) == len(text.truth)
        for answer in answers:
            assert answer["mask"].size == image.truth.size == answer["heatmap"].size
            assert answer["mask"].mode == "L" and 0 <= answer["score"] <= 1


WAYS: list[Callable] = [through_the_processor, through_forward, through_post_processing, through_the_pipeline]


def try_odd_inputs(name: str, count: int) -> None:
    @settings(
        max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(way=st.sampled_from(WAYS), data=st.data())
    def each_is_answered(way, data):
        way(name, data)

    each_is_answered()


@pytest.mark.parametrize("name", BUNDLED)
def test_some_odd_inputs(name):
    try_odd_inputs(name, 12)


@pytest.mark.slow
@pytest.mark.parametrize("name", BUNDLED)
@pytest.mark.timeout(1800)
def test_many_odd_inputs(name):
    try_odd_inputs(name, 250)
