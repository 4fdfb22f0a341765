"""Configurations: nested ones given in part, attributes of others, and sizes that no model has."""

import json
import time

import pytest
from transformers import AutoConfig, AutoModel

import hf_ris
from hf_ris.models.configuration_ris import VisionEncoderConfig
from hf_ris.models.modeling_lavt import LavtForReferringSegmentation


ARCHITECTURES = sorted(hf_ris.ARCHITECTURES)
VISION = [  # CLIPSeg's is transformers' own
    name for name in ARCHITECTURES if AutoConfig.for_model(name).sub_configs.get("vision_config") is VisionEncoderConfig
]
CLIP = [name for name in ARCHITECTURES if "clip_config" in AutoConfig.for_model(name).sub_configs]


def fields_of(nested) -> dict:
    names = ("name", "pretrained_tag", "pretrained", "arguments", "output_stages", "vocab_size")
    return {name: value for name, value in nested.to_dict().items() if name in names}


@pytest.mark.parametrize("name", VISION)
def test_a_vision_config_in_part_keeps_the_rest_of_the_architectures_own(name):
    own = fields_of(AutoConfig.for_model(name).vision_config)
    for part in ({}, {"name": own["name"]}, {"output_stages": list(own["output_stages"])}):
        assert fields_of(AutoConfig.for_model(name, vision_config=part).vision_config) == own
    given = {"arguments": {"drop_path_rate": 0.1}}
    config = AutoConfig.for_model(name, vision_config=given)
    expected = {**(own["arguments"] or {}), "drop_path_rate": 0.1}
    assert fields_of(config.vision_config) == own | {"arguments": expected}
    assert given == {"arguments": {"drop_path_rate": 0.1}}
    assert AutoConfig.for_model(name, vision_config={"arguments": None}).vision_config.arguments is None
    again = type(config)(**config.to_dict())
    assert fields_of(again.vision_config) == fields_of(config.vision_config)


@pytest.mark.parametrize("name", CLIP)
def test_a_clip_config_in_part_keeps_the_rest_of_the_architectures_own(name):
    own = fields_of(AutoConfig.for_model(name).clip_config)
    config = AutoConfig.for_model(name, clip_config={"vocab_size": 99})
    assert fields_of(config.clip_config) == own | {"vocab_size": 99}


def test_another_swin_keeps_arguments_and_tag_and_a_resnet_does_not():
    small = AutoConfig.for_model("mpg_lqgnet", vision_config={"name": "swin_small_patch4_window7_224"}).vision_config
    assert (small.pretrained_tag, small.arguments) == ("ms_in22k", {"drop_path_rate": 0.3})
    resnet = AutoConfig.for_model("vatex", vision_config={"name": "resnet101"}).vision_config
    assert (resnet.pretrained_tag, resnet.arguments) == (None, None)
    swin = AutoConfig.for_model("vlt", vision_config={"name": "swin_base_patch4_window12_384"}).vision_config
    assert list(swin.output_stages) == [3, 4, 5]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_saved_configuration_is_read_as_it_was_and_overridden_in_part(name, tiny_trio, tmp_path):
    config = tiny_trio(name)[0].config
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    for field in config.sub_configs:
        assert fields_of(getattr(again, field)) == fields_of(getattr(config, field))
    if name not in VISION:
        return
    other = AutoConfig.from_pretrained(tmp_path, vision_config={"arguments": {"drop_path_rate": 0.25}})
    arguments = {**(config.vision_config.arguments or {}), "drop_path_rate": 0.25}
    assert other.vision_config.arguments == arguments
    with pytest.raises(ValueError, match="max_text_length must be at least 1"):
        AutoConfig.from_pretrained(tmp_path, max_text_length=0)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_added_attributes_are_saved_and_read_again(name, tiny_trio, tmp_path):
    model, _ = tiny_trio(name, fresh=True)
    model.config.my_note = {"trained on": "my photos", "steps": 10**9}
    model.config.pad_token_id = 0
    for field in model.config.sub_configs:
        getattr(model.config, field).bos_token_id = 49_406
    model.save_pretrained(tmp_path)
    config = AutoModel.from_pretrained(tmp_path).config
    assert config.my_note == model.config.my_note and config.pad_token_id == 0
    assert all(getattr(config, field).bos_token_id == 49_406 for field in config.sub_configs)
    assert type(config)(**config.to_dict()).my_note == model.config.my_note


HOSTILE = [
    {"num_labels": 10**9},
    {"image_size": 10**6},
    {"max_text_length": 10**5000},
    {"id2label": {str(index): "label" for index in range(100_000)}},
    {"vision_config": {"arguments": {"depths": [10**6, 1, 1, 1]}}},
    {"vision_config": {"arguments": {"depths": [100, 100, 100, 100]}}},
    {"vision_config": {"arguments": {"window_size": 10**4}}},
    {"vision_config": {"arguments": {"embed_dim": -1}}},
    {"vision_config": {"arguments": {"drop_path_rate": float("nan")}}},
    {"vision_config": {"output_stages": [2] * 10**5}},
    {"text_config": {"num_hidden_layers": 10**6}},
    {"text_config": {"num_labels": 10**9}},
    {"text_config": {"hidden_size": 0}},
    {"text_config": {"hiden_size": 64}},
    {"clip_config": {"arguments": {"text_cfg": {"layers": 10**6}}}},
    {"clip_config": {"arguments": {"vision_cfg": {"layers": [10**6, 1, 1, 1]}}}},
]


@pytest.mark.parametrize("index", range(len(HOSTILE)))
def test_sizes_that_no_model_has_are_refused_at_once(index):
    (field, _), *_ = HOSTILE[index].items()
    start = time.process_time()
    for name in ARCHITECTURES:
        if field in AutoConfig.for_model(name).to_dict() or field == "num_labels":
            with pytest.raises(ValueError, match=r"must be at|has no field|builds no") as caught:
                AutoConfig.for_model(name, **HOSTILE[index])
            assert len(str(caught.value)) < 1500 and field in str(caught.value) + "text_config"
    assert time.process_time() - start < 60  # built, they take minutes or all memory


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("vision_config", {"arguments": {"windw_size": 7}}, "windw_size"),
        ("vision_config", {"name": "swin_gigantic"}, "swin_gigantic"),
        ("clip_config", {"arguments": {"text_cfg": {"heads": 7}}}, "heads"),
    ],
)
def test_what_timm_or_open_clip_cannot_build_is_one_sentence(field, value, named):
    config = AutoConfig.for_model("lavt", text_encoder="clip", **{field: value})
    with pytest.raises(ValueError, match=named):
        LavtForReferringSegmentation(config)


def test_a_model_of_billions_of_parameters_is_not_drawn_for_a_small_checkpoint(tiny_trio, tmp_path):
    model, _ = tiny_trio("lts")
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_size": 16_000}))
    with pytest.raises(RuntimeError) as caught:  # of transformers, after ours
        AutoModel.from_pretrained(tmp_path)
    assert "a size of its configuration is wrong" in str(caught.value.__context__)
