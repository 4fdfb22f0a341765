"""pipeline("referring-image-segmentation"): what it takes, and that batches change nothing."""

import copy

import numpy as np
import pytest
import torch
from hub_server import HubServer
from PIL import Image
from torch.utils.data import Dataset
from transformers import pipeline

import hf_ris


TASK = "referring-image-segmentation"
ITEMS = [((96, 64), ["star"]), ((64, 96), ["the red cup", "second ball from the right"]), ((80, 80), ["green fish"])]


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size)


def items() -> list[dict]:
    return [{"image": picture(size, seed), "text": text} for seed, (size, text) in enumerate(ITEMS)]


@pytest.fixture(params=["lts", "vatex"])  # a fixed square, and images padded to one size
def pipe(request, tiny_trio):
    model, processor = tiny_trio(request.param)
    return pipeline(TASK, model=model, processor=processor)


@pytest.fixture
def lts(tiny_trio):
    return tiny_trio("lts")


def assert_same(one: list[dict], other: list[dict], atol: float = 1) -> None:
    assert [answer["text"] for answer in one] == [answer["text"] for answer in other]
    for a, b in zip(one, other):
        assert a["score"] == pytest.approx(b["score"], abs=1e-4) and a["mask"].size == b["mask"].size
        assert np.abs(np.asarray(a["heatmap"], float) - np.asarray(b["heatmap"], float)).max() <= atol


def test_batches_give_what_single_images_give(pipe, monkeypatch):
    single = [pipe(item["image"], item["text"]) for item in items()]
    assert [len(answers) for answers in single] == [1, 2, 1]
    assert all(answer["mask"].size == size for answers, (size, _) in zip(single, ITEMS) for answer in answers)
    seen, encode_image = [], pipe.model.encode_image
    monkeypatch.setattr(
        pipe.model, "encode_image", lambda *inputs: seen.append(len(inputs[0])) or encode_image(*inputs)
    )
    batched = pipe(items(), batch_size=2)
    assert seen == [2, 1]
    nested = pipe([item["image"] for item in items()], [item["text"] for item in items()], batch_size=3)
    assert seen == [2, 1, 3]
    for answers, in_batch, in_list in zip(single, batched, nested, strict=True):
        assert_same(answers, in_batch)
        assert_same(answers, in_list)


class Rows(Dataset):
    def __len__(self) -> int:
        return len(ITEMS)

    def __getitem__(self, index: int) -> dict:
        return items()[index]


def test_generators_and_data_sets_are_answered_as_they_are_read(lts):
    pipe = pipeline(TASK, model=lts[0], processor=lts[1], batch_size=2)
    read = []

    def generate():
        for item in items():
            read.append(item["text"])
            yield item

    answers = pipe(generate())
    first = next(answers)
    assert len(read) == 2  # one batch
    generated, expected = [first, *answers], [pipe(item) for item in items()]
    for one, other, wanted in zip(generated, pipe(Rows(), num_workers=1), expected, strict=True):
        assert_same(one, wanted)
        assert_same(other, wanted)


def test_images_are_files_addresses_arrays_and_pictures(lts, tmp_path):
    pipe = pipeline(TASK, model=lts[0], processor=lts[1])
    image = picture((96, 64))
    image.save(tmp_path / "photo.png")
    with HubServer() as hub:
        hub.add("user/photos", tmp_path)
        address = f"{hub.url}/user/photos/resolve/main/photo.png"
        images = [
            str(tmp_path / "photo.png"),
            tmp_path / "photo.png",
            address,
            np.asarray(image),
            image.convert("RGBA"),
        ]
        for given in images:
            assert_same(pipe(given, "star", timeout=10), pipe(image, "star"))
    turned = image.copy()
    turned.getexif()[0x0112] = 6  # stored lying: a quarter turn makes it upright
    turned.save(tmp_path / "turned.jpg", exif=turned.getexif())
    assert pipe(tmp_path / "turned.jpg", "star")[0]["mask"].size == (64, 96)
    assert pipe(Image.open(tmp_path / "turned.jpg"), "star")[0]["mask"].size == (64, 96)


def test_thresholds(lts):
    image = picture((96, 64))
    everything = pipeline(TASK, model=lts[0], processor=lts[1], threshold=0.0)
    assert np.asarray(everything(image, "star")[0]["mask"]).min() == 255
    assert np.asarray(everything(image, "star", threshold=1.0)[0]["mask"]).max() == 0
    own = pipeline(TASK, model=lts[0], processor=lts[1])(image, "star")[0]
    shown = np.asarray(own["heatmap"]) / 255
    assert ((np.asarray(own["mask"]) > 0) == (shown > lts[1].threshold))[np.abs(shown - lts[1].threshold) > 0.01].all()


