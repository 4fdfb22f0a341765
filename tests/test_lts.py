"""What is LTS's own: its equations, ablation rows and refusals. The contract that all share is in test_models.py."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hf_ris import LtsConfig, LtsForReferringSegmentation, LtsProcessor
from hf_ris.models.losses import resize_labels
from hf_ris.models.modeling_lts import coordinates_like, sine_positions
from hf_ris.models.processing_ris import RisImageProcessor
from hf_ris.models.text_encoders import Gru, word_tokenizer


WORDS = "the red blue cup star left of second ball".split()


def tiny_lts_config(**fields) -> LtsConfig:
    """A model of 40,000 parameters on 64x64 images."""
    small = {
        "image_size": 64,
        "vocab_size": len(WORDS) + 2,
        "embedding_dim": 12,
        "hidden_size": 10,
        "fusion_dim": 16,
        "decoder_heads": 2,
        "decoder_ffn_dim": 24,
        "segmentation_dim": 8,
        "aspp_rates": [1, 2],
        "vision_config": {"arguments": {"depths": [1] * 5, "widths": [8, 8, 16, 16, 24], "stem_width": 4}},
    }
    return LtsConfig(**small | fields)


def tiny_lts_processor() -> LtsProcessor:
    return LtsProcessor(RisImageProcessor(image_size=64), word_tokenizer(WORDS))


def model_of(**fields) -> LtsForReferringSegmentation:
    torch.manual_seed(0)
    return LtsForReferringSegmentation(tiny_lts_config(**fields))


def batch(**extra) -> dict[str, torch.Tensor]:
    """Two images; two expressions of the first, one of the second; lengths 3, 5 and 2."""
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


NO_LOSS = {"locating_loss_weight": 0.0}
ROWS = {
    "fusion": ({"localization": "none", "use_segmentation": False, **NO_LOSS}, 0, 8),
    "filter": ({"use_fusion": False, "use_segmentation": False, **NO_LOSS}, 1, 8),
    "fusion+filter": ({"use_segmentation": False, **NO_LOSS}, 1, 8),
    "fusion+seg": ({"localization": "none", **NO_LOSS}, 0, 4),
    "filter+seg": ({"use_fusion": False, **NO_LOSS}, 1, 4),
    "all three": (NO_LOSS, 1, 4),
    "all three+loss": ({}, 1, 4),
    "transformer (table 4)": ({"localization": "transformer"}, 1, 4),
    "n=2 (table 5)": ({"num_filterings": 2}, 2, 4),
    "n=3 (table 5)": ({"num_filterings": 3}, 3, 4),
    "word filter (table 5)": ({"localization": "word_filter"}, 1, 4),
    "LTS* (table 7)": ({"localization": "transformer", "num_filterings": 2, "image_size": 96}, 2, 4),
}


@pytest.mark.parametrize("row", ROWS)
def test_every_row_of_the_tables_trains(row):
    fields, maps, stride = ROWS[row]
    model = model_of(**fields)
    side = model.config.image_size
    inputs = batch(labels=labels())
    inputs["pixel_values"] = F.interpolate(inputs["pixel_values"], size=(side, side))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(12):
        outputs = model(**inputs)
        losses.append(outputs.loss.item())
        optimizer.zero_grad()
        outputs.loss.backward()
        optimizer.step()
    assert outputs.logits.shape == (3, side // stride, side // stride)
    if maps:
        assert outputs.prior_logits.shape == (3, maps, side // 8, side // 8)
    else:
        assert outputs.prior_logits is None
    assert set(outputs.losses) == {"segmentation"} | ({"location"} if model.config.locating_loss_weight else set())
    # a row's modules all work: the parameters are exactly those that the mask depends on
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent
    assert losses[-1] < 0.9 * losses[0]


def test_paper_configuration():
    """Sizes that the paper prints: d_k 1024, text 2 x 512, embeddings of 300, maps at 1/8 and 1/4 of 416."""
    with torch.device("meta"):
        model = LtsForReferringSegmentation(LtsConfig())
        inputs = torch.zeros(1, 3, 416, 416), torch.ones(2, 15, dtype=torch.long), torch.ones(2, 15, dtype=torch.long)
        outputs = model.eval()(*inputs, image_index=torch.zeros(2, dtype=torch.long))
    assert model.localization.kernels[0].weight.shape == (1024, 1024)
    assert model.text_encoder.embedding.embedding_dim == 300 and model.text_encoder.channels == 1024
    assert outputs.logits.shape == (2, 104, 104) and outputs.prior_logits.shape == (2, 1, 52, 52)
    assert (model.config.locating_loss_weight, model.config.loss_reduction) == (0.1, "sum")
    assert (LtsProcessor(tokenizer=word_tokenizer(WORDS)).threshold, model.config.max_text_length) == (0.25, 15)
    # ours, since the paper prints none: Darknet-53 alone has 40.6M
    assert sum(p.numel() for p in model.parameters()) == 59_146_017


def test_fusion_is_equations_5_to_7():
    """Against the equations in their printed order: upsample, then transform."""
    fusion = model_of().fusion.eval()
    random = torch.Generator().manual_seed(2)
    v1, v2, v3 = (torch.randn(1, c, s, s, generator=random) for c, s in ((16, 2), (8, 4), (8, 8)))
    sentence = torch.randn(2, 20, generator=random)

    def g(layer, x):
        return F.leaky_relu(layer.norm(layer.conv(x)), 0.1)

    with torch.no_grad():
        fused = fusion((v1, v2, v3), sentence, torch.tensor([0, 0]))
        text = F.leaky_relu(sentence @ fusion.text.weight.T + fusion.text.bias, 0.1)
        m1 = v1 * text[:, :, None, None]
        up = F.interpolate(m1, scale_factor=2, mode="bilinear")
        m2 = torch.cat([g(fusion.multimodal1, up), v2.expand(2, -1, -1, -1)], 1)
        up = F.interpolate(m2, scale_factor=2, mode="bilinear")
        m3 = torch.cat([g(fusion.multimodal2, up), v3.expand(2, -1, -1, -1)], 1)
    torch.testing.assert_close(fused, m3, atol=1e-5, rtol=1e-5)


def test_filtering_is_equation_8():
    """Responses of a cascade of two, pixel by pixel in numpy."""
    filtering = model_of(num_filterings=2).localization
    random = np.random.default_rng(3)
    fused, sentence = random.standard_normal((2, 16, 3, 4)), random.standard_normal((2, 20))
    expected = np.zeros((2, 2, 3, 4))
    weights = [(k.weight.detach().double().numpy(), k.bias.detach().double().numpy()) for k in filtering.kernels]
    for n in range(2):
        first, second = (weight @ sentence[n] + bias for weight, bias in weights)
        for y in range(3):
            for x in range(4):
                expected[n, 0, y, x] = first @ fused[n, :, y, x]
                expected[n, 1, y, x] = second[:16] @ fused[n, :, y, x] + second[16] * expected[n, 0, y, x]
    with torch.no_grad():
        responses = filtering.double()(torch.from_numpy(fused), None, None, torch.from_numpy(sentence))
    np.testing.assert_allclose(responses.numpy(), expected, atol=1e-10)


def test_word_filter_weighs_one_map_per_word():
    """The kernels are summed instead of the maps; padded words weigh nothing; it is not the sentence filter."""
    filtering = model_of(localization="word_filter").localization
    random = torch.Generator().manual_seed(4)
    fused, words = torch.randn(1, 16, 3, 4, generator=random), torch.randn(1, 5, 20, generator=random)
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    with torch.no_grad():
        response = filtering(fused, words, mask, None)
        kernels = filtering.kernels[0](words[0, :3])
        maps = (kernels @ fused[0].flatten(1)).reshape(3, 3, 4)
        weights = filtering.word_scores[0](words[0, :3]).softmax(0)
        sentence_map = maps.mean(0)
    torch.testing.assert_close(response[0, 0], (weights[:, :, None] * maps).sum(0))
    assert not torch.allclose(response[0, 0], sentence_map, atol=1e-3)


def test_transformer_layer_is_the_standard_decoder():
    """Equal to torch's own post-norm decoder layer over a memory of one token, whatever its query and key are."""
    layer = model_of(localization="transformer").localization.layers[0]
    reference = torch.nn.TransformerDecoderLayer(16, 2, 24, dropout=0.0, batch_first=True)
    attention, cross = reference.self_attn, reference.multihead_attn
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([layer.query.weight, layer.key.weight, layer.value.weight]))
        attention.in_proj_bias.copy_(torch.cat([layer.query.bias, layer.key.bias, layer.value.bias]))
        attention.out_proj.load_state_dict(layer.output.state_dict())
        text = torch.randn(2, 20)
        memory = layer.text_value(text)[:, None]  # the reference's value projection is the identity here
        cross.in_proj_weight[32:].copy_(torch.eye(16))
        cross.in_proj_bias[32:].zero_()
        cross.out_proj.load_state_dict(layer.text_output.state_dict())
        reference.linear1.load_state_dict(layer.ffn[0].state_dict())
        reference.linear2.load_state_dict(layer.ffn[2].state_dict())
        x = torch.randn(2, 12, 16)
        positions = torch.zeros(12, 16)  # torch's layer adds none
        torch.testing.assert_close(layer(x, positions, text), reference(x, memory), atol=1e-5, rtol=1e-5)
        moved = layer(x, torch.randn(12, 16), text)
    assert not torch.allclose(moved, layer(x, positions, text), atol=1e-3)


