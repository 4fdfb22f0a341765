"""Florence-2, SAM 3 and Grounding DINO + SAM 2: the same answers as transformers' own classes called step by step,
polygons with holes, answers that are no polygon, no answer, gated weights."""

import numpy as np
import pytest
import torch
from huggingface_hub.errors import GatedRepoError
from PIL import Image
from saved_baselines import save_florence, save_sam2, save_sam3
from test_baselines import pictures, save_detector
from transformers import (
    Florence2ForConditionalGeneration,
    Florence2Processor,
    Sam2Model,
    Sam2Processor,
    Sam3Model,
    Sam3Processor,
)

from hf_ris.baselines import load_baseline
from hf_ris.baselines.florence2 import TASK, draw


TEXTS = ["a cup", "the long blue one", "star"]


@pytest.fixture(scope="module")
def florence(tmp_path_factory):
    folder = save_florence(tmp_path_factory.mktemp("florence") / "saved")
    model, processor = load_baseline(f"florence-2:{folder}")
    model.longest = 12
    return folder, model, processor


def square(left: int, top: int, right: int, bottom: int) -> list[int]:
    return [left, top, right, top, right, bottom, left, bottom]


def written(*polygons: list[int]) -> str:
    """An answer with these polygons, in thousandths of the image's sides."""
    return "<sep>".join("".join(f"<loc_{place}>" for place in polygon) for polygon in polygons)


def test_florence_answers_as_transformers_does(florence):
    folder, model, processor = florence
    image = pictures()[0]
    own, network = Florence2Processor.from_pretrained(folder), Florence2ForConditionalGeneration.from_pretrained(folder)
    inputs = processor([image, pictures()[1]], [TEXTS, TEXTS[:1]])
    with torch.no_grad():
        outputs = model(**inputs)
    for index, text in enumerate(TEXTS):
        alone = own(text=TASK + text, images=image, return_tensors="pt")
        torch.testing.assert_close(inputs["pixel_values"][:1], alone["pixel_values"])
        ids = inputs["input_ids"][index][inputs["attention_mask"][index].bool()]
        assert ids.equal(alone["input_ids"][0])
        found = network.generate(
            **alone,
            max_new_tokens=12,
            num_beams=3,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
        )
        expected = own.batch_decode(found.sequences, skip_special_tokens=False)[0]
        assert outputs.texts[index].replace("<pad>", "") == expected.replace("<pad>", "")
        torch.testing.assert_close(outputs.scores[index], found.sequences_scores[0].exp(), atol=1e-4, rtol=1e-3)
    assert len(outputs.texts) == 4 and outputs.logits.shape == (4, 32, 32)


def test_florence_polygons_with_holes_are_drawn_at_the_pictures_own_size(florence, monkeypatch):
    _, model, processor = florence
    ring = written(square(100, 100, 500, 500), square(200, 200, 400, 400))
    apart = written(square(100, 100, 300, 300), square(600, 600, 900, 900))
    two = f"<poly>{written(square(0, 0, 500, 500))}</poly><poly>{written(square(100, 100, 300, 300))}</poly>"
    answers = [f"</s><s>{ring}</s>", f"</s><s>{apart}</s><pad>", f"</s><s>{two}</s>"]
    monkeypatch.setattr(type(model), "answer", lambda self, *of: (answers, torch.tensor([0.9, 0.5, 0.25])))
    image = Image.new("RGB", (200, 100))
    with torch.no_grad():
        outputs = model(**processor(image, TEXTS))
    results = processor.post_process_referring_segmentation(outputs, [(100, 200)] * 3)
    for result, share in zip(results, (0.16 - 0.04, 0.04 + 0.09, 0.25)):
        assert result["mask"].shape == (100, 200) and result["mask"].float().mean() == pytest.approx(share, abs=0.006)
        assert result["remark"] is None and result["mask"].equal(result["probability"] > 0.5)
    ring = results[0]["mask"]
    assert ring[12, 30] and not ring[30, 60] and not ring[5, 5]
    assert [result["score"] for result in results] == pytest.approx([0.9, 0.5, 0.25])
    assert (outputs.logits[1] > 0).float().mean() == pytest.approx(0.13, abs=0.03)


@pytest.mark.parametrize(
    "answer",
    ["", "</s><s>", "</s><s>I see a cup</s>", "<loc_5><loc_9><loc_70>", "</s><s><poly><loc_1><loc_2></poly></s>"]
    + ["</s><s><loc_10><loc_10><loc_20><loc_20></s>", "<poly><loc_1>" * 20, "<loc_999><sep><loc_1><sep><sep></s>"],
)
def test_florence_broken_answers_are_empty_masks_with_a_remark(florence, monkeypatch, answer):
    _, model, processor = florence
    monkeypatch.setattr(type(model), "answer", lambda self, *of: ([answer], torch.tensor([0.7])))
    with torch.no_grad():
        outputs = model(**processor(pictures()[0], "a cup"))
    result = processor.post_process_referring_segmentation(outputs, [(50, 80)])[0]
    assert not result["mask"].any() and result["score"] == 0.0
    assert result["remark"].startswith("Florence-2 answered without a polygon: ")


def test_florence_long_expressions_are_cut_and_keep_the_prompts_end(florence):
    _, _, processor = florence
    tokenizer = processor.tokenizer
    ids = processor(pictures()[0], "cup " * 90)["input_ids"][0]
    end = tokenizer(" in the image with mask", add_special_tokens=False)["input_ids"]
    assert ids[-1 - len(end) : -1].tolist() == end and len(ids) < 17 + 128 + 2 + 2 * len(end)


