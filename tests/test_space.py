"""The Space without a browser: uploads, expressions, pictures, files to take away, and which models it opens."""

import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from test_baselines import save_clipseg
from transformers import AutoModelForImageSegmentation

from hf_ris import (
    LavtConfig,
    LavtForReferringSegmentation,
    LavtProcessor,
    LtsConfig,
    LtsForReferringSegmentation,
    LtsProcessor,
)
from hf_ris.baselines import BASELINES
from hf_ris.data.refscenes.scenes import VOCABULARY, RefScenes
from hf_ris.data.schema import expression_mask
from hf_ris.models.processing_ris import RisImageProcessor
from hf_ris.models.text_encoders import word_tokenizer, wordpiece_tokenizer


SPACE = Path(__file__).resolve().parent.parent / "space"
sys.path.insert(0, str(SPACE))

# some of them for test_space_deploy and test_space_video
import assemble  # noqa: E402, F401
import page  # noqa: E402
from comparison import answers, clips, comparing, entries, inference, opening, pictures, words  # noqa: E402, F401
from comparison import zoo as zoo_module  # noqa: E402
from comparison.pictures import Refusal  # noqa: E402
from tabs import examples, export, leaderboard, reading, service, video  # noqa: E402, F401


def save_tiny_models(folder: Path) -> None:
    """Random LTS and LAVT of a few thousand parameters, as `folder/lts` and `folder/lavt`."""
    torch.manual_seed(0)
    words, pieces = word_tokenizer(VOCABULARY), wordpiece_tokenizer(VOCABULARY)
    darknet = {"name": "darknet53", "arguments": {"depths": [1] * 5, "widths": [8, 8, 8, 16, 16], "stem_width": 8}}
    lts = LtsConfig(vision_config=darknet, image_size=64, vocab_size=len(words), embedding_dim=8, hidden_size=8,
                    fusion_dim=16, segmentation_dim=8, aspp_rates=[1, 2])  # fmt: skip
    swin = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 2}
    bert = {"vocab_size": len(pieces), "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
            "intermediate_size": 8, "max_position_embeddings": 20}  # fmt: skip
    lavt = LavtConfig(vision_config={"name": "swin_tiny_patch4_window7_224", "arguments": swin}, text_config=bert,
                      image_size=64, decoder_dim=8)  # fmt: skip
    LtsForReferringSegmentation(lts).save_pretrained(folder / "lts")
    LtsProcessor(RisImageProcessor("squash", 64), words).save_pretrained(folder / "lts")
    LavtForReferringSegmentation(lavt).save_pretrained(folder / "lavt")
    LavtProcessor.from_config(lavt, pieces).save_pretrained(folder / "lavt")
    (folder / "lts/results.json").write_text(json.dumps({"trained_on": "refscenes"}))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    save_tiny_models(folder)
    return folder


@pytest.fixture(scope="module")
def zoo(checkpoints):
    return zoo_module.Zoo(checkpoints, allow_folders=True)


@pytest.fixture(scope="module")
def comparer(zoo):
    return comparing.Comparer(zoo)


def ask(comparer, image, text, keys):
    """(picture, expressions, answers) of raw values, as events read them. Raises Refusal."""
    picture = reading.read_picture(image)
    expressions = pictures.split_expressions(text)
    return picture, expressions, comparer.answer_all(reading.read_models(comparer.zoo, keys), picture, expressions)[0]


def photograph(size=(64, 48), mode="RGB") -> Image.Image:
    return Image.linear_gradient("L").resize(size).convert(mode)


