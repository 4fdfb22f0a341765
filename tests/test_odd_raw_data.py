"""Raw downloads as they are not meant to be: damaged, hostile, huge, or of sets that nobody listed."""

import json
import os
import pickle
import resource
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from test_prepare_data import (
    ROOT,
    SPLITS,
    SQUARE,
    cache,  # noqa: F401
    change_instances,
    change_references,
    convert,
    raw,  # noqa: F401
    write_refcoco,
)

from hf_ris.data import decode_mask, load
from hf_ris.data.preparation.brief import brief
from hf_ris.data.preparation.preparing import Options
from hf_ris.evaluation.answers import ScoredRows
from hf_ris.metrics.predictions import check_line, prediction_line


def zipped(root: Path, method: int = zipfile.ZIP_DEFLATED) -> Path:
    """Pack the annotations below `root` and take them away."""
    with zipfile.ZipFile(root / "refcoco.zip", "w", method) as archive:
        for file in sorted((root / "refcoco").iterdir()):
            archive.write(file, f"refcoco/{file.name}")
    shutil.rmtree(root / "refcoco")
    return root / "refcoco.zip"


def patch(path: Path, change) -> None:
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)


# What nobody speaks of


BROKEN = [
    {"segmentation": [[12, 12, 14, 14]]},
    {"segmentation": []},
    {"segmentation": None},
    {"segmentation": [[1e9, 2, 3, 4, 5, 6]]},
    {"segmentation": {"size": [1, 1], "counts": [1]}},
    {"bbox": [1, 2]},
    {"bbox": "none"},
    {"category_id": 77},
    {"category_id": [1]},
]


@pytest.mark.parametrize("change", BROKEN, ids=str)
def test_an_annotation_that_cannot_be_used_ends_nothing_unless_it_is_spoken_of(raw, tmp_path, change):  # noqa: F811
    whole = convert(raw, tmp_path / "whole")["splits"]
    change_instances(raw, lambda i: i["annotations"][2].update(change))
    report = convert(raw, tmp_path / "unspoken")
    assert [split["expressions"] for split in report["splits"].values()] == [of["expressions"] for of in whole.values()]
    assert len(report["remarks"]) == 1 and "annotation 32" in report["remarks"][0] and report["problems"] == []
    assert report["splits"]["train"]["objects"] == whole["train"]["objects"] - 1
    row = next(row for row in load(tmp_path / "unspoken", "train") if row["image_id"] == 3)
    assert [entry["object_id"] for entry in row["objects"]] == [30, 31] and row["crowds"] == []

    change_instances(raw, lambda i: i["annotations"][0].update(change))
    with pytest.raises(ValueError, match="1 x annotation that cannot be used, with 2 expressions: .* annotation 30"):
        convert(raw, tmp_path / "spoken")
    report = convert(raw, tmp_path / "spoken", allow_problems=True)
    assert report["splits"]["train"]["expressions"] == whole["train"]["expressions"] - 2
    row = next(row for row in load(tmp_path / "spoken", "train") if row["image_id"] == 3)
    assert {said["ref_id"] for said in row["expressions"]} == {31}
    assert [row["objects"][said["object_indices"][0]]["object_id"] for said in row["expressions"]] == [31, 31]


def test_a_polygon_without_area_among_others_is_remarked(raw, tmp_path):  # noqa: F811
    change_instances(raw, lambda i: i["annotations"][0].update(segmentation=[[1, 2, 3, 4], SQUARE]))
    report = convert(raw, tmp_path / "out")
    assert report["problems"] == [] and "annotation 30" in report["remarks"][0]
    assert "1 polygons without area" in report["remarks"][0]


# Sets of other names


