"""Relations taught by landmarks: what is known of an expression, where a model is told of it, and what a run leaves."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from transformers import AutoModelForImageSegmentation, AutoProcessor

from hf_ris.data import decode_mask
from hf_ris.data.refscenes.checker import look, true_of
from hf_ris.data.refscenes.landmarks import by_landmark
from hf_ris.data.refscenes.scenes import RefScenes
from hf_ris.data.transforms import names_colour
from hf_ris.metrics.slices import has_relation
from hf_ris.training.pretraining.landmarks import (
    PIXELS,
    Hints,
    LandmarkHeads,
    LandmarkScenes,
    PhraseHeads,
    coarse,
    main,
    measure,
)


BUNDLE = ROOT / "space" / "checkpoints" / "lts-refscenes"
CLIP_BUNDLE = ROOT / "space" / "checkpoints" / "cris-refscenes"
VIDEO = ROOT / "space" / "checkpoints" / "vatex_video-refscenes"
NAMES = "left of|right of|above|over|below|under|closest to|nearest to|next to|beside"


def test_an_independent_judge_agrees_with_target_landmark_and_candidates():
    scenes, judged = RefScenes("refscenes", "train"), 0
    for index in range(6):
        row = scenes[index]
        things = look(np.asarray(row["image"]), [decode_mask(thing["mask"]) for thing in row["objects"]])
        said = by_landmark(scenes, index)
        assert said == by_landmark(scenes, index) and len({one.text for one in said}) == len(said)
        for one in said:
            head, landmark = re.fullmatch(rf"(.+?)(?: that is)?(?: to the)? (?:{NAMES}) (the .+)", one.text).groups()
            assert (one.head, one.name) == (head.removeprefix("the "), landmark)
            assert has_relation(one.text) and true_of(one.text, things) == {one.target}
            assert true_of(landmark, things) == {one.landmark}
            assert true_of(head, things) - {one.landmark} == set(one.candidates)
            assert one.target in one.candidates and len(one.candidates) > 1
            judged += 1
    assert judged > 20


def landmark_scenes(processor, related: int, others: int) -> LandmarkScenes:
    return LandmarkScenes("refscenes", "train", 6, 128, processor, related, others)


def test_a_batch_knows_which_of_its_expressions_have_a_landmark(tiny_trio):
    processor = tiny_trio("lts")[1]
    inputs, related, wanted, known, said = landmark_scenes(processor, 2, 3)([0, 5], 1)
    assert related.shape == inputs["image_index"].shape == (10,) and related.tolist() == ([True] * 2 + [False] * 3) * 2
    assert said == [one for index in (0, 5) for one in by_landmark(RefScenes("refscenes"), index)]
    assert wanted.shape == (4, 2, 128, 128) and wanted.unique().tolist() == [0, 1]
    for maps, label, one in zip(wanted, inputs["labels"][related], known, strict=True):
        assert maps[0].equal(one["masks"][one["landmark"]])
        target = one["masks"][one["target"]]
        assert (maps[1] >= target).all() and not (maps[0] * target).any()
        assert torch.nn.functional.adaptive_avg_pool2d(target[None], label.shape)[0].sub(label).abs().max() < 0.6


def test_gray_scenes_have_no_expression_with_a_colour(tiny_trio):
    _, processor = tiny_trio("lts")
    scenes = LandmarkScenes("refscenes", "train", 30, 128, processor, 2, None, gray=True)
    grays = 0
    for index in range(30):
        batch = scenes([index], index)
        row, by = scenes.rows[index], by_landmark(scenes.scenes, index)
        own = {said["text"] for said in row["expressions"]} | {one.text for one in by}
        shown = len(batch.related) - int(batch.related.sum())
        if shown == len(row["expressions"]) and any(names_colour(text) for text in own):
            continue
        grays += 1
        assert shown == sum(not names_colour(said["text"]) for said in row["expressions"])
        assert batch.known and not any(names_colour(one["text"]) for one in batch.known)
    assert 4 <= grays <= 16


@pytest.mark.parametrize("name", PIXELS)
def test_every_place_learns_from_its_head(name, tiny_trio):
    model, processor = tiny_trio(name, fresh=True)
    heads = LandmarkHeads(model, name)
    inputs, related, wanted, _, _ = landmark_scenes(processor, 2, 1)([0, 1], 1)
    model.train()(**inputs)
    loss = heads(related, wanted)
    reached = torch.autograd.grad(loss, list(heads.outputs.values()))
    assert loss > 0 and all(gradient.any() for gradient in reached)
    alone = heads(related & (torch.arange(len(related)) == 0), wanted[:1])
    assert not alone.equal(loss) and heads(related & False, wanted[:0]) == 0
    heads.remove()
    heads.outputs.clear()
    model(**inputs)
    assert not heads.outputs


def test_clips_words_and_sentences_learn_the_phrases(tiny_trio):
    model, processor = tiny_trio("cris", fresh=True)
    processor = AutoProcessor.from_pretrained(CLIP_BUNDLE)
    model.text_encoder.set_input_embeddings(torch.nn.Embedding(len(processor.tokenizer), model.text_encoder.channels))
    said = [one for index in range(3) for one in by_landmark(RefScenes("refscenes"), index)]
    heads = PhraseHeads(model, processor)
    texts, tags, tokens = heads.targets(said)
    for one, ids, tagged, share in zip(said, texts["input_ids"], tags, tokens, strict=True):
        for part, phrase in enumerate((one.head, one.name)):
            assert processor.tokenizer.decode(ids[tagged[:, part].bool()]) == phrase
            words = processor.tokenizer.convert_ids_to_tokens(share[part].nonzero()[:, 0].tolist())
            assert sorted(words) == sorted(set(phrase.split())) and share[part].sum().isclose(torch.tensor(1.0))
    heads(said).backward()
    moved = {name for name, p in model.text_encoder.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {name for name, _ in model.text_encoder.named_parameters()}
    assert not any(p.grad is not None for p in model.neck.parameters())
    assert not {id(p) for p in heads.parameters()} & {id(p) for p in model.parameters()}


@pytest.mark.parametrize(("learns", "name"), [(False, "vatex"), (True, "vatex"), (True, "cris"), (False, "lavt")])
def test_only_a_clip_that_learns_is_taught_phrases(learns, name, tiny_trio):
    tiny, processor = tiny_trio(name)
    config = tiny.config
    if name == "vatex":
        config = type(config).from_dict(config.to_dict() | {"train_text_encoder": learns})
    model, batch = type(tiny)(config), landmark_scenes(processor, 1, 0)([0, 1], 1)
    hints = Hints(model, processor, batch)
    assert (hints.phrases is not None) == learns
    model.train()
    with hints.places.alone():
        model(**batch.inputs)
    hints(batch).backward()
    if name == "vatex":
        assert any(p.grad is not None for p in model.text_encoder.parameters()) == learns


@pytest.mark.parametrize("name", PIXELS)
def test_coarse_steps_leave_the_finer_masks_out(name, tiny_trio):
    tiny, processor = tiny_trio(name)
    config = type(tiny.config).from_dict(tiny.config.to_dict() | {"refinement": 2, "loss_size": "full"})
    model = type(tiny)(config).train()
    inputs = landmark_scenes(processor, 1, 1)([0, 1], 1).inputs
    with coarse(model, inputs) as fewer:
        assert fewer["labels"].shape[-1] == inputs["pixel_values"].shape[-1] // 4
        assert fewer["labels"].mean().isclose(inputs["labels"].float().mean(), atol=1e-4)
        loss = model(**fewer).loss
    loss.backward()
    learns = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert "refinement" not in learns and len(learns) > 2
    assert model(**inputs).loss != loss


@pytest.mark.parametrize("name", PIXELS)
def test_heads_alone_see_what_a_whole_pass_leaves(name, tiny_trio):
    model, processor = tiny_trio(name)
    model.eval()
    heads, batch = LandmarkHeads(model, name), landmark_scenes(processor, 1, 0)([0, 1], 1)
    whole = model(**batch.inputs)
    left = dict(heads.outputs)
    heads.outputs.clear()
    answers = []
    with heads.alone():
        answers.append(model(**batch.inputs))
    assert not answers and heads.outputs.keys() == left.keys()
    assert all(value.equal(left[key]) for key, value in heads.outputs.items())
    assert model(**batch.inputs).logits.equal(whole.logits)
    heads.remove()


def test_what_is_measured_are_objects(tiny_trio, monkeypatch):
    """Heads and answers that know the truth find every landmark and every target, those that tell the other none."""
    model, processor = tiny_trio("lts")
    scenes = landmark_scenes(processor, None, 0)
    known = scenes(list(range(len(scenes))), 0).known
    hints = Hints(model, processor, scenes([0], 0))

    def drawn(of: str) -> torch.Tensor:
        return torch.stack([one["masks"][one[of]] for one in known]) * 20 - 10

    model.eval()
    for answer, said in (("target", "landmark"), ("landmark", "target")):
        with monkeypatch.context() as patch:
            patch.setattr(hints.places, "logits", lambda related, said=said: [drawn(said)[:, None]])
            answers = SimpleNamespace(logits=drawn(answer))
            told = measure(model, lambda answers=answers, **_: answers, hints, scenes, False)
        chance = np.mean([1 / len(one["candidates"]) for one in known])
        right = float(answer == "target")
        assert told == {"right_object": right, "landmark_taken": 1 - right, "landmark_found": right, "chance": chance}
    hints.places.remove()


def run_from_bundle(out, *more: str) -> dict:
    """The program's two steps from the bundle, and what it tells of them."""
    options = ["--recipe", "finer_masks", "--steps", "2", "--batch-size", "2", "--no-bf16"]
    sizes = ["data.size=4", "data.validation_size=3", "data.max_expressions=2", f"initialize.weights={BUNDLE}"]
    main([*options, "--out", str(out), *sizes, *more])
    return json.loads((out / "pretraining.json").read_text())


