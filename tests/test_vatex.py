"""What is VATEX's own: its equations, ablation rows, padding and refusals. The contract that all share is in
test_models.py, the noun phrases in test_noun_phrase.py."""

import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip import OPENAI_IMAGENET_TEMPLATES
from open_clip.transformer import VisionTransformer
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerMaskedAttentionDecoder

from hf_ris import (
    LavtConfig,
    LavtForReferringSegmentation,
    LavtProcessor,
    VatexConfig,
    VatexForReferringSegmentation,
    VatexProcessor,
)
from hf_ris.benchmark import flop_parts
from hf_ris.data import RisCollator
from hf_ris.data.refscenes.scenes import load_refscenes
from hf_ris.data.transforms import TrainingRows, sample_triplet
from hf_ris.models.clip_encoders import build_clip_image_encoder, load_clip_weights
from hf_ris.models.configuration_ris import ClipEncoderConfig, VisionEncoderConfig
from hf_ris.models.losses import (
    dice_loss,
    info_nce_consistency,
    point_sample,
    triplet_consistency,
    uncertain_points,
)
from hf_ris.models.modeling_vatex import Prediction, attention_mask, repeat_edges
from hf_ris.models.text_encoders import wordpiece_tokenizer
from hf_ris.models.vision_encoders import build_vision_encoder
from hf_ris.training.optimizer import freeze, learning_rate_factor, parameter_groups
from hf_ris.training.recipe import Rule, ScheduleRecipe, load_recipe


ROOT = Path(__file__).resolve().parents[1]
WORDS = "a the red blue cup star left right of ball photo on small second from".split()
VIT = {"layers": 1, "width": 16, "head_width": 8, "patch_size": 8, "image_size": 16}
RESNET = {"layers": [1, 1, 1, 1], "width": 4, "head_width": 32, "image_size": 64}
TEXTS = ["the red cup", "star on the right", "small blue ball from the left"]


def tokenizer():
    return wordpiece_tokenizer(WORDS)


def tiny_config(**fields) -> VatexConfig:
    """A model of 60,000 parameters on images of short side 32."""
    small = {
        "image_size": 32,
        "clip_image_size": 32,
        "max_text_length": 12,
        "vision_config": {
            "name": "swin_tiny_patch4_window7_224",
            "arguments": {"embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [1, 1, 2, 2], "window_size": 3},
        },
        "clip_config": {
            "vocab_size": len(tokenizer()),
            "arguments": {
                "embed_dim": 12,
                "vision_cfg": VIT,
                "text_cfg": {"context_length": 16, "width": 16, "heads": 2, "layers": 1},
            },
        },
        "hidden_dim": 16,
        "num_heads": 2,
        "ffn_dim": 24,
        "decoder_layers": 3,
        "num_queries": 3,
        "loss_points": 48,
        "noun_phrases": "rules",
    }
    return VatexConfig(**small | fields)


def model_of(**fields) -> VatexForReferringSegmentation:
    torch.manual_seed(0)
    return VatexForReferringSegmentation(tiny_config(**fields)).eval()


def processor_of(model: VatexForReferringSegmentation) -> VatexProcessor:
    return VatexProcessor.from_config(model.config, tokenizer())


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def batch(model: VatexForReferringSegmentation, masks: bool = True) -> dict[str, torch.Tensor]:
    """Two images of different shapes: two expressions of one object and one of another; then one expression."""
    images = [picture(40, 64), picture(72, 40, 1)]
    squares = [np.zeros((image.height, image.width), bool) for image in (images[0], images[0], images[0], images[1])]
    squares[0][5:25, 10:40] = squares[1][5:25, 10:40] = squares[2][20:, 40:] = squares[3][10:50, 5:30] = True
    texts = [["the red cup", "cup on the left", "small star"], ["second ball"]]
    inputs = processor_of(model)(images, texts, [squares[:3], squares[3:]] if masks else None)
    inputs["object_index"] = torch.tensor([0, 0, 1, 2])
    return dict(inputs)


# Table 8 of the supplementary, its rows 1 to 8.
ABLATION = [
    {"clip_prior": bool(bits & 4), "cmd": bool(bits & 2), "mcc": bool(bits & 1)} for bits in (0, 4, 2, 1, 6, 5, 3, 7)
]
# and whatever else changes the graph
VARIANTS = {
    "text encoder trained": {"train_text_encoder": True},
    "text encoder trained, no prior": {"train_text_encoder": True, "clip_prior": False},
    "naive prompt": {"prior_prompt": "expression"},
    "resnet": {
        "vision_config": {
            "name": "resnet18",
            "pretrained_tag": None,
            "arguments": {"channels": [8, 8, 16, 16], "layers": [1, 1, 1, 1]},
        }
    },
    "published program": {
        "early_fusion": True,
        "pixel_encoder_layers": 2,
        "prior_norm": False,
        "prior_class_token": False,
        "prior_crop": True,
        "prior_ffn": True,
        "sentence": "batch",
        "class_loss": "softmax",
        "mcc_loss": "info_nce",
    },
}
ROWS = {f"table 8, row {row}": fields for row, fields in enumerate(ABLATION, 1)} | VARIANTS


@pytest.mark.parametrize("row", ROWS)
def test_every_row_trains(row):
    model = model_of(**ROWS[row])
    inputs = batch(model)
    assert ("clip_pixel_values" in inputs) == model.config.clip_prior
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 3e-3, weight_decay=0)
    model.train()
    losses = []
    for step in range(14):
        torch.manual_seed(step)
        outputs = model(**inputs)
        losses.append(outputs.loss.item())
        optimizer.zero_grad()
        outputs.loss.backward()
        optimizer.step()
    count = len(inputs["input_ids"])
    assert outputs.query_logits.shape == (count, 3, 16, 16) and outputs.logits.shape == (count, 16, 16)
    assert (outputs.heatmap is not None) == model.config.clip_prior
    assert len(outputs.text_states) == (5 if model.config.cmd else 1)
    assert set(outputs.losses) == {"class", "mask", "dice"} | ({"mcc"} if model.config.mcc else set())
    silent = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    still = ["clip_image_encoder."]
    if not model.config.train_text_encoder:
        still.append("text_encoder.")
    elif not model.config.clip_prior:
        still.append("text_encoder.tower.text_projection")
    assert silent == {name for name, _ in model.named_parameters() if name.startswith(tuple(still))}
    listed = "|".join(model._keys_without_gradient)
    assert silent == {name for name, _ in model.named_parameters() if re.search(listed, name)}
    assert losses[-1] < 0.9 * losses[0]