def save_uploads(folder: Path) -> dict[str, Path]:
    """One file of each kind that visitors send."""
    exif = Image.Exif()
    exif[0x0112] = 6  # held upright: turn by 90 degrees
    photograph((2000, 1500)).save(folder / "phone.jpg", exif=exif)
    rgba = photograph(mode="RGBA")
    rgba.putalpha(photograph(mode="L"))
    rgba.save(folder / "rgba.png")
    Image.fromarray(np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16)).save(folder / "16bit.png")
    photograph(mode="L").save(folder / "grey.png")
    photograph(mode="LA").save(folder / "grey_alpha.png")
    photograph(mode="1").save(folder / "bits.png")
    photograph(mode="P").save(folder / "palette.png", transparency=3)
    photograph(mode="CMYK").save(folder / "cmyk.jpg")
    photograph((1, 1)).save(folder / "one_pixel.png")
    photograph((12_000, 200)).save(folder / "wide.png")
    photograph((40, 3000)).save(folder / "tall.png")
    frames = [photograph(), photograph().rotate(90), photograph().rotate(180)]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:], duration=100)
    photograph().save(folder / "picture.webp")
    photograph().save(folder / "picture.tiff")
    whole = (folder / "phone.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "header_only.png").write_bytes((folder / "wide.png").read_bytes()[:60])
    (folder / "text.jpg").write_text("this is no picture\n" * 50)
    (folder / "empty.png").write_bytes(b"")
    (folder / "drawing.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>")
    (folder / "script.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    for name, side in (("bomb.png", 50_000), ("large.png", 9_000)):  # a few bytes that claim gigapixels
        header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        end = b"\0\0\0\0IEND\xae\x42\x60\x82"
        chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
        (folder / name).write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + end)
    return {path.name: path for path in folder.iterdir()}


ANSWERED = {  # upload -> (width, height) of the picture as displayed
    "phone.jpg": (1500, 2000), "rgba.png": (64, 48), "16bit.png": (64, 48), "grey.png": (64, 48),
    "grey_alpha.png": (64, 48), "bits.png": (64, 48), "palette.png": (64, 48), "cmyk.jpg": (64, 48),
    "one_pixel.png": (1, 1), "wide.png": (12_000, 200), "tall.png": (40, 3000), "animated.gif": (64, 48),
    "picture.webp": (64, 48), "picture.tiff": (64, 48),
}  # fmt: skip
REFUSED = {
    "truncated.jpg": "damaged or cut short", "header_only.png": "damaged or cut short", "text.jpg": "not a picture",
    "empty.png": "not a picture", "drawing.svg": "not a picture", "script.eps": "not a picture",
    "bomb.png": "more pixels than are safe", "large.png": "9,000 x 9,000 pixels; the limit is 64 megapixels",
}  # fmt: skip


@pytest.fixture(scope="module")
def uploads(tmp_path_factory):
    return save_uploads(tmp_path_factory.mktemp("uploads"))


def test_matrix_names_every_upload(uploads):
    assert set(ANSWERED) | set(REFUSED) == set(uploads)


@pytest.mark.parametrize("name", ANSWERED)
def test_upload_is_answered(comparer, uploads, name):
    image = {"path": str(uploads[name]), "orig_name": name}
    picture, expressions, models = ask(comparer, image, "the star", ["lts"])
    width, height = ANSWERED[name]
    assert (picture.width, picture.height) == (width, height)
    assert picture.image.mode == "RGB"
    assert picture.image.width * picture.image.height <= pictures.WORKING_PIXELS * 1.01
    (annotation,) = export.coco_annotations(picture, models, expressions, [0.0])["annotations"]
    assert annotation["segmentation"]["size"] == [height, width]
    assert annotation["area"] == width * height  # every probability lies above 0


@pytest.mark.parametrize("name", REFUSED)
def test_upload_is_refused_in_one_sentence(comparer, uploads, name):
    with pytest.raises(Refusal, match=REFUSED[name]) as refusal:
        ask(comparer, {"path": str(uploads[name]), "orig_name": name}, "the star", ["lts"])
    message = str(refusal.value)
    assert message.endswith(".") and "\n" not in message and len(message) < 160


def test_orientation_transparency_and_depth_are_kept(uploads):
    upright = pictures.open_picture(uploads["phone.jpg"]).image
    row = np.asarray(upright)[upright.height // 2, :, 0].astype(int)
    assert row[5] > 240 and row[-5] < 15  # the gradient ran downwards, and was turned clockwise
    deep = np.asarray(pictures.open_picture(uploads["16bit.png"]).image)[..., 0]
    assert deep.min() < 5 and deep.max() > 250 and len(np.unique(deep)) > 200
    clear = np.asarray(pictures.open_picture(uploads["rgba.png"]).image)
    assert clear[0, 0].min() > 250  # transparent black over white


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("  the  red\tcar \r\n\n left dog ", ["the red car", "left dog"]),
        ("🦊🎈", ["🦊🎈"]),
        ("الرجل الذي يرتدي الأحمر", ["الرجل الذي يرتدي الأحمر"]),
        ("word " * 5000, [("word " * 5000).strip()]),
    ],
    ids=["lines", "emoji", "right-to-left", "5000 words"],
)
def test_expressions_are_answered(comparer, uploads, text, found):
    _, expressions, models = ask(comparer, {"path": str(uploads["grey.png"])}, text, ["lts", "lavt"])
    assert expressions == found
    assert all(len(model.answers) == len(found) for model in models)


@pytest.mark.parametrize(
    ("image", "text", "keys", "sentence"),
    [
        (None, "star", ["lts"], "no picture yet"),
        ("grey.png", "", ["lts"], "no expression yet"),
        ("grey.png", None, ["lts"], "no expression yet"),
        ("grey.png", " \n\u3000\n", ["lts"], "no expression yet"),
        ("grey.png", "\u200b\u200d\ufeff\u2060", ["lts"], "no expression yet"),
        ("grey.png", 7, ["lts"], "Expressions are text"),
        ("grey.png", "star", 7, "Models are names"),
        ("grey.png", "star\n" * 9, ["lts"], "at most 8 expressions, one a line; these are 9"),
        ("grey.png", "x" * 70_000, ["lts"], "70,000 characters"),
        ("grey.png", "star", [], "No model is chosen"),
        ("grey.png", "star", None, "No model is chosen"),
        ("grey.png", "star", ["lts", "../secret"], "no model “../secret”"),
    ],
)
def test_incomplete_requests_are_refused(comparer, uploads, image, text, keys, sentence):
    with pytest.raises(Refusal, match=sentence):
        ask(comparer, image and {"path": str(uploads[image])}, text, keys)


def test_remarks_name_unknown_words_and_cut_expressions(zoo):
    processor = zoo.get(zoo.entries["lts"]).processor
    assert inference.remarks(processor, ["the red star", "blue car"]) == [[], []]
    (unknown,), (long,) = inference.remarks(processor, ["the zebra", "red " * 40 + "giraffe"])
    assert "zebra" in unknown and "giraffe" not in unknown  # nothing is said of words that are not read
    assert f"first {processor.max_text_length} tokens" in long


