"""What is CRIS's own: its agreement with the published program, its conventions, conversion and refusals. The contract
that all architectures share is in test_models.py, CLIP's encoders are in test_clip_encoders.py."""

import json
import math
import re
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from conftest import assert_exports, formula
from golden import SHARED, golden
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForImageSegmentation, AutoProcessor

from hf_ris import CrisConfig, CrisForReferringSegmentation, CrisProcessor
from hf_ris.commands.convert import main
from hf_ris.conversion.checkpoint import gather
from hf_ris.conversion.cris import build_config, official_name, official_state
from hf_ris.models.clip_tokenizer import clip_tokenizer
from hf_ris.models.modeling_cris import corner_coordinates, respond
from hf_ris.models.modeling_ris import RisOutput
from hf_ris.models.positions import plane_positions, sequence_positions
from hf_ris.models.processing_cris import letterbox
from hf_ris.models.text_encoders import word_tokenizer
from hf_ris.training.optimizer import settings_of_parameters
from hf_ris.training.recipe import load_recipe


GOLDEN = SHARED / "golden"
RECIPES = Path(__file__).resolve().parents[1] / "train" / "recipes" / "cris"
cris_golden = golden(
    "golden/cris_tiny.json",
    "golden/cris_tiny_io.safetensors",
    "golden/cris_tiny_f64.safetensors",
    "golden/cris_tiny_state_dict.safetensors",
)
ARGUMENTS = {
    "embed_dim": 24,
    "vision_cfg": {"layers": [1, 2, 1, 1], "width": 4, "image_size": 96, "head_width": 64},
    "text_cfg": {"width": 64, "heads": 1, "layers": 1, "context_length": 16},
}


def tiny_config(**fields) -> CrisConfig:
    """A model of about 0.3M parameters, whose heads are as wide as CLIP's."""
    small = {
        "clip_config": {"vocab_size": 60, "arguments": ARGUMENTS},
        "image_size": 64,
        "max_text_length": 8,
        "neck_dims": [8, 64, 16],
        "decoder_layers": 2,
        "decoder_heads": 4,
        "decoder_ffn_dim": 24,
        "decoder_dropout": 0.0,
    }
    return CrisConfig(**small | fields)


def tiny_model(**fields) -> CrisForReferringSegmentation:
    torch.manual_seed(0)
    return CrisForReferringSegmentation(tiny_config(**fields)).eval()


def tiny_inputs(height: int = 64, width: int = 64) -> dict[str, torch.Tensor]:
    """Two images, three expressions of 3 to 6 tokens."""
    random = torch.Generator().manual_seed(1)
    mask = (torch.arange(6) < torch.tensor([6, 3, 4])[:, None]).long()
    return {
        "pixel_values": torch.randn(2, 3, height, width, generator=random),
        "input_ids": torch.randint(1, 60, (3, 6), generator=random) * mask,
        "attention_mask": mask,
        "image_index": torch.tensor([0, 1, 1]),
    }


# --- against the published program -----------------------------------------------------------------------------------

OVERRIDES = {"decoder_heads": 4, "decoder_dropout": 0.0, "image_size": 128, "max_text_length": 12}


def golden_model() -> CrisForReferringSegmentation:
    state = official_state(load_file(GOLDEN / "cris_tiny_state_dict.safetensors"))
    model = CrisForReferringSegmentation(build_config(state, OVERRIDES))
    ours, unplaced = gather(state, {key: official_name(key) for key in model.state_dict()}, model)
    assert not unplaced
    model.load_state_dict(ours)
    return model.eval()


def golden_inputs(name: str) -> dict[str, torch.Tensor]:
    """The published program has no mask: an expression ends with the end token, 199."""
    reference = load_file(GOLDEN / f"{name}.safetensors")
    ids = reference["input_ids"]
    mask = (torch.arange(ids.shape[1]) <= (ids == 199).int().argmax(1, keepdim=True)).long()
    return {"pixel_values": reference["pixel_values"], "input_ids": ids, "attention_mask": mask}