def test_drawing_joins_what_crosses_and_leaves_out_what_is_no_polygon():
    mask = draw([[square(10, 10, 30, 30), square(20, 20, 40, 40), [1, 2, 3, 4]]], (50, 50))
    assert mask[25, 25] and mask[35, 35] and not mask[35, 12]  # they cross: neither is a hole
    assert not draw([], (5, 6)).any() and draw([], (5, 6)).shape == (5, 6)


@pytest.fixture(scope="module")
def sam3(tmp_path_factory):
    return save_sam3(tmp_path_factory.mktemp("sam3") / "saved")


@pytest.mark.parametrize("name", ["sam3", "sam3-all"])
def test_sam3_is_that_of_transformers(sam3, name):
    model, processor = load_baseline(f"{name}:{sam3}")
    own, network = Sam3Processor.from_pretrained(sam3), Sam3Model.from_pretrained(sam3).eval()
    image, size = pictures()[0], (50, 80)
    inputs = processor([pictures()[1], image], [TEXTS[:1], TEXTS])
    found, thresholds = [], []
    with torch.no_grad():
        for text in TEXTS:
            found.append(network(**own(images=image, text=text, return_tensors="pt").to(torch.float32)))
            scores = (found[-1].pred_logits.sigmoid() * found[-1].presence_logits.sigmoid())[0]
            thresholds.append(scores.sort().values[-3:-1].mean().item())
        model.score_threshold = sum(thresholds) / len(thresholds)
        outputs = model(**inputs)
    results = processor.post_process_referring_segmentation(outputs, [(90, 60)] + [size] * 3)[1:]
    for index, (of, result) in enumerate(zip(found, results)):
        scores = (of.pred_logits.sigmoid() * of.presence_logits.sigmoid())[0]
        torch.testing.assert_close(outputs.mask_scores[1 + index], scores, atol=1e-4, rtol=1e-3)
        theirs = own.post_process_instance_segmentation(of, model.score_threshold, 0.5, [size])[0]
        masks = theirs["masks"].bool()
        if name == "sam3":
            masks = masks[theirs["scores"].argmax()][None] if len(masks) else masks
        expected = masks.any(0) if len(masks) else torch.zeros(size, dtype=torch.bool)
        # the union of enlarged masks and the enlarged union part at seams
        assert (result["mask"] ^ expected).float().mean() < (0.002 if name == "sam3" else 0.05)


def test_sam3_without_an_answer_is_an_empty_mask(sam3):
    for name in ("sam3", "sam3-all"):
        model, processor = load_baseline(f"{name}:{sam3}")
        model.score_threshold = 1.0
        with torch.no_grad():
            outputs = model(**processor(pictures()[0], TEXTS))
        for result in processor.post_process_referring_segmentation(outputs, [(50, 80)] * 3):
            assert not result["mask"].any() and result["score"] == 0.0
    masks = torch.tensor([[[[3.0]], [[-2.0]], [[1.0]]]])
    scores = torch.tensor([[0.4, 0.2, 0.6]])
    model.score_threshold = 0.3
    assert model.choose(masks, scores).item() == 3.0
    model.select = "best"
    assert model.choose(masks, scores).item() == 1.0


def test_grounded_sam2_is_that_of_transformers(tmp_path):
    detector, segmenter = save_detector(tmp_path / "detector"), save_sam2(tmp_path / "sam2")
    model, processor = load_baseline(f"grounded-sam2:{detector},{segmenter}")
    model.box_threshold = 0.0
    own, network = Sam2Processor.from_pretrained(segmenter), Sam2Model.from_pretrained(segmenter).eval()
    image = pictures()[0]
    with torch.no_grad():
        outputs = model(**processor([image, pictures()[1]], [["red cup", "star"], ["ball"]]))
        for index in (0, 1):
            box = outputs.boxes[index] * torch.tensor([80.0, 50.0, 80.0, 50.0])
            inputs = own(images=image, input_boxes=[[box.tolist()]], return_tensors="pt")
            masks = network(
                pixel_values=inputs["pixel_values"], input_boxes=inputs["input_boxes"].float(), multimask_output=False
            ).pred_masks
            torch.testing.assert_close(outputs.logits[index], masks[0, 0, 0], atol=1e-4, rtol=1e-3)
    results = processor.post_process_referring_segmentation(outputs, [(50, 80)] * 2 + [(90, 60)])
    assert [tuple(result["mask"].shape) for result in results] == [(50, 80), (50, 80), (90, 60)]


def test_gated_weights_say_where_to_accept_the_terms(monkeypatch):
    class Response:
        headers: dict = {}
        status_code = 403
        request = None

    def refuse(source, **kwargs):
        try:
            raise GatedRepoError("403", response=Response())
        except GatedRepoError as error:
            raise OSError(f"You are trying to access a gated repo, {source}.") from error

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", refuse)
    sentence = "The weights of facebook/sam3 are gated: accept their terms at https://huggingface.co/facebook/sam3"
    with pytest.raises(OSError, match=sentence):
        load_baseline("sam3")


def test_masks_are_made_of_numpy_alone():
    assert draw([[square(0, 0, 10, 10)]], (10, 10)).dtype == np.bool_