def test_maps_are_those_of_the_processor(zoo):
    """The Space shows what the model says: equal to model and processor called by hand, at the default threshold."""
    pixels = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    picture = pictures.Picture(Image.fromarray(pixels), 90, 60, "my photo.png")
    expressions = ["the red star", "<b>left</b> {{7*7}} ${1+1}"]
    found = {}
    for entry in zoo.choose(["lts", "lavt"]):
        loaded = zoo.get(entry)
        maps = found[entry.key] = inference.run_model(entry, loaded, picture, expressions, zoo.device)
        with torch.inference_mode():
            outputs = loaded.model(**loaded.processor(picture.image, [expressions]))
        wanted = loaded.processor.post_process_referring_segmentation(outputs, [(60, 90)] * 2)
        for values, answer, result in zip(maps.probabilities, answers.pack(maps), wanted):
            np.testing.assert_allclose(values / 255, result["probability"], atol=2.1e-3)
            np.testing.assert_array_equal(answers.from_png(answer.probability), values)
            mask, score = inference.cut(values, maps.threshold)
            assert (mask == result["mask"].numpy()).mean() > 0.99 and score == pytest.approx(result["score"], abs=3e-3)
        saved = AutoModelForImageSegmentation.from_pretrained(entry.folder)  # what runs has fewer, its norms folded
        assert maps.parameters == saved.num_parameters() and maps.seconds > 0
    assert found["lts"].localization.shape == (2, 60, 90) and found["lavt"].localization is None
    assert found["lts"].queries is None and answers.pack(found["lts"])[0].queries == ()


def test_queries_that_count_most_are_shown_with_their_scores(tiny_trio, monkeypatch):
    """EAVL's masks before they are summed, best first."""
    model, processor = tiny_trio("eavl")
    loaded = opening.LoadedModel(model, processor, 0)
    entry = entries.Entry("eavl", "EAVL", "EAVL", Path(), None)
    picture = pictures.Picture(Image.effect_noise((90, 60), 60).convert("RGB"), 90, 60, "noise.png")
    expressions = ["the <red> star", "blue car"]
    monkeypatch.setattr(inference, "QUERY_SIDE", 45)
    maps = inference.run_model(entry, loaded, picture, expressions, torch.device("cpu"))
    with torch.inference_mode():
        outputs = model(**processor(picture.image, [expressions]))
    assert maps.queries.shape == (2, 5, 30, 45) and maps.query_scores.shape == (2, 5)
    best = outputs.query_scores.argsort(1, descending=True)[:, :5]
    for n in range(2):
        np.testing.assert_allclose(maps.query_scores[n], outputs.query_scores[n, best[n]], atol=1e-5)
        wanted = processor.post_process_maps(outputs.query_logits[n : n + 1, best[n]].sigmoid(), [(30, 45)])[0]
        np.testing.assert_allclose(maps.queries[n] / 255, wanted, atol=2.1e-3)
    packed = answers.pack(maps)
    assert [len(answer.queries) for answer in packed] == [5, 5]
    assert packed[1].query_scores == tuple(map(float, maps.query_scores[1]))
    np.testing.assert_array_equal(answers.from_png(packed[1].queries[2]), maps.queries[1, 2])


def test_maps_that_are_no_masks_are_not_shown_as_such(tiny_trio):
    """VLT's, which only its mask decoder reads."""
    model, processor = tiny_trio("vlt")
    entry = entries.Entry("vlt", "VLT", "VLT", Path(), None)
    picture = pictures.Picture(Image.effect_noise((90, 60), 60).convert("RGB"), 90, 60, "noise.png")
    loaded = opening.LoadedModel(model, processor, 0)
    maps = inference.run_model(entry, loaded, picture, ["the red star"], torch.device("cpu"))
    assert maps.queries is None and maps.query_scores is None


def test_clip_prior_is_shown_with_the_noun_phrase(tiny_trio):
    """VATEX's heatmap lies over CLIP's view, the whole picture squashed, and its five queries are the model's all."""
    model, processor = tiny_trio("vatex")
    loaded = opening.LoadedModel(model, processor, 0)
    entry = entries.Entry("vatex", "VATEX", "VATEX", Path(), None)
    picture = pictures.Picture(Image.effect_noise((150, 60), 60).convert("RGB"), 150, 60, "noise.png")
    expressions = ["the <red> star on the left", "far left"]
    maps = inference.run_model(entry, loaded, picture, expressions, torch.device("cpu"))
    with torch.inference_mode():
        heatmap = model(**processor(picture.image, [expressions])).heatmap[:, None]
    low, high = heatmap.amin((2, 3), keepdim=True), heatmap.amax((2, 3), keepdim=True)
    wanted = torch.nn.functional.interpolate((heatmap - low) / (high - low), (60, 150), mode="bilinear")[:, 0]
    np.testing.assert_allclose(maps.localization / 255, wanted, atol=3e-3)
    assert maps.phrases == ["red star", "far left"]
    assert [answer.phrase for answer in answers.pack(maps)] == maps.phrases
    assert maps.query_scores.shape == (2, 5) and (np.diff(maps.query_scores, axis=1) <= 0).all()


