"""Finer masks: the refinement and the loss at full size, which every architecture takes by its config alone."""

import pytest
import torch
from conftest import build_tiny
from test_models import ARCHITECTURES, SENTENCES, assert_same, maps, pictures, squares
from torch.nn import functional as F
from transformers import AutoModelForImageSegmentation, AutoProcessor

from hf_ris import LtsConfig, VatexConfig
from hf_ris.benchmark import FlopCounter
from hf_ris.data import load_split
from hf_ris.models.refinement import MaskRefinement
from hf_ris.models.vision_encoders import repeat_edges
from hf_ris.training.build import build_model
from hf_ris.training.recipe import load_recipe


FINER = ("model.refinement=2", "model.loss_size=full")


@pytest.fixture(scope="module", params=ARCHITECTURES)
def finer(request):
    """(model with a refinement that does something, processor) of an architecture."""
    model, processor = build_tiny(request.param, *FINER)
    torch.nn.init.normal_(model.refinement.output.weight, std=0.1)
    return model, processor


def inputs_of(processor):
    return processor(pictures(2), [SENTENCES[:2], SENTENCES[2:4]], [squares(2), squares(2)])


def test_logits_have_the_stride_and_the_answer_its_image_only(finer):
    model, processor = finer
    images = pictures(2)
    batch = processor(images, [SENTENCES[:2], SENTENCES[2:]])
    with torch.no_grad():
        together = model(**batch)
        single = model(**processor(images[0], SENTENCES[1]))
        for index, sentence in enumerate(SENTENCES[2:], start=2):
            separate = model(**processor(images[1], sentence))
            assert_same({name: value[index : index + 1] for name, value in maps(together).items()}, separate)
    assert_same({name: value[1:2] for name, value in maps(together).items()}, single)
    stride = 1 if model.architecture in ("lavt", "mpg_lqgnet") else 2  # whose logits are always of the input's size
    assert together.logits.shape[1:] == tuple(side // stride for side in batch["pixel_values"].shape[2:])
    results = processor.post_process_referring_segmentation(together, [(80, 112)] * 5)
    assert processor.enlarges == "logits" and all(result["mask"].shape == (80, 112) for result in results)


def test_its_image_part_runs_once(finer, monkeypatch):
    model, processor = finer
    calls, encode_image = [], model.encode_image
    monkeypatch.setattr(model, "encode_image", lambda *inputs: calls.append(inputs) or encode_image(*inputs))
    counts = {}
    with torch.no_grad():
        for number in (1, 4):
            with FlopCounter() as counter:
                model(**processor(pictures(1)[0], SENTENCES[-1:] * number))
            counts[number] = counter.get_total_flops()
        with FlopCounter() as counter:
            encode_image(*calls[0])
    image_part = counter.get_total_flops()
    assert counts[4] == image_part + 4 * (counts[1] - image_part)


def test_it_learns_and_the_rest_with_it(finer):
    model, processor = finer
    model.train()
    output = model(**inputs_of(processor))
    output.loss.backward()
    model.eval()
    assert output.loss.isfinite()
    assert all(p.grad.abs().max() > 0 for name, p in model.refinement.named_parameters())
    model.zero_grad()


def test_it_is_saved_and_loaded(finer, tmp_path):
    model, processor = finer
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, loaded = AutoProcessor.from_pretrained(tmp_path), AutoModelForImageSegmentation.from_pretrained(tmp_path)
    assert again.enlarges == "logits" and loaded.config.refinement == 2
    with torch.no_grad():
        assert_same(model(**inputs_of(processor)), loaded.eval()(**inputs_of(again)), atol=1e-6)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_is_an_addition_that_starts_as_plain_enlargement(name):
    """The other weights are those of the model without it, whose logits it enlarges as long as it is untrained."""
    model, processor = build_tiny(name, *FINER)
    plain, _ = build_tiny(name, "model.refinement=null", "model.loss_size=logits")
    state = model.state_dict()
    added = {key for key in state if key not in plain.state_dict()}
    assert all(key.startswith("refinement.") for key in added) and added
    plain.load_state_dict({key: value for key, value in state.items() if key not in added})
    inputs = processor(pictures(1), SENTENCES[:3])
    with torch.no_grad():
        finer, coarse = model(**inputs).logits, plain(**inputs).logits
    if name in ("lavt", "mpg_lqgnet"):  # whose own enlargement puts the centres of corner cells at the corners
        assert torch.corrcoef(torch.stack([finer.flatten(), coarse.flatten()]))[0, 1] > 0.8
    else:
        coarse = F.interpolate(coarse[:, None], size=finer.shape[-2:], mode="bilinear")[:, 0]
        torch.testing.assert_close(finer, coarse, atol=1e-5, rtol=1e-4)


def test_a_trained_checkpoint_gets_it_by_a_recipe(tmp_path):
    plain, processor = build_tiny("lts", "model.refinement=null", "model.loss_size=logits")
    plain.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    model, processor = build_model(
        load_recipe("finer_masks", [f"initialize.weights={tmp_path}"]), load_split("refscenes", "val", 2)
    )
    assert model.config.refinement == 2 and model.config.loss_size == "full" and processor.enlarges == "logits"
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in plain.state_dict().items())


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_padding_is_neither_read_nor_answered(stride):
    """Content of 24x20 pixels alone, and in the corner of 32x32 whose rest holds anything."""
    torch.manual_seed(0)
    module = MaskRefinement([6, 5], stride, 8)
    torch.nn.init.normal_(module.output.weight, std=0.1)
    index, content = torch.tensor([0, 0]), torch.tensor([[24, 20]])
    pixels, levels, logits = (
        torch.randn(1, 3, 24, 20),
        [torch.randn(1, 6, 6, 5), torch.randn(1, 5, 12, 10)],
        torch.randn(2, 6, 5),
    )

    def padded(x, height, width):
        canvas = torch.full((*x.shape[:-2], height, width), 7.0)
        canvas[..., : x.shape[-2], : x.shape[-1]] = x
        return canvas

    with torch.no_grad():
        alone = module(logits, module.encode(pixels, levels), index)
        image = module.encode(padded(pixels, 32, 32), [padded(levels[0], 8, 8), padded(levels[1], 16, 16)], content)
        cells = torch.tensor([[6, 5]] * 2)
        wide = repeat_edges(padded(logits, 8, 8)[:, None], cells)[:, 0]
        together = module(wide, image, index, content.expand(2, 2))
    assert alone.shape == (2, 24 // stride, 20 // stride) and together.shape == (2, 32 // stride, 32 // stride)
    torch.testing.assert_close(together[:, : 24 // stride, : 20 // stride], alone)
    torch.testing.assert_close(together[:, -1, 0], alone[:, -1, 0])  # the edge is repeated


def test_full_size_is_the_loss_of_enlarged_logits():
    model, processor = build_tiny(
        "lts", "model.refinement=null", "model.loss_size=full", "model.locating_loss_weight=0.0"
    )
    inputs = inputs_of(processor)
    with torch.no_grad():
        output = model(**inputs)
    logits = F.interpolate(output.logits[:, None], size=(128, 128), mode="bilinear")[:, 0]
    assert output.logits.shape[1:] == (32, 32)
    torch.testing.assert_close(output.loss, F.binary_cross_entropy_with_logits(logits, inputs["labels"]))


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "vatex"])
def test_the_overlap_loss_is_the_mask_s_dice_beside_the_paper_s_loss(name):
    losses = {}
    for weight in (0.0, 0.25):
        torch.manual_seed(0)
        model, processor = build_tiny(name, *FINER, f"model.overlap_loss_weight={weight}")
        torch.manual_seed(0)  # some losses draw points
        with torch.no_grad():
            inputs = inputs_of(processor)
            losses[weight] = model(**inputs)
    before, after = losses[0.0], losses[0.25]
    size, labels = inputs["labels"].shape[1:], inputs["labels"].flatten(1)
    p = F.interpolate(after.logits[:, None], size=size, mode="bilinear")[:, 0].sigmoid().flatten(1)
    dice = (2 * (p * labels).sum(1) + 1) / (p.sum(1) + labels.sum(1) + 1)
    torch.testing.assert_close(after.losses["overlap"], 1 - dice.mean())
    torch.testing.assert_close(after.loss, before.loss + 0.25 * (1 - dice.mean()))
    assert set(after.losses) == {*before.losses, "overlap"}


def test_values_that_mean_nothing_are_refused():
    with pytest.raises(Exception, match="refinement"):
        LtsConfig(refinement=3)
    with pytest.raises(Exception, match="loss_size"):
        LtsConfig(loss_size="half")
    with pytest.raises(ValueError, match="refinement_dim must be at least 1"):
        LtsConfig(refinement_dim=0)
    with pytest.raises(ValueError, match="overlap_loss_weight must be at least 0"):
        LtsConfig(overlap_loss_weight=-1)
    with pytest.raises(ValueError, match="third of loss_weights"):
        VatexConfig(overlap_loss_weight=1)
    assert LtsConfig().overlap_loss_weight == 0 and LtsConfig().refinement is None and LtsConfig().loss_size == "logits"


def test_a_recipe_gives_a_checkpoint_another_refinement_but_no_other_sizes(tmp_path, capsys):
    before, processor = build_tiny("lts", *FINER)
    torch.nn.init.ones_(before.refinement.output.weight)
    before.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    data = load_split("refscenes", "train", 1)
    begin = f"initialize.weights={tmp_path}"
    model, _ = build_model(load_recipe("finer_masks", [begin, "model.refinement=1"]), data)
    assert model.config.refinement == 1 and not model.refinement.output.weight.any()
    rest = {name: value for name, value in model.state_dict().items() if not name.startswith("refinement.")}
    assert all(value.equal(before.state_dict()[name]) for name, value in rest.items())
    assert f"starts anew: {tmp_path} has one of other sizes than model.refinement=1" in capsys.readouterr().out
    same, _ = build_model(load_recipe("finer_masks", [begin]), data)
    assert "anew" not in capsys.readouterr().out
    assert same.refinement.output.weight.equal(before.refinement.output.weight)
    with pytest.raises(ValueError, match=r"\d+ weights of .* have other shapes .* model \(.*fusion_dim.*\) asks for"):
        build_model(load_recipe("finer_masks", [begin, "model.fusion_dim=40"]), data)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_exports(name):
    from hf_ris import export

    model, _ = build_tiny(name, *FINER)
    torch.nn.init.normal_(model.refinement.output.weight, std=0.1)
    program = export.trace(model).module()
    inputs = export.example(model, 1, 4, 8)
    with torch.no_grad():
        torch.testing.assert_close(program(**inputs)[0], model(**inputs).logits, atol=1e-4, rtol=1e-4)
