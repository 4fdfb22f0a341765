"""What is LAVT's own: its equations, its conventions against the published program, and refusals. The contract that all
architectures share is in test_models.py."""

import json
import math

import pytest
import torch
from conftest import assert_exports, fill_by_formula, formula
from golden import SHARED, golden
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import BertConfig, BertModel

from hf_ris import LavtConfig, LavtForReferringSegmentation, LavtProcessor
from hf_ris.conversion.checkpoint import gather
from hf_ris.conversion.lavt import build_config, official_name, official_state
from hf_ris.models.modeling_lavt import PixelWordAttention, PixelWordAttentionModule
from hf_ris.models.text_encoders import wordpiece_tokenizer


GOLDEN = SHARED / "golden"
lavt_golden = golden(
    "golden/lavt_tiny.json",
    "golden/lavt_tiny_io.safetensors",
    "golden/lavt_tiny_f64.safetensors",
    "golden/lavt_tiny_state_dict.safetensors",
    "golden/lavt_tiny_bert_state_dict.safetensors",
)


def tiny_config(**fields) -> LavtConfig:
    """A model of about 0.3M parameters."""
    arguments = {"embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}
    text = {"vocab_size": 100, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    small = {
        "image_size": 64,
        "vision_config": {"arguments": arguments | {"drop_path_rate": 0.0}},
        "text_config": text | {"intermediate_size": 32, "max_position_embeddings": 32},
        "decoder_dim": 16,
    }
    return LavtConfig(**small | fields)


def tiny_model(**fields) -> LavtForReferringSegmentation:
    torch.manual_seed(0)
    return LavtForReferringSegmentation(tiny_config(**fields)).eval()


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


# --- against the published program -----------------------------------------------------------------------------------


def golden_model(**overrides) -> LavtForReferringSegmentation:
    weights = {
        "model": load_file(GOLDEN / "lavt_tiny_state_dict.safetensors"),
        "bert_model": load_file(GOLDEN / "lavt_tiny_bert_state_dict.safetensors"),
    }
    state = official_state(weights)
    config = build_config(
        state, overrides | {"text_config": {"num_attention_heads": 2, **overrides.get("text_config", {})}}
    )
    model = LavtForReferringSegmentation(config)
    ours, unplaced = gather(state, {key: official_name(key) for key in model.state_dict()}, model)
    assert not unplaced
    model.load_state_dict(ours)
    return model.eval()


def golden_run(model: LavtForReferringSegmentation, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The outputs that the reference files hold, under their names."""
    inputs = load_file(GOLDEN / "lavt_tiny_io.safetensors")
    seen = {}

    def keep(name, module, change=lambda output: output):
        module.register_forward_hook(lambda module, args, output: seen.__setitem__(name, change(output)))

    def keep_visual(name, module):
        module.register_forward_pre_hook(lambda module, args: seen.__setitem__(name, args[0]))

    for stage in range(4):
        fusion, name = model.fusions[stage], f"stage{stage + 1}"
        keep_visual(f"{name}.vis", fusion)
        keep(f"{name}.pwam_vis_project", fusion.visual_projection, lambda x: F.gelu(x).transpose(1, 2))
        keep(f"{name}.pwam_lang", fusion.attention)
        keep(f"{name}.fused", fusion)
        keep(f"{name}.gate", model.gates[stage], lambda x: x.flatten(1, 2))
        keep(f"c{stage + 1}", model.vision_encoder.norms[stage], lambda x: x.permute(0, 3, 1, 2))
    for level in range(3):
        keep(f"decoder.fuse{4 - level}", model.decoder.levels[level])
    keep("logits_low", model.decoder)
    keep("patch_embed", model.vision_encoder.backbone.patch_embed, lambda x: x.permute(0, 3, 1, 2))
    keep("text_last_hidden_state", model.text_encoder, lambda x: x.last_hidden_state)
    with torch.no_grad():
        output = model(inputs["pixel_values"].to(dtype), inputs["input_ids"], inputs["attention_mask"])
    return seen | {"logits": output.logits}


@lavt_golden
def test_float32_equals_the_published_program():
    expected = load_file(GOLDEN / "lavt_tiny_io.safetensors")
    expected["logits"] = expected["logits"][:, 1] - expected["logits"][:, 0]
    results = golden_run(golden_model(), torch.float32)
    compared = results.keys() & expected.keys()
    assert len(compared) >= 28
    for name in compared:
        atol = 1e-4 if name in ("logits", "logits_low", "text_last_hidden_state", "patch_embed") else 1e-3
        torch.testing.assert_close(
            results[name], expected[name], atol=atol, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


@lavt_golden
def test_float64_equals_the_published_program():
    """Small conventions that float32 noise hides: an eps of 1e-6 instead of 1e-5 moves the logits by 2e-4."""
    expected = load_file(GOLDEN / "lavt_tiny_f64.safetensors")
    results = golden_run(golden_model().double(), torch.float64)
    for name in ("text_last_hidden_state", "c1", "c2", "c3", "c4", "logits_low"):
        torch.testing.assert_close(results[name], expected[f"main.{name}"], atol=1e-10, rtol=0)


@lavt_golden
def test_training_step_equals_the_published_program():
    loss = json.loads((GOLDEN / "lavt_tiny.json").read_text())["loss"]
    expected = load_file(GOLDEN / "lavt_tiny_io.safetensors")
    inputs = {name: expected[name] for name in ("pixel_values", "input_ids", "attention_mask")}
    model = golden_model(
        text_config={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        vision_config={"arguments": {"drop_path_rate": 0.0}},
    )
    with torch.no_grad():
        assert model(**inputs, labels=expected["target"]).loss.item() == pytest.approx(loss["eval_loss"], abs=1e-5)
    model.train()
    output = model(**inputs, labels=expected["target"])
    difference = expected["train_logits"][:, 1] - expected["train_logits"][:, 0]
    torch.testing.assert_close(output.logits, difference, atol=1e-3, rtol=0)
    assert output.loss.item() == pytest.approx(loss["train_loss"], abs=1e-5)
    output.loss.backward()
    compared = 0
    for name, parameter in model.named_parameters():
        norm = loss["train_grad_norms"][official_name(name).replace("text_encoder.", "bert:")]
        if norm is None:
            assert parameter.grad is None, name
        elif norm > 1e-4:  # below is the rounding noise of biases that softmax and norms cancel
            assert parameter.grad.norm().item() == pytest.approx(norm, rel=0.01), name
            compared += 1
    assert compared > 150


# --- the equations ---------------------------------------------------------------------------------------------------


def pixel_word_attention(module: PixelWordAttention, visual, words, mask):
    """Eq. 1-5 as they stand, for one sample, without the shifts that keep rounding errors small."""

    def norm(x):
        return (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()

    query, key, value = norm(module.query(visual)), module.key(words)[mask == 1], module.value(words)[mask == 1]
    width = visual.shape[1] // module.num_heads
    attended = []
    for head in range(module.num_heads):
        part = slice(head * width, (head + 1) * width)
        scores = query[:, part] @ key[:, part].T / math.sqrt(visual.shape[1])
        attended.append(scores.softmax(-1) @ value[:, part])
    return norm(module.output(torch.cat(attended, -1)))


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_pixel_word_attention_is_its_equations(heads):
    torch.manual_seed(0)
    module = PixelWordAttentionModule(8, 6, heads, dropout=0.0).double()
    visual, words = torch.randn(2, 15, 8, dtype=torch.float64), torch.randn(2, 5, 6, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    result = module(visual, words, mask)
    for sample in range(2):
        attended = pixel_word_attention(module.attention, visual[sample], words[sample], mask[sample])
        projected = F.gelu(module.visual_projection(visual[sample]))
        expected = F.gelu(module.output_projection(projected * attended))
        torch.testing.assert_close(result[sample], expected, atol=1e-10, rtol=0)


def test_words_are_gathered_in_float32_under_autocast():
    """The norm behind divides by a spread that can be small, which half precision would fill with rounding errors."""
    torch.manual_seed(0)
    attention = PixelWordAttention(8, 6, 2)
    inputs = torch.randn(2, 9, 8), torch.randn(2, 4, 6), torch.ones(2, 4, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16):
        under = attention(*inputs)
    assert under.dtype == torch.float32 and torch.equal(under, attention(*inputs))


def test_single_visible_word_says_nothing():
    """Attention then gives every pixel the same vector, and the instance norm takes it away."""
    torch.manual_seed(0)
    module = PixelWordAttention(8, 6, 1)
    attended = module(torch.randn(1, 15, 8), torch.randn(1, 3, 6), torch.tensor([[1, 0, 0]]))
    torch.testing.assert_close(attended, torch.zeros_like(attended))
    padding = module(torch.randn(1, 15, 8), torch.randn(1, 3, 6), torch.zeros(1, 3, dtype=torch.long))
    assert padding.isfinite().all()


def test_gate_feeds_only_the_next_stage():
    model, inputs = tiny_model(), tiny_inputs()

    def fused():
        with torch.no_grad():
            visual = model.encode_image(inputs["pixel_values"])[0].index_select(0, inputs["image_index"])
            words = model.encode_text(inputs["input_ids"], inputs["attention_mask"])
            return model.fuse(visual, words, inputs["attention_mask"])

    before = fused()
    assert [tuple(x.shape) for x in before] == [(3, 8, 16, 16), (3, 16, 8, 8), (3, 32, 4, 4), (3, 64, 2, 2)]
    torch.nn.init.normal_(model.gates[3].output.weight)
    assert all(torch.equal(x, y) for x, y in zip(before, fused()))
    torch.nn.init.normal_(model.gates[1].output.weight)
    changed = [not torch.equal(x, y) for x, y in zip(before, fused())]
    assert changed == [False, False, True, True]


def window_attention(block, x: torch.Tensor, window: int, shift: int) -> torch.Tensor:
    """One shifted Swin attention on (H, W, C), cell by cell: zero-pad, then roll, then mask other regions by -100."""
    height, width, channels = x.shape
    rows, columns = -(-height // window) * window, -(-width // window) * window
    padded = x.new_zeros(rows, columns, channels)
    padded[:height, :width] = x
    attn, result = block.attn, torch.zeros_like(padded)
    qkv = attn.qkv(padded).view(rows, columns, 3, attn.num_heads, -1)

    def region(position, size):
        return 0 if not shift or position < size - window else 1 if position < size - shift else 2

    cells = [(i, j) for i in range(window) for j in range(window)]
    for top in range(0, rows, window):
        for left in range(0, columns, window):
            places = [(top + i, left + j) for i, j in cells]
            regions = torch.tensor([3 * region(i, rows) + region(j, columns) for i, j in places])
            sources = [((i + shift) % rows, (j + shift) % columns) for i, j in places]
            query, key, value = torch.stack([qkv[source] for source in sources]).unbind(1)
            for head in range(attn.num_heads):
                scores = query[:, head] @ key[:, head].T * key.shape[-1] ** -0.5
                for m, (i, j) in enumerate(cells):
                    for n, (other_i, other_j) in enumerate(cells):
                        row = (i - other_i + window - 1) * (2 * window - 1) + (j - other_j + window - 1)
                        scores[m, n] += attn.relative_position_bias_table[row, head]
                scores = scores - 100.0 * (regions[:, None] != regions[None])
                attended = scores.softmax(-1) @ value[:, head]
                for m, source in enumerate(sources):
                    result[source].view(attn.num_heads, -1)[head] = attended[m]
    return attn.proj(result)[:height, :width]


@pytest.mark.parametrize("size", [(7, 5), (4, 4), (2, 3)])
def test_swin_pads_before_it_rolls_and_never_shrinks_its_window(size):
    encoder = tiny_model().double().vision_encoder
    blocks = encoder.backbone.layers[2].blocks
    x = torch.randn(1, *size, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for block, shift in zip(blocks, (0, 2), strict=True):
            torch.nn.init.normal_(block.attn.relative_position_bias_table)
            torch.testing.assert_close(block._attn(x)[0], window_attention(block, x[0], 4, shift), atol=1e-10, rtol=0)


def test_masked_windows_hold_no_denormal_numbers(monkeypatch):
    """exp(-100) is 4e-44; products with such numbers take many times longer."""
    block = tiny_model().vision_encoder.backbone.layers[2].blocks[1]
    attend, masks = block.attn.forward, []
    monkeypatch.setattr(block.attn, "forward", lambda x, shift, mask: masks.append(mask) or attend(x, shift, mask))
    content = torch.tensor([[5, 7]])
    with torch.no_grad():
        for argument in (None, content):
            block._attn(torch.randn(1, 9, 9, 32), argument)
    assert [sorted(set(mask.exp().flatten().tolist())) for mask in masks] == [[0.0, 1.0]] * 2


def test_padding_goes_through_no_linear_layer():
    block = tiny_model().vision_encoder.backbone.layers[2].blocks[1]
    rows = []
    for layer in (block.attn.qkv, block.attn.proj):
        layer.register_forward_hook(lambda layer, inputs, output: rows.append(inputs[0][..., 0].numel()))
    with torch.no_grad():
        block._attn(torch.randn(1, 9, 9, 32))
    assert rows == [81, 1, 81]  # the map, one zero for all padding, the map


@pytest.mark.parametrize("size", [(118, 102), (65, 40)])
def test_any_image_size_gives_logits_of_that_size(size):
    model, inputs = tiny_model(), tiny_inputs(*size)
    labels = torch.zeros(3, *size)
    labels[:, 10:30, 10:30] = 1
    output = model(**inputs, labels=labels)
    assert output.logits.shape == (3, *size)
    weight = torch.where(labels > 0, 1.1, 0.9)
    loss = F.binary_cross_entropy_with_logits(output.logits, labels, weight, reduction="sum") / weight.sum()
    torch.testing.assert_close(output.loss, loss)  # two-class cross-entropy sees the difference of the scores alone


# logits of `test_numerics_are_frozen` at row 20, columns 0, 20, 40 and 60, for each expression
FROZEN = [
    [1.9071872603067175, 1.4529795807804338, 1.4562916649842945, 1.4341837085138742],
    [1.9232032974275117, 1.4269393544225506, 1.4959028993289014, 1.4947313741500028],
    [2.000311884725582, 1.4310748157864654, 1.6381279096388148, 1.7924646140803693],
]


def test_numerics_are_frozen():
    """The logits of weights that are a formula; a change of any convention moves them."""
    model = tiny_model(fusion_num_heads=[1, 2, 4, 8]).double()
    fill_by_formula(model)
    with torch.no_grad():
        pixels = formula(2 * 3 * 50 * 70, 0).view(2, 3, 50, 70)
        logits = model(**tiny_inputs() | {"pixel_values": pixels}).logits
    expected = torch.tensor(FROZEN, dtype=torch.float64)
    torch.testing.assert_close(logits[:, 20, ::20], expected, atol=1e-6, rtol=0)


@pytest.mark.slow
def test_torch_export_with_free_batch_sizes():
    assert_exports(tiny_model(), tiny_inputs(), 100, "logits")


# --- processor, public weights, refusals -----------------------------------------------------------------------------


def test_long_expression_keeps_its_first_tokens():
    tokenizer = wordpiece_tokenizer(["red", "cup"])
    cls, sep, red, cup = tokenizer.convert_tokens_to_ids(["[CLS]", "[SEP]", "red", "cup"])
    inputs = LavtProcessor(tokenizer=tokenizer, max_text_length=5)._tokenize(["red cup", "red cup red red red cup"])
    assert inputs["input_ids"].tolist() == [[cls, red, cup, sep, 0], [cls, red, cup, red, red]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert tokenizer.convert_ids_to_tokens(tokenizer("Réd oak")["input_ids"]) == [
        "[CLS]",
        "red",
        "o",
        "##a",
        "##k",
        "[SEP]",
    ]


def test_bert_weights_come_from_their_source(tmp_path):
    fields = tiny_config().text_config.to_dict()
    bert = BertModel(BertConfig(**fields))
    bert.save_pretrained(tmp_path / "fits")
    BertModel(BertConfig(**fields | {"hidden_size": 32})).save_pretrained(tmp_path / "differs")

    def load(name):
        model = tiny_model(text_pretrained=str(tmp_path / name))
        model.vision_encoder.load_pretrained = lambda: None  # a tiny Swin has no public weights
        model.load_pretrained_encoders()
        return model

    weight = "embeddings.word_embeddings.weight"
    assert torch.equal(load("fits").text_encoder.state_dict()[weight], bert.state_dict()[weight])
    with pytest.raises(ValueError, match="has hidden_size=32, but text_config asks for 16"):
        load("differs")
    with pytest.raises(OSError, match="public weights of BERT .*absent"):
        load("absent")


def test_refusals_name_what_is_wrong():
    with pytest.raises(ValueError, match="takes a timm swin_"):
        tiny_config(vision_config={"name": "darknet53"})
    with pytest.raises(ValueError, match="output_stages"):
        tiny_config(vision_config={"output_stages": [3, 4, 5]})
    with pytest.raises(ValueError, match="fusion_num_heads takes four"):
        tiny_config(fusion_num_heads=[1, 1])
    with pytest.raises(ValueError, match="3 heads do not divide a stage of width 8"):
        LavtForReferringSegmentation(tiny_config(fusion_num_heads=[3, 1, 1, 1]))
    with pytest.raises(ValueError, match="loss_weights takes two"):
        tiny_config(loss_weights=[1, 1, 1])
    with pytest.raises(ValueError, match="fusion_dropout"):
        tiny_config(fusion_dropout=1)
    with pytest.raises(ValueError, match="max_position_embeddings=32"):
        tiny_config(max_text_length=33)
    model, inputs = tiny_model(), tiny_inputs()
    with pytest.raises(ValueError, match="no pixel_mask"):
        model(**inputs, pixel_mask=torch.ones(2, 64, 64))
    del inputs["image_index"]
    with pytest.raises(ValueError, match="pass image_index"):
        model(**inputs)
