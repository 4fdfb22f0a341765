"""What is MPG-LQGNet's own: its equations, the rows of its tables, and refusals. The contract that all architectures
share is in test_models.py."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_exports, formula
from torch.nn import functional as F

from hf_ris import (
    LavtConfig,
    LavtForReferringSegmentation,
    MpgLqgnetConfig,
    MpgLqgnetForReferringSegmentation,
    MpgLqgnetProcessor,
)
from hf_ris.models.modeling_mpg_lqgnet import BidirectionalSpatialAlignment, ChannelAttentionFusionGate
from hf_ris.models.positions import coordinates_like, sine_positions
from hf_ris.models.text_encoders import wordpiece_tokenizer
from hf_ris.training.build import build_config
from hf_ris.training.recipe import load_recipe


RECIPES = Path(__file__).parents[1] / "train" / "recipes" / "mpg_lqgnet"


def tiny_config(**fields) -> MpgLqgnetConfig:
    """A model of 0.15M parameters on 64x64 images; its maps have 16, 8, 4 and 2 cells a side."""
    arguments = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}
    text = {"vocab_size": 100, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    small = {
        "image_size": 64,
        "vision_config": {"arguments": arguments | {"drop_path_rate": 0.0}},
        "text_config": text | {"intermediate_size": 32, "max_position_embeddings": 32},
        "decoder_dim": 16,
        "query_dim": 32,
        "num_prior_layers": 2,
        "prior_heads": 4,
        "prior_ffn_dim": 24,
    }
    return MpgLqgnetConfig(**small | fields)


def tiny_model(**fields) -> MpgLqgnetForReferringSegmentation:
    torch.manual_seed(0)
    return MpgLqgnetForReferringSegmentation(tiny_config(**fields)).eval()


def tiny_inputs(height: int = 64, width: int = 64) -> dict[str, torch.Tensor]:
    """Two images, three expressions of 3 to 6 tokens."""
    random = torch.Generator().manual_seed(1)
    lengths = torch.tensor([6, 3, 4])
    return {
        "pixel_values": torch.randn(2, 3, height, width, generator=random),
        "input_ids": torch.randint(5, 100, (3, 6), generator=random),
        "attention_mask": (torch.arange(6) < lengths[:, None]).long(),
        "image_index": torch.tensor([0, 1, 1]),
    }


def squares(size: int) -> torch.Tensor:
    labels = torch.zeros(3, size, size)
    for index in range(3):
        labels[index, 4 + 8 * index : 30 + 8 * index, 5 * index : 5 * index + 25] = 1
    return labels


def seen_by(module: torch.nn.Module, model, inputs) -> tuple:
    """The arguments of a module during a forward pass."""
    seen = []
    handle = module.register_forward_pre_hook(lambda module, arguments: seen.append(arguments))
    with torch.no_grad():
        model(**inputs)
    handle.remove()
    return seen[0]


# --- the tables ------------------------------------------------------------------------------------------------------

NO_LQPG = "model.num_prior_layers=0 model.prior_loss_weight=0.0"
ROWS = {
    "table 2, no. 1": f"model.fusion=tile model.gate=none {NO_LQPG}",
    "table 2, no. 2": f"model.fusion=tile {NO_LQPG}",
    "table 2, no. 3": f"model.gate=none {NO_LQPG}",
    "table 2, no. 4": NO_LQPG,
    "table 2, no. 5": "model.gate=none",
    "table 2, no. 6": "model.prior_loss_weight=0.0",
    "ours": "",
    **{f"table 3, {stages}": f"model.query_stages=[{stages}]" for stages in ("1,2", "3,4", "1", "2", "3", "4")},
    **{
        f"table 4, {gate}": f"model.gate={gate}"
        for gate in ("single_channel", "spatial_channel", "spatial_spatial", "language")
    },
    **{f"table 5, {count} layers": f"model.num_prior_layers={count}" for count in (1, 3, 4, 5, 6, 7, 8)},
    "table 6": "model.coordinates=False",
}


@pytest.mark.parametrize("row", ROWS)
def test_every_row_of_the_tables_trains_by_recipe_overrides_alone(row):
    recipe = load_recipe(RECIPES / "refscenes.yaml", ROWS[row].split())
    config = build_config(recipe, words=100)
    torch.manual_seed(0)
    model = MpgLqgnetForReferringSegmentation(config)
    inputs = tiny_inputs(128, 128) | {"labels": squares(128)}
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    losses = []
    for _ in range(4):
        outputs = model(**inputs)
        losses.append(outputs.loss.item())
        optimizer.zero_grad()
        outputs.loss.backward()
        optimizer.step()
    assert losses[-1] < 0.95 * losses[0]
    assert outputs.logits.shape == (3, 128, 128)
    assert set(outputs.losses) == {"mask"} | ({"prior"} if config.prior_loss_weight else set())
    if config.num_prior_layers:  # patches of 8: the finest map has 16 cells a side
        assert outputs.prior_logits.shape == (3, config.num_prior_layers, 16, 16)
    else:
        assert outputs.prior_logits is None
    # a row's modules all work: without L_prior the mask reads the last prior alone, everything else is always taught
    silent = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    first_prior = {f"prior_generator.layers.0.prior.{kind}" for kind in ("weight", "bias")}
    assert silent == (first_prior if row == "table 2, no. 6" else set())
    listed = "|".join(model._keys_without_gradient)
    assert silent == {name for name, _ in model.named_parameters() if listed and re.search(listed, name)}


@pytest.mark.parametrize("stages", [[1, 2], [3, 4], [1], [2], [3], [4], [1, 2, 3, 4]])
def test_queries_of_the_right_stages_reach_the_generator(stages):
    full, inputs = tiny_model(), tiny_inputs()
    model = tiny_model(query_stages=stages)
    state = full.state_dict()
    for name in [name for name in state if name.endswith(".prior.weight")]:  # (2, level x query x head)
        columns = state[name].view(2, 3, 4, 4)[:, :, [stage - 1 for stage in stages]]
        state[name] = columns.flatten(1)
    own = model.state_dict()
    model.load_state_dict({name: state[name] for name in own})
    absent = {name.split(".")[1] for name in state.keys() - own.keys()}
    assert absent == {str(stage - 1) for stage in range(1, 5) if stage not in stages}
    queries = seen_by(model.prior_generator, model, inputs)[0]
    everything = seen_by(full.prior_generator, full, inputs)[0]
    assert queries.shape == (3, len(stages), 32)
    torch.testing.assert_close(queries, everything[:, [stage - 1 for stage in stages]])
    with torch.no_grad():
        visual = full.encode_image(inputs["pixel_values"])[0].index_select(0, inputs["image_index"])
        words = full.encode_text(inputs["input_ids"], inputs["attention_mask"])
        _, in_order = full.fuse(visual, words, inputs["attention_mask"])
    assert not torch.allclose(in_order[0], in_order[1])
    torch.testing.assert_close(queries, torch.stack([in_order[stage - 1] for stage in stages], 1))


def test_paper_configuration():
    """Sizes that the paper prints, and Table 7's parameters without BERT, to which LAVT's own fit."""
    with torch.device("meta"):
        model = MpgLqgnetForReferringSegmentation(MpgLqgnetConfig())
        windows = {"name": "swin_base_patch4_window7_224", "arguments": {"window_size": 7}}
        lavt = LavtForReferringSegmentation(LavtConfig(vision_config=windows))
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    bert = parts.pop("text_encoder")
    assert parts == {
        "vision_encoder": 86_745_016,
        "fusions": 9_804_416,
        "gates": 348_544,
        "pixel_decoder": 21_308_416,
        "prior_generator": 6_708_108,
        "mask_head": 522,
    }
    assert sum(parts.values()) == pytest.approx(125.75e6, rel=0.01)
    assert sum(p.numel() for p in lavt.parameters()) - bert == pytest.approx(118.71e6, abs=5e3)
    layers = model.prior_generator.layers
    assert len(layers) == 6 and all(layer.prior.weight.shape == (2, 96) for layer in layers)
    config = model.config
    assert (config.image_size, config.max_text_length, config.query_dim, config.prior_heads) == (448, 30, 256, 8)
    assert (config.prior_loss_weight, config.loss_weights) == (0.1, [1.0, 1.0])


@pytest.mark.parametrize("name", ["refcoco", "refcoco+", "refcocog"])
def test_recipes_hold_the_papers_hyperparameters(name):
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    assert (recipe.training.epochs, recipe.training.batch_size, recipe.schedule.name) == (35, 8, "poly")
    assert (recipe.optimizer.name, recipe.optimizer.learning_rate, recipe.optimizer.weight_decay) == (
        "adamw",
        1.5e-5,
        0.01,
    )
    assert not recipe.data.augment
    assert build_config(recipe, words=30_522).to_dict() == MpgLqgnetConfig().to_dict()


# --- the equations ---------------------------------------------------------------------------------------------------


def alignment(query_dim: int | None = 7) -> BidirectionalSpatialAlignment:
    torch.manual_seed(0)
    return BidirectionalSpatialAlignment(8, 6, query_dim).double()


def pixels_and_words() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two samples, 15 pixels of 8 channels, 5 words of 6, of which 3 and 5 are no padding."""
    random = torch.Generator().manual_seed(2)
    visual = torch.randn(2, 15, 8, dtype=torch.float64, generator=random)
    words = torch.randn(2, 5, 6, dtype=torch.float64, generator=random)
    return visual, words, torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])


