"""The contract of every video architecture in the registry: what `test_models.py` is for those of images."""

import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from huggingface_hub import ModelCard
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoModelForImageSegmentation, AutoProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_SEGMENTATION_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

import hf_ris
from hf_ris.models.configuration_ris import RisConfig


ARCHITECTURES = sorted(hf_ris.VIDEO_ARCHITECTURES)
SENTENCES = ["the red cup", "star that moves to the left", "the small blue car"]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def tiny(request, tiny_trio):
    return tiny_trio(request.param)


def clip(count: int, seed: int = 0) -> list[Image.Image]:
    random = np.random.default_rng(seed)
    return [
        Image.fromarray(random.integers(0, 255, (10, 14, 3), dtype=np.uint8)).resize((56, 40)) for _ in range(count)
    ]


def moving_squares(count: int, frames: int) -> list[np.ndarray]:
    masks = np.zeros((count, frames, 40, 56), bool)
    for index in range(count):
        for frame in range(frames):
            masks[index, frame, 5 + 8 * index : 22 + 8 * index, 12 * index + 3 * frame :][:, :25] = True
    return list(masks)


def answers(outputs) -> dict[str, torch.Tensor]:
    return {name: outputs[name] for name in ("logits", "query_logits", "query_scores", "heatmap")}


def assert_same(first, second, atol=1e-5):
    for name, value in answers(first).items():
        torch.testing.assert_close(answers(second)[name], value, atol=atol, rtol=1e-4)


def test_save_and_load_through_the_auto_classes(tiny, tmp_path):
    model, processor = tiny
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert "referring-video-segmentation" in card.data.tags and "answers.mp4" in card.text
    inputs = processor(clip(3), SENTENCES)
    with torch.no_grad():
        expected = model(**inputs)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert type(again) is type(processor) and again.prior_frames == processor.prior_frames
    for name, value in again(clip(3), SENTENCES).items():
        torch.testing.assert_close(value, inputs[name])
    for auto in (AutoModel, AutoModelForImageSegmentation):
        loaded = auto.from_pretrained(tmp_path).eval()
        assert type(loaded) is type(model)
        with torch.no_grad():
            assert_same(expected, loaded(**inputs), atol=1e-6)


FRESH = """
import sys
sys.modules["hf_ris"] = None  # any import of the package fails
import numpy as np, torch
from PIL import Image
from transformers import AutoModel, AutoProcessor, pipeline
torch.set_num_threads(1)
folder = sys.argv[1]
frames = [Image.open(f"{folder}/{number}.png") for number in range(3)]
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
with torch.no_grad():
    logits = model(**processor(frames, ["the red cup", "star"])).logits
gap = (logits - torch.from_numpy(np.load(folder + "/logits.npy"))).abs().max()
assert gap < 1e-5, gap
pipe = pipeline("referring-video-segmentation", model=folder, trust_remote_code=True)
results = pipe(frames, ["the red cup", "star"])
assert len(results) == 2 and len(results[0]["masks"]) == 3
assert not [name for name in sys.modules if name.startswith("hf_ris.")]
"""


def test_fresh_process_without_the_package(tiny, tmp_path):
    model, processor = tiny
    folder = tmp_path / "saved"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    frames = clip(3)
    for number, frame in enumerate(frames):
        frame.save(folder / f"{number}.png")
    with torch.no_grad():
        np.save(folder / "logits.npy", model(**processor(frames, ["the red cup", "star"])).logits.numpy())
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(folder)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_overfits_one_batch(tiny_trio):
    for name in ARCHITECTURES:
        model, processor = tiny_trio(name, fresh=True)
        model.train()
        inputs = processor(clip(2), SENTENCES[:2], moving_squares(2, 2))
        optimizer = torch.optim.AdamW(model.parameters())
        first = None
        for step in range(60):
            optimizer.param_groups[0]["lr"] = 2e-3 * min(1.0, (60 - step) / 25)
            loss = model(**inputs).loss
            first = first if first is not None else loss.item()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            predicted = model(**inputs).logits > 0
        targets = torch.nn.functional.interpolate(inputs["labels"], size=predicted.shape[-2:]) > 0.5
        iou = (predicted & targets).sum((1, 2, 3)) / (predicted | targets).sum((1, 2, 3))
        assert loss.item() < first / 3 and iou.mean() > 0.7, (first, loss.item(), iou.tolist())


@pytest.mark.slow
def test_compiles(tiny):
    model, processor = tiny
    inputs = processor(clip(2), SENTENCES[:2])
    torch.compiler.reset()
    with torch.no_grad():
        assert_same(model(**inputs), torch.compile(model, backend="eager")(**inputs))


@pytest.mark.slow
def test_bfloat16_autocast(tiny):
    model, processor = tiny
    inputs = processor(clip(2), SENTENCES[:2])
    with torch.no_grad():
        reference = model(**inputs)
        with torch.autocast("cpu", torch.bfloat16):
            half = model(**inputs)
    assert (half.query_scores - reference.query_scores).abs().mean() < 0.05


def test_gradient_checkpointing_gives_the_same_gradients(tiny_trio):
    for name in ARCHITECTURES:
        model, processor = tiny_trio(name, fresh=True)
        inputs = processor(clip(2), SENTENCES[:2], moving_squares(2, 2))
        model.train()
        norms = []
        for enable in (False, True):
            if enable:
                model.activation_checkpointing_enable()
            model.zero_grad()
            torch.manual_seed(0)
            model(**inputs).loss.backward()
            norms.append({n: p.grad.norm() for n, p in model.named_parameters() if p.grad is not None})
        assert norms[0].keys() == norms[1].keys()
        for key, value in norms[0].items():
            assert torch.allclose(norms[1][key], value, atol=1e-5, rtol=1e-3), f"{name} {key}"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_configuration_is_strict_and_every_field_is_read(name):
    config = AutoConfig.for_model(name)
    with pytest.raises(ValueError, match="no field learning_rate"):
        type(config)(learning_rate=1)
    kinds = MODEL_FOR_IMAGE_SEGMENTATION_MAPPING[type(config)].__mro__ + PROCESSOR_MAPPING[type(config)].__mro__
    files = {kind.__module__ for kind in (*kinds, type(config)) if kind.__module__.startswith("hf_ris.")}
    files |= {"hf_ris.models.pipeline_video_ris"}
    sources = "".join(Path(sys.modules[file].__file__).read_text() for file in files)
    own = {field.name for field in fields(config)} - {field.name for field in fields(RisConfig.__bases__[0])}
    unread = [field for field in own if not re.search(rf"(config|self)\.{field}\b", sources)]
    assert not unread, f"config fields that nothing reads: {unread}"
    assert json.loads(config.to_json_string())["model_type"] == name


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_card(name):
    card = ModelCard.load(ROOT / "model_cards" / f"{name}.md")
    assert card.data.tags == ["referring-video-segmentation", name] and card.data.license == "apache-2.0"
    headings = re.findall(r"^## (.+)", card.text, re.MULTILINE)
    assert {"Use", "Deviations", "Limits"} <= set(headings) and card.text.count("REPO_ID") == 3
    for block in re.findall(r"```python\n(.*?)```", card.text, re.DOTALL):
        compile(block, name, "exec")
