"""The neck, the queries and the Vision-Language Aligner of EAVL against their equations, and in CRIS, VLT and LAVT."""

import math

import pytest
import torch
from conftest import ROOT
from torch.nn import functional as F
from transformers import AutoModelForImageSegmentation

from hf_ris.models.aligner import MultiQueryGenerator, VisionLanguageAligner, dynamic_convolution
from hf_ris.models.fusion_neck import FusionNeck
from hf_ris.models.positions import coordinates_like
from hf_ris.training.build import build_config
from hf_ris.training.recipe import load_recipe


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """In eval mode and float64, with batch norms that do something."""
    random = torch.Generator().manual_seed(0)
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            for tensor in (part.weight.data, part.running_var):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=random))
            for tensor in (part.bias.data, part.running_mean):
                tensor.copy_(0.3 * torch.randn(tensor.shape, generator=random))
    return module.double().eval()


def levels_of(channels: list[int], sizes: list[int], batch: int = 2) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return [
        torch.randn(batch, width, side, side, generator=random, dtype=torch.float64)
        for width, side in zip(channels, sizes, strict=True)
    ]


def up(x: torch.Tensor, side: int) -> torch.Tensor:
    return F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)


def printed_neck(neck: FusionNeck, levels: list[torch.Tensor], target: int, sentence: torch.Tensor | None):
    """Eq. 2-6 in their printed order: upsample, concatenate, then convolve the whole."""
    side = levels[target].shape[-1]
    levels = [F.avg_pool2d(level, level.shape[-1] // side) for level in levels[:target]] + levels[target:]

    def joined(parts):
        return torch.cat([part.weight for part in parts], 1)

    visual = [F.relu(block.norm(block.conv(level))) for block, level in zip(neck.visual, levels)]
    maps = [visual[-1]]
    if sentence is not None:
        maps = [visual[-1] * F.relu(sentence @ neck.text.weight.T + neck.text.bias)[:, :, None, None]]
    weights = [joined([neck.aggregate_fused[-1]])]
    for index in reversed(range(len(levels) - 1)):
        parts = [neck.step_fused[index]] + ([neck.step_visual[index]] if index < len(levels) - 2 else [])
        fused = F.conv2d(up(maps[-1], visual[index].shape[-1]), joined(parts))
        maps.append(torch.cat([F.relu(neck.step_norms[index](fused)), visual[index]], 1))
        weights.append(joined([neck.aggregate_fused[index], neck.aggregate_visual[index]]))
    x = F.conv2d(torch.cat([up(one, side) for one in maps], 1), torch.cat(weights, 1))
    x = F.relu(neck.aggregate_norm(x))
    x = F.conv2d(torch.cat([x, coordinates_like(x)], 1), neck.coordinates.conv.weight, padding=1)
    return F.relu(neck.coordinates.norm(x))


@pytest.mark.parametrize(
    ("sizes", "target"), [([8, 4, 2], 1), ([8, 4, 2], 0), ([8, 4, 2, 1], 0), ([8, 4, 2, 1], 1), ([16, 8, 4, 2], 2)]
)
@pytest.mark.parametrize("text", [True, False])
def test_neck_is_equations_2_to_6(sizes, target, text):
    torch.manual_seed(0)
    channels = [3, 4, 6, 5][: len(sizes)]
    neck = randomised(FusionNeck(channels, target, 6, 7 if text else None))
    levels = levels_of(channels, sizes)
    sentence = torch.randn(3, 7, dtype=torch.float64) if text else None
    index = torch.tensor([1, 0, 1])
    with torch.no_grad():
        fused = neck([part.index_select(0, index) for part in neck.project(levels)], sentence)
        expected = printed_neck(neck, [level[index] for level in levels], target, sentence)
    assert fused.shape == (3, 6, sizes[target], sizes[target])
    torch.testing.assert_close(fused, expected, atol=1e-10, rtol=0)


def generator_of(image_dim: int | None = 5) -> MultiQueryGenerator:
    torch.manual_seed(0)
    text_dim = 20 if image_dim else 7
    return randomised(MultiQueryGenerator([3, 4, 5], 1, 8, 4, text_dim, 24, 3, image_dim))


def test_queries_are_equations_7_to_10():
    """Query by query and word by word; words that are padding get no weight."""
    generator = generator_of()
    words, image = torch.randn(2, 4, 20, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    levels = levels_of([3, 4, 5], [8, 4, 2])
    with torch.no_grad():
        queries = generator(generator.project(levels), words, mask, image)
        dense = generator.reduce(generator.neck(generator.neck.project(levels))).flatten(2)
        for n in range(2):
            global_part = F.relu(generator.image(image[n]))
            fused = [F.relu(generator.words(word)) * global_part for word in words[n, : mask[n].sum()]]
            for q in range(3):
                look = F.relu(generator.dense(dense[n, q]))
                scores = torch.stack([look @ F.relu(generator.key(word)) for word in fused])
                values = torch.stack([F.relu(generator.value(word)) for word in fused])
                torch.testing.assert_close(queries[n, q], scores.softmax(0) @ values)
        weights = generator.attention(generator.project(levels), generator.fuse(words, image), mask)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, dtype=torch.float64))
    assert (weights[0, :, 3] == 0).all() and weights[0].std(0).max() > 1e-4  # queries weigh words differently


def test_without_the_global_vision_feature_words_enter_as_they_are():
    generator = generator_of(image_dim=None)
    words = torch.randn(2, 4, 7, dtype=torch.float64)
    assert generator.fuse(words, None) is words
    assert not [name for name, _ in generator.named_parameters() if name.startswith(("image.", "words."))]


def test_another_image_size_is_refused():
    with pytest.raises(ValueError, match="read a map of 4x4, of images of the config's image_size; .* has 8x2"):
        levels = [torch.randn(1, width, 4 * k, k, dtype=torch.float64) for width, k in ((3, 4), (4, 2), (5, 1))]
        generator_of().project(levels)


def test_two_by_two_case_by_hand():
    """Eq. 11-14 on one channel of 2x2 pixels with two queries, computed on paper."""
    aligner = VisionLanguageAligner(query_dim=2, feature_dim=1, heads=1).double().eval()
    estimator = aligner.query_estimator
    # rows: the nine cells, then the bias; columns: what the two parts of a query add to them
    weight = torch.zeros(10, 2)
    weight[4, 0], weight[5, 0], weight[9, 0] = 1, 2, 0.5  # middle, right of it
    weight[4, 1], weight[7, 1], weight[9, 1] = -0.5, 0.5, -0.5  # middle, below it; the second query is (0, 2)
    with torch.no_grad():
        aligner.mask_generator.kernels.weight.copy_(weight)
        aligner.mask_generator.kernels.bias.zero_()
        estimator.attention.in_proj_weight.copy_(torch.eye(2).repeat(3, 1))
        estimator.attention.in_proj_bias.zero_()
        estimator.attention.out_proj.weight.copy_(torch.eye(2))
        estimator.attention.out_proj.bias.zero_()
        estimator.score.weight.copy_(torch.tensor([[1.0, 0.0]]))
        features = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]], dtype=torch.float64)
        logits, masks, weights = aligner(features, torch.tensor([[[1.0, 0.0], [0.0, 2.0]]], dtype=torch.float64))
    first, second = [[5.5, 2.5], [11.5, 4.5]], [[1.0, 1.0], [-4.0, -5.0]]
    torch.testing.assert_close(masks[0], torch.tensor([first, second], dtype=torch.float64))
    # the first query attends itself with 1/sqrt(2) against 0, the second itself with 4/sqrt(2): their first parts
    a, b = 1 / (1 + math.exp(-(0.5**0.5))), 1 / (1 + math.exp(8**0.5))
    share = 1 / (1 + math.exp(b - a))
    assert (round(a, 4), round(b, 4), round(share, 4)) == (0.6698, 0.0558, 0.6488)
    torch.testing.assert_close(weights[0], torch.tensor([share, 1 - share], dtype=torch.float64))
    expected = [[share * f + (1 - share) * s for f, s in zip(*rows)] for rows in zip(first, second)]
    torch.testing.assert_close(logits[0], torch.tensor(expected, dtype=torch.float64))