def test_attention_sums():
    """Eq. 6: 1 over the words, nothing on padding. Eq. 7: 1 over the pixels."""
    visual, words, mask = pixels_and_words()
    over_words, over_pixels = alignment().attention(visual, words, mask)
    assert over_words.shape == (2, 15, 5) and over_pixels.shape == (2, 5, 15)
    torch.testing.assert_close(over_words.sum(-1), torch.ones(2, 15, dtype=torch.float64))
    torch.testing.assert_close(over_pixels.sum(-1), torch.ones(2, 5, dtype=torch.float64))
    assert not over_words[0, :, 3:].any() and (over_words[0, :, :3] > 0).all() and (over_words[1] > 0).all()
    assert over_words[1].std() > 1e-3 and over_pixels[1].std() > 1e-3


def test_alignment_is_equations_1_to_9():
    module, (visual, words, mask) = alignment(), pixels_and_words()
    weights = {name: p.detach().numpy() for name, p in module.named_parameters()}

    def norm(x):
        return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)

    def softmax(x):
        return np.exp(x) / np.exp(x).sum(-1, keepdims=True)

    with torch.no_grad():
        fused, query = module(visual, words, mask)
    for n in range(2):
        v, count = visual[n].numpy(), int(mask[n].sum())
        w = words[n, :count].numpy()  # as if there were no padding at all
        v_q, v_v = norm(v @ weights["visual_query.weight"].T), norm(v @ weights["visual_value.weight"].T)
        l_k = w @ weights["word_key.weight"].T + weights["word_key.bias"]
        l_v = w @ weights["word_value.weight"].T + weights["word_value.bias"]
        scores = v_q @ l_k.T / math.sqrt(8)
        v_f = np.concatenate([v, softmax(scores) @ l_v], 1)
        l_f = np.concatenate([w, softmax(scores.T) @ v_v], 1)
        f = np.maximum(v_f @ weights["visual_output.weight"].T + weights["visual_output.bias"], 0)
        q = np.maximum(l_f @ weights["word_output.weight"].T + weights["word_output.bias"], 0).mean(0)
        np.testing.assert_allclose(fused[n], f, atol=1e-10)
        np.testing.assert_allclose(query[n], q, atol=1e-10)


