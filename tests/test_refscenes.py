"""RefScenes: true, frozen, the same everywhere, balanced; judged by a checker that knows nothing of the generator."""

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_ris.data import decode_mask, load_refscenes, validate_row
from hf_ris.data.refscenes import scenes as refscenes
from hf_ris.data.refscenes.checker import Reader, Thing, disagreements, look, true_of
from hf_ris.data.refscenes.scenes import CATEGORIES, COLOURS, NAMES, SPLITS, VERSION, VOCABULARY, RefScenes
from hf_ris.data.refscenes.sentences import LOCATION_WORDS
from hf_ris.data.refscenes.shapes import HELD_OUT


HASHES = Path(__file__).parent / "data" / "refscenes_hashes.json"
# 50 scenes: three or four of every flavour and split.
FROZEN = [
    (name, split, index)
    for k, (name, split) in enumerate((name, split) for name in NAMES for split in SPLITS)
    for index in (0, 7, 4_321, 99_999)[: 3 + (k % 8 == 0)]
]


def digest(row: dict) -> str:
    """sha256 of the pixels, masks and texts of a row, and of what the texts point at."""
    said = [(e["expression_id"], e["ref_id"], e["text"], e["object_indices"]) for e in row["expressions"]]
    things = [(o["object_id"], o["category"], o["mask"]["counts"]) for o in row["objects"]]
    return hashlib.sha256(np.asarray(row["image"]).tobytes() + json.dumps([things, said]).encode()).hexdigest()


def rows(name: str, split: str, count: int, start: int = 0) -> list[dict]:
    scenes = RefScenes(name, split)
    return [scenes[index] for index in range(start, start + count)]


def test_frozen():
    """A change of what is drawn or said needs a new VERSION: run `python tests/test_refscenes.py` after giving one."""
    stored = json.loads(HASHES.read_text())
    assert stored["version"] == VERSION
    assert len(FROZEN) == len(stored["scenes"]) == 50
    for name, split, index in FROZEN:
        assert digest(RefScenes(name, split)[index]) == stored["scenes"][f"{name} {split} {index}"], (
            name,
            split,
            index,
        )


def test_another_process_draws_the_same():
    program = (
        "from tests.test_refscenes import digest; from hf_ris.data import RefScenes; "
        "print(digest(RefScenes('refscenes_g', 'val')[12]), digest(RefScenes('phrasescenes', 'train', 96)[3]))"
    )
    root = Path(__file__).parents[1]
    printed = subprocess.run(
        [sys.executable, "-c", program],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "7"},
    ).stdout.split()
    # Drawn in another order here, so that nothing can hang on what was drawn before.
    here = [digest(RefScenes("phrasescenes", "train", 96)[3]), digest(RefScenes("refscenes_g", "val")[12])]
    assert printed == here[::-1]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("split", SPLITS)
def test_checker_agrees(name: str, split: str):
    for row in rows(name, split, 7, start=500_000):
        assert disagreements(row) == []


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("split", SPLITS)
def test_checker_agrees_on_ten_thousand(name: str, split: str):
    for index in range(625):
        assert disagreements(RefScenes(name, split)[index]) == [], index


def test_checker_can_disagree():
    """It must notice a wrong target, a wrong word and a repainted object."""
    row = rows("refscenes", "test", 1)[0]
    count = len(row["objects"])
    for expression in row["expressions"]:
        expression["object_indices"] = [(k + 1) % count for k in expression["object_indices"]]
    assert len(disagreements(row)) == len(row["expressions"])

    scene = RefScenes("refscenes_plus", "test")[1]
    pixels, masks = np.asarray(scene["image"]).copy(), [decode_mask(o["mask"]) for o in scene["objects"]]
    before = look(pixels, masks)
    assert [thing.category for thing in before] == [o["category"] for o in scene["objects"]]
    pixels[masks[0]] = COLOURS["green" if before[0].colour != "green" else "red"]
    after = look(pixels, masks)
    assert after[0].colour != before[0].colour and after[1:] == before[1:]
    with pytest.raises(ValueError, match="mask 0 has the outline of nothing"):
        look(pixels, [np.eye(128, dtype=bool)])


