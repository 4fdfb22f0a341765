"""J, F, J&F of videos: against the official numbers, by hand, by brute force, and across processes."""

import json

import evaluate
import numpy as np
import pytest
from golden import SHARED, golden
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

import hf_ris.metrics.ris_video_jf
from hf_ris.metrics import VideoEvaluator, has_motion, merge_answers
from hf_ris.metrics.ris_video_jf.region_contour import (
    boundary,
    contour_accuracy,
    dilate,
    frame_counts,
    region_similarity,
    video_jf,
)


def box(top: int, left: int, height: int, width: int, size=(12, 16)) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def said(number: int, objects=(0,), annotation_set: int = 0, text: str = "the cup") -> dict:
    return {
        "expression_id": number,
        "object_indices": list(objects),
        "annotation_set": annotation_set,
        "text": text,
    }


@golden("golden/jf/j_and_f.json")
def test_equals_the_official_toolkit():
    folder = SHARED / "golden" / "jf"
    for entry in json.loads((folder / "j_and_f.json").read_text()):
        answer, truth = (
            np.asarray(Image.open(folder / f"{entry['pair']}_{kind}.png")).astype(bool) for kind in ("answer", "truth")
        )
        counts = np.array([frame_counts(answer, truth)])
        assert region_similarity(counts)[0] == pytest.approx(entry["J"], abs=1e-12)
        assert contour_accuracy(counts)[0] == pytest.approx(entry["F"], abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(
    hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=14), elements=st.booleans()),
    st.integers(0, 6),
)
def test_dilation_is_by_a_disk(mask, radius):
    rows, columns = np.nonzero(mask)
    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]]
    expected = np.zeros_like(mask)
    for row, column in zip(rows, columns):
        expected |= (y - row) ** 2 + (x - column) ** 2 <= radius**2
    assert np.array_equal(dilate(mask, radius), expected)


def test_boundary_by_hand():
    assert np.array_equal(boundary(np.array([[0, 0, 0], [0, 1, 1], [0, 1, 1]], bool)).astype(int), [
        [1, 1, 1],
        [1, 0, 0],
        [1, 0, 0],
    ])  # fmt: skip
    assert not boundary(np.ones((4, 5), bool)).any() and not boundary(np.zeros((4, 5), bool)).any()


def test_frames_by_hand():
    whole, nothing = box(2, 2, 4, 4), box(0, 0, 0, 0)
    counts = np.array(
        [
            frame_counts(whole, whole),
            frame_counts(nothing, nothing),
            frame_counts(nothing, whole),
            frame_counts(box(2, 2, 4, 2), whole),
            frame_counts(box(2, 2, 4, 6), whole, void=box(0, 6, 12, 10)),  # what is too much is void
        ]
    )
    assert region_similarity(counts).tolist() == [1, 1, 0, 0.5, 1]
    f = contour_accuracy(counts)
    # a disk of radius 1 here: of the 4 wide square's 16 boundary pixels the half of it reaches some, and they all match
    assert f[:3].tolist() == [1, 1, 0] and 0.5 < f[3] < 1 and f[4] == 1
    with pytest.raises(ValueError, match=r"bool \(height, width\) of one shape.*int64 \(12, 16\), bool"):
        frame_counts(whole.astype(int), whole)
    means = video_jf(counts[[0, 2, 3]], [7, 7, 8])
    assert means["J"] == 0.5 and means["J&F"] == (means["J"] + means["F"]) / 2


def test_evaluate_module():
    metric = evaluate.load(hf_ris.metrics.ris_video_jf.__path__[0])
    frames = [frame_counts(box(2, 2, 4, 4), box(2, 3, 4, 4)), frame_counts(box(2, 2, 4, 4), box(7, 9, 4, 4))]
    columns = {name: [getattr(frame, name) for frame in frames] for name in frames[0]._fields}
    assert metric.compute(**columns, group=[0, 0]) == video_jf(np.array(frames), [0, 0])
    example = {"intersection": [50, 0], "union": [100, 0], "prediction_boundary": [40, 0], "target_boundary": [20, 0]}
    found = metric.compute(**example, matched_prediction=[20, 0], matched_target=[20, 0], group=[0, 0])
    assert found == {"J&F": pytest.approx(19 / 24), "J": 0.75, "F": pytest.approx(5 / 6)}


def test_youtube_protocol_counts_annotated_frames_of_each_expression():
    evaluator = VideoEvaluator()
    first, second = box(2, 2, 4, 4), box(6, 9, 4, 4)
    scorer = evaluator.video([said(1), said(2, (1,)), said(3, (0, 1)), said(4, ())], 2)
    nothing = np.zeros_like(first)
    scorer.add(np.stack([first, second, first, nothing]), [first, None])  # the second object is not annotated here
    scorer.add(np.stack([nothing, second, first | second, nothing]), [first, second])
    scorer.add(np.stack([nothing] * 4), [None, None])  # not annotated at all
    evaluator.add(7, scorer)
    answers = evaluator.answers("youtube_vos")
    assert answers.number.tolist() == [1, 2, 3, 4] and answers.frames.tolist() == [2, 1, 1, 2]
    assert answers.j.tolist() == [0.5, 1, 1, 1] and answers.f.tolist() == [0.5, 1, 1, 1]
    assert evaluator.compute() == {"J&F": 0.875, "J": 0.875, "F": 0.875}