def test_paper_configuration():
    """What the paper prints: C = 256, 5 queries, 9 layers, 197 similarities at 224, weights 2, 5 and 2."""
    config = VatexConfig()
    with torch.device("meta"):
        model = VatexForReferringSegmentation(config).eval()
        ids = torch.ones(2, 20, dtype=torch.long)
        outputs = model(
            torch.zeros(1, 3, 480, 640),
            ids,
            ids,
            image_index=torch.zeros(2, dtype=torch.long),
            clip_pixel_values=torch.zeros(1, 3, 224, 224),
            prompt_ids=ids[:, None],
            prompt_mask=ids[:, None],
        )
    assert outputs.query_logits.shape == (2, 5, 120, 160) and outputs.heatmap.shape == (2, 14, 14)
    assert model.clip_prior.embedding.weight.shape == (256, 197) and len(model.decoder.layers) == 9
    assert [tuple(state.shape) for state in outputs.text_states] == [(2, 256)] * 5
    assert config.loss_weights == [2.0, 5.0, 5.0, 2.0] and config.loss_points is None
    # ours, since the paper prints none: Swin-B has 86.9M, CLIP ViT-B/16 149.6M
    assert sum(p.numel() for p in model.parameters()) == 256_050_297


@pytest.mark.parametrize("name", ["resnet50", "resnet101", "swin_large_patch4_window12_384"])
def test_other_backbones_of_the_paper(name):
    with torch.device("meta"):
        model = VatexForReferringSegmentation(VatexConfig(vision_config={"name": name, "arguments": None}))
        levels = model.eval().encode_image(torch.zeros(1, 3, 480, 480)).levels
    assert [tuple(level.shape) for level in levels] == [(1, 256, side, side) for side in (15, 30, 60, 120)]


@pytest.mark.slow
def test_export_keeps_numbers_with_more_expressions_than_traced():
    """torch.export without a pixel_mask, whose padding would decide what is run, with any number of expressions."""
    model = model_of()
    image, dimension = picture(32, 64), torch.export.Dim("expressions", max=64)
    inputs = dict(processor_of(model)(image, TEXTS))
    del inputs["pixel_mask"]
    shapes = {name: {0: dimension} if len(value) == 3 else None for name, value in inputs.items()}
    exported = torch.export.export(model, (), inputs, dynamic_shapes=shapes).module()
    more = {name: value[[0, 1, 2, 2, 0]] if len(value) == 3 else value for name, value in inputs.items()}
    with torch.no_grad():
        found, expected = exported(**more), model(**more)
    for name in ("logits", "query_logits", "query_scores", "heatmap"):
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-4)


def test_cost_is_an_image_part_and_one_of_each_expression():
    """`flop_parts` raises unless it is; CLIP's image tower is in the image part, its text tower in the other."""
    parts = {prior: flop_parts(tiny_config(clip_prior=prior), 3, words=6) for prior in (True, False)}
    assert all(parts[True][name] > parts[False][name] > 0 for name in ("image", "expression"))


# --- padding -----------------------------------------------------------------------------------------------------

ENCODERS = {
    "swin, even windows": ("swin_tiny_patch4_window7_224", {"embed_dim": 8, "depths": [2, 2, 2, 2], "window_size": 4}),
    "swin, odd windows": (
        "swin_tiny_patch4_window7_224",
        {"patch_size": 8, "embed_dim": 8, "depths": [2, 2, 2, 2], "window_size": 5},
    ),
    "resnet": ("resnet50", {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}),
}


