"""Metrics, protocols, evaluator and predictions file: by hand, by brute force, and across processes."""

import ast
import json
import os
import pickle
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from hf_ris.commands.evaluate import main
from hf_ris.data.schema import encode_mask
from hf_ris.evaluation.report import compare_predictions, evaluate_predictions
from hf_ris.metrics import (
    PROTOCOLS,
    Evaluator,
    ObjectConsistency,
    counts,
    expression_metadata,
    get_protocol,
    has_location_word,
    has_negation,
    has_ordinal,
    object_counts,
    prediction_line,
    read_predictions,
)
from hf_ris.metrics.bootstrap import ImageBootstrap
from hf_ris.metrics.protocols import nearest_indices, resize_nearest
from hf_ris.metrics.ris_iou.iou_terms import iou_terms, ratios
from hf_ris.metrics.ris_length_iou.length_groups import length_groups
from hf_ris.metrics.ris_localization.hit import localization_hit
from hf_ris.metrics.ris_oc_iou.object_iou import object_iou


METRICS = Path(__file__).parents[1] / "hf_ris" / "metrics"
MODULES = ["ris_iou", "ris_oc_iou", "ris_localization", "ris_length_iou", "ris_video_jf"]
SHARED = Path(os.environ.get("HF_RIS_SHARED", Path(__file__).parents[2] / "shared"))


def strip(start: int, stop: int, length: int = 10) -> np.ndarray:
    """One row of pixels, True in [start, stop)."""
    mask = np.zeros((1, length), bool)
    mask[:, start:stop] = True
    return mask


def metadata(number: int, *, image: int = 0, ref: int = 0, objects=(0,), text: str = "cup", **more) -> dict:
    known = {"expression_id": number, "image_id": image, "ref_id": ref, "object_ids": list(objects), "text": text}
    return known | {"height": 1, "width": 10, "category": "cup", "same_class_distractors": 0} | more


def scenes(count: int = 30, seed: int = 0, quality: float = 0.8) -> list[tuple]:
    """(prediction, target, metadata) of random expressions: some images, objects with several, one without target."""
    rng = np.random.default_rng(seed)
    result = []
    for number in range(count):
        image, chosen = number // 4, number // 2
        target = np.random.default_rng(chosen).random((6, 10)) < (0.4 if number else 0)
        flip = rng.random(target.shape) > quality
        text = ("red cup", "the second dog from the left", "cat that is not red", "bus")[number % 4]
        known = metadata(number, image=image, ref=chosen, objects=(chosen,) if number else (), text=text)
        known |= {"height": 6, "width": 10, "same_class_distractors": number % 5 if number else None}
        result.append((target ^ flip if number else np.zeros_like(target), target, known))
    return result


