"""Annotations of COCO, Label Studio and CVAT in their real shape, odd ones included: problems listed, nothing lost."""

import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from hf_ris.__main__ import main
from hf_ris.data import decode_mask, encode_mask, expression_mask, load
from hf_ris.data.adopting import adopt
from hf_ris.data.adopting.label_studio import unpack


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name, size in (
        ("a.jpg", (60, 40)),
        ("b.png", (30, 50)),
        ("more/c.jpg", (20, 20)),
        ("9f3b2c1a-d.png", (10, 10)),
    ):
        Image.new("RGB", size, "grey").save(folder / name)
    turned = Image.new("RGB", (60, 40), "grey")
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(folder / "turned.jpg", exif=exif)
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def texts(rows) -> dict[str, list[str]]:
    return {row["file_name"].removeprefix("images/"): [said["text"] for said in row["expressions"]] for row in rows}


SQUARE = [10, 10, 30, 10, 30, 30, 10, 30]


def coco(runs: np.ndarray) -> dict:
    """A COCO file of `photos`; `runs` (50, 30) is the mask of b.png's objects, once as compressed RLE, once as runs."""
    compressed = encode_mask(runs)
    flat = runs.flatten(order="F")
    changes = np.flatnonzero(np.diff(np.concatenate([[0], flat, [0]])))
    uncompressed = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    images = [
        {"id": 1, "file_name": "a.jpg", "height": 40, "width": 60},
        {"id": 2, "file_name": "elsewhere/b.png", "height": 50, "width": 30},
        {"id": 3, "file_name": "missing.jpg", "height": 5, "width": 5},
        {"id": 4, "file_name": "turned.jpg", "height": 40, "width": 60},
        {"id": 5, "file_name": "broken.jpg", "height": 40, "width": 60},
        {"id": 5, "file_name": "c.jpg", "height": 20, "width": 20},
        {"file_name": "c.jpg"},
    ]
    dog = {"image_id": 1, "category_id": 7}
    annotations = [
        dog | {"id": 1, "segmentation": [SQUARE], "caption": "the left dog"},
        dog | {"id": 2, "segmentation": [[40, 10, 50, 10, 50, 30], SQUARE]},
        {"id": 3, "image_id": 2, "category_id": 8, "segmentation": compressed, "attributes": {"expression": "a cup"}},
        {"id": 4, "image_id": 2, "category_id": 8, "segmentation": {"size": [50, 30], "counts": uncompressed}},
        dog | {"id": 5, "segmentation": [[1, 2, 3, 4]]},
        dog | {"id": 6, "bbox": [1, 2, 3, 4]},
        dog | {"id": 7, "segmentation": {"size": [40, 60], "counts": [5]}},
        dog | {"id": 8, "segmentation": [[90, 90, 95, 90, 95, 95]]},
        {"id": 9, "image_id": 3, "segmentation": [SQUARE]},
        {"id": 10, "image_id": 77, "segmentation": [SQUARE]},
        {"id": 11, "image_id": 1, "category_id": 99, "segmentation": [SQUARE]},
        "odd",
    ]
    categories = [{"id": 7, "name": "dog"}, {"id": 8, "name": "cup"}]
    return {"images": images, "annotations": annotations, "categories": categories}


@pytest.fixture
def from_coco(photos, tmp_path):
    """(the mask of b.png, what was adopted, where)."""
    runs = np.zeros((50, 30), bool)
    runs[5:20, 5:15] = True
    return runs, adopt("coco", write(tmp_path / "i.json", coco(runs)), photos, tmp_path / "out"), tmp_path / "out"


def test_coco(from_coco):
    runs, _, out = from_coco
    rows = load(out)
    assert texts(rows) == {"a.jpg": ["the left dog", "dog"], "b.png": ["a cup", "cup"]}
    first, second = rows
    assert first["expressions"][1]["object_indices"] == [0, 1]  # a category speaks of all of its kind
    assert (
        expression_mask(first, first["expressions"][0]).sum() == decode_mask(first["objects"][0]["mask"]).sum() == 400
    )
    for entry in second["objects"]:
        assert (decode_mask(entry["mask"]) == runs).all()


def test_problems_of_coco_are_listed(from_coco):
    _, collection, out = from_coco
    said = " | ".join(collection.problems)
    for wanted in (
        "missing.jpg: the image is not found",
        "turned.jpg: annotated as 60 x 40 (width x height), but the image is 40 x 60, which its EXIF orientation turns",
        "broken.jpg: the image cannot be opened",
        "c.jpg: the id 5 is that of another image",
        "image 6: lacks one of id",
        "annotation 5: a polygon of 4 numbers has fewer than three points",
        "annotation 6: it has no segmentation",
        "annotation 7: the runs of its RLE sum to 5",
        "annotation 8: the mask holds no pixel",
        "annotation 9: its image could not be used",
        "annotation 10: its image is not in the file",
        "annotation 11: there is no category 99",
        "a.jpg: object 2 has neither an expression nor a category",
        "annotation 11: its image is not in the file",
    ):
        assert wanted in said, wanted
    assert (out / "problems.txt").read_text().splitlines() == collection.problems


CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><task><name>t</name></task></meta>
<image id="0" name="a.jpg" width="60" height="40">
  <polygon label="dog" source="manual" occluded="0" points="10.00,10.00;30.00,10.00;30.00,30.00;10.00,30.00">
    <attribute name="expression">the left dog</attribute><attribute name="age">3</attribute></polygon>
  <polygon label="dog" points="40,10;50,10;50,30" group_id="4"/>
  <polygon label="cat" points="40,30;50,30;50,39" group_id="4"/>
  <mask label="cup" source="semi-auto" occluded="0" rle="0, 2, 2, 2" left="3" top="5" width="2" height="3" z_order="0"/>
  <mask label="cup" rle="1, 1" left="3" top="5" width="2" height="3"/>
  <mask label="cup" rle="0, 6" left="59" top="5" width="2" height="3"/>
  <box label="dog" xtl="1" ytl="1" xbr="5" ybr="5"/>
  <polygon label="dog" points="1,1;2,2"/>
  <polygon label="dog" points="1,1;a,2;3,3"/>
  <tag label="night"/>
</image>
<image id="1" name="none.jpg" width="60" height="40"><polygon label="x" points="1,1;2,2;3,1"/></image>
<image id="2" name="b.png" width="30" height="50"></image>
</annotations>"""


@pytest.mark.parametrize("shape", ["xml", "folder", "zip"])
def test_cvat(photos, tmp_path, shape):
    path = tmp_path / "export"
    if shape == "xml":
        path = write(tmp_path / "annotations.xml", CVAT)
    elif shape == "folder":
        path.mkdir()
        write(path / "annotations.xml", CVAT)
    else:
        path = tmp_path / "export.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("annotations.xml", CVAT)
    collection = adopt("cvat", path, photos, tmp_path / "out")
    rows = load(tmp_path / "out")
    assert texts(rows) == {"a.jpg": ["the left dog", "dog", "cup"]}
    areas = [decode_mask(entry["mask"]) for entry in rows[0]["objects"]]
    assert areas[0].sum() == 400 and areas[1][20, 48] and areas[1][33, 49]  # a group is one object
    assert np.argwhere(areas[2]).tolist() == [[5, 3], [5, 4], [7, 3], [7, 4]]  # row by row inside its box
    said = " | ".join(collection.problems)
    for wanted in (
        "its group has the label dog too",
        "a.jpg, mask 4 (cup): the runs of its mask sum to 2, not to its box's 2 x 3 pixels",
        "mask 5 (cup): its mask's box leaves the image",
        "a.jpg, box 6 (dog): a box is no mask",
        "polygon 7 (dog): a polygon of 4 numbers has fewer than three points",
        "polygon 8 (dog): could not convert string to float",
        "a tag of the whole image (night)",
        "none.jpg: the image is not found",
        "none.jpg: its 1 shapes could not be used",
        "b.png: nothing is said of anything in the image",
    ):
        assert wanted in said, wanted


def test_cvat_for_video_and_other_files_are_refused(photos, tmp_path):
    for content, message in (
        ("<annotations><track id='0'/></annotations>", "export for video"),
        ("<dataset/>", "its root is <dataset>"),
        ("no xml", "is not XML"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><annotations/>", "declares entities"),
        ("<annotations/>", "nothing in the annotations can be used"),
    ):
        with pytest.raises(ValueError, match=message):
            adopt("cvat", write(tmp_path / "x.xml", content), photos, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def pack(values: np.ndarray) -> list[int]:
    """The packing of Label Studio's brush: a count of values, their bits, the widths of counts, blocks."""
    bits = f"{values.size:032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    ends = np.append(np.flatnonzero(np.diff(values)) + 1, values.size)
    start = 0
    for number, end in enumerate(ends):
        if number == 1 and end - start <= 8:  # once as values one by one
            bits += f"0{0:02b}{end - start - 1:03b}" + "".join(f"{value:08b}" for value in values[start:end])
            start = end
        while start < end:
            count = min(end - start, 65536)
            bits += f"1{3:02b}{count - 1:016b}{values[start]:08b}"
            start += count
    bits += "0" * (-len(bits) % 8)
    return [int(bits[place : place + 8], 2) for place in range(0, len(bits), 8)]