def test_losses_are_equations_11_to_13():
    outputs = model_of(num_filterings=2)(**batch(labels=labels()))
    segmentation = F.binary_cross_entropy(
        outputs.logits.sigmoid(), resize_labels(labels(), (16, 16)), reduction="sum"
    ) / len(labels())
    target = resize_labels(labels(), (8, 8))
    each = [F.binary_cross_entropy(p.sigmoid(), target, reduction="sum") / 3 for p in outputs.prior_logits.unbind(1)]
    torch.testing.assert_close(outputs.losses["segmentation"], segmentation)
    torch.testing.assert_close(outputs.losses["location"], (each[0] + each[1]) / 2)
    torch.testing.assert_close(outputs.loss, segmentation + 0.1 * (each[0] + each[1]) / 2)


def test_mean_losses_with_a_quarter_of_lambda_are_the_sums_scaled():
    summed = model_of()(**batch(labels=labels())).loss
    mean = model_of(loss_reduction="mean", locating_loss_weight=0.025)(**batch(labels=labels())).loss
    torch.testing.assert_close(mean * 16 * 16, summed)  # over the 16 x 16 pixels of stride 4


@pytest.mark.parametrize("localization", ["filter", "word_filter", "transformer"])
def test_padding_neighbours_and_calls_change_nothing(localization):
    model = model_of(localization=localization, num_filterings=2).eval()
    inputs = batch()
    with torch.no_grad():
        together = model(**inputs)
        for n in range(3):
            length = int(inputs["attention_mask"][n].sum())
            image = inputs["image_index"][n]
            alone = model(
                pixel_values=inputs["pixel_values"][image : image + 1],
                input_ids=inputs["input_ids"][n : n + 1, :length],
                attention_mask=inputs["attention_mask"][n : n + 1, :length],
            )
            torch.testing.assert_close(together.logits[n], alone.logits[0], atol=1e-5, rtol=0)
            torch.testing.assert_close(together.prior_logits[n], alone.prior_logits[0], atol=1e-5, rtol=0)