def test_alignment_without_query_gives_the_same_map():
    module, (visual, words, mask) = alignment(), pixels_and_words()
    without = alignment(query_dim=None)
    own = without.state_dict()
    assert {name.split(".")[0] for name in module.state_dict().keys() - own.keys()} == {"visual_value", "word_output"}
    without.load_state_dict({name: module.state_dict()[name] for name in own})
    fused, query = without(visual, words, mask)
    assert query is None
    torch.testing.assert_close(fused, module(visual, words, mask)[0])


def test_tile_fuses_the_mean_word_equally_everywhere():
    model = tiny_model(fusion="tile", num_prior_layers=0, prior_loss_weight=0.0)
    module, random = model.fusions[1], torch.Generator().manual_seed(3)
    visual, words = torch.randn(1, 9, 16, generator=random), torch.randn(1, 4, 16, generator=random)
    mask = torch.tensor([[1, 1, 1, 0]])
    with torch.no_grad():
        fused, query = module(visual, words, mask)
        tiled = torch.cat([visual, words[:, :3].mean(1, keepdim=True).expand(-1, 9, -1)], -1)
        weight = torch.cat([module.visual.weight, module.sentence.weight], 1)
        expected = F.relu(tiled @ weight.T + module.visual.bias)
    assert query is None
    torch.testing.assert_close(fused, expected)