def write(path: Path, lines: list[dict]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


# ---------------------------------------------------------------- formulas by hand


def test_iou_metrics_by_hand():
    got = ratios(iou_terms([1, 6, 0], [2, 8, 10]))
    assert got["oIoU"] == 7 / 20 and got["mIoU"] == (0.5 + 0.75 + 0) / 3
    assert [got[f"Pr@0.{x}"] for x in range(5, 10)] == [2 / 3, 1 / 3, 1 / 3, 0, 0]
    assert "N-acc" not in got


def test_precision_at_the_threshold_itself():
    for above, below, threshold in [(1, 2, 0.5), (7, 10, 0.7), (9, 10, 0.9), (11, 20, 0.55)]:
        assert ratios(iou_terms([above], [below], thresholds=[threshold]))[f"Pr@{threshold}"] == 1
        assert ratios(iou_terms([above], [below], thresholds=[threshold], strict=True))[f"Pr@{threshold}"] == 0


def test_no_target_metrics_by_hand():
    # an empty answer to no target, a mask for no target, a right mask, an empty answer to a target
    arguments = {"no_target": [True, True, False, False], "empty_prediction": [True, False, False, True]}
    got = ratios(iou_terms([0, 0, 8, 0], [0, 5, 10, 5], **arguments))
    assert (got["N-acc"], got["T-acc"], got["mIoU"], got["Pr@0.5"]) == (0.5, 0.5, 0.2, 0.25)
    got = ratios(iou_terms([0, 0, 8, 0], [0, 5, 10, 5], no_target_value=1.0, precision_needs_target=True, **arguments))
    assert got["mIoU"] == pytest.approx(1.8 / 4) and got["Pr@0.5"] == 0.5 and got["oIoU"] == 8 / 20


@pytest.mark.parametrize("bad", [([3], [2]), ([-1], [2]), ([1, 2], [3]), ([], [])])
def test_impossible_counts_are_refused(bad):
    with pytest.raises(ValueError, match="intersection"):
        iou_terms(*bad)


def test_localization_hit():
    target = np.array([[False, True], [False, False]])
    assert localization_hit(np.array([[0.1, 0.9], [0.2, 0.3]]), target)
    assert not localization_hit(np.array([[0.9, 0.9], [0.2, 0.3]]), target)  # the first of two maxima counts
    with pytest.raises(ValueError, match="NaN"):
        localization_hit(np.array([[np.nan, 0.9], [0.2, 0.3]]), target)
    with pytest.raises(ValueError, match="one shape"):
        localization_hit(np.zeros((3, 3)), target)


def test_oc_iou_by_hand():
    target = strip(2, 8)
    predictions = [strip(2, 8), strip(4, 9), strip(3, 7)]
    assert object_counts(predictions, target) == (3, 7)
    assert object_iou([3, 0], [7, 0], empty_value=1.0).tolist() == [3 / 7, 1.0]
    assert object_counts([strip(4, 9)], target) == (4, 7)  # one expression: its IoU


def test_length_groups_are_of_about_equal_size():
    def labels(counts: dict[int, int], groups: int = 4) -> list[str]:
        lengths = np.repeat(list(counts), list(counts.values()))
        parts = length_groups(lengths, groups)
        assert (np.sum([members for _, members in parts], axis=0) == 1).all()
        return [label for label, _ in parts]

    assert labels({1: 5, 2: 5, 3: 5, 4: 5}) == ["1", "2", "3", "4"]
    assert labels({1: 1, 2: 9, 3: 10, 5: 4, 7: 6, 9: 10}) == ["1-2", "3", "5-7", "9"]
    assert labels({3: 100, 9: 1}) == ["3", "9"]
    assert labels({3: 7}) == ["3"]
    assert labels({1: 5, 2: 5, 3: 5, 4: 5}, groups=2) == ["1-2", "3-4"]


@pytest.mark.golden
@pytest.mark.skipif(not SHARED.exists(), reason="the real expressions lie outside of the repository (HF_RIS_SHARED)")
def test_length_groups_and_slices_on_real_expressions():
    def texts(name: str) -> list[str]:
        return [entry["sents"] for entry in json.loads((SHARED / "data/refcoco_eval" / f"{name}.json").read_text())]

    lengths = [len(text.split()) for text in texts("refcocog_val")]
    assert [label.split("-")[0] for label, _ in length_groups(lengths)] == ["1", "6", "8", "11"]  # the published groups
    share = {
        name: np.mean([has_location_word(text) for text in texts(name)]) for name in ("refcoco_val", "refcoco+_val")
    }
    assert share["refcoco_val"] > 0.6 and share["refcoco+_val"] < 0.25  # RefCOCO+ forbids words of place in the image


# ---------------------------------------------------------------- protocols


@pytest.mark.parametrize(
    ("name", "size", "target", "threshold", "expressions", "first_and_last", "strict", "empty"),
    [
        ("original", None, "union", None, "all", (0.5, 0.9), False, 1.0),
        ("lavt480", (480, 480), "sum_equals_one", 0.5, "all", (0.5, 0.9), False, 0.0),
        ("cris", None, "union", 0.35, "all", (0.5, 0.9), True, 0.0),
        ("cris_first", None, "union", 0.35, "first", (0.5, 0.9), True, 0.0),
        ("vlt", None, "union", 0.35, "all", (0.5, 0.95), True, 1.0),
        ("vatex", None, "union", 0.5, "all", (0.5, 0.9), True, 0.0),
        ("rela", (480, 480), "union", 0.5, "all", (0.7, 0.9), False, 0.0),
        ("phrasecut", None, "union", None, "all", (0.5, 0.9), True, 0.0),
    ],
)
def test_presets(name, size, target, threshold, expressions, first_and_last, strict, empty):
    p = get_protocol(name)
    assert (p.size, p.target, p.threshold, p.expressions) == (size, target, threshold, expressions)
    assert ((p.precision_at[0], p.precision_at[-1]), p.strict, p.empty_value) == (first_and_last, strict, empty)
    assert len(PROTOCOLS) == 8


def test_an_unknown_protocol_is_named():
    with pytest.raises(ValueError, match="'lavt'; there are original, lavt480"):
        get_protocol("lavt")


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 900), st.integers(1, 900))
def test_nearest_indices_are_pillows(length, new_length):
    ramp = Image.fromarray(np.arange(length, dtype=np.int32)[:, None])  # a column here, a row there
    expected = np.asarray(ramp.resize((1, new_length), Image.Resampling.NEAREST))[:, 0]
    assert np.array_equal(nearest_indices(length, new_length), expected)