def test_checker_reads():
    """By hand: what the words mean, on five things."""
    things = [
        Thing("cup", "red", "plain", "large", 20, 20, 1200),
        Thing("cup", "blue", "striped", "small", 100, 30, 230),
        Thing("cup", "red", "dotted", "medium", 64, 64, 500),
        Thing("star", "red", "plain", "small", 30, 110, 220),
        Thing("fish", "blue", "plain", "medium", 110, 110, 510),
    ]
    meant = {
        "cup": {0, 1, 2},
        "the red cup with dots": {2},
        "mug on the right": {1},
        "all red things that are not stars": {0, 2},
        "second cup from the left": {2},
        "the biggest one": {0},
        "bottom left thing": {3},
        "middle object": {2},
        "thing closest to the fish": {2},
        "red ones above the star": {0, 2},
        "cup without stripes not on the left side": {2},
        "a red object which is below the blue cup and to the right of the star": {2},
        "rightmost red thing": {2},
        "cup furthest to the right": {1},
        "red one nearest the top": {0},
        "green star": set(),
    }
    assert {text: true_of(text, things) for text in meant} == meant
    with pytest.raises(ValueError, match="cannot read 'red banana'"):
        Reader("red banana").expression()
    with pytest.raises(ValueError, match="but 3 are called so"):
        true_of("the star next to the cup", things)


def test_held_out_pairs():
    """test_compositional speaks of category-colour pairs alone that no other split holds, as anyone can see."""
    assert len(HELD_OUT) == 16
    assert Counter(category for category, _ in HELD_OUT) == dict.fromkeys(CATEGORIES, 1)
    assert Counter(colour for _, colour in HELD_OUT) == dict.fromkeys(COLOURS, 2)

    def pairs(row: dict) -> list[tuple[str, str]]:
        masks = [decode_mask(o["mask"]) for o in row["objects"]]
        return [(thing.category, thing.colour) for thing in look(np.asarray(row["image"]), masks)]

    for split in ("train", "val", "test"):
        for name in ("refscenes", "phrasescenes"):
            assert not HELD_OUT.intersection(pair for row in rows(name, split, 6) for pair in pairs(row))
    for name in NAMES:
        for row in rows(name, "test_compositional", 6):
            seen = pairs(row)
            targets = {k for e in row["expressions"] for k in e["object_indices"]}
            assert HELD_OUT.intersection(seen) and all(seen[k] in HELD_OUT for k in targets)


@pytest.mark.parametrize("name", NAMES)
def test_rows(name: str):
    """Valid rows, 3 to 9 objects in plain sight, unique ids, known words, most objects spoken of at least twice."""
    taken = Counter()
    spoken = objects = 0
    for split in SPLITS:
        for row in rows(name, split, 40):
            validate_row(row)
            assert 3 <= len(row["objects"]) <= 9
            for thing in row["objects"]:
                assert thing["category"] in CATEGORIES and decode_mask(thing["mask"]).mean() > 0.006
            union = sum(decode_mask(thing["mask"]).astype(int) for thing in row["objects"])
            assert union.max() == 1  # visible pixels belong to one object
            assert len({e["text"] for e in row["expressions"]}) == len(row["expressions"])
            targets = {}
            for expression in row["expressions"]:
                assert set(expression["text"].split()) <= set(VOCABULARY)
                assert name != "refscenes_plus" or not set(expression["text"].split()) & LOCATION_WORDS
                assert expression["object_indices"]
                assert name == "phrasescenes" or len(expression["object_indices"]) == 1
                assert (
                    targets.setdefault(expression["ref_id"], expression["object_indices"])
                    == expression["object_indices"]
                )
            taken.update(("image", row["image_id"]) for _ in (0,))
            taken.update(("object", thing["object_id"]) for thing in row["objects"])
            taken.update(("expression", e["expression_id"]) for e in row["expressions"])
            taken.update(("ref", ref) for ref in targets)
            if split != "test_compositional":
                times = Counter(k for e in row["expressions"] for k in e["object_indices"])
                spoken += sum(times[k] >= 2 for k in range(len(row["objects"])))
                objects += len(row["objects"])
    assert max(taken.values()) == 1
    assert spoken > 0.8 * objects
    assert len(VOCABULARY) <= 150


