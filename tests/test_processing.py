"""Geometry there and back, masks as labels, and what the processor says to bad input."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_ris.models.modeling_ris import RisOutput
from hf_ris.models.processing_ris import RisImageProcessor, RisProcessor, to_rgb
from hf_ris.models.text_encoders import word_tokenizer


SIZES = [(48, 64), (97, 51), (200, 33), (64, 64)]


def make_processor(geometry: str, image_size: int = 96, **kwargs) -> RisProcessor:
    image_processor = RisImageProcessor(geometry=geometry, image_size=image_size, **kwargs)
    return RisProcessor(image_processor, word_tokenizer(["red", "dog", "left"]), max_text_length=4, threshold=0.5)


def disc(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return ((y - 0.4 * height) / (0.3 * height)) ** 2 + ((x - 0.6 * width) / (0.25 * width)) ** 2 < 1


@pytest.mark.parametrize("geometry", ["squash", "letterbox", "short_side"])
def test_masks_survive_the_way_there_and_back(geometry):
    processor = make_processor(geometry)
    masks = [disc(*size) for size in SIZES]
    images = [Image.fromarray(np.repeat(mask[..., None] * np.uint8(255), 3, axis=2)) for mask in masks]
    inputs = processor(images, ["red dog"] * 4, masks)
    outputs = RisOutput(logits=(inputs["labels"] - 0.5) * 20)
    results = processor.post_process_referring_segmentation(outputs, SIZES)
    for mask, result in zip(masks, results):
        found = result["mask"].numpy()
        assert found.shape == mask.shape
        assert (found & mask).sum() / (found | mask).sum() > 0.93
        assert 0.9 < result["score"] <= 1


@pytest.mark.parametrize("geometry", ["squash", "letterbox", "short_side"])
@pytest.mark.parametrize("stride", [1, 4])
def test_inverse_is_exact_on_linear_maps(geometry, stride):
    """A ramp in original coordinates, written down at the model's resolution, comes back as the same ramp."""
    processor = make_processor(geometry).image_processor
    canvas = processor.canvas_size(SIZES)
    for height, width in SIZES:
        scale_y, offset_y, scale_x, offset_x = processor.affine(height, width)
        cells = [(torch.arange(side // stride) + 0.5) * stride - 0.5 for side in canvas]
        ramp_y, ramp_x = (cells[0] - offset_y) / scale_y, (cells[1] - offset_x) / scale_x
        maps = torch.stack(torch.broadcast_tensors(ramp_y[:, None], ramp_x[None]))
        back = processor.unmap(maps, (height, width), canvas)
        inside_y = (torch.arange(height) * scale_y + offset_y > stride) & (
            torch.arange(height) * scale_y + offset_y < canvas[0] - 1 - stride
        )
        assert inside_y.sum() > height / 2
        torch.testing.assert_close(
            back[0][inside_y], torch.arange(height)[inside_y, None].float().expand(-1, width), atol=2e-3, rtol=0
        )


def test_letterbox_centres_and_fills():
    processor = make_processor("letterbox", fill=[0.0, 0.0, 0.0], image_mean=[0, 0, 0], image_std=[1, 1, 1])
    pixels = processor(Image.new("RGB", (96, 48), "white"), "dog")["pixel_values"][0]
    assert pixels[:, 26:70].min() == 1 and pixels[:, :23].max() == 0 and pixels[:, 73:].max() == 0


def test_short_side_pads_and_masks():
    inputs = make_processor("short_side", 64)([Image.new("RGB", (100, 80)), Image.new("RGB", (40, 90))], ["dog", "dog"])
    assert inputs["pixel_values"].shape == (2, 3, 160, 96)  # contents 64x80 and 144x64, padded to multiples of 32
    assert inputs["pixel_mask"].sum((1, 2)).tolist() == [64 * 80, 144 * 64]


def test_short_side_max_size():
    processor = RisImageProcessor(geometry="short_side", image_size=64, max_size=128)
    assert processor.content_size(10, 1000) == (1, 128)


def test_several_expressions_per_image():
    processor = make_processor("squash")
    image = Image.new("RGB", (30, 20))
    assert processor(image, ["dog", "red dog"])["image_index"].tolist() == [0, 0]
    assert processor([image, image], ["dog", "red dog"])["image_index"].tolist() == [0, 1]
    inputs = processor([image, image], [["dog"], ["red dog", "left"]])
    assert inputs["image_index"].tolist() == [0, 1, 1]
    assert inputs["input_ids"].tolist() == [[3, 0], [2, 3], [4, 0]]
    assert inputs["attention_mask"].tolist() == [[1, 0], [1, 1], [1, 0]]
    assert processor(image, "red dog left red dog")["input_ids"].shape == (1, 4)


@pytest.mark.parametrize(
    "images, text, message",
    [
        (1, "", "Expression 0 is empty"),
        (1, ["dog", "  "], "Expression 1 is empty"),
        (2, ["dog"], "2 images and expressions for 1"),
        (1, [[]], "No expressions"),
    ],
)
def test_bad_text_is_named(images, text, message):
    with pytest.raises(ValueError, match=message):
        make_processor("squash")([Image.new("RGB", (8, 8))] * images, text)


def test_invisible_characters_are_an_unknown_word():
    inputs = make_processor("squash")(Image.new("RGB", (8, 8)), "\u200b\u00ad")
    assert inputs["attention_mask"].sum() >= 1


def test_bad_masks_and_thresholds_are_named():
    processor = make_processor("squash")
    image = Image.new("RGB", (30, 20))
    with pytest.raises(ValueError, match="mask of image 0 has shape"):
        processor(image, "dog", np.ones((30, 20), bool))
    with pytest.raises(ValueError, match="2 expressions and 1 masks"):
        processor(image, ["dog", "red dog"], [np.ones((20, 30), bool)])
    outputs = RisOutput(logits=torch.zeros(1, 4, 4))
    with pytest.raises(ValueError, match="threshold is a probability"):
        processor.post_process_referring_segmentation(outputs, [(20, 30)], threshold=1.5)
    with pytest.raises(ValueError, match="one per expression"):
        processor.post_process_referring_segmentation(outputs, [(20, 30)] * 2)
    with pytest.raises(ValueError, match="geometry must be one of"):
        RisImageProcessor(geometry="crop")


def test_to_rgb_of_every_mode():
    deep = Image.fromarray(np.array([[0, 65535], [257 * 128, 257]], dtype=np.uint16))
    assert np.asarray(to_rgb(deep))[..., 0].tolist() == [[0, 255], [128, 1]]
    clear = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    assert np.asarray(to_rgb(clear)).min() == 255
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "F"):
        assert to_rgb(Image.new(mode, (3, 2))).mode == "RGB"


def test_exif_orientation_is_applied():
    image = Image.new("RGB", (40, 20))
    exif = image.getexif()
    exif[0x0112] = 6  # a phone held upright
    image.info["exif"] = exif.tobytes()
    assert to_rgb(image).size == (20, 40)