@pytest.mark.parametrize("file", ["refs(unc).p", "refs(final).json", "grefs(me).json"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_set_of_another_name_in_refers_format(tmp_path, file, packed):
    raw = write_refcoco(tmp_path / "raw", SPLITS, name="rrsisd")  # noqa: F811
    references = pickle.loads((raw / "rrsisd/refs(unc).p").read_bytes())
    (raw / "rrsisd/refs(unc).p").unlink()
    data = json.dumps(references).encode() if file.endswith("json") else pickle.dumps(references, 2)
    (raw / "rrsisd" / file).write_bytes(data)
    (raw / "images/train2014").rename(raw / "images/somewhere")
    if packed:
        shutil.make_archive(str(raw / "rrsisd"), "zip", raw, "rrsisd")
        shutil.rmtree(raw / "rrsisd")
    report = convert(raw, tmp_path / "out", "rrsisd")
    assert report["splits"]["train"]["expressions"] == 16 and report["plan"]["name"] == "rrsisd"
    assert load(tmp_path / "out", "val")["image_id"][:] == [5]
    assert "# rrsisd" in (tmp_path / "out/README.md").read_text()


def test_which_of_several_splits_is_asked(tmp_path):
    raw = write_refcoco(tmp_path / "raw", SPLITS, name="refclef")  # noqa: F811
    shutil.copy(raw / "refclef/refs(unc).p", raw / "refclef/refs(berkeley).p")
    with pytest.raises(ValueError, match=r"holds refs\(berkeley\).p, refs\(unc\).p: say by --split-by"):
        convert(raw, tmp_path / "out", "refclef")
    assert convert(raw, tmp_path / "out", "refclef", split_by="unc")["plan"]["split_by"] == "unc"
    for name in ("", "..", "a/b", "a" * 100, 7):
        with pytest.raises(ValueError, match="is no name of a data set"):
            Options(name)


# Hostile and damaged files


def bomb(depth: int = 30) -> bytes:
    """A reference whose image_id is a list that would be written out as 10^depth items."""
    lists = b"".join(b"]q" + bytes([i + 1]) + b"(" + (b"h" + bytes([i])) * 10 + b"e" for i in range(depth))
    return b"\x80\x02](}X\x08\0\0\0image_id(]q\x00" + lists + b"tse."


DEEP = b"\x80\x02]}X\x08\0\0\0image_id" + b"]" * 2000 + b"a" * 1999 + b"sa."
KEY = b"\x80\x02]}(" + b")q\x00" + b"".join(b"h\x00h\x00\x86q\x00" for _ in range(60)) + b"K\x01ua."


@pytest.mark.parametrize("data", [bomb(), DEEP, KEY], ids=["wide", "deep", "key"])
def test_pickles_that_would_burst_in_a_message(raw, tmp_path, data):  # noqa: F811
    (raw / "refcoco/refs(unc).p").write_bytes(data)
    with pytest.raises(ValueError, match="refs.unc..p") as caught:
        convert(raw, tmp_path / "out")
    assert len(str(caught.value)) < 600


def test_brief_messages():
    nested: list = []
    nested.append(nested)
    for value in (10**5000, -(10**5000), nested, "x" * 10**6, {str(k): [k] * 99 for k in range(999)}, [[[[[[1]]]]]]):
        assert len(brief(value)) <= 200
    assert brief([1, "a"]) == "[1, 'a']"


@pytest.mark.parametrize("number", [2**62, 2**70, -(2**64), 10**5000 // 7], ids=["62", "70", "-64", "16,000"])
@pytest.mark.parametrize("name", ["image_id", "ref_id", "ann_id", "sent_id", "id", "image id", "height", "category"])
def test_numbers_that_no_file_can_hold(raw, tmp_path, name, number):  # noqa: F811
    if name in ("image_id", "ref_id", "ann_id"):
        change_references(raw, lambda r: r[0].update({name: number}))
    elif name == "sent_id":
        change_references(raw, lambda r: r[0]["sentences"][0].update(sent_id=number))
    else:
        change = {
            "id": lambda i: i["annotations"][0].update(id="NUMBER"),
            "image id": lambda i: i["images"][0].update(id="NUMBER"),
            "height": lambda i: i["images"][0].update(height="NUMBER"),
            "category": lambda i: i["categories"][0].update(id="NUMBER"),
        }
        change_instances(raw, change[name])
        digits = str(number) if number.bit_length() < 1000 else "7" * 5000  # more than Python writes out
        file = raw / "refcoco/instances.json"
        file.write_text(file.read_text().replace('"NUMBER"', digits))
    with pytest.raises(ValueError, match="no whole number of at most 62 bits|has height x width") as caught:
        convert(raw, tmp_path / "out")
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda i: i["images"][0].update(file_name="a" * 5000 + ".jpg"), "whose name is longer than 255 bytes"),
        (lambda i: i["images"][0].update(file_name="\ud800.jpg"), "is no text"),
        (lambda i: i["annotations"][0].update(id=[1]), "the annotation id .1. is no whole number"),
        (lambda i: i["categories"][0].update(name=None), "category 1 has the name None"),
        (lambda i: i["categories"][0].update(name="\udfff"), "category 1 has the name"),
        (lambda i: i["images"].append("text"), "an entry in images that is none of COCO's"),
        (lambda i: i["annotations"].append(None), "an entry in annotations that is none of COCO's"),
    ],
)
def test_instances_of_odd_values(raw, tmp_path, change, message):  # noqa: F811
    change_instances(raw, change)
    with pytest.raises(ValueError, match=message):
        convert(raw, tmp_path / "out")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda r: r[0].update(split="x" * 300), "of the split 'xxx.*a split is a word"),
        (lambda r: r[0].update(split="train\u00e4"), "a split is a word"),
        (lambda r: r[0]["sentences"][0].update(sent="a \ud800 cup"), "1 x unreadable expression"),
        (lambda r: r[0].update(ann_id=[(), [1]]), "ann_id is"),
    ],
)
def test_references_of_odd_values(raw, tmp_path, change, message):  # noqa: F811
    references = pickle.loads((raw / "refcoco/refs(unc).p").read_bytes())
    change(references)
    (raw / "refcoco/refs(unc).p").unlink()
    (raw / "grefcoco").mkdir()
    shutil.copy(raw / "refcoco/instances.json", raw / "grefcoco/instances.json")
    (raw / "grefcoco/grefs(unc).json").write_text(json.dumps(references))  # JSON alone holds halves of characters
    with pytest.raises(ValueError, match=message):
        convert(raw, tmp_path / "out", "grefcoco")


