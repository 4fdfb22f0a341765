"""What is VLT's own: queries and their balance, its variants, its processor and refusals. Its neck and its query
generator are in test_aligner.py, the contract that all architectures share in test_models.py."""

import numpy as np
import pytest
import torch
from conftest import ROOT, fill_by_formula, formula

from hf_ris import VltConfig, VltForReferringSegmentation, VltProcessor
from hf_ris.models.configuration_ris import VisionEncoderConfig
from hf_ris.models.processing_ris import RisImageProcessor
from hf_ris.models.text_encoders import word_tokenizer
from hf_ris.models.vision_encoders import build_vision_encoder
from hf_ris.training.build import build_config
from hf_ris.training.recipe import load_recipe


WORDS = "the red blue cup star left of second ball".split()
SWIN = {
    "name": "swin_base_patch4_window12_384",
    "arguments": {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4},
}
BERT = {
    "vocab_size": len(WORDS) + 2,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
}


def tiny_config(**fields) -> VltConfig:
    """A model of 0.1M parameters on 64x64 images, whose fused features are 4x4."""
    small = {
        "image_size": 64,
        "vision_config": {"arguments": {"depths": [1] * 5, "widths": [8, 8, 16, 16, 24], "stem_width": 4}},
        "vocab_size": len(WORDS) + 2,
        "embedding_dim": 12,
        "hidden_size": 10,
        "text_config": BERT,
        "fusion_dim": 16,
        "hidden_dim": 16,
        "num_heads": 2,
        "ffn_dim": 24,
        "num_encoder_layers": 1,
        "num_decoder_layers": 1,
        "dropout": 0.0,
        "num_queries": 3,
    }
    return VltConfig(**small | fields)


def model_of(**fields) -> VltForReferringSegmentation:
    torch.manual_seed(0)
    return VltForReferringSegmentation(tiny_config(**fields)).eval()


def batch(**extra) -> dict[str, torch.Tensor]:
    """Two images; two expressions of the first, one of the second."""
    random = torch.Generator().manual_seed(1)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    return {
        "pixel_values": torch.randn(2, 3, 64, 64, generator=random),
        "input_ids": torch.randint(2, len(WORDS) + 2, (3, 5), generator=random) * mask,
        "attention_mask": mask,
        "image_index": torch.tensor([0, 0, 1]),
        **extra,
    }


def labels() -> torch.Tensor:
    masks = torch.zeros(3, 64, 64)
    masks[0, :20, :30], masks[1, 10:50, 40:], masks[2, 30:, 5:25] = 1, 1, 1
    return masks


