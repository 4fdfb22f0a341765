"""Legacy pickles that are never executed, JSON in pieces, zip archives that stay packed, masks of annotations."""

import io
import json
import os
import pickle
import re
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from hf_ris.data import annotation_masks, change_ground_truth, decode_mask, encode_mask, horizontal_flip, target_parts
from hf_ris.data.ground_truth import degenerate_polygons
from hf_ris.data.preparation import raw_files as raw_files_module
from hf_ris.data.preparation.plain_pickle import iterate_pickled_list
from hf_ris.data.preparation.published import PUBLISHED, Counts, differences
from hf_ris.data.preparation.raw_files import ImageFiles, RawFiles, check_name, iterate_json, read_packed
from hf_ris.metrics.protocols import get_protocol, protocol_target


def read_pickle(data: bytes) -> list:
    return list(iterate_pickled_list(lambda: io.BytesIO(data), "refs.p"))


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner) | st.tuples(),
    max_leaves=20,
)


# Pickles


@settings(deadline=None, max_examples=60)
@given(st.lists(PLAIN), st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_pickles_of_every_protocol_read_as_python_reads_them(values, protocol):
    assert read_pickle(pickle.dumps(values, protocol)) == values


def test_shared_objects_and_several_batches():
    shared = ["a", {"b": 1.5}]
    values = [{"ref_id": number, "tokens": shared, "raw": f"cup {number}"} for number in range(2500)]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert read_pickle(pickle.dumps(values, protocol)) == values


def test_texts_of_python_2():
    data = b"\x80\x02]q\x00(U\x03cupq\x01U\x06pur\xc3\xa9eq\x02h\x01X\x04\x00\x00\x00d\xc3\xa9fq\x03L7L\nI01\ne."
    assert read_pickle(data) == ["cup", "purée", "cup", "déf", 7, True]


class Command:
    """What runs a command when Python's own loader reads it."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_would_run_a_command_is_refused_and_the_command_not_run(tmp_path, protocol):
    harmless = [{"ref_id": number, "sentences": []} for number in range(5)]
    data = pickle.dumps([*harmless, {"ref_id": 5, "sentences": Command(tmp_path / "ran")}], protocol)
    with pytest.raises(ValueError, match="refs.p is refused: .* can run code.*nothing of the file was executed"):
        read_pickle(data)
    assert not (tmp_path / "ran").exists()
    pickle.loads(data)  # it is what it claims to be
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "program",
    [
        b"cos\nsystem\n(S'true'\ntR.",  # named, then called
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
        b"(S'true'\nios\nsystem\n.",
        b"\x80\x02]\x82\x01.",  # the registry of extensions
        b"]Pname\n.",  # persistent ids
        b"]}b.",  # state of an object
        b"\x80\x02]\x81.",
        b"\x80\x04]\x94(B\x01\x00\x00\x00xe.",  # bytes are no annotation
        b"\x80\x04\x8f.",  # nor are sets
        b"\x80\x05]\x97.",
    ],
)
def test_every_other_instruction_is_refused(program):
    with pytest.raises(ValueError, match="refs.p is refused: it holds the pickle instruction"):
        read_pickle(program)


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "no whole pickle"),
        (pickle.dumps([{"a": "b" * 300}])[:-9], "no whole pickle"),
        (pickle.dumps({"a": 1}), "holds no list"),
        (pickle.dumps(7), "holds no list"),
        (b"]a.", "damaged"),
        (b"]K\x01s.", "damaged"),
        (b"]h\x07a.", "damaged"),
        (b"](K\x01t}K\x02u.", "damaged"),
        (b"]q\x00h\x00a.", "the list holds itself"),
        (b"\x80\x02]\x8a\xff.", "no whole pickle"),
        (b"\x80\x04]\x8d" + struct.pack("<Q", 2**62) + b".", "no whole pickle"),  # a text of 4 million terabytes
        (b"]}(]K\x01ua.", "damaged"),  # a list as a key
    ],
)
def test_damaged_pickles_are_named(data, message):
    with pytest.raises(ValueError, match=f"refs.p .*{message}"):
        read_pickle(data)


def test_memory_does_not_grow_with_the_pickle():
    def peak(count: int) -> int:
        data = pickle.dumps([{"ref_id": number, "raw": f"{number} " + "word " * 30} for number in range(count)], 2)
        tracemalloc.start()
        for _ in iterate_pickled_list(lambda: io.BytesIO(data), "refs.p"):
            pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(6000) < 1.3 * peak(2000)


# JSON


@settings(deadline=None, max_examples=60)
@given(
    st.lists(PLAIN) | st.dictionaries(st.text(), PLAIN),
    st.integers(1, 40),
    st.sampled_from([None, 2]),
    st.booleans(),
)
def test_json_in_pieces_is_the_same_json(value, chunk, indent, ascii_only):
    data = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    value = json.loads(data)
    old, raw_files_module._CHUNK = raw_files_module._CHUNK, chunk
    try:
        found = list(iterate_json(io.BytesIO(data.encode("utf-8", "surrogatepass")), "a.json"))
    except ValueError as error:
        assert "not UTF-8" in str(error) and re.search("[\ud800-\udfff]", data)
        return
    finally:
        raw_files_module._CHUNK = old
    if isinstance(value, list):
        assert found == [(None, item) for item in value]
    else:
        expected = []
        for key, entry in value.items():
            expected += [(key, item) for item in entry] if isinstance(entry, list) else [(key, entry)]
        assert found == expected


@pytest.mark.parametrize("chunk", [1, 3, 1000])
@pytest.mark.parametrize(
    "text", ["", "7", '{"a": [1, 2', '{"a": 1', '{"a"', '{"a" 1}', "[1 2]", "[1,]", "[nul]", '{"a": [{"b": }]}', '["a']
)
def test_broken_json_is_named(text, chunk, monkeypatch):
    monkeypatch.setattr(raw_files_module, "_CHUNK", chunk)
    with pytest.raises(ValueError, match="a.json is no"):
        list(iterate_json(io.BytesIO(text.encode()), "a.json"))


# Archives


def pack(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize(
    "name", ["../refs(unc).p", "refcoco/../../refs(unc).p", "/etc/refs(unc).p", "C:/refs.p", "..\\refs.p", "a\\..\\b"]
)
def test_an_archive_with_an_entry_that_leads_outside_is_refused(tmp_path, name):
    archive = pack(tmp_path / "refcoco.zip", {"refcoco/instances.json": b"{}", name: b""})
    for read in (lambda: RawFiles(tmp_path), lambda: list(ImageFiles([archive], ["train2014"]).packed())):
        with pytest.raises(ValueError, match=r"refcoco.zip is refused: its entry .* leads outside"):
            read()


def test_a_damaged_archive_is_named(tmp_path):
    (tmp_path / "refcoco.zip").write_bytes(b"PK no more")
    with pytest.raises(ValueError, match="refcoco.zip is no whole zip archive"):
        RawFiles(tmp_path)


def test_files_are_found_in_every_layout(tmp_path):
    layouts = {
        "folders": {"refcoco/instances.json": None},
        "own": {"instances.json": None},
        "packed": {"refcoco.zip": {"refcoco/instances.json": b"x"}},
        "flat": {"refcoco.zip": {"instances.json": b"x"}},
        "deep": {"zips/all.zip": {"data/refcoco/instances.json": b"x"}},
    }
    for layout, files in layouts.items():
        for name, packed in files.items():
            path = tmp_path / layout / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x") if packed is None else pack(path, packed)
        found = RawFiles(tmp_path / layout).find("refcoco", "missing.json", "instances.json")
        assert found.name == "refcoco/instances.json"
        with found.open() as stream:
            assert stream.read() == b"x"
    other = pack(tmp_path / "refcoco+.zip", {"refcoco+/instances.json": b"x"})
    with pytest.raises(ValueError, match=r"holds no refcoco/refs\(unc\).p or refcoco/b, neither"):
        RawFiles(other).find("refcoco", "refs(unc).p", "b")
    with pytest.raises(ValueError, match="there is no .*nowhere"):
        RawFiles(tmp_path / "nowhere")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_are_read_without_the_archives_directory(tmp_path, method):
    files = {f"train2014/{number}.jpg": os.urandom(50) * number for number in range(1, 9)}
    archive = pack(tmp_path / "train2014.zip", files | {"train2014/": b"", "a.txt": b"x"}, method)
    found = list(ImageFiles([tmp_path], ["train2014"]).packed())
    assert {f"train2014/{entry.name}": read_packed(entry) for entry in found} == files
    data = bytearray(archive.read_bytes())
    data[found[3].offset + 30 + len("train2014/4.jpg") + 5] ^= 255
    archive.write_bytes(data)
    with pytest.raises(OSError, match="checksum|unpacked"):
        read_packed(found[3])


def test_folders_of_pictures(tmp_path):
    for name in ("images/mscoco/images/train2014", "train2014", "other", ".hidden/train2014"):
        (tmp_path / name).mkdir(parents=True)
    assert ImageFiles([tmp_path], ["train2014"]).folders == [
        str(tmp_path / "images/mscoco/images/train2014"),
        str(tmp_path / "train2014"),
    ]
    assert ImageFiles([tmp_path / "other"], ["train2014"], given=True).folders == [str(tmp_path / "other")]


@pytest.mark.parametrize("name", ["../a.jpg", "b/a.jpg", "..", "", "a\\b.jpg", None, "a\0.jpg"])
def test_names_of_images_are_no_paths(name):
    with pytest.raises(ValueError, match="must be a plain file name"):
        check_name(name, "instances.json")
    assert check_name("COCO_train2014_000000000001.jpg", "instances.json")


# Masks


HEIGHT, WIDTH = 40, 50
SQUARE, TALL = [5, 5, 25, 5, 25, 25, 5, 25], [15, 10, 35.5, 10, 35.5, 38, 15, 38]


def test_polygons_under_both_conventions():
    parts = coco_mask.decode(coco_mask.frPyObjects([SQUARE, TALL], HEIGHT, WIDTH))  # decoded one by one
    assert (parts.sum(-1) == 2).any()
    union, several = annotation_masks([SQUARE, TALL], HEIGHT, WIDTH)
    assert np.array_equal(decode_mask(union), parts.any(-1))
    assert np.array_equal(decode_mask(several), parts.sum(-1) > 1)
    apart = [TALL, [2, 2, 8, 2, 8, 8, 2, 8]]
    union, several = annotation_masks(apart, HEIGHT, WIDTH)
    merged = coco_mask.merge(coco_mask.frPyObjects(apart, HEIGHT, WIDTH))
    assert several is None and np.array_equal(decode_mask(union), coco_mask.decode(merged))


def overlapping_row() -> dict:
    """Two objects: the first with overlapping polygons, the second plain and over the first."""
    union, several = annotation_masks([SQUARE, TALL], HEIGHT, WIDTH)
    plain, _ = annotation_masks([[20, 20, 45, 20, 45, 30, 20, 30]], HEIGHT, WIDTH)
    objects = [
        {"object_id": k, "category": "cup", "bbox": [0, 0, 1, 1], "mask": m} for k, m in enumerate((union, plain))
    ]
    said = {"expression_id": 0, "ref_id": 0, "text": "left cup", "object_indices": [0, 1]}
    image = Image.new("RGB", (WIDTH, HEIGHT))
    names = {"image": image, "image_id": 1, "file_name": "1.jpg", "height": HEIGHT, "width": WIDTH}
    overlaps = [{"object_index": 0, "mask": several}]
    return {**names, "objects": objects, "expressions": [said], "crowds": [], "overlaps": overlaps}


def test_conventions_change_into_each_other():
    row = overlapping_row()
    parts = coco_mask.decode(coco_mask.frPyObjects([SQUARE, TALL], HEIGHT, WIDTH)).sum(-1)
    once = change_ground_truth(row, "sum_equals_one")
    assert np.array_equal(decode_mask(once["objects"][0]["mask"]), parts == 1)
    assert once["objects"][1] == row["objects"][1]
    assert change_ground_truth(once, "sum_equals_one") == once
    assert change_ground_truth(once, "union") == row == change_ground_truth(row, "union")
    mirrored = change_ground_truth(horizontal_flip(row), "sum_equals_one")["objects"][0]["mask"]
    assert np.array_equal(decode_mask(mirrored), (parts == 1)[:, ::-1])
    with pytest.raises(ValueError, match="'union' or 'sum_equals_one', not 'sum'"):
        change_ground_truth(row, "sum")
    row.pop("overlaps")
    with pytest.raises(ValueError, match="no column overlaps"):
        change_ground_truth(row, "union")


def test_target_parts_serve_the_protocol_that_adds_polygons_up():
    row = overlapping_row()
    said = {**row["expressions"][0], "object_indices": [0]}
    parts = coco_mask.decode(coco_mask.frPyObjects([SQUARE, TALL], HEIGHT, WIDTH))
    protocol = get_protocol("lavt480")
    by_polygons = protocol_target(parts.any(-1), protocol, list(np.moveaxis(parts, -1, 0).astype(bool)))
    assert np.array_equal(protocol_target(parts.any(-1), protocol, target_parts(row, said)), by_polygons)
    both = target_parts(row, row["expressions"][0])
    plain = decode_mask(row["objects"][1]["mask"])
    assert np.array_equal(np.sum(both, 0) == 1, (parts.sum(-1) == 1) | plain)  # objects are a union all the same
    assert not np.any(target_parts(row, {**said, "object_indices": []}))


def test_runs_and_points():
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[3:20, 7:9] = True
    edges = np.flatnonzero(np.diff(mask.T.reshape(-1)))
    runs = np.diff([-1, *edges, mask.size - 1]).tolist()
    for counts in (runs, encode_mask(mask)["counts"]):
        rle, several = annotation_masks({"size": [HEIGHT, WIDTH], "counts": counts}, HEIGHT, WIDTH)
        assert several is None and np.array_equal(decode_mask(rle), mask)
    canvas = Image.new("L", (WIDTH, HEIGHT))
    ImageDraw.Draw(canvas).polygon([(3, 4), (20, 6), (9, 30)], outline=1, fill=1)
    points = {"points": [[[3.7, 4.2], [20, 6], [9.9, 30]], [[1, 1]]]}  # truncated; a single point is nothing
    assert np.array_equal(decode_mask(annotation_masks(points, HEIGHT, WIDTH)[0]), np.asarray(canvas) > 0)


@pytest.mark.parametrize(
    "segmentation, message",
    [
        ([], "neither a list of polygons nor an RLE"),
        (None, "neither"),
        ([[]], "none of the polygons .* has three points"),
        ([[1, 2, float("nan"), 4, 5, 6]], "no polygon .* near the image"),
        ([[1, 2, 1e12, 4, 5, 6]], "near the image"),
        ([["a", 2, 3, 4, 5, 6]], "no polygon"),
        ([[1, 2], [1, 2, 3, 4]], "none of the polygons .* has three points"),
        ([[(-1) ** (k // 2) * 9e4 for k in range(20_000)]], "the outline .* is 1,800,000,000 pixels long"),
        ([[[[1, 2], [3, 4], [5, 6]]]], "no polygon"),
        ([[1, 2, 3, 4, 5, 6], {"size": [HEIGHT, WIDTH], "counts": [2000]}], "no polygon"),
        ([{"size": [HEIGHT, WIDTH], "counts": [2000]}, {"size": [1, 1], "counts": [1]}], "has size .1, 1."),
        ({"size": [WIDTH, HEIGHT], "counts": [2000]}, "size .50, 40., but the image is 40 x 50"),
        ({"size": [HEIGHT, WIDTH], "counts": [1999]}, "sum to 1999, but its size needs 2000"),
        ({"size": [HEIGHT, WIDTH], "counts": [-1, 2001]}, "neither a string nor a list"),
        ({"size": [HEIGHT, WIDTH], "counts": "11"}, "the runs of the RLE sum to"),
        ({"points": [[[1e9, 2], [3, 4]]]}, "near the image"),
        ({"points": [5]}, "near the image"),
    ],
)
def test_broken_segmentations_are_named(segmentation, message):
    with pytest.raises(ValueError, match=message):
        annotation_masks(segmentation, HEIGHT, WIDTH)


@pytest.mark.parametrize("points", [[], [1, 2], [12, 12, 14, 14]])
@pytest.mark.parametrize("place", [0, 1])
def test_polygons_without_area_are_left_out(points, place):
    drawn = [SQUARE]
    drawn.insert(place, points)
    assert annotation_masks(drawn, HEIGHT, WIDTH) == annotation_masks([SQUARE], HEIGHT, WIDTH)
    assert degenerate_polygons(drawn) == 1 and degenerate_polygons([SQUARE]) == 0


def test_polygons_may_be_lists_of_points():
    points = [SQUARE[place : place + 2] for place in range(0, 8, 2)]
    assert annotation_masks([points], HEIGHT, WIDTH) == annotation_masks([SQUARE], HEIGHT, WIDTH)


def test_a_list_of_rles_is_their_union():
    masks = np.zeros((2, HEIGHT, WIDTH), bool)
    masks[0, 3:9, 4:12], masks[1, 6:20, 10:30] = True, True
    union, several = annotation_masks([encode_mask(mask) for mask in masks], HEIGHT, WIDTH)
    assert np.array_equal(decode_mask(union), masks.any(0)) and np.array_equal(decode_mask(several), masks.all(0))
    assert annotation_masks([encode_mask(masks[0])], HEIGHT, WIDTH) == (encode_mask(masks[0]), None)


# Counts


def test_differences_name_split_and_both_numbers():
    published = PUBLISHED["refcocog (umd)"]
    assert differences(published, published) == []
    assert sum(counts.expressions for counts in published.values()) == 95_010
    wrong = {**published, "val": Counts(2_573, 4_895, 1_300)}
    assert differences(wrong, published) == ["val has 4,895 expressions, but 4,896 are published"]
    wrong.pop("test")
    assert "test has 0 references, but 5,023 are published" in differences(wrong, published)
    assert "there is a split dev" in differences({**published, "dev": Counts(1, 1, 1)}, published)[0]
    phrases = {
        split: Counts(counts.expressions, counts.expressions, 9) for split, counts in PUBLISHED["phrasecut"].items()
    }
    assert differences(phrases, PUBLISHED["phrasecut"]) == []  # what is not published is not compared