def test_answers_are_merged_by_the_highest_probability():
    probabilities = np.array([[[0.9, 0.6, 0.49, 0.5, 0.05]], [[0.8, 0.7, 0.45, 0.5, 0.0]]])
    assert merge_answers(probabilities).tolist() == [[1, 2, 0, 1, 0]]  # below 0.5 is nothing, of equal ones the first


def davis_video(evaluator: VideoEvaluator, probabilities: np.ndarray, targets, expressions, video: int = 0) -> None:
    scorer = evaluator.video(expressions, len(targets))
    scorer.add(probabilities > 0.5, targets, probabilities)
    evaluator.add(video, scorer)


def test_davis_protocol_by_hand():
    left, right = box(2, 1, 8, 6), box(2, 9, 8, 6)
    high, low = 0.9, 0.6
    # set 0: both answers claim the left object, the surer one (said of the right) gets it; answers are matched anyway
    # set 1: an answer that is everywhere below 0.5 is empty, the other is right
    probabilities = np.stack([low * left, high * left, 0.4 * left, high * right])
    evaluator = VideoEvaluator(["davis"])
    davis_video(evaluator, probabilities, [left, right], [said(1), said(2, (1,)), said(3, (0,), 1), said(4, (1,), 1)])
    answers = evaluator.answers("davis")
    assert answers.annotation_set.tolist() == [0, 0, 1, 1] and answers.number.tolist() == [0, 1, 0, 1]
    assert answers.j.tolist() == [1, 0, 0, 1] and answers.f.tolist() == [1, 0, 0, 1]
    values = evaluator.compute("davis")
    assert values["J&F"] == 0.5 and values["J&F (set 0)"] == values["F (set 1)"] == 0.5


def test_davis_merge_cuts_overlapping_answers():
    target = box(2, 2, 6, 6)
    beside = box(2, 5, 6, 9)
    evaluator = VideoEvaluator(["davis"])
    probabilities = np.stack([0.7 * target, 0.8 * beside])  # the surer answer takes half of the other
    davis_video(evaluator, probabilities, [target, box(2, 8, 6, 6)], [said(1), said(2, (1,))])
    assert evaluator.answers("davis").j.tolist() == [0.5, 36 / 54]


def test_davis_objects_without_answer_and_void_pixels():
    target, other, void = box(2, 2, 6, 6), box(2, 9, 6, 6), box(0, 6, 12, 2)
    evaluator = VideoEvaluator(["davis"])
    scorer = evaluator.video([said(1)], 2)
    answer = 0.9 * box(2, 2, 6, 4)
    scorer.add(answer[None] > 0.5, [target, other], answer[None], void)
    evaluator.add(0, scorer)
    assert evaluator.answers("davis").j.tolist() == [1, 0]
    with pytest.raises(ValueError, match="give those too"):
        scorer.add(answer[None] > 0.5, [target, other])


def random_video(seed: int) -> tuple[list[dict], list[tuple]]:
    rng = np.random.default_rng(seed)
    expressions = [said(10 * seed + k, (k % 3,), k % 2, ("a cup", "the ball that moves")[k % 2]) for k in range(6)]
    frames = [(rng.random((6, 12, 16)), [rng.random((12, 16)) > 0.5 for _ in range(3)]) for _ in range(2)]
    return expressions, frames


def test_processes_merge_to_the_same_numbers():
    def filled(seeds) -> VideoEvaluator:
        evaluator = VideoEvaluator(["youtube_vos", "davis"])
        for seed in seeds:
            expressions, frames = random_video(seed)
            scorer = evaluator.video(expressions, 3)
            for probabilities, targets in frames:
                scorer.add(probabilities > 0.5, targets, probabilities)
            evaluator.add(seed, scorer)
        return evaluator

    whole, parts = filled(range(5)), [filled([3, 1, 0]), filled([4, 2, 0])]
    parts[0].merge([part.state() for part in parts])
    assert len(parts[0]) == len(whole) == 30 and parts[0].videos == 5
    for protocol in ("youtube_vos", "davis"):
        assert parts[0].compute(protocol) == whole.compute(protocol)
        assert parts[0].report(protocol, resamples=50) == whole.report(protocol, resamples=50)
    report = whole.report(resamples=50)
    overall = report["overall"]["J&F"]
    assert overall["low"] < overall["value"] < overall["high"]
    assert report["slices"]["motion"]["with"]["expressions"] == 15
    with pytest.raises(ValueError, match="no video protocol 'original'; there are youtube_vos, davis"):
        VideoEvaluator(["original"])


def test_words_of_motion():
    for text in ("the ball that moves to the left", "a dog running", "the star standing still", "the fish that stops"):
        assert has_motion(text), text
    for text in ("the red cup on the left", "a small striped fish", "the second car from the right"):
        assert not has_motion(text), text
