"""What every model's forward says to inputs that it could only answer wrongly, and that it costs next to nothing."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode

import hf_ris
from hf_ris.models.input_checks import can_be_looked_at


ARCHITECTURES = sorted(hf_ris.ARCHITECTURES)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def case(request, tiny_trio):
    """(model, inputs of two images with one and two expressions, with labels and object_index)."""
    model, processor = tiny_trio(request.param)
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(0, 255, (80, 112, 3), dtype=np.uint8)) for _ in range(2)]
    masks = [np.arange(80)[:, None] + np.arange(112) < 90] * 3
    texts = [["the red cup"], ["star", "the small blue car on the left"]]
    inputs = dict(processor(images, texts, [masks[:1], masks[1:]]))
    return model, inputs | {"object_index": torch.tensor([0, 1, 1])}


def wrong(inputs: dict) -> dict[str, tuple[dict, str]]:
    """Changed inputs by name, and what is said to them."""
    ids, mask, labels, pixels = (inputs[name] for name in ("input_ids", "attention_mask", "labels", "pixel_values"))
    left, hole, none = mask.flip(1), mask.clone(), mask.clone()
    hole[2, 1] = 0
    none[1] = 0
    high, low = ids.clone(), ids.clone()
    high[0, 0], low[0, 0] = 10**6, -1
    one = torch.tensor([0, 1, 2])
    nan = labels.clone()
    nan[0, 3, 3] = float("nan")
    return {
        "labels 0/255": ({"labels": labels * 255}, r"labels must be finite and in \[0, 1\]"),
        "labels negative": ({"labels": labels - 0.5}, "labels must be finite and in"),
        "labels NaN": ({"labels": nan}, "labels must be finite and in"),
        "labels infinite": ({"labels": labels / 0}, "labels must be finite and in"),
        "labels of label maps": ({"labels": (labels * 7).long()}, "labels must be finite and in"),
        "labels of two rows": ({"labels": labels[:2]}, r"labels must be \(3, height, width\)"),
        "labels with channels": ({"labels": labels[:, None]}, r"labels must be \(3, height, width\)"),
        "labels of the image": ({"labels": torch.zeros(3, 40, 128)}, "do not lie over inputs of"),
        "labels of nothing": ({"labels": torch.zeros(3, 0, 0)}, "labels must be"),
        "mask with padding first": ({"attention_mask": left}, "attention_mask must be 1 for an expression's tokens"),
        "mask with a hole": ({"attention_mask": hole}, "attention_mask must be 1 for"),
        "mask of zeros": ({"attention_mask": none}, "attention_mask must be 1 for"),
        "mask of twos": ({"attention_mask": mask * 2}, "attention_mask must be 1 for"),
        "mask of halves": ({"attention_mask": mask * 0.5}, "attention_mask must be 1 for"),
        "mask to add": ({"attention_mask": (1.0 - mask) * -10000}, "attention_mask must be 1 for"),
        "mask of NaN": ({"attention_mask": mask * float("nan")}, "attention_mask must be 1 for"),
        "mask of other rows": ({"attention_mask": mask[:1]}, "attention_mask must be a tensor of shape"),
        "mask of other words": ({"attention_mask": mask[:, :-1]}, "attention_mask must be a tensor of shape"),
        "no mask": ({"attention_mask": None}, "attention_mask must be a tensor of shape"),
        "ids beyond the vocabulary": ({"input_ids": high}, r"input_ids must lie in \[0, "),
        "ids below 0": ({"input_ids": low}, r"input_ids must lie in \[0, "),
        "ids as floats": ({"input_ids": ids.float()}, "input_ids must be whole numbers"),
        "ids of one row": ({"input_ids": ids[0]}, "input_ids must be whole numbers of shape"),
        "no ids": ({"input_ids": ids[:0], "attention_mask": mask[:0]}, "input_ids must be whole numbers"),
        "image_index beyond": ({"image_index": one}, r"image_index must lie in \[0, 2\)"),
        "image_index below 0": ({"image_index": one - 1}, "image_index must lie in"),
        "image_index of other length": ({"image_index": one[:2]}, "image_index must be a tensor of shape"),
        "image_index as floats": ({"image_index": one / 2}, "image_index must be whole numbers"),
        "image_index None": ({"image_index": None}, "2 images and 3 expressions: pass image_index"),
        "object_index of other length": ({"object_index": one[:2]}, "object_index must be a tensor of shape"),
        "object_index as floats": ({"object_index": one / 2}, "object_index must be whole numbers"),
        "bytes as pixels": ({"pixel_values": pixels.to(torch.uint8)}, "pixel_values must be floats of shape"),
        "one image": ({"pixel_values": pixels[0]}, "pixel_values must be floats of shape"),
        "colours last": ({"pixel_values": pixels.permute(0, 2, 3, 1)}, "pixel_values must be floats of shape"),
        "doubles": ({"pixel_values": pixels.double()}, "pixel_values are torch.float64 and the model is torch.float32"),
        "halves": ({"pixel_values": pixels.half()}, "pixel_values are torch.float16 and the model is torch.float32"),
        "pixel_mask of another size": ({"pixel_mask": torch.ones(2, 7, 7)}, "pixel_mask"),
    }


def test_what_cannot_be_answered_rightly_is_refused(case):
    model, inputs = case
    for name, (changed, sentence) in wrong(inputs).items():
        with pytest.raises(ValueError, match=sentence) as raised:
            model(**inputs | changed)
        assert "\n" not in str(raised.value), name


def test_other_types_of_the_same_inputs_give_the_same(case):
    model, inputs = case
    torch.manual_seed(0)
    with torch.no_grad():
        expected = model(**inputs)
    for name in ("attention_mask", "pixel_mask", "prompt_mask", "labels"):
        for dtype in (torch.bool, torch.float32):
            if name not in inputs or (name == "labels" and ((inputs[name] > 0) & (inputs[name] < 1)).any()):
                continue
            torch.manual_seed(0)
            with torch.no_grad():
                output = model(**inputs | {name: inputs[name].to(dtype)})
            assert torch.equal(output.logits, expected.logits) and torch.equal(output.loss, expected.loss), (
                name,
                dtype,
            )
    with torch.no_grad():
        other = model(**inputs | {"image_index": inputs["image_index"].int(), "labels": inputs["labels"].half()})
    assert torch.equal(other.logits, expected.logits)


def test_labels_of_other_sizes_cover_the_input(case):
    model, inputs = case
    height, width = inputs["pixel_values"].shape[-2:]
    with torch.no_grad():
        for size in ((height // 4, width // 4), (2 * height, 2 * width), (height // 3, -(-width // 3))):
            assert model(**inputs | {"labels": torch.ones(3, *size)}).loss.isfinite()


def test_vatex_has_inputs_of_its_own(tiny_trio):
    model, processor = tiny_trio("vatex")
    image = Image.new("RGB", (112, 80))
    inputs = dict(processor([image, image], [["the red cup"], ["star", "a car"]]))
    ids, mask, clip, pixels = (
        inputs[name] for name in ("prompt_ids", "prompt_mask", "clip_pixel_values", "pixel_mask")
    )
    hole, corner = mask.clone(), pixels.clone()
    hole[0, 0, 0], corner[0, :3, :3] = 0, 0
    for changed, sentence in (
        ({"clip_pixel_values": clip.repeat(2, 1, 1, 1)}, "clip_pixel_values must be a tensor of shape"),
        ({"clip_pixel_values": clip[..., :-16]}, "clip_pixel_values must be a tensor of shape"),
        ({"prompt_ids": ids[:1], "prompt_mask": mask[:1]}, "prompt_ids must be a tensor of shape"),
        ({"prompt_ids": ids[:, 0], "prompt_mask": mask[:, 0]}, "prompt_ids must be a tensor of shape"),
        ({"prompt_mask": mask[:1]}, "prompt_mask must be a tensor of shape"),
        ({"prompt_mask": hole}, "prompt_mask must be 1 for an expression's tokens"),
        ({"prompt_ids": ids + 10**6}, "prompt_ids must lie in"),
        ({"pixel_mask": pixels[:1]}, "pixel_mask must be a tensor of shape"),
        ({"pixel_mask": pixels[..., :-1]}, "pixel_mask must be a tensor of shape"),
        ({"pixel_mask": corner}, "pixel_mask must be 1 on a rectangle from the upper left corner"),
        ({"pixel_mask": 0 * pixels}, "pixel_mask must be 1 on a rectangle"),
        ({"pixel_mask": pixels * 255}, "pixel_mask must be 1 on a rectangle"),
        ({"pixel_mask": pixels.flip(2)}, "pixel_mask must be 1 on a rectangle"),
    ):
        with pytest.raises(ValueError, match=sentence):
            model(**inputs | changed)


def test_more_words_than_positions_are_refused(tiny_trio):
    for name in ("lavt", "cris"):
        model, processor = tiny_trio(name)
        inputs = dict(processor(Image.new("RGB", (8, 8)), "star"))
        ids = torch.full((1, 600), 6)
        with pytest.raises(ValueError, match=r"positions, but the expressions have 600"):
            model(**inputs | {"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def test_values_are_left_alone_where_they_cannot_be_read():
    assert can_be_looked_at(torch.zeros(1)) and not can_be_looked_at(torch.zeros(1, device="meta"))
    with FakeTensorMode():
        assert not can_be_looked_at(torch.zeros(1))
    seen = []
    torch.compile(lambda x: seen.append(can_be_looked_at(x)) or x + 1, backend="eager")(torch.zeros(1))
    torch.jit.trace(lambda x: seen.append(can_be_looked_at(x)) or x + 1, torch.zeros(1), check_trace=False)
    assert seen == [False, False]
    model = torch.nn.Identity()
    model.forward = lambda x: seen.append(can_be_looked_at(x)) or x + 1
    torch.export.export(model, (torch.zeros(1),))
    assert not any(seen)


def test_one_look_at_the_values_is_enough(case, monkeypatch):
    """A step on a GPU waits for it: once."""
    model, inputs = case
    looks = []
    monkeypatch.setattr("hf_ris.models.modeling_ris.check_values", lambda conditions: looks.append(len(conditions)))
    pixel_values = inputs["pixel_values"]
    model.check_inputs(
        pixel_values,
        *(inputs.get(name) for name in "input_ids attention_mask image_index pixel_mask object_index labels".split()),
    )
    assert len(looks) == 1 and looks[0] >= 4
