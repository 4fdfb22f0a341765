"""A video model is trained on Moving RefScenes, alone or with images beside, from the bundled image model's weights."""

import json

import numpy as np
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

from hf_ris.commands import command
from hf_ris.data import (
    VideoCollator,
    VideoTrainingRows,
    expression_mask,
    is_video_data,
    lazy_frames,
    load_moving_scenes,
    load_refscenes,
    validate_video,
)
from hf_ris.data.transforms import expression_texts
from hf_ris.data.video_schema import expression_masks
from hf_ris.metrics import has_motion
from hf_ris.training.build import build_model, build_rows
from hf_ris.training.optimizer import learning_rate_factor
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


# --- images beside the videos


BESIDE = ["data.size=6", "data.images=refscenes", "data.images_size=5", "data.image_size=96", "data.validation_size=1"]


def test_images_are_clips_of_one_frame_repeated():
    recipe = load_recipe(RECIPE, [*BESIDE, "data.max_expressions=3"])
    corpus, rows, validation = build_rows(recipe.data, 0)
    assert (len(rows), rows.videos, len(corpus)) == (11, 6, 11) and is_video_data(validation)
    images = load_refscenes("refscenes", "train", 5, image_size=96)
    alone = build_rows(load_recipe(RECIPE, ["data.size=6", "data.max_expressions=3"]).data, 0)[1]
    assert rows[3, 0]["clip"] == alone[3, 0]["clip"]  # what is drawn of a video does not depend on the images
    for index in range(rows.videos, len(rows)):
        row, image = rows[3, index], images[index - rows.videos]
        assert row["clip"] == [0] * 4 and row["file_name"] == image["file_name"] and len(row["expressions"]) == 3
        validate_video(row)
        said = row["expressions"][0]
        target = expression_mask(image, next(e for e in image["expressions"] if e["text"] == said["text"]))
        assert target.any() and np.array_equal(expression_masks(row, said, [0])[0], target)
        assert row == rows[3, index]  # by its key
    texts = expression_texts(corpus)
    assert set(expression_texts(images)) < set(texts) and any(has_motion(text) for text in texts)


def test_a_batch_of_images_and_videos(tiny_trio):
    model, processor = tiny_trio("vatex_video", fresh=True)
    images = load_refscenes("refscenes", "train", 2, image_size=64)  # smaller than the videos
    videos = lazy_frames(load_moving_scenes("train", 2, image_size=96))
    rows = VideoTrainingRows(videos, max_expressions=2, clip_frames=3, images=images)
    chosen = [rows[0, 0], rows[0, 3]]
    batch = VideoCollator(processor)(chosen)
    pixels, labels = batch["pixel_values_videos"], batch["labels"]
    assert pixels.shape[:2] == (2, 3) and "frame_mask" not in batch and labels.shape[:2] == (4, 3)
    assert all(torch.equal(pixels[1, 0], frame) for frame in pixels[1, 1:]) and not torch.equal(*pixels[0, :2])
    assert labels[2].any() and all(torch.equal(labels[2, 0], frame) for frame in labels[2, 1:])
    alone = VideoCollator(processor)(chosen[1:])["labels"]
    torch.testing.assert_close(labels[2:, :, : alone.shape[-2], : alone.shape[-1]], alone)
    # without a length of clips the image is one frame, and the rest of its row padding
    whole = VideoTrainingRows(videos, max_expressions=2, images=images)
    batch = VideoCollator(processor)([whole[0, 0], whole[0, 3]])
    assert batch["frame_mask"].sum(1).tolist() == [len(videos[0]["frame_names"]), 1]
    assert torch.isfinite(model(**batch).loss)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["data.name=refscenes", "data.clip_frames=null"], "data.images is for videos, but refscenes holds images"),
        (["data.images=refscenes_video"], "data.images takes a data set of images, but refscenes_video holds videos"),
        (["data.images=null"], "data.images_size is of data.images, which names no data set"),
        (["data.images_size=0"], "data.images_size must be at least 1"),
        (["architecture=vatex", "evaluation.protocol=vatex"], "data.images is read beside videos, which vatex is not"),
    ],
)
def test_images_that_have_no_place_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        build_rows(load_recipe(RECIPE, [*BESIDE, *overrides]).data, 0)
    with pytest.raises(ValueError, match="no image of those beside the videos has an expression"):
        VideoTrainingRows([{"expressions": [1]}], images=[{"expressions": []}])


def test_the_programs_recipe_drops_the_rate_where_it_does():
    recipe = load_recipe(RECIPE.with_name("images_and_ref_youtube_vos.yaml"))
    steps = [179_999, 180_000, 219_999, 220_000]
    factors = [learning_rate_factor(recipe.schedule, step, recipe.training.max_steps, 1) for step in steps]
    assert factors == pytest.approx([1, 0.1, 0.1, 0.01])


@pytest.mark.timeout(300)
@pytest.mark.slow
def test_training_on_images_and_videos_goes_on(tmp_path):
    """Two steps, and one and one: the same log and weights; run.json tells what was read."""
    small = [*SMALL, *BESIDE, "evaluation.pictures=0", "training.log_every=1", "training.batch_size=4"]
    for name, stops in (("whole", ["2"]), ("resumed", ["1", "2"])):
        for part, stop in enumerate(stops):
            resume = ["--resume"] if part else []
            command.run(
                "train", [str(RECIPE), *small, f"output_dir={tmp_path / name}", "--stop-at-step", stop, *resume]
            )
    read = json.loads((tmp_path / "whole/run.json").read_text())["read"]["training"]
    assert read["images"] == 11 and read["videos"] == 6
    whole, resumed = (load_file(tmp_path / name / "last/model.safetensors") for name in ("whole", "resumed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    losses = [
        [json.loads(line).get("loss") for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("whole", "resumed")
    ]
    assert losses[0] == losses[1] and losses[0][0] is not None