def test_label_studio(photos, tmp_path):
    mask = np.zeros((50, 30), bool)
    mask[5:20, 5:15] = True
    rle = pack((mask[..., None].repeat(4, 2) * 255).astype(np.uint8).flatten())
    size = {"original_width": 60, "original_height": 40, "image_rotation": 0, "to_name": "image"}
    polygon = {"points": [[10, 25], [50, 25], [50, 75], [10, 75]], "polygonlabels": ["dog"]}
    brush = {"original_width": 30, "original_height": 50, "image_rotation": 0, "type": "brushlabels"}
    results = [
        size | {"id": "r1", "type": "polygonlabels", "from_name": "label", "value": polygon},
        size | {"id": "r1", "type": "textarea", "from_name": "expression", "value": {"text": ["the left dog", "it"]}},
        size | {"id": "r1", "type": "textarea", "from_name": "notes", "value": {"text": ["blurred"]}},
        size | {"id": "r2", "type": "rectanglelabels", "value": {"x": 1, "y": 1, "width": 5, "height": 5}},
        size | {"id": "r3", "type": "polygonlabels", "value": {"points": [[1, 1]], "polygonlabels": ["dog"]}},
        {"id": "c", "type": "choices", "from_name": "night", "value": {"choices": ["yes"]}},
    ]
    brushes = [
        brush | {"id": "m", "value": {"format": "rle", "rle": rle, "brushlabels": ["cup"]}},
        brush | {"id": "n", "value": {"format": "rle", "rle": rle[:30], "brushlabels": ["cup"]}},
        brush | {"id": "o", "value": {"format": "rle", "rle": rle, "brushlabels": ["cup"]}, "image_rotation": 90},
    ]
    small = {"original_width": 10, "original_height": 10, "id": "s", "type": "polygonlabels"}
    tasks = [
        {"id": 1, "data": {"image": "https://host/x/a.jpg"}, "annotations": [{"result": results}, {"result": []}]},
        {"id": 2, "data": {"image": "/data/local-files/?d=x/b.png"}, "annotations": [{"result": brushes}]},
        {
            "id": 3,
            "data": {"image": "/data/upload/1/11112222-9f3b2c1a-d.png"},
            "annotations": [{"result": [small | {"value": polygon}]}],
        },
        {"id": 4, "data": {"image": "a.jpg"}, "annotations": [{"was_cancelled": True, "result": results}]},
        {"id": 5, "data": {"image": "lost.jpg"}, "annotations": [{"result": results[:1]}]},
        {"id": 6, "data": {"text": "hello"}, "annotations": [{"result": results[:1]}]},
        {"id": 7, "data": {"image": "a.jpg"}, "annotations": [{"result": results[5:]}]},
    ]
    collection = adopt("label-studio", write(tmp_path / "e.json", tasks), photos, tmp_path / "out")
    rows = load(tmp_path / "out")
    assert texts(rows) == {"a.jpg": ["the left dog", "it"], "b.png": ["cup"], "9f3b2c1a-d.png": ["dog"]}
    assert decode_mask(rows[0]["objects"][0]["mask"]).sum() == 24 * 20
    assert (decode_mask(rows[1]["objects"][0]["mask"]) == mask).all()
    said = " | ".join(collection.problems)
    for wanted in (
        "task 1: it has 2 annotations, of which the first was taken",
        "task 1, region r2: a rectanglelabels is no mask",
        "task 1, region r3: its mask cannot be read: a polygon of 2 numbers",
        "task 2, region n: its mask cannot be read: it ends early",
        "task 2, region o: the image was turned by 90 degrees",
        "task 4: it has no annotation that was not cancelled",
        "lost.jpg: the image is not found",
        "task 6: its data name no image",
        "task 7: it has no region",
    ):
        assert wanted in said, wanted
    with pytest.raises(ValueError, match="no Label Studio export"):
        adopt("label-studio", write(tmp_path / "min.json", [{"image": "a.jpg"}]), photos, tmp_path / "other")


def test_packing_is_read_back():
    values = np.repeat(np.array([0, 255, 7, 0], np.uint8), [5, 3, 70_000, 2])
    assert (unpack(pack(values)) == values).all()
    for broken in ([], [1, 2, 3], [300] * 9, pack(values)[:9], ["a"] * 9):
        with pytest.raises((ValueError, TypeError)):
            unpack(broken)


def test_the_command_lists_problems_and_loses_nothing(photos, tmp_path, capsys):
    path, out = write(tmp_path / "annotations.xml", CVAT), tmp_path / "out"
    words = ["adopt", "cvat", str(path), "--images", str(photos), "--out", str(out)]
    main(words)
    said = capsys.readouterr().out
    assert "3 images" not in said and "things could not be taken over" in said and "problems.txt" in said
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert "holds something already" in str(stop.value.__cause__) and stop.value.code == 2
    assert (out / "images/a.jpg").read_bytes() == (photos / "a.jpg").read_bytes()
