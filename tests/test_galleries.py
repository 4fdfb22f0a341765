"""Galleries of predictions and the verb `draw`: which answers are chosen, and what is said of files that do not fit."""

import json
import re

import numpy as np
import pytest
from accelerate import Accelerator
from filelock import FileLock
from PIL import Image
from saved_baselines import save_sam3

from hf_ris import pipeline
from hf_ris.__main__ import main
from hf_ris.data import decode_mask, expression_mask, load, load_refscenes, write_example_folder
from hf_ris.evaluation.galleries import choose, iou, strips_of
from hf_ris.labelling import label
from hf_ris.metrics import expression_metadata, prediction_line


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(rows, lines of a good model, lines of another, their paths): the other one is a shifted truth."""
    rows = load_refscenes("refscenes", "test", 2, image_size=64)
    good, other = [], []
    for row in rows:
        for place, said in enumerate(row["expressions"]):
            truth, of = expression_mask(row, said), expression_metadata(row, said)
            good.append(prediction_line(of, truth, truth))
            other.append(prediction_line(of, np.roll(truth, place % 5, 1), truth))
    folder = tmp_path_factory.mktemp("predictions")
    paths = []
    for name, lines in (("good", good), ("other", other)):
        paths.append(folder / f"{name}.jsonl")
        paths[-1].write_text("".join(json.dumps(line) + "\n" for line in lines))
    return rows, good, other, paths


def scores(lines) -> list[float]:
    return [iou(decode_mask(line["prediction"]), decode_mask(line["target"])) for line in lines]


def test_the_worst_the_best_a_kind_and_the_changed(files):
    _, good, other, _ = files
    worst, best = scores(choose(other, "worst", 4)), scores(choose(other, "best", 4))
    assert worst == sorted(worst) and best == [1.0] * 4 and max(worst) < 1
    assert worst == sorted(scores(other))[:4]
    changed = choose(good, "changed", 3, other=other)
    theirs = {line["expression_id"]: score for line, score in zip(other, scores(other))}
    assert all(theirs[line["expression_id"]] < 1 for line in changed)
    first, second = (choose(other, "random", 5, seed=seed) for seed in (1, 2))
    assert first == choose(other, "random", 5, seed=1) != second
    placed = choose(other, "worst", 99, kind="location")
    assert placed and len(placed) < len(other)
    with pytest.raises(ValueError, match="no expression is of the kind none"):
        choose(other, "worst", 3, kind="none")
    with pytest.raises(ValueError, match="need two files"):
        choose(other, "changed", 3)
    with pytest.raises(ValueError, match="has no expression"):
        choose(good, "changed", 3, other=other[:2])
    assert iou(np.zeros((2, 2), bool), np.zeros((2, 2), bool)) == 1.0


def test_strips_hold_image_truth_and_every_model(files):
    rows, good, other, _ = files
    strip = strips_of(good[:1], rows, {"A": good, "B": other})[0]
    assert [panel.caption for panel in strip.panels] == ["image", "truth", "A", "B"]
    assert strip.panels[2].note == "IoU 1.00" and strip.heading == good[0]["text"]
    alone = strips_of(other[-1:], rows, {"B": other})[0]
    assert [panel.caption for panel in alone.panels] == ["image", "truth", "B", "agreement"]
    with pytest.raises(ValueError, match="has no image"):
        strips_of([good[0] | {"image_id": -7}], rows, {"A": good})
    with pytest.raises(ValueError, match="image .* is 64 x 64, but the predictions are of one of 64 x 65"):
        strips_of([good[0] | {"width": 65}], rows, {"A": good})


def test_draw_makes_pages_and_figures(files, tmp_path, capsys):
    _, good, other, (first, second) = files
    of = ["--data", "refscenes", "--split", "test", "--size", "2", "--image-size", "64"]
    main(["draw", "--predictions", str(second), *of, "--count", "3", str(tmp_path / "worst.html")])
    page = (tmp_path / "worst.html").read_text()
    assert page.count("<section>") == 3 and "The 3 worst answers of other on refscenes test" in page
    ids = [str(line["expression_id"]) for line in other[:2]]
    names = ["--names", "Good", "Shifted"]
    both = ["--predictions", str(first), str(second), *names, *of]
    main(["draw", str(tmp_path / "f.png"), *both, "--expressions", *ids])
    assert Image.open(tmp_path / "f.png").width == 4 * (256 + 14) + 14
    for words, message in (
        (["--predictions", str(first), *of, "x.gif"], r"a \.html page or a \.png picture"),
        (["--predictions", str(first), *of, "--threshold", "0.5", "x.png"], "--threshold would be ignored"),
        (["x.png"], "Give either --model"),
        (["--predictions", str(first), *of, "a.png", "b.png"], "give one file to write"),
        (["--predictions", str(first), *of, "--show", "changed", "x.png"], "need two files"),
        (["--model", "sam3", "photo.jpg", "x.png"], "Give a photo, one or several expressions"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["draw", *words])
        assert stop.value.code == 2 and re.search(message, capsys.readouterr().err)


def draw_beside_the_truth(teacher, folder, capsys) -> None:
    """A photo of a data set by its path, name or number: truth and agreement where the data say the same of it."""
    data = write_example_folder(folder / "my_data", 2)
    said = load(data)[1]["expressions"][0]["text"]
    draw = ["draw", "--model", teacher, "--data", str(data), "--split", "train"]
    for photo in (str(data / "images/001.jpg"), "images/001.jpg", "1"):
        main([*draw, photo, said.upper(), "a star", str(folder / "truth.html")])
        page = (folder / "truth.html").read_text()
        assert re.findall("</i>([a-z]+)|<figcaption dir='auto'>([a-z]+)", page) == [
            *(("", "image"), ("truth", ""), ("answer", ""), ("", "agreement")),
            *(("", "image"), ("answer", "")),  # of what the data do not say
        ]
    for words, message in (
        ([*draw, "lost.jpg", said, "x.png"], "has no image lost.jpg among its 2, which are called as images/000.jpg"),
        ([*draw[:3], "--split", "train", "a.png", said, "x.png"], "--split would be ignored"),
    ):
        with pytest.raises(SystemExit):
            main(words)
        assert message in capsys.readouterr().err


def test_draw_and_label_by_a_baseline(tmp_path, capsys):
    """A photo's mask as a picture, and a data set that a teacher draws, which goes on after it was killed."""
    teacher = f"sam3:{save_sam3(tmp_path / 'sam3')}"
    photos = tmp_path / "photos"
    (photos / "more").mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in ("a.png", "more/b.png", "c.jpg"):
        Image.fromarray(random.integers(0, 255, (30, 40, 3), dtype=np.uint8)).save(photos / name)
    main(["draw", "--model", teacher, str(photos / "a.png"), "a cup", "star", str(tmp_path / "out.png"), "--heatmap"])
    assert Image.open(tmp_path / "out.png").width == 3 * (400 + 14) + 14
    draw_beside_the_truth(teacher, tmp_path, capsys)

    pipe = pipeline(teacher, "cpu")
    pipe.model.score_threshold = 0.0
    score = sorted(answer["score"] for name in ("a.png", "c.jpg") for answer in pipe(photos / name, ["a cup", "star"]))
    calls = []

    def dying(image, texts):
        calls.append(texts)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return pipe(image, texts)

    arguments = (photos, ["a cup", "star"], tmp_path / "labelled", "sam3")
    settings = {"min_score": score[1], "accelerator": Accelerator(cpu=True)}
    with pytest.raises(KeyboardInterrupt):
        label(dying, *arguments, **settings)
    part = next((tmp_path / "labelled/progress").glob("0*.jsonl"))
    part.write_text(part.read_text() + '{"file_name": "c.jpg", "obj')  # killed while it wrote
    with pytest.raises(ValueError, match="begun with other settings"):
        label(pipe, *arguments, **settings | {"min_score": 0.9})
    with FileLock(tmp_path / "labelled/progress/.lock"), pytest.raises(ValueError, match="another run that still goes"):
        label(pipe, *arguments, **settings)
    calls.clear()
    counts = label(lambda image, texts: calls.append(texts) or pipe(image, texts), *arguments, **settings)
    assert len(calls) == 2  # the first image was not asked again
    rows = load(tmp_path / "labelled")
    assert sum(len(row["expressions"]) for row in rows) == counts["expressions"] and counts["dropped"] >= 1
    assert counts["expressions"] + counts["dropped"] == 6
    card = (tmp_path / "labelled/README.md").read_text()
    assert "drawn by **sam3**, not by people" in card and not (tmp_path / "labelled/progress").exists()
    assert len((tmp_path / "labelled/scores.csv").read_text().splitlines()) == 7
    with pytest.raises(ValueError, match="is finished already"):
        label(pipe, *arguments, **settings)
    with pytest.raises(ValueError, match="There is no image x.png"):
        label(pipe, photos, {"x.png": ["a cup"]}, tmp_path / "other", "sam3", **settings)