def test_resizing_is_pillows_and_not_exact_centres():
    mask = np.random.default_rng(0).random((427, 640)) < 0.5
    pillow = Image.fromarray(mask.astype(np.uint8) * 255).resize((480, 480), Image.Resampling.NEAREST)
    assert np.array_equal(resize_nearest(mask, (480, 480)), np.asarray(pillow) > 0)
    exact = ((2 * np.arange(480) + 1) * 640) // (2 * 480)
    assert (nearest_indices(640, 480) != exact).any()
    stripes = np.zeros((480, 640), bool)
    stripes[:, exact[nearest_indices(640, 480) != exact]] = True  # columns that exact centres would read
    seen = counts(stripes, stripes, PROTOCOLS["lavt480"]).target_area
    assert seen < 480 * stripes[0, exact].sum()


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_counts_equal_brute_force(data):
    shape = data.draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=9))
    prediction, target = (data.draw(hnp.arrays(np.bool_, shape)) for _ in range(2))
    for name, protocol in PROTOCOLS.items():
        a, b = prediction, target
        if protocol.size is not None:
            protocol = replace(protocol, size=(8, 12))
            a, b = (np.asarray(Image.fromarray(mask.astype(np.uint8)).resize((12, 8), 0)) > 0 for mask in (a, b))
        cells = list(zip(a.ravel().tolist(), b.ravel().tolist()))
        expected = (
            sum(p and t for p, t in cells),
            sum(p or t for p, t in cells),
            sum(p for p, _ in cells),
            sum(t for _, t in cells),
        )
        assert counts(prediction, target, protocol) == expected, name


def test_probabilities_are_cut_by_the_protocol():
    probability = np.array([[0.2, 0.35, 0.4, 0.5, 0.6]])
    target = np.ones((1, 5), bool)
    assert counts(probability, target, PROTOCOLS["cris"]).prediction_area == 3
    assert counts(probability, target, PROTOCOLS["vatex"]).prediction_area == 1
    with pytest.raises(ValueError, match="original takes masks"):
        counts(probability, target, PROTOCOLS["original"])
    with pytest.raises(ValueError, match="float probabilities"):
        counts(np.array([[0, 1, 1, 0, 1]]), target, PROTOCOLS["cris"])


def test_overlapping_polygons_cancel_in_lavt():
    parts = [strip(0, 6), strip(4, 10)]
    target = parts[0] | parts[1]
    summed = counts(target, target, PROTOCOLS["lavt480"], target_parts=parts)
    assert summed.target_area == 0.8 * 480 * 480 and summed.union == 480 * 480
    assert counts(target, target, PROTOCOLS["rela"], target_parts=parts).target_area == 480 * 480
    assert counts(target, target, PROTOCOLS["lavt480"]).target_area == 480 * 480


def test_a_prediction_at_480_is_taken_as_it_is():
    at_480 = np.zeros((480, 480), bool)
    at_480[:, :240] = True
    assert counts(at_480, strip(0, 5), PROTOCOLS["lavt480"])[:2] == (480 * 240, 480 * 240)
    with pytest.raises(ValueError, match=r"needs the image's \(1, 10\)"):
        counts(at_480, strip(0, 5), PROTOCOLS["original"])


# ---------------------------------------------------------------- objects


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_consistency_equals_brute_force_in_any_order_and_over_processes(data):
    shape = data.draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=6))
    groups = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    targets = [data.draw(hnp.arrays(np.bool_, shape)) for _ in groups]
    predictions = [[data.draw(hnp.arrays(np.bool_, shape)) for _ in range(size)] for size in groups]
    entries = [(key, 10 * key + i) for key, size in enumerate(groups) for i in range(size)]
    announced = data.draw(st.booleans())
    ranks = [ObjectConsistency(), ObjectConsistency()]
    for key, number in data.draw(st.permutations(entries + entries[:2])):  # two come twice
        rank = ranks[data.draw(st.integers(0, 1))]
        rank.add(key, number, predictions[key][number % 10], targets[key], groups[key] if announced else None)
    ranks[0].merge(pickle.loads(pickle.dumps(ranks[1].state())))
    expected = {
        key: (
            int(np.logical_and.reduce([targets[key], *predictions[key]]).sum()),
            int(np.logical_or.reduce([targets[key], *predictions[key]]).sum()),
            size,
        )
        for key, size in enumerate(groups)
    }
    assert ranks[0].counts() == expected
    assert {key: object_counts(predictions[key], targets[key]) for key in expected} == {
        key: value[:2] for key, value in expected.items()
    }
    if announced:
        assert not ranks[0].state()[0]  # no mask is held any more


