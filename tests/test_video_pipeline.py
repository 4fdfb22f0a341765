"""`pipeline("referring-video-segmentation")` and what reads and writes videos."""

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from test_vatex_video import TEXTS, clip, image_vatex, video_model  # noqa: F401
from transformers import pipeline

from hf_ris.data import MovingScenes
from hf_ris.models.pipeline_video_ris import VIDEO_TASK, load_frames, run_lengths
from hf_ris.models.video_files import frame_rate, read_frames, write_video


@pytest.fixture(scope="module")
def pipe(image_vatex):  # noqa: F811
    model, processor = video_model(image_vatex, window_frames=4, prior_frames=2)
    return pipeline(VIDEO_TASK, model=model, processor=processor)


def frames_of_scene() -> list[Image.Image]:
    return MovingScenes("val")[0]["frames"]


def test_files_are_read_as_written(tmp_path):
    frames = [frame.resize((97, 95)) for frame in frames_of_scene()]  # odd sides
    write_video(tmp_path / "clip.mp4", frames, 12)
    back = list(read_frames(tmp_path / "clip.mp4"))
    assert len(back) == 8 and back[0].size == (98, 96) and frame_rate(tmp_path / "clip.mp4") == 12
    gap = np.abs(np.asarray(back[3].crop((0, 0, 97, 95)), int) - np.asarray(frames[3], int)).mean()
    assert gap < 8  # H.264 loses a little
    write_video(tmp_path / "clip.gif", frames, 10)
    assert len(list(read_frames(tmp_path / "clip.gif"))) == 8
    for number, frame in enumerate(frames):
        (tmp_path / "folder").mkdir(exist_ok=True)
        frame.save(tmp_path / "folder" / f"{number:05d}.png")
    assert np.array_equal(np.asarray(load_frames(tmp_path / "folder")[2]), np.asarray(frames[2]))


def test_what_is_no_video_is_one_sentence(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty").mkdir()
    for video, message in (
        (tmp_path / "text.mp4", "cannot be read as a video"),
        (tmp_path / "none.mp4", "there is no such video file"),
        (tmp_path / "empty", "holds no frames"),
        (np.zeros((4, 4, 3), np.uint8), r"A video is an array \(frames, height, width, 3\)"),
        ([Image.new("RGB", (4, 4)), Image.new("RGB", (5, 4))], "of one size, but these are 4x4, 5x4"),
        ([], "no frame"),
        (7, "A video is a file, a folder, a list of frames or an array, got 7"),
    ):
        with pytest.raises(ValueError, match=message):
            load_frames(video)
    write_video(tmp_path / "whole.mp4", frames_of_scene())
    whole = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.mp4.* cannot be read as a video"):
        load_frames(tmp_path / "cut.mp4")
    with pytest.raises(ValueError, match="a name like out.mp4 can"):
        write_video(tmp_path / "out.nothing", frames_of_scene())


def test_pipeline(pipe, tmp_path):
    frames, steps = frames_of_scene(), []
    results = pipe(frames, TEXTS[:2], progress=lambda done, total: steps.append((done, total)))
    assert steps == [(1, 2), (2, 2)]  # windows of four frames
    assert [result["text"] for result in results] == TEXTS[:2]
    for result in results:
        assert len(result["masks"]) == len(result["rle"]) == 8 and 0 <= result["score"] <= 1
        assert result["masks"][0].size == (96, 96) and result["masks"][0].mode == "L"
        coded = coco_mask.frPyObjects(result["rle"][5], 96, 96)
        assert np.array_equal(coco_mask.decode(coded) > 0, np.asarray(result["masks"][5]) > 0)
    everything = pipe(frames, TEXTS[0], threshold=0.0, overlay=tmp_path / "out.mp4", fps=5)[0]
    assert np.asarray(everything["masks"][0]).min() == 255
    assert len(list(read_frames(tmp_path / "out.mp4"))) == 8 and frame_rate(tmp_path / "out.mp4") == 5
    write_video(tmp_path / "clip.mp4", frames, 12)
    pipe(str(tmp_path / "clip.mp4"), TEXTS[0], overlay=str(tmp_path / "again.mp4"))
    assert frame_rate(tmp_path / "again.mp4") == 12
    with pytest.raises(TypeError, match="speed"):
        pipe(frames, TEXTS[0], speed=3)


def test_image_models_answer_frame_by_frame(image_vatex):  # noqa: F811
    model, processor = image_vatex
    pipe = pipeline(VIDEO_TASK, model=model, processor=processor)
    frames, steps = frames_of_scene()[:3], []
    results = pipe(frames, TEXTS, progress=lambda done, total: steps.append(done))
    images = pipeline("referring-image-segmentation", model=model, processor=processor)
    assert steps == [1, 2, 3]
    for number, frame in enumerate(frames):
        for result, expected in zip(results, images(frame, TEXTS)):
            assert np.array_equal(np.asarray(result["masks"][number]), np.asarray(expected["mask"]))


def test_saved_and_loaded_by_task(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "saved")
    again = pipeline(VIDEO_TASK, model=str(tmp_path / "saved"), trust_remote_code=True)
    frames = frames_of_scene()
    for result, expected in zip(again(frames, TEXTS), pipe(frames, TEXTS)):
        assert result["rle"] == expected["rle"]


def test_run_lengths():
    assert run_lengths(np.array([[0, 1], [0, 1]], bool)) == {"size": [2, 2], "counts": [2, 2]}
    assert run_lengths(np.ones((2, 2), bool))["counts"] == [0, 4]
    assert run_lengths(np.zeros((2, 2), bool))["counts"] == [4]
