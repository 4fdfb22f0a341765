"""What is EAVL's own: its two encoders, the rows of its tables, its counts and refusals. Neck, queries and aligner are
in test_aligner.py, the contract that all architectures share in test_models.py."""

import numpy as np
import pytest
import torch
from conftest import ROOT, assert_exports, fill_by_formula, formula
from open_clip import OPENAI_DATASET_MEAN

from hf_ris import EavlConfig, EavlForReferringSegmentation, EavlProcessor
from hf_ris.models.clip_tokenizer import clip_tokenizer
from hf_ris.models.losses import resize_labels
from hf_ris.models.modeling_eavl import AttentionPooling
from hf_ris.training.build import build_config
from hf_ris.training.recipe import load_recipe


RECIPES = ROOT / "train" / "recipes" / "eavl"
CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"layers": [1, 1, 1, 1], "width": 4, "head_width": 16, "image_size": 64},
    "text_cfg": {"context_length": 16, "width": 16, "heads": 2, "layers": 1},
}


def tiny_config(**fields) -> EavlConfig:
    """A model of 0.1M parameters on 64x64 images, whose fused features are 4x4."""
    swin = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4, "drop_path_rate": 0.0}
    bert = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    small = {
        "image_size": 64,
        "vision_config": {"arguments": swin, "output_stages": [3, 4, 5]},
        "text_config": bert | {"intermediate_size": 24, "max_position_embeddings": 20},
        "clip_config": {"vocab_size": 60, "arguments": CLIP},
        "hidden_dim": 16,
        "num_heads": 2,
        "ffn_dim": 24,
        "num_decoder_layers": 1,
        "dropout": 0.0,
        "num_queries": 3,
    }
    return EavlConfig(**small | fields)


def model_of(**fields) -> EavlForReferringSegmentation:
    torch.manual_seed(0)
    return EavlForReferringSegmentation(tiny_config(**fields)).eval()


def batch(**extra) -> dict[str, torch.Tensor]:
    """Two images; two expressions of the first, one of the second."""
    random = torch.Generator().manual_seed(1)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
    return {
        "pixel_values": torch.randn(2, 3, 64, 64, generator=random),
        "input_ids": torch.randint(2, 60, (3, 5), generator=random) * mask,
        "attention_mask": mask,
        "image_index": torch.tensor([0, 0, 1]),
        **extra,
    }


def labels() -> torch.Tensor:
    masks = torch.zeros(3, 64, 64)
    masks[0, :20, :30], masks[1, 10:50, 40:], masks[2, 30:, 5:25] = 1, 1, 1
    return masks


def override(fields: dict) -> list[str]:
    return [f"model.{name}={str(value).lower()}" for name, value in fields.items()]


NO_ESTIMATOR = {"use_query_estimator": False}
NO_VISION = NO_ESTIMATOR | {"use_vision_global": False}
ROWS = {
    "table II, 32 queries": {"num_queries": 32},
    "table II, 1 query": {"num_queries": 1},
    "table III, fixed kernel": {"aligner": False, "num_queries": 8},
    "table IV, no estimator": NO_ESTIMATOR,
    "table IV, no estimator, no F_vg": NO_VISION,
    "table IV, none of the three": NO_VISION | {"use_language_global": False},
    "table V, Swin and BERT": {},
    "table V, CLIP": {"encoders": "clip"},
    "CLIP without its sentence": {"encoders": "clip", "use_language_global": False},
    "four levels": {"vision_config": tiny_config().vision_config.to_dict() | {"output_stages": [2, 3, 4, 5]}},
}


@pytest.mark.parametrize("row", ROWS)
def test_every_row_of_the_tables_trains(row):
    model = model_of(**ROWS[row]).train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(8):
        outputs = model(**batch(labels=labels()))
        losses.append(outputs.loss.item())
        optimizer.zero_grad()
        outputs.loss.backward()
        optimizer.step()
    # a row's modules all work: the parameters are exactly those that the mask depends on; one query has nothing to
    # weigh, and a softmax over it no gradient
    silent = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    single = {name for name in silent if row == "table II, 1 query" and "query_estimator" in name}
    keys = {name for name in silent if name.endswith(("in_proj_bias",))}
    listed = {"text_encoder.tower.text_projection"} if row == "CLIP without its sentence" else set()
    assert silent - single - keys == listed
    assert losses[-1] < 0.9 * losses[0]
    with torch.no_grad():
        outputs = model.eval()(**batch())
    assert outputs.logits.shape == (3, 16, 16)
    if model.config.aligner:
        queries = model.config.num_queries
        assert outputs.query_logits.shape == (3, queries, 16, 16) and outputs.query_scores.shape == (3, queries)
        torch.testing.assert_close(outputs.query_scores.sum(1), torch.ones(3))
    else:
        assert outputs.query_logits is None and outputs.query_scores is None