def golden_run(model: CrisForReferringSegmentation, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The outputs that the reference files hold, under their names."""
    seen = {}

    def keep(name, module, change=lambda output: output):
        module.register_forward_hook(lambda module, args, output: seen.__setitem__(name, change(output)))

    resnet, neck = model.vision_encoder.backbone, model.neck
    keep("visual.stem", resnet.avgpool)
    for stage in range(1, 5):
        keep(f"visual.layer{stage}", vars(resnet)["_modules"][f"layer{stage}"])
    keep("visual.attnpool_connect", model.connect)
    neck.visual5.register_forward_pre_hook(lambda module, args: seen.__setitem__("visual.attnpool", args[0]))
    keep("text.words", model.text_encoder, lambda output: output[0])
    keep("text.state", model.text_encoder, lambda output: output[1])
    keep("neck.txt_proj", neck.text_norm, F.relu)
    keep("neck.f5", neck.product_norm, F.relu)
    modules = {
        "neck.f4": neck.fuse4,
        "neck.f3": neck.fuse3,
        "neck.fq5_before_upsampling": neck.refine5,
        "neck.fq4": neck.refine4,
        "neck.fq3": neck.refine3,
        "neck.aggr": neck.aggregate,
        "neck.out": neck,
        "proj.vis": model.projector.visual_output,
        "proj.txt": model.projector.kernel,
    }
    for name, module in modules.items():
        keep(name, module)
    for index, layer in enumerate(model.decoder.layers):
        keep(f"decoder.layer{index}.self_attn_normed", layer.self_attention_norm, lambda x: x.transpose(0, 1))
        keep(f"decoder.layer{index}.cross_attn_normed", layer.cross_attention_norm, lambda x: x.transpose(0, 1))
        keep(f"decoder.layer{index}", layer, lambda x: x.transpose(0, 1))
    keep("decoder.out", model.decoder, lambda x: x.flatten(2))
    with torch.no_grad():
        output = model(**inputs)
    return seen | {"logits": output.logits[:, None]}


@cris_golden
def test_float32_equals_the_published_program():
    expected = load_file(GOLDEN / "cris_tiny_io.safetensors")
    results = golden_run(golden_model(), golden_inputs("cris_tiny_io"))
    compared = results.keys() & expected.keys()
    assert len(compared) >= 28
    for name in compared:
        torch.testing.assert_close(
            results[name], expected[name], atol=1e-4, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


@cris_golden
def test_float64_equals_the_published_program():
    """Small conventions that float32 noise hides. Coordinates and positions are float32 there too, so the latter differ
    in their last digits."""
    expected = load_file(GOLDEN / "cris_tiny_f64.safetensors")
    inputs = golden_inputs("cris_tiny_io")
    results = golden_run(golden_model().double(), inputs | {"pixel_values": inputs["pixel_values"].double()})
    names = [name.removeprefix("main.") for name in expected if name.startswith("main.")]
    assert len(names) == 8
    for name in names:
        atol = 1e-6 if name in ("decoder.out", "logits") else 1e-10
        torch.testing.assert_close(results[name], expected[f"main.{name}"], atol=atol, rtol=0)


@cris_golden
def test_positions_equal_the_published_programs():
    expected = load_file(GOLDEN / "cris_tiny_io.safetensors")
    torch.testing.assert_close(plane_positions(torch.zeros(1, 128, 8, 8)), expected["decoder.pos2d"][:, 0])
    torch.testing.assert_close(sequence_positions(12, 128, torch.device("cpu")), expected["decoder.pos1d"][:, 0])


@cris_golden
def test_training_step_equals_the_published_program():
    loss = json.loads((GOLDEN / "cris_tiny.json").read_text())["loss"]
    expected = load_file(GOLDEN / "cris_tiny_io.safetensors")
    inputs = golden_inputs("cris_tiny_io") | {"labels": expected["target"][:, 0]}
    model = golden_model()
    with torch.no_grad():
        assert model(**inputs).loss.item() == pytest.approx(loss["eval_loss"], abs=1e-5)
    model.train()
    output = model(**inputs)
    torch.testing.assert_close(output.logits, expected["train_logits"][:, 0], atol=1e-3, rtol=0)
    assert output.loss.item() == pytest.approx(loss["train_loss"], abs=1e-4)
    output.loss.backward()
    compared = 0
    for name, parameter in model.named_parameters():
        norm = loss["train_grad_norms"][official_name(name)]
        if norm > 1e-3 and not re.search(r"in_proj_bias|k_proj\.bias", name):  # key biases cancel in the softmax
            assert parameter.grad.norm().item() == pytest.approx(norm, rel=0.01), name
            compared += 1
    assert compared > 150


@cris_golden
def test_converted_checkpoint_has_the_published_logits(tmp_path):
    state = {f"module.{k}": v for k, v in load_file(GOLDEN / "cris_tiny_state_dict.safetensors").items()}
    torch.save({"state_dict": state, "epoch": 49, "best_iou": 0.7}, tmp_path / "official.pth")
    word_tokenizer(f"word{index}" for index in range(198)).save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "overrides.json").write_text(json.dumps(OVERRIDES))
    options = ["--config", str(tmp_path / "overrides.json"), "--vocab", str(tmp_path / "tokenizer")]
    main(["cris", str(tmp_path / "official.pth"), str(tmp_path / "out"), *options])
    model = AutoModelForImageSegmentation.from_pretrained(tmp_path / "out").eval()
    expected = load_file(GOLDEN / "cris_tiny_io.safetensors")
    with torch.no_grad():
        logits = model(**golden_inputs("cris_tiny_io")).logits
    torch.testing.assert_close(logits, expected["logits"][:, 0], atol=1e-4, rtol=0)
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    results = processor.post_process_referring_segmentation(RisOutput(logits=logits), [(128, 128)] * 3)
    probabilities = torch.stack([result["probability"] for result in results])
    torch.testing.assert_close(probabilities, expected["prob_upsampled"][:, 0].clamp(0, 1), atol=1e-4, rtol=0)


@golden("golden/cris_r101_full_keys.json", "golden/cris_r50_full_keys.json")
@pytest.mark.parametrize("name, parameters", [("r101", 161.25e6), ("r50", 146.85e6)])
def test_published_checkpoints_tell_their_configuration(name, parameters):
    keys = json.loads((GOLDEN / f"cris_{name}_full_keys.json").read_text())["state_dict"]
    content = {
        f"module.{key}": torch.empty(shape, dtype=getattr(torch, dtype), device="meta") for key, shape, dtype in keys
    }
    state = official_state({"state_dict": content})
    config = build_config(state)
    backbone = {"name": "RN101-quickgelu" if name == "r101" else "RN50-quickgelu"}
    assert config.to_dict() == CrisConfig(clip_config=backbone, masked_token_id=0).to_dict()
    with torch.device("meta"):
        model = CrisForReferringSegmentation(config)
    ours, unplaced = gather(state, {key: official_name(key) for key in model.state_dict()}, model)
    assert not unplaced and ours.keys() == model.state_dict().keys()
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters, rel=1e-4)


# --- its parts -------------------------------------------------------------------------------------------------------


def test_response_is_a_convolution_of_each_with_its_own_kernel():
    random = torch.Generator().manual_seed(0)
    x, kernels = torch.randn(3, 4, 5, 7, generator=random), torch.randn(3, 36, generator=random)
    biases = torch.randn(3, 1, generator=random)
    result = respond(x, kernels, biases)
    for n in range(3):
        expected = F.conv2d(x[n : n + 1], kernels[n].view(1, 4, 3, 3), biases[n], padding=1)
        torch.testing.assert_close(result[n : n + 1], expected[:, 0], atol=1e-5, rtol=1e-5)


def test_coordinates_run_from_corner_to_corner():
    grid = corner_coordinates(torch.zeros(2, 1, 3, 5))
    assert grid.shape == (2, 2, 3, 5)
    assert grid[1, 0, 2].tolist() == [-1, -0.5, 0, 0.5, 1] and grid[1, 1, :, 4].tolist() == [-1, 0, 1]


def test_first_half_of_the_positions_is_the_column():
    positions = plane_positions(torch.zeros(1, 8, 3, 4)).unflatten(0, (3, 4))
    assert torch.equal(positions[0, :, :4], positions[2, :, :4])
    assert torch.equal(positions[:, 0, 4:], positions[:, 3, 4:])
    expected = torch.tensor([math.sin(2), math.cos(2), math.sin(0.02), math.cos(0.02)])
    torch.testing.assert_close(positions[0, 2, :4], expected)


def test_masked_token_is_hidden_from_the_decoder_alone():
    inputs = tiny_inputs()
    inputs["input_ids"][0, 2] = 0  # a word, inside the mask
    hidden, seen = tiny_model(masked_token_id=0), tiny_model()
    with torch.no_grad():
        first, second = hidden(**inputs).logits, seen(**inputs).logits
        inputs["attention_mask"] = inputs["attention_mask"].clone()
        words, sentence = seen.encode_text(inputs["input_ids"], inputs["attention_mask"])
        visual = seen.encode_image(inputs["pixel_values"])
        mask = inputs["attention_mask"].bool()
        mask[0, 2] = False
        x = seen.decoder(seen.neck(visual, sentence, inputs["image_index"]), words, mask)
        expected = seen.projector(x, sentence)
    assert (first[0] - second[0]).abs().max() > 1e-4
    torch.testing.assert_close(first[1:], second[1:])
    torch.testing.assert_close(first, expected)


def test_model_without_decoder_trains():
    model = tiny_model(decoder_layers=0).train()
    output = model(**tiny_inputs(), labels=torch.ones(3, 64, 64))
    output.loss.backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None]
    assert not silent and not any(name.startswith("decoder") for name, _ in model.named_parameters())


@pytest.mark.parametrize("size", [(64, 64), (96, 32)])
def test_logits_are_at_stride_four_and_labels_of_any_size(size):
    labels = torch.zeros(3, size[0] * 5 // 4, size[1] * 5 // 4)
    labels[:, 20:60, 10:30] = 1
    output = tiny_model()(**tiny_inputs(*size), labels=labels)
    assert output.logits.shape == (3, size[0] // 4, size[1] // 4)
    target = F.interpolate(labels[:, None], size=output.logits.shape[1:], mode="nearest")[:, 0]
    torch.testing.assert_close(output.loss, F.binary_cross_entropy_with_logits(output.logits, target))


def test_parameters_that_a_checkpoint_lacks_are_drawn_anew(tmp_path):
    """from_pretrained builds on the meta device, where constructors write nothing."""
    model = tiny_model()
    state = model.state_dict()
    lacking = {
        "vision_encoder.backbone.attnpool.positional_embedding": 128**-0.5,
        "text_encoder.tower.positional_embedding": 0.01,
        "text_encoder.tower.text_projection": 64**-0.5,
        "decoder.layers.0.self_attention.in_proj_weight": (2 / (64 + 192)) ** 0.5,
    }
    kept = {key: value for key, value in state.items() if key not in lacking}
    loaded = CrisForReferringSegmentation.from_pretrained(None, config=model.config, state_dict=kept).state_dict()
    for key, value in loaded.items():
        if key in lacking:
            assert value.std().item() == pytest.approx(lacking[key], rel=0.2), key
        else:
            assert torch.equal(value, state[key]), key


# logits of `test_numerics_are_frozen` at row 8, columns 0, 5, 10 and 15, for each expression
FROZEN = [
    [-3.36708259856047, -40.72081497465124, -40.104206308350335, -47.12851819246922],
    [-2.0815101023399523, -32.98757354259201, -32.55528576820425, -40.4063521254001],
    [7.582689254783844, -30.401221231945314, -29.728832729706863, -53.04795731224192],
]


def test_numerics_are_frozen():
    """The logits of weights that are a formula; a change of any convention moves them."""
    model = tiny_model(masked_token_id=0).double()
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            values = formula(parameter.numel(), index).view_as(parameter)
            parameter.copy_(values / max(parameter[0].numel(), 1) ** 0.5)
        pixels = formula(2 * 3 * 64 * 64, 0).view(2, 3, 64, 64)
        logits = model(**tiny_inputs() | {"pixel_values": pixels}).logits
    expected = torch.tensor(FROZEN, dtype=torch.float64)
    torch.testing.assert_close(logits[:, 8, ::5], expected, atol=1e-6, rtol=0)


@pytest.mark.slow
def test_torch_export_with_free_batch_sizes():
    assert_exports(tiny_model(), tiny_inputs(), 60, "logits")


# --- processor, recipes, public weights ------------------------------------------------------------------------------


def test_processor_makes_the_published_inputs():
    processor = CrisProcessor(tokenizer=clip_tokenizer())
    image = np.full((50, 100, 3), (255, 0, 0), np.uint8)
    texts = ["The dog's LEFT ear!", "man &amp; " + "very " * 30 + "big dog", "dog"]
    inputs = processor(image, texts)
    assert torch.equal(inputs["input_ids"], open_clip.get_tokenizer("RN101-quickgelu")(texts, context_length=17))
    assert inputs["attention_mask"].sum(1).tolist() == [8, 17, 3]
    pixels = inputs["pixel_values"]
    assert pixels.shape == (1, 3, 416, 416)
    border = pixels[0, :, :90]  # CLIP's mean colour, in whole numbers
    assert border.abs().max() < 0.5 / 255 / 0.26
    red = (torch.tensor([1.0, 0, 0]) - torch.tensor([0.48145466, 0.4578275, 0.40821073])) / torch.tensor(
        [0.26862954, 0.26130258, 0.27577711]
    )
    torch.testing.assert_close(pixels[0, :, 208, 208], red)
    assert processor.threshold == 0.35
    with pytest.raises(ValueError, match="Expression 1 is empty"):
        processor(image, ["dog", " \n"])


def test_probabilities_are_enlarged_corner_to_corner_first():
    """A ramp over the 16 cells of the logits' map runs over the input's 64 pixels from corner to corner."""
    processor = CrisProcessor(letterbox(64), clip_tokenizer())
    probability = torch.linspace(0.2, 0.7, 16)
    outputs = RisOutput(logits=torch.logit(probability).expand(1, 16, 16))
    found = processor.post_process_referring_segmentation(outputs, [(64, 64)])[0]
    expected = F.interpolate(probability.expand(1, 1, 16, 16), size=(64, 64), mode="bicubic", align_corners=True)
    torch.testing.assert_close(found["probability"], expected[0, 0], atol=1e-5, rtol=0)
    assert torch.equal(found["mask"], expected[0, 0] > 0.35)


@pytest.mark.parametrize("name", ["refcoco", "refcoco+", "refcocog"])
def test_recipes_train_clip_at_a_tenth_but_for_its_positions(name):
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    with torch.device("meta"):
        model = CrisForReferringSegmentation(CrisConfig(**recipe.model))
    parameters = dict(model.named_parameters())
    settings = settings_of_parameters(parameters, recipe.optimizer.rules, recipe.optimizer.weight_decay)
    for key in parameters:
        published = official_name(key)
        slow = published.startswith("backbone.") and "positional_embedding" not in published
        assert settings[key].lr_scale == (0.1 if slow else 1.0), key
    assert model.config.max_text_length == (22 if name == "refcocog" else 17)


def test_refusals_name_what_is_wrong():
    model, inputs = tiny_model(), tiny_inputs()
    with pytest.raises(ValueError, match="training takes at least 2 expressions in a batch, got 1"):
        tiny_model().train()(inputs["pixel_values"][:1], inputs["input_ids"][:1], inputs["attention_mask"][:1])
    with torch.no_grad():
        model(inputs["pixel_values"][:1], inputs["input_ids"][:1], inputs["attention_mask"][:1])
    with pytest.raises(ValueError, match="multiples of 32, got 64x48"):
        model(**tiny_inputs(64, 48))
    with pytest.raises(ValueError, match="no pixel_mask"):
        model(**inputs, pixel_mask=torch.ones(2, 64, 64))
    wrong = {
        "image_size must be a multiple of 32": {"image_size": 100},
        "neck_dims takes three": {"neck_dims": [8, 64]},
        "decoder_layers must not be negative": {"decoder_layers": -1},
        "decoder_heads must be at least 1": {"decoder_heads": 0},
        "multiple of decoder_heads": {"decoder_heads": 5},
        r"decoder_dropout must lie in \[0, 1\)": {"decoder_dropout": 1.0},
        "width of CLIP's words, 64": {"neck_dims": [8, 32, 16]},
        "max_text_length is 17, but CLIP's text encoder has 16": {"max_text_length": 17},
    }
    for message, fields in wrong.items():
        with pytest.raises(ValueError, match=message):
            CrisForReferringSegmentation(tiny_config(**fields))


def test_synchronised_norm_may_see_one_expression():
    """It counts those of all processes, which the identity stands in for here."""
    model = tiny_model().train()
    model.neck.text_norm = nn.SyncBatchNorm.convert_sync_batchnorm(model.neck.text_norm)
    model.neck.text_norm.forward = lambda x: x
    inputs = tiny_inputs()
    model(inputs["pixel_values"][:1], inputs["input_ids"][:1], inputs["attention_mask"][:1])


# --- conversion ------------------------------------------------------------------------------------------------------


def official(model: CrisForReferringSegmentation) -> dict[str, torch.Tensor]:
    """A state dict as the published program would have saved it."""
    return {official_name(key): value.clone() for key, value in model.state_dict().items()} | {
        "backbone.logit_scale": torch.zeros(())
    }


def convert(place: Path, content: dict, **overrides) -> CrisForReferringSegmentation:
    torch.save(content, place / "official.pth")
    word_tokenizer(f"word{index}" for index in range(58)).save_pretrained(place / "tokenizer")
    fields = {"image_size": 64, "max_text_length": 8, "decoder_heads": 4} | overrides
    (place / "overrides.json").write_text(json.dumps(fields))
    options = ["--config", str(place / "overrides.json"), "--vocab", str(place / "tokenizer")]
    main(["cris", str(place / "official.pth"), str(place / "out"), *options])
    return AutoModelForImageSegmentation.from_pretrained(place / "out").eval()


@pytest.mark.parametrize("form", ["published", "bare", "no decoder"])
def test_every_format_gives_the_same_model(form, tmp_path, capsys):
    model = tiny_model(masked_token_id=0, decoder_layers=0 if form == "no decoder" else 2)
    state = official(model)
    content = state if form == "bare" else {"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 1}
    loaded = convert(tmp_path, content)
    assert capsys.readouterr().err.count("no place") == 0
    assert loaded.config.masked_token_id == 0
    with torch.no_grad():
        torch.testing.assert_close(loaded(**tiny_inputs()).logits, model(**tiny_inputs()).logits)


def test_checkpoints_that_do_not_fit_are_named(tmp_path):
    state = official(tiny_model())

    def refused(message: str, changed: dict, **overrides):
        with pytest.raises(SystemExit, match=message) as refusal:
            convert(tmp_path, {"state_dict": changed}, **overrides)
        assert "\n" not in str(refusal.value) and not (tmp_path / "out").exists()

    refused("does not look like CRIS: it lacks backbone.token_embedding.weight", {"weight": torch.zeros(2)})
    refused("'state_dict' in the checkpoint is not a dictionary of tensors", {"weight": 3})
    lacking = {key: value for key, value in state.items() if key != "decoder.layers.1.ffn.4.bias"}
    refused("it lacks decoder.layers.1.ffn.4.bias", lacking)
    refused(r"proj.txt.bias is \[3\] instead of \[289\]", state | {"proj.txt.bias": torch.zeros(3)})
    refused("no field decoder_head", state, decoder_head=4)
    larger = state | {"backbone.token_embedding.weight": torch.zeros(61, 64)}
    refused("The tokenizer has 60 entries, but the checkpoint's word table 61", larger)
