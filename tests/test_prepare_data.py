"""Raw downloads become prepared data sets: converters, resuming, problems, joint sets, description, loading speed."""

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
import tracemalloc
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
from golden import SHARED, golden
from hub_server import HubServer
from PIL import ExifTags, Image, ImageDraw
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from raw_refcoco import write_raw_refcoco

from hf_ris.benchmark import PlainReferences
from hf_ris.commands.benchmark import main as benchmark
from hf_ris.commands.describe import main as describe_data
from hf_ris.commands.evaluate import main as evaluate
from hf_ris.commands.prepare import main
from hf_ris.data import decode_mask, describe, expression_mask, load, prepare, split_by_rank, validate_row
from hf_ris.data.preparation.preparing import Options
from hf_ris.metrics.protocols import resize_nearest
from hf_ris.training.lengths import measure_all, table


ROOT = Path(__file__).resolve().parents[1]
MINI = SHARED / "data/refcoco_mini"
HEIGHT, WIDTH = 40, 50
SQUARE, TALL = [5, 5, 25, 5, 25, 25, 5, 25], [15, 10, 35.5, 10, 35.5, 38, 15, 38]
RUNS = [100, 30, 10, 30, HEIGHT * WIDTH - 170]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write_pictures(folder: Path, numbers) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        noise = np.random.default_rng(number).integers(0, 255, (5, 5, 3), np.uint8)
        picture = Image.fromarray(noise).resize((WIDTH, HEIGHT))
        picture.save(folder / f"COCO_train2014_{number:012d}.jpg")


