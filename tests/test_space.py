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
from hf_ris.models.processing_ris import RisImageProcessor
from hf_ris.models.text_encoders import word_tokenizer, wordpiece_tokenizer


SPACE = Path(__file__).resolve().parent.parent / "space"
sys.path.insert(0, str(SPACE))

import app  # noqa: E402
import entries  # noqa: E402
import export  # noqa: E402
import inference  # noqa: E402
import opening  # noqa: E402
import pictures  # noqa: E402
import render  # noqa: E402
import zoo as zoo_module  # noqa: E402
from pictures import Refusal  # noqa: E402


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
def comparison(zoo):
    """Both models on a 90 x 60 picture, two expressions."""
    pixels = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    picture = pictures.Picture(Image.fromarray(pixels), 90, 60, "my photo.png")
    return inference.compare(zoo, picture, ["the red star", "<b>left</b> {{7*7}} ${1+1}"], zoo.choose(["lts", "lavt"]))


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
def test_upload_is_answered(zoo, uploads, name):
    image = {"path": str(uploads[name]), "orig_name": name}
    found = app.answer(zoo, image, "the star", ["lts"])
    width, height = ANSWERED[name]
    assert (found.picture.width, found.picture.height) == (width, height)
    assert found.picture.image.mode == "RGB"
    assert found.picture.image.width * found.picture.image.height <= pictures.WORKING_PIXELS * 1.01
    for view in ("Masks", "Probability", "Location"):
        assert "<img src='data:image/jpeg;base64," in render.card(found, found.models[0], view, 0.3)
    annotation = json.loads(export.coco_json(found, [0.0]))["annotations"][0]
    assert annotation["segmentation"]["size"] == [height, width]
    assert annotation["area"] == width * height  # every probability lies above 0


@pytest.mark.parametrize("name", REFUSED)
def test_upload_is_refused_in_one_sentence(zoo, uploads, name):
    with pytest.raises(Refusal, match=REFUSED[name]) as refusal:
        app.answer(zoo, {"path": str(uploads[name]), "orig_name": name}, "the star", ["lts"])
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
def test_expressions_are_answered(zoo, uploads, text, found):
    result = app.answer(zoo, {"path": str(uploads["grey.png"])}, text, ["lts", "lavt"])
    assert result.expressions == found
    assert all(len(maps.probabilities) == len(found) for maps in result.models)
    assert all(len(render.card(result, maps, "Masks", 0.5)) < 1_000_000 for maps in result.models)


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
def test_incomplete_requests_are_refused(zoo, uploads, image, text, keys, sentence):
    with pytest.raises(Refusal, match=sentence):
        app.answer(zoo, image and {"path": str(uploads[image])}, text, keys)


def test_remarks_name_unknown_words_and_cut_expressions(zoo):
    processor = zoo.get(zoo.entries["lts"]).processor
    assert inference.remarks(processor, ["the red star", "blue car"]) == []
    unknown, long = inference.remarks(processor, ["the zebra", "red " * 40 + "giraffe"])
    assert "zebra" in unknown and "giraffe" not in unknown  # nothing is said of words that are not read
    assert f"first {processor.max_text_length} tokens" in long


def test_maps_are_those_of_the_processor(zoo, comparison):
    """The Space shows what the model says: equal to model and processor called by hand, at the default threshold."""
    for maps in comparison.models:
        loaded = zoo.get(maps.entry)
        with torch.inference_mode():
            outputs = loaded.model(**loaded.processor(comparison.picture.image, [comparison.expressions]))
        wanted = loaded.processor.post_process_referring_segmentation(outputs, [(60, 90)] * 2)
        masks, scores = inference.cut(maps.probabilities, maps.threshold)
        for k, result in enumerate(wanted):
            np.testing.assert_allclose(maps.probabilities[k] / 255, result["probability"], atol=2.1e-3)
            assert (masks[k] == result["mask"].numpy()).mean() > 0.99
            assert scores[k] == pytest.approx(result["score"], abs=2e-3)
        assert maps.parameters == sum(p.numel() for p in loaded.model.parameters()) and maps.seconds > 0
    lts, lavt = sorted(comparison.models, key=lambda maps: maps.entry.key, reverse=True)
    assert lts.localization.shape == (2, 60, 90) and lavt.localization is None
    assert lts.queries is None and "LTS has no query masks." in render.card(comparison, lts, "Queries", 0.5)


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
    shown = render.card(inference.Comparison(picture, expressions, [maps]), maps, "Queries", 0.5)
    assert shown.count("<img src='data:image/jpeg;base64,") == 10
    assert f">{maps.query_scores[0, 0]:.2f} · the &lt;red&gt; star<" in shown