def test_every_word_is_learnt():
    """No word waits for a test split: training texts use the whole vocabulary."""
    words = {
        word
        for name in NAMES
        for row in rows(name, "train", 250)
        for e in row["expressions"]
        for word in e["text"].split()
    }
    assert words == set(VOCABULARY)


def test_the_largest_object_is_not_the_answer():
    right = total = 0
    for row in rows("refscenes", "test", 100):
        areas = [decode_mask(thing["mask"]).sum() for thing in row["objects"]]
        right += sum(e["object_indices"] == [int(np.argmax(areas))] for e in row["expressions"])
        total += len(row["expressions"])
    assert right / total < 0.25


def test_sizes_show_the_same_scene():
    """Texts and objects do not depend on the size it is drawn at; masks scale."""
    small, large = RefScenes("refscenes", "val")[5], RefScenes("refscenes", "val", image_size=288)[5]
    assert large["image"].size == (288, 288)
    assert small["expressions"] == large["expressions"]
    for a, b in zip(small["objects"], large["objects"], strict=True):
        scaled = Image.fromarray(decode_mask(b["mask"])).resize((128, 128))
        both, either = (f(decode_mask(a["mask"]), np.asarray(scaled)).sum() for f in (np.logical_and, np.logical_or))
        assert a["category"] == b["category"] and both / either > 0.75
    validate_row(large)


def test_pictures_are_shared_between_reference_flavours_alone():
    pictures = {name: np.asarray(RefScenes(name, "test")[3]["image"]) for name in NAMES}
    assert np.array_equal(pictures["refscenes"], pictures["refscenes_plus"])
    assert np.array_equal(pictures["refscenes"], pictures["refscenes_g"])
    assert not np.array_equal(pictures["refscenes"], pictures["phrasescenes"])
    assert len({np.asarray(RefScenes("refscenes", split)[3]["image"]).tobytes() for split in SPLITS}) == 4


def test_load_refscenes(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    few, more = load_refscenes("phrasescenes", "val", 3), load_refscenes("phrasescenes", "val", 5)
    assert len(few) == 3 and len(more) == 5
    for index in range(3):
        scene, stored = RefScenes("phrasescenes", "val")[index], more[index]
        assert few[index] | {"image": None} == stored | {"image": None}
        assert np.array_equal(np.asarray(stored["image"]), np.asarray(scene["image"]))
        assert stored["expressions"] == scene["expressions"] and stored["objects"] == scene["objects"]
    # The same again comes from the cache; another version does not.
    assert load_refscenes("phrasescenes", "val", 3).cache_files == few.cache_files
    monkeypatch.setattr(refscenes, "VERSION", "0.test")
    newer = load_refscenes("phrasescenes", "val", 3)
    assert newer.cache_files != few.cache_files
    assert not np.array_equal(np.asarray(newer[0]["image"]), np.asarray(few[0]["image"]))


def test_bad_requests_say_what_is_right():
    with pytest.raises(ValueError, match="no RefScenes flavour 'refcoco': choose one of refscenes, refscenes_plus"):
        load_refscenes("refcoco")
    with pytest.raises(ValueError, match="no split 'dev': choose one of train, val, test, test_compositional"):
        load_refscenes("refscenes", "dev")
    with pytest.raises(ValueError, match="size is 0, but a split holds 1 to 10,000,000 scenes"):
        load_refscenes("refscenes", "val", 0)
    with pytest.raises(ValueError, match="image_size is 8, but"):
        RefScenes("refscenes", "val", 8)
    with pytest.raises(IndexError):
        RefScenes("refscenes", "val")[-1]


if __name__ == "__main__":
    scenes = {f"{name} {split} {index}": digest(RefScenes(name, split)[index]) for name, split, index in FROZEN}
    HASHES.parent.mkdir(exist_ok=True)
    HASHES.write_text(json.dumps({"version": VERSION, "scenes": scenes}, indent=1) + "\n")