def test_the_last_mask_prior_is_shown_as_location(tiny_trio):
    """Of MPG-LQGNet's priors, one for each layer, as a probability at the picture's size."""
    model, processor = tiny_trio("mpg_lqgnet")
    loaded = opening.LoadedModel(model, processor, 0)
    entry = entries.Entry("mpg", "MPG-LQGNet", "MPG-LQGNet", Path(), None)
    picture = pictures.Picture(Image.effect_noise((90, 60), 60).convert("RGB"), 90, 60, "noise.png")
    maps = inference.run_model(entry, loaded, picture, ["red star", "blue car"], torch.device("cpu"))
    with torch.inference_mode():
        outputs = model(**processor(picture.image, [["red star", "blue car"]]))
    first, last = (
        torch.stack(processor.post_process_maps(prior[:, None].sigmoid(), [(60, 90)] * 2))[:, 0]
        for prior in outputs.prior_logits.unbind(1)
    )
    np.testing.assert_allclose(maps.localization / 255, last, atol=2.1e-3)
    assert abs(first - last).max() > 0.01


def test_a_threshold_cuts_strictly_above():
    values = np.array([[64, 127], [204, 255]], np.uint8)
    mask, score = inference.cut(values, 0.5)
    assert mask.tolist() == [[False, False], [True, True]] and score == pytest.approx(0.9)
    assert inference.cut(values, 1.0)[1] == 0.0


def test_files_hold_the_masks_at_the_size_of_the_upload(comparer, uploads, tmp_path):
    image = {"path": str(uploads["wide.png"]), "orig_name": "wide.png"}
    asked = ask(comparer, image, "star\nred car", ["lts", "lavt"])
    picture, expressions, models = asked
    thresholds = [float(np.median(answers.from_png(model.answers[0].probability))) / 255 for model in models]
    (tmp_path / "masks.json").write_bytes(export.coco_json(picture, models, expressions, thresholds))
    coco = COCO(tmp_path / "masks.json")
    archive = zipfile.ZipFile(io.BytesIO(export.masks_zip(picture, models, expressions, thresholds)))
    names = ["lavt/01-star.png", "lavt/02-red-car.png", "lts/01-star.png", "lts/02-red-car.png"]
    assert archive.namelist() == names
    for name, annotation in zip(names, coco.loadAnns(coco.getAnnIds())):
        png = np.asarray(Image.open(archive.open(name)))
        assert png.shape == (200, 12_000) and set(np.unique(png)) <= {0, 255}
        np.testing.assert_array_equal(coco.annToMask(annotation), png == 255)
        assert annotation["area"] == (png == 255).sum() == coco_mask.area(annotation["segmentation"])
        number = f"{annotation['category_id']:02}"
        assert name == f"{annotation['model']}/{number}-{export.slug(annotation['expression'])}.png"
    assert 0 < coco.anns[1]["area"] < 200 * 12_000


def test_cut_outs_show_the_picture_inside_the_mask_alone(comparer, uploads):
    picture, expressions, models = ask(comparer, {"path": str(uploads["palette.png"])}, "star", ["lts"])
    threshold = float(np.median(answers.from_png(models[0].answers[0].probability))) / 255
    archive = zipfile.ZipFile(io.BytesIO(export.cutouts_zip(picture.image, models, expressions, [threshold])))
    cut = np.asarray(Image.open(archive.open("lts/01-star.png")))
    mask = export.mask_at(models[0].answers[0], threshold, picture.width, picture.height)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    np.testing.assert_array_equal(cut[..., 3] == 255, mask[box])
    np.testing.assert_array_equal(cut[..., :3], np.asarray(picture.image)[box])
    empty = zipfile.ZipFile(io.BytesIO(export.cutouts_zip(picture.image, models, expressions, [1.0])))
    assert Image.open(empty.open("lts/01-star.png")).size == (1, 1)


def test_slug_keeps_every_script_and_no_path():
    assert export.slug("../../etc/passwd") == "etc-passwd"
    assert export.slug("الرجل الأحمر") == "الرجل-الأحمر"
    assert export.slug("🦊") == "expression"


# which models it opens


@pytest.fixture
def copy(checkpoints, tmp_path):
    """A copy of the tiny LTS that a test may spoil."""
    return Path(shutil.copytree(checkpoints / "lts", tmp_path / "copy"))


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_bundled_models_are_found_and_described(zoo):
    assert [(entry.key, entry.title) for entry in zoo.bundled] == [("lavt", "LAVT"), ("lts", "LTS")]
    assert [entry.note for entry in zoo.bundled] == [None, "trained on RefScenes: drawn scenes, not photographs"]
    assert [entry.scenes for entry in zoo.bundled] == [False, True]


def test_what_the_space_brings_along():
    """A checkpoint of each promised architecture: small, whole, and plain about its training."""
    zoo = zoo_module.Zoo(SPACE / "checkpoints", allow_folders=False)
    assert {"LTS", "LAVT"} <= {entry.architecture for entry in zoo.bundled}
    for entry in zoo.bundled:
        assert (entry.folder / "model.safetensors").stat().st_size <= 8 * 2**20
        assert entry.note == entries.SCENES_NOTE
        opening.check_config(entry.key, entry.folder)
        assert zoo.get(entry).parameters > 0


