"""The Space's tab of moving pictures without a browser: which videos are read, what models say, what can be taken."""

import io

import gradio as gr
import numpy as np
import pytest
from conftest import build_tiny
from PIL import Image
from test_space import Refusal, answers, clips, comparing, save_tiny_models, video, zoo_module

from hf_ris.models.video_files import read_frames, write_video


def frames(number: int, size: tuple[int, int] = (48, 32)) -> list[Image.Image]:
    """Grey frames, each lighter than the one before."""
    return [Image.new("RGB", size, (5 + 240 * k // number,) * 3) for k in range(number)]


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    save_tiny_models(folder)
    model, processor = build_tiny("vatex_video")
    model.save_pretrained(folder / "moving")
    processor.save_pretrained(folder / "moving")
    zoo = zoo_module.Zoo(folder, allow_folders=False)
    return video.VideoService(comparing.Comparer(zoo), tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("ending", ["mp4", "mov", "webm", "mkv", "avi", "gif"])
def test_videos_of_every_kind_are_read(tmp_path, ending):
    if ending == "webm":  # the container of which Matroska is the other name; its own codecs are slow to write
        write_video(tmp_path / "clip.mkv", frames(9), 10)
        (tmp_path / "clip.mkv").rename(tmp_path / "clip.webm")
    else:
        write_video(tmp_path / f"clip.{ending}", frames(9), 10)
    clip = clips.open_clip(tmp_path / f"clip.{ending}", f"mine.{ending}")
    assert len(clip.frames) == 9 and clip.size == (32, 48) and clip.name == f"mine.{ending}" and not clip.thinned
    assert clip.rate == pytest.approx(10, rel=0.15)
    means = [np.asarray(frame).mean() for frame in clip.frames]
    assert means == sorted(means) and means[-1] - means[0] > 100


def test_a_long_video_is_seen_evenly_and_a_large_one_small(tmp_path):
    write_video(tmp_path / "long.mp4", frames(151, (320, 240)), 15)
    clip = clips.open_clip(tmp_path / "long.mp4")
    assert len(clip.frames) == clips.FRAMES and clip.thinned and np.prod(clip.size) <= clips.CLIP_PIXELS * 1.01
    assert clip.rate == pytest.approx(15 * clips.FRAMES / 151)
    steps = np.diff([np.asarray(frame).mean() for frame in clip.frames])
    assert steps.min() > 0 and steps.max() < 3 * steps.mean()


def refused(tmp_path, content: bytes, name: str = "clip.mp4") -> str:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Refusal) as error:
        clips.open_clip(tmp_path / name)
    return str(error.value)


def test_what_cannot_be_read_is_one_sentence(tmp_path, monkeypatch):
    write_video(tmp_path / "whole.mp4", frames(30), 1)
    whole = (tmp_path / "whole.mp4").read_bytes()
    assert "lasts 30 s; the limit is 20 s" in refused(tmp_path, whole)
    write_video(tmp_path / "short.mp4", frames(30), 25)
    short = (tmp_path / "short.mp4").read_bytes()
    assert "damaged" in refused(tmp_path, short[: len(short) // 2])
    png = io.BytesIO()
    frames(1)[0].save(png, "PNG")
    # playlists and scripts name other files, which ffmpeg would open
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{tmp_path}/short.mp4\n#EXT-X-ENDLIST\n".encode()
    script = f"ffconcat version 1.0\nfile '{tmp_path}/short.mp4'\n".encode()
    for content in (playlist, script, png.getvalue(), b"", b"no video"):
        assert "not a video that can be read" in refused(tmp_path, content)
    with monkeypatch.context() as patch:
        patch.setattr(clips, "MAX_DECODED", 20)
        assert "more than 20 frames" in refused(tmp_path, short)
    with monkeypatch.context() as patch:
        patch.setattr(clips, "MAX_FRAME_PIXELS", 1000)
        assert "48 x 32 pixels" in refused(tmp_path, short)
    with monkeypatch.context() as patch:
        patch.setattr(clips, "READ_SECONDS", 0)
        with pytest.raises(Refusal, match="Reading this video was stopped after 0 seconds"):
            clips.read_clip({"path": str(tmp_path / "short.mp4")})
    with pytest.raises(Refusal, match="no such video here any more"):
        clips.open_clip(tmp_path)
    for value, sentence in (
        (None, "There is no video yet"),
        ("clip.mp4", "must be an uploaded file"),
        ({"example": "none"}, "There is no example video “none”"),
        ({"example": ["boat"]}, "There is no example video"),
    ):
        with pytest.raises(Refusal, match=sentence):
            clips.read_clip(value)


def test_examples_bring_their_truth():
    for name, (_, expressions) in clips.EXAMPLES.items():
        clip = clips.example_clip(name)
        for text in expressions:
            masks = clip.known[text]
            assert masks.shape == (len(clip.frames), *clip.size) and masks.any((1, 2)).all()


def test_models_answer_every_frame_each_when_it_is_done(service):
    request = {"video": {"example": "boat"}, "expressions": "the boat\nmy own cup", "models": ["lts", "VATEX Video"]}
    start, *found = service.compare_video(request)
    clip = clips.example_clip("boat")
    assert start["expressions"] == ["the boat", "my own cup"] and start["truth"][0] and start["truth"][1] is None
    assert [message["model"] for message in found] == ["lts", "moving"]  # in the order that was asked for
    for message in found:
        assert message["kind"] == "answer" and [cell["iou"] is None for cell in message["cells"]] == [False, True]
        entry = next(entry for entry in service.offered if entry.key == message["model"])
        (answer, _) = service.answer(entry, clip, start["expressions"])
        masks = answers.from_png(answer.masks).reshape(len(clip.frames), *clip.size) > 0
        truth = clip.known["the boat"]
        expected = [(m & t).sum() / (m | t).sum() for m, t in zip(masks, truth)]
        assert message["cells"][0]["iou"] == pytest.approx(expected, abs=1e-4)


def test_the_tab_offers_video_models_first_and_pictures_do_not(service):
    config = service.page_config()
    assert [(model["key"], model["moving"]) for model in config["models"]] == [
        ("moving", True),
        ("lavt", False),
        ("lts", False),
    ]
    assert config["chosen"][0] == "moving"
    assert [entry.key for entry in service.zoo.offered] == ["lavt", "lts"]


def test_a_model_that_fails_is_a_sentence_and_the_others_answer(service, monkeypatch):
    monkeypatch.setattr(video, "MODEL_SECONDS", -1)
    request = {"video": {"example": "keys"}, "expressions": "star", "models": ["lts"]}
    (_, message) = service.compare_video(request)
    assert message["kind"] == "failure" and "LTS was stopped after -1 seconds" in message["sentence"]
    for changed, sentence in (
        ({"models": []}, "No model is chosen"),
        ({"models": ["lts", "unet"]}, "There is no model “unet” for videos here; there are moving, lavt, lts"),
        ({"models": 7}, "Models are names"),
        ({"expressions": " "}, "There is no expression yet"),
        ({"expressions": "a\n" * 9}, "at most 8 expressions"),
        ({"video": 3}, "must be an uploaded file"),
    ):
        with pytest.raises(gr.Error, match=sentence):
            next(service.compare_video(request | changed))


def test_the_overlaid_video_shows_the_masks(service, monkeypatch):
    clip = clips.example_clip("hats")
    truth = clip.known["the yellow hat"]
    known = video.VideoAnswer(answers.to_png(truth.reshape(-1, truth.shape[2])), 0.9, 0.1)
    monkeypatch.setattr(service, "answer", lambda entry, clip, expressions: [known])
    request = {"video": {"example": "hats"}, "expressions": ["the yellow hat"], "models": ["lts"]}
    path = service.take_video(request)
    assert path.startswith(str(service.cache_folder)) and path.endswith("hats-lts.mp4")
    for frame, shown, mask in zip(clip.frames, read_frames(path), truth, strict=True):
        before, after = np.asarray(frame, int), np.asarray(shown, int)
        assert (after - before)[~mask].mean() < -40  # dimmed around it
        assert (after[..., 0] - before[..., 0])[mask].mean() > -40
    with pytest.raises(gr.Error, match="the masks of one model"):
        service.take_video(request | {"models": ["lts", "lavt"]})
