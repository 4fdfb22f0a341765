"""Videos under `hf-ris evaluate`: the choice of a threshold."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from PIL import Image
from transformers import AutoProcessor

from hf_ris.commands.evaluate import main
from hf_ris.data import VIDEO_FEATURES, encode_mask, lazy_frames
from hf_ris.evaluation.calibration import THRESHOLDS, video_curve
from hf_ris.evaluation.videos import evaluate_videos


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