def test_coordinate_features_tell_position():
    """x, then y, of the cell centres in [-1, 1]; the model reads them only when asked."""
    grid = coordinates_like(torch.zeros(2, 5, 2, 4))
    assert grid.shape == (2, 2, 2, 4)
    torch.testing.assert_close(grid[0, 0], torch.tensor([[-0.75, -0.25, 0.25, 0.75]]).expand(2, -1))
    torch.testing.assert_close(grid[0, 1], torch.tensor([[-0.5], [0.5]]).expand(-1, 4))
    plain, placed = model_of(), model_of(coordinate_features=True)
    level = torch.ones(1, 16, 8, 8)
    for model, varies in ((plain, False), (placed, True)):
        levels = model.fusion.project([level, level[:, :, :4, :4], torch.ones(1, 24, 2, 2)])
        assert all((projected.detach().std((2, 3)) > 1e-3).any().item() is varies for projected in levels)


def test_positions_of_the_transformer_differ_everywhere():
    positions = sine_positions(torch.zeros(1, 16, 13, 52))
    assert positions.shape == (13 * 52, 16) and positions.abs().max() <= 1
    distances = torch.cdist(positions, positions) + 10 * torch.eye(len(positions))
    assert distances.min() > 1e-2


def test_activation_checkpointing_gives_the_same_gradients():
    model = model_of()
    gradients = []
    for switch in (model.activation_checkpointing_disable, model.activation_checkpointing_enable):
        switch()
        model.zero_grad()
        model(**batch(labels=labels())).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert model.is_activation_checkpointing
    for plain, recomputed in zip(*gradients):
        torch.testing.assert_close(plain, recomputed)