@pytest.mark.parametrize("kind", ENCODERS)
def test_encoders_give_a_padded_image_what_they_give_it_alone(kind):
    name, arguments = ENCODERS[kind]
    heads = {"num_heads": [1, 1, 2, 2]} if name.startswith("swin") else {}
    torch.manual_seed(0)
    encoder = build_vision_encoder(VisionEncoderConfig(name=name, arguments=arguments | heads)).eval()
    side = encoder.strides[-1]
    sizes = torch.tensor([(3, 5), (4, 2), (1, 4), (7, 6)]) * side
    pixels = torch.randn(4, 3, *sizes.amax(0).tolist())
    with torch.no_grad():
        padded, blind = encoder(pixels, sizes), encoder(pixels)
        for index, (height, width) in enumerate(sizes.tolist()):
            alone = encoder(pixels[index : index + 1, :, :height, :width])
            for one, level in zip(alone, padded):
                torch.testing.assert_close(one[0], level[index, :, : one.shape[2], : one.shape[3]], atol=1e-5, rtol=0)
    size = [cells // 4 for cells in padded[0].shape[-2:]]
    assert (blind[0][2, :, : size[0], : size[1]] - padded[0][2, :, : size[0], : size[1]]).abs().max() > 1e-3


@pytest.mark.parametrize("variant", ["paper", "resnet", "published program"])
def test_answers_do_not_depend_on_padding(variant):
    """Images of different shapes together and alone, in any canvas, whatever the padding holds."""
    fields = {} if variant == "paper" else {**VARIANTS[variant], "sentence": "mean"}
    model = model_of(**fields)
    processor = processor_of(model)
    images = [picture(40, 64), picture(72, 40, 1), picture(40, 40, 2)]
    together = processor(images, TEXTS)
    assert together["pixel_mask"].sum((1, 2)).tolist() == [32 * 51, 58 * 32, 32 * 32]
    larger = {**together, "pixel_values": F.pad(together["pixel_values"], (0, 45, 0, 32))}
    larger["pixel_mask"] = F.pad(together["pixel_mask"], (0, 45, 0, 32))
    larger["pixel_values"][2, :, 32:] = 7.0
    larger["pixel_values"][2, :, :, 32:] = -5.0
    with torch.no_grad():
        outputs = [model(**together), model(**larger)]
        for index, (image, text) in enumerate(zip(images, TEXTS)):
            alone = model(**processor(image, text))
            height, width = alone.logits.shape[-2:]
            for output in outputs:
                assert torch.equal(output.query_scores.argmax(1)[index], alone.query_scores.argmax(1)[0])
                torch.testing.assert_close(
                    output.query_logits[index, :, :height, :width], alone.query_logits[0], atol=2e-5, rtol=1e-4
                )
    assert outputs[1].input_size == (96, 128)  # 64 + 32 by 64 + 45, up to multiples of 32
    sizes = [(image.height, image.width) for image in images]
    expected = processor.post_process_referring_segmentation(outputs[0], sizes)
    for output in outputs:
        for one, other in zip(processor.post_process_referring_segmentation(output, sizes), expected, strict=True):
            torch.testing.assert_close(one["probability"], other["probability"], atol=1e-4, rtol=1e-3)


def test_post_processing_knows_the_canvas_of_a_part_of_a_batch():
    model = model_of()
    processor = processor_of(model)
    images = [picture(40, 64), picture(72, 40, 1)]
    with torch.no_grad():
        outputs = model(**processor(images, TEXTS[:2]))
    whole = processor.post_process_referring_segmentation(outputs, [(40, 64), (72, 40)])
    outputs.logits = outputs.logits[:1]
    part = processor.post_process_referring_segmentation(outputs, [(40, 64)])
    assert torch.equal(part[0]["probability"], whole[0]["probability"])


# --- CLIP prior --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tower", [VIT, RESNET])
def test_heatmap_is_equation_1(tower):
    config = tiny_config().clip_config.to_dict()
    config["arguments"]["vision_cfg"] = tower
    model = model_of(clip_config={name: config[name] for name in ("vocab_size", "arguments")}, clip_image_size=64)
    inputs = batch(model, masks=False)
    with torch.no_grad():
        outputs = model(**inputs)
        patches, whole = model.clip_image_encoder.joint(inputs["clip_pixel_values"])
        _, text = model.text_encoder(inputs["prompt_ids"][:, 0], inputs["prompt_mask"][:, 0])
    stride = model.clip_image_encoder.strides[-1]
    cosines = np.zeros((4, 64 // stride, 64 // stride))
    for n, image in enumerate(inputs["image_index"].tolist()):
        for y, x in np.ndindex(*cosines.shape[1:]):
            patch, prompt = patches[image, :, y, x].double().numpy(), text[n].double().numpy()
            cosines[n, y, x] = patch @ prompt / np.linalg.norm(patch) / np.linalg.norm(prompt)
    np.testing.assert_allclose(outputs.heatmap.numpy(), cosines, atol=1e-5)
    # the vector of Eq. 1 has length 1, the class token's similarity among its values
    image = whole[inputs["image_index"]]
    similarities = np.concatenate([F.cosine_similarity(image, text)[:, None].numpy(), cosines.reshape(4, -1)], 1)
    similarities /= np.linalg.norm(similarities, axis=1, keepdims=True)
    embedding = model.clip_prior.embedding
    expected = similarities @ embedding.weight.detach().numpy().T + embedding.bias.detach().numpy()
    with torch.no_grad():
        found = model.clip_prior(outputs.heatmap, F.cosine_similarity(image, text))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_heatmap_at_any_size():
    model = model_of()
    processor = processor_of(model)
    inputs = processor.prompts(TEXTS[:1])
    for side in (16, 96):
        view = processor.clip_view(side)(picture(40, 64))["pixel_values"]
        assert model.clip_heatmap(view, **inputs).shape == (1, side // 8, side // 8)
    with pytest.raises(ValueError, match="clip_prior=False"):
        model_of(clip_prior=False).clip_heatmap(view, **inputs)


def test_vision_transformer_is_open_clips():
    """The class token is the vector that open_clip gives, and a finer map interpolates the table of positions."""
    config = ClipEncoderConfig(name="ViT-B-16-quickgelu", arguments={"embed_dim": 12, "vision_cfg": VIT})
    torch.manual_seed(0)
    encoder = build_clip_image_encoder(config).eval()
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        patches, whole = encoder.joint(pixels)
        torch.testing.assert_close(whole, VisionTransformer.forward(encoder.backbone, pixels), atol=1e-5, rtol=1e-5)
    assert patches.shape == (2, 12, 2, 2)
    assert encoder.joint(torch.randn(1, 3, 24, 40))[0].shape == (1, 12, 3, 5)


def test_prompts():
    model = model_of()
    read = processor_of(model).tokenizer.decode
    for prompt, expected in (
        ("object", ["[CLS] a photo of red cup [SEP]"]),
        ("expression", ["[CLS] the red cup on the left [SEP]"]),
        ("imagenet", None),
    ):
        processor = VatexProcessor.from_config(tiny_config(prior_prompt=prompt), tokenizer())
        inputs = processor(picture(32, 32), ["the red cup on the left", "star"])
        if expected:
            ids, mask = inputs["prompt_ids"][0, 0], inputs["prompt_mask"][0, 0].bool()
            assert read(ids[mask]) == expected[0]
        else:
            assert inputs["prompt_ids"].shape[:2] == (2, len(OPENAI_IMAGENET_TEMPLATES)) == (2, 80)
    with torch.no_grad():  # the mean of the sentences, of whatever length
        found = model.encode_prompts(inputs["prompt_ids"], inputs["prompt_mask"])
        sentences = [
            model.text_encoder(ids[None, : mask.sum()], mask[None, : mask.sum()])[1]
            for ids, mask in zip(inputs["prompt_ids"][1], inputs["prompt_mask"][1])
        ]
    torch.testing.assert_close(found[1:], torch.stack(sentences).mean(0), atol=1e-5, rtol=1e-5)
    assert processor.phrase("the red cup on the left") == "red cup"
    assert VatexProcessor(tokenizer=tokenizer(), clip_image_size=None).phrase("the red cup") is None


def test_processor_makes_clips_view_and_takes_heatmaps_back():
    image = Image.new("RGB", (80, 40))
    image.paste((255, 255, 255), (60, 0, 80, 40))  # the right quarter
    for crop, lit in ((False, 0.25), (True, 0.0)):  # the central square ends before it
        processor = VatexProcessor.from_config(tiny_config(prior_crop=crop), tokenizer())
        inputs = processor(image, "star")
        mean, std = (torch.tensor(values)[:, None, None] for values in (processor.clip_view().image_mean, (1, 1, 1)))
        std = torch.tensor(processor.clip_view().image_std)[:, None, None]
        view = inputs["clip_pixel_values"][0] * std + mean
        assert inputs["clip_pixel_values"].shape == (1, 3, 32, 32) and abs(view.mean().item() - lit) < 0.02
        ramp = torch.arange(8.0).expand(1, 8, 8)  # columns of CLIP's map
        (found,) = processor.post_process_heatmaps(ramp, [(40, 80)])
        assert found.shape == (40, 80)
        left, right = (20, 60) if crop else (0, 80)
        centres = (torch.arange(80) + 0.5 - left) / (right - left) * 8 - 0.5
        torch.testing.assert_close(found[0], centres.clamp(0, 7), atol=1e-4, rtol=0)


def test_saved_processor_tells_how_phrases_were_found(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_ris.models.noun_phrase.spacy_model", lambda: "en_core_web_sm")
    VatexProcessor(tokenizer=tokenizer()).save_pretrained(tmp_path)
    assert VatexProcessor.from_pretrained(tmp_path).noun_phrases == "spacy"
    monkeypatch.setattr("hf_ris.models.noun_phrase.spacy_model", lambda: None)
    with pytest.raises(ValueError, match="no spaCy"):
        VatexProcessor.from_pretrained(tmp_path)
    assert VatexProcessor.from_pretrained(tmp_path, noun_phrases="rules").noun_phrases == "rules"


def test_missing_views_and_prompts_are_refused():
    model = model_of()
    inputs = batch(model)
    for name in ("clip_pixel_values", "prompt_ids", "prompt_mask"):
        with pytest.raises(ValueError, match="as its processor makes them"):
            model(**{key: value for key, value in inputs.items() if key != name})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vision_config": {"name": "darknet53"}}, "a timm swin_\\* or resnet\\* name"),
        ({"hidden_dim": 18}, "multiple of num_heads, and of 4"),
        ({"loss_weights": [1, 2]}, "four numbers"),
        ({"decoder_layers": 0}, "decoder_layers must be at least 1"),
        ({"pixel_encoder_layers": -1}, "must not be negative"),
        ({"mcc_temperature": 0}, "must be greater than 0"),
        ({"prior_template": "a photo"}, "must hold {} once"),
        ({"clip_image_size": 36}, "multiple of 8, CLIP's stride, got 36"),
        ({"max_text_length": 40}, "has 16 positions"),
    ],
)
def test_wrong_configurations_say_what_is_wrong(fields, message):
    with pytest.raises(ValueError, match=message):
        VatexForReferringSegmentation(tiny_config(**fields))


# --- contextual multimodal decoder -------------------------------------------------------------------------------


def attention(layer, query, key, value):
    """Multi-head attention in numpy; (Q, C), (K, C), (K, C) before projection."""
    q, k, v = (
        x @ side.weight.detach().double().numpy().T + side.bias.detach().double().numpy()
        for x, side in ((query, layer.query), (key, layer.key), (value, layer.value))
    )
    parts = []
    for qh, kh, vh in zip(*(np.split(x, layer.heads, 1) for x in (q, k, v))):
        scores = np.exp(qh @ kh.T / np.sqrt(qh.shape[1]))
        parts.append(scores / scores.sum(1, keepdims=True) @ vh)
    return np.concatenate(parts, 1) @ layer.output.weight.detach().double().numpy().T + (
        layer.output.bias.detach().double().numpy()
    )


def sines(height: int, width: int, channels: int) -> np.ndarray:
    """2-D sine positions (hw, C): y first, sines before cosines, in turns of the map."""
    frequencies = 2 * np.pi * 10_000.0 ** (-4 * np.arange(channels // 4) / channels)
    positions = np.zeros((height, width, channels))
    for row, column in np.ndindex(height, width):
        y, x = (row + 0.5) / height * frequencies, (column + 0.5) / width * frequencies
        positions[row, column] = np.concatenate([np.sin(y), np.cos(y), np.sin(x), np.cos(x)])
    return positions.reshape(height * width, channels)


@pytest.mark.parametrize("cmd", [True, False])
def test_decoder_is_equations_2_to_4(cmd):
    cmd_module = model_of(cmd=cmd).cmd
    random_numbers = np.random.default_rng(0)
    levels = [random_numbers.standard_normal((1, 16, side, side + 1 * side)) for side in (1, 2, 4, 8)]
    words = random_numbers.standard_normal((5, 16))
    padded = torch.from_numpy(np.concatenate([words, np.full((2, 16), 50.0)]))[None].float()
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0]]).bool()[:, None, None]
    with torch.no_grad():
        sides = cmd_module.sides([torch.from_numpy(level).float() for level in levels], [None] * 4)
        maps, states = cmd_module(sides, padded, mask, [None] * 4)
    previous, state = None, words
    for index, level in enumerate(levels):
        height, width = level.shape[-2:]
        pixels, placed = level[0].reshape(16, -1).T, level[0].reshape(16, -1).T + sines(height, width, 16)
        block = cmd_module.attentions[index]
        if cmd:
            state = attention(block.to_text, state, placed, pixels) * state
            np.testing.assert_allclose(states[index + 1][0, :5].numpy(), state, rtol=1e-3, atol=1e-5)
        read = attention(block.to_visual, placed, state, state) * pixels
        x = torch.from_numpy(read.T.reshape(1, 16, height, width))
        if previous is not None:
            x = x + F.interpolate(previous, scale_factor=2, mode="bilinear")
        convolution = cmd_module.convolutions[index]
        previous = F.conv2d(x, convolution.weight.double(), convolution.bias.double(), padding=1)
        torch.testing.assert_close(maps[index].double(), previous.detach(), atol=1e-4, rtol=1e-3)
    assert len(states) == (5 if cmd else 1)


def test_words_keep_their_size_at_the_start():
    """The output biases of 1: with 0, four products would take the words below a hundredth."""
    model = model_of()
    inputs = batch(model, masks=False)
    with torch.no_grad():
        states = model(**inputs).text_states
        ones = [block.to_text.output.bias for block in model.cmd.attentions]
        assert all((bias == 1).all() for bias in ones)
        for bias in ones:
            bias.zero_()
        vanishing = model(**inputs).text_states
    sizes = [state.norm(dim=1).mean().item() for state in (states[0], states[-1], vanishing[-1])]
    assert 0.2 < sizes[1] / sizes[0] < 5 and sizes[2] / sizes[0] < 1e-2


def test_sentence_is_the_mean_over_words():
    model = model_of()
    words, mask = torch.randn(2, 4, 16), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    torch.testing.assert_close(model.sentence(words, mask)[1], words[1, :2].mean(0))
    model.config.sentence = "batch"
    torch.testing.assert_close(model.sentence(words, mask)[1], words[1, :2].sum(0) / 6)


def test_repeated_edges():
    x = torch.arange(12.0).view(1, 1, 3, 4).repeat(2, 1, 1, 1)
    found = repeat_edges(x, torch.tensor([[3, 4], [2, 1]]))
    assert torch.equal(found[0], x[0])
    assert found[1, 0].tolist() == [[0.0] * 4, [4.0] * 4, [4.0] * 4]


# --- masked-attention decoder ------------------------------------------------------------------------------------


def test_masked_attention_decoder_is_mask2formers():
    """The same weights in transformers' decoder: the same masks and queries after every layer."""
    model = model_of()
    ours = model.decoder
    theirs = Mask2FormerMaskedAttentionDecoder(
        Mask2FormerConfig(
            hidden_dim=16,
            mask_feature_size=16,
            num_attention_heads=2,
            dim_feedforward=24,
            decoder_layers=4,
            dropout=0.0,
        )
    ).eval()
    theirs.layernorm.load_state_dict(ours.norm.state_dict())
    theirs.mask_predictor.mask_embedder.load_state_dict(ours.mask_head.state_dict())
    for mine, other in zip(ours.layers, theirs.layers, strict=True):
        other.cross_attn.load_state_dict(mine.cross_attention.state_dict())
        weights = mine.self_attention.state_dict()
        for name, weight, bias in zip("qkv", weights["in_proj_weight"].chunk(3), weights["in_proj_bias"].chunk(3)):
            other.self_attn.get_submodule(f"{name}_proj").load_state_dict({"weight": weight, "bias": bias})
        other.self_attn.out_proj.load_state_dict(mine.self_attention.out_proj.state_dict())
        other.cross_attn_layer_norm.load_state_dict(mine.cross_norm.state_dict())
        other.self_attn_layer_norm.load_state_dict(mine.self_norm.state_dict())
        other.final_layer_norm.load_state_dict(mine.ffn_norm.state_dict())
        other.fc1.load_state_dict(mine.ffn[0].state_dict())
        other.fc2.load_state_dict(mine.ffn[2].state_dict())
    torch.manual_seed(1)
    maps, start = [torch.randn(2, 16, side, side) for side in (2, 4, 8, 16)], torch.randn(2, 16)
    with torch.no_grad():
        predictions = ours(start, maps, [None] * 4)
        memory = [x.flatten(2).permute(2, 0, 1) + e for x, e in zip(maps, ours.level_embeddings.weight)]
        places = [torch.from_numpy(sines(side, side, 16)).float()[:, None] for side in (2, 4, 8)]
        expected = theirs(
            inputs_embeds=start.expand(3, -1, -1),
            multi_stage_positional_embeddings=places,
            pixel_embeddings=maps[3],
            encoder_hidden_states=memory,
            query_position_embeddings=ours.query_positions.weight[:, None].expand(-1, 2, -1),
            feature_size_list=[x.shape[-2:] for x in maps[:3]],
            return_dict=True,
        )
    assert len(predictions) == len(expected.masks_queries_logits) == 4
    for prediction, masks, queries in zip(
        predictions, expected.masks_queries_logits, expected.intermediate_hidden_states, strict=True
    ):
        torch.testing.assert_close(prediction.masks, masks, atol=1e-4, rtol=1e-4)
        classes = ours.class_head(queries.transpose(0, 1))
        torch.testing.assert_close(prediction.classes, classes, atol=1e-4, rtol=1e-4)
    assert (predictions[0].masks[:, 0] - predictions[0].masks[:, 1]).abs().max() < 1e-6  # they begin alike
    assert (predictions[1].masks[:, 0] - predictions[1].masks[:, 1]).abs().max() > 1e-3  # and do not stay so


def test_attention_is_masked_by_the_prediction_and_by_padding():
    logits = torch.full((1, 3, 4, 4), -1.0)
    logits[0, 0, :2] = 1.0  # the upper half
    logits[0, 1, :, 2:] = 1.0  # the right half, which is padding
    mask = attention_mask(logits, (2, 2), torch.tensor([[2, 1]]))
    assert mask.shape == (1, 1, 3, 4)
    assert mask[0, 0].tolist() == [[True, False, False, False], [True, False, True, False], [True, False, True, False]]


def test_the_most_probable_query_answers():
    model = model_of()
    with torch.no_grad():
        outputs = model(**batch(model, masks=False))
    best = outputs.query_scores.argmax(1)
    assert torch.equal(outputs.logits, outputs.query_logits[torch.arange(4), best])
    assert ((outputs.query_scores > 0) & (outputs.query_scores < 1)).all()
    model = model_of(class_loss="softmax")
    with torch.no_grad():
        scores = model(**batch(model, masks=False)).query_scores
    torch.testing.assert_close(scores.sum(1), torch.ones(4))


# --- losses ------------------------------------------------------------------------------------------------------


def test_the_cheapest_query_is_matched():
    """Of three queries: the right mask, the right mask with a higher probability, and a wrong one with the highest."""
    model = model_of()
    labels = torch.zeros(1, 1, 32, 32)
    labels[..., :16] = 1.0
    right = (labels * 2 - 1)[:, 0] * 4
    masks = torch.stack([right, right, -right], 1)
    whole = torch.ones(1, 2)
    for classes, expected in (([0.0, 1.0, 5.0], 1), ([1.0, 0.0, 5.0], 0)):
        chosen = model.match(torch.tensor([classes])[..., None], masks, labels, whole, whole)
        assert chosen.tolist() == [expected]
    target = torch.tensor([0.0, 1.0, 0.0])
    scores = torch.tensor([[0.3, -0.2, 1.0]])
    expected = F.binary_cross_entropy_with_logits(scores[0], target)
    torch.testing.assert_close(model.class_loss(scores[..., None], torch.tensor([1])), expected)
    model.config.class_loss = "softmax"
    pairs = torch.randn(1, 3, 2)
    terms = F.cross_entropy(pairs[0], torch.tensor([1, 0, 1]), reduction="none") * torch.tensor([0.1, 1.0, 0.1])
    torch.testing.assert_close(model.class_loss(pairs, torch.tensor([1])), terms.sum() / 1.2)


def test_losses_of_all_predictions_add_up():
    model = model_of(mcc=False)
    inputs = batch(model)
    torch.manual_seed(0)
    outputs = model(**inputs)
    parts = {name: term.item() for name, term in outputs.losses.items()}
    expected = 2 * parts["class"] + 5 * parts["mask"] + 5 * parts["dice"]
    assert outputs.loss.item() == pytest.approx(expected, rel=1e-5)
    assert 2.0 < parts["dice"] < 4.0 and parts["mask"] > 1.0  # four predictions, each below 1


def test_points():
    logits = torch.arange(16.0).view(1, 1, 4, 4)
    points = torch.tensor([[[0.125, 0.125], [0.875, 0.125], [0.5, 0.5], [0.125, 0.875]]])  # x, y
    assert point_sample(logits, points)[0, 0].tolist() == [0.0, 3.0, 7.5, 12.0]
    torch.manual_seed(0)
    edge = (torch.arange(64.0) - 31.5).expand(1, 64, 64)  # 0 between the columns 31 and 32
    points = uncertain_points(edge, 400)
    assert points.shape == (1, 400, 2) and points.min() >= 0 and points.max() <= 1
    near = ((points[0, :, 0] - 0.5).abs() < 0.13).float().mean()
    assert 0.7 < near < 0.9  # three quarters of the points from a quarter of the map, and some of the rest
    extent = torch.tensor([[0.25, 0.5]])
    inside = uncertain_points(edge, 400, extent)
    assert (inside.amax(1) <= extent).all() and (inside.amax(1) > 0.9 * extent).all()


def test_dice():
    logits = torch.tensor([[9.0, 9.0, -9.0, -9.0], [0.0, 0.0, 0.0, 0.0]])
    labels = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(dice_loss(logits, labels), torch.tensor([0.0, 1 - 2 / 4]), atol=1e-3, rtol=0)


def test_labels_and_points_meet_where_the_input_is_padded():
    """Of an input whose sides are no multiples of the stride, a perfect mask costs nothing."""
    model = model_of(mcc=False)
    pixels, labels = torch.zeros(1, 3, 40, 44), torch.zeros(1, 40, 44)
    labels[0, 20:, 22:] = 1.0
    extent, label_extent = model.extents(None, (40, 44), (64, 64), labels)
    assert torch.equal(extent, torch.tensor([[44 / 64, 40 / 64]])) and torch.equal(label_extent, torch.ones(1, 2))
    masks = F.pad(labels * 40 - 20, (0, 20, 0, 24), value=20.0)[:, None].expand(-1, 3, -1, -1)
    torch.manual_seed(0)
    losses = model.mask_losses(
        [Prediction(torch.zeros(1, 3, 1), masks)], labels, extent, label_extent, lambda mask: mask
    )
    assert losses["mask"] < 0.5 and losses["dice"] < 0.2
    shifted = model.mask_losses(
        [Prediction(torch.zeros(1, 3, 1), masks)], labels, label_extent, label_extent, lambda mask: mask
    )
    assert shifted["mask"] > 2
    inputs = {name: value for name, value in batch(model).items() if name in ("input_ids", "attention_mask")}
    outputs = model_of(clip_prior=False)(pixels, inputs["input_ids"][:1], inputs["attention_mask"][:1], labels=labels)
    assert outputs.input_size == (64, 64) and outputs.loss.isfinite()


# --- meaning consistency -----------------------------------------------------------------------------------------

OBJECTS = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4])
IMAGES = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2])


