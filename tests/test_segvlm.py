"""What is SegVLM's own: its block, its loss, its ablation rows. The contract that all share is in test_models.py."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

from hf_ris import CrisConfig, CrisForReferringSegmentation, SegvlmConfig, SegvlmForReferringSegmentation
from hf_ris.models.losses import adaptive_dice_loss, binary_cross_entropy, focal_loss, resize_labels
from hf_ris.models.modeling_segvlm import DeformableAttentiveEnhancement, deformable_convolution, sampled_convolution
from hf_ris.training.build import build_config, build_model
from hf_ris.training.recipe import load_recipe


RECIPES = Path(__file__).resolve().parents[1] / "train" / "recipes"
SMALL = {
    "image_size": 64,
    "max_text_length": 8,
    "clip_config": {
        "vocab_size": 20,
        "arguments": {
            "embed_dim": 12,
            "vision_cfg": {"layers": [1, 1, 1, 1], "width": 4, "image_size": 32},
            "text_cfg": {"context_length": 8, "width": 16, "heads": 2, "layers": 1},
        },
    },
    "neck_dims": [8, 16, 12],
    "decoder_layers": 1,
    "decoder_heads": 2,
    "decoder_ffn_dim": 16,
    "decoder_dropout": 0.0,
}
PLAIN = {"deformable": False, "residual": False, "squeeze_excitation": False}
BASELINE = {**PLAIN, "focal_weight": 0, "dice_weight": 0}
# the rows of Table 2, as the head of train/recipes/segvlm/phrasecut.yaml has them
ROWS = {
    "baseline": ["deformable=false", "residual=false", "squeeze_excitation=false", "focal_weight=0", "dice_weight=0"],
    "+ RAF loss": ["deformable=false", "residual=false", "squeeze_excitation=false"],
    "+ deformable + residual": ["squeeze_excitation=false"],
    "+ SE block": [],
}


def small_config(**fields) -> SegvlmConfig:
    return SegvlmConfig(**{**SMALL, "squeeze_ratio": 2, **fields})


def model_of(**fields) -> SegvlmForReferringSegmentation:
    torch.manual_seed(0)
    return SegvlmForReferringSegmentation(small_config(**fields))


def batch(**extra) -> dict[str, torch.Tensor]:
    """Two images; two expressions of the first, one of the second; lengths 3, 5 and 2."""
    random = torch.Generator().manual_seed(1)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    return {
        "pixel_values": torch.randn(2, 3, 64, 64, generator=random),
        "input_ids": torch.randint(2, 20, (3, 5), generator=random) * mask,
        "attention_mask": mask,
        "image_index": torch.tensor([0, 0, 1]),
        **extra,
    }


def labels() -> torch.Tensor:
    masks = torch.zeros(3, 64, 64)
    masks[0, :20, :30], masks[1, 10:50, 40:], masks[2, 30:, 5:25] = 1, 1, 1
    return masks


def block_of(channels: int = 6, **fields) -> DeformableAttentiveEnhancement:
    torch.manual_seed(2)
    block = DeformableAttentiveEnhancement(small_config(**fields), channels, 8)
    block.norm.running_mean.normal_()
    block.norm.running_var.uniform_(0.5, 2)
    return block.eval()


def test_the_baseline_is_cris():
    """Parameter names, logits and, on labels that either way of resizing leaves as they are, the loss."""
    cris = CrisForReferringSegmentation(CrisConfig(**SMALL)).eval()
    baseline = model_of(**BASELINE).eval()
    baseline.load_state_dict(cris.state_dict())
    with torch.no_grad():
        size = cris(**batch()).logits.shape[-1]
        blocks = F.adaptive_avg_pool2d(labels()[:, None], size).round()  # CRIS takes the nearest, SegVLM the share
        inputs = batch(labels=F.interpolate(blocks, size=labels().shape[-2:], mode="nearest")[:, 0])
        one, other = cris(**inputs), baseline(**inputs)
    torch.testing.assert_close(one.logits, other.logits, atol=0, rtol=0)
    torch.testing.assert_close(one.loss, other.loss, atol=0, rtol=0)
    assert set(other.losses) == {"cross_entropy"}


def test_segvlm_begins_with_a_cris():
    source = RECIPES.parents[1] / "space" / "checkpoints" / "cris-refscenes"

    def build(*overrides: str):
        return build_model(load_recipe("finer_masks", [f"initialize.weights={source}", *overrides]), [])

    (cris, _), (model, processor) = build(), build("architecture=segvlm", "model.squeeze_ratio=4")
    assert type(model) is SegvlmForReferringSegmentation and type(processor).__name__ == "SegvlmProcessor"
    kept, state = cris.state_dict(), model.state_dict()
    assert all(state[name].equal(value) for name, value in kept.items())
    own = {name for name in state if name not in kept}
    assert own == {name for name in state if name.startswith(model.own_weights)} and len(own) == 8
    assert (model.config.squeeze_ratio, model.config.refinement) == (4, cris.config.refinement)
    with pytest.raises(ValueError, match="do not fit this SegvlmForReferringSegmentation: .* sizes"):
        build("architecture=segvlm", "model.squeeze_ratio=4", "model.decoder_ffn_dim=32")
    with pytest.raises(ValueError, match="holds a cris; the recipe is for eavl"):
        build("architecture=eavl")


@pytest.mark.parametrize("recipe", ["phrasecut", "phrasescenes"])
def test_rows_of_table_2_are_recipe_overrides(recipe):
    """Each row adds to the one before it, down to the default, which is the paper's model."""
    configs = []
    for overrides in ROWS.values():
        overrides = [f"model.{override}" for override in overrides]
        configs.append(build_config(load_recipe(RECIPES / "segvlm" / f"{recipe}.yaml", overrides), words=199))
    fields = ("focal_weight", "dice_weight", "deformable", "residual", "squeeze_excitation")
    on = [[bool(getattr(config, field)) for field in fields] for config in configs]
    assert on == [[False] * 5, [True] * 2 + [False] * 3, [True] * 4 + [False], [True] * 5]
    default = SegvlmConfig()
    weights = ("cross_entropy_weight", "focal_weight", "dice_weight")
    assert all(getattr(configs[-1], field) == getattr(default, field) for field in (*weights, *fields))


