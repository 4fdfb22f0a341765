"""Ref-YouTube-VOS and Ref-DAVIS17 in their real layouts, made small: converted, evaluated, handed in."""

import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from hf_ris.data import load, load_split
from hf_ris.data.preparation.videos import video_sets
from hf_ris.data.preparation.videos.preparing import prepare_video_set
from hf_ris.data.video_schema import Frames, mask_of
from hf_ris.evaluation.submission import Submission, check_submission
from hf_ris.evaluation.videos import evaluate_videos, format_video_report, video_report


FRAMES = ["00000", "00005", "00010"]


def picture(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((24, 16)).save(path)


def numbers(path: Path, objects: dict[int, tuple[int, int]]) -> None:
    """A palette PNG with squares of these numbers at (top, left)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros((16, 24), np.uint8)
    for number, (top, left) in objects.items():
        values[top : top + 4, left : left + 4] = number
    image = Image.fromarray(values, "P")
    image.putpalette([200, 0, 0] * 256)  # colours say nothing
    image.save(path)


@pytest.fixture(scope="module")
def youtube(tmp_path_factory) -> Path:
    """3 videos of train; 507 in the valid file, of which the test file names 305."""
    root = tmp_path_factory.mktemp("youtube")
    train = {}
    for number in range(3):
        name = f"train{number}"
        said = {
            "0": {"exp": "a dog running to the left", "obj_id": "1"},
            "1": {"exp": "the dog", "obj_id": "1"},
            "10": {"exp": "a cat on the right", "obj_id": "2"},
        }
        train[name] = {"expressions": said, "frames": FRAMES}
        for place, frame in enumerate(FRAMES):
            picture(root / f"train/JPEGImages/{name}/{frame}.jpg", place)
            if frame != "00005":  # not annotated
                numbers(root / f"train/Annotations/{name}/{frame}.png", {1: (2, 2 + place), 2: (8, 14)})
    objects = {"1": {"category": "dog", "frames": FRAMES}, "2": {"category": "cat", "frames": FRAMES}}
    (root / "train/meta.json").write_text(json.dumps({"videos": {name: {"objects": objects} for name in train}}))
    said = {"0": {"exp": "a person"}, "1": {"exp": "a red kite that rises"}}
    listed = {f"valid{number:03d}": {"expressions": said, "frames": FRAMES[:1]} for number in range(507)}
    for name in list(listed)[:202]:
        picture(root / f"valid/JPEGImages/{name}/00000.jpg")
    for split, found in (("train", train), ("valid", listed), ("test", dict(list(listed.items())[202:]))):
        file = root / f"meta_expressions/{split}/meta_expressions.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"videos": found}))
    return root


@pytest.fixture(scope="module")
def davis(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("davis")
    (root / "DAVIS/ImageSets/2017").mkdir(parents=True)
    (root / "DAVIS/ImageSets/2017/train.txt").write_text("classic-car\ndogs-scale\n")
    (root / "DAVIS/ImageSets/2017/val.txt").write_text("motorbike\n")
    for name in ("classic-car", "dogs-scale", "motorbike"):
        for place in range(3):
            picture(root / f"DAVIS/JPEGImages/480p/{name}/{place:05d}.jpg", place)
            numbers(
                root / f"DAVIS/Annotations_unsupervised/480p/{name}/{place:05d}.png",
                {1: (2, 2 + place), 2: (8, 14), 255: (12, 0)},
            )
    texts = root / "davis_text_annotations"
    texts.mkdir()
    lines = 'clasic-car 1 "a café racer"\nclasic-car 2 "the man"\ndog-scale 1 "a dog"\nmotor-bike {} "the rider"\n'
    for name, encoding in (("annot1", "utf-8"), ("annot2", "latin-1")):
        for kind in ("", "_full_video"):
            (texts / f"Davis17_{name}{kind}.txt").write_bytes(lines.format(1 + bool(kind)).encode(encoding))
    (root / "DAVIS/davis_semantics.json").write_text(json.dumps({"motorbike": {"1": "motorbike", "2": "person"}}))
    return root


@pytest.fixture(scope="module")
def youtube_data(youtube, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "youtube"
    prepare_video_set("ref_youtube_vos", youtube, out, check_counts=False)
    return out


@pytest.fixture(scope="module")
def davis_data(davis, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "davis"
    prepare_video_set("ref_davis17", davis, out, check_counts=False)
    return out


def test_youtube(youtube_data, youtube):
    report = json.loads((youtube_data / "report.json").read_text())
    assert report["splits"]["val"] == {"videos": 202, "objects": 404, "expressions": 404, "frames": 202}
    assert "test" not in report["splits"]  # its frames are not there
    data = load(youtube_data)
    assert {split: len(rows) for split, rows in data.items()} == {"train": 3, "val": 202}
    row = load_split(str(youtube_data), "train")[1]
    assert [said["name"] for said in row["expressions"]] == ["0", "1", "10"]
    assert [said["object_indices"] for said in row["expressions"]] == [[0], [0], [1]]
    assert [entry["category"] for entry in row["objects"]] == ["dog", "cat"]
    assert row["frame_names"] == FRAMES and (row["height"], row["width"]) == (16, 24)
    assert row["frames"][2]["bytes"] == (youtube / "train/JPEGImages/train1/00010.jpg").read_bytes()
    masks = [mask_of(rle) for rle in row["objects"][0]["masks"]]
    assert masks[1] is None and masks[2].sum() == 16 and masks[2][2:6, 4:8].all()
    valid = load_split(str(youtube_data), "val")[0]
    assert all(mask_of(rle) is None for entry in valid["objects"] for rle in entry["masks"])
    assert Frames(valid["frames"])[0].size == (24, 16)


def test_published_counts_are_asked_for(youtube, davis, tmp_path):
    with pytest.raises(ValueError, match="train has 3 videos, but 3,471 are published; --skip-count-check"):
        prepare_video_set("ref_youtube_vos", youtube, tmp_path / "out")
    with pytest.raises(ValueError, match="train has 2 videos, but 60 are published; val has 1 videos, but 30"):
        prepare_video_set("ref_davis17", davis, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_davis(davis_data):
    row = load_split(str(davis_data), "train")[0]
    assert row["file_name"] == "classic-car"
    assert [said["text"] for said in row["expressions"]] == ["a café racer", "the man"] * 4  # either encoding
    assert [said["annotation_set"] for said in row["expressions"]] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len(row["objects"]) == 2  # 255 is no object
    assert mask_of(row["void"][0])[12:16, 0:4].all() and mask_of(row["void"][0]).sum() == 16
    other = load_split(str(davis_data), "val")[0]
    assert other["file_name"] == "motorbike" and [e["category"] for e in other["objects"]] == ["motorbike", "person"]
    assert [said["object_indices"] for said in other["expressions"]] == [[0], [1], [0], [1]]


def test_zips_and_killed_runs_give_the_same_bytes(youtube, youtube_data, tmp_path, monkeypatch):
    packed = tmp_path / "packed"
    packed.mkdir()
    for name in ("train", "valid", "meta_expressions"):
        shutil.make_archive(packed / name, "zip", youtube, name)
    written = []
    write = video_sets._write_shard

    def killed(tree, path, videos, start):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path.name)
        write(tree, path, videos, start)

    monkeypatch.setattr(video_sets, "_write_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare_video_set("ref_youtube_vos", packed, tmp_path / "out", check_counts=False)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(video_sets, "_write_shard", lambda *a: written.append(a[1].name) or write(*a))
    prepare_video_set("ref_youtube_vos", packed, tmp_path / "out", check_counts=False)
    assert len(written) == len(set(written)) == 12  # what was there is not written again

    def digest(folder: Path) -> dict[str, str]:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    assert digest(tmp_path / "out") == digest(youtube_data)


def test_what_is_wrong_is_named(youtube, davis, tmp_path):
    broken = tmp_path / "youtube"
    shutil.copytree(youtube, broken)
    (broken / "train/JPEGImages/train1/00005.jpg").unlink()
    with pytest.raises(ValueError, match="train/JPEGImages/train1 lacks frame 00005"):
        prepare_video_set("ref_youtube_vos", broken, tmp_path / "a", check_counts=False)
    shutil.copytree(youtube / "train/JPEGImages", broken / "train/JPEGImages", dirs_exist_ok=True)
    Image.new("RGB", (24, 16)).save(broken / "train/Annotations/train1/00000.png")
    with pytest.raises(ValueError, match=r"train1/00000\.png has mode RGB, but annotations are palette PNGs"):
        prepare_video_set("ref_youtube_vos", broken, tmp_path / "b", check_counts=False)
    for content in ("[" * 100_000, "7" * 5000, "{"):
        (broken / "meta_expressions/train/meta_expressions.json").write_text(content)
        with pytest.raises(ValueError, match="meta_expressions/train/meta_expressions.json is damaged: "):
            prepare_video_set("ref_youtube_vos", broken, tmp_path / "d", check_counts=False)
    with pytest.raises(ValueError, match="holds no meta_expressions/train/meta_expressions.json"):
        prepare_video_set("ref_youtube_vos", davis, tmp_path / "c")
    broken = tmp_path / "davis"
    shutil.copytree(davis, broken)
    text = broken / "davis_text_annotations/Davis17_annot1.txt"
    text.write_text('clasic-car 1 "a car"\nclasic-car car\n')
    with pytest.raises(ValueError, match="Davis17_annot1.txt, line 2: not of the form video object"):
        prepare_video_set("ref_davis17", broken, tmp_path / "d", check_counts=False)
    text.write_text('clasic-car 9 "a car"\n')
    with pytest.raises(ValueError, match="object 9 of classic-car"):
        prepare_video_set("ref_davis17", broken, tmp_path / "e", check_counts=False)


class Everything(torch.nn.Module):
    """An image model that takes the whole picture for every expression."""

    main_input_name = "pixel_values"

    def forward(self, texts, size):
        return texts, size


class Processor:
    def __call__(self, image, texts):
        return {"texts": torch.zeros(len(texts)), "size": torch.tensor([image.height, image.width])}

    def post_process_referring_segmentation(self, outputs, sizes):
        one = torch.ones(sizes[0], dtype=torch.bool)
        return [{"mask": one, "probability": one.float(), "score": 1.0} for _ in sizes]


def test_evaluation_under_both_protocols(youtube_data, davis_data):
    accelerator = Accelerator(cpu=True)
    rows = load_split(str(youtube_data), "train")
    evaluator = evaluate_videos(accelerator, Everything(), Processor(), rows)
    answers = evaluator.answers("youtube_vos")
    assert len(answers.j) == 9 and set(answers.frames.tolist()) == {2}  # two annotated frames
    assert evaluator.compute()["J"] == pytest.approx(16 / (16 * 24))
    rows = load_split(str(davis_data), "train")
    evaluator = evaluate_videos(accelerator, Everything(), Processor(), rows, protocols=["davis", "youtube_vos"])
    values = evaluator.compute("davis")
    # of two answers that cover all the first wins, and is matched to one of the objects; void pixels do not count
    assert values["J"] == pytest.approx(16 / (16 * 24 - 16) / 2) and values["J (set 3)"] == values["J"]
    text = format_video_report(video_report(evaluator, resamples=20))
    assert "davis:" in text and "16 expressions" not in text and "youtube_vos" in text


def test_submission(youtube_data, tmp_path):
    rows = load_split(str(youtube_data), "val", 3)
    accelerator = Accelerator(cpu=True)
    path = tmp_path / "out.zip"
    submission = Submission(path, accelerator)
    evaluator = evaluate_videos(accelerator, Everything(), Processor(), rows, record=submission.record)
    submission.close(rows)
    assert video_report(evaluator)["protocols"] == {}  # masks are not public
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        assert names == [f"Annotations/valid00{v}/{e}/00000.png" for v in range(3) for e in range(2)]
        for name in names:
            with Image.open(archive.open(name)) as image:
                assert image.mode == "L" and image.size == (24, 16) and np.unique(image).tolist() == [255]
    assert check_submission(path, rows) == 6
    assert [file.name for file in tmp_path.iterdir()] == ["out.zip"]
    with pytest.raises(ValueError, match=r"lacks Annotations/valid003/0/00000\.png, .*valid003/1/00000\.png$"):
        check_submission(path, load_split(str(youtube_data), "val", 4))
    half = Submission(tmp_path / "half.zip", accelerator)
    half.record(rows[0], 0, rows[0]["expressions"][:1], [np.ones((16, 24), bool)])
    with pytest.raises(ValueError, match="lacks Annotations/valid000/1/00000.png, .* and "):
        half.close(load_split(str(youtube_data), "val"))
    assert not (tmp_path / "half.zip").exists()