@pytest.mark.parametrize("place", [0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_damaged_archives_are_named(raw, tmp_path, place):  # noqa: F811
    def flip(data: bytearray) -> None:
        start = int(len(data) * place)
        for k in range(start, min(start + 40, len(data))):
            data[k] ^= 0x55

    patch(zipped(raw), flip)
    with pytest.raises(ValueError, match="refcoco.zip"):
        convert(raw, tmp_path / "out")


@pytest.mark.parametrize("method", [1, 9, 93, 99])
def test_methods_that_python_lacks_are_named(raw, tmp_path, method):  # noqa: F811
    def change(data: bytearray) -> None:
        for sign, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
            at = data.find(sign)
            while at >= 0:
                data[at + offset : at + offset + 2] = struct.pack("<H", method)
                at = data.find(sign, at + 4)

    patch(zipped(raw), change)
    with pytest.raises(ValueError, match="refcoco.zip cannot be unpacked"):
        convert(raw, tmp_path / "out")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_methods_of_python_are_read(raw, tmp_path, method):  # noqa: F811
    zipped(raw, method)
    assert convert(raw, tmp_path / "out")["splits"]["val"]["images"] == 1


def write_zeros(archive: Path, member: str, size: int) -> None:
    info = zipfile.ZipInfo(member)
    info.compress_type = zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(archive, "w") as file, file.open(info, "w", force_zip64=True) as stream:
        for _ in range(size >> 24):
            stream.write(bytes(1 << 24))


def test_nothing_is_unpacked_without_bound(raw, tmp_path):  # noqa: F811
    name = "COCO_train2014_000000000003.jpg"
    (raw / "images/train2014" / name).unlink()
    write_zeros(raw / "images/more.zip", f"train2014/{name}", 1 << 30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="more than any picture has"):
        convert(raw, tmp_path / "out")
    shutil.rmtree(raw / "refcoco")
    write_zeros(raw / "refcoco.zip", "refcoco/instances.json", 1 << 30)
    with zipfile.ZipFile(raw / "refcoco.zip", "a") as archive:
        archive.writestr("refcoco/refs(unc).p", pickle.dumps([]))
    with pytest.raises(ValueError, match="instances.json in .*refcoco.zip cannot be unpacked: it is 1,073,741"):
        convert(raw, tmp_path / "other")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB


@pytest.mark.parametrize("file", ["plan.json", "facts.json", "index.sqlite", "shards/val-00000-of-00001.json"])
def test_damaged_work_of_an_earlier_call_is_named(raw, tmp_path, file):  # noqa: F811
    (raw / "images/train2014/COCO_train2014_000000000003.jpg").unlink()
    with pytest.raises(ValueError, match="1 x missing"):
        convert(raw, tmp_path / "out")
    path = tmp_path / "out.partial/progress" / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 - 1])
    with pytest.raises(ValueError, match="out.partial.* run the command again"):
        convert(raw, tmp_path / "out")


def test_pipes_and_postscript_are_no_pictures(raw, tmp_path):  # noqa: F811
    for number, make in (
        (3, os.mkfifo),
        (1, lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")),
    ):
        path = raw / f"images/train2014/COCO_train2014_{number:012d}.jpg"
        path.unlink()
        make(path)
    with pytest.raises(ValueError, match="1 x damaged image, 1 x missing image|1 x missing image, 1 x damaged image"):
        convert(raw, tmp_path / "out")


# Workers


def test_preparing_does_without_torch():
    """Each worker would hold it in memory."""
    program = "import sys, hf_ris.data.preparation.preparing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


# Crowds


def test_scored_rows_tell_targets_apart_from_crowds(raw, tmp_path):  # noqa: F811
    change_references(raw, lambda r: (r[0].update(ann_id=[30, 32]), r[1].update(ann_id=[32])))
    convert(raw, tmp_path / "out")
    dataset = load(tmp_path / "out", "train")
    rows = ScoredRows(dataset)
    row = next(rows[index] for index in range(len(rows)) if dataset[index]["image_id"] == 3)
    for entry, target in zip(row["metadata"], row["targets"]):
        plain = decode_mask(row["objects"][0]["mask"]) if entry["ref_id"] == 30 else np.zeros_like(target)
        assert np.array_equal(entry["target_without_crowds"], plain) and (target != plain).any()
        line = prediction_line(entry, target, target, target_without_crowds=entry["target_without_crowds"])
        check_line(json.loads(json.dumps(line)))
    other = next(rows[index] for index in range(len(rows)) if dataset[index]["image_id"] == 1)
    assert all("target_without_crowds" not in entry for entry in other["metadata"])