def test_dynamic_convolution_is_a_convolution_of_each_map():
    features = torch.randn(3, 4, 5, 6, dtype=torch.float64)
    kernels, biases = torch.randn(3, 2, 4, 3, 3, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    result = dynamic_convolution(features, kernels, biases)
    for n in range(3):
        torch.testing.assert_close(result[n : n + 1], F.conv2d(features[n : n + 1], kernels[n], biases[n], padding=1))


def aligner_of(estimator: bool = True) -> tuple[VisionLanguageAligner, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    aligner = VisionLanguageAligner(8, 4, 2, use_estimator=estimator).double().eval()
    return aligner, torch.randn(2, 4, 6, 6, dtype=torch.float64), torch.randn(2, 5, 8, dtype=torch.float64)


def test_order_of_queries_says_nothing():
    aligner, features, queries = aligner_of()
    order = torch.tensor([3, 0, 4, 1, 2])
    with torch.no_grad():
        logits, masks, weights = aligner(features, queries)
        permuted = aligner(features, queries[:, order])
    torch.testing.assert_close(weights.sum(1), torch.ones(2, dtype=torch.float64))
    assert weights.std(1).min() > 1e-3
    for result, expected in zip(permuted, (logits, masks[:, order], weights[:, order])):
        torch.testing.assert_close(result, expected)


def test_one_query_is_a_single_dynamic_kernel():
    aligner, features, queries = aligner_of()
    with torch.no_grad():
        logits, masks, weights = aligner(features, queries[:, :1])
        kernel = aligner.mask_generator.kernels(queries[:, 0])
        expected = [
            F.conv2d(features[n : n + 1], kernel[n, :-1].view(1, 4, 3, 3), kernel[n, -1:], padding=1)[0, 0]
            for n in range(2)
        ]
    assert (weights == 1).all() and torch.equal(logits, masks[:, 0])
    torch.testing.assert_close(logits, torch.stack(expected))


@pytest.mark.parametrize("estimator", [True, False])
def test_training_sums_kernels_instead_of_masks(estimator):
    aligner, features, queries = aligner_of(estimator)
    logits, masks, weights = aligner(features, queries)
    torch.testing.assert_close(logits, (weights[:, :, None, None] * masks).sum(1))
    if not estimator:
        torch.testing.assert_close(weights, torch.full((2, 5), 0.2, dtype=torch.float64))
    trained, absent, same = aligner.train()(features, queries)
    torch.testing.assert_close(trained, logits)
    torch.testing.assert_close(same, weights)
    assert absent is None


# --- in other architectures (Table V) --------------------------------------------------------------------------------

# side of the images (LAVT's patches are of 8, and one position is nothing to its instance norm), what makes the
# recipe's model smaller, the fixed kernel that the aligner replaces, and the number of queries
HOSTS = {
    "cris": (64, [], "projector.kernel.", 24),
    "vlt": (64, [], "mask.", 16),
    "lavt": (128, ["model.aligner_dim=32"], "decoder.classifier.", 24),
}


def host_of(name: str, *overrides: str):
    side, smaller, _, _ = HOSTS[name]
    path = ROOT / "train" / "recipes" / name / "refscenes.yaml"
    recipe = load_recipe(path, [f"model.image_size={side}", *smaller, *overrides])
    torch.manual_seed(0)
    return AutoModelForImageSegmentation.from_config(build_config(recipe, 60))


@pytest.mark.parametrize("name", HOSTS)
def test_aligner_trains_in_other_architectures(name):
    """By one override; the aligner's parameters are all that is new, the fixed kernel's all that is gone."""
    side, _, replaced, queries = HOSTS[name]
    model, plain = host_of(name, "model.aligner=true").train(), host_of(name)
    names, before = (set(dict(one.named_parameters())) for one in (model, plain))
    added = names - before
    assert before - names == {key for key in before if key.startswith(replaced)} != set()
    assert added == {key for key in names if "aligner." in key or key.startswith("query_generator.")} - before
    random = torch.Generator().manual_seed(1)
    labels = torch.zeros(3, side, side)
    labels[0, : side // 3, : side // 2], labels[1, 10:50, side // 2 :], labels[2, 30:, 5:25] = 1, 1, 1
    inputs = {
        "pixel_values": torch.randn(2, 3, side, side, generator=random),
        "input_ids": torch.randint(5, 60, (3, 6), generator=random),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]]),
        "image_index": torch.tensor([0, 1, 1]),
    }
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    losses, moved = [], set()
    for _ in range(8):
        outputs = model(**inputs, labels=labels)
        losses.append(outputs.loss.item())
        optimizer.zero_grad()
        outputs.loss.backward()
        moved |= {key for key, p in model.named_parameters() if key in added and p.grad is not None and p.grad.any()}
        optimizer.step()
    assert moved == added
    assert losses[-1] < 0.9 * losses[0]
    with torch.no_grad():
        outputs = model.eval()(**inputs)
    assert outputs.query_logits.shape[:2] == outputs.query_scores.shape == (3, queries)
    torch.testing.assert_close(outputs.query_scores.sum(1), torch.ones(3))


@pytest.mark.parametrize("name", HOSTS)
def test_recipes_of_other_architectures_take_the_aligner_by_one_override(name):
    for data in ("refcoco", "refcoco+", "refcocog"):
        path = ROOT / "train" / "recipes" / name / f"{data}.yaml"
        assert not build_config(load_recipe(path), 49_408).aligner
        assert build_config(load_recipe(path, ["model.aligner=true"]), 49_408).aligner


def test_aligner_in_lavt_fixes_the_image_size():
    model = host_of("lavt", "model.aligner=true").eval()
    words = torch.full((1, 4), 7)
    with pytest.raises(ValueError, match="of images of the config's image_size"):
        model(torch.randn(1, 3, 64, 64), words, torch.ones_like(words))