def gate_of(**fields) -> ChannelAttentionFusionGate:
    """A gate of width 8 whose batch statistics and affine parameters are not trivial."""
    gate = tiny_model(gate_reduction=2, **fields).gates[0].double()
    random = torch.Generator().manual_seed(4)
    for module in gate.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.copy_(torch.rand(tensor.shape, generator=random) + 0.5)
    return gate


@pytest.mark.parametrize(
    ("gate", "spatial"),
    [
        ("channel_channel", [False, False]),
        ("single_channel", [False]),
        ("spatial_channel", [True, False]),
        ("spatial_spatial", [True, True]),
    ],
)
def test_gate_is_equations_10_and_11(gate, spatial):
    module = gate_of(gate=gate)
    x = torch.randn(2, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))

    def norm(layer, v):
        return (v - layer.running_mean) / (layer.running_var + 1e-5).sqrt() * layer.weight + layer.bias

    with torch.no_grad():
        weights = module(x)
        assert weights.shape == (2, 5 if any(spatial) else 1, 8)
        for n in range(2):
            for t in range(5):
                total = 0
                for path, of_position in zip(module.paths, spatial, strict=True):
                    v = x[n, t] if of_position else x[n].mean(0)
                    hidden = F.relu(norm(path.norm1, path.conv1.weight @ v))
                    total = total + norm(path.norm2, path.conv2.weight @ hidden)
                torch.testing.assert_close(weights[n].expand(5, -1)[t], total.sigmoid())


@pytest.mark.parametrize("gate", ["channel_channel", "language", "none"])
def test_what_passes_to_the_next_stage(gate):
    """V' = V + F_G; the fusion gate looks at F + V, the language gate at F alone, and without gate all of F passes."""
    model = tiny_model(gate=gate)
    random = torch.Generator().manual_seed(6)
    fused, visual = torch.randn(2, 3, 9, 16, generator=random)
    with torch.no_grad():
        gated = model.gated(1, fused, visual)
        if gate == "channel_channel":
            expected = fused * model.gates[1](fused + visual)
        elif gate == "language":
            hidden = F.relu(fused @ model.gates[1].hidden.weight.T)
            expected = fused * torch.tanh(hidden @ model.gates[1].output.weight.T)
        else:
            expected = fused
    torch.testing.assert_close(gated, expected)


def test_gates_feed_only_the_next_stages():
    model, inputs = tiny_model(), tiny_inputs()

    def fused():
        with torch.no_grad():
            visual = model.encode_image(inputs["pixel_values"])[0].index_select(0, inputs["image_index"])
            words = model.encode_text(inputs["input_ids"], inputs["attention_mask"])
            return model.fuse(visual, words, inputs["attention_mask"])[0]

    assert len(model.gates) == 3
    before = fused()
    assert [tuple(x.shape) for x in before] == [(3, 8, 16, 16), (3, 16, 8, 8), (3, 32, 4, 4), (3, 64, 2, 2)]
    torch.nn.init.normal_(model.gates[1].paths[0].norm2.bias)
    assert [not torch.equal(x, y) for x, y in zip(before, fused())] == [False, False, True, True]