@pytest.mark.parametrize(
    ("files", "names"),
    [
        ({"README.md": "---\ndatasets: [org/refscenes_plus]\n---\n"}, ["org/refscenes_plus"]),
        ({"README.md": "---\ndatasets: phrasescenes\n---\ntext"}, ["phrasescenes"]),
        ({"README.md": "---\n: [broken\n---\n", "results.json": "[not an object]"}, []),
        ({"README.md": "refscenes", "results.json": '{"trained_on": 7}'}, []),
        ({}, []),
    ],
)
def test_training_data_is_read_from_card_and_results(tmp_path, files, names):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert entries.training_data(tmp_path) == names


def test_a_model_is_loaded_once_and_added_ones_make_room(checkpoints, tmp_path, monkeypatch):
    loads = []
    load = zoo_module.load
    monkeypatch.setattr(zoo_module, "load", lambda entry, device: loads.append(entry.key) or load(entry, device))
    zoo = zoo_module.Zoo(checkpoints, allow_folders=True)
    assert loads == []
    entry = zoo.entries["lts"]
    assert zoo.get(entry) is zoo.get(entry) and loads == ["lts"]
    added = [zoo.add(str(shutil.copytree(checkpoints / "lavt", tmp_path / str(k)))) for k in range(3)]
    assert zoo.add(added[0].key) is added[0]
    assert len(loads) == 4
    zoo.get(entry), zoo.get(added[2])
    assert len(loads) == 4
    zoo.get(added[0])  # the first of three had made room
    assert len(loads) == 5


def test_a_folder_can_be_added_only_where_allowed(checkpoints, copy):
    entry = zoo_module.Zoo(checkpoints, allow_folders=True).add(str(copy))
    assert (entry.title, entry.architecture) == ("copy", "LTS") and "drawn scenes" in entry.note
    with pytest.raises(Refusal, match=r"Give a Hub id \(owner/name\); "):
        zoo_module.Zoo(checkpoints, allow_folders=False).add(str(copy))


def spoil_unknown(folder):
    edit(folder / "config.json", model_type="bert")


def spoil_pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def spoil_nothing_left(folder):
    (folder / "model.safetensors").unlink()


def spoil_config(folder):
    (folder / "config.json").unlink()


def spoil_json(folder):
    (folder / "config.json").write_text("[" * 100_000)


def spoil_memory(folder):
    edit(folder / "config.json", vocab_size=10**12)


def spoil_paths(folder):
    vision = json.loads((folder / "config.json").read_text())["vision_config"]
    vision["arguments"]["checkpoint_path"] = "/etc/passwd"
    edit(folder / "config.json", vision_config=vision)


def spoil_field(folder):
    edit(folder / "config.json", no_such_field=1)


def spoil_weights(folder):
    (folder / "model.safetensors").write_bytes(b"\x08" + b"\0" * 7 + b"garbage!")


def spoil_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{}")


def spoil_vocabulary(folder):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["onewordtoomany"] = len(tokenizer["model"]["vocab"])
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def spoil_threshold(folder):
    edit(folder / "processor_config.json", threshold=7)


def spoil_input_size(folder):
    processor = json.loads((folder / "processor_config.json").read_text())
    edit(folder / "processor_config.json", image_processor=processor["image_processor"] | {"image_size": 100_000})


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (spoil_unknown, "model of type 'bert'; this page knows .*lts"),
        (spoil_pickle, r"only pickled ones \(pytorch_model.bin\), which can run code"),
        (spoil_nothing_left, "no safetensors weights but none at all"),
        (spoil_config, "has no config.json"),
        (spoil_json, "model of type 'None'"),
        (spoil_memory, "could not be loaded: LtsConfig.vocab_size must be at most 1048576"),
        (spoil_paths, "could not be loaded: .*load nothing; drop .*checkpoint_path"),
        (spoil_field, "could not be loaded: .*no_such_field"),
        (spoil_weights, "could not be loaded"),
        (spoil_tokenizer, "could not be loaded"),
        (spoil_vocabulary, "could not be loaded: input_ids must lie in"),
        (spoil_threshold, r"could not be loaded: .*threshold .*\[0, 1\], got 7"),
        (spoil_input_size, "would scale this picture to 100,000 x 100,000 pixels"),
    ],
)
def test_a_spoiled_checkpoint_is_refused_in_one_sentence(checkpoints, copy, spoil, sentence):
    spoil(copy)
    zoo = zoo_module.Zoo(checkpoints, allow_folders=True)
    with pytest.raises(Refusal, match=sentence) as refusal:
        zoo.add(str(copy))
    assert "\n" not in str(refusal.value)
    assert list(zoo.entries) == ["lavt", "lts"]


def test_code_in_a_repository_never_runs(checkpoints, copy, tmp_path):
    bait = tmp_path / "ran"
    for name in copy.glob("*.py"):
        name.write_text(f"open({str(bait)!r}, 'w')\n")
    zoo = zoo_module.Zoo(checkpoints, allow_folders=True)
    assert zoo.get(zoo.add(str(copy))).parameters > 0
    assert json.loads((copy / "config.json").read_text())["auto_map"] and not bait.exists()