def test_maps_that_are_no_masks_are_not_shown_as_such(tiny_trio):
    """VLT's, which only its mask decoder reads."""
    model, processor = tiny_trio("vlt")
    entry = entries.Entry("vlt", "VLT", "VLT", Path(), None)
    picture = pictures.Picture(Image.effect_noise((90, 60), 60).convert("RGB"), 90, 60, "noise.png")
    loaded = opening.LoadedModel(model, processor, 0)
    maps = inference.run_model(entry, loaded, picture, ["the red star"], torch.device("cpu"))
    shown = render.card(inference.Comparison(picture, ["the red star"], [maps]), maps, "Queries", 0.5)
    assert maps.queries is None and maps.query_scores is None and "VLT has no query masks." in shown


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
    shown = render.card(inference.Comparison(picture, expressions, [maps]), maps, "Location", 0.5)
    assert ">the &lt;red&gt; star on the left · “red star”<" in shown
    assert "“red star”" not in render.card(inference.Comparison(picture, expressions, [maps]), maps, "Probability", 0.5)
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
    maps = np.array([[[64, 127], [204, 255]]], np.uint8)
    masks, scores = inference.cut(maps, 0.5)
    assert masks.tolist() == [[[False, False], [True, True]]] and scores == [pytest.approx(0.9)]
    assert inference.cut(maps, 1.0)[1] == [0.0]


def test_overlay_colours_the_mask_and_dims_the_rest():
    image = Image.new("RGB", (800, 400), (120, 120, 120))
    probability = np.zeros((2, 400, 800), np.uint8)
    probability[0, 100:300, 100:300] = 230
    drawn = np.asarray(render.overlay(image, probability, 0.5)).astype(int)
    inside, outside, border = drawn[200, 200], drawn[200, 600], drawn[200, 100]
    colour = render.rgb(render.COLOURS[0])
    assert inside[0] > 130 and abs(inside - colour).sum() < abs(np.array([120, 120, 120]) - colour).sum()
    assert outside.max() < 120 and np.ptp(outside) == 0
    assert abs(border - colour).max() < 40
    assert np.asarray(render.overlay(image, probability, 0.95)).std() < 1  # nothing left above the threshold


def test_heatmap_is_brighter_where_the_map_is_higher():
    values = np.tile(np.linspace(0, 255, 100).astype(np.uint8), (50, 1))
    drawn = np.asarray(render.heatmap(Image.new("RGB", (100, 50), "grey"), values).convert("L")).mean(0)
    assert (np.diff(drawn[::40]) > 0).all()


def test_card_escapes_and_says_what_the_model_is(comparison):
    lts = next(maps for maps in comparison.models if maps.entry.key == "lts")
    html = render.card(comparison, lts, "Masks", 0.25)
    assert "<b>" not in html and "&lt;b&gt;left&lt;/b&gt;" in html
    assert "trained on RefScenes: drawn scenes, not photographs" in html
    assert f"{render.short_count(lts.parameters)} parameters" in html
    lavt = next(maps for maps in comparison.models if maps.entry.key == "lavt")
    assert "drawn scenes" not in render.card(comparison, lavt, "Masks", 0.5)
    assert "LAVT has no localisation map" in render.card(comparison, lavt, "Location", 0.5)
    assert render.card(comparison, lavt, "Probability", 0.5).count("<img") == 2


@pytest.mark.parametrize(
    ("number", "text"), [(999, "999"), (1_500, "1.5 K"), (1_132_993, "1.1 M"), (2_300_000_000, "2.3 B")]
)
def test_short_count(number, text):
    assert render.short_count(number) == text


def test_files_hold_the_masks_at_the_size_of_the_upload(zoo, uploads, tmp_path):
    found = app.answer(
        zoo, {"path": str(uploads["wide.png"]), "orig_name": "wide.png"}, "star\nred car", ["lts", "lavt"]
    )
    thresholds = [float(np.median(maps.probabilities[0])) / 255 for maps in found.models]
    (tmp_path / "masks.json").write_bytes(export.coco_json(found, thresholds))
    coco = COCO(tmp_path / "masks.json")
    archive = zipfile.ZipFile(io.BytesIO(export.masks_zip(found, thresholds)))
    names = ["lavt/01-star.png", "lavt/02-red-car.png", "lts/01-star.png", "lts/02-red-car.png"]
    assert archive.namelist() == names
    for name, annotation in zip(names, coco.loadAnns(coco.getAnnIds())):
        png = np.asarray(Image.open(archive.open(name)))
        assert png.shape == (200, 12_000) and set(np.unique(png)) <= {0, 255}
        np.testing.assert_array_equal(coco.annToMask(annotation), png == 255)
        assert annotation["area"] == (png == 255).sum() == coco_mask.area(annotation["segmentation"])
        assert (
            name == f"{annotation['model']}/{annotation['category_id']:02}-{export.slug(annotation['expression'])}.png"
        )
    assert 0 < coco.anns[1]["area"] < 200 * 12_000


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
    assert zoo.bundled[1].label == "LTS · trained on RefScenes: drawn scenes, not photographs"