def direct_triplets(features: np.ndarray) -> float:
    """Eq. 6 as it is printed, over all triplets."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)

    def sim(a, b):
        return np.exp(unit[a] @ unit[b])

    terms = [
        -np.log(sim(p1, p2) / (sim(p1, n) + sim(p2, n)))
        for p1 in range(8)
        for p2 in range(p1 + 1, 8)
        for n in range(8)
        if OBJECTS[p1] == OBJECTS[p2] != OBJECTS[n] and IMAGES[p1] == IMAGES[n]
    ]
    assert len(terms) == 1 + 3
    return float(np.mean(terms))


def direct_info_nce(features: np.ndarray, temperature: float) -> float:
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    similarities = np.exp(unit @ unit.T / temperature)
    terms = [
        -np.log(similarities[a, b] / (similarities[a, b] + similarities[a, [int(o) for o in others]].sum()))
        for a in range(8)
        for b in range(8)
        if a != b and OBJECTS[a] == OBJECTS[b]
        for others in [[n for n in range(8) if OBJECTS[n] != OBJECTS[a]]]
    ]
    assert len(terms) == 2 + 6
    return float(np.mean(terms))


def test_consistency_is_equation_6_and_infonce():
    features = np.random.default_rng(0).standard_normal((8, 6)) * np.geomspace(1e-6, 1e6, 8)[:, None]
    tensor = torch.from_numpy(features)
    assert triplet_consistency(tensor, OBJECTS, IMAGES).item() == pytest.approx(direct_triplets(features), rel=1e-12)
    assert info_nce_consistency(tensor, OBJECTS, 0.07).item() == pytest.approx(direct_info_nce(features, 0.07), 1e-10)


@pytest.mark.parametrize("loss", ["triplet", "info_nce"])
def test_consistency_is_stable_in_bfloat16_and_quiet_without_triplets(loss):
    def consistency(features, objects=OBJECTS):
        if loss == "triplet":
            return triplet_consistency(features, objects, IMAGES)
        return info_nce_consistency(features, objects, 0.07)

    torch.manual_seed(0)
    features = torch.randn(8, 6)
    features[1], features[4] = features[0], -features[3]  # the same and the opposite: the extremes
    with torch.autocast("cpu", torch.bfloat16):
        half = features.bfloat16().requires_grad_()
        value = consistency(half)
        value.backward()
    assert value.dtype == torch.float32 and half.grad.isfinite().all()
    assert value.item() == pytest.approx(consistency(features.bfloat16().float()).item(), rel=1e-6)
    alone = features.clone().requires_grad_()
    nothing = consistency(alone, torch.arange(8))  # no object has two expressions
    nothing.backward()
    assert nothing.item() == 0.0 and not alone.grad.any()
    one = consistency(alone, torch.zeros(8, dtype=torch.long))  # and none to tell from
    assert one.item() == pytest.approx(0.0, abs=1e-6)


def test_consistency_teaches_the_text_path_and_not_clip():
    model = model_of().train()
    inputs = batch(model)
    outputs = model(**inputs)
    outputs.losses["mcc"].backward()
    taught = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    parts = {name.split(".")[0] for name in taught}
    assert parts == {"vision_encoder", "text_projection", "cmd"}
    assert {f"cmd.attentions.{level}.to_text.output.weight" for level in range(4)} <= taught
    assert not any("to_visual" in name or "convolutions" in name for name in taught)


def test_clip_stays_as_it_is_through_training():
    """Under the recipe's rules, which freeze it, and in eval mode, which a ResNet's batch norm would show."""
    config = tiny_config().clip_config.to_dict()
    config["arguments"]["vision_cfg"] = RESNET
    model = model_of(clip_config={name: config[name] for name in ("vocab_size", "arguments")}, clip_image_size=64)
    recipe = load_recipe(ROOT / "train/recipes/vatex/refscenes.yaml").optimizer
    assert Rule(pattern=r"^(clip_image_encoder|text_encoder)\.", freeze=True, eval_mode=True) in recipe.rules
    clip = [model.clip_image_encoder, model.text_encoder]
    assert set(clip) <= set(freeze(model, recipe))
    before = [{key: value.clone() for key, value in part.state_dict().items()} for part in clip]
    optimizer = torch.optim.AdamW(parameter_groups(model, recipe), weight_decay=0.1)
    inputs = batch(model)
    for _ in range(3):
        model.train()
        assert not any(module.training for part in clip for module in part.modules()) and model.cmd.training
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for part, state in zip(clip, before):
        assert all(torch.equal(value, state[key]) for key, value in part.state_dict().items())


GATHER = """
import importlib.util, os, sys
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
spec = importlib.util.spec_from_file_location("losses", sys.argv[1])
losses = importlib.util.module_from_spec(spec)
spec.loader.exec_module(losses)
features = torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
objects, images = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4]), torch.tensor([0, 0, 0, 1, 1, 1, 1, 2])
parts = [slice(0, 3), slice(3, 8)]