# ---------------------------------------------------------------- evaluator


def test_evaluator_by_hand():
    evaluator = Evaluator(["original", "cris", "cris_first"])
    evaluator.add(strip(0, 5), strip(0, 10), metadata(1, ref=7, text="cup"), hit=True)
    evaluator.add(strip(5, 10), strip(0, 10), metadata(2, ref=7, text="the left cup"), hit=False)
    evaluator.add(strip(0, 4), strip(0, 4), metadata(3, ref=8, objects=[5], text="a cup here"))
    evaluator.add(strip(0, 0), strip(0, 0), metadata(4, ref=9, objects=[], text="dog"))
    got = evaluator.compute()
    assert got["oIoU"] == 14 / 24 and got["mIoU"] == 0.75 and got["Pr@0.5"] == 1 and got["Pr@0.6"] == 0.5
    assert got["Oc-IoU"] == 0.5 and got["localization"] == 0.5 and got["N-acc"] == 1 and got["T-acc"] == 1
    assert got["mIoU (1 words)"] == 0.75 and got["mIoU (3 words)"] == 0.75
    strict = evaluator.compute("cris")
    assert strict["Pr@0.5"] == 0.25 and strict["mIoU"] == 0.5  # IoU > X, and two empty masks give 0
    first = evaluator.compute("cris_first")
    assert first["oIoU"] == 9 / 14 and "Oc-IoU" not in first
    assert all(type(value) is float for value in got.values())
    with pytest.raises(ValueError, match="not protocol 'vlt'"):
        evaluator.compute("vlt")
    with pytest.raises(ValueError, match="nothing has been added"):
        Evaluator().compute()


def test_no_target_under_rela():
    evaluator = Evaluator(["rela"])
    evaluator.add(strip(0, 0), strip(0, 0), metadata(1, objects=[]))
    evaluator.add(strip(0, 5), strip(0, 5), metadata(2))
    evaluator.add(strip(0, 5), strip(0, 0), metadata(3, objects=[]), hit=False)  # nothing to hit, so it does not count
    got = evaluator.compute("rela")
    assert got["mIoU"] == pytest.approx(2 / 3) and got["oIoU"] == 0.5 and got["Pr@0.7"] == 1 and got["N-acc"] == 0.5
    assert "localization" not in got


def test_rela_leaves_out_crowds():
    """Of two targets the crowd does not count; a crowd alone leaves nothing, but is no expression without target."""
    whole, plain = strip(0, 6), strip(0, 3)
    evaluator = Evaluator(["rela", "original"])
    evaluator.add(plain, whole, metadata(1), target_without_crowds=plain)
    evaluator.add(whole, whole, metadata(2), target_without_crowds=strip(0, 0))
    evaluator.add(whole, whole, metadata(3))
    got = evaluator.compute("rela")
    assert got["mIoU"] == pytest.approx(2 / 3) and "N-acc" not in got
    assert evaluator.compute("original")["mIoU"] == pytest.approx((0.5 + 1 + 1) / 3)
    assert not counts(whole, whole, PROTOCOLS["rela"], target_without_crowds=strip(0, 0)).target_area


def test_evaluator_cuts_probabilities_and_finds_hits():
    target = strip(0, 5)
    probability = np.linspace(1, 0, 10)[None]
    evaluator = Evaluator(["original", "cris", "vatex"], probabilities=True)
    evaluator.add(probability > 0.8, target, metadata(1), probability=probability)
    evaluator.add(probability > 0.8, target, metadata(2), probability=probability, heatmap=probability[:, ::-1])
    areas = [evaluator.samples(name).prediction_area[0] for name in ("original", "cris", "vatex")]
    assert areas == [2, 6, 5]
    assert evaluator.compute()["localization"] == 0.5  # the probability stands in for a heatmap
    with pytest.raises(ValueError, match="expression 3: .* needs the probability"):
        evaluator.add(target, target, metadata(3))
    with pytest.raises(ValueError, match="expression 4: prediction and target are bool masks of one shape"):
        evaluator.add(target, strip(0, 2, 9), metadata(4))
    assert len(evaluator) == 2