def write_instances(folder: Path, numbers) -> None:
    """Each image has three objects: 10n of one polygon, 10n + 1 of two that overlap, 10n + 2 the region of a crowd."""
    folder.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number in numbers:
        name = f"COCO_train2014_{number:012d}.jpg"
        images.append({"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH})
        drawn = ([TALL], [SQUARE, TALL], {"size": [HEIGHT, WIDTH], "counts": RUNS})
        for place, segmentation in enumerate(drawn):
            annotations.append(
                {
                    "id": 10 * number + place,
                    "image_id": number,
                    "category_id": 1 + place % 2,
                    "iscrowd": int(place == 2),
                    "bbox": [5.5, 6, 7, 8.25],
                    "segmentation": segmentation,
                }
            )
    categories = [{"id": 1, "name": "cup"}, {"id": 2, "name": "dog"}]
    # categories behind the annotations, as some files have them
    content = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(content))


def reference(number: int, split: str, target: int = 0, **changes) -> dict:
    """Reference 10n + target, which has two sentences."""
    ref_id = 10 * number + target
    sentences = [
        {"tokens": [], "raw": f"The Cup {ref_id} {k}!", "sent": f"the cup {ref_id} {k}", "sent_id": 10 * ref_id + k}
        for k in range(2)
    ]
    return {
        "ref_id": ref_id,
        "ann_id": ref_id,
        "image_id": number,
        "category_id": 1,
        "split": split,
        "sentences": sentences,
        **changes,
    }


def write_refcoco(root: Path, splits: dict[int, str], name: str = "refcoco", split_by: str = "unc") -> Path:
    """Raw files with images of these numbers, each in its split, with references to its first two objects."""
    write_instances(root / name, splits)
    references = [reference(number, split, target) for number, split in splits.items() for target in (0, 1)]
    (root / name / f"refs({split_by}).p").write_bytes(pickle.dumps(references, 2))
    write_pictures(root / "images/train2014", splits)
    return root


SPLITS = {3: "train", 1: "train", 2: "train", 8: "train", 5: "val", 6: "testA", 7: "testB"}


@pytest.fixture
def raw(tmp_path):
    return write_refcoco(tmp_path / "raw", SPLITS)


def convert(raw: Path, out: Path, name: str = "refcoco", **arguments) -> dict:
    settings = {key: arguments.pop(key) for key in list(arguments) if key in Options.__dataclass_fields__}
    return prepare(raw, out, Options(name, **settings), **{"check_counts": False, **arguments})


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# The rows


def test_rows_hold_what_the_raw_files_say(raw, tmp_path):
    convert(raw, tmp_path / "out", images_per_shard=3)
    prepared = load(tmp_path / "out")
    assert {split: rows["image_id"][:] for split, rows in prepared.items()} == {
        "train": [1, 2, 3, 8],
        "val": [5],
        "testA": [6],
        "testB": [7],
    }
    assert sorted(content(tmp_path / "out")) == sorted(
        ["README.md", "report.json", "data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]
        + [f"data/{split}-00000-of-00001.parquet" for split in ("val", "testA", "testB")]
    )
    row = prepared["train"][2]
    validate_row(row)
    assert row["file_name"] == "COCO_train2014_000000000003.jpg"
    stored = prepared["train"].cast_column("image", datasets.Image(decode=False))[2]["image"]["bytes"]
    assert stored == (raw / "images/train2014" / row["file_name"]).read_bytes()
    assert [entry["object_id"] for entry in row["objects"]] == [30, 31, 32]
    assert [entry["category"] for entry in row["objects"]] == ["cup", "dog", "cup"]
    assert row["objects"][0]["bbox"] == [5.5, 6, 7, 8.25]
    assert row["crowds"] == [2] and [entry["object_index"] for entry in row["overlaps"]] == [1]
    assert [said["text"] for said in row["expressions"]] == [f"the cup {ref} {k}" for ref in (30, 31) for k in (0, 1)]
    assert [said["expression_id"] for said in row["expressions"]] == [300, 301, 310, 311]
    assert [said["ref_id"] for said in row["expressions"]] == [30, 30, 31, 31]
    assert [said["object_indices"] for said in row["expressions"]] == [[0], [0], [1], [1]]


def test_both_conventions_of_ground_truth_can_be_had(raw, tmp_path):
    parts = coco_mask.decode(coco_mask.frPyObjects([SQUARE, TALL], HEIGHT, WIDTH)).sum(-1)
    for convention, expected in (("union", parts >= 1), ("sum_equals_one", parts == 1)):
        report = convert(raw, tmp_path / convention, ground_truth=convention)
        row = load(tmp_path / convention, "val")[0]
        assert np.array_equal(expression_mask(row, row["expressions"][2]), expected)
        assert report["splits"]["train"]["overlapping_objects"] == 4
        assert convention in (tmp_path / convention / "README.md").read_text()


@pytest.mark.parametrize("stored", ["union", "sum_equals_one"])
def test_every_protocol_measures_under_its_own_convention(raw, tmp_path, stored):
    convert(raw, tmp_path / "out", ground_truth=stored)
    arguments = ["--data", str(tmp_path / "out"), "--split", "val", "--control", "largest_object"]
    result = evaluate([*arguments, "--protocols", "original", "lavt480"])["protocols"]
    parts = coco_mask.decode(coco_mask.frPyObjects([SQUARE, TALL], HEIGHT, WIDTH)).astype(bool)
    union, tall = parts.any(-1), parts[..., 1]  # the answer is the largest object, which has both polygons
    assert result["original"]["overall"]["mIoU"]["value"] == pytest.approx((1 + tall.sum() / union.sum()) / 2)
    answer, tall, exactly_one = (resize_nearest(m, (480, 480)) for m in (union, tall, parts.sum(-1) == 1))
    expected = (exactly_one.sum() / answer.sum() + tall.sum() / answer.sum()) / 2
    assert result["lavt480"]["overall"]["mIoU"]["value"] == pytest.approx(expected)


def test_the_other_text_of_a_sentence(raw, tmp_path):
    convert(raw, tmp_path / "out", text="raw")
    assert load(tmp_path / "out", "val")[0]["expressions"][0]["text"] == "The Cup 50 0!"


def test_archives_stay_packed_and_give_the_same_bytes(raw, tmp_path):
    packed = tmp_path / "packed"
    packed.mkdir()
    with zipfile.ZipFile(packed / "refcoco.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("refs(unc).p", "instances.json"):
            archive.write(raw / "refcoco" / name, f"refcoco/{name}")
    with zipfile.ZipFile(packed / "train2014.zip", "w") as archive:
        for path in (raw / "images/train2014").iterdir():
            archive.write(path, f"train2014/{path.name}")
    before = content(packed)
    convert(raw, tmp_path / "from_folders")
    convert(packed, tmp_path / "from_archives")
    assert content(tmp_path / "from_folders") == content(tmp_path / "from_archives")
    assert content(packed) == before
    convert(raw / "refcoco", tmp_path / "elsewhere", images=[packed / "train2014.zip"])
    assert content(tmp_path / "elsewhere") == content(tmp_path / "from_folders")


def test_workers_change_nothing(raw, tmp_path):
    convert(raw, tmp_path / "one", images_per_shard=1)
    convert(raw, tmp_path / "two", images_per_shard=1, workers=2)
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_a_picture_that_exif_turns_is_stored_as_it_lies(raw, tmp_path):
    path = raw / "images/train2014/COCO_train2014_000000000005.jpg"
    pixels = np.asarray(Image.open(path))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3  # upside down: the size does not tell
    Image.fromarray(pixels).save(path, exif=exif)
    as_stored = np.asarray(Image.open(path))
    convert(raw, tmp_path / "out")
    row = load(tmp_path / "out", "val")[0]
    assert np.array_equal(np.asarray(row["image"]), as_stored)


def test_streams_are_split_by_rank(raw, tmp_path):
    convert(raw, tmp_path / "out", images_per_shard=2)
    for ranks in (2, 3):  # two shards: each rank its own, or every third row
        seen = []
        for rank in range(ranks):
            rows = split_by_rank(load(tmp_path / "out", "train", streaming=True), rank, ranks)
            seen += [(row["image_id"], row["image"].size) for row in rows]
        assert sorted(seen) == [(number, (WIDTH, HEIGHT)) for number in (1, 2, 3, 8)]


# What is wrong is said


def test_counts_are_checked_against_the_published_ones(raw, tmp_path):
    message = "refcoco .unc. is not the published data set: train has 8 references, but 42,404 are published; .*"
    with pytest.raises(ValueError, match=message + "val has 4 expressions, but 10,834 .*; --skip-count-check"):
        convert(raw, tmp_path / "out", check_counts=True)
    assert not (tmp_path / "out").exists()
    convert(raw, tmp_path / "out")
    assert "are NOT those of the published data set" in (tmp_path / "out/README.md").read_text()


def test_pictures_that_cannot_be_used_are_listed_and_mended(raw, tmp_path):
    convert(raw, tmp_path / "clean", images_per_shard=1)
    pictures = [raw / f"images/train2014/COCO_train2014_{number:012d}.jpg" for number in (1, 2, 3)]
    whole = [path.read_bytes() for path in pictures]
    pictures[0].unlink()
    pictures[1].write_bytes(whole[1][:-30])  # its header is whole
    Image.new("RGB", (WIDTH, HEIGHT + 1)).save(pictures[2])
    message = (
        "1 x missing image, 1 x damaged image, 1 x image of another size, with 12 expressions: "
        "COCO_train2014_000000000001.jpg .missing image., COCO_train2014_000000000002.jpg .damaged image. .*, "
        "COCO_train2014_000000000003.jpg .image of another size. 41 x 50 instead of 40 x 50.*; all are listed in "
        "(.*problems.jsonl). Mend them .*--allow-problems"
    )
    with pytest.raises(ValueError, match=message):
        convert(raw, tmp_path / "out", images_per_shard=1)
    listed = (tmp_path / "out.partial/progress/problems.jsonl").read_text().splitlines()
    assert [json.loads(line)["image_id"] for line in listed] == [1, 2, 3]
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="was not finished: run the same"):
        load(tmp_path / "out.partial")

    report = convert(raw, tmp_path / "out", images_per_shard=1, allow_problems=True)
    assert report["splits"]["train"]["images"] == 1 and len(report["problems"]) == 3
    assert load(tmp_path / "out", "train")["image_id"][:] == [8]
    assert "missing image" in (tmp_path / "out/README.md").read_text()

    with pytest.raises(ValueError, match="1 x missing"):
        convert(raw, tmp_path / "mended", images_per_shard=1)
    for path, data in zip(pictures, whole):
        path.write_bytes(data)
    convert(raw, tmp_path / "mended", images_per_shard=1)
    assert content(tmp_path / "mended") == content(tmp_path / "clean")


def change_references(raw: Path, change) -> None:
    path = raw / "refcoco/refs(unc).p"
    references = pickle.loads(path.read_bytes())
    change(references)
    path.write_bytes(pickle.dumps(references, 2))


def change_instances(raw: Path, change) -> None:
    path = raw / "refcoco/instances.json"
    instances = json.loads(path.read_text())
    change(instances)
    path.write_text(json.dumps(instances))


def test_blank_expressions_are_listed(raw, tmp_path):
    change_references(raw, lambda references: references[0]["sentences"][1].update(sent=" "))
    with pytest.raises(ValueError, match="1 x blank expression, with 1 expressions: .blank expression. expression 301"):
        convert(raw, tmp_path / "out")
    report = convert(raw, tmp_path / "out", allow_problems=True)
    assert report["raw_counts"]["refcoco"]["train"] == [8, 16, 4] and report["splits"]["train"]["expressions"] == 15


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda r: r[0].update(ann_id=99), "reference 30 speaks of annotation 99 of image 3, which the annotations"),
        (lambda r: r[0].update(ann_id=10), "reference 30 speaks of annotation 10 of image 3"),  # another image's
        (lambda r: r[0].update(image_id=99), "reference 30 speaks of image 99, which the annotations do not list"),
        (lambda r: r[1]["sentences"][0].update(sent_id=300), "expression id 300 comes twice in train"),
        (lambda r: r[0].update(split="../x"), "split '../x', but a split is a word"),
        (lambda r: r[0].pop("split"), r"refcoco/refs\(unc\).p: a reference .*KeyError\('split'\)"),
        (lambda r: r[0].update(ref_id="30"), "a reference .*no whole number"),
        (lambda r: r[0].update(ann_id=[]), "a reference .*ann_id is"),
        (lambda r: r[0]["sentences"][0].update(sent=None), "a reference is not of the refer format"),
        (lambda r: r.append(7), "a reference is not of the refer format"),
    ],
)
def test_references_that_do_not_fit_are_named(raw, tmp_path, change, message):
    change_references(raw, change)
    with pytest.raises(ValueError, match=message):
        convert(raw, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda i: i["images"][0].update(file_name="../../a.jpg"),
            "names the image file '../../a.jpg', but",
        ),
        (lambda i: i["images"][0].update(height=0), "image 3 has height x width 0 x 50"),
        (lambda i: i["annotations"][0].update(bbox=[1, 2, 3]), "annotation 30 has bbox .1, 2, 3., not"),
        (lambda i: i["annotations"][0].update(segmentation=[[1, 2]]), "COCO_.*003.jpg .* annotation 30: none of the"),
        (lambda i: i["annotations"][1].update(segmentation={"size": [1, 1], "counts": [1]}), "annotation 31: .*size"),
        (lambda i: i["annotations"][0].update(bbox=[1, 2, 3, float("nan")]), "annotation 30 has bbox .1, 2, 3, nan."),
        (
            lambda i: i["annotations"].append(i["annotations"][0] | {"bbox": [0, 0, 1, 1]}),
            "the object with image_id 3, object_id 30 twice, and not alike",
        ),
        (lambda i: i["images"][1].update(id=3), "the image with image_id 3 twice, and not alike"),
        (lambda i: i["annotations"][0].pop("category_id"), "annotation 30 has no category_id"),
        (lambda i: i["annotations"][0].pop("id"), "instances.json has an entry in annotations that is none"),
        (lambda i: i["annotations"][0].update(category_id=77), "annotation 30 has the category 77, which"),
    ],
)
def test_annotations_that_do_not_fit_are_named(raw, tmp_path, change, message):
    change_instances(raw, change)
    for workers in (1, 2):  # from a worker the sentence comes, too
        with pytest.raises(ValueError, match=message):
            convert(raw, tmp_path / "out", workers=workers)
    assert not (tmp_path / "out").exists()