def test_export_keeps_numbers_with_more_expressions_than_traced():
    """torch.export with any number of images and expressions; the GRU fixes the padded text length."""
    model = model_of().eval()
    inputs = batch()
    expressions, images = torch.export.Dim("expressions", max=64), torch.export.Dim("images", max=64)
    text = {0: expressions}
    shapes = {"pixel_values": {0: images}, "input_ids": text, "attention_mask": text, "image_index": text}
    exported = torch.export.export(model, (), inputs, dynamic_shapes=shapes).module()
    more = inputs | {name: inputs[name][[0, 1, 2, 2, 0]] for name in ("input_ids", "attention_mask", "image_index")}
    with torch.no_grad():
        torch.testing.assert_close(exported(**more).logits, model(**more).logits)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fusion_dimension": 64}, "no field fusion_dimension"),
        ({"vision_config": {"nam": "darknet53"}}, "no field nam"),
        ({"localization": "attention"}, "localization"),
        ({"num_filterings": "two"}, "num_filterings"),
        ({"num_filterings": 0}, "num_filterings must be at least 1"),
        ({"fusion_dim": 15}, "must be even"),
        ({"aspp_rates": []}, "aspp_rates"),
        ({"locating_loss_weight": -0.1}, "must not be negative"),
        ({"vision_config": {"output_stages": [2, 3, 4]}}, "output_stages must be"),
        ({"localization": "none"}, "set locating_loss_weight=0.0"),
        ({"use_segmentation": False}, "set locating_loss_weight=0.0"),
        ({"localization": "none", "use_fusion": False, **NO_LOSS}, "expression would be ignored"),
        ({"localization": "none", "num_filterings": 2, **NO_LOSS}, "num_filterings=2"),
        ({"localization": "transformer", "fusion_dim": 18, "decoder_heads": 4}, "decoder_heads=4"),
    ],
)
def test_senseless_configurations_are_refused(fields, message):
    with pytest.raises(Exception, match=message):
        tiny_lts_config(**fields)


def test_configuration_round_trip(tmp_path):
    config = tiny_lts_config(localization="transformer", num_filterings=2)
    config.save_pretrained(tmp_path)
    loaded = LtsConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == LtsConfig.from_dict(config.to_dict()).to_dict()
    assert loaded.vision_config.arguments == config.vision_config.arguments and loaded.vision_config.name == "darknet53"
    assert {**loaded.to_dict(), "transformers_version": None} == {**config.to_dict(), "transformers_version": None}


def test_processor_is_the_papers():
    processor = LtsProcessor(tokenizer=word_tokenizer(WORDS))
    image = np.full((50, 90, 3), 128, np.uint8)
    inputs = processor(image, "the Red cup, " * 9)
    assert inputs["pixel_values"].shape == (1, 3, 416, 416)
    assert inputs["input_ids"].shape == (1, 15)
    assert inputs["input_ids"][0, :4].tolist() == [2, 3, 5, 1]  # lower-cased; the comma is not in the vocabulary
    config = tiny_lts_config(max_text_length=7)
    other = LtsProcessor.from_config(config, processor.tokenizer)
    assert (other.image_processor.image_size, other.max_text_length, other.threshold) == (64, 7, 0.25)


def test_gru_is_that_of_torch():
    """From its start to its gradients; only the class differs, for which torch.compile would cut its graph."""
    torch.manual_seed(0)
    theirs = torch.nn.GRU(5, 7, batch_first=True)
    torch.manual_seed(0)
    ours = Gru(5, 7)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    words, results = torch.randn(3, 4, 5), []
    for output, gru in ((ours(words), ours), (theirs(words)[0], theirs)):
        results.append([output, *torch.autograd.grad(output.square().sum(), list(gru.parameters()))])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0)
