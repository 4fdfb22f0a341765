"""A video model is trained on Moving RefScenes from the bundled image model's weights, and measured."""

import json

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

from hf_ris.commands import command
from hf_ris.training.build import build_model, build_rows
from hf_ris.training.recipe import load_recipe


RECIPE = ROOT / "train" / "recipes" / "vatex_video" / "refscenes_video.yaml"
SMALL = [
    "data.size=8",
    "data.validation_size=1",
    "training.max_steps=2",
    "training.batch_size=2",
    "training.evaluate_every=0",
    "training.save_every=1",
    f"initialize.weights={ROOT / 'space' / 'checkpoints' / 'vatex-refscenes'}",
]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_training_evaluation_and_resuming(tmp_path, capsys):
    folder = tmp_path / "run"
    command.run("train", [str(RECIPE), *SMALL, f"output_dir={folder}", "--stop-at-step", "1"])
    command.run("train", [str(RECIPE), *SMALL, f"output_dir={folder}", "--resume"])
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert {"J&F", "J", "F"} <= log[-1]["evaluation"].keys()
    report = command.run(
        "evaluate",
        ["--model", str(folder / "best"), "--data", "refscenes_video", "--split", "val", "--size", "1"]
        + ["--control", "shuffled_frames", "--resamples", "10", "--result", str(tmp_path / "result.json")],
    )
    assert report["videos"] == 1 and report["protocols"]["youtube_vos"]["overall"]["J&F"]["value"] > 0
    assert "youtube_vos: Ref-YouTube-VOS" in capsys.readouterr().out
    assert json.loads((tmp_path / "result.json").read_text())["control"] == "shuffled_frames"
    # one that is not a set of videos, or an option that is for images
    for wrong in (["--submission", "out.zip"], ["--protocols", "davis"], ["--control", "first_frame"]):
        with pytest.raises(SystemExit):
            command.run("evaluate", ["--model", str(folder / "best"), "--data", "refscenes", "--size", "1", *wrong])


def test_words_of_motion_are_added():
    recipe = load_recipe(RECIPE, SMALL)
    corpus, *_ = build_rows(recipe.data, 0)
    model, processor = build_model(recipe, corpus)
    image = load_file(ROOT / "space" / "checkpoints" / "vatex-refscenes" / "model.safetensors")
    name = "text_encoder.tower.token_embedding.weight"
    table = dict(model.named_parameters())[name]
    known = len(image[name])
    assert torch.equal(table[:known].detach(), image[name]) and len(table) == len(processor.tokenizer) > known
    assert len(processor.tokenizer.tokenize("the ball moving to the left")) == 6
    assert torch.equal(model.state_dict()["decoder.query_positions.weight"], image["decoder.query_positions.weight"])
