"""Analyses of VATEX's paper: their numbers against plain loops, and the files that evaluate.py writes."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from hf_ris.commands.evaluate import main as evaluate
from hf_ris.evaluation.analyses import TextSimilarity, consistency, iou_by_length, similarity_matrix
from hf_ris.models.modeling_ris import RisOutput


METADATA = [
    {"expression_id": number, "image_id": image, "object_ids": objects}
    for number, (image, objects) in enumerate(
        [(7, [1]), (7, [1]), (7, [2]), (7, [2]), (7, [1, 2]), (8, [5]), (8, [6]), (9, []), (9, [])]
    )
]


def states(levels: int = 3) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(len(METADATA), 4) for _ in range(levels)]


def test_similarity_is_the_mean_over_pairs():
    similarity = TextSimilarity()
    similarity.add(states(), METADATA)
    result = similarity.result()
    same, different = [(0, 1), (2, 3)], [(0, 2), (0, 3), (1, 2), (1, 3), (5, 6), (7, 8)]
    assert result["pairs"] == {"same_object": 2, "different_objects": 6}
    for level, values in enumerate(states()):
        cosines = torch.nn.functional.cosine_similarity(values[:, None], values[None], dim=2)
        for name, pairs in (("same_object", same), ("different_objects", different)):
            expected = np.mean([cosines[a, b].item() for a, b in pairs])
            assert result[name][level] == pytest.approx(expected, abs=1e-6)


def test_similarity_of_parts_is_that_of_the_whole():
    whole, first, second = TextSimilarity(), TextSimilarity(), TextSimilarity()
    whole.add(states(), METADATA)
    first.add([value[:5] for value in states()], METADATA[:5])
    for _ in range(2):  # an image that two processes saw counts once
        second.add([value[5:] for value in states()], METADATA[5:])
    second.merge([first.state(), second.state()])
    expected, found = whole.result(), second.result()
    assert found["pairs"] == expected["pairs"]
    np.testing.assert_allclose(found["same_object"], expected["same_object"])
    np.testing.assert_allclose(found["different_objects"], expected["different_objects"])
    assert TextSimilarity().result() is None
    blind = TextSimilarity()
    blind.observe(RisOutput(logits=torch.zeros(1, 2, 2)), METADATA[:1])  # an architecture without text states
    assert blind.result() is None
    alone = TextSimilarity()
    alone.add([value[:2] for value in states()], METADATA[:2])
    assert set(alone.result()) == {"same_object", "pairs"}


def test_similarity_matrix():
    matrix = similarity_matrix(torch.tensor([[1.0, 0.0], [2.0, 2.0], [0.0, -3.0]]))
    np.testing.assert_allclose(matrix, [[1, 0.5**0.5, 0], [0.5**0.5, 1, -(0.5**0.5)], [0, -(0.5**0.5), 1]], atol=1e-6)


def test_metrics_are_picked():
    metrics = {"oIoU": 0.5, "mIoU": 0.6, "Oc-IoU": 0.4, "mIoU (1-2 words)": 0.7, "mIoU (3 words)": 0.8, "Pr@0.5": 1.0}
    assert consistency(metrics) == {"Oc-IoU": 0.4, "mIoU": 0.6, "oIoU": 0.5}
    assert iou_by_length(metrics) == {"1-2": 0.7, "3": 0.8}


@pytest.mark.parametrize("name", ["vatex", "lts"])
def test_evaluate_writes_analyses(name, tiny_trio, tmp_path):
    model, processor = tiny_trio(name)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    out = tmp_path / "analysis"
    result = evaluate(["--model", str(tmp_path / "model"), "--size", "3", "--split", "val", "--analyse", str(out)])
    analyses = json.loads((out / "analyses.json").read_text())
    assert analyses["consistency"]["Oc-IoU"] == result["protocols"]["original"]["overall"]["Oc-IoU"]["value"]
    assert len(analyses["lengths"]) == 4
    files = {path.name for path in out.iterdir()}
    if name == "lts":
        assert analyses["similarity"] is None and files == {"analyses.json", "lengths.png"}
        return
    assert files == {"analyses.json", "lengths.png", "similarity.png", "matrix.png", "heatmaps.png"}
    assert len(analyses["similarity"]["same_object"]) == 5  # f_w and four levels
    for path in out.glob("*.png"):
        with Image.open(path) as picture:
            assert min(picture.size) > 200 and np.asarray(picture.convert("L")).std() > 5


def test_analysing_a_file_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        evaluate(["--predictions", str(tmp_path / "a.jsonl"), "--analyse", str(tmp_path)])
    assert "--analyse would be ignored: --predictions is measured without a model" in capsys.readouterr().err
