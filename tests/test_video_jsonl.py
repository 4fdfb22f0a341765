"""A user's own videos: files and folders of frames with JSONL."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_ris.data import MovingScenes, encode_mask, load
from hf_ris.data.video_schema import annotated_frames, frames_of, lazy_frames, mask_of
from hf_ris.models.video_files import write_video


def write(folder: Path, *lines: dict) -> Path:
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    frames = MovingScenes("val")[0]["frames"]
    write_video(tmp_path / "clip.mp4", frames, 8)
    (tmp_path / "frames").mkdir()
    for number, frame in enumerate(frames[:3]):
        frame.save(tmp_path / "frames" / f"{number}.png")
    mask = np.zeros((96, 96), np.uint8)
    mask[10:20, 5:25] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return tmp_path


def test_files_and_folders(folder):
    mask = np.asarray(Image.open(folder / "mask.png")) > 0
    said = [{"text": "the ball that stops", "object": 0}, {"text": "a fish", "objects": []}]
    clip = {
        "video": "clip.mp4",
        "objects": [{"masks": {"0": "mask.png", "5": encode_mask(mask)}, "category": "ball"}],
        "expressions": said,
    }
    data = load(write(folder, clip, {"video": "frames", "objects": [], "expressions": said[1:]}), "train")
    first, second = lazy_frames(data)
    assert len(frames_of(first)) == 8 and len(frames_of(second)) == 3
    assert np.array_equal(np.asarray(frames_of(second)[1]), np.asarray(Image.open(folder / "frames" / "1.png")))
    assert annotated_frames(first) == [0, 5] and np.array_equal(mask_of(first["objects"][0]["masks"][5]), mask)
    assert [one["object_indices"] for one in first["expressions"]] == [[0], []]
    assert (first["height"], first["width"], second["video_id"]) == (96, 96, 1)


@pytest.mark.parametrize(
    "line, message",
    [
        ({"video": "none.mp4"}, "there is no file"),
        ({"video": "../clip.mp4"}, "leads outside the folder"),
        ({"video": "clip.mp4", "sound": 1}, "a line has no field .sound."),
        ({"video": "clip.mp4", "objects": [{"masks": ["mask.png"]}]}, "are {frame: mask}"),
        ({"video": "clip.mp4", "expressions": [{"text": "a cup", "object": 0}]}, "but there are 0, counted from 0"),
        ({"video": "clip.mp4", "expressions": [{"text": "a cup"}]}, "one of the two"),
        ({"video": "clip.mp4", "objects": [{"masks": {"9": "mask.png"}}]}, "the video has the frames 0 to 7"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(folder, line, message):
    with pytest.raises(ValueError, match=message) as error:
        load(write(folder, line), "train")
    assert "train.jsonl line 1" in str(error.value)