def test_pixel_decoder_is_equations_12_and_13():
    decoder = tiny_model().pixel_decoder
    random = torch.Generator().manual_seed(7)
    maps = [torch.randn(1, c, s, s, generator=random) for c, s in ((8, 16), (16, 8), (32, 4), (64, 2))]

    def block(level, x):
        x = F.relu(level.norm1(F.conv2d(x, level.conv1.weight, padding=1)))
        return F.relu(level.norm2(F.conv2d(x, level.conv2.weight, padding=1)))

    with torch.no_grad():
        results, x = decoder(maps), maps[3]
        for index in (3, 2, 1, 0):
            if index < 3:
                up = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
                x = block(decoder.levels[index], torch.cat([up, maps[index]], 1))
            projection, norm = decoder.projections[index]
            linear = torch.einsum("dc,nchw->ndhw", projection.weight[..., 0, 0], x) + projection.bias[:, None, None]
            expected = F.group_norm(linear, 32, norm.weight, norm.bias)
            torch.testing.assert_close(results[index], expected, atol=1e-5, rtol=1e-5)


def test_generator_is_equations_14_and_15():
    """The prior from the printed steps: scores by level, query and head, upsampled to 1/8, then one linear layer."""
    generator = tiny_model().prior_generator.double()
    random = torch.Generator().manual_seed(8)
    levels = [torch.randn(1, 32, s, s, dtype=torch.float64, generator=random) for s in (16, 8, 4, 2)]
    queries = torch.randn(1, 4, 32, dtype=torch.float64, generator=random)
    with torch.no_grad():
        priors, layer = generator(queries, levels), generator.layers[0]
        channels = []
        for level in levels[1:]:
            positions = sine_positions(level).T.unflatten(1, level.shape[-2:])
            key = torch.einsum("dc,chw->dhw", layer.key.weight, level[0] + positions) + layer.key.bias[:, None, None]
            for query in layer.query(queries[0]):
                for head in range(4):
                    part = slice(8 * head, 8 * head + 8)
                    score = torch.einsum("d,dhw->hw", query[part], key[part]) / math.sqrt(8)
                    channels.append(F.interpolate(score[None, None], (8, 8), mode="bilinear", align_corners=True)[0, 0])
        prior = torch.einsum("kc,chw->khw", layer.prior.weight, torch.stack(channels))
        prior = prior + layer.prior.bias[:, None, None]
        prior = F.interpolate(prior[None], (16, 16), mode="bilinear", align_corners=True)
    assert priors.shape == (1, 2, 2, 16, 16) and len(channels) == 3 * 4 * 4
    torch.testing.assert_close(priors[:, 0], prior)


@pytest.mark.parametrize("residual", [True, False])
def test_refined_queries_are_standard_attention(residual):
    """Equal to torch's multi-head attention, then residual and LayerNorm (or not), then those of the network."""
    layer = tiny_model(prior_residual=residual).prior_generator.layers[0]
    reference = torch.nn.MultiheadAttention(32, 4, batch_first=True)
    random = torch.Generator().manual_seed(9)
    queries, pixels = torch.randn(2, 4, 32, generator=random), torch.randn(2, 84, 32, generator=random)
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([layer.query.weight, layer.key.weight, layer.value.weight]))
        reference.in_proj_bias.copy_(torch.cat([layer.query.bias, layer.key.bias, layer.value.bias]))
        reference.out_proj.load_state_dict(layer.output.state_dict())
        refined = layer(queries, pixels, [(8, 8), (4, 4), (2, 2)])[1]
        x = reference(queries, pixels, pixels)[0]
        if residual:
            x = layer.attention_norm(queries + x)
        expected = layer.ffn_norm(x + layer.ffn(x))
    torch.testing.assert_close(refined, expected, atol=1e-5, rtol=1e-5)
    assert layer.attention_norm is None or residual


def test_each_layer_reads_the_queries_that_the_one_before_refined():
    model, inputs = tiny_model(num_prior_layers=3), tiny_inputs()
    with torch.no_grad():
        before = model(**inputs).prior_logits
        torch.nn.init.normal_(model.prior_generator.layers[1].ffn[2].bias)
        after = model(**inputs).prior_logits
    assert [torch.equal(before[:, k], after[:, k]) for k in range(3)] == [True, True, False]


