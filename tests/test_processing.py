"""Geometry there and back, masks as labels, and what the processor says to bad input."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from hf_ris.benchmark import LiveTensors
from hf_ris.models.clip_tokenizer import clip_tokenizer
from hf_ris.models.images_ris import to_rgb
from hf_ris.models.modeling_ris import RisOutput
from hf_ris.models.processing_ris import RisImageProcessor, RisProcessor
from hf_ris.models.resampling import corner_taps, gather_rows, multiply_rows, taps
from hf_ris.models.text_encoders import word_tokenizer, wordpiece_tokenizer


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
        (1, ["dog", 7], "Expression 1 must be a text, got 7"),
        (1, None, "Expression 0 must be a text, got None"),
        (1, ["dog", "red \ud83d cup"], r"Expression 1 holds half a character \(a lone surrogate\) at place 4"),
        (2, ["dog"], "2 images and expressions for 1"),
        (1, [[]], "No expressions"),
    ],
)
def test_bad_text_is_named(images, text, message):
    with pytest.raises(ValueError, match=message):
        make_processor("squash")([Image.new("RGB", (8, 8))] * images, text)


@pytest.mark.filterwarnings("ignore:.*not in the vocabulary")
def test_invisible_characters_are_an_unknown_word():
    inputs = make_processor("squash")(Image.new("RGB", (8, 8)), "\u200b\u00ad")
    assert inputs["attention_mask"].sum() >= 1


def test_unknown_words_are_counted_and_told_once():
    processor, image = make_processor("squash"), Image.new("RGB", (8, 8))
    found = processor.unknown_words(["red dog, red zebra!", "Zebra left of the dog"])
    assert (found.unknown, found.words, found.examples) == (4, 9, ("zebra", "of", "the")) and found.share == 4 / 9
    assert str(found) == "4 of 9 words (44.4%) are not in the vocabulary, such as 'zebra', 'of', 'the'"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        processor(image, "red dog, left!")
    with pytest.warns(UserWarning, match="1 of 2 words .* such as 'zebra'; the model reads each as"):
        processor(image, "red zebra")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        processor(image, "left zebra")
    pieces = RisProcessor(RisImageProcessor(image_size=8), wordpiece_tokenizer(["red"]))
    assert pieces.unknown_words(["red zebra", "red 犬"]).unknown == 1 and pieces.unknown_words([]).share == 0


def test_clip_knows_every_word():
    processor = RisProcessor(RisImageProcessor(image_size=8), clip_tokenizer())
    assert processor.unknown_words(["a zebra 犬"]).unknown == 0


@pytest.mark.parametrize("threshold", [1.5, -0.1, float("nan"), "0.5", True, None])
def test_thresholds_are_probabilities(threshold):
    processor, outputs = make_processor("squash"), RisOutput(logits=torch.zeros(1, 4, 4))
    with pytest.raises(ValueError, match="threshold is a probability"):
        RisProcessor(processor.image_processor, processor.tokenizer, threshold=threshold)
    if threshold is not None:
        with pytest.raises(ValueError, match="threshold is a probability"):
            processor.post_process_referring_segmentation(outputs, [(20, 30)], threshold=threshold)


@pytest.mark.parametrize(
    "sizes",
    [
        [(10.9, 9)],
        [(10, "9")],
        [(10,)],
        [(0, 5)],
        [(-3, 5)],
        [10],
        [None],
        [(10**9, 10**9)],
        [(True, 5)],
        "ab",
        None,
        [[5, 5, 3]],
    ],
)
def test_target_sizes_are_whole_pixels(sizes):
    with pytest.raises(ValueError, match="[Tt]arget.size"):
        make_processor("squash").post_process_referring_segmentation(RisOutput(logits=torch.zeros(1, 4, 4)), sizes)


def test_target_sizes_come_in_any_container():
    outputs = RisOutput(logits=torch.zeros(1, 4, 4))
    for sizes in ([(20, 30)], ([20, 30],), torch.tensor([[20, 30]]), np.array([[20, 30]]), [torch.tensor([20, 30])]):
        assert make_processor("squash").post_process_referring_segmentation(outputs, sizes)[0]["mask"].shape == (20, 30)


@pytest.mark.parametrize("enlarges", ["probabilities", "logits"])
@pytest.mark.parametrize("size", [(31, 40), (300, 401), (1200, 1601)])
def test_enlarged_maps_are_torchs_own(size, enlarges):
    """Small, middling and large images take three ways, which give what one interpolation gives."""
    processor, logits = make_processor("squash"), 4 * torch.randn(2, 36, 36)
    processor.enlarges = enlarges
    results = processor.post_process_referring_segmentation(RisOutput(logits=logits), [size] * 2)
    maps = logits.sigmoid() if enlarges == "probabilities" else logits
    # in double precision: torch's single-precision positions are off by up to 1e-5 of a value
    expected = F.interpolate(maps[:, None].double(), size=size, mode="bilinear", align_corners=False)[:, 0].float()
    expected = expected if enlarges == "probabilities" else expected.sigmoid()
    for result, probability in zip(results, expected):
        torch.testing.assert_close(result["probability"], probability, atol=1e-5, rtol=0)
        assert result["mask"].equal(result["probability"] > 0.5)
        assert abs(result["score"] - result["probability"][result["mask"]].mean().item()) < 1e-6


def test_masks_alone_take_no_float_map():
    processor, outputs = make_processor("squash"), RisOutput(logits=4 * torch.randn(1, 36, 36))
    size = (1500, 2000)
    (whole,) = processor.post_process_referring_segmentation(outputs, [size])
    with LiveTensors() as tensors:
        (alone,) = processor.post_process_referring_segmentation(outputs, [size], probabilities=False)
    assert tensors.peak < 2 * size[0] * size[1]  # of which the mask is one
    assert alone.keys() == {"mask", "score"}
    assert alone["mask"].equal(whole["mask"]) and alone["score"] == whole["score"]


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_taps_compose_and_reach_no_further_than_the_map(mode):
    maps = torch.randn(2, 9, 7)
    first, then = corner_taps(21, 9, mode), taps(torch.linspace(-3, 24, 50, dtype=torch.float64), 21, mode)
    twice = gather_rows(gather_rows(maps, first), then)
    torch.testing.assert_close(gather_rows(maps, then.after(first)), twice, atol=1e-5, rtol=0)
    torch.testing.assert_close(multiply_rows(maps, then.after(first)), twice, atol=1e-5, rtol=0)
    large = F.interpolate(maps[None], size=(21, 7), mode="bicubic", align_corners=True)[0]
    if mode == "bicubic":
        torch.testing.assert_close(gather_rows(maps, first), large, atol=1e-5, rtol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_answers_that_are_not_finite_are_told(value):
    processor = make_processor("squash")
    logits = torch.full((3, 8, 8), 4.0)
    logits[1, :2] = value
    with pytest.warns(UserWarning, match="logits of expression 1 are not finite"):
        results = processor.post_process_referring_segmentation(RisOutput(logits=logits), [(16, 16)] * 3)
    assert [np.isnan(result["score"]) for result in results] == [False, True, False]
    assert results[1]["probability"][:3].isnan().all() and not results[1]["mask"][:3].any()
    assert results[1]["mask"][6:].all() and results[0]["mask"].all()


@pytest.mark.parametrize("logits", [None, torch.zeros(4, 4), np.zeros((1, 4, 4)), torch.zeros(1, 2, 4, 4)])
def test_outputs_without_logits_are_refused(logits):
    with pytest.raises(ValueError, match="logits must be a tensor"):
        make_processor("squash").post_process_referring_segmentation(RisOutput(logits=logits), [(4, 4)])


@pytest.mark.parametrize("geometry", ["squash", "letterbox", "short_side", "center_crop"])
def test_masks_of_every_scale_are_the_same_labels(geometry):
    processor, mask = make_processor(geometry), disc(48, 64)
    image = Image.new("RGB", (64, 48))
    right = processor(image, "dog", mask)["labels"]
    assert right.max() == 1
    for other in (mask * 255, mask.astype(np.float32), Image.fromarray(mask), torch.from_numpy(mask)):
        assert (processor(image, "dog", other)["labels"] == right).all()
        assert (processor.image_processor.preprocess_mask(other, right.shape[1:]) == right).all()
    with pytest.raises(ValueError, match="Mask 1 of image 0 holds 0.5 where booleans"):
        processor(image, ["dog", "red dog"], [mask, mask * 0.5])


def test_arguments_that_nothing_reads_are_refused(tmp_path):
    processor, image = make_processor("squash"), Image.new("RGB", (8, 8))
    processor.save_pretrained(tmp_path)
    for wrong in ("mask", "padding", "max_lenght", "max_length", "truncation", "size", "images_kwargs"):
        with pytest.raises(TypeError, match=f"RisProcessor takes no argument {wrong}; it takes images, text, masks"):
            processor(image, "dog", **{wrong: 3})
        with pytest.raises(TypeError, match=f"RisImageProcessor takes no argument {wrong}"):
            processor.image_processor(image, **{wrong: 3})
        with pytest.raises(TypeError, match=f"takes no argument {wrong}; it takes geometry, image_size"):
            RisImageProcessor(**{wrong: 3})
        with pytest.raises(TypeError, match=f"from_pretrained takes no argument {wrong}; it takes image_processor"):
            RisProcessor.from_pretrained(tmp_path, **{wrong: 3})
        with pytest.raises(TypeError, match=f"from_pretrained takes no argument {wrong}; it takes geometry"):
            RisImageProcessor.from_pretrained(tmp_path, **{wrong: 3})
    with pytest.raises(TypeError, match="treshold"):
        RisProcessor(processor.image_processor, processor.tokenizer, treshold=0.3)
    with pytest.raises(ValueError, match="return_tensors is 'pt'"):
        processor(image, "dog", return_tensors="tf")
    assert isinstance(processor(image, "dog", return_tensors="np")["input_ids"], np.ndarray)


def test_kinds_of_tensors_are_checked_by_every_processor(tiny_trio):
    for name in ("vatex", "lts"):
        with pytest.raises(ValueError, match="return_tensors is 'pt'"):
            tiny_trio(name)[1](Image.new("RGB", (8, 8)), "star", return_tensors="tf")


def test_what_was_saved_can_be_overridden(tmp_path):
    make_processor("squash").save_pretrained(tmp_path)
    loaded = RisProcessor.from_pretrained(tmp_path, threshold=0.25, max_text_length=3, token=None)
    assert loaded.threshold == 0.25 and loaded.max_text_length == 3 and loaded.image_processor.image_size == 96
    assert "threshold" not in loaded.tokenizer.init_kwargs
    assert RisImageProcessor.from_pretrained(tmp_path, image_size=32).image_size == 32


@pytest.mark.parametrize(
    "argument",
    [
        {"image_size": 0},
        {"image_size": 1.5},
        {"image_size": "64"},
        {"max_size": -1},
        {"size_divisor": 0},
        {"image_mean": [0.5]},
        {"image_mean": 0.5},
        {"image_std": [0.5, 0, 0.5]},
        {"image_std": [0.5, float("nan"), 0.5]},
        {"fill": [1, 2]},
        {"geometry": ["squash"]},
    ],
    ids=str,
)
def test_an_image_processor_that_cannot_be_is_refused(argument):
    with pytest.raises(ValueError, match=next(iter(argument))):
        RisImageProcessor(**argument)


def test_a_processor_that_cannot_be_is_refused():
    images, tokenizer = RisImageProcessor(image_size=8), word_tokenizer(["dog"])
    with pytest.raises(TypeError, match="takes a tokenizer"):
        RisProcessor(images, None)
    with pytest.raises(ValueError, match="max_text_length must be a whole number of at least 1, got 0"):
        RisProcessor(images, tokenizer, max_text_length=0)
    tokenizer.padding_side = "left"
    with pytest.raises(ValueError, match="padding at the end"):
        RisProcessor(images, tokenizer)


def test_strips_do_not_take_all_memory():
    processor = make_processor("short_side", 64)
    with pytest.raises(ValueError, match="Images of 1 x 9000 .* cut strips into pieces"):
        processor(Image.new("RGB", (9000, 1)), "dog")
    assert processor(Image.new("RGB", (300, 3)), "dog")["pixel_values"].shape == (1, 3, 64, 6400)


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