VARIANTS = {
    "Darknet-53 and Bi-GRU": ({}, 4, 16),
    "Swin and BERT": ({"vision_config": SWIN, "text_encoder": "bert"}, 4, 16),
    "without query balance": ({"query_balance": False}, 4, 16),
    "one query": ({"num_queries": 1}, 4, 16),
    "maps at stride 8, upsampled once": ({"fusion_stage": 3, "mask_upsamplings": 1}, 8, 16),
    "with positions": ({"memory_positions": True, "query_positions": True}, 4, 16),
    "no upsampling": ({"mask_upsamplings": 0}, 4, 4),
    "aligner (EAVL, table V)": ({"aligner": True}, 16, 16),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_trains(variant):
    fields, map_side, side = VARIANTS[variant]
    model = model_of(**fields).train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(8):
        outputs = model(**batch(labels=labels()))
        losses.append(outputs.loss.item())
        optimizer.zero_grad()
        outputs.loss.backward()
        optimizer.step()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not [name for name in silent if not name.endswith("in_proj_bias")]
    assert losses[-1] < 0.9 * losses[0]
    with torch.no_grad():
        outputs = model.eval()(**batch())
    assert outputs.logits.shape == (3, side, side)
    assert outputs.query_logits.shape == (3, model.config.num_queries, map_side, map_side)
    assert (outputs.query_scores is None) is (variant == "without query balance")


def test_the_fused_features_can_learn_the_mask_beside_the_queries():
    """By a loss of their own, which is added with its weight and changes nothing that the model answers."""
    with_loss, without = model_of(fused_loss_weight=0.5), model_of()
    without.load_state_dict(with_loss.state_dict(), strict=False)
    outputs, plain = with_loss(**batch(labels=labels())), without(**batch(labels=labels()))
    assert outputs.logits.equal(plain.logits) and "fused" not in plain.losses
    assert outputs.loss.item() == pytest.approx(plain.loss.item() + 0.5 * outputs.losses["fused"].item())
    outputs.losses["fused"].backward()
    taught = {name.split(".")[0] for name, p in with_loss.named_parameters() if p.grad is not None and p.grad.any()}
    assert taught == {"vision_encoder", "text_encoder", "neck", "project", "fused_mask"}


def test_balance_weighs_the_responses():
    """A query of score 0 leaves its map at the bias; the scores are a sigmoid of query and response."""
    model = model_of()
    balance = model.query_balance
    queries, responses = torch.randn(2, 3, 16), torch.randn(2, 3, 16)
    with torch.no_grad():
        hidden = torch.relu(torch.cat([queries, responses], -1) @ balance.hidden.weight.T + balance.hidden.bias)
        expected = 1 / (1 + (-(hidden @ balance.score.weight[0] + balance.score.bias)).exp())
        torch.testing.assert_close(balance(queries, responses), expected)
        free = model(**batch())
        balance.score.weight.zero_()
        balance.score.bias.fill_(-200.0)
        silent = model(**batch())
    assert 0 < free.query_scores.min() and free.query_scores.max() < 1
    assert silent.query_scores.max() == 0
    torch.testing.assert_close(silent.query_logits, model.query_maps.bias.detach().view(4, 4).expand(3, 3, 4, 4))


def test_maps_are_the_balanced_responses():
    model = model_of()
    seen = {}
    model.transformer.register_forward_hook(lambda module, args, output: seen.update(responses=output))
    with torch.no_grad():
        outputs = model(**batch())
        maps = model.query_maps(seen["responses"] * outputs.query_scores[..., None])
    torch.testing.assert_close(outputs.query_logits.flatten(2), maps)


def test_order_of_queries_is_that_of_the_mask_decoders_channels():
    """Queries meet no position: permuted, they permute maps and scores, and the mask where its decoder knows it."""
    model, order = model_of(), torch.tensor([2, 0, 1])
    with torch.no_grad():
        for layer in (model.query_generator.dense, model.query_generator.key):
            layer.weight.mul_(20)  # untrained, the queries are too much alike
        before = model(**batch())
        last, first = model.query_generator.reduce[2], model.mask_decoder.convs[0]
        last.conv.weight.copy_(last.conv.weight[order])
        first.conv.weight.copy_(first.conv.weight[:, order])
        after = model(**batch())
    torch.testing.assert_close(after.query_logits, before.query_logits[:, order], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(after.query_scores, before.query_scores[:, order])
    torch.testing.assert_close(after.logits, before.logits, atol=1e-5, rtol=1e-5)
    assert (before.query_logits[:, 0] - before.query_logits[:, 1]).abs().max() > 1e-4


def test_positions_of_queries_tell_equal_queries_apart():
    """One word makes one query, many times over; with positions each has a response of its own."""
    fused, queries = torch.randn(2, 16, 4, 4), torch.randn(2, 1, 16).expand(-1, 3, -1)
    for learned in (False, True):
        with torch.no_grad():
            responses = model_of(query_positions=learned).transformer(fused, queries)
        assert torch.allclose(responses[:, 0], responses[:, 1], atol=1e-5) is not learned


def test_positions_of_pixels_can_be_in_the_memory():
    """Equal pixels stay equal in the memory, whatever the keys know of their places, unless it has positions itself."""
    fused, queries = torch.randn(2, 16, 1, 1).expand(-1, -1, 4, 4), torch.randn(2, 3, 16)
    for placed in (False, True):
        transformer, seen = model_of(memory_positions=placed).transformer, {}
        transformer.encoder_norm.register_forward_hook(lambda module, args, output, seen=seen: seen.update(m=output))
        with torch.no_grad():
            transformer(fused, queries)
        assert torch.allclose(seen["m"][:, :1], seen["m"], atol=1e-5) is not placed


def test_sentence_of_bert_is_the_mean_of_its_words():
    model = model_of(vision_config=SWIN, text_encoder="bert")
    inputs = batch()
    with torch.no_grad():
        words, sentence = model.encode_text(inputs["input_ids"], inputs["attention_mask"])
    torch.testing.assert_close(sentence[0], words[0, :3].mean(0))
    torch.testing.assert_close(sentence[1], words[1].mean(0))


BASE = {
    "name": "swin_base_patch4_window12_384",
    "pretrained_tag": "ms_in22k",
    "arguments": {"window_size": 12},
}


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({}, 70_571_622),  # the paper prints none; its words' table of 3.0M included
        ({"vision_config": BASE, "text_encoder": "bert"}, 190_512_190),  # EAVL's Table VI: 204.44M
    ],
)
def test_parameters_of_the_paper(fields, count):
    """BERT's embeddings left out, as in EAVL's Table VI; the card accounts for the difference of 6.8%."""
    with torch.device("meta"):
        model = VltForReferringSegmentation(VltConfig(**fields))
    counted = [p.numel() for name, p in model.named_parameters() if not name.startswith("text_encoder.embeddings.")]
    assert sum(counted) == count


def test_paper_configuration():
    """16 queries, maps of 26x26 = 676 values, 2 encoder and 2 decoder layers, Bi-GRU 1024 with directions summed."""
    with torch.device("meta"):
        model = VltForReferringSegmentation(VltConfig())
    assert model.config.num_queries == 16 and model.query_maps.weight.shape == (676, 256)
    assert (len(model.transformer.encoder), len(model.transformer.decoder)) == (2, 2)
    assert model.text_encoder.channels == 1024 and model.text_encoder.embedding.embedding_dim == 300


