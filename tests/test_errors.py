"""Where the loss lies, by predictions made for it; and the threshold that a command chooses."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from hf_ris.commands.evaluate import main
from hf_ris.data.refscenes.scenes import load_refscenes
from hf_ris.evaluation.calibration import THRESHOLDS, ious
from hf_ris.evaluation.errors import answers_of, format_errors, tabulate_errors
from hf_ris.metrics import prediction_line
from hf_ris.metrics.slices import expression_kind
from hf_ris.training.build import build_model
from hf_ris.training.recipe import load_recipe


def rectangle(left: int, width: int) -> np.ndarray:
    mask = np.zeros((20, 60), bool)
    mask[5:15, left : left + width] = True
    return mask


LEFT, RIGHT = rectangle(5, 10), rectangle(35, 20)


def line(identity: int, text: str, prediction: np.ndarray, target: np.ndarray, object_id: int, image: int = 0) -> dict:
    metadata = {"expression_id": identity, "image_id": image, "ref_id": identity, "text": text, "category": "cup"}
    metadata |= {"object_ids": [object_id], "height": 20, "width": 60, "same_class_distractors": object_id - 1}
    return prediction_line(metadata, prediction, target)


LINES = [
    line(1, "the red cup", rectangle(5, 5), LEFT, 1),  # right, half of it
    line(2, "cup left of the star", LEFT | RIGHT, LEFT, 1),  # the neighbour has the larger IoU
    line(3, "second cup from the left", RIGHT | rectangle(5, 5), RIGHT, 2),  # right, and half of the neighbour with it
    line(4, "cup that is not red", np.zeros_like(LEFT), RIGHT, 2),
]


@pytest.fixture
def predictions(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in LINES))
    return path


def test_an_answer_is_right_empty_or_merged():
    answers = answers_of(LINES)
    assert [answer["iou"] for answer in answers] == pytest.approx([0.5, 1 / 3, 0.8, 0])
    assert [answer["right"] for answer in answers] == [True, False, True, False]
    assert [answer["empty"] for answer in answers] == [False, False, False, True]
    assert [answer["merged"] for answer in answers] == [False, True, True, False]
    assert [answer["kind of expression"] for answer in answers] == ["look", "relation", "ordinal", "negation"]


def test_the_parts_add_up_to_what_is_lost(predictions):
    table = tabulate_errors(predictions)
    row = table["overall"]
    assert row["mIoU"] == pytest.approx((0.5 + 1 / 3 + 0.8) / 4)
    assert row["right object"] == 0.5 and row["IoU if right"] == pytest.approx(0.65)
    assert row["outline"] == pytest.approx(0.5 * 0.35) and row["both"] == pytest.approx(0.5 * 0.35)
    assert row["mIoU"] + row["outline"] + row["both"] + row["wrong object"] == pytest.approx(1)
    assert set(table["slices"]["same-class distractors"]) == {"0", "1-2"}
    assert sum(part["expressions"] for part in table["slices"]["size of the target"].values()) == 4
    assert table["slices"]["kind of expression"]["negation"]["IoU if right"] is None
    text = format_errors(table)
    assert "kind of expression: ordinal" in text and " - " in text


def test_the_command_writes_table_and_figure_of_both_files(predictions, tmp_path, capsys):
    other = tmp_path / "perfect.jsonl"
    lines = [entry | {"prediction": entry["target"]} for entry in LINES]
    other.write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    folder = tmp_path / "errors"
    options = ["--compare", str(other), "--errors", str(folder), "--protocols", "original", "--resamples", "10"]
    main(["--predictions", str(predictions), *options])
    assert "where the loss lies" in capsys.readouterr().out
    first, second = json.loads((folder / "errors.json").read_text())
    assert second["overall"]["mIoU"] == 1 and second["overall"]["right object"] == 1 > first["overall"]["right object"]
    assert second["overall"]["wrong object"] == second["overall"]["outline"] == 0
    assert (folder / "errors.txt").is_file() and Image.open(folder / "errors.png").width > 500


def test_kinds_go_by_the_rarest():
    kinds = {
        "small red cup": "look",
        "cup on the left": "location",
        "the cup at the top of the picture": "location",
        "star without stripes": "negation",
        "fish above the cup that is not red": "relation",
        "third fish from the left": "ordinal",
        "cup nearest the top": "location",
        "a hat that is to the left of the striped fish": "relation",
        "the one next to the moon": "proximity",
        "chair nearest to the car that is not red": "proximity",
        "man near the door": "proximity",
        "boat in the top left corner of the image": "location",
    }
    assert {text: expression_kind(text) for text in kinds} == kinds


def test_iou_at_every_threshold_is_that_of_the_mask():
    random = np.random.default_rng(0)
    probability, target = random.random((9, 11)).astype(np.float32), random.random((9, 11)) > 0.5
    found = ious(probability, target)
    for threshold, value in zip(THRESHOLDS, found, strict=True):
        mask = probability > np.float32(threshold)
        assert value == pytest.approx((mask & target).sum() / (mask | target).sum())
    nothing = ious(np.zeros((3, 3), np.float32), np.zeros((3, 3), bool))
    assert (nothing == 1).all()


def test_the_chosen_threshold_stands_in_the_folder_with_its_curve(tiny_trio, tmp_path, capsys):
    model, processor = tiny_trio("lts", fresh=True)
    torch.nn.init.constant_(model.segmentation.mask.bias, -1.5)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    result = main(["--model", str(tmp_path), "--calibrate", "--size", "3"])
    assert result["split"] == "val" and result["images"] == 3 and len(result["mIoU"]) == len(THRESHOLDS)
    assert result["mIoU"][THRESHOLDS.index(result["threshold"])] == max(result["mIoU"])
    assert f"-> {result['threshold']:g}, written into" in capsys.readouterr().out
    again = AutoProcessor.from_pretrained(tmp_path)
    assert again.threshold == result["threshold"] and again.calibration == result
    again.save_pretrained(tmp_path / "again")
    assert AutoProcessor.from_pretrained(tmp_path / "again").calibration == result
    recipe = load_recipe("lts/refscenes", [f"initialize.weights={tmp_path}", "model={loss_size: full}"])
    trained_on, processor = build_model(recipe, load_refscenes("refscenes", "val", 3))
    assert processor.calibration is None and processor.enlarges == "logits" and trained_on.config.loss_size == "full"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--split", "test"], "a threshold is not chosen on test"),
        (["--result", "out.json"], "--result would be ignored: --calibrate only chooses"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(options, sentence, tiny_trio, tmp_path, capsys):
    tiny_trio("lts")[1].save_pretrained(tmp_path)
    with pytest.raises(SystemExit):
        main(["--model", str(tmp_path), "--calibrate", *options])
    assert sentence in capsys.readouterr().err


def test_a_name_is_no_folder_to_calibrate(capsys):
    with pytest.raises(SystemExit):
        main(["--model", "someone/model", "--calibrate"])
    assert "--calibrate writes into the folder" in capsys.readouterr().err
