"""The second half of CLIP's pretraining: what an object's region and caption are, and a short run of both towers."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file

from hf_ris.data import decode_mask
from hf_ris.data.refscenes.scenes import load_refscenes
from hf_ris.data.transforms import mirror_text
from hf_ris.training.build import build_model
from hf_ris.training.pretraining.clip import looks
from hf_ris.training.pretraining.clip import main as pretrain_clip
from hf_ris.training.pretraining.regions import SceneRegions, region_features
from hf_ris.training.pretraining.regions import main as pretrain
from hf_ris.training.recipe import load_recipe


RECIPES = Path(__file__).resolve().parents[1] / "train" / "recipes"
TEXT = "text_cfg: {context_length: 24, width: 16, heads: 2, layers: 1}"
VISION = "vision_cfg: {layers: [1, 1, 1, 1], width: 4, image_size: 32}"
RESNET = f"RN101-quickgelu, arguments: {{embed_dim: 16, {VISION}, {TEXT}}}"
VISION = "vision_cfg: {layers: 1, width: 16, head_width: 8, patch_size: 16, image_size: 32}"
VIT = f"ViT-B-16-quickgelu, arguments: {{embed_dim: 16, {VISION}, {TEXT}}}"
DATA = "data={name: refscenes, size: 12, image_size: 64, validation_size: 4}"


def test_regions_are_the_described_objects_and_captions_what_is_said_of_them():
    scenes = load_refscenes("refscenes", "train", 4, image_size=64)
    rows = SceneRegions(scenes, "refscenes", 64, seed=0, augment=False)
    for index, row in enumerate(scenes):
        regions, captions, truths = rows[0, index][3:]
        assert len(regions) == len(captions) == len(truths) > 1
        said = looks(row)
        for region, caption, (_, category) in zip(regions, captions, truths):
            (position,) = [place for place, (_, texts) in said.items() if texts[0] == caption]
            assert row["objects"][position]["category"] == category
            mask = torch.from_numpy(decode_mask(row["objects"][position]["mask"]))[2::4, 2::4]
            assert not (region.bool() & ~mask).any()  # where another object covers it, it is not


def test_a_mirrored_scene_is_described_in_the_mirror():
    scenes = load_refscenes("refscenes", "train", 4, image_size=64)
    rows = SceneRegions(scenes, "refscenes", 64, seed=0, augment=True)
    mirrored = [(epoch, index) for epoch in range(3) for index in range(4) if rows.mirrored((epoch, index))]
    assert 0 < len(mirrored) < 12
    moved = 0
    for key in mirrored:
        texts = {text for _, said in looks(scenes[key[1]]).values() for text in said}
        for caption in rows[key][4]:
            assert mirror_text(caption) in texts
            moved += caption not in texts
    assert moved  # some named a side


def test_a_region_is_the_mean_over_its_own_positions():
    joint = torch.zeros(2, 3, 2, 2)
    joint[1, :, 0, 0], joint[1, :, 1, 1] = torch.tensor([3.0, 0, 4]), torch.tensor([0.0, 5, 0])
    regions = torch.zeros(2, 4, 4)
    regions[0, :2, :2] = 1  # the cell (0, 0) alone
    regions[1, 1:3, 1:3] = 1  # a quarter of every cell
    features = region_features(joint, regions, torch.tensor([1, 1]))
    torch.testing.assert_close(features[0], torch.tensor([0.6, 0, 0.8]))
    torch.testing.assert_close(features[1], torch.tensor([3.0, 5, 4]) / 50**0.5)


def pretrain_crops(arch: str, arguments: str, folder: Path) -> tuple[list[str], list[str]]:
    """A first half of two steps in `folder`; the options and overrides of the next."""
    overrides = [f"model.clip_config={{name: {arguments}}}", DATA]
    common = ["--recipe", str(RECIPES / arch / "refscenes.yaml"), "--no-bf16", "--learning-rate", "0.005"]
    common += ["--batch-size", "4", "--scenes", "12"]
    pretrain_clip([*common, "--out", str(folder), "--steps", "2", *overrides])
    return [*common, "--clip", str(folder)], overrides


@pytest.mark.parametrize("arguments", [RESNET, VIT])
def test_both_towers_learn_and_open_clip_loads_the_result(arguments, tmp_path):
    crops, regions = tmp_path / "crops", tmp_path / "regions"
    common, overrides = pretrain_crops("cris" if arguments == RESNET else "vatex", arguments, crops)
    pretrain([*common, "--out", str(regions), "--sizes", "64", "96", "--steps", "60", *overrides])

    log = [json.loads(line)["loss"] for line in (regions / "log.jsonl").read_text().splitlines()]
    assert log[-1] < 0.9 * log[0]
    told = json.loads((regions / "pretraining.json").read_text())
    assert told["sizes"] == [64, 96] and told["after"]["steps"] == 2
    assert all(0 <= told[f"region_retrieval_accuracy_at_{size}"] <= 1 for size in (64, 96))
    before, after = (load_file(folder / "open_clip_model.safetensors") for folder in (crops, regions))
    assert before.keys() == after.keys()
    for part in ("visual.", "transformer.", "token_embedding"):
        assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith(part))
    open_clip.create_model(f"local-dir:{regions}")


def test_a_vision_encoder_learns_to_fit_a_clip_that_stays(tmp_path):
    crops, vision = tmp_path / "crops", tmp_path / "vision"
    common, overrides = pretrain_crops("vatex", RESNET, crops)
    weights = (crops / "open_clip_model.safetensors").read_bytes()
    small = "model.vision_config.arguments={layers: [1, 1, 1, 1], channels: [8, 8, 16, 16], stem_width: 4}"
    options = [*common, "--frozen-clip", "--out", str(vision), "--sizes", "64", "--steps", "60"]
    pretrain([*options, *overrides, small])

    log = [json.loads(line)["loss"] for line in (vision / "log.jsonl").read_text().splitlines()]
    assert log[-1] < 0.9 * log[0]
    told = json.loads((vision / "pretraining.json").read_text())
    assert told["frozen_clip"] and 0 <= told["region_retrieval_accuracy_at_64"] <= 1
    assert (crops / "open_clip_model.safetensors").read_bytes() == weights
    path = f"initialize.vision_encoder={vision / 'vision_encoder.safetensors'}"
    recipe = load_recipe(RECIPES / "vatex" / "refscenes.yaml", [*overrides, small, path, "initialize.clip=null"])
    model, _ = build_model(recipe, load_refscenes("refscenes", "train", 4, image_size=64))
    state = load_file(vision / "vision_encoder.safetensors")
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.vision_encoder.state_dict().items())


def test_a_vision_encoder_and_a_gru_learn_together(tmp_path):
    options = ["--recipe", str(RECIPES / "vlt" / "refscenes.yaml"), "--no-bf16", "--learning-rate", "0.005"]
    options += ["--batch-size", "4", "--scenes", "12", "--sizes", "64", "--steps", "100", "--out", str(tmp_path)]
    darknet = "{depths: [1, 1, 1, 1, 1], widths: [4, 8, 8, 16, 16], stem_width: 4}"
    small = [DATA, "model.image_size=64", f"model.vision_config.arguments={darknet}"]
    pretrain([*options, *small])

    log = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert log[-1] < 0.9 * log[0]
    paths = {part: tmp_path / f"{part}.safetensors" for part in ("vision_encoder", "text_encoder")}
    from_files = [f"initialize.{part}={path}" for part, path in paths.items()]
    recipe = RECIPES / "vlt" / "refscenes.yaml"
    scenes = load_refscenes("refscenes", "train", 12, image_size=64)
    model, _ = build_model(load_recipe(recipe, [*small, *from_files]), scenes)
    for part, path in paths.items():
        state = load_file(path)
        assert all(torch.equal(tensor, state[name]) for name, tensor in getattr(model, part).state_dict().items())
    with pytest.raises(ValueError, match="initialize.text_encoder: .* has another vocabulary than the recipe"):
        build_model(load_recipe(recipe, [*small, *from_files, "processor.min_count=2"]), scenes)


def test_what_cannot_learn_so_is_one_sentence(tmp_path, capsys):
    common, overrides = pretrain_crops("cris", RESNET, tmp_path / "crops")
    lavt = ["--recipe", str(RECIPES / "lavt" / "refscenes.yaml"), DATA]
    vlt = ["--recipe", str(RECIPES / "vlt" / "refscenes.yaml"), DATA]
    for options, message in (
        ([*common, "--frozen-clip", *overrides], "--frozen-clip: cris has no vision encoder beside its CLIP"),
        ([*lavt, "--clip", str(tmp_path / "crops")], "crops is another CLIP than model.clip_config asks for"),
        ([*vlt, "--clip", str(tmp_path / "crops")], "--clip: vlt has no CLIP: no model.clip_config"),
        (lavt, "--clip: lavt has no Bi-GRU that could learn in its place; name a folder"),
    ):
        with pytest.raises(SystemExit):
            pretrain(["--out", str(tmp_path / "out"), *options])
        assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_what_has_no_first_half_is_one_sentence(tmp_path, capsys):
    recipe = str(RECIPES / "cris" / "refscenes.yaml")
    with pytest.raises(SystemExit):
        pretrain(["--recipe", recipe, "--clip", str(tmp_path / "none"), "--out", str(tmp_path / "out"), DATA])
    assert "holds no CLIP; make it with `python -m hf_ris.training.pretraining.clip`" in " ".join(
        capsys.readouterr().err.split()
    )
    assert not (tmp_path / "out").exists()