@pytest.mark.parametrize(
    "name, dtype", [*((name, torch.bfloat16) for name in sorted(hf_ris.ARCHITECTURES)), ("vatex", torch.float16)]
)
def test_half_precision(name, dtype, tiny_trio):
    model, processor = tiny_trio(name)
    expected = pipeline(TASK, model=model, processor=processor)(items()[1])
    half = pipeline(TASK, model=copy.deepcopy(model).to(dtype), processor=processor)
    assert half.dtype == dtype
    for one, other in zip(half(items()[1]), expected):
        gap = np.abs(np.asarray(one["heatmap"], float) - np.asarray(other["heatmap"], float)).mean() / 255
        assert gap < 0.05, gap


def test_a_saved_pipeline_is_whole(lts, tmp_path):
    pipe = pipeline(TASK, model=lts[0], processor=lts[1])
    pipe.save_pretrained(tmp_path)
    loaded = pipeline(
        TASK, model=str(tmp_path), trust_remote_code=True, dtype=torch.bfloat16, device="cpu", batch_size=2
    )
    assert loaded.dtype == torch.bfloat16 and loaded.device.type == "cpu"
    assert type(loaded).__name__ == type(pipe).__name__
    full = pipeline(TASK, model=str(tmp_path), trust_remote_code=True, dtype=torch.float32)
    for one, other in zip(full(items()), pipe(items()), strict=True):
        assert_same(one, other)


def test_bad_input_is_named(lts):
    pipe = pipeline(TASK, model=lts[0], processor=lts[1])
    image = picture((96, 64))
    for wrong, sentence in (
        (lambda: pipe(image), "Pass the expressions too"),
        (lambda: pipe([image, image], ["star"]), "2 images take a list of 2 expressions"),
        (lambda: pipe([image, image], "star"), "2 images take a list of 2 expressions"),
        (lambda: pipe([image]), "takes items {'image': ..., 'text': ...}, got"),
        (lambda: pipe(image, []), "No expressions"),
        (lambda: pipe(image, ["star", " "]), "Expression 1 is empty"),
        (lambda: pipe(image, "star", threshold=2), "threshold is a probability"),
        (lambda: pipe(image, "star", threshold="high"), "threshold is a probability"),
        (lambda: pipe(image, "star", timeout=-1), "timeout is a number of seconds"),
        (lambda: pipe(image, "star", batch_size=0), "batch_size must be a whole number of at least 1"),
        (lambda: pipe([image], ["star"], num_workers=-1), "num_workers must be a whole number of at least 0"),
        (lambda: pipe([image], 3), "1 images take a list of 1 expressions"),
        (lambda: pipe(image, 3), "Expression 0 must be a text"),
        (lambda: pipe(np.asarray(image)), "Pass the expressions too"),
        (lambda: pipe("nowhere.png", "star"), r"The image \('nowhere.png'\): there is no such file"),
        (lambda: pipe(None, "star"), "The image must be a PIL image, a path"),
        (lambda: pipe([{"image": image, "txt": "star"}]), "got one with 'image', 'txt'"),
    ):
        with pytest.raises(ValueError, match=sentence):
            wrong()
    with pytest.raises(TypeError, match="takes no argument treshold; it takes threshold, timeout"):
        pipe(image, "star", treshold=0.3)
    with pytest.raises(TypeError, match="takes no argument max_length"):
        pipeline(TASK, model=lts[0], processor=lts[1], max_length=3)
    assert pipe([]) == []


@pytest.mark.filterwarnings("ignore:The logits of expression")
def test_answers_that_are_not_finite_are_refused(tiny_trio):
    model, processor = tiny_trio("lts", fresh=True)
    model.segmentation.mask.bias.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="The model's answer to 'star' is not finite"):
        pipeline(TASK, model=model, processor=processor)(picture((96, 64)), "star")


def test_arguments_of_the_model_do_not_disturb_the_processor(lts, tmp_path):
    pipeline(TASK, model=lts[0], processor=lts[1]).save_pretrained(tmp_path)
    pipe = pipeline(TASK, model=str(tmp_path), trust_remote_code=True, model_kwargs={"attn_implementation": "eager"})
    assert len(pipe(picture((96, 64)), "star")) == 1