@pytest.mark.parametrize("row", [BASELINE, PLAIN, {"squeeze_excitation": False}, {}, {"dice_pixel_weight": "focal"}])
def test_every_row_trains_all_its_parameters(row):
    model = model_of(**row).train()
    inputs = batch(labels=labels())
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(12):
        outputs = model(**inputs)
        losses.append(outputs.loss.item())
        optimizer.zero_grad()
        outputs.loss.backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # a key's bias adds the same to all scores of a softmax
    assert not [name for name in silent if not name.endswith("k_proj.bias")]


def test_phrasecut_recipe_is_section_4_2():
    recipe = load_recipe(RECIPES / "segvlm" / "phrasecut.yaml")
    training = recipe.training
    assert (training.epochs, training.batch_size, training.sync_batch_norm, training.clip_norm) == (50, 64, True, 0)
    assert (recipe.optimizer.name, recipe.optimizer.learning_rate) == ("adam", 1e-4)
    assert (recipe.schedule.name, recipe.schedule.milestones, recipe.schedule.gamma) == ("step", [15, 30], 0.1)
    assert recipe.evaluation.protocol == "phrasecut"


def test_size_is_accounted_for():
    """The counts of the file's head."""
    with torch.device("meta"):
        model = SegvlmForReferringSegmentation(SegvlmConfig())
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert parts == {
        "vision_encoder": 56_259_936,
        "text_encoder": 63_428_096,
        "connect": 1_049_600,
        "neck": 23_093_760,
        "decoder": 12_631_552,
        "projector": 5_011_491,
    }


@pytest.mark.parametrize("convolution", [deformable_convolution, sampled_convolution])
def test_deformable_convolution_is_torchvisions(convolution):
    """Values and all gradients, with taps far outside of the map too."""
    random = torch.Generator().manual_seed(3)
    x, weight = (torch.randn(shape, generator=random, dtype=torch.float64) for shape in ((20, 3, 5, 7), (4, 3, 3, 3)))
    offsets = torch.randn(20, 18, 5, 7, generator=random, dtype=torch.float64) * 3
    results = []
    for function in (convolution, lambda x, offsets, weight: deform_conv2d(x, offsets, weight, padding=1)):
        inputs = [tensor.clone().requires_grad_() for tensor in (x, offsets, weight)]
        y = function(*inputs)
        y.square().sum().backward()
        results.append([y, *(tensor.grad for tensor in inputs)])
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


def test_offsets_start_at_zero_and_learn():
    """The fresh block equals its non-deformable twin, and a step moves its grid."""
    block = block_of()
    twin = block_of(deformable=False)
    missing = twin.load_state_dict(block.state_dict(), strict=False)
    assert missing.unexpected_keys == ["offsets.weight", "offsets.bias"] and not missing.missing_keys
    x = torch.randn(2, 6, 7, 5)
    torch.testing.assert_close(block(x), twin(x), atol=1e-5, rtol=1e-5)
    assert not block.offsets.weight.any() and not block.offsets.bias.any()
    block(x).square().sum().backward()
    assert block.offsets.weight.grad.abs().amax((1, 2, 3)).min() > 0 and block.offsets.bias.grad.abs().min() > 0
    with torch.no_grad():
        block.offsets.weight -= 0.1 * block.offsets.weight.grad
    assert not torch.allclose(block(x), twin(x), atol=1e-3)


def test_offsets_stay_zero_where_a_checkpoint_lacks_them(tmp_path):
    """A model without them, loaded as one with them, computes what it did; transformers draws what is missing anew."""
    plain = model_of(deformable=False).eval()
    plain.save_pretrained(tmp_path)
    model = SegvlmForReferringSegmentation.from_pretrained(tmp_path, deformable=True).eval()
    assert model.projector.visual2.offsets is not None
    with torch.no_grad():
        torch.testing.assert_close(model(**batch()).logits, plain(**batch()).logits, atol=1e-5, rtol=1e-5)