def fake_hub(monkeypatch, folder: Path) -> list[dict]:
    """Let the Hub hold `folder` as owner/tiny; returns the downloads that were asked for."""
    downloads = []

    class Api:
        def __init__(self, token):
            assert token is False  # a Space's own token would open its owner's private repositories to visitors

        def model_info(self, name, revision, files_metadata, timeout):
            files = [SimpleNamespace(rfilename=path.name, size=path.stat().st_size) for path in folder.iterdir()]
            return SimpleNamespace(sha="abc", siblings=files)

    def download(name, **kwargs):
        downloads.append({"name": name, **kwargs})
        return str(folder)

    monkeypatch.setattr(opening, "HfApi", Api)
    monkeypatch.setattr(opening, "snapshot_download", download)
    return downloads


def test_only_data_files_of_a_repository_are_fetched(checkpoints, copy, monkeypatch):
    (copy / "pytorch_model.bin").write_bytes(b"pickle")
    downloads = fake_hub(monkeypatch, copy)
    zoo = zoo_module.Zoo(checkpoints, allow_folders=False)
    entry = zoo.add(" owner/tiny@v1 ")
    assert entry.key == entry.title == "owner/tiny@v1" and zoo.choose([entry.key]) == [entry]
    (download,) = downloads
    assert download["name"] == "owner/tiny" and download["revision"] == "abc" and download["token"] is False
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(download["allow_patterns"])
    assert not [name for name in download["allow_patterns"] if name.endswith((".py", ".bin"))]


def test_a_huge_repository_is_refused_before_download(checkpoints, copy, monkeypatch):
    downloads = fake_hub(monkeypatch, copy)
    monkeypatch.setattr(opening, "MAX_BYTES", 1000)
    with pytest.raises(Refusal, match="GB of files; the limit here is"):
        zoo_module.Zoo(checkpoints, allow_folders=False).add("owner/tiny")
    assert downloads == []


def test_a_baseline_is_offered_and_loaded_when_it_is_first_used(checkpoints, uploads, tmp_path, monkeypatch):
    baseline = replace(BASELINES["clipseg"], checkpoints=(save_clipseg(tmp_path / "clipseg"),))
    monkeypatch.setitem(BASELINES, "clipseg", baseline)
    loads = []
    load = opening.load_baseline
    monkeypatch.setattr(opening, "load_baseline", lambda name: loads.append(name) or load(name))
    zoo = zoo_module.Zoo(checkpoints, allow_folders=False, baselines=BASELINES)
    comparer = comparing.Comparer(zoo)
    offered = service.Service(comparer, tmp_path).page_config()["models"]
    assert [(model["key"], model["bundled"]) for model in offered][:3] == [
        ("lavt", True),
        ("lts", True),
        ("clipseg", False),
    ]
    assert loads == []
    image = {"path": str(uploads["wide.png"])}
    picture, _, models = ask(comparer, image, "star\nred car", ["lts", "clipseg"])
    ask(comparer, image, "star", ["clipseg"])
    assert loads == ["clipseg"] and [model.entry.title for model in models] == ["LTS", "CLIPSeg"]
    assert answers.from_png(models[1].answers[0].probability).shape == inference.map_size(picture)
    assert models[1].entry.note.startswith(
        "zero-shot baseline; its weights come from the Hub when it is first used (0."
    )


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_a_baseline_that_cannot_be_had_is_one_sentence(checkpoints, uploads, monkeypatch, tmp_path, name):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    zoo = zoo_module.Zoo(checkpoints, allow_folders=False, baselines=BASELINES)
    sentence = "could not be loaded: The weights of .* are neither cached nor reachable"
    comparer = comparing.Comparer(zoo)
    picture = reading.read_picture({"path": str(uploads["grey.png"])})
    with pytest.raises(Refusal, match=sentence):
        comparer.answer_all(zoo.choose([name]), picture, ["star"])
    models, (failure,) = comparer.answer_all(zoo.choose(["lts", name]), picture, ["star"])
    assert [model.entry.key for model in models] == ["lts"]
    assert re.search(sentence, failure.sentence) and failure.sentence.startswith(BASELINES[name].title)
    assert "\n" not in failure.sentence


@pytest.mark.parametrize("allow_folders", [False, True])
@pytest.mark.parametrize(
    "reference", ["", None, "tiny", "a/b/c", "../x/..", "https://hf.co/a/b", "owner/name@", "a\0b", "x" * 9000]
)
def test_what_is_no_hub_id_is_refused(checkpoints, reference, allow_folders):
    with pytest.raises(Refusal, match="Give a Hub id|too long for a Hub id"):
        zoo_module.Zoo(checkpoints, allow_folders).add(reference)


def test_a_picture_that_a_model_would_enlarge_without_bound_is_refused(zoo, monkeypatch):
    """Geometries that keep the short side's size make a strip huge."""
    entry = zoo.entries["lts"]
    loaded = zoo.get(entry)
    monkeypatch.setattr(loaded.processor, "image_processor", RisImageProcessor("short_side", 480))
    strip = pictures.Picture(Image.new("RGB", (6000, 100)), 6000, 100, "strip.png")
    with pytest.raises(Refusal, match="LTS would scale this picture to 28,800 x 480 pixels"):
        inference.run_model(entry, loaded, strip, ["star"], zoo.device)