def test_merged_processes_equal_one():
    names = list(PROTOCOLS)
    samples = scenes(30)
    whole = Evaluator(names)
    for prediction, target, known in samples:
        whole.add(prediction, target, known, hit=bool(known["expression_id"] % 3))
    for announced in (False, True):
        ranks = [Evaluator(names) for _ in range(3)]
        for number, (prediction, target, known) in enumerate(random.Random(1).sample(samples, 30) + samples[:3]):
            more = {"object_expressions": sum(other[2]["object_ids"] == known["object_ids"] for other in samples)}
            hit = bool(known["expression_id"] % 3)
            ranks[number % 3].add(prediction, target, known | (more if announced else {}), hit=hit)
        states = pickle.loads(pickle.dumps([rank.state() for rank in ranks]))
        ranks[1].merge(states)
        assert len(ranks[1]) == 30
        assert {name: ranks[1].compute(name) for name in names} == {name: whole.compute(name) for name in names}
    with pytest.raises(ValueError, match="same arguments"):
        ranks[0].merge([Evaluator(["cris"]).state(), Evaluator().state()])


def test_expression_metadata():
    things = [("cup", 4), ("dog", 5), ("cup", 6), ("cup", 7)]
    row = {
        "image_id": 3,
        "height": 6,
        "width": 10,
        "objects": [{"object_id": number, "category": category} for category, number in things],
        "expressions": [
            {"expression_id": 1, "ref_id": 2, "text": "cup", "object_indices": [2]},
            {"expression_id": 2, "ref_id": 3, "text": "both", "object_indices": [2, 0]},
            {"expression_id": 3, "ref_id": 3, "text": "the two", "object_indices": [0, 2]},
            {"expression_id": 4, "ref_id": 4, "text": "no bird", "object_indices": []},
        ],
    }
    one, both, two, none = (expression_metadata(row, expression) for expression in row["expressions"])
    assert (one["object_ids"], one["same_class_distractors"], one["object_expressions"]) == ([6], 2, 1)
    assert (both["object_ids"], both["same_class_distractors"], both["category"]) == ([4, 6], 1, "cup")
    assert two["object_expressions"] == both["object_expressions"] == 2
    assert (none["object_ids"], none["same_class_distractors"]) == ([], None)
    for entry in row["objects"]:
        entry["category"] = ""
    assert expression_metadata(row, row["expressions"][0])["same_class_distractors"] is None  # unknown, not three


# ---------------------------------------------------------------- slices


@pytest.mark.parametrize(
    ("says", "texts"),
    [
        (
            has_location_word,
            "left cup;the rightmost dog;second from left;bottom row;cup next to the dog;closest bus;in the background;"
            "person behind the bench;cup at 3 o clock;upper one;cup over the red dog;"
            "furthest boat;woman in front;dog at the end",
        ),
        (
            has_ordinal,
            "second cup;the 3rd dog;last bus on right;two from the left;2 from left;third one from front;number two",
        ),
        (
            has_negation,
            "cup that is not red;no hat;dog without spots;man who isn't sitting;doesnt have a hat;person can ' t see;"
            "all but none;everything except the dog;other than the cup;isn\u2019t blue;w/o hat",
        ),
    ],
)
def test_slices_find_what_they_name(says, texts):
    assert [text for text in texts.split(";") if not says(text)] == []
    assert says(texts.split(";")[0].upper())


@pytest.mark.parametrize(
    ("says", "texts"),
    [
        (has_location_word, "red cup;big striped dog;woman in a tank top;leftover pizza;brown elephant;man standing"),
        (
            has_ordinal,
            "red cup;bench with no one on it;player with number 15;second baseman;two dogs;one nearest to the left",
        ),
        (has_negation, "notebook;plant;northern dog;elephant;knot;nose;giant cat;another cup;front of a restaurant"),
    ],
)
def test_slices_leave_other_words_alone(says, texts):
    assert [text for text in texts.split(";") if says(text)] == []


# ---------------------------------------------------------------- bootstrap


def test_bootstrap_equals_resampling_by_hand():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 8, 40)
    union = rng.integers(1, 50, 40)
    terms = iou_terms((union * rng.random(40)).astype(int), union)
    bootstrap = ImageBootstrap(images, resamples=50, seed=3)
    got = bootstrap.resample(images, terms)
    for weights, values in zip(bootstrap.weights, got):
        drawn = np.repeat(bootstrap.images, weights.astype(int))
        assert drawn.size == bootstrap.images.size
        picked = np.concatenate([np.flatnonzero(images == image) for image in drawn])
        chosen = {name: (above[picked], below[picked]) for name, (above, below) in terms.items()}
        assert values == pytest.approx(list(ratios(chosen).values()))