def test_block_is_equations_1_to_3():
    block = block_of()
    x = torch.randn(3, 6, 7, 5)
    with torch.no_grad():
        block.offsets.weight.normal_(std=0.3)
        dcf = deform_conv2d(
            x, F.conv2d(x, block.offsets.weight, block.offsets.bias, padding=1), block.conv.weight, padding=1
        )
        dcf = F.batch_norm(dcf, block.norm.running_mean, block.norm.running_var, block.norm.weight, block.norm.bias)
        dcf = dcf.clamp(min=0)
        one, two = block.attention.squeeze, block.attention.excite
        hidden = (dcf.flatten(2).mean(2) @ one.weight.T + one.bias).clamp(min=0)
        scales = 1 / (1 + torch.exp(-(hidden @ two.weight.T + two.bias)))
        residual = (
            torch.einsum("dc,nchw->ndhw", block.residual.weight[:, :, 0, 0], x) + block.residual.bias[:, None, None]
        )
        torch.testing.assert_close(block(x), scales[..., None, None] * dcf + residual, atol=1e-5, rtol=1e-5)
    assert one.weight.shape == (4, 8)  # squeezed by 2


def test_both_branches_are_at_stride_4():
    model = model_of().eval()
    shapes = []
    model.projector.visual2.register_forward_hook(lambda module, inputs, output: shapes.extend([inputs[0], output]))
    logits = model(**batch()).logits
    assert [tuple(tensor.shape) for tensor in shapes] == [(3, 16, 16, 16), (3, 8, 16, 16)]
    assert logits.shape == (3, 16, 16)


def test_loss_is_equation_8():
    weights = {"cross_entropy_weight": 0.5, "focal_weight": 3.0, "dice_weight": 2.0}
    rest = {"focal_alpha": 0.4, "focal_gamma": 1.5, "dice_pixel_weight": "focal", "dice_epsilon": 0.1}
    outputs = model_of(**weights, **rest)(**batch(labels=labels()))
    target = resize_labels(labels(), (16, 16))
    expected = {
        "cross_entropy": binary_cross_entropy(outputs.logits, target),
        "focal": focal_loss(outputs.logits, target, 0.4, 1.5),
        "dice": adaptive_dice_loss(outputs.logits, target, "focal", 1.5, 0.1),
    }
    assert outputs.losses.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(outputs.losses[name], value)
    torch.testing.assert_close(
        outputs.loss, 0.5 * expected["cross_entropy"] + 3 * expected["focal"] + 2 * expected["dice"]
    )
    alone = model_of(cross_entropy_weight=0, focal_weight=0)(**batch(labels=labels()))
    assert set(alone.losses) == {"dice"} and alone.loss == alone.losses["dice"]


@pytest.mark.slow
def test_export_keeps_numbers_with_more_expressions_than_traced():
    """torch.export with any number of images, expressions and words: the deformable convolution included."""
    model = model_of().eval()
    torch.nn.init.normal_(model.projector.visual2.offsets.bias)
    inputs = batch()
    expressions, images = torch.export.Dim("expressions", max=64), torch.export.Dim("images", max=64)
    words = torch.export.Dim("words", max=8)
    text = {0: expressions, 1: words}
    shapes = {"pixel_values": {0: images}, "input_ids": text, "attention_mask": text, "image_index": {0: expressions}}
    exported = torch.export.export(model, (), inputs, dynamic_shapes=shapes).module()
    names = ("input_ids", "attention_mask", "image_index")
    more = inputs | {name: inputs[name].repeat_interleave(9, 0) for name in names}
    more |= {name: F.pad(more[name], (0, 2)) for name in names[:2]}
    with torch.no_grad():
        torch.testing.assert_close(exported(**more).logits, model(**more).logits)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dice_pixel_weight": "uncertainty"}, "dice_pixel_weight"),
        ({"cross_entropy_weight": 0, "focal_weight": 0, "dice_weight": 0}, "one of them not 0, got 0, 0, 0"),
        ({"focal_weight": -1}, "must not be negative, and"),
        ({"focal_alpha": 1.5}, r"focal_alpha must lie in \[0, 1\], got 1.5"),
        ({"focal_gamma": -1}, "focal_gamma must not be negative, got -1"),
        ({"dice_epsilon": 0}, "dice_epsilon must be positive, got 0"),
        ({"squeeze_ratio": 9}, "squeeze_ratio must lie between 1 and the block's 8 channels"),
        ({"loss": "raf"}, "no field loss"),
    ],
)
def test_senseless_configurations_are_refused(fields, message):
    with pytest.raises(Exception, match=message):
        small_config(**fields)


def test_convolutions_start_as_he_et_al_say():
    model = model_of()
    weight = model.neck.refine3.conv.weight
    expected = (2 / weight[0].numel()) ** 0.5
    assert weight.std().item() == pytest.approx(expected, rel=0.1) and abs(weight.mean().item()) < expected / 10
    offsets = model.projector.visual2.offsets
    assert not offsets.weight.any() and not offsets.bias.any()