@pytest.mark.parametrize("name", ["refcoco", "refcoco+", "refcocog"])
def test_recipes_hold_the_papers_model(name):
    path = ROOT / "train" / "recipes" / "vlt" / f"{name}.yaml"
    expected = VltConfig(
        max_text_length=20 if name == "refcocog" else 15, vocab_size=123, text_config={"vocab_size": 123}
    )
    assert build_config(load_recipe(path), 123).to_dict() == expected.to_dict()
    assert build_config(load_recipe(path, ["model.aligner=true"]), 123).aligner
    swin = "{name: swin_base_patch4_window12_384, pretrained_tag: ms_in22k, arguments: {window_size: 12}}"
    later = build_config(load_recipe(path, [f"model.vision_config={swin}", "model.text_encoder=bert"]), 123)
    assert later.vision_config.name == BASE["name"] and later.vision_config.output_stages == [3, 4, 5]
    assert (later.text_encoder, later.text_config.vocab_size) == ("bert", 123)


def test_processor_is_the_published_one():
    processor = VltProcessor(tokenizer=word_tokenizer(WORDS))
    image = np.full((50, 90, 3), 200, np.uint8)
    inputs = processor(image, "the Red cup " * 9)
    assert inputs["pixel_values"].shape == (1, 3, 416, 416) and inputs["input_ids"].shape == (1, 15)
    mean, std = (torch.tensor(getattr(processor.image_processor, name)) for name in ("image_mean", "image_std"))
    grey = (128 / 255 - mean) / std
    torch.testing.assert_close(inputs["pixel_values"][0, :, 0, 0], grey, atol=1e-4, rtol=0)
    other = VltProcessor.from_config(tiny_config(max_text_length=7), processor.tokenizer)
    assert (other.image_processor.image_size, other.max_text_length, other.threshold) == (64, 7, 0.35)
    assert isinstance(other.image_processor, RisImageProcessor) and other.image_processor.geometry == "letterbox"


# logits of `test_numerics_are_frozen` at row 5, columns 0, 5, 10 and 15, for each expression
FROZEN = [
    [0.040846835425, 0.00177354231, 0.09799503819, -0.263175445038],
    [0.040893662775, 0.001777581169, 0.097980452739, -0.263155214352],
    [0.040842314118, 0.001783224651, 0.098000646976, -0.263175340605],
]


def test_numerics_are_frozen():
    """The logits of weights that are a formula; a change of any convention moves them."""
    model = model_of().double()
    fill_by_formula(model)
    with torch.no_grad():
        logits = model(**batch(pixel_values=formula(2 * 3 * 64 * 64, 0).view(2, 3, 64, 64))).logits
    torch.testing.assert_close(logits[:, 5, ::5], torch.tensor(FROZEN, dtype=torch.float64), atol=1e-8, rtol=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"queries": 4}, "no field queries"),
        ({"text_encoder": "lstm"}, "text_encoder"),
        ({"num_queries": 0}, "num_queries must be at least 1"),
        ({"hidden_dim": 15}, "multiple of num_heads"),
        ({"fused_loss_weight": -1.0}, "fused_loss_weight must not be negative, got -1.0"),
        ({"dropout": 1.0}, "dropout must lie in"),
        ({"mask_upsamplings": 3}, "mask_upsamplings"),
        ({"fusion_stage": 2}, "fusion_stage must be one of"),
        ({"text_encoder": "bert", "max_text_length": 21}, "max_position_embeddings=20"),
    ],
)
def test_senseless_configurations_are_refused(fields, message):
    with pytest.raises(Exception, match=message):
        tiny_config(**fields)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="image_size must be a multiple of 16"):
        model_of(image_size=72)
    model, inputs = model_of(), batch()
    with pytest.raises(ValueError, match="read a map of 4x4"):
        model(**inputs | {"pixel_values": torch.randn(2, 3, 96, 96)})
    with pytest.raises(ValueError, match="no pixel_mask"):
        model(**inputs, pixel_mask=torch.ones(2, 64, 64))


@pytest.mark.parametrize("name", ["refcoco", "refcoco+", "refcocog"])
def test_recipes_are_the_published_configuration(name):
    recipe = load_recipe(ROOT / "train" / "recipes" / "vlt" / f"{name}.yaml")
    still = {rule.pattern for rule in recipe.optimizer.rules if rule.freeze}
    assert still == {r"^vision_encoder\.", r"^text_encoder\.embedding\."} and recipe.optimizer.learning_rate == 1e-3
    assert recipe.schedule.milestones == [39, 44, 49] and VltConfig().gru_dropout == 0.1
    later = load_recipe(ROOT / "train" / "recipes" / "vlt" / "refcoco_swin_bert.yaml")
    assert later.optimizer.learning_rate == 5e-5 and later.schedule.name == "poly" and later.training.epochs == 40


def test_an_unused_last_stage_of_swin_is_not_there():
    swin = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 4}
    encoder = build_vision_encoder(VisionEncoderConfig(arguments=swin, output_stages=[2, 3, 4]))
    sum(level.sum() for level in encoder(torch.randn(1, 3, 64, 64))).backward()
    assert len(encoder.backbone.layers) == 3 and all(p.grad is not None for p in encoder.parameters())