@pytest.mark.parametrize(("setting", "value"), [("HF_HUB_OFFLINE", True), ("ENDPOINT", "http://127.0.0.1:9")])
def test_an_unreachable_hub_is_one_sentence(checkpoints, monkeypatch, setting, value):
    monkeypatch.setattr(f"huggingface_hub.constants.{setting}", value)
    with pytest.raises(Refusal, match="The Hub could not be reached for owner/name"):
        zoo_module.Zoo(checkpoints, allow_folders=False).add("owner/name")


# the page


def test_examples_are_scenes_and_their_expressions_are_true_of_them():
    for entry in json.loads((SPACE / "examples" / "examples.json").read_text()):
        row = RefScenes("refscenes", "test", 384)[entry["scene"]]
        example = examples.examples()[Path(entry["file"]).stem]
        assert set(example.expressions) <= set(example.known) == {said["text"] for said in row["expressions"]}
        np.testing.assert_array_equal(np.asarray(Image.open(example.file)), np.asarray(row["image"]))
        for said in row["expressions"]:
            np.testing.assert_array_equal(example.known[said["text"]], expression_mask(row, said))


def test_the_api_has_one_public_endpoint(comparer):
    endpoints = page.build(comparer).get_api_info()["named_endpoints"]
    assert list(endpoints) == ["/segment"]
    parameters = endpoints["/segment"]["parameters"]
    assert [parameter["parameter_name"] for parameter in parameters] == ["image", "expressions", "models", "threshold"]
    assert [parameter["parameter_has_default"] for parameter in parameters] == [False, False, True, True]


# what is kept


def answer_of(size: int):
    return answers.Answer(b"x" * size, None, (), (), None, 0.1, 1, 0.5, 10, ())


def test_answers_are_kept_for_minutes_and_bounded_in_sum():
    now = [0.0]
    store = answers.AnswerStore(max_bytes=10_000, seconds=60, clock=lambda: now[0])
    for k in range(5):
        store.put((k,), answer_of(2000))
    assert store.get((0,)) is None and store.get((1,)) is not None and store.bytes <= 10_000
    store.put((5,), answer_of(2000))
    assert store.get((2,)) is None and store.get((1,)) is not None  # what was asked for last stays
    store.put((1,), answer_of(10))
    assert len(store) == 4 and store.bytes == sum(store.get((k,)).size for k in (1, 3, 4, 5))
    now[0] = 61.0
    assert store.get((1,)) is None and len(store) == 0 and store.bytes == 0


def test_what_was_asked_lately_runs_no_model_again(checkpoints, monkeypatch):
    runs = []
    run_model = comparing.run_model

    def counted(entry, loaded, picture, expressions, device):
        runs.append((entry.key, list(expressions)))
        return run_model(entry, loaded, picture, expressions, device)

    monkeypatch.setattr(comparing, "run_model", counted)
    comparer = comparing.Comparer(zoo_module.Zoo(checkpoints, allow_folders=False))
    (lts,) = comparer.zoo.choose(["lts"])
    picture = pictures.Picture(photograph(), 64, 48, "a.png")
    first = comparer.answer(lts, picture, ["star", "car"])
    assert comparer.answer(lts, picture, ["car", "moon", "star"])[0] is first[1]
    assert runs == [("lts", ["star", "car"]), ("lts", ["moon"])]
    comparer.answer(lts, pictures.Picture(photograph().rotate(90), 64, 48, "b.png"), ["star"])
    assert len(runs) == 3 and comparer.seconds(lts) > 0


def test_words_that_are_left_out_change_the_mask_by_what_is_said(comparer, zoo):
    (lts,) = zoo.choose(["lts"])
    picture = pictures.Picture(Image.effect_noise((64, 48), 80).convert("RGB"), 64, 48, "noise.png")
    whole, without = comparer.answer(lts, picture, ["the red star", "the star"])
    threshold = float(np.median(answers.from_png(whole.probability))) / 255
    changes = words.word_changes(comparer, lts, picture, "the red star", threshold)
    assert [change["word"] for change in changes] == ["the", "red", "star"]
    one, other = (answers.from_png(answer.probability) > 255 * threshold for answer in (whole, without))
    assert changes[1]["change"] == pytest.approx(1 - (one & other).sum() / (one | other).sum(), abs=1e-4)
    assert words.word_changes(comparer, lts, picture, "star") == [{"word": "star", "change": None}]
    many = words.word_changes(comparer, lts, picture, "red " * 20)
    assert [change["change"] is None for change in many] == [False] * 12 + [True] * 8


def test_pictures_that_look_drawn_and_photographs_are_told_apart():
    for example in examples.examples().values():
        image = Image.open(example.file).convert("RGB")
        stored = io.BytesIO()
        image.save(stored, "JPEG", quality=85)
        assert pictures.is_drawn(image) and pictures.is_drawn(Image.open(stored).convert("RGB"))
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).resize(
        (600, 400), Image.Resampling.BICUBIC
    )
    grain = np.clip(np.asarray(smooth) + rng.normal(0, 2, (400, 600, 3)), 0, 255).astype(np.uint8)
    assert not pictures.is_drawn(smooth) and not pictures.is_drawn(Image.fromarray(grain))