def test_a_run_leaves_a_checkpoint_of_the_same_model(tmp_path):
    told = run_from_bundle(tmp_path)
    assert told["steps"] == 2 and told["scenes"] == 4 and told["weight"] == told["refine_every"] == 1
    assert 0.2 < told["chance"] < 0.5 and told["right_object"] + told["landmark_taken"] <= 1
    assert 0 <= told["landmark_found"] <= 1
    before = AutoModelForImageSegmentation.from_pretrained(BUNDLE).state_dict()
    after = AutoModelForImageSegmentation.from_pretrained(tmp_path).state_dict()
    assert after.keys() == before.keys() and any(not value.equal(before[key]) for key, value in after.items())


def test_what_is_saved_is_the_average(tmp_path):
    weights = {"before": BUNDLE, "last": tmp_path / "0", "mean": tmp_path / "0.1"}
    for decay in ("0", "0.1"):
        run_from_bundle(tmp_path / decay, f"training.ema_decay={decay}")
    models = {what: AutoModelForImageSegmentation.from_pretrained(folder) for what, folder in weights.items()}
    for before, last, mean in zip(*(model.parameters() for model in models.values()), strict=True):
        assert before.equal(last) or not (mean.equal(last) or mean.equal(before))
    before, last, mean = (torch.cat([p.flatten() for p in model.parameters()]) for model in models.values())
    # of the first step's weights, 0.9 of a change that the second step carries on, if not in each single number
    assert (mean - before).norm() < 1.1 * (last - before).norm()
    # where two steps go the same way, the saved one is behind the last
    assert (mean - before).abs().sum() < (last - before).abs().sum()


