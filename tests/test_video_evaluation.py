"""Videos under `hf-ris evaluate`: the choice of a threshold, and files of predictions that give the model's report."""

import json
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset, DatasetDict
from PIL import Image
from transformers import AutoProcessor

from hf_ris.commands.evaluate import main
from hf_ris.data import VIDEO_FEATURES, encode_mask, lazy_frames
from hf_ris.evaluation.answers import PredictionsFile
from hf_ris.evaluation.calibration import THRESHOLDS, video_curve
from hf_ris.evaluation.video_predictions import evaluate_video_predictions
from hf_ris.evaluation.videos import evaluate_videos, video_report
from hf_ris.metrics import is_of_videos


SIZE = (12, 16)
TEXTS = ["the dog running to the left", "a cat", "the second bird on the right", "dog", "nothing of it"]


def square(top: int, left: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[top : top + 5, left : left + 6] = True
    return mask


def video_row(number: int) -> dict:
    """Three frames, of which the second is not annotated; two objects, the second not in the last frame; a void."""
    frames = [Image.new("RGB", SIZE[::-1], (40 * frame, 90, 10 * number)) for frame in range(3)]
    first = [encode_mask(square(1 + number, 2)), None, encode_mask(square(2, 3 + number))]
    second = [encode_mask(square(6, 9)), None, None]
    return {
        "frames": frames,
        "frame_names": ["00000", "00005", "00010"],
        "video_id": number,
        "file_name": f"video{number}",
        "height": SIZE[0],
        "width": SIZE[1],
        "objects": [
            {"object_id": 1, "category": "dog", "masks": first},
            {"object_id": 2, "category": "", "masks": second},
        ],
        "expressions": [
            {
                "expression_id": 10 * number + place,
                "name": str(place),
                "ref_id": place,
                "text": text,
                "object_indices": [[0], [1], [0, 1], [0], []][place],
                "annotation_set": place // 2,
            }
            for place, text in enumerate(TEXTS)
        ],
        "void": [None, None, encode_mask(square(7, 0))],
    }


@pytest.fixture(scope="module")
def videos() -> Dataset:
    return lazy_frames(Dataset.from_list([video_row(number) for number in range(3)], features=VIDEO_FEATURES))


class Blurred(torch.nn.Module):
    """An image model whose probabilities are a formula of the frame's colour and of the text's length."""

    main_input_name = "pixel_values"

    def forward(self, colour, lengths):
        y, x = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
        waves = [torch.sin(0.4 * y + 0.01 * n * x + colour / 30) for n in lengths]
        return SimpleNamespace(logits=3 * torch.stack(waves))


class Reader:
    """Its processor."""

    def __init__(self, threshold: float = 0.5):
        self.threshold = threshold

    def __call__(self, frame, texts):
        colour = torch.tensor(float(sum(frame.getpixel((0, 0)))))
        return {"colour": colour, "lengths": torch.tensor([len(text) for text in texts])}

    def post_process_referring_segmentation(self, outputs, sizes):
        probabilities = outputs.logits.sigmoid()
        return [{"mask": p > self.threshold, "probability": p, "score": 0.5} for p in probabilities]


# --- the threshold


def test_the_curve_is_the_evaluators_j(videos):
    accelerator = Accelerator(cpu=True)
    values = video_curve(accelerator, Blurred(), Reader(), videos, max_expressions=2)
    assert values.std() > 0.01
    for place in (4, 18, 30):
        evaluator = evaluate_videos(accelerator, Blurred(), Reader(THRESHOLDS[place]), videos)
        assert values[place] == pytest.approx(evaluator.compute()["J"], abs=1e-12)


def test_without_annotations_nothing_is_chosen(videos):
    bare = Dataset.from_list([video_row(0) | {"objects": [], "expressions": []}], features=VIDEO_FEATURES)
    with pytest.raises(ValueError, match="no annotated expression, so that no threshold"):
        video_curve(Accelerator(cpu=True), Blurred(), Reader(), lazy_frames(bare))


@pytest.mark.parametrize("name", ["vatex_video", "lts"])
def test_the_chosen_threshold_stands_in_the_folder(name, tiny_trio, tmp_path, capsys):
    """Of a video model and, frame by frame, of an image model."""
    model, processor = tiny_trio(name)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    data = ["--data", "refscenes_video", "--size", "1"]
    result = main(["--model", str(tmp_path), "--calibrate", *data])
    assert {"split": "val", "videos": 1}.items() <= result.items() and not {"mIoU", "images"} & result.keys()
    assert len(result["J"]) == len(THRESHOLDS) and result["J"][THRESHOLDS.index(result["threshold"])] == max(
        result["J"]
    )
    assert f"{result['threshold']:6.3f}  J " in capsys.readouterr().out
    again = AutoProcessor.from_pretrained(tmp_path)
    assert again.threshold == result["threshold"] and again.calibration == result
    with pytest.raises(SystemExit):
        main(["--model", str(tmp_path), "--calibrate", *data, "--submission", str(tmp_path / "out.zip")])
    assert "--submission would be ignored: --calibrate only chooses" in capsys.readouterr().err


# --- files of predictions


def predicted(videos, path, protocols, **settings):
    """The report of the model while it writes its answers to `path`."""
    accelerator = Accelerator(cpu=True)
    predictions = PredictionsFile(path, accelerator)
    evaluator = evaluate_videos(
        accelerator, Blurred(), Reader(), videos, protocols=protocols, record_line=predictions.record, **settings
    )
    predictions.close()
    return video_report(evaluator, resamples=50)


@pytest.fixture(scope="module")
def answers(videos, tmp_path_factory):
    path = tmp_path_factory.mktemp("answers") / "answers.jsonl"
    predicted(videos, path, ["youtube_vos"])
    return path


@pytest.mark.parametrize("protocols", [["youtube_vos"], ["davis"], ["davis", "youtube_vos"]])
def test_the_file_gives_the_models_report(videos, answers, protocols, tmp_path):
    told = predicted(videos, tmp_path / "own.jsonl", protocols)
    assert 0 < told["protocols"][protocols[0]]["overall"]["J&F"]["value"] < 1
    # whichever protocols were asked for when it was written
    for path in (answers, tmp_path / "own.jsonl"):
        assert video_report(evaluate_video_predictions(path, protocols), resamples=50) == told
    assert [file.name for file in tmp_path.iterdir()] == ["own.jsonl"]
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [line["expression_id"] for line in lines] == [10 * v + e for v in range(3) for e in range(5)]
    assert lines[7]["frames"] == ["00000", "00010"] and lines[7]["objects"][1]["masks"][1] is None
    assert lines[7]["void"][0] is None and lines[7]["void"][1] == video_row(1)["void"][2]


def test_a_file_of_shuffled_frames_and_other_expressions(videos, tmp_path):
    for control in ("shuffled_frames", "other_object_expression"):
        path = tmp_path / f"{control}.jsonl"
        told = predicted(videos, path, ["youtube_vos", "davis"], control=control)
        again = video_report(evaluate_video_predictions(path, ["youtube_vos", "davis"]), resamples=50)
        for name in ("youtube_vos", "davis"):
            one, other = (report["protocols"][name]["overall"]["J&F"] for report in (told, again))
            assert one == pytest.approx(other, abs=1e-12)


class Rank:
    """Of two processes, as far as answering goes."""

    device, num_processes = "cpu", 2
    autocast = staticmethod(nullcontext)

    def __init__(self, number: int):
        self.process_index, self.is_main_process = number, number == 0

    def wait_for_everyone(self):
        pass


def test_two_processes_write_the_same_file(videos, answers, tmp_path):
    """Three videos are four shares; what both answered stands there once."""
    path, files = tmp_path / "answers.jsonl", []
    for rank in (Rank(1), Rank(0)):
        files.append(PredictionsFile(path, rank))
        evaluate_videos(rank, Blurred(), Reader(), videos, record_line=files[-1].record)
    for file in files:
        file.close()
    assert path.read_bytes() == answers.read_bytes() and [file.name for file in tmp_path.iterdir()] == [path.name]


def test_the_command_reports_on_the_file(tiny_trio, tmp_path, capsys):
    model, processor = tiny_trio("vatex_video")
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    path, both = tmp_path / "out" / "answers.jsonl", ["--protocols", "youtube_vos", "davis", "--resamples", "20"]
    data = ["--data", "refscenes_video", "--split", "val", "--size", "2", "--output", str(path)]
    told = main(["--model", str(tmp_path / "model"), *data, *both])
    capsys.readouterr()
    again = main(["--predictions", str(path), *both, "--result", str(tmp_path / "result.json")])
    for name in ("protocols", "videos", "expressions", "bootstrap"):
        assert again[name] == told[name]
    assert "davis: Ref-DAVIS17" in capsys.readouterr().out
    assert json.loads((tmp_path / "result.json").read_text()) == again
    for wrong, message in (
        (["--compare", str(path)], "--compare is for images"),
        (["--errors", str(tmp_path / "e")], "--errors is for images"),
        (["--protocols", "original"], "Protocols of videos are youtube_vos, davis, not original"),
        (["--size", "2"], "--size would be ignored"),
    ):
        with pytest.raises(SystemExit):
            main(["--predictions", str(path), *wrong])
        assert message in capsys.readouterr().err


def test_without_annotations_there_is_nothing_to_write(tiny_trio, tmp_path, capsys):
    for part in tiny_trio("lts"):
        part.save_pretrained(tmp_path / "model")
    bare = Dataset.from_list([video_row(0) | {"objects": [], "expressions": []}], features=VIDEO_FEATURES)
    DatasetDict({"val": bare}).save_to_disk(tmp_path / "data")
    with pytest.raises(SystemExit):
        main(
            ["--model", str(tmp_path / "model"), "--data", str(tmp_path / "data"), "--split", "val"]
            + ["--output", str(tmp_path / "out.jsonl")]
        )
    assert "--output writes the answers to annotated frames, but" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


RLE = encode_mask(square(0, 0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": 3}, "frames is a list, but here it is 3"),
        ({"frames": [1, 2]}, "frames is a list of strings"),
        ({"height": 0}, "height and width are at least 1"),
        ({"video_id": True}, "video_id is an integer, but here it is true"),
        ({"expression_id": 1 << 70}, "expression_id is an integer"),
        ({"object_indices": [2]}, r"object_indices are distinct places in 2 objects, but here they are \[2\]"),
        ({"object_indices": [0, 0]}, "object_indices are distinct"),
        ({"objects": [{"object_id": 1}]}, r"objects\[0\] has object_id, category, masks"),
        ({"objects": [{"object_id": "1", "category": "", "masks": []}]}, r"objects\[0\].object_id is an integer"),
        ({"objects": [{"object_id": 1, "category": "", "masks": [RLE]}], "object_indices": []}, "1 masks for 2 frames"),
        ({"prediction": [RLE]}, "prediction has 1 masks for 2 frames"),
        ({"prediction": [RLE, None]}, r"prediction\[1\] is an RLE .* null"),
        ({"merged": [RLE, RLE | {"size": [3, 4]}]}, r"merged\[1\] has size \[3, 4\], but \[12, 16\] is needed"),
        ({"void": [None, RLE | {"counts": "0"}]}, r"void\[1\] is broken"),
        ({"colour": 1}, "there is no field 'colour'; the optional ones are merged, threshold"),
        ({"width": 15}, r"\[12, 15\] is needed"),
    ],
)
def test_a_broken_line_is_named(answers, change, message, tmp_path):
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    lines[1] |= change
    path = tmp_path / "broken.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match=f"broken.jsonl, line 2: .*{message}"):
        evaluate_video_predictions(path)


def test_files_that_do_not_hold_together(answers, tmp_path):
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    path = tmp_path / "broken.jsonl"

    def told(changed, protocols=("youtube_vos",)):
        path.write_text("".join(json.dumps(line) + "\n" for line in changed))
        with pytest.raises(ValueError) as caught:
            evaluate_video_predictions(path, protocols)
        return str(caught.value)

    assert "expressions 0 and 1 of video 0 have different video" in told([lines[0], lines[1] | {"video": "another"}])
    assert "line 1 has expression_id 0 too" in told([lines[0], lines[0]])
    assert "holds no predictions" in told([])
    assert "line 1: the line lacks video_id" in told([{k: v for k, v in lines[0].items() if k != "video_id"}])
    bare = [{k: v for k, v in line.items() if k not in ("merged", "threshold")} for line in lines]
    assert "expression 0 has no merged, which the davis protocol needs" in told(bare, ["davis"])
    path.write_text("".join(json.dumps(line) + "\n" for line in bare))
    assert evaluate_video_predictions(path).compute() == evaluate_video_predictions(answers).compute()
    for text in ("", "{", "[" * 100_000, '{"video_id"', "[]"):
        path.write_text(text)
        assert not is_of_videos(path)
    assert is_of_videos(answers)