def test_bootstrap_has_the_width_of_theory_and_heeds_images():
    rng = np.random.default_rng(0)
    intersection = rng.integers(0, 101, 2000)
    terms = {"mIoU": (intersection / 100, np.ones(2000))}
    alone, grouped = (
        ImageBootstrap(images, seed=0).bounds(ImageBootstrap(images, seed=0).resample(images, terms))
        for images in (np.arange(2000), np.arange(2000) // 20)
    )
    theory = 2 * 1.96 * (intersection / 100).std() / np.sqrt(2000)
    assert (alone[1] - alone[0])[0] == pytest.approx(theory, rel=0.1)
    same = {"mIoU": (np.repeat(intersection[:100] / 100, 20), np.ones(2000))}  # 20 equal expressions in each image
    images = np.arange(2000) // 20
    wide = np.diff(ImageBootstrap(images).bounds(ImageBootstrap(images).resample(images, same)), axis=0)
    assert wide[0, 0] > 3 * np.diff(grouped, axis=0)[0, 0]


def test_a_slice_that_some_resamples_miss_still_has_an_interval():
    images = np.arange(5)
    bootstrap = ImageBootstrap(images, resamples=200)
    drawn = bootstrap.resample(images[:1], {"mIoU": (np.array([0.5]), np.ones(1))})
    assert np.isnan(drawn).any() and bootstrap.bounds(drawn).tolist() == [[0.5], [0.5]]


# ---------------------------------------------------------------- predictions file and report


def lines_of(samples: list[tuple], **more) -> list[dict]:
    return [prediction_line(known, prediction, target, **more) for prediction, target, known in samples]


def test_report_equals_the_evaluator(tmp_path):
    samples = scenes(40)
    lines = [
        prediction_line(known, prediction, target, threshold=0.5, hit=known["expression_id"] % 2 == 0, score=0.9)
        for prediction, target, known in samples
    ]
    path = write(tmp_path / "a.jsonl", lines)
    report = evaluate_predictions(path, resamples=50)
    evaluator = Evaluator(list(PROTOCOLS))
    for prediction, target, known in samples:
        evaluator.add(prediction, target, known, hit=known["expression_id"] % 2 == 0)
    for name in PROTOCOLS:
        expected = {key: value for key, value in evaluator.compute(name).items() if "words" not in key}
        overall = report["protocols"][name]["overall"]
        assert {key: entry["value"] for key, entry in overall.items()} == expected
        assert all(entry["low"] <= entry["value"] <= entry["high"] for entry in overall.values())
    slices = report["protocols"]["original"]["slices"]
    assert list(slices) == ["words", "location word", "ordinal", "negation", "same-class distractors"]
    assert {sum(entry["expressions"] for entry in part.values()) for part in slices.values()} == {40}
    negated = [known["expression_id"] for _, _, known in samples if "not" in known["text"]]
    values = iou_terms(*evaluator.samples()[6:8])["mIoU"][0]
    assert slices["negation"]["with"]["metrics"]["mIoU"]["value"] == pytest.approx(values[negated].mean())
    assert slices["same-class distractors"]["unknown"]["expressions"] == 1
    assert (report["expressions"], report["images"], report["objects"]) == (40, 10, 20)
    assert evaluate_predictions(path, resamples=50) == report  # the seed decides
    assert evaluate_predictions(path, resamples=50, seed=1) != report


def test_report_says_what_the_file_does_not_hold(tmp_path):
    samples = scenes(8)
    bare = evaluate_predictions(write(tmp_path / "a.jsonl", lines_of(samples)), resamples=5)
    notes = "\n".join(bare["notes"])
    for words in ("8 of 8 lines have no target_parts", "8 of 8 lines have no prediction_480", "an unknown threshold"):
        assert words in notes
    full = [
        prediction_line(
            known,
            prediction,
            target,
            threshold=0.5,
            target_parts=[target, target],
            prediction_480=np.zeros((480, 480), bool),
        )
        for prediction, target, known in samples
    ]
    report = evaluate_predictions(write(tmp_path / "b.jsonl", full), ["lavt480", "rela", "vatex"], resamples=5)
    assert [note.split(":")[0] for note in report["notes"]] == ["rela"]
    assert report["protocols"]["rela"]["overall"]["oIoU"]["value"] == 0  # what the model gave at 480
    # each pixel of the target lies in two parts, so that LAVT's ground truth is empty: no union is left to divide by
    assert "oIoU" not in report["protocols"]["lavt480"]["overall"]
    assert report["protocols"]["lavt480"]["overall"]["mIoU"]["value"] == 0
    assert report["protocols"]["vatex"]["overall"]["oIoU"] == bare["protocols"]["vatex"]["overall"]["oIoU"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction": None}, 'prediction is an RLE {"size"'),
        ({"prediction": {"size": [6, 10], "counts": "0"}}, "prediction is broken"),
        ({"target": encode_mask(np.ones((10, 6), bool))}, r"target has size \[10, 6\], but \[6, 10\] is needed"),
        ({"target_parts": [{"size": [6, 10]}]}, r"target_parts\[0\] is an RLE"),
        ({"prediction_480": encode_mask(np.ones((6, 10), bool))}, r"prediction_480 has size .* but \[480, 480\]"),
        ({"text": 5}, "text is a string, but here it is 5"),
        ({"height": True}, "height is an integer, but here it is true"),
        ({"width": 0}, "at least 1"),
        ({"object_ids": ["a"]}, "object_ids is a list of integers"),
        ({"same_class_distractors": -1}, "0 or more"),
        ({"hit": 1}, "hit is true or false, but here it is 1"),
        ({"prediction480": {}}, "there is no field 'prediction480'; the optional ones are target_parts"),
        ({"expression_id": 0}, "line 1 has expression_id 0 too"),
    ],
)
def test_a_broken_line_is_named(tmp_path, change, message):
    lines = lines_of(scenes(3))
    lines[2] |= change
    with pytest.raises(ValueError, match=rf"bad\.jsonl, line 3: .*{message}"):
        read_predictions(write(tmp_path / "bad.jsonl", lines))