@pytest.mark.parametrize("name", ["refcoco", "refcoco+", "refcocog"])
def test_tables_are_overrides_of_a_recipe(name):
    plain = build_config(load_recipe(RECIPES / f"{name}.yaml"), 30_522)
    expected = EavlConfig(max_text_length=22 if name == "refcocog" else 17, clip_config={"vocab_size": 30_522})
    assert plain.to_dict() == expected.to_dict()
    for fields in ROWS.values():
        if "vision_config" not in fields:
            config = build_config(load_recipe(RECIPES / f"{name}.yaml", override(fields)), 30_522)
            assert {field: getattr(config, field) for field in fields} == fields


def test_queries_in_another_order_leave_the_result():
    """Their order is that of the channels of the last convolution before Eq. 9."""
    model, order = model_of(), torch.tensor([2, 0, 1])
    with torch.no_grad():
        for layer in (model.query_generator.dense, model.query_generator.key):
            layer.weight.mul_(20)  # untrained, the queries are too much alike
        before = model(**batch())
        last = model.query_generator.reduce[2]
        last.conv.weight.copy_(last.conv.weight[order])
        after = model(**batch())
    torch.testing.assert_close(after.logits, before.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(after.query_logits, before.query_logits[:, order], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(after.query_scores, before.query_scores[:, order])
    assert (before.query_logits[:, 0] - before.query_logits[:, 1]).abs().max() > 1e-4


def test_attention_pooling_is_equation_1():
    """Against torch's attention on the mean and the positions side by side."""
    pooling = AttentionPooling(8, 2)
    reference = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    reference.load_state_dict(pooling.attention.state_dict())
    x = torch.randn(2, 8, 3, 2)
    with torch.no_grad():
        pooled, mean = pooling(x)
        tokens = torch.cat([x.mean((2, 3))[:, None], x.flatten(2).transpose(1, 2)], 1)
        expected = reference(tokens, tokens, tokens)[0]
    torch.testing.assert_close(mean, expected[:, 0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(pooled[:, :, 1, 0], expected[:, 3], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(pooled[:, :, 2, 1], expected[:, 6], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("encoders", ["swin_bert", "clip"])
def test_global_features_reach_the_result(encoders):
    """F_vg enters the queries alone; F_tg the neck alone."""
    model = model_of(encoders=encoders)
    with torch.no_grad():
        dense, image_vector, *visual = model.encode_image(batch()["pixel_values"])
        assert image_vector.shape == (2, 16 if encoders == "clip" else 64)
        words, sentence = model.encode_text(batch()["input_ids"][::2], batch()["attention_mask"][::2])
        queries, others = (
            model.query_generator(dense, words, batch()["attention_mask"][::2], vector)
            for vector in (image_vector, image_vector + torch.randn(image_vector.shape))
        )
        fused, other = model.neck(visual, sentence), model.neck(visual, sentence.flip(0))
    assert (queries - others).abs().max() > 1e-3 and (fused - other).abs().max() > 1e-3


def test_loss_is_cross_entropy_against_the_share_of_each_cell():
    model = model_of()
    outputs = model(**batch(labels=labels()))
    target = resize_labels(labels(), (16, 16))
    probability = outputs.logits.sigmoid()
    expected = -(target * probability.log() + (1 - target) * (1 - probability).log()).mean()
    torch.testing.assert_close(outputs.loss, expected)
    assert set(outputs.losses) == {"cross_entropy"}


# published, in Table VI, BERT's embeddings left out; ours
COUNTS = {"swin_bert": (202.11e6, 207_267_753), "clip": (192.24e6, 150_560_657)}


@pytest.mark.parametrize("encoders", COUNTS)
def test_parameters_of_the_paper(encoders):
    """2.5% more than published with Swin and BERT, 21.7% fewer with CLIP; the card accounts for both."""
    published, ours = COUNTS[encoders]
    with torch.device("meta"):
        model = EavlForReferringSegmentation(EavlConfig(encoders=encoders))
    counted = [p.numel() for name, p in model.named_parameters() if not name.startswith("text_encoder.embeddings.")]
    assert sum(counted) == ours
    assert abs(ours / published - 1) < (0.03 if encoders == "swin_bert" else 0.22)


def test_paper_configuration():
    """Sizes that the paper prints: N_q 24, C 512, 8 heads, FFN 2048, C_p C/2, 30x30 and 120x120 positions of 480."""
    config = EavlConfig()
    with torch.device("meta"):
        model = EavlForReferringSegmentation(config)
    assert (config.num_queries, config.hidden_dim, config.num_heads, config.ffn_dim) == (24, 512, 8, 2048)
    assert (config.image_size, config.max_text_length) == (480, 17)
    assert model.query_generator.dense.weight.shape == (512, 900)
    assert model.aligner.mask_generator.kernels.weight.shape == (9 * 256 + 1, 512)
    assert model.neck.text.weight.shape == (512, 512) and model.pooling.attention.embed_dim == 1024


@pytest.mark.slow
def test_torch_export_with_free_batch_sizes():
    assert_exports(model_of(), batch(), 60, "query_logits", rtol=1e-4)


def test_processor_follows_the_encoders():
    image = np.full((50, 90, 3), 128, np.uint8)
    tokenizer = clip_tokenizer()
    processor = EavlProcessor.from_config(EavlConfig(encoders="clip"), tokenizer)
    inputs = processor(image, "a caf&eacute;  " * 9)
    assert inputs["pixel_values"].shape == (1, 3, 480, 480) and inputs["input_ids"].shape == (1, 17)
    assert processor.image_processor.image_mean == list(OPENAI_DATASET_MEAN) and processor.threshold == 0.5
    assert inputs["input_ids"][0, :3].tolist() == tokenizer("a café")["input_ids"][:3]
    assert inputs["input_ids"][0, -1] == tokenizer.eos_token_id
    plain = EavlProcessor.from_config(EavlConfig(), tokenizer)
    assert plain.image_processor.image_mean == [0.485, 0.456, 0.406] and not plain.clip_text


# logits of `test_numerics_are_frozen` at row 5, columns 0, 5, 10 and 15, for each expression
FROZEN = {
    "swin_bert": [
        [12.284651716643, 5.626426896821, 6.825707723671, 3.935209466008],
        [10.447523341338, 2.868540765988, 4.192093337451, 2.45326165776],
        [8.004061378628, -0.664520797338, 0.816700056364, 0.497250573482],
    ],
    "clip": [
        [-25.276610660562, -57.122624701088, -53.835622288813, -39.718664501337],
        [-30.107611774723, -57.511271057645, -54.678809140328, -38.311397760661],
        [-34.151352964536, -68.840128976404, -65.321471572725, -44.824946256254],
    ],
}


@pytest.mark.parametrize("encoders", FROZEN)
def test_numerics_are_frozen(encoders):
    """The logits of weights that are a formula; a change of any convention moves them."""
    model = model_of(encoders=encoders).double()
    fill_by_formula(model)
    with torch.no_grad():
        logits = model(**batch(pixel_values=formula(2 * 3 * 64 * 64, 0).view(2, 3, 64, 64))).logits
    torch.testing.assert_close(
        logits[:, 5, ::5], torch.tensor(FROZEN[encoders], dtype=torch.float64), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"queries": 4}, "no field queries"),
        ({"encoders": "resnet"}, "encoders"),
        ({"num_queries": 0}, "num_queries must be at least 1"),
        ({"hidden_dim": 15}, "multiple of num_heads"),
        ({"dropout": 1}, "dropout must lie in"),
        ({"fusion_stage": 2}, r"fusion_stage must be one of the levels \[3, 4, 5\], got 2"),
        ({"encoders": "clip", "fusion_stage": 6}, "fusion_stage must be one of"),
        ({"vision_config": {"name": "darknet53", "output_stages": [3, 4, 5]}}, "takes a timm swin_"),
        ({"vision_config": {"output_stages": [4, 5]}}, "three output_stages or more"),
        ({"max_text_length": 21}, "max_position_embeddings=20"),
        ({"aligner": False, "use_query_estimator": False}, "no masks to weigh"),
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
