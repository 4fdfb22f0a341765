"""The pretraining of video models: a clip's objects, what learns, and a checkpoint that training begins with."""

import json

import pytest
import torch
from conftest import ROOT
from transformers import AutoModelForImageSegmentation, AutoProcessor

from hf_ris.data import VideoTrainingRows, decode_mask, load_split
from hf_ris.training.build import build_model
from hf_ris.training.pretraining.motion import Clips, Finder, main
from hf_ris.training.recipe import load_recipe


RECIPE = "vatex_video/refscenes_video"
IMAGE_MODEL = ROOT / "space" / "checkpoints" / "vatex-refscenes"
SMALL = ["--no-bf16", "--batch-size", "2", "data.size=4", "data.validation_size=2", f"initialize.weights={IMAGE_MODEL}"]


@pytest.fixture(scope="module")
def parts():
    """(rows, collator, finder) of two clips."""
    recipe = load_recipe(RECIPE, ["data.size=2", f"initialize.weights={IMAGE_MODEL}"])
    data = load_split(recipe.data.name, "train", 2, None)
    model, processor = build_model(recipe, data)
    return VideoTrainingRows(data, None, 3, "spread"), Clips(processor), Finder(model, processor).eval()


def test_a_batch_holds_the_objects_of_its_clips(parts):
    rows, collate, _ = parts
    picked = [rows[0, 0], rows[0, 1]]
    pixels, masks, clips, texts, targets = collate(picked)
    assert pixels.shape == (2, 3, 3, 96, 96) and masks.shape[1:] == (3, 96, 96)
    assert clips.tolist() == sorted(clips.tolist()) and len(clips) == len(masks)
    said = [(row, one) for row in picked for one in row["expressions"]]
    assert texts == [one["text"] for _, one in said]
    for (row, one), target in zip(said, targets.tolist()):
        entry = row["objects"][one["object_indices"][0]]
        expected = [decode_mask(entry["masks"][place]) for place in row["clip"]]
        assert masks[target].bool().tolist() == [mask.tolist() for mask in expected]


def test_objects_are_compared_within_their_clip(parts):
    rows, collate, finder = parts
    batch = collate([rows[0, 0], rows[0, 1]])
    logits, targets = finder(batch)
    clips = batch[2]
    assert logits.isfinite().equal(clips[targets][:, None] == clips) and targets.equal(batch[4])
    alone, _ = finder(collate([rows[0, 1]]))
    own = logits[clips[targets] == 1][:, clips == 1]
    torch.testing.assert_close(own, alone, atol=1e-4, rtol=1e-4)


def test_what_learns_and_what_stays(tmp_path):
    """The eyes and the new words learn; what CLIP's heatmap reads stays; training begins with what is written."""
    main(["--recipe", RECIPE, "--out", str(tmp_path), "--steps", "2", *SMALL])
    told = json.loads((tmp_path / "pretraining.json").read_text())
    assert told["steps"] == 2 and 0 <= told["right_object_of_motion"] <= 1 and told["clips"] == 4
    model = AutoModelForImageSegmentation.from_pretrained(tmp_path)
    before = AutoModelForImageSegmentation.from_pretrained(IMAGE_MODEL).state_dict()
    known = len(AutoProcessor.from_pretrained(IMAGE_MODEL).tokenizer)
    after = {key: value[: len(before[key])] if value.ndim else value for key, value in model.state_dict().items()}
    changed = {key for key, value in after.items() if not value.equal(before[key])}
    parts = ("vision_encoder.", "cmd.projections.", "text_projection.")
    assert changed and all(key.startswith(parts) for key in changed)
    assert {part for part in parts if any(key.startswith(part) for key in changed)} == set(parts)
    assert len(model.get_input_embeddings().weight) > known
    recipe = load_recipe(RECIPE, ["data.size=4", f"initialize.weights={tmp_path}"])
    again, processor = build_model(recipe, load_split(recipe.data.name, "train", 4, None))
    assert len(processor.tokenizer) == len(again.get_input_embeddings().weight)
    torch.testing.assert_close(again.state_dict(), model.state_dict(), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "vatex/refscenes"], "is for vatex, which sees no videos"),
        (
            ["--recipe", RECIPE, "initialize={weights: scratch, extend_vocabulary: 'no'}"],
            "initialize.weights is to name a checkpoint",
        ),
    ],
)
def test_what_cannot_be_pretrained_is_said(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([*arguments, "--out", str(tmp_path)])
    assert message in capsys.readouterr().err
