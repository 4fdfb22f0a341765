"""Moving RefScenes: true, frozen, the same at every size; told apart by motion; judged by an independent checker."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_ris.data import Frames, MovingScenes, VideoCollator, VideoTrainingRows, load, load_moving_scenes, validate_video
from hf_ris.data.loading import load_split
from hf_ris.data.refscenes.layout import Stream
from hf_ris.data.refscenes.motion import CLIP, DIRECTIONS, Motion, holds, path, place_at
from hf_ris.data.refscenes.moving import MOVING_VOCABULARY, VERSION, contact_sheet
from hf_ris.data.refscenes.moving_checker import disagreements, heads, hidden_by, stands, track, turns
from hf_ris.data.refscenes.scenes import SPLITS, VOCABULARY
from hf_ris.data.refscenes.shapes import HELD_OUT
from hf_ris.data.schema import decode_mask, encode_mask
from hf_ris.data.video_schema import annotated_frames, expression_masks, lazy_frames
from hf_ris.metrics import has_motion


HASHES = Path(__file__).parent / "data" / "moving_scenes_hashes.json"
FROZEN = [(split, index) for split in SPLITS for index in (0, 7, 4_321)]


def digest(row: dict) -> str:
    """sha256 of the pixels, masks and texts of a row, and of what the texts point at."""
    said = [(e["expression_id"], e["ref_id"], e["text"], e["object_indices"]) for e in row["expressions"]]
    things = [(o["object_id"], o["category"], [rle["counts"] for rle in o["masks"]]) for o in row["objects"]]
    pixels = b"".join(np.asarray(frame).tobytes() for frame in row["frames"])
    return hashlib.sha256(pixels + json.dumps([things, said]).encode()).hexdigest()


def test_frozen():
    """A change of what is drawn or said needs a new VERSION: then run `python tests/test_moving_scenes.py`."""
    stored = json.loads(HASHES.read_text())
    assert stored["version"] == VERSION and len(stored["clips"]) == len(FROZEN)
    for split, index in FROZEN:
        assert digest(MovingScenes(split)[index]) == stored["clips"][f"{split} {index}"], (split, index)


@pytest.mark.parametrize("split", SPLITS)
def test_checker_agrees(split: str):
    for index in range(500_000, 500_003):
        assert disagreements(MovingScenes(split, 128, 16)[index]) == []


@pytest.mark.parametrize(("split", "index"), [("train", 232), ("val", 212), ("test", 183), ("test_compositional", 9)])
def test_what_half_sticks_out_beside_another_is_behind_it(split: str, index: int):
    row = MovingScenes(split, 128, 16)[index]
    assert any("behind" in said["text"] for said in row["expressions"]) and disagreements(row) == []


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("split", SPLITS)
def test_checker_agrees_on_a_thousand(split: str):
    for index in range(250):
        assert disagreements(MovingScenes(split, 128, 16)[index]) == [], index


def test_checker_can_disagree():
    row = MovingScenes("test", 128, 16)[0]
    count = len(row["objects"])
    for expression in row["expressions"]:
        expression["object_indices"] = [(k + 1) % count for k in expression["object_indices"]]
    assert len(disagreements(row)) == len(row["expressions"])
    clean = MovingScenes("test", 128, 16)[0]
    clean["expressions"][0]["text"] = "the cup that sings"
    assert disagreements(clean)[0][2] == {-1}


def square(x: int, y: int, visible: bool = True) -> np.ndarray:
    mask = np.zeros((128, 128), bool)
    mask[y : y + 10, x : x + (10 if visible else 3)] = True
    return mask


def test_checker_sees_motion_by_hand():
    left = track([square(90 - 5 * step, 40) for step in range(10)])
    back = [square(40, at) for at in (60, 50, 40, 30, 40, 50)]
    assert turns(track([*back, square(40, 60)]), upright=True)
    assert turns(track([*back, square(40, 60, visible=False)]), upright=True) and not turns(track(back), upright=True)
    away = [square(40, at) for at in (60, 50, 40, 30)]
    assert not turns(track([*away, *[square(40, 20, visible=False)] * 9]), upright=True)
    assert heads(left, "left") and not heads(left, "right") and not stands(left) and not turns(left, upright=False)
    assert stands(track([square(20, 20)] * 10))
    bounce = track([square(20, 20 + 12 * (step % 2)) for step in range(9)])
    assert turns(bounce, upright=True) and not turns(bounce, upright=False) and not heads(bounce, "down")
    hider = [np.zeros((128, 128), bool) for _ in range(10)]
    for mask in hider:
        mask[30:60, 50:80] = True
    passing = [square(8 + 11 * step, 40) & ~hider[0] for step in range(10)]
    assert hidden_by(track(passing), track(hider), hider)
    assert not hidden_by(left, track(hider), hider)


def test_texts_do_not_depend_on_size_or_frames():
    small, large = MovingScenes("val", 96, 8)[3], MovingScenes("val", 128, 16)[3]
    assert small["expressions"] == large["expressions"]
    assert [o["object_id"] for o in small["objects"]] == [o["object_id"] for o in large["objects"]]
    assert len(small["frames"]) == 8 and large["frames"][0].size == (128, 128)
    for row in (small, large):
        validate_video(row)
        assert row["height"] == row["frames"][0].height


def test_motion_is_needed():
    """What is said of motion is said of one of several things of that look; the rest is told by looks."""
    motion = looks = 0
    words = set(VOCABULARY) | set(MOVING_VOCABULARY)
    for index in range(30):
        row = MovingScenes("train")[index]
        assert 3 <= len(row["objects"]) <= 5 and row["expressions"]
        texts = [said["text"] for said in row["expressions"]]
        assert len(set(texts)) == len(texts)
        for text in texts:
            assert set(text.split()) <= words, text
            motion, looks = motion + has_motion(text), looks + (not has_motion(text))
    assert motion > 3 * looks > 0


def test_claims_and_paths():
    assert holds("left", Motion("stops", "left", 40)) and holds("stops", Motion("stops", "left", 40))
    assert holds("left", Motion("turns", "right", 40)) is None and holds("up", Motion("turns", "left", 40)) is False
    assert holds("still", Motion("starts", "up", 40)) is None and holds("still", Motion("still", "", 0))
    for kind in ("steady", "stops", "starts", "turns", "bounces"):
        corners = path(Motion(kind, "up", 20), Stream("test", kind))
        assert corners[0] == (0, 0, 0) and corners[-1][0] == CLIP
        assert place_at(corners, 0, 7) == (0, 0) and place_at(corners, 7, 7) == corners[-1][1:]
    assert place_at([(0, 0, 0), (CLIP, 64, -64)], 1, 4) == (16, -16)
    assert set(DIRECTIONS) == {"left", "right", "up", "down"}


def test_held_out_pairs():
    for index in range(4):
        row = MovingScenes("test_compositional")[index]
        pictures = MovingScenes("train")[index]
        assert row["expressions"] and pictures["expressions"]
    categories = {category for category, _ in HELD_OUT}
    row = MovingScenes("test_compositional")[0]
    named = [row["objects"][said["object_indices"][0]]["category"] for said in row["expressions"]]
    assert set(named) <= categories


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_moving_scenes("val", 3, image_size=96, frames=8)


def test_data_set(loaded):
    lazy = lazy_frames(loaded)
    row = lazy[0]
    frames = Frames(row["frames"])
    expected = MovingScenes("val")[0]
    assert len(frames) == 8 and len(frames[2:4]) == 2
    assert np.array_equal(np.asarray(frames[5]), np.asarray(expected["frames"][5]))
    assert [said["text"] for said in row["expressions"]] == [said["text"] for said in expected["expressions"]]
    assert annotated_frames(row) == list(range(8))
    mask = expression_masks(row, row["expressions"][0], [7])[0]
    target = row["expressions"][0]["object_indices"][0]
    assert np.array_equal(mask, decode_mask(expected["objects"][target]["masks"][7]))
    assert load_split("refscenes_video", "val", 2)[0]["frames"][0]["bytes"]  # not decoded
    with pytest.raises(ValueError, match="image_size is 64, but Moving RefScenes takes 96 to 128"):
        load("refscenes_video", "val", size=1, image_size=64)


def test_training_rows_and_batches(loaded):
    rows = VideoTrainingRows(lazy_frames(loaded), max_expressions=3, clip_frames=4, triplets=True)
    row = rows[(0, 1)]
    assert len(row["expressions"]) == 3 and len(row["clip"]) == 4 and row["clip"] == sorted(row["clip"])
    assert rows[(0, 1)]["clip"] == row["clip"]

    def processor(videos, text, masks, return_tensors):
        assert all(len(video) == 4 for video in videos)
        assert all(mask.shape == (4, 96, 96) for of_video in masks for mask in of_video)
        return {"videos": len(videos), "texts": text}

    batch = VideoCollator(processor)([rows[(0, 0)], rows[(0, 1)]])
    assert batch["videos"] == 2 and len(batch["object_index"]) == 6 and len(set(batch["object_index"].tolist())) >= 4


def test_frames_without_annotation(loaded):
    row = MovingScenes("val")[0]
    objects = row["objects"]
    objects[0]["masks"][2] = None
    objects[1]["masks"][3] = encode_mask(np.zeros((96, 96), bool))
    for entry in objects:
        entry["masks"][5] = None
    validate_video(row)
    assert annotated_frames(row) == [0, 1, 2, 3, 4, 6, 7]
    said = {"object_indices": [0, 1]}
    masks = expression_masks(row, said, [2, 3])
    assert masks[0] is None and masks[1].any()
    objects[0]["masks"][1]["size"] = [96, 95]
    with pytest.raises(ValueError, match=r"the mask of object 0 in frame 1 has size \[96, 95\], not \[96, 96\]"):
        validate_video(row)


def test_contact_sheet():
    assert isinstance(contact_sheet("test", clips=1, frames=8), Image.Image)


if __name__ == "__main__":
    clips = {f"{split} {index}": digest(MovingScenes(split)[index]) for split, index in FROZEN}
    HASHES.write_text(json.dumps({"version": VERSION, "clips": clips}, indent=1) + "\n")
