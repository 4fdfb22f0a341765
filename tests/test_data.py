"""The schema, own data as JSONL, `load`, transforms and the collator."""

import json
import random
from io import BytesIO

import datasets
import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from pycocotools import mask as coco_mask

from hf_ris.data import (
    FEATURES,
    EvaluationRows,
    RisCollator,
    TrainingRows,
    check_rle,
    color_jitter,
    decode_mask,
    encode_mask,
    expression_mask,
    horizontal_flip,
    load,
    load_jsonl_folder,
    sample_expressions,
    split_by_rank,
    union_mask,
    validate_row,
)
from hf_ris.data.refscenes.checker import look, true_of
from hf_ris.data.refscenes.scenes import RefScenes
from hf_ris.data.transforms import mirror_text, names_colour, without_colours


HEIGHT, WIDTH = 20, 30


def block(top: int, left: int, height: int = 5, width: int = 7, size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def make_row(number: int = 0, texts: tuple = (("the left cup", [0]), ("both", [0, 1]), ("a cup", [0]))) -> dict:
    """Two cups and a dog, each painted in its own colour on black."""
    masks = [block(2, 1), block(3, 20), block(12, 10)]
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for mask, colour in zip(masks, [(200, 20, 20), (20, 200, 20), (20, 20, 200)]):
        pixels[mask] = colour
    return {
        "image": Image.fromarray(pixels),
        "image_id": number,
        "file_name": f"{number}.png",
        "height": HEIGHT,
        "width": WIDTH,
        "objects": [
            {
                "object_id": 10 * number + k,
                "category": ("cup", "cup", "dog")[k],
                "bbox": coco_mask.toBbox(encode_mask(mask)).tolist(),
                "mask": encode_mask(mask),
            }
            for k, mask in enumerate(masks)
        ],
        "expressions": [
            {"expression_id": 100 * number + k, "ref_id": 7, "text": text, "object_indices": indices}
            for k, (text, indices) in enumerate(texts)
        ],
    }


# Schema


def test_rle_is_cocos():
    mask = np.zeros((4, 4), bool)
    mask[1, 2] = True  # column-major: 9 off, 1 on, 6 off, written as these digits
    assert encode_mask(mask) == {"size": [4, 4], "counts": "916"}
    rng = np.random.default_rng(0)
    for density in (0, 0.01, 0.5, 1):
        mask = rng.random((37, 501)) < density
        rle = encode_mask(mask)
        assert rle["size"] == [37, 501] and isinstance(rle["counts"], str)
        assert np.array_equal(coco_mask.decode(rle), mask)
        assert decode_mask(rle).dtype == bool and np.array_equal(decode_mask(rle), mask)


def test_check_rle_accepts_valid_and_refuses_what_pycocotools_would_misread():
    rng = np.random.default_rng(1)
    for size in ((1, 1), (3, 90), (1500, 2100)):
        for density in (0, 0.001, 0.4, 1):
            rle = encode_mask(rng.random(size) < density)
            check_rle(rle)
            with pytest.raises(ValueError, match="sum to"):
                check_rle({**rle, "size": [size[0] + 1, size[1]]})
    for counts, message in (
        ("", "not a string of COCO"),
        ("9é6", "not a string"),
        ("91", "sum to 10"),
        ("o", "not a"),
        (":O7", "negative"),
    ):
        with pytest.raises(ValueError, match=message):
            check_rle({"size": [4, 4], "counts": counts})
    with pytest.raises(ValueError, match="longer than any image"):
        check_rle({"size": [4, 4], "counts": "o" * 20 + "0"})


def test_union_of_several_one_and_no_objects():
    row = make_row(texts=(("both", [0, 1]), ("left", [0]), ("a giraffe", [])))
    both, left, none = (expression_mask(row, said) for said in row["expressions"])
    assert np.array_equal(both, block(2, 1) | block(3, 20))
    assert np.array_equal(left, block(2, 1))
    assert none.shape == (HEIGHT, WIDTH) and not none.any()
    overlapping = [encode_mask(block(2, 1)), encode_mask(block(4, 3))]
    assert np.array_equal(union_mask(overlapping, (HEIGHT, WIDTH)), block(2, 1) | block(4, 3))


def test_rows_survive_a_dataset_as_lists_of_dicts():
    row = make_row()
    back = datasets.Dataset.from_list([row], features=FEATURES)[0]
    assert back["objects"] == row["objects"] and back["expressions"] == row["expressions"]
    assert np.array_equal(np.asarray(back["image"]), np.asarray(row["image"]))
    validate_row(back)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda row: row.pop("expressions"), "lacks expressions"),
        (lambda row: row.update(height=21), "says height x width = 21 x 30, but the image as displayed is 20 x 30"),
        (lambda row: row["objects"][1].update(mask=encode_mask(block(0, 0, size=(30, 20)))), "object 1 has size"),
        (lambda row: row["objects"][1]["mask"].update(counts="11"), "mask of object 1 is broken: the runs"),
        (lambda row: row["objects"][2].update(bbox=[1.0]), "bbox of object 2"),
        (lambda row: row["expressions"][0].update(text=" "), "expression 0 has no text"),
        (lambda row: row["expressions"][1].update(object_indices=[3]), "expression 1 names objects .3."),
        (lambda row: row["expressions"][1].update(object_indices=[1, 1]), "distinct indices from 0 to 2"),
        (lambda row: row["objects"][1].update(object_id=row["objects"][0]["object_id"]), "share one object_id"),
    ],
)
def test_validate_row_names_what_is_wrong(change, message):
    row = make_row()
    change(row)
    with pytest.raises(ValueError, match=message):
        validate_row(row)


