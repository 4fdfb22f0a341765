"""Pretraining of a vision encoder: its targets, a short run, and a model that starts from it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_ris.data import decode_mask
from hf_ris.data.refscenes.scenes import load_refscenes
from hf_ris.data.refscenes.shapes import CATEGORIES, COLOURS
from hf_ris.training.build import build_model
from hf_ris.training.pretraining.run import Run
from hf_ris.training.pretraining.vision import ObjectRows, objects_right
from hf_ris.training.pretraining.vision import main as pretrain
from hf_ris.training.recipe import load_recipe


LAVT = Path(__file__).resolve().parents[1] / "train" / "recipes" / "lavt" / "refscenes.yaml"
TINY = [
    "model.image_size=64",
    "model.vision_config.arguments={patch_size: 4, embed_dim: 8, depths: [1, 1, 1, 1], num_heads: [1, 1, 2, 2]}",
    "data={name: refscenes, size: 12, image_size: 64, validation_size: 4, augment: [flip]}",
]


SCRATCH = [*TINY, "initialize.vision_encoder=null"]


def test_targets_are_the_objects_at_each_position():
    scenes = load_refscenes("refscenes", "train", 4, image_size=64)
    names = sorted({thing["category"] for row in scenes for thing in row["objects"]})
    rows = ObjectRows(scenes, names, 64, seed=0, augment=False)
    for index, row in enumerate(scenes):
        _, (categories,), boxes = rows[0, index]
        seen = torch.zeros(16, 16, dtype=torch.bool)
        for thing in row["objects"]:
            inside = torch.from_numpy(decode_mask(thing["mask"]))[2::4, 2::4]  # the positions' centres
            assert (categories[inside] == names.index(thing["category"]) + 1).all()
            x, y, width, height = thing["bbox"]
            expected = torch.tensor([x, y, x + width, y + height])[:, None] / 64
            assert torch.allclose(boxes[:, inside], expected.expand(-1, int(inside.sum())))
            seen |= inside
        assert (categories[~seen] == 0).all()


def test_refscenes_tells_colours_textures_and_sizes():
    scenes = load_refscenes("refscenes", "val", 6, image_size=64)
    rows = ObjectRows(scenes, CATEGORIES, 64, seed=0, augment=False, name="refscenes")
    assert rows.counts == [len(CATEGORIES) + 1, 8, 4, 3]
    for index, row in enumerate(scenes):
        _, labels, _ = rows[0, index]
        assert ((labels[1:] < 0) == (labels[0] == 0)).all()
        for number, colour in enumerate(COLOURS):
            for said in row["expressions"]:
                if said["text"].startswith(f"{colour} ") and len(said["object_indices"]) == 1:
                    thing = row["objects"][said["object_indices"][0]]
                    inside = torch.from_numpy(decode_mask(thing["mask"]))[2::4, 2::4]
                    assert (labels[1][inside] == number).all()


def test_an_object_is_right_where_the_mean_of_its_positions_is():
    labels = torch.tensor([[[[1, 1, 0, 2]], [[0, 0, -1, 1]]]])
    boxes = torch.tensor([[[[0.1, 0.1, 0, 0.5]]]]).expand(1, 4, 1, 4)
    scores = [torch.zeros(1, 3, 1, 4), torch.zeros(1, 2, 1, 4)]
    scores[0][0, 1, 0, 0], scores[0][0, 2, 0, 1] = 2.0, 1.0  # one position says 1 louder than the other says 2
    scores[0][0, 2, 0, 3] = 1.0
    scores[1][0, 0, 0, :2] = 1.0  # of the second object, the colour is wrong
    scores[1][0, 0, 0, 3] = 1.0
    assert objects_right(scores, labels, boxes) == [True, False]


def test_a_killed_run_ends_as_one_that_was_not(tmp_path, monkeypatch):
    def arguments(folder, *more):
        steps = ["--steps", "40", "--batch-size", "4", "--save-every", "20", "--evaluate-every", "100"]
        return ["--recipe", str(LAVT), "--out", str(tmp_path / folder), *steps, *more, *TINY]

    pretrain(arguments("whole"))
    step = Run.step

    def killed(run, *losses, **shown):
        if run.steps == 30:
            raise KeyboardInterrupt
        step(run, *losses, **shown)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "step", killed)
        pretrain(arguments("killed"))
    assert (tmp_path / "killed" / "checkpoint.pt").is_file()
    with pytest.raises(SystemExit):  # of another run
        pretrain([*arguments("killed", "--resume"), "training.seed=1"])
    pretrain(arguments("killed", "--resume"))
    whole, resumed = (load_file(tmp_path / name / "vision_encoder.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert (tmp_path / "whole" / "log.jsonl").read_text() == (tmp_path / "killed" / "log.jsonl").read_text()
    assert not (tmp_path / "killed" / "checkpoint.pt").exists()


def test_mirrored_rows_are_mirrored_whole():
    scenes = load_refscenes("refscenes", "train", 4, image_size=64)
    names = sorted({thing["category"] for row in scenes for thing in row["objects"]})
    plain, mirrored = (ObjectRows(scenes, names, 64, 0, augment) for augment in (False, True))
    changed = 0
    for epoch in range(4):
        one, other = plain[epoch, 0], mirrored[epoch, 0]
        if torch.equal(one[0], other[0]):
            continue
        changed += 1
        assert torch.equal(one[0].flip(-1), other[0]) and torch.equal(one[1].flip(-1), other[1])
        inside = other[1][0] > 0
        x0, y0, x1, y1 = one[2].flip(-1)
        assert torch.allclose(other[2][:, inside], torch.stack([1 - x1, y0, 1 - x0, y1])[:, inside])
    assert 0 < changed < 4


def test_a_model_starts_from_the_pretrained_encoder(tmp_path):
    pretrain(["--recipe", str(LAVT), "--out", str(tmp_path), "--steps", "40", "--batch-size", "4", *TINY])
    facts = json.loads((tmp_path / "pretraining.json").read_text())
    assert 0 <= facts["category_accuracy"] <= 1 and facts["seed"] == 0 and facts["steps"] == 40
    file = tmp_path / "vision_encoder.safetensors"
    recipe = load_recipe(LAVT, [*TINY, f"initialize.vision_encoder={file}"])
    scenes = load_refscenes("refscenes", "train", 12, image_size=64)
    model, _ = build_model(recipe, scenes)
    state, scratch = (
        model.vision_encoder.state_dict(),
        build_model(load_recipe(LAVT, SCRATCH), scenes)[0].vision_encoder,
    )
    assert all(torch.equal(state[name], tensor) for name, tensor in load_file(file).items())
    assert not torch.equal(state["norms.0.weight"], scratch.state_dict()["norms.0.weight"])  # it was trained

    wider = load_recipe(
        LAVT, [*TINY, "model.vision_config.arguments.embed_dim=16", f"initialize.vision_encoder={file}"]
    )
    with pytest.raises(ValueError, match="does not fit model.vision_config"):
        build_model(wider, scenes)
    missing = load_recipe(LAVT, [*TINY, f"initialize.vision_encoder={tmp_path / 'none'}"])
    with pytest.raises(ValueError, match="there is no file"):
        build_model(missing, scenes)


def test_loss_falls_and_the_same_seed_gives_the_same_weights(tmp_path):
    for folder in ("one", "two"):
        arguments = ["--steps", "120", "--batch-size", "4", "--learning-rate", "0.005"]
        pretrain(["--recipe", str(LAVT), "--out", str(tmp_path / folder), *arguments, *TINY])
    log = [json.loads(line)["loss"] for line in (tmp_path / "one" / "log.jsonl").read_text().splitlines()]
    assert log[-1] < 0.8 * log[0]
    one, two = (load_file(tmp_path / folder / "vision_encoder.safetensors") for folder in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)