def test_what_the_space_brings_along():
    """A checkpoint of each promised architecture: small, whole, and plain about its training."""
    zoo = zoo_module.Zoo(SPACE / "checkpoints", allow_folders=False)
    assert {"LTS", "LAVT"} <= {entry.architecture for entry in zoo.bundled}
    for entry in zoo.bundled:
        assert (entry.folder / "model.safetensors").stat().st_size <= 8_000_000
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
        (spoil_memory, "do not fit its config: text_encoder.embedding.weight"),
        (spoil_paths, "could not be loaded: .*load nothing; drop .*checkpoint_path"),
        (spoil_field, "could not be loaded: .*no_such_field"),
        (spoil_weights, "could not be loaded"),
        (spoil_tokenizer, "could not be loaded"),
        (spoil_vocabulary, "could not be loaded: index out of range"),
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
    models = next(block for block in app.build(zoo).blocks.values() if block.elem_id == "ris-models")
    assert [key for _, key in models.choices] == ["lavt", "lts", "clipseg", "grounded-sam"]
    assert models.value == ["lavt", "lts"] and loads == []
    image = {"path": str(uploads["wide.png"])}
    found = app.answer(zoo, image, "star\nred car", ["lts", "clipseg"])
    app.answer(zoo, image, "star", ["clipseg"])
    assert loads == ["clipseg"] and [maps.entry.title for maps in found.models] == ["LTS", "CLIPSeg"]
    maps = found.models[1]
    assert maps.probabilities.shape == (2, *inference.map_size(found.picture)) and maps.threshold == 0.3
    shown = render.card(found, maps, "Masks", maps.threshold)
    assert "CLIPSeg" in shown and "zero-shot baseline; its weights come from the Hub" in shown


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_a_baseline_that_cannot_be_had_is_one_sentence(checkpoints, uploads, monkeypatch, tmp_path, name):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    zoo = zoo_module.Zoo(checkpoints, allow_folders=False, baselines=BASELINES)
    sentence = "could not be loaded: The weights of .* are neither cached nor reachable"
    image = {"path": str(uploads["grey.png"])}
    with pytest.raises(Refusal, match=sentence):
        app.answer(zoo, image, "star", [name])
    found = app.answer(zoo, image, "star", ["lts", name])
    assert [maps.entry.key for maps in found.models] == ["lts"]
    (failure,) = found.failures
    assert re.search(sentence, failure.sentence) and failure.sentence.startswith(BASELINES[name].title)
    assert "\n" not in failure.sentence


@pytest.mark.parametrize("allow_folders", [False, True])
@pytest.mark.parametrize(
    "reference", ["", None, "tiny", "a/b/c", "../x/..", "https://hf.co/a/b", "owner/name@", "a\0b", "x" * 9000]
)
def test_what_is_no_hub_id_is_refused(checkpoints, reference, allow_folders):
    with pytest.raises(Refusal, match="Give a Hub id|too long for a Hub id"):
        zoo_module.Zoo(checkpoints, allow_folders).add(reference)


def test_a_picture_that_a_model_would_enlarge_without_bound_is_refused(zoo, comparison, monkeypatch):
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
    for example in app.examples():
        row = RefScenes("refscenes", "test", 384)[example["scene"]]
        texts = {expression["text"] for expression in row["expressions"]}
        assert set(example["expressions"]) <= texts
        np.testing.assert_array_equal(
            np.asarray(Image.open(SPACE / "examples" / example["file"])), np.asarray(row["image"])
        )


def test_the_api_has_one_public_endpoint(zoo):
    endpoints = app.build(zoo).get_api_info()["named_endpoints"]
    assert list(endpoints) == ["/segment"]
    names = [parameter["parameter_name"] for parameter in endpoints["/segment"]["parameters"]]
    assert names == ["image", "expressions", "models", "threshold"]


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