def terms(x, part):
    own = objects[part] - objects[part].min()  # numbered anew in each process
    return losses.triplet_consistency(x, own, images[part]), losses.info_nce_consistency(x, own, 0.5)


def work(rank, file):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    whole = features.clone().requires_grad_()
    for index in range(2):
        x = features[parts[rank]].clone().requires_grad_()
        value = terms(x, parts[rank])[index]
        value.backward()
        mean = value.detach().clone()
        dist.all_reduce(mean)
        world, losses._processes = losses._processes, lambda: 1
        expected = (losses.triplet_consistency(whole, objects, images),
                    losses.info_nce_consistency(whole, objects, 0.5))[index]
        losses._processes = world
        (gradient,) = torch.autograd.grad(expected, whole)
        torch.testing.assert_close(mean / 2, expected.detach())
        # data parallelism takes the mean of the processes' gradients
        torch.testing.assert_close(x.grad / 2, gradient[parts[rank]])


if __name__ == "__main__":
    mp.start_processes(work, (sys.argv[2],), nprocs=2, start_method="fork")
"""


def test_consistency_of_two_processes_is_that_of_one(tmp_path):
    script = tmp_path / "gather.py"
    script.write_text(GATHER)
    losses = ROOT / "hf_ris/models/losses.py"
    done = subprocess.run(
        [sys.executable, str(script), str(losses), str(tmp_path / "store")], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]


# --- LAVT with CLIP's text encoder (supplementary, Table 1) --------------------------------------------------------


def test_lavt_reads_clips_words(tmp_path):
    clip = tiny_config().clip_config
    torch.manual_seed(0)
    model = LavtForReferringSegmentation(
        LavtConfig(
            image_size=32,
            text_encoder="clip",
            clip_config={"vocab_size": clip.vocab_size, "arguments": clip.arguments},
            vision_config=tiny_config().vision_config,
            decoder_dim=8,
            max_text_length=12,
        )
    )
    processor = LavtProcessor.from_config(model.config, tokenizer())
    assert processor.clip_text
    inputs = processor([picture(32, 32), picture(32, 32, 1)], TEXTS[:2], [np.eye(32) > 0] * 2)
    model(**inputs).loss.backward()
    untaught = {name for name, p in model.named_parameters() if p.grad is None}
    assert untaught == {"gates.3.hidden.weight", "gates.3.output.weight", "text_encoder.tower.text_projection"}
    with torch.no_grad():
        words = model.eval().encode_text(inputs["input_ids"], inputs["attention_mask"])
        expected = model.text_encoder(inputs["input_ids"], inputs["attention_mask"])[0]
        assert torch.equal(words, expected) and words.shape[-1] == 16
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert LavtProcessor.from_pretrained(tmp_path).clip_text
    again = LavtForReferringSegmentation.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, again(**inputs).logits)
    file = tmp_path / "clip.safetensors"  # as open_clip names them, the image tower not wanted
    state = {key: value + 1 for key, value in model.text_encoder.tower.state_dict().items()}
    save_file(state, file)
    load_clip_weights(ClipEncoderConfig(pretrained=str(file)), None, again.text_encoder)
    assert all(torch.equal(value, state[key]) for key, value in again.text_encoder.tower.state_dict().items())


def test_lavts_recipe_takes_clips_text_encoder():
    """By the overrides that the card names; BERT's layers that it does not train have no counterpart."""
    overrides = ["model.text_encoder=clip", "processor.tokenizer=clip", "optimizer.rules.1.pattern=token_embedding"]
    recipe = load_recipe(ROOT / "train/recipes/lavt/refcoco.yaml", overrides)
    with torch.device("meta"):
        model = LavtForReferringSegmentation(LavtConfig(**recipe.model))
    freeze(model, recipe.optimizer)
    frozen = {name for name, p in model.named_parameters() if name.startswith("text_encoder") and not p.requires_grad}
    assert frozen == {"text_encoder.tower.token_embedding.weight", "text_encoder.tower.text_projection"}


