"""Pretraining of a tiny CLIP: its captions and crops, a short run, and a model that starts from it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoTokenizer

from hf_ris.data.refscenes.scenes import load_refscenes
from hf_ris.models.processing_ris import RisImageProcessor
from hf_ris.training.build import build_model
from hf_ris.training.pretraining.clip import ObjectCrops, crop, looks
from hf_ris.training.pretraining.clip import main as pretrain
from hf_ris.training.recipe import load_recipe


RECIPES = Path(__file__).resolve().parents[1] / "train" / "recipes"
CRIS = RECIPES / "cris" / "refscenes.yaml"
TINY = [
    "model.clip_config.arguments={embed_dim: 16, vision_cfg: {layers: [1, 1, 1, 1], width: 4, image_size: 32}, "
    "text_cfg: {context_length: 24, width: 16, heads: 2, layers: 1}}",
    "model.neck_dims=[8, 16, 16]",
    "data={name: refscenes, size: 12, image_size: 64, validation_size: 4}",
]
SHORT = ["--scenes", "12", "--batch-size", "4", "--learning-rate", "0.005"]


def row(*texts: tuple[str, list[int]]) -> dict:
    return {
        "objects": [{"category": name} for name in ("cup", "star", "hat")],
        "expressions": [{"text": text, "object_indices": indices} for text, indices in texts],
    }


def test_captions_say_how_one_object_looks():
    described = looks(
        row(
            ("the violet cup", [0]),
            ("small mug", [0]),
            ("cup that is not striped", [0]),
            ("the red things", [0, 1]),
            ("plain star", [1]),
            ("hat without dots", [2]),
        )
    )
    assert described == {
        0: ("purple", ["the violet cup", "small mug", "cup that is not striped", "a purple cup", "a small purple cup"]),
        1: (None, ["plain star", "a plain star"]),
        2: (None, ["hat without dots"]),
    }
    assert looks(row(("orange star", [1])))[1][1][-1] == "an orange star"


def test_captions_of_the_real_scenes_name_places_nowhere():
    scenes = load_refscenes("refscenes_plus", "val", 20, image_size=64)
    texts = [text for scene in scenes for _, captions in looks(scene).values() for text in captions]
    assert len(texts) > 100
    words = {word for text in texts for word in text.split()}
    assert not {"left", "right", "above"} & words and {"not", "without"} <= words


@pytest.mark.parametrize("bbox", [[30, 40, 20, 10], [0, 0, 12, 30], [90, 95, 38, 33], [0, 0, 128, 128]])
def test_a_crop_is_a_square_that_holds_its_object(bbox):
    x, y, width, height = bbox
    pixels = np.zeros((128, 128, 3), np.uint8)
    pixels[y : y + height, x : x + width] = 255
    for margin in (1.1, 1.5, 2.2):
        piece = np.asarray(crop(Image.fromarray(pixels), bbox, margin))
        side = min(128, round(margin * max(width, height)))
        assert piece.shape == (side, side, 3)
        assert (piece[..., 0] > 0).sum() == width * height  # whole, and nothing beyond the image
    moved = np.asarray(crop(Image.fromarray(pixels), [30, 40, 20, 20], 2, (0.5, -0.5)))
    assert moved.shape == (40, 40, 3)
    assert np.array_equal(moved, pixels[20:60, 30:70])


def test_crops_follow_from_their_key():
    scenes = load_refscenes("refscenes_plus", "train", 4, image_size=64)
    crops = ObjectCrops(scenes, RisImageProcessor(image_size=32), seed=0, augment=True)
    one, again, later = crops[0, 1], crops[0, 1], crops[1, 1]
    assert torch.equal(one[0], again[0]) and one[1:] == again[1:]
    assert not torch.equal(one[0], later[0]) and one[2] == later[2]
    assert len(one[0]) == len(one[1]) == len(one[2]) == len(looks(scenes[1])) > 1
    pixels, captions, truths = crops.collate([one, later])
    assert len(pixels) == len(captions) == len(truths) == 2 * len(one[1])


def test_a_model_starts_from_the_pretrained_pair(tmp_path):
    pretrain(["--recipe", str(CRIS), "--out", str(tmp_path), "--steps", "3", *SHORT, *TINY])
    told = json.loads((tmp_path / "pretraining.json").read_text())
    assert told["steps"] == 3 and told["scenes"] == 12 and told["versions"]["open_clip_torch"]
    assert all(0 <= told[name] <= 1 for name in ("retrieval_accuracy", "colour_accuracy", "category_accuracy"))

    file = tmp_path / "open_clip_model.safetensors"
    start = [f"initialize.clip={file}"]
    words = ["processor.tokenizer=pretrained", f"processor.path={tmp_path}"]
    recipe = load_recipe(CRIS, [*TINY, *start, *words, "model.max_text_length=20"])
    model, processor = build_model(recipe, load_refscenes("refscenes", "train", 12, image_size=64))
    model.eval()
    state = load_file(file)
    other = [*TINY, *start, "processor.tokenizer=wordpiece", "model.max_text_length=20", "data.size=3"]
    with pytest.raises(ValueError, match="another vocabulary than the recipe"):
        build_model(load_recipe(CRIS, other), load_refscenes("refscenes", "train", 3, image_size=64))
    assert torch.equal(model.vision_encoder.backbone.layer3[0].conv1.weight, state["visual.layer3.0.conv1.weight"])

    # open_clip's own reading of the folder, and the model's sentence: the same vector, whatever the padding
    theirs = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    texts = ["the small red cup", "star"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    padded = tokenizer(texts, padding="max_length", max_length=24, return_tensors="pt")
    ours = processor(Image.new("RGB", (64, 64)), texts)
    with torch.no_grad():
        expected = theirs.encode_text(padded["input_ids"] * padded["attention_mask"], normalize=True)
        sentence = F.normalize(model.encode_text(ours["input_ids"], ours["attention_mask"])[1], dim=-1)
    torch.testing.assert_close(sentence, expected, atol=1e-5, rtol=1e-4)
    assert (expected[0] - expected[1]).norm() > 1e-2


def test_loss_falls_and_the_same_seed_gives_the_same_weights(tmp_path):
    for folder in ("one", "two"):
        arguments = ["--recipe", str(CRIS), "--out", str(tmp_path / folder), "--steps", "100", *SHORT, "--no-bf16"]
        pretrain([*arguments, *TINY])
    log = [json.loads(line)["loss"] for line in (tmp_path / "one" / "log.jsonl").read_text().splitlines()]
    assert log[-1] < 0.8 * log[0]
    one, two = (load_file(tmp_path / folder / "open_clip_model.safetensors") for folder in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_one_clip_fits_cris_segvlm_and_eavl():
    """Also its words: numbered by the same corpus, or read from its folder."""
    cris = load_recipe(CRIS)
    same = [load_recipe(RECIPES / arch / "refscenes.yaml") for arch in ("segvlm", "eavl")]
    phrases = load_recipe(RECIPES / "segvlm" / "phrasescenes.yaml")
    corpus = ("name", "split", "size", "image_size")
    for recipe in same:
        assert replace(recipe.processor, threshold=None) == cris.processor
        assert all(getattr(recipe.data, field) == getattr(cris.data, field) for field in corpus)
    for recipe in (*same, phrases):
        assert recipe.model["clip_config"] == cris.model["clip_config"]
        assert recipe.initialize == cris.initialize
    assert phrases.processor.tokenizer == "pretrained"
    assert Path(phrases.processor.path) == Path(phrases.initialize.clip).parent


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        (RECIPES / "lts" / "refscenes.yaml", TINY[-1:], "has no CLIP"),
        (CRIS, [*TINY, "processor.tokenizer=corpus"], "as wordpiece and clip do"),
    ],
)
def test_what_cannot_be_pretrained_is_one_sentence(recipe, overrides, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        pretrain(["--recipe", str(recipe), "--out", str(tmp_path / "none"), *SHORT, *overrides])
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "none").exists()
