"""CLIPSeg: equal to transformers' own class, its public weights whole, what is frozen, and what its config refuses."""

from pathlib import Path

import pytest
import torch
from test_baselines import save_clipseg
from transformers import AutoConfig, CLIPSegConfig, CLIPSegForImageSegmentation, CLIPSegProcessor

import hf_ris
from hf_ris import ClipsegConfig, ClipsegForReferringSegmentation
from hf_ris.models.processing_clipseg_ris import ClipsegProcessor
from hf_ris.training.optimizer import freeze
from hf_ris.training.recipe import load_recipe


RECIPES = Path(__file__).resolve().parents[1] / "train" / "recipes" / "clipseg_ris"
TEXTS = ["the red cup on the left", "star", "second ball, blue"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return save_clipseg(tmp_path_factory.mktemp("clipseg") / "public")


@pytest.fixture(scope="module")
def pair(folder):
    """(transformers' model, its processor, ours, ours)."""
    network, own = CLIPSegForImageSegmentation.from_pretrained(folder), CLIPSegProcessor.from_pretrained(folder)
    words = network.config.text_config.max_position_embeddings
    model = ClipsegForReferringSegmentation.of(network, image_size=32)
    return network.eval(), own, model.eval(), ClipsegProcessor.of(own, words)


@pytest.mark.parametrize("count", [1, 3])
def test_equals_the_class_of_transformers(pair, count):
    """Two images, each with `count` expressions, of transformers one at a time."""
    network, own, model, processor = pair
    torch.manual_seed(0)
    pixels = torch.randn(2, 3, 32, 32)
    texts = TEXTS[:count] * 2
    tokens = own(text=texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = network(**tokens, pixel_values=pixels.repeat_interleave(count, 0)).logits
        inputs = {name: tokens[name] for name in ("input_ids", "attention_mask")}
        ours = model(pixels, **inputs, image_index=torch.arange(2).repeat_interleave(count)).logits
    assert ours.shape == expected.shape == (2 * count, 32, 32)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    assert (ours[0] - ours[count]).abs().max() > 1e-2


def test_the_refined_decoder_and_a_later_condition_too():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3}
    network = CLIPSegForImageSegmentation(
        CLIPSegConfig(
            text_config=sizes | {"vocab_size": 40, "bos_token_id": 38, "eos_token_id": 39},
            vision_config=sizes | {"image_size": 32, "patch_size": 16},
            projection_dim=16,
            extract_layers=[0, 1],
            reduce_dim=16,
            decoder_intermediate_size=16,
            conditional_layer=1,
            use_complex_transposed_convolution=True,
            initializer_factor=3.0,
        )
    ).eval()
    model = ClipsegForReferringSegmentation.of(network, image_size=64).eval()
    ids = torch.tensor([[38, 3, 4, 39], [38, 7, 39, 39]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    pixels = torch.randn(2, 3, 64, 64)  # four times the table of positions
    with torch.no_grad():
        expected = network(input_ids=ids, attention_mask=mask, pixel_values=pixels).logits
        torch.testing.assert_close(model(pixels, ids, mask).logits, expected, atol=1e-5, rtol=1e-5)
        assert model(pixels[..., :32], ids, mask).logits.shape == (2, 64, 32)  # ours alone takes no squares
    with pytest.raises(ValueError, match="multiples of 16, got 64x40"):
        model(pixels[..., :40], ids, mask)
    with pytest.raises(ValueError, match="takes no pixel_mask"):
        model(pixels, ids, mask, pixel_mask=torch.ones(2, 64, 64))


def test_public_weights_come_whole(folder, pair):
    _, _, model, _ = pair
    config = ClipsegConfig.of(CLIPSegConfig.from_pretrained(folder), image_size=32, pretrained=folder)
    loaded = ClipsegForReferringSegmentation.from_pretrained_encoders(config)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    config.reduce_dim = 16
    with pytest.raises(ValueError, match="No public weights fit reduce_dim=16: .* has 8"):
        ClipsegForReferringSegmentation.from_pretrained_encoders(config)
    with pytest.raises(ValueError, match=r"No public weights fit text_config.vocab_size=7: CIDAS/.* has 49408"):
        ClipsegForReferringSegmentation.from_pretrained_encoders(
            ClipsegConfig(text_config={"vocab_size": 7, "bos_token_id": 1, "eos_token_id": 2})
        )


def test_absent_weights_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(ClipsegForReferringSegmentation, "_check", lambda *of: None)
    config = ClipsegConfig(
        text_config={"num_hidden_layers": 1}, vision_config={"num_hidden_layers": 1}, extract_layers=[0]
    )
    with pytest.raises(OSError, match="public weights of CLIPSeg 'CIDAS/clipseg-rd64-refined' could not be loaded"):
        ClipsegForReferringSegmentation.from_pretrained_encoders(config)


def test_the_bare_config_is_the_published_model():
    with torch.device("meta"):
        model = ClipsegForReferringSegmentation(ClipsegConfig())
        paper = ClipsegForReferringSegmentation(ClipsegConfig(use_complex_transposed_convolution=False))
    assert sum(parameter.numel() for parameter in model.decoder.parameters()) == 1_127_009
    assert sum(parameter.numel() for parameter in model.clip.parameters()) == 149_620_737  # ViT-B/16
    assert 1.05e6 < sum(parameter.numel() for parameter in paper.decoder.parameters()) < 1.13e6


def test_transformers_keeps_its_own_type(folder):
    """Ours is registered beside it, and the name that people type is no model type."""
    assert type(AutoConfig.from_pretrained(folder)) is CLIPSegConfig
    assert type(AutoConfig.for_model("clipseg")) is CLIPSegConfig
    assert type(AutoConfig.for_model("clipseg_ris")) is ClipsegConfig
    assert hf_ris.ALIASES["clipseg"] in hf_ris.ARCHITECTURES
    assert load_recipe("clipseg/refcoco", ["architecture=clipseg"]) == load_recipe(RECIPES / "refcoco.yaml")


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_for_photographs_train_the_decoder_alone(path):
    recipe = load_recipe(path)
    with torch.device("meta"):
        model = ClipsegForReferringSegmentation(ClipsegConfig(**recipe.model))
    still = freeze(model, recipe.optimizer)
    learning = {name.partition(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    if path.stem == "refscenes":
        assert learning == {"clip", "decoder"} and not still
    else:
        assert learning == {"decoder"} and model.clip in still
        assert recipe.schedule.floor * recipe.optimizer.learning_rate == pytest.approx(1e-4)  # the paper's


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 350}, "image_size must be a multiple of vision_config.patch_size, 16, got 350"),
        ({"vision_config": {"patch_size": 8}}, "needs vision_config.patch_size=16, got 8"),
        ({"vision_config": {"depth": 8}}, "vision_config has no field depth; its fields are attention_dropout"),
        ({"text_config": {"words": 8}}, "text_config has no field words"),
        ({"extract_layers": []}, "extract_layers takes rising numbers of layers from 0 to 11, got"),
        ({"extract_layers": [3, 12]}, r"from 0 to 11, got \[3, 12\]"),
        ({"extract_layers": [6, 3]}, r"rising numbers .* got \[6, 3\]"),
        ({"conditional_layer": 3}, "conditional_layer must be one of the 3 decoder layers"),
        ({"reduce_dim": 63}, "reduce_dim must be a multiple of decoder_num_attention_heads"),
        ({"projection_dim": 0}, "projection_dim must be at least 1"),
        ({"max_text_length": 78}, "max_text_length is 78, but text_config has max_position_embeddings=77"),
    ],
)
def test_configurations_that_make_no_sense(fields, message):
    with pytest.raises(ValueError, match=message):
        ClipsegConfig(**fields)


def test_nested_fields_override_single_ones():
    config = ClipsegConfig(vision_config={"num_hidden_layers": 11}, text_config={"num_hidden_layers": 3})
    assert (config.vision_config.patch_size, config.vision_config.num_hidden_layers) == (16, 11)
    assert (config.text_config.num_hidden_layers, config.text_config.hidden_size) == (3, 512)