def test_lavt_is_bert_by_default():
    assert LavtConfig().text_encoder == "bert" and not LavtProcessor(tokenizer=tokenizer()).clip_text


# --- data and recipes --------------------------------------------------------------------------------------------


def row(*targets: list[int]) -> dict:
    """An image with expressions of these objects."""
    said = [{"object_indices": target, "text": f"thing {number}"} for number, target in enumerate(targets)]
    return {"expressions": said}


def test_triplets_are_drawn_where_there_are_any():
    for seed in range(50):
        rng = random.Random(seed)
        drawn = sample_triplet(row([0], [1], [0], [0, 1], [1], [2]), 3, rng)["expressions"]
        targets = [tuple(said["object_indices"]) for said in drawn]
        pairs = [target for target in set(targets) if targets.count(target) == 2]
        assert len(drawn) == 3 and len(pairs) == 1
        (other,) = set(targets) - set(pairs)
        assert not set(pairs[0]) & set(other)  # "both" is no contrast to one of them
    more = sample_triplet(row([0], [1], [0], [1], [2]), 4, random.Random(0))["expressions"]
    assert len(more) == 4
    assert len(sample_triplet(row([0], [0], [1]), 9, random.Random(0))["expressions"]) == 3


@pytest.mark.parametrize("targets", [([0], [1], [2], [3]), ([0], [0], [0]), ([], [], [0]), ([0], [0, 1], [0], [0, 1])])
def test_without_a_triplet_expressions_are_drawn_as_ever(targets):
    """No object of which two speak, no other object, or only one that shares an object."""
    drawn = sample_triplet(row(*targets), 3, random.Random(0))["expressions"]
    assert len(drawn) == 3
    with pytest.raises(ValueError, match="max_expressions must be at least 3"):
        sample_triplet(row(*targets), 2, random.Random(0))


