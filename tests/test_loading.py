"""Loading a checkpoint that holds only a part, and loading onto devices that do not hold everything."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_models import pictures
from transformers import AutoModel

import hf_ris


ARCHITECTURES = sorted(hf_ris.ARCHITECTURES)


@pytest.fixture(params=ARCHITECTURES)
def saved(request, tiny_trio, tmp_path):
    """(model in eval mode, its inputs, the folder that it was saved in); buffers hold what no new model has."""
    model, processor = tiny_trio(request.param, fresh=True)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    model.save_pretrained(tmp_path)
    return model, processor(pictures(1), ["the red cup", "star"]), tmp_path


def keep(folder, wanted):
    """Leave only the wanted names in a saved checkpoint; returns what is left."""
    path = folder / "model.safetensors"
    left = {name: tensor for name, tensor in load_file(path).items() if wanted(name)}
    save_file(left, path, metadata={"format": "pt"})
    return left


@pytest.mark.parametrize("half", [0, 1])
def test_what_a_checkpoint_lacks_is_as_in_a_new_model_and_nothing_else_changes(saved, half):
    model, _, folder = saved
    names = sorted(model.state_dict())
    left = keep(folder, set(names[half::2]).__contains__)
    loaded, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert set(info["missing_keys"]) == set(names) - left.keys()
    state, new, other = loaded.state_dict(), *(type(model)(model.config).state_dict() for _ in range(2))
    for name in names:
        if name in left:
            assert torch.equal(state[name], left[name]), name
        elif torch.equal(new[name], other[name]):  # zeros, ones
            assert torch.equal(state[name], new[name]), name
        elif new[name].numel() >= 100:  # drawn from the same distribution
            assert 0.7 < state[name].float().std() / new[name].float().std() < 1.4, name
    for (name, buffer), (_, before) in zip(loaded.named_buffers(), model.named_buffers()):
        if name not in names:
            assert torch.equal(buffer, before), name


@pytest.mark.parametrize("place", ["disk", "auto", "auto with buffers"])
def test_disk_offloading_changes_no_logit(saved, place, tmp_path):
    model, inputs, folder = saved
    options = {"device_map": {"": "disk"}}
    if place != "disk":
        size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
        options = {"device_map": "auto", "max_memory": {"cpu": size // 2}, "offload_buffers": "buffers" in place}
    offloaded = AutoModel.from_pretrained(folder, offload_folder=tmp_path / "offload", **options)
    assert any(parameter.is_meta for parameter in offloaded.parameters())
    with torch.no_grad():
        torch.testing.assert_close(offloaded(**inputs).logits, model(**inputs).logits, atol=1e-6, rtol=1e-6)


def test_what_is_drawn_anew_cannot_lie_on_the_disk(saved):
    model, _, folder = saved
    name = next(name for name, _ in model.named_parameters() if name.endswith("bias"))
    keep(folder, lambda other: other != name)
    with pytest.raises(ValueError, match=f"lacks 1 tensors that device_map puts on the disk, the first {name}"):
        AutoModel.from_pretrained(folder, device_map={"": "disk"}, offload_folder=folder / "offload")
