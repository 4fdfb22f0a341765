"""`optimize_for_inference`: what it changes, and what it leaves as it is."""

import pytest
import torch
from PIL import Image
from torch import nn
from transformers import AutoModelForImageSegmentation, pipeline

import hf_ris
from hf_ris.benchmark import random_inputs
from hf_ris.models.inference_ris import recommended_dtype
from hf_ris.models.pipeline_ris import TASK


def with_statistics(model: nn.Module) -> nn.Module:
    """Batch norms that do something."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return model


@pytest.mark.parametrize("name", sorted(hf_ris.ARCHITECTURES))
def test_answers_stay_what_they_are(name, tiny_trio):
    model = with_statistics(tiny_trio(name, fresh=True)[0])
    inputs = random_inputs(model.config, 3, torch.device("cpu"), words=4, images=2)
    with torch.inference_mode():
        expected = model(**inputs).logits
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    done = hf_ris.optimize_for_inference(model, torch.float32)
    left = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert done.batch_norms == norms - left and left <= 6  # those that follow no convolution
    logits = model(**inputs).logits
    assert not logits.requires_grad
    torch.testing.assert_close(logits, expected, atol=1e-5 * max(1, expected.abs().max().item()), rtol=0)
    assert hf_ris.optimize_for_inference(model) is done
    with pytest.raises(ValueError, match="changed to give answers only .* Load it anew"):
        model.save_pretrained("nowhere")


@pytest.mark.parametrize("name", ["lts", "lavt", "vatex"])
def test_products_in_half_precision(name, tiny_trio):
    model = tiny_trio(name, fresh=True)[0]
    inputs = random_inputs(model.config, 2, torch.device("cpu"), words=4)
    with torch.inference_mode():
        expected = model(**inputs).logits.sigmoid()
    assert "bfloat16" in str(hf_ris.optimize_for_inference(model, torch.bfloat16))
    logits = model(**inputs).logits
    assert logits.dtype == model.dtype == torch.float32
    gap = (logits.sigmoid() - expected).abs().mean()
    assert 0 < gap < 0.03


def test_the_dtype_follows_the_machine(monkeypatch):
    cpu = torch.device("cpu")
    for unit in ("avx512_bf16", "amx_bf16"):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda unit=unit: {unit: True})
        assert recommended_dtype(cpu) == torch.bfloat16
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "amx_bf16": False})
    assert recommended_dtype(cpu) == torch.float32


def test_pipelines_run_what_they_load_in_the_recommended_way(tiny_trio, tmp_path):
    model, processor = tiny_trio("cris")
    before = pipeline(TASK, model=model, processor=processor)
    before.save_pretrained(tmp_path)
    image, text = Image.effect_noise((96, 64), 90).convert("RGB"), ["a red star", "the circle"]
    saved = (tmp_path / "model.safetensors").read_bytes()
    fast = pipeline(TASK, model=str(tmp_path), trust_remote_code=True)
    plain = pipeline(TASK, model=str(tmp_path), trust_remote_code=True, dtype=torch.float32)
    assert fast.model.optimization.batch_norms > 0
    assert plain.model.optimization is None and before.model.optimization is None
    for one, other in zip(fast(image, text), plain(image, text), strict=True):
        assert abs(one["score"] - other["score"]) < 0.02
    assert (tmp_path / "model.safetensors").read_bytes() == saved


def test_what_cannot_be_optimized_is_refused(tiny_trio, tmp_path):
    model = tiny_trio("lts", fresh=True)[0]
    with pytest.raises(ValueError, match="dtype is 'auto'"):
        hf_ris.optimize_for_inference(model, "float8")
    model.save_pretrained(tmp_path)
    half = AutoModelForImageSegmentation.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert hf_ris.optimize_for_inference(half, torch.float32).dtype == torch.bfloat16 == half.dtype
    half.hf_device_map = {"": "cpu"}
    with pytest.raises(ValueError, match="device_map"):
        hf_ris.optimize_for_inference(half)
