"""Official checkpoints become models with the same logits; files that do not fit, or would run code, are refused."""

import argparse
import json
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from golden import SHARED, golden
from hub_server import HubServer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageSegmentation, AutoProcessor

from hf_ris import CrisConfig, CrisForReferringSegmentation, LavtConfig, LavtForReferringSegmentation
from hf_ris.commands.convert import main
from hf_ris.conversion import cris
from hf_ris.conversion.checkpoint import ConversionError, gather, read_checkpoint
from hf_ris.conversion.lavt import build_config, official_name, official_state


GOLDEN = SHARED / "golden"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{index}" for index in range(55))]
OVERRIDES = {
    "image_size": 64,
    "max_text_length": 7,
    "fusion_num_heads": [1, 2, 1, 2],
    "text_config": {"num_attention_heads": 2},
}


def tiny_model() -> LavtForReferringSegmentation:
    torch.manual_seed(0)
    arguments = {"embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [1, 1, 2, 2], "window_size": 3, "mlp_ratio": 2.0}
    text = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 24}
    config = LavtConfig(
        vision_config={"arguments": arguments},
        text_config=text | {"max_position_embeddings": 20} | OVERRIDES["text_config"],
        decoder_dim=12,
        **{name: value for name, value in OVERRIDES.items() if name != "text_config"},
    )
    return LavtForReferringSegmentation(config).eval()