# Own data


def runs_of(mask: np.ndarray) -> list[int]:
    """Uncompressed COCO runs, written independently: column-major, beginning with zeros."""
    runs, value = [0], False
    for pixel in mask.T.reshape(-1):
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return runs


@pytest.fixture
def folder(tmp_path):
    """A folder with images a.png and sub/b.jpg of 20 x 30 and a few mask files of block(2, 1)."""
    (tmp_path / "sub").mkdir()
    make_row()["image"].save(tmp_path / "a.png")
    make_row()["image"].save(tmp_path / "sub/b.jpg")
    mask = block(2, 1)
    Image.fromarray(mask).save(tmp_path / "bilevel.png")
    Image.fromarray(mask.astype(np.uint8)).save(tmp_path / "one.png")
    palette = Image.fromarray(mask.astype(np.uint8) * 3).convert("P")
    palette.putpalette([0] * 768)  # all black to the eye: the index counts
    palette.save(tmp_path / "palette.png")
    colour = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    colour[..., 2] = 255  # blue everywhere, but transparent outside the object
    colour[..., 3] = mask * 255
    Image.fromarray(colour).save(tmp_path / "alpha.png")
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8)).save(tmp_path / "empty.png")
    Image.fromarray(np.ones((WIDTH, HEIGHT), np.uint8)).save(tmp_path / "turned.png")
    (tmp_path / "broken.png").write_text("no image")
    (tmp_path / "drawing.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 30 20\n")
    grey = mask.astype(np.uint8) * 255
    Image.fromarray(grey).save(tmp_path / "white.png")
    Image.fromarray(mask.astype(np.uint16) * 300).save(tmp_path / "deep.png")
    Image.fromarray(mask.astype(np.float32)).save(tmp_path / "float.tiff")
    Image.fromarray(grey).convert("RGB").save(tmp_path / "colour.png")
    Image.fromarray(grey).save(tmp_path / "keyed.png", transparency=0)
    soft = Image.fromarray(grey).resize((15, 10)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    soft.save(tmp_path / "soft.png")
    labels = mask.astype(np.uint8) + (np.arange(WIDTH) > 4) * mask
    Image.fromarray(labels.astype(np.uint8)).save(tmp_path / "labels.png")
    Image.fromarray(grey).save(tmp_path / "lossy.jpg", quality=60)
    Image.fromarray(np.dstack([grey, np.maximum(grey // 2, soft)])).save(tmp_path / "half.png")
    Image.fromarray(np.where(mask, np.nan, 0).astype(np.float32)).save(tmp_path / "nan.tiff")
    Image.fromarray(grey).convert("RGB").convert("CMYK").save(tmp_path / "print.tiff")
    Image.new("LAB", (WIDTH, HEIGHT)).save(tmp_path / "lab.tiff")
    return tmp_path


def write(folder, *lines, name="train.jsonl"):
    (folder / name).write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return folder


def test_every_spelling_of_a_mask_is_the_same_mask(folder):
    mask = block(2, 1)
    spellings = [
        encode_mask(mask),
        {"size": [HEIGHT, WIDTH], "counts": runs_of(mask)},
        *("bilevel.png", "one.png", "palette.png", "alpha.png"),
        *("white.png", "deep.png", "float.tiff", "colour.png", "keyed.png"),
    ]
    line = {
        "file_name": "a.png",
        "objects": [{"mask": spelling} for spelling in spellings],
        "expressions": [{"text": " the left cup ", "object": 2}, {"text": "all", "objects": [0, 5]}],
    }
    row = load_jsonl_folder(write(folder, line))[0]
    validate_row(row)
    for entry in row["objects"]:
        assert np.array_equal(decode_mask(entry["mask"]), mask)
        assert entry["bbox"] == [1, 2, 7, 5] and entry["category"] == ""
    assert [entry["object_id"] for entry in row["objects"]] == list(range(len(spellings)))
    assert [said["text"] for said in row["expressions"]] == ["the left cup", "all"]
    assert [said["object_indices"] for said in row["expressions"]] == [[2], [0, 5]]


def test_given_fields_are_kept_and_missing_ids_numbered(folder):
    objects = [{"mask": "one.png", "category": "cup", "bbox": [1, 2.5, 6, 4], "object_id": 70}]
    said = [{"text": "x", "object": 0}, {"text": "y", "objects": [0]}, {"text": "nothing there", "objects": []}]
    lines = [
        {"file_name": "a.png", "objects": objects, "expressions": said, "image_id": 9},
        "",
        {"file_name": "sub/b.jpg", "objects": [], "expressions": said[2:], "image_id": 4},
    ]
    first, second = load_jsonl_folder(write(folder, *lines))
    assert (first["image_id"], second["image_id"], second["file_name"]) == (9, 4, "sub/b.jpg")
    assert first["objects"][0]["object_id"] == 70 and first["objects"][0]["category"] == "cup"
    assert first["objects"][0]["bbox"] == [1, 2.5, 6, 4]
    said = first["expressions"] + second["expressions"]
    assert [entry["expression_id"] for entry in said] == [0, 1, 2, 3]
    assert [entry["ref_id"] for entry in said] == [0, 0, 1, 2]


def test_short_form_groups_images_and_equal_masks(folder):
    lines = [
        {"file_name": "a.png", "text": "left", "mask": "one.png", "category": "cup"},
        {"file_name": "sub/b.jpg", "text": "only", "mask": encode_mask(block(1, 1))},
        {"file_name": "a.png", "text": "dog", "mask": encode_mask(block(12, 10))},
        {"file_name": "a.png", "text": "left again", "mask": encode_mask(block(2, 1)), "category": "cup"},
    ]
    first, second = load_jsonl_folder(write(folder, *lines))
    assert [said["text"] for said in first["expressions"]] == ["left", "dog", "left again"]
    assert [said["object_indices"] for said in first["expressions"]] == [[0], [1], [0]]
    assert [entry["category"] for entry in first["objects"]] == ["cup", ""]
    assert first["expressions"][0]["ref_id"] == first["expressions"][2]["ref_id"]
    assert len(second["objects"]) == 1 and second["expressions"][0]["text"] == "only"
    lines[3]["category"] = "mug"
    with pytest.raises(ValueError, match='train.jsonl line 4: "category" must be the same'):
        load_jsonl_folder(write(folder, *lines))


def test_a_file_per_split(folder):
    line = {"file_name": "a.png", "text": "left", "mask": "one.png"}
    write(folder, line)
    assert isinstance(load_jsonl_folder(folder), datasets.Dataset)
    write(folder, line, {**line, "text": "other"}, name="val.jsonl")
    both = load_jsonl_folder(folder)
    assert sorted(both) == ["train", "val"] and len(both["val"][0]["expressions"]) == 2
    assert len(load_jsonl_folder(folder, "train")[0]["expressions"]) == 1
    with pytest.raises(ValueError, match="no test.jsonl for the split 'test': it holds train, val"):
        load_jsonl_folder(folder, "test")


def test_exif_rotation_masks_refer_to_the_image_as_displayed(tmp_path):
    shown = Image.fromarray(np.where(block(2, 1, size=(40, 16))[..., None], [250, 0, 0], 0).astype(np.uint8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # viewers turn the stored image clockwise
    shown.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "phone.png", exif=exif)
    line = {"file_name": "phone.png", "text": "red", "mask": encode_mask(block(2, 1, size=(40, 16)))}
    row = load_jsonl_folder(write(tmp_path, line))[0]
    validate_row(row)
    assert (row["height"], row["width"]) == (40, 16)
    target = expression_mask(row, row["expressions"][0])
    assert np.array_equal(np.asarray(row["image"])[..., 0] > 128, target)
    flipped = horizontal_flip(row)
    assert np.array_equal(np.asarray(flipped["image"])[..., 0] > 128, decode_mask(flipped["objects"][0]["mask"]))
    line["mask"] = encode_mask(block(2, 1, size=(16, 40)))
    with pytest.raises(ValueError, match=r"mask is 16 x 40 .* its EXIF orientation applied, is 40 x 16"):
        load_jsonl_folder(write(tmp_path, line))


RLE = encode_mask(block(2, 1))
GOOD = {"file_name": "a.png", "objects": [{"mask": RLE}], "expressions": [{"text": "x", "object": 0}]}
SHORT = {"file_name": "a.png", "text": "x", "mask": RLE}


def objects(**change):
    return {**GOOD, "objects": [{**GOOD["objects"][0], **change}]}


def said(**entry):
    return {**GOOD, "expressions": [entry]}


@pytest.mark.parametrize(
    "line, message",
    [
        ("{'file_name': 1}", "this is not JSON"),
        ("[1, 2]", "must be a JSON object"),
        ("[" * 100_000, "this is not JSON"),
        ({**GOOD, "file_name": None}, '"file_name" must be the path'),
        ({**GOOD, "file_name": ["a.png"]}, '"file_name" must be the path'),
        ({**GOOD, "file_name": "c.png"}, 'no file "c.png" in the folder'),
        ({**GOOD, "file_name": "sub"}, 'no file "sub"'),
        ({**GOOD, "file_name": "../outside.png"}, "leads outside the folder"),
        ({**GOOD, "file_name": "/etc/hostname"}, "leads outside the folder"),
        ({**GOOD, "file_name": "link.png"}, "leads outside the folder"),
        ({**GOOD, "file_name": "a\0.png"}, "cannot be a path"),
        ({**GOOD, "file_name": "broken.png"}, '"broken.png" cannot be opened as an image'),
        ({**GOOD, "expresions": []}, 'no field "expresions": the fields are file_name, objects'),
        ({"file_name": "a.png", "objects": []}, '"expressions" must be a list, not null: this line has file_name, obj'),
        (objects(mask=None), 'object 0: "mask" must be a COCO RLE .* or the path of a mask image, not null'),
        (objects(mask="none.png"), 'no file "none.png"'),
        (objects(mask="../outside.png"), "leads outside"),
        (objects(mask="broken.png"), 'the mask "broken.png" is no picture that is read here'),
        ({**GOOD, "file_name": "drawing.eps"}, '"drawing.eps" cannot be opened as an image'),
        (objects(mask="drawing.eps"), 'the mask "drawing.eps" is no picture that is read here'),
        (objects(mask="soft.png"), r"not the mask of one object: beside 0 its pixels have the values \[\d+\] and"),
        (objects(mask="labels.png"), r"have the values \[1\] and \[2\]; draw an object in one value on 0"),
        (objects(mask="lossy.jpg"), "JPEG blurs edges"),
        (objects(mask="half.png"), "not the mask of one object"),
        (objects(mask="nan.tiff"), "not the mask of one object"),
        (objects(mask="print.tiff"), 'the mask "print.tiff" has the mode CMYK; a mask has one of 1, L, P'),
        (objects(mask="lab.tiff"), "has the mode LAB"),
        (said(text="half \ud83d", object=0), "a lone surrogate. at place 5"),
        (objects(category="half \ud83d"), '"category" holds half a character'),
        (objects(mask="turned.png"), "mask is 30 x 20 .* is 20 x 30"),
        (objects(mask="empty.png"), "holds no pixel"),
        (objects(mask={"size": [2**17, 2**17], "counts": [2**34]}), "mask is 131072 x 131072"),
        (objects(mask={"size": [20], "counts": "1"}), '"size" of the RLE must be'),
        (objects(mask={"size": [20, 30], "counts": "91"}), "runs of the RLE sum to 10, but .* needs 600"),
        (objects(mask={"size": [20, 30], "counts": [100, 501]}), "runs of the RLE sum to 601"),
        (objects(mask={"size": [20, 30], "counts": [-1, 601]}), '"counts" of the RLE must be'),
        (objects(mask={"size": [20, 30], "counts": [600]}), "holds no pixel"),
        (objects(bbox=[5, 5, 28, 10]), "not two corners"),
        (objects(bbox=[5, 5, 8, float("nan")]), '"bbox" must be'),
        (objects(bbox=[5, 5, 8, 10**400]), '"bbox" must be'),
        (objects(category=3), '"category" must be a text, not 3'),
        (objects(catgory="cup"), 'an object has no field "catgory"'),
        (objects(object_id="7"), '"object_id" must be a whole number, not "7"'),
        (said(text=" ", object=0), 'expression 0: "text" must be a text that is not empty, not " "'),
        (said(text="x", object=1), r"indices are \[1\], but distinct indices from 0 to 0 are needed"),
        (said(text="x", object=-1), r"indices are \[-1\]"),
        (said(text="x", objects=[0, 0]), "distinct indices"),
        (said(text="x", object=True), "indices must be whole numbers"),
        (said(text="x", objects=0), "indices must be whole numbers"),
        (said(text="x"), 'give "object": index or "objects"'),
        ({**SHORT, "objects": []}, 'a line of one expression has no field "objects"'),
        (SHORT, "do not mix"),
        (GOOD, "sub/b.jpg is described in line 1 already"),
        ({**GOOD, "image_id": 3}, '"image_id" must be given everywhere in the file or nowhere'),
    ],
)
def test_a_bad_line_is_named(folder, line, message):
    (folder.parent / "outside.png").write_bytes((folder / "a.png").read_bytes())
    (folder / "link.png").symlink_to(folder.parent / "outside.png")
    if line == GOOD:
        line = {**GOOD, "file_name": "sub/b.jpg"}
    write(folder, {**GOOD, "file_name": "sub/b.jpg"}, line)
    with pytest.raises(ValueError, match=f"^train.jsonl line 2: .*{message}"):
        load_jsonl_folder(folder)


def test_bad_files_and_short_lines(folder):
    with pytest.raises(ValueError, match='line 2: "image_id" 3 is taken already'):
        load_jsonl_folder(write(folder, {**GOOD, "image_id": 3}, {**GOOD, "file_name": "sub/b.jpg", "image_id": 3}))
    with pytest.raises(ValueError, match='line 2: "text" must be a text that is not empty, not null'):
        load_jsonl_folder(write(folder, SHORT, {**SHORT, "text": None}))
    with pytest.raises(ValueError, match='line 2: "image_id" must be the same in all lines of a.png'):
        load_jsonl_folder(write(folder, {**SHORT, "image_id": 3}, {**SHORT, "image_id": 4}))
    (folder / "train.jsonl").write_bytes(json.dumps(GOOD).replace("x", "\xe9").encode("latin-1"))
    with pytest.raises(ValueError, match="train.jsonl line 1: the text is not UTF-8"):
        load_jsonl_folder(folder)
    with pytest.raises(ValueError, match="train.jsonl holds no line"):
        load_jsonl_folder(write(folder, "", " "))
    with pytest.raises(ValueError, match="holds no JSONL file"):
        load_jsonl_folder(folder / "sub")


# load


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_load_own_and_prepared_folders(folder, tmp_path_factory, cache):
    write(folder, GOOD, {**GOOD, "file_name": "sub/b.jpg"})
    write(folder, GOOD, name="val.jsonl")
    own = load(folder)
    saved, shards = tmp_path_factory.mktemp("saved"), tmp_path_factory.mktemp("shards")
    own.save_to_disk(saved)
    (shards / "data").mkdir()
    for split, part in own.items():  # push_to_hub embeds the files likewise
        table = datasets.table.embed_table_storage(part.with_format("arrow")[:])
        embedded = datasets.Dataset(table, info=part.info)
        embedded.to_parquet(shards / f"data/{split}-00000-of-00001.parquet")
    for file in (folder / "a.png", folder / "sub/b.jpg"):
        file.unlink()  # a prepared folder is whole
    for prepared in (saved, shards):
        both = load(prepared)
        assert {split: len(part) for split, part in both.items()} == {"train": 2, "val": 1}
        for row in both["train"]:
            validate_row(row)
        assert load(prepared, "val")[0]["objects"] == own["val"].remove_columns("image")[0]["objects"]
        streamed = load(prepared, "train", streaming=True)
        assert isinstance(streamed, datasets.IterableDataset)
        assert [row["file_name"] for row in streamed] == ["a.png", "sub/b.jpg"]
        with pytest.raises(ValueError, match="has no split 'test': it has train, val"):
            load(prepared, "test")
    load(saved / "val")
    with pytest.raises(ValueError, match="one data set without splits: leave out split='val'"):
        load(saved / "val", "val")


def test_load_refscenes(cache):
    scenes = load("refscenes", "val", size=3)
    assert len(scenes) == 3 and scenes.features == FEATURES
    for row in scenes:
        validate_row(row)


def test_load_says_what_it_wants(folder, tmp_path, cache, monkeypatch):
    wanted = "give a RefScenes name .refscenes, .* a folder of images or videos with JSONL files .*, or a Hub id"
    for name in ("refcoco", "./nowhere", "a/b/c", ""):
        with pytest.raises(ValueError, match=wanted):
            load(name)
    with pytest.raises(ValueError, match=f"a.png is a file: {wanted}"):
        load(folder / "a.png")
    with pytest.raises(ValueError, match=f"sub holds no data set: {wanted}"):
        load(folder / "sub")
    with pytest.raises(ValueError, match="a folder takes no size"):
        load(write(folder, GOOD), size=3)
    (folder / "sub/part.1.parquet").write_text("")
    with pytest.raises(ValueError, match="does not name its split"):
        load(folder / "sub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=f"'someone/data' is neither a folder here nor .*{wanted}"):
        load("someone/data")


def test_load_checks_the_columns(tmp_path, cache):
    rows = datasets.Dataset.from_list([make_row()], features=FEATURES)
    rows.remove_columns(["objects", "width"]).save_to_disk(tmp_path / "few")
    with pytest.raises(ValueError, match="lacks width, objects: it has image, .*, but a row .* has image, image_id"):
        load(tmp_path / "few")
    rows.cast_column("image_id", datasets.Value("string")).save_to_disk(tmp_path / "other")
    with pytest.raises(ValueError, match="has image_id as Value.'string'., but it must be Value.'int64'."):
        load(tmp_path / "other")
    rows.add_column("source", ["me"]).save_to_disk(tmp_path / "more")
    assert load(tmp_path / "more")[0]["source"] == "me"


@pytest.mark.parametrize("shards, ranks", [(1, 3), (4, 2)])
def test_ranks_share_rows_without_overlap(shards, ranks):
    rows = datasets.Dataset.from_list([make_row(number) for number in range(11)], features=FEATURES)
    for whole in (rows, rows.to_iterable_dataset(num_shards=shards)):
        seen = [[row["image_id"] for row in split_by_rank(whole, rank, ranks)] for rank in range(ranks)]
        assert all(seen) and sorted(sum(seen, [])) == list(range(11))
    with pytest.raises(ValueError, match="rank must be from 0 to world_size - 1 = 1"):
        split_by_rank(rows, 2, 2)


# Transforms


@pytest.mark.parametrize(
    "text, mirrored",
    [
        ("left dog", "right dog"),
        ("the Leftmost cup, RIGHT-hand side", "the Rightmost cup, LEFT-hand side"),
        ("second from the left", "second from the right"),
        ("cup that is right of the dog", "cup that is left of the dog"),
        ("far right, not left", "far left, not right"),
        ("man on the right in red", "man on the left in red"),
        ("lft guy", "rt guy"),
        ("bright upright man", "bright upright man"),
        ("the second largest cup", "the second largest cup"),
        ("“right” one 🙂", "“left” one 🙂"),
        ("the third cup", None),  # counted from the left
        ("the second man with a vest", None),
        ("right behind the cat", None),
        ("the pizza left over", None),
        ("bird at 3 o'clock", None),
        ("man r", None),
        ("der linke Hund, größer", None),
    ],
)
def test_mirrored_texts(text, mirrored):
    assert mirror_text(text) == mirrored


def test_mirrored_texts_of_scenes_are_true_of_the_mirrored_scene():
    scenes, swapped = RefScenes("refscenes_g", "val"), 0
    for row in (scenes[number] for number in range(6)):
        things = look(np.asarray(row["image"]), [decode_mask(entry["mask"]) for entry in row["objects"]])
        mirrored = [thing._replace(x=row["width"] - 1 - thing.x) for thing in things]
        for said in row["expressions"]:
            text = mirror_text(said["text"])
            swapped += text != said["text"]
            assert true_of(text, mirrored) == set(said["object_indices"]), text
    assert swapped > 10


def test_flip_moves_image_masks_and_boxes_together():
    row = make_row()
    flipped = horizontal_flip(row)
    validate_row(flipped)
    assert flipped["expressions"][0]["text"] == "the right cup" and row["expressions"][0]["text"] == "the left cup"
    for entry, colour in zip(flipped["objects"], range(3)):
        mask = decode_mask(entry["mask"])
        assert np.array_equal(np.asarray(flipped["image"])[..., colour] > 128, mask)
        assert entry["bbox"] == coco_mask.toBbox(encode_mask(mask)).tolist()
    back = horizontal_flip(flipped)
    assert back["objects"] == row["objects"] and back["expressions"] == row["expressions"]
    assert horizontal_flip(make_row(texts=(("left", [0]), ("the second one", [1])))) is None


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "I;16"])
def test_jitter_changes_light_but_not_hue_and_takes_every_mode(mode):
    row = make_row()
    row["image"] = (
        row["image"].convert("L").convert("I").convert("I;16") if mode == "I;16" else row["image"].convert(mode)
    )
    before = np.asarray(row["image"]).copy()
    after = np.asarray(color_jitter(row, random.Random(0))["image"])
    assert after.shape == before.shape
    assert np.array_equal(before, np.asarray(row["image"]))
    assert (mode in ("RGB", "L")) == (not np.array_equal(before, after))
    if mode == "RGB":
        assert np.array_equal(after[block(2, 1)].argmax(-1), before[block(2, 1)].argmax(-1))


def test_gray_keeps_only_expressions_that_name_no_colour():
    said = ("the reddish cup", "left cup", "blond girl", "white-haired man", "die Tür")
    texts = tuple((text, [number % 3]) for number, text in enumerate(said))
    row = make_row(texts=texts)
    gray = without_colours(row)
    assert [said["text"] for said in gray["expressions"]] == ["left cup"]
    pixels = np.asarray(gray["image"])
    assert pixels.shape == np.asarray(row["image"]).shape and np.ptp(pixels, axis=2).max() == 0
    assert np.ptp(np.asarray(row["image"]), axis=2).max() > 0 and len(row["expressions"]) == 5
    for text in ("the goldfish", "a wooden stand", "the greenery", "a tank"):
        assert not names_colour(text), text
    assert without_colours(make_row(texts=texts[:1]))["expressions"] == []
    for mode in ("L", "RGB", "P", "RGBA", "CMYK"):  # a picture that keeps its colours keeps the texts that name them
        shown = without_colours(row | {"image": row["image"].convert(mode)})
        assert shown["image"].mode == mode and len(shown["expressions"]) == (1 if mode in ("L", "RGB") else 5)

    mixed = [make_row(number, texts[:2]) for number in range(90)]
    rows = [TrainingRows(mixed, augment=("gray",))[0, index] for index in range(90)]
    shown = [np.ptp(np.asarray(row["image"]), axis=2).max() == 0 for row in rows]
    assert 18 <= sum(shown) <= 42
    for row, grayed in zip(rows, shown, strict=True):
        assert len(row["expressions"]) == (1 if grayed else 2)
    coloured = [make_row(number, texts[:1]) for number in range(30)]  # none is left over: as they were
    assert all(len(TrainingRows(coloured, augment=("gray",))[0, index]["expressions"]) == 1 for index in range(30))


def test_sampling_prefers_other_objects_and_is_deterministic():
    texts = tuple((f"cup {k}", [0]) for k in range(8)) + (("pair", [0, 1]), ("pair again", [1, 0]), ("dog", [2]))
    row = make_row(texts=texts)
    for seed in range(20):
        three = sample_expressions(row, 3, random.Random(seed))["expressions"]
        assert len({frozenset(said["object_indices"]) for said in three}) == 3
        four = sample_expressions(row, 5, random.Random(seed))["expressions"]
        assert sum(said["object_indices"] == [0] for said in four) == 2
        assert three == sample_expressions(row, 3, random.Random(seed))["expressions"]
    picks = {sample_expressions(row, 3, random.Random(seed))["expressions"][0]["text"] for seed in range(20)}
    assert len(picks) > 2
    assert sample_expressions(row, 20, random.Random(0))["expressions"] == row["expressions"]
    with pytest.raises(ValueError, match="at least 1, got 0"):
        sample_expressions(row, 0, random.Random(0))


def fingerprint(row: dict) -> tuple:
    return row["image"].tobytes(), json.dumps([row["objects"], row["expressions"]])


def test_what_weighs_more_is_drawn_more_often():
    texts = ["the left cup", "red cup", "second cup", "blue cup", "small cup", "cup"]
    row = {"expressions": [{"text": text, "object_indices": [n]} for n, text in enumerate(texts)]}
    counts = dict.fromkeys(texts, 0)

    def weigh(text: str) -> float:
        return 4.0 if text == "second cup" else 1.0

    for seed in range(600):
        taken = sample_expressions(row, 2, random.Random(seed), weigh)["expressions"]
        assert len(taken) == 2
        for said in taken:
            counts[said["text"]] += 1
    drawn = counts.pop("second cup") / 600
    # the first time 4 of 9 weights are its; else it is 4 of the 8 that are left
    assert abs(drawn - (4 / 9 + 5 / 9 * 4 / 8)) < 0.05
    assert all(abs(count / 600 - (2 - drawn) / 5) < 0.06 for count in counts.values())


def test_training_rows_depend_on_seed_epoch_and_index_alone():
    texts = tuple((f"left cup {k}", [k % 3]) for k in range(9))
    data = [make_row(number, texts) for number in range(6)]
    data[2]["expressions"] = []
    for source in (data, datasets.Dataset.from_list(data, features=FEATURES)):
        rows = TrainingRows(source, max_expressions=2, seed=1, augment=("flip", "color"))
        assert len(rows) == 5 and rows[0, 2]["image_id"] == 3
        keys = [(epoch, index) for epoch in range(3) for index in range(5)]
        forward = {key: fingerprint(rows[key]) for key in keys}
        again = TrainingRows(source, max_expressions=2, seed=1, augment=("flip", "color"))
        assert {key: fingerprint(again[key]) for key in reversed(keys)} == forward
        assert len(set(forward.values())) == 15
        other = TrainingRows(source, max_expressions=2, seed=2, augment=("flip", "color"))
        assert all(fingerprint(other[key]) != forward[key] for key in keys)
        sides = {rows[key]["expressions"][0]["text"].split()[0] for key in keys}
        assert sides == {"left", "right"}
    plain = TrainingRows(data)[5, 0]
    assert fingerprint(plain) == fingerprint(data[0])
    with pytest.raises(ValueError, match="augment knows flip, color, gray, not 'rotate'"):
        TrainingRows(data, augment=("rotate",))
    with pytest.raises(ValueError, match="a streamed data set has no random access"):
        TrainingRows(datasets.Dataset.from_list(data, features=FEATURES).to_iterable_dataset())
    with pytest.raises(ValueError, match="no row of the data set has an expression"):
        TrainingRows(data[2:3])


@pytest.mark.parametrize("limit, items", [(None, 4), (2, 7), (1, 11), (50, 4)])
def test_evaluation_rows_hold_every_expression_once(limit, items):
    counts = (3, 0, 1, 2, 5)
    data = [make_row(n, tuple((f"cup {k}", [0]) for k in range(count))) for n, count in enumerate(counts)]
    rows = EvaluationRows(datasets.Dataset.from_list(data, features=FEATURES), limit)
    assert len(rows) == items
    ids = [said["expression_id"] for index in range(len(rows)) for said in rows[index]["expressions"]]
    assert ids == [said["expression_id"] for row in data for said in row["expressions"]]
    assert all(1 <= len(rows[index]["expressions"]) <= (limit or 50) for index in range(len(rows)))


def test_a_selected_dataset_is_counted_by_its_own_rows():
    data = [make_row(n, tuple((f"cup {k}", [0]) for k in range(count))) for n, count in enumerate((3, 0, 1))]
    chosen = datasets.Dataset.from_list(data, features=FEATURES).select([2, 1, 0])
    assert [chosen[position]["image_id"] for position, _, _ in EvaluationRows(chosen).items] == [2, 0]


# Collator


def fake_processor(images, text, masks=None, return_tensors="pt"):
    """Records what it is given, in the shape of the processors' answer."""
    assert return_tensors == "pt" and len(images) == len(text)
    batch = {
        "pixel_values": torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images]),
        "input_ids": [said for of_image in text for said in of_image],
        "image_index": torch.tensor([number for number, of_image in enumerate(text) for _ in of_image]),
    }
    if masks is not None:
        assert [len(of_image) for of_image in masks] == [len(of_image) for of_image in text]
        batch["labels"] = torch.from_numpy(np.stack([mask for of_image in masks for mask in of_image])).float()
    return batch


def test_collator_gives_labels_and_groups_targets():
    texts = (("the left cup", [0]), ("both", [0, 1]), ("a cup", [0]), ("both again", [1, 0]), ("fox", []), ("owl", []))
    data = [make_row(0, texts), make_row(1, ()), make_row(2)]
    batch = RisCollator(fake_processor)(data)
    assert batch["pixel_values"].shape == (2, 3, HEIGHT, WIDTH)
    assert batch["image_index"].tolist() == [0] * 6 + [1] * 3
    assert batch["object_index"].dtype == torch.long
    assert batch["object_index"].tolist() == [0, 1, 0, 1, 2, 3, 4, 5, 4]
    assert "metadata" not in batch
    expected = [expression_mask(row, said) for row in data for said in row["expressions"]]
    assert np.array_equal(batch["labels"].numpy(), np.stack(expected))
    assert "labels" not in RisCollator(fake_processor, labels=False)(data)
    with pytest.raises(ValueError, match="no expression"):
        RisCollator(fake_processor)([make_row(1, ())])


def test_collator_metadata():
    texts = (("both", [1, 2]), ("the left cup", [0]), ("a giraffe", []), ("cups", [0, 1]))
    both, left, none, cups = RisCollator(fake_processor, metadata=True)([make_row(3, texts)])["metadata"]
    assert both.pop("target") == encode_mask(block(3, 20) | block(12, 10))
    assert both == {
        "expression_id": 300,
        "ref_id": 7,
        "image_id": 3,
        "text": "both",
        "object_ids": [31, 32],
        "category": "cup",
        "height": HEIGHT,
        "width": WIDTH,
        "same_class_distractors": 1,
    }
    assert (left["object_ids"], left["category"], left["same_class_distractors"]) == ([30], "cup", 1)
    assert (cups["object_ids"], cups["category"], cups["same_class_distractors"]) == ([30, 31], "cup", 0)
    assert (none["object_ids"], none["category"], none["same_class_distractors"]) == ([], "", 0)
    assert not decode_mask(none["target"]).any() and none["target"]["size"] == [HEIGHT, WIDTH]


def test_streamed_rows_and_workers_give_the_batches_of_stored_ones():
    rows = datasets.Dataset.from_list([make_row(number) for number in range(4)], features=FEATURES)
    collator = RisCollator(fake_processor, metadata=True)
    stored = collator([rows[0], rows[1]])
    streamed = next(iter(torch.utils.data.DataLoader(rows.to_iterable_dataset(), 2, collate_fn=collator)))
    keys = [(0, index) for index in range(4)]
    loader = torch.utils.data.DataLoader(TrainingRows(rows), 2, sampler=keys, collate_fn=collator, num_workers=1)
    for batch in (streamed, next(iter(loader))):
        assert batch["metadata"] == stored["metadata"]
        assert all(torch.equal(batch[key], stored[key]) for key in ("pixel_values", "labels", "object_index"))


def test_collator_feeds_a_real_processor():
    from hf_ris.models.processing_lts import LtsProcessor
    from hf_ris.models.processing_ris import RisImageProcessor
    from hf_ris.models.text_encoders import word_tokenizer_from_corpus

    rows = [make_row(0), make_row(1, (("dog", [2]),))]
    tokenizer = word_tokenizer_from_corpus([said["text"] for row in rows for said in row["expressions"]])
    processor = LtsProcessor(RisImageProcessor(geometry="squash", image_size=64), tokenizer)
    batch = RisCollator(processor, metadata=True)(rows)
    assert batch["pixel_values"].shape == (2, 3, 64, 64) and batch["labels"].shape == (4, 64, 64)
    assert batch["image_index"].tolist() == [0, 0, 0, 1] and batch["object_index"].tolist() == [0, 1, 0, 2]
    dog = block(12, 10)
    expected = Image.fromarray(dog).resize((64, 64), Image.Resampling.NEAREST)
    assert np.array_equal(batch["labels"][3].numpy() > 0.5, np.asarray(expected))


@pytest.fixture
def spoiled(tmp_path):
    """A folder of Parquet whose second picture is cut short and whose third is a drawing in PostScript."""
    whole = BytesIO()
    make_row()["image"].save(whole, "PNG")
    pictures = [whole.getvalue(), whole.getvalue()[:-40], b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 30 20\n"]
    rows = [
        make_row() | {"image": {"bytes": data, "path": f"{number}.png"}, "image_id": number}
        for number, data in enumerate(pictures)
    ]
    features = datasets.Features({**FEATURES, "image": datasets.Image()})
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "train-00000-of-00001.parquet")
    return tmp_path


@pytest.mark.parametrize("streaming", [False, True])
def test_pictures_that_cannot_be_decoded_are_named(spoiled, streaming):
    rows = load(spoiled, "train", streaming=streaming)
    assert rows.features["image"] == FEATURES["image"] == datasets.Image() == rows.features["image"]
    rows = iter(rows)
    assert next(rows)["image"].size == (WIDTH, HEIGHT)
    with pytest.raises(ValueError, match=r"The image '1.png' cannot be decoded"):
        next(rows)
    rows = load(spoiled, "train", streaming=streaming)
    rows = rows.skip(2) if streaming else rows.select([2])
    with pytest.raises(ValueError, match=r"The image '2.png' is no picture that is read here"):
        next(iter(rows))


def test_what_is_stored_is_the_type_of_datasets(spoiled, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored")
    load(spoiled, "train").select([0]).save_to_disk(folder)
    assert type(datasets.load_from_disk(folder).features["image"]) is datasets.Image
    assert load(folder)[0]["image"].size == (WIDTH, HEIGHT)