def test_wrong_options_and_places_are_named(raw, tmp_path):
    for arguments, message in (
        ({"name": "../coco"}, "'../coco' is no name of a data set to prepare: choose one of refcoco, refcoco.,"),
        ({"name": "rrsisd", "split_by": "a b"}, "'a b' is no name"),
        ({"name": "refcoco", "split_by": "umd"}, "refcoco is split by unc, not by umd"),
        ({"name": "refcoco", "sets": ("refcoco",)}, "sets are for joint"),
        ({"name": "joint", "sets": ("refcoco", "coco")}, "distinct ones of refcoco"),
        ({"name": "refcoco", "ground_truth": "sum"}, "union or sum_equals_one"),
        ({"name": "refcoco", "images_per_shard": 0}, "at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            Options(**arguments)
    with pytest.raises(ValueError, match=r"holds no refcoco\+/refs\(unc\).p, neither as a file nor in a zip"):
        convert(raw, tmp_path / "out", "refcoco+")
    with pytest.raises(ValueError, match=r"no data set 'refcocoo' to prepare: .* no refcocoo/refs\(...\).p.* refcoco,"):
        convert(raw, tmp_path / "out", "refcocoo")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="7 x missing image"):
        convert(raw, tmp_path / "out", images=[tmp_path / "empty"])
    with pytest.raises(ValueError, match="no images were found: .* folders train2014 .* --images"):
        convert(raw / "refcoco", tmp_path / "out")
    with pytest.raises(ValueError, match="there is no .*nowhere"):
        convert(raw, tmp_path / "out", images=[tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="empty is there already and no prepared data set"):
        convert(raw, tmp_path / "empty")


# Resuming


def test_a_finished_set_is_left_alone_and_another_one_not_overwritten(raw, tmp_path):
    convert(raw, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    convert(raw, tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    with pytest.raises(ValueError, match="holds a data set of other raw files or options"):
        convert(raw, tmp_path / "out", ground_truth="sum_equals_one")
    change_instances(raw, lambda instances: instances["annotations"][0].update(bbox=[1, 2, 3, 4]))
    with pytest.raises(ValueError, match="holds a data set of other raw files or options"):
        convert(raw, tmp_path / "out")


def test_what_was_begun_with_other_options_is_not_gone_on_with(raw, tmp_path):
    with pytest.raises(ValueError, match="published"):
        convert(raw, tmp_path / "out", check_counts=True)
    with pytest.raises(ValueError, match="out.partial was begun with other raw files or options"):
        convert(raw, tmp_path / "out", images_per_shard=2)


def kill_when(process, condition) -> None:
    """SIGKILL as soon as `condition()` holds."""
    while not condition():
        assert process.is_alive(), "it ended too early to be killed"
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.join()


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_half_way_and_started_again_it_ends_with_the_same_bytes(tmp_path, workers):
    write_raw_refcoco(tmp_path / "raw", images=24, size=64)
    arguments = {"images_per_shard": 1, "workers": workers}
    convert(tmp_path / "raw", tmp_path / "whole", **arguments)
    data, records = tmp_path / "out.partial/data", tmp_path / "out.partial/progress/shards"
    # not forked: with it would die, perhaps held, the lock that every progress bar of this process waits for
    process = multiprocessing.get_context("spawn").Process(
        target=convert, args=(tmp_path / "raw", tmp_path / "out"), kwargs=arguments
    )
    process.start()
    kill_when(process, lambda: len(list(records.glob("*.json"))) >= 5)
    assert not (tmp_path / "out").exists()
    assert 5 <= len(list(records.glob("*.json"))) < 24
    (data / "train-00009-of-00018.parquet.99.tmp").write_bytes(b"half")
    convert(tmp_path / "raw", tmp_path / "out", **arguments)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_finished_shards_are_not_written_again(raw, tmp_path, monkeypatch):
    written = []

    def fail_at_third(shard, work):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(shard.file.name)
        return write(shard, work)

    from hf_ris.data.preparation import preparing

    write = preparing._write_shard
    monkeypatch.setattr(preparing, "_write_shard", fail_at_third)
    with pytest.raises(KeyboardInterrupt):
        convert(raw, tmp_path / "out", images_per_shard=1)
    first = list(written)
    monkeypatch.setattr(preparing, "_write_shard", lambda *task: written.append(task[0].file.name) or write(*task))
    convert(raw, tmp_path / "out", images_per_shard=1)
    assert len(first) == 2 and len(written) == len(set(written)) == 7


def test_killed_at_the_very_end(raw, tmp_path, monkeypatch):
    convert(raw, tmp_path / "whole")
    for name in ("os.rename", "shutil.rmtree"):  # before the folder has its name, and before its work is cleared away
        out = tmp_path / name
        with monkeypatch.context() as patch:
            patch.setattr(name, lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                convert(raw, out)
        for unfinished in (out, tmp_path / f"{name}.partial"):
            with pytest.raises(ValueError, match="was not finished|there is no data set"):
                load(unfinished)
        convert(raw, out)
        assert content(out) == content(tmp_path / "whole")


def test_memory_does_not_grow_with_the_data(tmp_path):
    def peak(images: int) -> int:
        raw = write_refcoco(tmp_path / f"raw{images}", dict.fromkeys(range(1, images + 1), "train"))
        pool = pa.default_memory_pool()
        tracemalloc.start()
        before = pool.bytes_allocated()
        convert(raw, tmp_path / f"out{images}", images_per_shard=50)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert pool.bytes_allocated() <= before + 1e6
        return most

    assert peak(400) < 1.4 * peak(100)


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_a_large_set_is_killed_and_resumed(tmp_path):
    """HF_RIS_RAW_IMAGES images (20,000) of HF_RIS_RAW_SIZE pixels (480); shows rate and peak memory, with pytest -s."""
    images, size = (
        int(os.environ.get(f"HF_RIS_RAW_{name}", most)) for name, most in (("IMAGES", 20000), ("SIZE", 480))
    )
    write_raw_refcoco(tmp_path / "raw", images=images, size=size, workers=len(os.sched_getaffinity(0)))
    command = [sys.executable, "train/prepare_data.py", "refcoco", "--raw", str(tmp_path / "raw"), "--skip-count-check"]
    subprocess.run([*command, "--out", str(tmp_path / "whole")], cwd=ROOT, check=True)
    process = subprocess.Popen([*command, "--out", str(tmp_path / "out")], cwd=ROOT)
    half = len(list((tmp_path / "whole/data").iterdir())) // 2
    while len(list((tmp_path / "out.partial/progress/shards").glob("*.json"))) < half:
        assert process.poll() is None, "it ended too early to be killed"
        time.sleep(0.05)
    process.kill()
    process.wait()
    subprocess.run([*command, "--out", str(tmp_path / "out")], cwd=ROOT, check=True)
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert sum(len(rows) for rows in load(tmp_path / "out", streaming=False).values()) == images


# gRefCOCO, PhraseCut, joint


def test_grefcoco_has_several_targets_or_none(tmp_path):
    raw = write_refcoco(tmp_path / "raw", {1: "train", 2: "val"}, "grefcoco")
    (raw / "grefcoco/refs(unc).p").unlink()
    references = [
        reference(1, "train", ann_id=[10, 12, 10]),
        reference(1, "train", 1, ann_id=[-1], no_target=True),
        reference(2, "val", ann_id=[21]),
    ]
    (raw / "grefcoco/grefs(unc).json").write_text(json.dumps(references))
    report = convert(raw, tmp_path / "json", "grefcoco")
    train = report["splits"]["train"]
    assert (train["without_target"], train["with_one_target"], train["with_several_targets"]) == (2, 0, 2)
    assert report["splits"]["val"]["with_one_target"] == 2
    row = load(tmp_path / "json", "train")[0]
    assert [said["object_indices"] for said in row["expressions"]] == [[0, 2], [0, 2], [], []]
    assert not expression_mask(row, row["expressions"][2]).any()
    (raw / "grefcoco/grefs(unc).json").unlink()
    (raw / "grefcoco/grefs(unc).p").write_bytes(pickle.dumps(references, 2))
    convert(raw, tmp_path / "pickle", "grefcoco")
    shard = "data/train-00000-of-00001.parquet"
    assert (tmp_path / "pickle" / shard).read_bytes() == (tmp_path / "json" / shard).read_bytes()
    (raw / "grefcoco/grefs(unc).p").write_bytes(pickle.dumps([reference(1, "train", ann_id=[-1, 10])], 2))
    with pytest.raises(ValueError, match="ann_id is .-1, 10."):
        convert(raw, tmp_path / "out", "grefcoco")


TRIANGLES = [[[3.7, 4], [20, 6], [9, 30.9]]], [[[30, 4], [45, 6], [35, 30]], [[1, 1], [5, 1], [5, 5]]]


def task(image: int, phrase: str, polygons, name: str = "cup") -> dict:
    return {
        "task_id": f"{image}__1",
        "image_id": image,
        "ann_ids": [1],
        "instance_boxes": [[1, 2, 3, 4]] * len(polygons),
        "Polygons": list(polygons),
        "phrase": phrase,
        "phrase_structure": {"name": name, "attributes": [], "relation_descriptions": [], "type": "name"},
    }


def write_phrasecut(root: Path, tasks: dict[str, list[dict]], coco_ids: dict[int, int]) -> Path:
    folder = root / "phrasecut"
    folder.mkdir(parents=True, exist_ok=True)
    numbers = sorted({entry["image_id"] for of_split in tasks.values() for entry in of_split})
    images = [
        {"image_id": number, "coco_id": coco_ids.get(number), "height": HEIGHT, "width": WIDTH, "split": "train"}
        for number in numbers
    ]
    (folder / "image_data_split.json").write_text(json.dumps(images))
    for split, of_split in tasks.items():
        (folder / f"refer_{split}.json").write_text(json.dumps(of_split))
    (root / "VG_100K").mkdir(exist_ok=True)
    for number in numbers:
        Image.new("RGB", (WIDTH, HEIGHT), (number % 255, 0, 0)).save(root / f"VG_100K/{number}.jpg")
    return root


def test_phrasecut_has_unions_of_instances_drawn_as_its_program_draws(tmp_path):
    first = [task(7, "red cups", TRIANGLES), task(7, "left cup", TRIANGLES[:1]), task(9, "dog", TRIANGLES[1:], "dog")]
    raw = write_phrasecut(tmp_path / "raw", {"test": first, "miniv": first[:1]}, {})
    convert(raw, tmp_path / "out", "phrasecut")
    rows = load(tmp_path / "out", "test")
    row = rows[0]
    validate_row(row)
    assert [said["text"] for said in row["expressions"]] == ["red cups", "left cup"]
    assert [said["object_indices"] for said in row["expressions"]] == [[0, 1], [0]]  # the same drawing, one object
    assert [said["expression_id"] for said in row["expressions"]] == [2_000_000, 2_000_001]
    assert rows[1]["expressions"][0]["expression_id"] == 2_000_002 and rows[1]["objects"][0]["category"] == "dog"
    assert load(tmp_path / "out", "miniv")[0]["expressions"][0]["expression_id"] == 3_000_000
    canvas = Image.new("L", (WIDTH, HEIGHT))
    for polygon in TRIANGLES[0] + TRIANGLES[1]:
        ImageDraw.Draw(canvas).polygon([(int(x), int(y)) for x, y in polygon], outline=1, fill=1)
    assert np.array_equal(expression_mask(row, row["expressions"][0]), np.asarray(canvas) > 0)
    with pytest.raises(ValueError, match="phrasecut is not the published data set: test has 3 expressions, but 14,354"):
        convert(raw, tmp_path / "other", "phrasecut", check_counts=True)
    (raw / "phrasecut/refer_test.json").write_text("[{}]")
    with pytest.raises(ValueError, match="entry 0 of phrasecut/refer_test.json is no task of PhraseCut"):
        convert(raw, tmp_path / "other2", "phrasecut")


def test_a_joint_set_trains_on_nothing_that_any_of_its_sets_evaluates_on(tmp_path):
    raw = tmp_path / "raw"
    write_refcoco(raw, {1: "train", 2: "train", 3: "train", 4: "val", 5: "testA"})
    write_refcoco(raw, {1: "train", 2: "test", 4: "test", 5: "train", 6: "val", 7: "train"}, "refcocog", "umd")
    phrases = [task(number, f"phrase {number}", TRIANGLES) for number in (101, 102, 103, 104)]
    # 101 is COCO's 3, 102 its 6 and 103 its 7; 104 is not of COCO
    tasks = {"train": phrases[:2] + phrases[3:], "val": phrases[2:3], "miniv": phrases[2:3]}
    write_phrasecut(raw, tasks, {101: 3, 102: 6, 103: 7})
    sets = ("refcoco", "refcocog", "phrasecut")
    report = convert(raw, tmp_path / "out", "joint", sets=sets)
    joint = load(tmp_path / "out")
    # held out: 2, 4, 5, 6 and 7 (by PhraseCut's val)
    assert joint["train"]["image_id"][:] == [1, 3, 1_000_000_101, 1_000_000_104]
    assert joint["val"]["image_id"][:] == [6, 1_000_000_103]  # 4 is in a test split
    row = joint["train"][0]
    texts = [f"the cup {ref} {k}" for ref in (10, 11) for k in (0, 1)]
    assert [said["text"] for said in row["expressions"]] == texts * 2
    assert [said["expression_id"] // 1_000_000_000 for said in row["expressions"]] == [0] * 4 + [1] * 4
    assert [entry["object_id"] for entry in row["objects"]] == [10, 11, 12]
    assert report["dropped"] == {
        "refcoco": {"train": {"images": 1, "expressions": 4}, "val": {"images": 1, "expressions": 4}},
        "refcocog": {"train": {"images": 2, "expressions": 8}, "val": {"images": 0, "expressions": 0}},
        "phrasecut": {"train": {"images": 1, "expressions": 1}, "val": {"images": 0, "expressions": 0}},
    }
    assert report["images_in_several_splits"] == 0
    assert "- refcocog train: 2 images with 8 expressions" in (tmp_path / "out/README.md").read_text()
    with pytest.raises(ValueError, match="refcoco .unc. is not the published data set"):
        convert(raw, tmp_path / "checked", "joint", sets=sets, check_counts=True)


def test_images_in_several_splits_are_counted_and_stay_rows_of_each(tmp_path):
    raw = write_refcoco(tmp_path / "raw", {1: "train", 2: "val"}, "refcocog", "google")
    references = [reference(1, "train"), reference(1, "val", 1), reference(2, "val")]
    (raw / "refcocog/refs(google).p").write_bytes(pickle.dumps(references, 2))
    report = convert(raw, tmp_path / "out", "refcocog", split_by="google")
    assert report["images_in_several_splits"] == 1
    prepared = load(tmp_path / "out")
    assert [[said["ref_id"] for said in row["expressions"]] for row in prepared["train"]] == [[10, 10]]
    assert [[said["ref_id"] for said in row["expressions"]] for row in prepared["val"]] == [[11, 11], [20, 20]]


# Description, command line, Hub


def test_describe_counts_and_draws(raw, tmp_path):
    convert(raw, tmp_path / "out", images_per_shard=2)
    loaded = load(tmp_path / "out")
    description = describe(loaded, contact_sheet=tmp_path / "sheet.png")
    train = description["splits"]["train"]
    assert (train["images"], train["references"], train["expressions"], train["objects"]) == (4, 8, 16, 12)
    assert train["words_per_expression"] == {"mean": 4, "median": 4, "95%": 4, "max": 4, "histogram": {"4": 16}}
    assert train["objects_per_image"]["histogram"] == {"3": 4} and train["targets"] == {"1": 16}
    assert train["words"][:2] == [("cup", 16), ("the", 16)]
    assert train["categories"] == [("cup", 8), ("dog", 4)]
    assert "train: 4 images, 8 references, 16 expressions" in str(description)
    assert "the counts are of no published data set" in str(description)
    assert "train has 8 references, but 42,404 are published" in str(describe(loaded, "refcoco (unc)"))
    streamed = describe(load(tmp_path / "out", streaming=True))
    assert json.dumps(streamed, sort_keys=True) == json.dumps(description, sort_keys=True)
    assert describe(loaded["val"])["splits"]["all"]["images"] == 1
    with pytest.raises(ValueError, match="no published counts of 'refcoco': there are refcoco .unc."):
        describe(loaded, "refcoco")

    sheet = np.asarray(Image.open(tmp_path / "sheet.png")).astype(int)
    assert sheet.shape[1] == 4 * (256 + 14) + 14  # four a row, every split under its name
    row = next(iter(loaded.values()))[0]  # the first panel, with its first expression
    height = round(256 * HEIGHT / WIDTH)
    shown = sheet[42 : 42 + height, 14 : 14 + 256]
    mask = np.asarray(Image.fromarray(expression_mask(row, row["expressions"][0])).resize((256, height)))
    gap = np.abs(shown - np.asarray(row["image"].resize((256, height)))).mean(-1)
    assert gap[mask].mean() < gap[~mask].mean()  # outside its target a picture is dimmed
    alone = describe(loaded["val"], contact_sheet=tmp_path / "one.png")
    assert alone["splits"].keys() == {"all"}
    assert Image.open(tmp_path / "one.png").height < sheet.shape[0] / 2


def test_load_tells_what_to_do_with_raw_data(raw):
    with pytest.raises(ValueError, match="no data set 'refcoco.': refcoco. is made from its raw download by"):
        load("refcoco+")
    for folder in (raw, raw / "refcoco"):
        with pytest.raises(ValueError, match="is a raw download: prepare it first, with hf-ris prepare NAME"):
            load(folder)


def test_command_line(raw, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["refcoco", "--raw", str(raw), "--out", str(out), "--workers", "1"]
    with pytest.raises(SystemExit, match=": refcoco .unc. is not the published .*--skip-count-check"):
        main(arguments)
    report = main([*arguments, "--skip-count-check"])
    assert json.loads((out / "report.json").read_text()) == report
    printed = capsys.readouterr().out
    assert "train: 4 images, 8 references, 16 expressions" in printed and "peak memory: main" in printed
    result = tmp_path / "numbers.json"
    describe_data([str(out), "--contact-sheet", str(tmp_path / "sheet.png"), "--result", str(result)])
    assert json.loads(result.read_text())["splits"]["val"]["images"] == 1 and (tmp_path / "sheet.png").stat().st_size


PUSH_AND_LOAD = """
import json, sys
from hf_ris.commands.describe import main as describe_data
from hf_ris.commands.prepare import main
from hf_ris.data import load, split_by_rank

main(["refcoco", "--raw", sys.argv[1], "--out", sys.argv[2], "--images-per-shard", "2", "--skip-count-check",
      "--push-to-hub", "someone/refcoco", "--private"])
whole = load("someone/refcoco")
streamed = load("someone/refcoco", "train", streaming=True)
ranks = [[row["image_id"] for row in split_by_rank(streamed, rank, 2)] for rank in (0, 1)]
print(json.dumps([{split: part["image_id"][:] for split, part in whole.items()}, ranks]))
"""


def test_what_is_pushed_is_a_data_set_with_a_card(raw, tmp_path):
    with HubServer() as hub:
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": "hf_none",
            "HF_HOME": str(tmp_path / "hf"),
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-c", PUSH_AND_LOAD, str(raw), str(tmp_path / "out")]
        run = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=280)
        assert run.returncode == 0, run.stderr
    whole, ranks = json.loads(run.stdout.splitlines()[-1])
    assert whole == {"train": [1, 2, 3, 8], "val": [5], "testA": [6], "testB": [7]}
    assert ranks == [[1, 2], [3, 8]]  # a shard each
    pushed = hub.files["someone/refcoco"]
    assert pushed == content(tmp_path / "out")
    card = pushed["README.md"].decode()
    for part in ("license: other", "| train | 8 | 16 | 4 | 12 |", "CC BY 4.0", "refcoco/refs(unc).p`: SHA-256 `"):
        assert part in card


# The real mini sets

MINI_COUNTS = {
    "refcoco": {"val": (2, 6, 1), "testA": (4, 12, 1), "testB": (4, 14, 2)},
    "refcoco+": {"val": (2, 6, 1), "testA": (4, 11, 1), "testB": (4, 12, 2)},
    "refcocog": {"val": (7, 13, 2), "test": (2, 4, 2)},
}


@golden("data/refcoco_mini")
@pytest.mark.parametrize("name", MINI_COUNTS)
def test_the_mini_sets_convert_exactly(tmp_path, name):
    report = convert(MINI, tmp_path / "out", name)
    prepared = load(tmp_path / "out")
    counts = {split: (of["references"], of["expressions"], of["images"]) for split, of in report["splits"].items()}
    assert counts == MINI_COUNTS[name]
    coco = COCO(MINI / name / "instances.json")
    path = next((MINI / name).glob("refs*.p"))
    raw = {entry["sent_id"]: (ref, entry) for ref in pickle.loads(path.read_bytes()) for entry in ref["sentences"]}
    seen = set()
    for split, rows in prepared.items():
        for row in rows:
            validate_row(row)
            picture = Image.open(MINI / "images/train2014" / row["file_name"]).convert("RGB")
            assert np.array_equal(np.asarray(row["image"].convert("RGB")), np.asarray(picture))
            annotations = coco.imgToAnns[row["image_id"]]
            assert [entry["object_id"] for entry in row["objects"]] == [entry["id"] for entry in annotations]
            assert row["crowds"] == [place for place, entry in enumerate(annotations) if entry["iscrowd"]]
            for entry, annotation in zip(row["objects"], annotations):
                assert entry["category"] == coco.cats[annotation["category_id"]]["name"]
                assert entry["bbox"] == np.float32(annotation["bbox"]).tolist()
                assert np.array_equal(decode_mask(entry["mask"]), coco.annToMask(annotation).astype(bool))
            for said in row["expressions"]:
                ref, sentence = raw[said["expression_id"]]
                assert (ref["split"], ref["image_id"], ref["ref_id"]) == (split, row["image_id"], said["ref_id"])
                assert said["text"] == sentence["sent"]
                (target,) = said["object_indices"]
                assert row["objects"][target]["object_id"] == ref["ann_id"]
                seen.add(said["expression_id"])
    assert seen == set(raw)


@golden("data/refcoco_mini", "data/refcoco_eval")
@pytest.mark.parametrize("name", MINI_COUNTS)
def test_the_mini_sets_agree_with_the_official_evaluation_expressions(tmp_path, name):
    convert(MINI, tmp_path / "out", name)
    for split, rows in load(tmp_path / "out").items():
        official = json.loads((SHARED / f"data/refcoco_eval/{name}_{split}.json").read_text())
        known = {
            (entry["img_id"].split("_")[2], entry["sents"], tuple(np.float32(entry["bbox"]).tolist()))
            for entry in official
        }
        for row in rows:
            for said in row["expressions"]:
                box = tuple(row["objects"][said["object_indices"][0]]["bbox"])
                assert (f"{row['image_id']:012d}", said["text"], box) in known


@golden("data/refcoco_mini")
@pytest.mark.parametrize(
    "name, split, numbers",
    [
        ("refcoco", "val", "2 references, but 3,811"),
        ("refcoco+", "testB", "12 expressions, but 4,889"),
        ("refcocog", "test", "2 images, but 2,600"),
    ],
)
def test_the_count_check_fails_on_the_mini_sets(tmp_path, name, split, numbers):
    with pytest.raises(ValueError, match=f"{split} has {numbers} are published.*--skip-count-check"):
        prepare(MINI, tmp_path / "out", Options(name))


@pytest.mark.slow
@golden("data/refcoco_eval", "data/bert-base-uncased")
def test_all_real_expressions_pass_every_tokenizer():
    import hf_ris

    results = measure_all(SHARED / "data/refcoco_eval", SHARED / "data/bert-base-uncased")
    print(table(results))
    for architecture in hf_ris.ARCHITECTURES:
        assert sum(of_set[architecture]["expressions"] for of_set in results.values()) == 57_457
        for name, of_set in results.items():
            of = of_set[architecture]
            assert 0 <= of["truncated"] < 0.1 * of["expressions"], (name, architecture)
            assert (of["longest"] > of["length"]) == (of["truncated"] > 0)


# Loading


def test_plain_loading_brings_the_tensors_of_the_prepared_set(tmp_path):
    from hf_ris.data import EvaluationRows, RisCollator
    from hf_ris.models.processing_lavt import LavtProcessor
    from hf_ris.models.processing_ris import RisImageProcessor
    from hf_ris.models.text_encoders import word_tokenizer_from_corpus

    write_raw_refcoco(tmp_path / "raw", images=6, size=64)
    convert(tmp_path / "raw", tmp_path / "out", ground_truth="sum_equals_one")
    rows = load(tmp_path / "out", "train")
    texts = [said["text"] for row in rows for said in row["expressions"]]
    processor = LavtProcessor(RisImageProcessor(image_size=48), word_tokenizer_from_corpus(texts))
    pictures = tmp_path / "raw/images/train2014"
    plain = PlainReferences(tmp_path / "raw/refcoco", pictures, "train", set(rows["image_id"]), processor)
    batch = RisCollator(processor)([EvaluationRows(rows)[0]])
    ours = {said["expression_id"]: place for place, said in enumerate(rows[0]["expressions"])}
    compared = 0
    for item in (plain[index] for index in range(len(plain))):
        if item["expression_id"] in ours:
            place = ours[item["expression_id"]]
            assert np.array_equal(item["labels"], batch["labels"][place])
            assert np.allclose(item["pixel_values"], batch["pixel_values"][0], atol=1e-5)
            words = int(item["attention_mask"].sum())
            assert item["input_ids"][:words].tolist() == batch["input_ids"][place][:words].tolist()
            compared += 1
    assert compared == len(ours) > 2


def test_the_benchmark_of_loading_compares_the_same_expressions(tmp_path, capsys):
    write_raw_refcoco(tmp_path / "raw", images=8, size=64)
    convert(tmp_path / "raw", tmp_path / "out")
    arguments = ["--arch", "lts", "--data", str(tmp_path / "out"), "--workers", "0", "--images", "4"]
    result = benchmark([*arguments, "--raw", str(tmp_path / "raw")])
    assert result["images"] == 4 and result["expressions"] > 8
    assert result["plain"]["expressions_per_second"] > 0 and "times as fast" in capsys.readouterr().out
    path = tmp_path / "raw/refcoco/refs(unc).p"
    references = pickle.loads(path.read_bytes())
    next(ref for ref in references if ref["split"] == "train")["sentences"].pop()
    path.write_bytes(pickle.dumps(references, 2))
    with pytest.raises(RuntimeError, match="the epochs differ"):
        benchmark([*arguments, "--raw", str(tmp_path / "raw")])