def test_broken_files_are_named(tmp_path):
    lines = lines_of(scenes(2))
    path = write(tmp_path / "bad.jsonl", lines)
    path.write_text(path.read_text() + "\n{oops\n")
    with pytest.raises(ValueError, match=r"bad\.jsonl, line 4: not JSON"):
        read_predictions(path)
    with pytest.raises(ValueError, match=r"line 1: a line is a JSON object, but this one is \[1\]"):
        read_predictions(write(path, [[1]]))
    with pytest.raises(ValueError, match="line 1: the line lacks ref_id, target$"):
        read_predictions(write(path, [{k: v for k, v in lines[0].items() if k not in ("ref_id", "target")}]))
    with pytest.raises(ValueError, match="holds no predictions"):
        read_predictions(write(path, []))


def test_comparison(tmp_path):
    good, bad = (lines_of(scenes(40, seed, quality)) for seed, quality in ((1, 0.95), (2, 0.6)))
    for line in good + bad:
        line["hit"] = line in good
    a, b = write(tmp_path / "a.jsonl", good), write(tmp_path / "b.jsonl", bad)
    result = compare_predictions(a, b, resamples=200)
    alone = [
        evaluate_predictions(path, ["original"], resamples=5)["protocols"]["original"]["overall"] for path in (a, b)
    ]
    overall = result["overall"]
    assert overall["wins"] + overall["losses"] + overall["ties"] == overall["expressions"] == 40
    assert overall["wins"] > 30 and overall["ties"] >= 1
    for name, entry in overall["metrics"].items():
        assert (entry["a"], entry["b"]) == (alone[0][name]["value"], alone[1][name]["value"])
        assert entry["difference"] == entry["a"] - entry["b"]
    assert {"Oc-IoU", "localization", "oIoU"} < overall["metrics"].keys() and overall["metrics"]["mIoU"]["low"] > 0.2
    assert result["slices"]["negation"]["with"]["expressions"] == 10
    swapped = compare_predictions(b, a, resamples=200)["overall"]
    assert swapped["metrics"]["mIoU"]["high"] == pytest.approx(-overall["metrics"]["mIoU"]["low"])
    assert (swapped["wins"], swapped["losses"]) == (overall["losses"], overall["wins"])
    same = compare_predictions(a, a, resamples=20)["overall"]
    assert same["ties"] == 40 and same["metrics"]["mIoU"]["high"] == same["metrics"]["mIoU"]["low"] == 0


def test_paired_intervals_are_narrower_than_unpaired_ones(tmp_path):
    samples = scenes(60, quality=0.7)
    good = lines_of(samples)
    for line in good[::6]:
        line["prediction"] = line["target"]
    paths = write(tmp_path / "a.jsonl", good), write(tmp_path / "b.jsonl", lines_of(samples))
    paired = compare_predictions(*paths, resamples=200)["overall"]["metrics"]["mIoU"]
    one = evaluate_predictions(paths[0], ["original"], resamples=200)["protocols"]["original"]["overall"]["mIoU"]
    assert 0 < paired["low"] and paired["high"] - paired["low"] < one["high"] - one["low"]