def official(model: LavtForReferringSegmentation) -> dict[str, torch.Tensor]:
    """A state dict as the published program would have saved it in one piece (`lavt_one`)."""
    state = {}
    for key, tensor in model.state_dict().items():
        name = official_name(key)
        token_convolution = ".fusion." in name and name.endswith("weight")
        state[name] = tensor[..., None] if token_convolution else tensor
    state["backbone.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(9, 9, dtype=torch.long)
    return state


def split(state: dict[str, torch.Tensor]) -> dict:
    """The same in the `lavt` format, with all that training leaves in the file."""
    bert = {key.removeprefix("text_encoder."): value for key, value in state.items() if key.startswith("text_encoder.")}
    bert |= {"pooler.dense.weight": torch.zeros(16, 16), "pooler.dense.bias": torch.zeros(16)}
    return {
        "model": {key: value for key, value in state.items() if not key.startswith("text_encoder.")},
        "bert_model": bert,
        "optimizer": {"state": {0: {"step": 7, "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 5e-5}]},
        "epoch": 39,
        "args": argparse.Namespace(model="lavt", lr=5e-5, mha="", nested=argparse.Namespace(pin_mem=True)),
        "lr_scheduler": {"base_lrs": [5e-5]},
    }


@pytest.fixture
def place(tmp_path):
    """Paths of a conversion: overrides and vocabulary are there, the checkpoint is the test's to write."""
    (tmp_path / "overrides.json").write_text(json.dumps(OVERRIDES))
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return tmp_path


def convert(place: Path, name: str, **files) -> Path:
    paths = {"config": place / "overrides.json", "vocab": place / "vocab.txt"} | files
    options = [str(part) for option, path in paths.items() if path for part in (f"--{option}", path)]
    main(["lavt", str(place / name), str(place / "out"), *options])
    return place / "out"


@pytest.mark.parametrize("form", ["lavt", "lavt_one", "bare.safetensors"])
def test_every_format_gives_the_same_model(form, place, capsys):
    model = tiny_model()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    state = official(model)
    if form == "bare.safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, place / form)
    else:
        torch.save(split(state) if form == "lavt" else {"model": state}, place / form)
    out = convert(place, form)
    assert capsys.readouterr().err.count("no place") == 0
    loaded, processor = AutoModelForImageSegmentation.from_pretrained(out), AutoProcessor.from_pretrained(out)
    image = torch.randint(0, 255, (50, 70, 3), dtype=torch.uint8).numpy()
    inputs = processor(image, ["word7 word8", "word9 word50 word1 word2 word3 word4"])
    assert inputs["pixel_values"].shape == (1, 3, 64, 64) and inputs["input_ids"].tolist()[0][:4] == [2, 12, 13, 3]
    assert inputs["input_ids"].shape == (2, 7)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, atol=1e-5, rtol=0)


def test_names_are_the_official_ones():
    names = {official_name(key) for key in tiny_model().state_dict()}
    assert {
        "backbone.patch_embed.proj.weight",
        "backbone.layers.0.downsample.reduction.weight",
        "backbone.layers.2.blocks.1.attn.relative_position_bias_table",
        "backbone.layers.1.fusion.image_lang_att.f_query.0.bias",
        "backbone.layers.3.res_gate.2.weight",
        "backbone.norm3.weight",
        "classifier.bn2_2.running_var",
        "classifier.conv1_1.bias",
        "text_encoder.encoder.layer.1.output.LayerNorm.weight",
    } <= names
    assert not any(name.startswith(("vision_encoder", "fusions", "gates", "decoder")) for name in names)


@golden("golden/lavt_full_keys.json", "golden/lavt_one_full_keys.json")
@pytest.mark.parametrize("form", ["lavt", "lavt_one"])
def test_published_checkpoints_are_the_paper_configuration(form):
    """Every key of the published files is placed, and their shapes alone give `LavtConfig()`."""
    keys = json.loads((GOLDEN / f"{form}_full_keys.json").read_text())
    parts = {
        part: {key: torch.empty(shape, dtype=getattr(torch, dtype), device="meta") for key, shape, dtype in keys[part]}
        for part in ("model", "bert_model")
        if part in keys
    }
    if form == "lavt":
        pooler = keys["bert_pooler_keys_only_if_not_ddp_trained"]
        parts["bert_model"] |= {key: torch.empty(shape, device="meta") for key, shape, _ in pooler}
    state = official_state(parts)
    config = build_config(state)
    assert config.to_dict() == LavtConfig().to_dict()
    with torch.device("meta"):
        model = LavtForReferringSegmentation(config)
    ours, unplaced = gather(state, {key: official_name(key) for key in model.state_dict()}, model)
    assert not unplaced and ours.keys() == model.state_dict().keys()


@golden("golden/lavt_tiny_state_dict.safetensors", "golden/lavt_tiny_io.safetensors")
@pytest.mark.parametrize("form", ["lavt", "lavt_one"])
def test_converted_checkpoint_has_the_published_logits(form, place):
    weights = load_file(GOLDEN / "lavt_tiny_state_dict.safetensors")
    bert = load_file(GOLDEN / "lavt_tiny_bert_state_dict.safetensors")
    (place / "overrides.json").write_text('{"image_size": 128, "text_config": {"num_attention_heads": 2}}')
    (place / "vocab.txt").write_text("\n".join(f"word{index}" for index in range(995)) + "\n" + "\n".join(WORDS[:5]))
    if form == "lavt":
        content = {"model": weights, "bert_model": bert, "args": argparse.Namespace()}
    else:
        content = {"model": weights | {f"text_encoder.{key}": value for key, value in bert.items()}}
    torch.save(content, place / "official.pth")
    model = AutoModelForImageSegmentation.from_pretrained(convert(place, "official.pth"))
    reference = load_file(GOLDEN / "lavt_tiny_io.safetensors")
    with torch.no_grad():
        logits = model(*(reference[name] for name in ("pixel_values", "input_ids", "attention_mask"))).logits
    torch.testing.assert_close(logits, reference["logits"][:, 1] - reference["logits"][:, 0], atol=1e-4, rtol=0)


@golden("data/bert-base-uncased/vocab.txt")
def test_published_vocabulary(place):
    from hf_ris.conversion.lavt import read_tokenizer

    tokenizer = read_tokenizer(SHARED / "data" / "bert-base-uncased" / "vocab.txt", LavtConfig())
    assert tokenizer("The dog's LEFT ear")["input_ids"] == [101, 1996, 3899, 1005, 1055, 2187, 4540, 102]


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


@pytest.mark.parametrize("where", ["args", "inside a Namespace", "bare pickle"])
def test_code_in_a_pickle_is_refused_and_not_run(where, place):
    trap = Touch(place / "was_run")
    if where == "bare pickle":
        (place / "official.pth").write_bytes(pickle.dumps({"model": trap}, protocol=2))
        pickle.loads((place / "official.pth").read_bytes())
    else:
        value = trap if where == "args" else argparse.Namespace(output_dir=trap)
        torch.save(split(official(tiny_model())) | {"args": value}, place / "official.pth")
        torch.load(place / "official.pth", weights_only=False)
    assert (place / "was_run").exists()  # an ordinary load falls into the trap
    (place / "was_run").unlink()
    with pytest.raises(SystemExit, match="it was not run"):
        convert(place, "official.pth")
    assert not (place / "was_run").exists() and not (place / "out").exists()


def change(state: dict, **changes) -> dict:
    changed = state | changes
    return {key: value for key, value in changed.items() if value is not None}


REFUSALS = {
    "it lacks backbone.layers.1.fusion.project_mm.0.bias": {"backbone.layers.1.fusion.project_mm.0.bias": None},
    "it lacks text_encoder.encoder.layer.1.output.dense.weight": {
        "text_encoder.encoder.layer.1.output.dense.weight": None
    },
    r"classifier.bn1_4.weight is \[13\] instead of \[12\]": {"classifier.bn1_4.weight": torch.zeros(13)},
    r"backbone.layers.0.fusion.vis_project.0.weight is \[8, 9, 1\] instead": {
        "backbone.layers.0.fusion.vis_project.0.weight": torch.zeros(8, 9, 1)
    },
    "does not look like LAVT: it lacks backbone.patch_embed.proj.weight": {"backbone.patch_embed.proj.weight": None},
    "'model' in the checkpoint is not a dictionary of tensors": {"backbone.norm0.bias": 3},
    "backbone.patch_embed.proj.weight is .8, 48., not 4 axes": {"backbone.patch_embed.proj.weight": torch.zeros(8, 48)},
    "windows of several sizes .2 in backbone.layers.2.blocks.1.* 3 in .*; ours has one size": {
        "backbone.layers.2.blocks.1.attn.relative_position_bias_table": torch.zeros(9, 2)
    },
    "layers.0.blocks.0.attn.relative_position_bias_table has 24 rows; the cells of a square were expected": {
        "backbone.layers.0.blocks.0.attn.relative_position_bias_table": torch.zeros(24, 1)
    },
    "Stage 1 of the checkpoint's Swin has 3 heads, which do not divide its width 8": {
        "backbone.layers.0.blocks.0.attn.relative_position_bias_table": torch.zeros(25, 3)
    },
    "adds absolute positions .backbone.absolute_pos_embed.": {"backbone.absolute_pos_embed": torch.zeros(1, 8, 4, 4)},
    "has 5 stages; LAVT fuses words in four": {"backbone.layers.4.blocks.0.norm1.weight": torch.zeros(8)},
}


@pytest.mark.parametrize("message", REFUSALS)
def test_what_does_not_fit_is_named_and_nothing_is_written(message, place):
    torch.save({"model": change(official(tiny_model()), **REFUSALS[message])}, place / "official.pth")
    with pytest.raises(SystemExit, match=message) as refusal:
        convert(place, "official.pth")
    assert "\n" not in str(refusal.value) and not (place / "out").exists()


def test_every_key_without_a_place_is_named(place, capsys):
    foreign = {f"lang_extra.{index}": torch.zeros(2) for index in range(20)}
    torch.save({"model": official(tiny_model()) | foreign}, place / "official.pth")
    convert(place, "official.pth")
    said = capsys.readouterr()
    assert [line for line in said.err.splitlines() if line.startswith("no place")] == [
        f"no place in the model for {key}; left out" for key in sorted(foreign)
    ]
    index = "backbone.layers.0.blocks.0.attn.relative_position_index"
    assert f"left out, since nothing reads it: {index}" in said.out
    assert f"{len(tiny_model().state_dict())} tensors placed, 21 left out" in said.out


def test_a_refusal_names_every_key_of_both_sides(place, capsys):
    """A renamed module is seen as what it is: lacking by its official names, and without a place by the others."""
    state = official(tiny_model())
    renamed = {key: key.replace("layers.2.fusion", "layers.2.pwam") for key in state if "layers.2.fusion" in key}
    torch.save({"model": {renamed.get(key, key): value for key, value in state.items()}}, place / "official.pth")
    with pytest.raises(SystemExit, match=r"it lacks backbone.layers.2.fusion\..* and 4 more; it has no use for .*pwam"):
        convert(place, "official.pth")
    lines = capsys.readouterr().err.splitlines()
    assert {f"the checkpoint lacks {key}" for key in renamed} <= set(lines) and len(renamed) == 12
    assert {f"no place in the model for {key}" for key in renamed.values()} <= set(lines)


def on_meta(model_class, config, name) -> dict[str, torch.Tensor]:
    """An official state dict without values."""
    with torch.device("meta"):
        state = model_class(config).state_dict()
    fusion = {key: ".fusion." in name(key) and key.endswith("weight") for key in state}
    return {name(key): value[..., None] if fusion[key] else value for key, value in state.items()}


@pytest.mark.parametrize(
    ("name", "window"),
    [
        ("swin_tiny_patch4_window7_224", 7),
        ("swin_small_patch4_window7_224", 12),
        ("swin_base_patch4_window12_384", 7),
        ("swin_large_patch4_window12_384", 12),
    ],
)
def test_other_swins_become_their_configuration(name, window):
    """Width, depths and window are read from shapes, and the encoder gets the name under which timm has weights."""
    vision = {"name": name, "pretrained_tag": "ms_in22k", "arguments": {"window_size": window, "drop_path_rate": 0.3}}
    text = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 64}
    config = LavtConfig(vision_config=vision, text_config=text, decoder_dim=64)
    state = on_meta(LavtForReferringSegmentation, config, official_name)
    found = build_config(state)
    assert found.to_dict() == config.to_dict()
    with torch.device("meta"):
        model = LavtForReferringSegmentation(found)
    assert gather(state, {key: official_name(key) for key in model.state_dict()}, model)[1] == []


def test_short_tables_of_positions_shorten_the_expressions():
    """A text encoder with positions for 12 tokens becomes a model that reads 12; more are refused."""
    state = official(tiny_model())
    state["text_encoder.embeddings.position_embeddings.weight"] = torch.zeros(12, 16)
    assert build_config(state, OVERRIDES | {"max_text_length": 5}).max_text_length == 5
    overrides = {name: value for name, value in OVERRIDES.items() if name != "max_text_length"}
    assert build_config(state, overrides).max_text_length == 12
    with pytest.raises(ValueError, match="max_text_length is 13, but text_config has max_position_embeddings=12"):
        build_config(state, overrides | {"max_text_length": 13})


def test_options_of_training_tell_what_shapes_cannot(place):
    content = split(official(tiny_model())) | {"args": argparse.Namespace(mha="1-2-1-2", img_size=64)}
    torch.save(content, place / "official.pth")
    (place / "overrides.json").write_text(json.dumps({"text_config": {"num_attention_heads": 2}}))
    config = json.loads((convert(place, "official.pth") / "config.json").read_text())
    assert config["fusion_num_heads"] == [1, 2, 1, 2] and config["image_size"] == 64
    torch.save(content | {"args": argparse.Namespace(mha="four")}, place / "official.pth")
    with pytest.raises(SystemExit, match="args.mha in the checkpoint is 'four'; it should be as 4-4-4-4"):
        convert(place, "official.pth")


# --- CRIS, of which the rest is in test_cris.py


def cris_on_meta(**fields) -> tuple[CrisConfig, dict[str, torch.Tensor]]:
    config = CrisConfig(masked_token_id=0, **fields)
    return config, on_meta(CrisForReferringSegmentation, config, cris.official_name)


@pytest.mark.parametrize(
    ("name", "neck"),
    [("RN50", [256, 512, 1024]), ("RN101", [256, 512, 1024]), ("RN50x4", [64, 640, 64])],
)
def test_other_resnets_of_clip_become_their_configuration(name, neck):
    config, state = cris_on_meta(clip_config={"name": f"{name}-quickgelu"}, neck_dims=neck)
    assert cris.build_config(state).to_dict() == config.to_dict()


def test_cris_that_cannot_be_ours_is_refused_in_a_sentence():
    _, state = cris_on_meta(decoder_layers=0)
    words = "backbone.positional_embedding"
    assert cris.build_config(state | {words: state[words][:12]}).max_text_length == 12
    with pytest.raises(ConversionError, match="max_text_length is 22, but the checkpoint has positions for 12 tokens"):
        cris.build_config(state | {words: state[words][:12]}, {"max_text_length": 22})
    with pytest.raises(ConversionError, match="image encoder is a vision transformer; CRIS reads three levels"):
        cris.infer_config(state | {"backbone.visual.transformer.resblocks.0.ln_1.bias": torch.zeros(1)})
    table = "backbone.visual.attnpool.positional_embedding"
    with pytest.raises(ConversionError, match=f"{table} has 49 rows; the cells of a square and 1 more were expected"):
        cris.infer_config(state | {table: state[table][:49]})


@pytest.mark.parametrize(
    "overrides, message",
    [
        ('{"fusion_heads": [1, 1, 1, 1]}', "no field fusion_heads"),
        ('{"text_config": {"heads": 2}}', "text_config in the overrides has no field heads"),
        ('{"vision_config": {"argument": {}}}', "no field argument"),
        ('{"image_size": "large"}', "image_size"),
        ('{"decoder_dim": 16}', r"classifier.conv1_4.weight is \[12, 96, 3, 3\] instead of \[16, 96, 3, 3\]"),
        ("[1]", "takes an object"),
        ("{", "not a readable JSON"),
    ],
)
def test_overrides_that_do_not_fit_are_named(overrides, message, place):
    torch.save({"model": official(tiny_model())}, place / "official.pth")
    (place / "overrides.json").write_text(overrides)
    with pytest.raises(SystemExit, match=message):
        convert(place, "official.pth")
    assert not (place / "out").exists()


def test_vocabularies_that_do_not_fit_are_named(place):
    torch.save({"model": official(tiny_model())}, place / "official.pth")
    (place / "vocab.txt").write_text("\n".join(WORDS[:-1]))
    with pytest.raises(SystemExit, match="The vocabulary has 59 words, but the checkpoint's BERT has 60"):
        convert(place, "official.pth")
    with pytest.raises(SystemExit, match="cannot be read"):
        convert(place, "official.pth", vocab=place / "absent.txt")
    overrides = OVERRIDES | {"text_pretrained": str(place / "absent")}
    (place / "overrides.json").write_text(json.dumps(overrides))
    with pytest.raises(SystemExit, match="neither cached nor reachable; connect once, or pass --vocab"):
        convert(place, "official.pth", vocab=None)
    assert not (place / "out").exists()


NO_CHECKPOINT = ["text.pth", "text.safetensors", "cut.pth", "flipped.pth", "empty.pth", "list.pth", "absent.pth"]


@pytest.mark.parametrize("name", NO_CHECKPOINT)
def test_files_that_are_no_checkpoint_get_one_sentence(name, place):
    torch.save({"model": official(tiny_model())}, place / "whole.pth")
    contents = {
        "text": b"not a checkpoint at all\n" * 9,
        "cut": (place / "whole.pth").read_bytes()[:-5000],
        "flipped": pickle.dumps({"model": [1, (2, "x")]}, protocol=2).replace(b"x", b"\xff"),
        "empty": b"",
    }
    if Path(name).stem in contents:
        (place / name).write_bytes(contents[Path(name).stem])
    elif name == "list.pth":
        torch.save([torch.zeros(2)], place / name)
    with pytest.raises(ConversionError) as refusal:
        read_checkpoint(place / name)
    assert "\n" not in str(refusal.value) and name in str(refusal.value)


def test_command_line(place):
    """The command writes a folder and brings the same to a Hub, in one commit."""
    torch.save({"model": official(tiny_model())}, place / "official.pth")
    command = [sys.executable, "-m", "hf_ris.conversion", "lavt", "official.pth", "out", "--vocab", "vocab.txt"]
    command += ["--config", "overrides.json", "--push-to-hub", "someone/lavt", "--private"]
    with HubServer() as hub:
        environment = hub.environment(place / "hf") | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "wrote out" in done.stdout and "pushed to someone/lavt" in done.stdout, done.stderr
    assert hub.commits == ["someone/lavt"] and hub.private == {"someone/lavt"}
    whole = {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "modeling_lavt.py"}
    pushed, written = hub.files["someone/lavt"], {path.name for path in (place / "out").iterdir()}
    assert whole <= written and whole <= pushed.keys()
    for name in whole - {"config.json"}:
        assert pushed[name] == (place / "out" / name).read_bytes(), name


def test_what_cannot_be_pushed_is_written_all_the_same(place, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    torch.save({"model": official(tiny_model())}, place / "official.pth")
    with pytest.raises(SystemExit, match="is written but not pushed: .*offline") as refusal:
        convert(place, "official.pth", **{"push-to-hub": "someone/lavt"})
    assert "\n" not in str(refusal.value) and (place / "out" / "model.safetensors").is_file()
    for options, sentence in {
        ("--push-to-hub", "a/b/c"): "Repo id must be in the form",
        ("--private",): "--private would be ignored: it is for --push-to-hub",
    }.items():
        with pytest.raises(SystemExit):
            main(["lavt", "official.pth", "elsewhere", *options])
        assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    "content, message",
    [
        ({"model": {1: torch.zeros(3)}}, "'model' in the checkpoint has the key 1, a int; keys are names"),
        ({"model": {"a": torch.zeros(3).to_sparse()}}, "holds a, which is no plain tensor of numbers"),
        ({"model": {"a": torch.zeros(3, dtype=torch.complex64)}}, "holds a, which is no plain tensor"),
        ({"model": {"a": torch.zeros(1).expand(10**9)}}, "holds a of shape .1000000000., which repeats its values"),
    ],
)
def test_odd_tensors_are_named(content, message, tmp_path):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(SystemExit, match=message):
        main(["lavt", str(tmp_path / "a.pth"), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_finite_are_refused(place):
    state = official(tiny_model())
    state["classifier.conv1_4.weight"][0, 0, 0, 0] = float("nan")
    torch.save({"model": state}, place / "nan.pth")
    with pytest.raises(SystemExit, match="values that are not finite in classifier.conv1_4.weight"):
        convert(place, "nan.pth")


def test_a_checkpoint_that_unpacks_without_bound_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(50_000_000))
    with pytest.raises(ConversionError, match="would have 50,000,000 bytes unpacked"):
        read_checkpoint(tmp_path / "a.pth")
