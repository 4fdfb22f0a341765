"""CLIP's encoders against open_clip's own forward, their weights from files and tags, and CLIP's tokenizer."""

import json
import pickle
import random
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.model import CLIP
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import AutoTokenizer

from hf_ris.models import clip_encoders
from hf_ris.models.clip_encoders import ClipResNet, ClipTextEncoder, clip_model_config, load_clip_weights
from hf_ris.models.clip_tokenizer import clean_text, clip_tokenizer
from hf_ris.models.configuration_ris import ClipEncoderConfig


ARGUMENTS = {
    "embed_dim": 24,
    "vision_cfg": {"layers": [1, 2, 1, 1], "width": 8, "image_size": 96},
    "text_cfg": {"width": 16, "heads": 2, "layers": 2, "context_length": 12},
}
END = 39


def tiny_config(**fields) -> ClipEncoderConfig:
    return ClipEncoderConfig(**{"arguments": ARGUMENTS, "vocab_size": END + 1} | fields)


@pytest.fixture
def clip() -> CLIP:
    """open_clip's model of the tiny config, no weight of which is zero or one."""
    torch.manual_seed(0)
    model = CLIP(**clip_model_config(tiny_config())).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    return model


def encoders(clip: CLIP, folder, keeps_mean_token: bool = False) -> tuple[ClipResNet, ClipTextEncoder]:
    """Ours with the weights of `clip`, by way of a file."""
    save_file({key: value.contiguous() for key, value in clip.state_dict().items()}, folder / "clip.safetensors")
    config = tiny_config(pretrained=str(folder / "clip.safetensors"))
    image, text = ClipResNet(config, keeps_mean_token).eval(), ClipTextEncoder(config).eval()
    load_clip_weights(config, image, text)
    return image, text