def test_files_that_cannot_be_compared(tmp_path):
    lines = lines_of(scenes(6))
    a = write(tmp_path / "a.jsonl", lines)
    with pytest.raises(ValueError, match=r"but 2 stand only in .*a\.jsonl and 0 only in .*b\.jsonl \(.* 1, 3\)"):
        compare_predictions(a, write(tmp_path / "b.jsonl", [lines[i] for i in (0, 2, 4, 5)]))
    other = [line | {"text": "bus"} for line in lines]
    with pytest.raises(ValueError, match="expression 0 has text 'red cup' in"):
        compare_predictions(a, write(tmp_path / "b.jsonl", other))
    other = [line | {"target": encode_mask(np.ones((6, 10), bool))} for line in lines]
    with pytest.raises(ValueError, match="expression 0 has another target"):
        compare_predictions(a, write(tmp_path / "b.jsonl", other))


def test_command(tmp_path, capsys):
    a, b = (write(tmp_path / f"{seed}.jsonl", lines_of(scenes(12, seed))) for seed in (1, 2))
    output = tmp_path / "new" / "report.json"
    options = ["--predictions", str(a), "--compare", str(b), "--resamples", "20", "--result", str(output)]
    report = main([*options, "--protocols", "cris", "original", "--length-groups", "2"])
    assert json.loads(output.read_text()) == report and report["comparison"]["protocol"] == "cris"
    printed = capsys.readouterr().out
    for words in ("12 expressions of 6 objects in 3 images", "Oc-IoU", "slices under cris", "negation: with", "a - b"):
        assert words in printed
    assert len(report["protocols"]["cris"]["slices"]["words"]) == 2


# ---------------------------------------------------------------- evaluate modules


def test_modules_load_offline_and_agree(tmp_path):
    script = f"""
import json, evaluate
load = lambda name: evaluate.load({str(METRICS)!r} + "/" + name)
counts = dict(intersection=[50, 90, 0], union=[100, 100, 0])
print(json.dumps([
    load("ris_iou").compute(**counts, strict=True, empty_value=1.0, thresholds=[0.5, 0.9]),
    load("ris_iou").compute(**counts, prediction_area=[60, 90, 0], target_area=[90, 100, 0], no_target_value=1.0),
    load("ris_oc_iou").compute(**counts),
    load("ris_length_iou").compute(**counts, length=[2, 5, 5], groups=2),
    load("ris_localization").compute(hit=[1, 0, 1, 1]),
]))
"""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=os.environ | offline, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    iou, with_areas, consistency, by_length, hits = json.loads(found.stdout.splitlines()[-1])
    assert iou == ratios(iou_terms([50, 90, 0], [100, 100, 0], thresholds=[0.5, 0.9], strict=True, empty_value=1.0))
    assert with_areas["mIoU"] == pytest.approx(2.4 / 3) and with_areas["N-acc"] == 1 and with_areas["T-acc"] == 1
    assert consistency == {"Oc-IoU": pytest.approx(1.4 / 3)}
    assert by_length == {"words": ["2", "5"], "expressions": [1, 2], "oIoU": [0.5, 0.9], "mIoU": [0.5, 0.45]}
    assert hits == {"localization": 0.75}


def test_cards_and_spaces_of_the_modules():
    apps = {(METRICS / name / "app.py").read_bytes() for name in MODULES}
    assert len(apps) == 1  # one app, copied, since every module is a repository of its own on the Hub
    for name in MODULES:
        card = (METRICS / name / "README.md").read_text()
        assert card.startswith("---\ntitle: ") and "app_file: app.py" in card
        for section in ("Description", "How to use", "Inputs", "Output", "Limitations and bias", "Citation"):
            assert f" {section}\n" in card, (name, section)


@pytest.mark.slow
def test_space_of_a_module(tmp_path):
    script = "import app; print(app.compute([[50, 100], [90, 100], ['', '']])); app.demo.get_config_file()"
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "GRADIO_ANALYTICS_ENABLED": "False"}
    found = subprocess.run(
        [sys.executable, "-c", script],
        cwd=METRICS / "ris_iou",
        env=os.environ | offline,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    assert "'mIoU': 0.7" in found.stdout


def test_metrics_know_no_model():
    for path in METRICS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any(name.startswith(("hf_ris.models", "transformers", "torch")) for name in names), path