def test_the_first_steps_may_teach_the_heads_alone(tmp_path):
    told = run_from_bundle(tmp_path, "--hints-first", "2", "training.ema_decay=0", "data.max_expressions=1")
    before = AutoModelForImageSegmentation.from_pretrained(BUNDLE).state_dict()
    after = AutoModelForImageSegmentation.from_pretrained(tmp_path).state_dict()
    moved = {name.split(".")[0] for name, value in after.items() if not value.equal(before[name])}
    assert told["hints_first"] == 2 and "refinement" not in moved and {"vision_encoder", "fusion"} <= moved


def test_a_model_without_finer_masks_cannot_leave_them_out(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_from_bundle(tmp_path, "--refine-every", "4", "model.refinement=null")
    assert "a model without refinement has no other" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        ("lts/refscenes", [], "initialize.weights is to name a checkpoint"),
        ("finer_masks", [f"initialize.weights={BUNDLE}", "data.name=elsewhere"], "of elsewhere no landmarks are known"),
        ("vatex_video/refscenes_video", ["data.name=refscenes", f"initialize.weights={VIDEO}"], "is vatex_video"),
    ],
)
def test_what_has_no_landmarks_is_said(recipe, overrides, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--recipe", recipe, "--out", str(tmp_path), *overrides])
    assert message in capsys.readouterr().err