def test_mask_head_is_equation_16():
    """F_D1, the last prior and coordinates side by side; prior_logits are foreground minus background."""
    model, inputs = tiny_model(), tiny_inputs()
    decoded, prior = seen_by(model.mask_head, model, inputs)
    with torch.no_grad():
        outputs = model(**inputs)
        weight, bias = model.mask_head.classifier.weight[..., 0, 0], model.mask_head.classifier.bias
        joined = torch.cat([decoded, prior, coordinates_like(decoded)], 1)
        scores = torch.einsum("kc,nchw->nkhw", weight, joined) + bias[:, None, None]
        scores = F.interpolate(scores, (64, 64), mode="bilinear", align_corners=True)
    torch.testing.assert_close(outputs.logits, scores[:, 1] - scores[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(outputs.prior_logits[:, -1], prior[:, 1] - prior[:, 0])
    assert weight.shape == (2, 32 + 2 + 2)
    assert tiny_model(coordinates=False).mask_head.classifier.in_channels == 32 + 2
    without = tiny_model(num_prior_layers=0, prior_loss_weight=0.0)
    assert without.mask_head.classifier.in_channels == 32 + 2 and len(without.pixel_decoder.projections) == 1


@pytest.mark.parametrize("weights", [[1.0, 1.0], [0.5, 2.0]])
def test_losses_are_equation_17(weights):
    """Two-class cross-entropy sees the difference of the scores alone; the priors are compared at the masks' size."""
    labels = squares(64)
    outputs = tiny_model(loss_weights=weights)(**tiny_inputs(), labels=labels)
    weight = torch.where(labels > 0, weights[1], weights[0])

    def cross_entropy(logits):
        return F.binary_cross_entropy_with_logits(logits, labels, weight, reduction="sum") / weight.sum()

    up = F.interpolate(outputs.prior_logits, (64, 64), mode="bilinear", align_corners=True)
    each = [cross_entropy(prior) for prior in up.unbind(1)]
    torch.testing.assert_close(outputs.losses["mask"], cross_entropy(outputs.logits))
    torch.testing.assert_close(outputs.losses["prior"], (each[0] + each[1]) / 2)
    torch.testing.assert_close(outputs.loss, cross_entropy(outputs.logits) + 0.1 * (each[0] + each[1]) / 2)


# of `test_numerics_are_frozen`, for each expression: logits at row 20, last priors at row 5
FROZEN_LOGITS = [
    [-4.1324191273, -5.1618440017, -5.1132339798, -4.9294217564],
    [-4.0808696240, -5.0889777148, -4.9558752976, -5.0259674750],
    [-4.0651309891, -5.0846448158, -4.9547768880, -5.0197027858],
]
FROZEN_PRIORS = [
    [6.3507256972, 8.1288922922, 8.3161786215, 8.1705474084],
    [6.1369893690, 8.1125789348, 7.9590314282, 7.8555737320],
    [6.1896908892, 8.1089435938, 7.9639107211, 7.8915126755],
]


def test_numerics_are_frozen():
    """The logits of weights that are a formula; a change of any convention moves them."""
    model = tiny_model().double()
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.copy_(formula(parameter.numel(), index).view_as(parameter) / parameter[0].numel() ** 0.5)
        pixels = formula(2 * 3 * 50 * 70, 0).view(2, 3, 50, 70)
        outputs = model(**tiny_inputs() | {"pixel_values": pixels})
    assert outputs.logits.shape == (3, 50, 70) and outputs.prior_logits.shape == (3, 2, 13, 18)
    expected = torch.tensor(FROZEN_LOGITS, dtype=torch.float64)
    torch.testing.assert_close(outputs.logits[:, 20, ::20], expected, atol=1e-6, rtol=0)
    expected = torch.tensor(FROZEN_PRIORS, dtype=torch.float64)
    torch.testing.assert_close(outputs.prior_logits[:, -1, 5, ::5], expected, atol=1e-6, rtol=0)


@pytest.mark.slow
def test_torch_export_with_free_batch_sizes():
    assert_exports(tiny_model(), tiny_inputs(), 100, "logits", "prior_logits")


# --- processor and refusals ------------------------------------------------------------------------------------------


def test_processor_is_the_papers():
    tokenizer = wordpiece_tokenizer(["red", "cup"])
    inputs = MpgLqgnetProcessor(tokenizer=tokenizer)(np.full((50, 90, 3), 128, np.uint8), "red cup " * 20)
    assert inputs["pixel_values"].shape == (1, 3, 448, 448)
    assert inputs["input_ids"].shape == (1, 30) and inputs["input_ids"][0, -1] == tokenizer.sep_token_id
    other = MpgLqgnetProcessor.from_config(tiny_config(max_text_length=7), tokenizer)
    assert (other.image_processor.image_size, other.max_text_length, other.threshold) == (64, 7, 0.5)


def test_one_expression_cannot_train_the_gates_batch_norm():
    inputs = {name: value[:1] for name, value in tiny_inputs().items()} | {"labels": squares(64)[:1]}
    with pytest.raises(ValueError, match="give at least two, or set gate_norm='layer'"):
        tiny_model().train()(**inputs)
    for fields in ({"gate_norm": "layer"}, {"gate": "spatial_spatial"}, {"gate": "language"}, {"gate": "none"}):
        model = tiny_model(**fields).train()
        model(**inputs).loss.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())
    assert tiny_model()(**inputs).loss.isfinite()  # in eval mode


def test_gates_without_batch_statistics_leave_expressions_alone_in_training_too():
    model, inputs = tiny_model(gate_norm="layer").train(), tiny_inputs()

    def passed(count):
        with torch.no_grad():
            visual = model.encode_image(inputs["pixel_values"])[0].index_select(0, inputs["image_index"])[:count]
            words = model.encode_text(inputs["input_ids"], inputs["attention_mask"])[:count]
            return model.fuse(visual, words, inputs["attention_mask"][:count])[0][3]

    for module in model.text_encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    torch.testing.assert_close(passed(1), passed(3)[:1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fusions": "tile"}, "no field fusions"),
        ({"gate": "spatial"}, "gate"),
        ({"query_stages": []}, "query_stages takes one or more stages"),
        ({"query_stages": [2, 1]}, "query_stages takes .* in rising order, got \\[2, 1\\]"),
        ({"query_stages": [0, 1]}, "query_stages takes"),
        ({"query_dim": 48}, "query_dim must be a multiple of"),
        ({"query_dim": 32, "prior_heads": 5}, "prior_heads=5 must divide query_dim=32"),
        ({"prior_heads": 0}, "prior_heads must be at least 1"),
        ({"num_prior_layers": -1}, "num_prior_layers must not be negative"),
        ({"prior_loss_weight": -0.1}, "prior_loss_weight must not be negative"),
        ({"num_prior_layers": 0}, "set prior_loss_weight=0.0 \\(got 0.1\\)"),
        ({"fusion": "tile"}, "makes no language queries; set num_prior_layers=0"),
        ({"loss_weights": [1]}, "loss_weights takes two"),
        ({"loss_weights": [0, 1]}, "loss_weights takes two"),
        ({"vision_config": {"name": "darknet53"}}, "takes a timm swin_"),
        ({"vision_config": {"output_stages": [3, 4, 5]}}, "output_stages"),
        ({"max_text_length": 33}, "max_position_embeddings=32"),
    ],
)
def test_senseless_configurations_are_refused(fields, message):
    with pytest.raises(Exception, match=message):
        tiny_config(**fields)


def test_refusals_of_the_model():
    with pytest.raises(ValueError, match="gate_reduction=3 does not divide a stage of width 8"):
        tiny_model(gate_reduction=3)
    model, inputs = tiny_model(), tiny_inputs()
    with pytest.raises(ValueError, match="no pixel_mask"):
        model(**inputs, pixel_mask=torch.ones(2, 64, 64))
    del inputs["image_index"]
    with pytest.raises(ValueError, match="pass image_index"):
        model(**inputs)