def test_training_rows_and_collator_bring_triplets_to_the_model():
    rows = TrainingRows(load_refscenes("refscenes", "train", size=6), seed=1, triplets=True)
    model = model_of()
    inputs = RisCollator(processor_of(model))([rows[0, index] for index in range(6)])
    found = 0
    for image in range(6):
        of_image = inputs["object_index"][inputs["image_index"] == image].tolist()
        assert len(of_image) <= 3
        found += len(of_image) == 3 and len(set(of_image)) == 2
    assert found >= 4  # some scene may have none
    assert model(**inputs).losses["mcc"].item() != 0.0


def test_recipes_keep_to_the_paper():
    for path in (ROOT / "train/recipes/vatex").glob("*.yaml"):
        recipe = load_recipe(path)
        assert recipe.data.triplets
        if path.stem == "refscenes":
            continue
        assert recipe.training.max_steps == 100_000 and recipe.optimizer.learning_rate == 1e-4
        assert recipe.data.max_expressions == 3 and recipe.evaluation.protocol == "vatex"
        factors = [learning_rate_factor(recipe.schedule, step, 100_000, 2124) for step in (0, 66_000, 67_000, 99_999)]
        assert factors == pytest.approx([1, 1, 0.1, 0.1])


def test_losses_look_at_every_pixel_as_in_the_paper():
    model = model_of(loss_points=None)
    masks = torch.randn(2, 1, 3, 5)
    points = model.places(masks, torch.ones(2, 2), uncertain=True)
    torch.testing.assert_close(point_sample(masks, points)[:, 0], masks[:, 0].flatten(1))
    half = model.places(masks, torch.tensor([[0.5, 1.0]]).expand(2, 2))
    assert half[..., 0].max() < 0.5 < half[..., 1].max()


def test_fractions_of_a_run_and_triplets_in_recipes():
    schedule = ScheduleRecipe(name="step", fractions=[0.5], milestones=[8])
    assert [learning_rate_factor(schedule, step, 100, 10) for step in (49, 50, 80)] == pytest.approx([1, 0.1, 0.01])
    recipe = ROOT / "train/recipes/vatex/refscenes.yaml"
    with pytest.raises(ValueError, match="max_expressions of at least 3, got 2"):
        load_recipe(recipe, ["data.max_expressions=2"])
    with pytest.raises(ValueError, match="data.unit must be image"):
        load_recipe(recipe, ["data.unit=reference"])