def test_a_heic_photograph_is_told_what_to_do(tmp_path):
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 100)
    with pytest.raises(Refusal, match="HEIC photograph.* export it as JPEG"):
        pictures.open_picture(tmp_path / "photo.heic")


# the leaderboard


def test_the_leaderboard_shows_what_results_say(tmp_path):
    for name, miou, controls in (("lts", 0.61, {"other_scene_expression": 0.05}), ("lavt", 0.72, {})):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"model_type": name}))
        metrics = {"mIoU": miou, "oIoU": 0.5, "mIoU (1-2 words)": 0.7, "mIoU (relations)": 0.4}
        slices = {"ordinal": {"with": {"mIoU": 0.31}}, "words": {"7-14": {"mIoU": 0.3}}}  # as bundles have them today
        results = {"test": {"images": 1234, "protocols": {"original": metrics}, "slices": slices}}
        results |= {f"test/{key}": {"protocols": {"original": {"mIoU": value}}} for key, value in controls.items()}
        before = [{"folder": "vision", "seconds": 120}, {"seconds": 60, "after": {"seconds": 60}}]
        content = {"parameters": 1_500_000, "training_seconds": 600, "pretraining": before, "results": results}
        (folder / "results.json").write_text(json.dumps(content))
    entries_ = [entries.read_entry(tmp_path / name, name) for name in ("lts", "lavt")]
    shown = leaderboard.leaderboard_html(entries_, lambda entry: 0.0123)
    assert shown.index(">LAVT<") < shown.index(">LTS<")  # the best first
    for text in (
        "72.0",
        "61.0",
        "1.50 M",
        "12 ms",
        "another scene&#x27;s text",
        "relations",
        "1-2 words",
        "7-14 words 30.0",
        "ordinal 31.0",
        "#card-lts",
        "1,234",
        "<td>14</td>",
    ):
        assert text in shown, text
    assert shown.count("<svg") == 3 and "https://arxiv.org/abs/2112.02244" in shown
    (tmp_path / "lts" / "results.json").unlink()
    assert "–" in leaderboard.leaderboard_html(entries_)


def test_labels_of_points_that_lie_together_do_not_overlap():
    points = [(200, 100), (203, 104), (206, 101), (425, 100)]
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in points]
    places = [leaderboard.label_place(x, y, 40, taken, (40, 430)) for x, y in points]
    labels = taken[len(points) :]
    assert len(labels) == 4 and places[3] == (416, 104, "end") and all(40 <= box[0] < box[2] <= 430 for box in labels)
    for index, one in enumerate(labels):
        for other in taken[:index] + labels[:index]:
            assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


def test_the_leaderboard_of_video_models(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vatex_video"}')
    metrics = {"J&F": 0.654, "J": 0.633, "F": 0.675}
    results = {"test": {"videos": 500, "protocols": {"youtube_vos": metrics}}}
    results |= {"test/shuffled_frames": {"videos": 100, "protocols": {"youtube_vos": {"J&F": 0.281}}}}
    content = {"parameters": 1_970_000, "steps": 1000, "training_seconds": 60, "pretraining": [], "results": results}
    (tmp_path / "results.json").write_text(json.dumps(content))
    shown = leaderboard.moving_board_html([entries.read_entry(tmp_path, "vatex_video")])
    for text in (">VATEX Video<", "65.4", "63.3", "67.5", "frames in a random order", "28.1", "500", "1.97 M", "1,000"):
        assert text in shown, text
    assert leaderboard.moving_board_html([]) == ""


def test_the_leaderboard_reads_reports_with_intervals():
    interval = {"value": 0.61, "low": 0.6, "high": 0.62}
    slices = {"kind of expression": {"relation": {"expressions": 7, "metrics": {"mIoU": {"value": 0.4}}}}}
    report = {"description": "", "overall": {"mIoU": interval, "N-acc": None}, "slices": slices}
    found = leaderboard.metrics_of(report)
    assert found == {"mIoU": 0.61, "N-acc": None, "mIoU (relation)": 0.4} and leaderboard.metrics_of({}) == {}
    assert leaderboard.metrics_of({"mIoU": 0.5}) == {"mIoU": 0.5}


@pytest.mark.slow
def test_starts_offline(tmp_path):
    """`python space/app.py` serves its page although every connection but to this machine fails."""
    program = f"""
import runpy, socket, sys
connect = socket.socket.connect
def local_only(self, address):
    if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "localhost", "::1"):
        print("OUTSIDE", address, flush=True)
        raise OSError("no network")
    return connect(self, address)
socket.socket.connect = local_only
sys.path[0] = {str(SPACE)!r}
runpy.run_path({str(SPACE / "app.py")!r}, run_name="__main__")
"""
    environment = os.environ | {"GRADIO_SERVER_PORT": "7931", "PYTHONPATH": str(SPACE.parent), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    seen = []
    try:
        for line in process.stdout:
            seen.append(line)
            if "127.0.0.1:7931" in line:
                break
        else:
            pytest.fail("".join(seen))
    finally:
        process.terminate()
    assert "OUTSIDE" not in "".join(seen)