def expressions() -> tuple[torch.Tensor, torch.Tensor]:
    """Three expressions of 7, 4 and 12 tokens, padded with 0 to the length of the table."""
    ids = torch.randint(1, END, (3, 12), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([7, 4, 12])
    mask = (torch.arange(12) < lengths[:, None]).long()
    ids[torch.arange(3), lengths - 1] = END
    return ids * mask, mask


# --- towers ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_sentence_is_open_clips(clip, tmp_path):
    ids, mask = expressions()
    words, sentence = encoders(clip, tmp_path)[1](ids, mask)
    assert words.shape == (3, 12, 16)
    torch.testing.assert_close(sentence, clip.encode_text(ids), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(words[0, 6] @ clip.text_projection, sentence[0])


@torch.no_grad()
def test_text_at_any_length_whatever_pads_it(clip, tmp_path):
    text = encoders(clip, tmp_path)[1]
    ids, mask = expressions()
    words, sentence = text(ids, mask)
    other, again = text(ids[:2, :7].where(mask[:2, :7] == 1, torch.tensor(END)), mask[:2, :7])
    torch.testing.assert_close(again, sentence[:2], atol=1e-5, rtol=1e-5)
    inside = mask[:2, :7, None] == 1
    torch.testing.assert_close(other * inside, words[:2, :7] * inside, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="has 12 positions, but the expressions have 13"):
        text(torch.ones(1, 13, dtype=torch.long), torch.ones(1, 13, dtype=torch.long))


@torch.no_grad()
def test_mean_token_is_open_clips_image(clip, tmp_path):
    image = encoders(clip, tmp_path, keeps_mean_token=True)[0]
    pixels = torch.randn(2, 3, 96, 96)
    levels = image(pixels)
    assert [level.shape[1:] for level in levels] == [(64, 12, 12), (128, 6, 6), (256, 3, 3)]
    assert image.channels == [64, 128, 256] and image.output_dim == 24
    pooled, mean = image.pool(levels[-1])
    assert pooled.shape == (2, 24, 3, 3)
    torch.testing.assert_close(mean, clip.encode_image(pixels), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_pool_keeps_positions_at_any_size(clip, tmp_path):
    """Against torch's attention over the map's tokens alone, with the grid resized by hand."""
    image = encoders(clip, tmp_path)[0]
    c5 = torch.randn(2, 256, 2, 5)
    pooled, mean = image.pool(c5)
    assert mean is None
    pool = clip.visual.attnpool
    grid = pool.positional_embedding[1:].T.reshape(1, 256, 3, 3)
    grid = F.interpolate(grid, size=(2, 5), mode="bicubic", align_corners=False)
    tokens = (c5 + grid).flatten(2).permute(2, 0, 1)
    expected, _ = F.multi_head_attention_forward(
        *[tokens] * 3,
        embed_dim_to_check=256,
        num_heads=4,
        in_proj_weight=None,
        in_proj_bias=torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=pool.c_proj.weight,
        out_proj_bias=pool.c_proj.bias,
        use_separate_proj_weight=True,
        q_proj_weight=pool.q_proj.weight,
        k_proj_weight=pool.k_proj.weight,
        v_proj_weight=pool.v_proj.weight,
    )
    torch.testing.assert_close(pooled, expected.permute(1, 2, 0).reshape(2, 24, 2, 5), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name, parameters", [("RN50-quickgelu", 102_007_136), ("RN101-quickgelu", 119_688_032)])
def test_published_sizes(name, parameters):
    """CLIP's own counts without its temperature."""
    with torch.device("meta"):
        parts = ClipResNet(ClipEncoderConfig(name=name)), ClipTextEncoder(ClipEncoderConfig(name=name))
    assert sum(p.numel() for part in parts for p in part.parameters()) == parameters


# --- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["plain", "module.", "text."])
def test_weights_from_a_file(form, clip, tmp_path):
    state = clip.state_dict()
    if form == "module.":
        state = {"state_dict": {f"module.{key}": value for key, value in state.items()}}
    elif form == "text.":
        outside = ("visual.", "logit_scale")
        state = {key if key.startswith(outside) else f"text.{key}": value for key, value in state.items()}
    torch.save(state, tmp_path / "clip.pt")
    config = tiny_config(pretrained=str(tmp_path / "clip.pt"))
    image, text = ClipResNet(config), ClipTextEncoder(config)
    load_clip_weights(config, image, text)
    assert torch.equal(text.tower.text_projection, clip.text_projection)
    assert torch.equal(image.backbone.attnpool.positional_embedding, clip.visual.attnpool.positional_embedding)
    assert torch.equal(image.backbone.layer1[0].bn1.running_var, clip.visual.layer1[0].bn1.running_var)


def test_weights_from_a_tag(tmp_path, monkeypatch):
    settings = clip_model_config(tiny_config(vocab_size=49_408))
    (tmp_path / "tiny-clip.json").write_text(json.dumps(settings))
    open_clip.add_model_config(tmp_path / "tiny-clip.json")
    clip = CLIP(**settings)
    asked = []
    monkeypatch.setattr(clip_encoders, "get_pretrained_cfg", lambda name, tag: {"url": tag})
    monkeypatch.setattr(clip_encoders.open_clip, "create_model", lambda *a, **k: asked.append((a, k)) or clip)
    config = ClipEncoderConfig(name="tiny-clip")
    image, text = ClipResNet(config), ClipTextEncoder(config)
    load_clip_weights(config, image, text)
    assert asked == [(("tiny-clip",), {"pretrained": "openai"})]
    assert torch.equal(text.tower.token_embedding.weight, clip.token_embedding.weight)

    def unreachable(*args, **kwargs):
        raise RuntimeError("Failed to download weights")

    monkeypatch.setattr(clip_encoders.open_clip, "create_model", unreachable)
    with pytest.raises(OSError, match="The public weights 'openai' of open_clip's tiny-clip .*Failed to download"):
        load_clip_weights(config, image, text)


def test_weights_that_do_not_fit_are_named(clip, tmp_path):
    image, text = encoders(clip, tmp_path)
    with pytest.raises(ValueError, match="No public weights fit RN101-quickgelu with arguments"):
        load_clip_weights(tiny_config(), image, text)
    with pytest.raises(ValueError, match="No public weights fit RN101-quickgelu .*vocab_size=40"):
        load_clip_weights(tiny_config(arguments=None), image, text)
    with pytest.raises(OSError, match="'absent.pt' is neither a tag .* nor a file"):
        load_clip_weights(tiny_config(pretrained="absent.pt"), image, text)
    for number, content in enumerate((b"no weights", pickle.dumps({"weight": Path("x")}, protocol=2))):
        (tmp_path / f"{number}.pt").write_bytes(content)
        with pytest.raises(ValueError, match=f"{number}.pt is damaged, or holds more than tensors"):
            load_clip_weights(tiny_config(pretrained=str(tmp_path / f"{number}.pt")), image, text)
    state = clip.state_dict() | {"positional_embedding": torch.zeros(9, 16)}
    del state["visual.layer1.0.conv1.weight"]
    torch.save(state, tmp_path / "clip.pt")
    with pytest.raises(ValueError, match="visual.layer1.0.conv1.weight") as refusal:
        load_clip_weights(tiny_config(pretrained=str(tmp_path / "clip.pt")), image, text)
    assert "positional_embedding" in str(refusal.value)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"name": "RN102"}, "open_clip has no model config 'RN102'"),
        ({"name": "ViT-B-16-quickgelu", "arguments": None}, "must be one of CLIP's ResNets"),
        ({"arguments": {"dim": 3}}, "arguments has no dim; it takes embed_dim"),
        ({"arguments": {"text_cfg": {"hf_model_name": "x"}}}, "arguments has no text_cfg.hf_model_name"),
        ({"arguments": {"vision_cfg": {"timm_model_name": "x"}}}, "arguments has no vision_cfg.timm_model_name"),
        ({"vocab_size": 0}, "vocab_size must be at least 1"),
        ({"width": 3}, "no field width"),
    ],
)
def test_configs_that_make_no_sense_are_refused(fields, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        ClipResNet(tiny_config(**fields))


# --- tokenizer -------------------------------------------------------------------------------------------------------

TEXTS = [
    "the man in the red shirt, 2nd from left!!",
    "It's HIS dog's; don't you'll we've I'M 'S ''s",
    "  two\n\tspaces   \u3000here ",
    "<end_of_text> a<end_of_text> !!<end_of_text><start_of_text>",
    "&amp;lt;b&amp;gt; &#x65;&#x301; e\u0301 caf\u00e9 \u201cquoted\u201d \u2019",
    "sch\u00c3\u00b6n \u00e2\u20ac\u2122 mojibake",
    "\u0130stanbul \u039f\u0394\u03a5\u03a3\u03a3\u0395\u03a5\u03a3 \u212a \u017f '\u017f \ufb01",
    "123,456.78 \u2167 \u00bd \u0664\u0665",
    "\U0001f600\U0001f44d\U0001f3fd \u200d\u200b \x00\x1c\x85",
    "a\u0345 \U00010eda \U000323bd",  # letters of younger Unicode versions, on which libraries disagree
    "\u7ea2\u8272\u7684\u72d7 \u043a\u0440\u0430\u0441\u043d\u0430\u044f",
    "word " * 40,
]


def test_tokenizer_and_cleaning_are_open_clips(tmp_path):
    clip_tokenizer().save_pretrained(tmp_path)
    ours, theirs = AutoTokenizer.from_pretrained(tmp_path), open_clip.get_tokenizer("RN101-quickgelu")
    scattered = random.Random(0)
    points = [point for point in range(1, 0x110000) if not 0xD800 <= point < 0xE000]
    texts = [*TEXTS, *("".join(map(chr, scattered.choices(points, k=8))) for _ in range(100))]
    texts += ["".join(scattered.choices("aB'sS1!? <_>&;\u0301\u00e9\n", k=20)) for _ in range(100)]
    for length in (17, 77):
        encoded = ours(
            [clean_text(text) for text in texts],
            padding="max_length",
            truncation=True,
            max_length=length,
            return_tensors="pt",
        )
        expected = theirs(texts, context_length=length)
        assert torch.equal(encoded["input_ids"] * encoded["attention_mask"], expected)
    assert len(ours) == 49_408 and (ours.bos_token_id, ours.eos_token_id) == (49_406, 49_407)


def test_cleaning_is_settled_after_once():
    for text in TEXTS[:3]:
        assert clean_text(clean_text(text)) == clean_text(text)
    assert clean_text("It's the 2nd  <b>DOG</b>&amp;") == "it 's the 2 nd < b > dog </ b >&"
