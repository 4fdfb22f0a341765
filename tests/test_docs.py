"""Every code block of the README and of the cards runs: Python truly, commands as far as their own parsers."""

import argparse
import ast
import json
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from conftest import ROOT
from hub_server import HubServer
from huggingface_hub import ModelCard, SpaceCard
from PIL import Image

import hf_ris
from hf_ris.commands.train import read_recipe


CARDS = [ROOT / "model_cards" / f"{name}.md" for name in sorted(hf_ris.ARCHITECTURES)]
METRICS = sorted((ROOT / "hf_ris" / "metrics").glob("ris_*/README.md"))
DOCS = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS, *CARDS, *METRICS]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(path: Path, language: str) -> list[str]:
    return [code for kind, code in BLOCK.findall(path.read_text()) if kind == language]


def commands(path: Path) -> list[str]:
    """The commands of a document's shell blocks, and those within its sentences."""
    inline = re.findall(r"`((?:python|accelerate|hf-ris) [^`]+)`", BLOCK.sub("", path.read_text()))
    inline = [
        command for command in inline if len(command.split()) > 2 + (" -m " in command)
    ]  # `hf-ris train` is a name in a sentence
    lines = [line for code in blocks(path, "bash") for line in code.replace("\\\n", " ").splitlines()]
    return [" ".join(command.split()) for line in [*lines, *inline] for command in line.split("&&") if command.strip()]


# ---------------------------------------------------------------- commands


class Parsed(BaseException):
    """Raised in a program where it has read its arguments."""


@pytest.fixture
def parse(monkeypatch):
    """`parse(words)` runs a command up to the point where its arguments are read; a wrong one exits with 2."""

    def stop_after(read):
        def reads(self, arguments=None, namespace=None):
            raise Parsed(read(self, arguments, namespace))

        return reads

    def parse(words: list[str]) -> None:
        if words[:2] == ["accelerate", "launch"]:
            options = launch_command_parser().parse_args(words[2:])
            assert options.config_file is None or (ROOT / options.config_file).exists()
            by_module = ["-m"] if options.module else []
            return parse(["python", *by_module, options.training_script, *options.training_script_args])
        if words[0] == "hf-ris":
            words = ["python", "-m", "hf_ris", *words[1:]]
        by_module = words[1] == "-m"
        name, arguments = (words[2], words[3:]) if by_module else (words[1], words[2:])
        asked = words[3] if name == "hf_ris" and len(words) > 3 else Path(name).stem
        if not by_module and not re.search("argparse|import main|commands import", (ROOT / name).read_text()):
            assert not arguments, f"{name} takes no arguments"
            return None
        with monkeypatch.context() as patched:
            # of `hf_ris` the first reads the verb alone, and the verb's own parser the rest
            for read in ["parse_intermixed_args"] if name == "hf_ris" else ["parse_args", "parse_intermixed_args"]:
                patched.setattr(argparse.ArgumentParser, read, stop_after(vars(argparse.ArgumentParser)[read]))
            patched.setattr(sys, "argv", [name, *arguments])
            patched.setattr(sys, "path", ["", *sys.path])  # the scripts put the root in the place of their folder
            with pytest.raises(Parsed) as read:
                if by_module:
                    runpy.run_module(name, run_name="__main__", alter_sys=True)
                else:
                    runpy.run_path(str(ROOT / name), run_name="__main__")
        if asked in ("train", "hf_ris.training"):
            chosen = read_recipe(read.value.args[0])
            assert chosen.architecture in {*hf_ris.ARCHITECTURES, *hf_ris.VIDEO_ARCHITECTURES, "any"}
        return None

    return parse


def check_setup(words: list[str]) -> bool:
    """Whether this is a command that prepares or tests a checkout, with what it names at hand."""
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:]) <= set(targets), words
    elif "pip" in words[:3]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert set(re.findall(r"\[(\w+)\]", words[-1])) <= set(extras), words
    elif words[0] == "pre-commit":
        assert (ROOT / ".pre-commit-config.yaml").exists()
    elif words[0] != "." and words[1:3] not in (["-m", "venv"], ["-m", "pytest"]):
        return False
    return True


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_are_understood(path, parse):
    for command in commands(path):
        words = shlex.split(command, comments=True)
        if not check_setup(words):
            assert words[0] in ("python", "accelerate", "hf-ris"), command
            parse(words)


FROM_A_CLONE = """
accelerate launch train/train.py --recipe train/recipes/lavt/refcoco.yaml data.name=PREPARED_OR_HUB_ID
python train/train.py --recipe train/recipes/lts/refscenes.yaml output_dir=outputs/lts-refscenes
python train/train.py --recipe train/recipes/lts/refscenes.yaml --push-to-hub user/lts
python train/evaluate.py --model outputs/lts-refscenes/best --data refscenes --split test
python train/evaluate.py --predictions answers.jsonl --compare others.jsonl
python train/prepare_data.py refcocog --split-by google --raw downloads --out data/refcocog_google
python train/prepare_data.py joint --sets refcoco refcoco+ refcocog --raw downloads --out data/joint
python train/prepare_data.py describe data/refcoco --contact-sheet sheet.png
python train/push.py outputs/lts-refscenes user/lts outputs/lts-refscenes/test.json --private
python train/bundle.py outputs/lts-refscenes space/checkpoints/lts-refscenes outputs/lts-refscenes/test.json
python train/export.py --table
python train/export.py --model space/checkpoints/lts-refscenes --out lts.onnx
python train/benchmark.py --arch lavt --data OUT --raw RAW --split testA --workers 2
python train/lengths.py --data lists --bert bert-base-uncased
python train/pretrain_vision.py --recipe train/recipes/lavt/refscenes.yaml --steps 8000 --out outputs/vision
python train/pretrain_clip.py --recipe train/recipes/cris/refscenes.yaml --out outputs/clip-refscenes
python train/pretrain_regions.py --recipe train/recipes/vlt/refscenes.yaml --out outputs/vlt-regions
python train/pretrain_motion.py --recipe vatex_video/refscenes_video --out outputs/vatex_video-motion
python train/pretrain_landmarks.py --recipe finer_masks --out outputs/landmarks initialize.weights=outputs/lts
python -m hf_ris.conversion lavt CHECKPOINT.pth OUT_DIR
""".split("\n")[1:-1]


@pytest.mark.parametrize("command", FROM_A_CLONE)
def test_the_entry_points_of_a_clone_are_understood(command, parse):
    parse(shlex.split(command))


def test_a_wrong_command_is_found(parse):
    with pytest.raises(SystemExit):
        parse(["python", "train/evaluate.py", "--modle", "x"])
    with pytest.raises(ValueError, match="no key"):
        parse(["python", "train/train.py", "--recipe", "train/recipes/lts/refscenes.yaml", "training.stepz=1"])


# ---------------------------------------------------------------- Python


def run_blocks(code: list[str], hub: HubServer, home: Path, cwd: Path, path: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(code)],
        cwd=cwd,
        env=hub.environment(home) | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


NO_DOWNLOAD = """
import torch, hf_ris
from hf_ris import LavtForReferringSegmentation as Lavt
Lavt.load_pretrained_encoders = lambda self: None  # 0.8 GB; all else of the block is as it stands
torch.set_default_device("meta")
"""


def test_python_of_the_readme_and_of_what_it_leads_to(tiny_trio, tmp_path):
    """One after the other in one process, as somebody reads on."""
    code = []
    for block in [block for path in (ROOT / "README.md", *DOCS) for block in blocks(path, "python")]:
        pretrained = "from_pretrained_encoders" in block
        code += [NO_DOWNLOAD, block, "torch.set_default_device('cpu')"] if pretrained else [block]
    checks = """
assert results[0]["mask"].shape == (image.height, image.width), results[0]["mask"].shape
assert len(scenes) == 100, len(scenes)
assert isinstance(model, Lavt) and sum(p.numel() for p in model.parameters()) > 2e8, type(model)
assert type(pipe).__name__ == "ReferringImageSegmentationPipeline" and "lts" in pipe.model.name_or_path, type(pipe)
"""
    with HubServer() as hub:
        add_tiny(hub, tiny_trio, "lts", tmp_path)
        run_blocks([*code, checks], hub, tmp_path, ROOT, str(ROOT))


LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    for target in LINK.findall(BLOCK.sub("", path.read_text())):
        assert target.startswith(("http://", "https://", "mailto:")) or (path.parent / target).exists(), target


def test_the_readme_is_read_in_five_minutes():
    text = (ROOT / "README.md").read_text()
    assert text.count("\n") <= 150 and "](docs/masks.png)" in text


def add_tiny(hub: HubServer, tiny_trio, name: str, folder: Path) -> None:
    """Make `user/<name>` a repository that holds the tiny model of an architecture."""
    for part in tiny_trio(name):
        part.save_pretrained(folder / name)
    hub.add(f"user/{name}", folder / name)


@pytest.mark.slow
def test_python_of_the_cards(tiny_trio, tmp_path):
    """All of them in one process, which has neither this package nor weights at hand."""
    Image.linear_gradient("L").resize((64, 48)).convert("RGB").save(tmp_path / "photo.jpg")
    code = ["import sys", "sys.modules['hf_ris'] = None", "image = None"]
    with HubServer() as hub:
        for path in CARDS:
            add_tiny(hub, tiny_trio, path.stem, tmp_path)
            of_card = [block.replace("REPO_ID", f"user/{path.stem}") for block in blocks(path, "python")]
            assert len(of_card) >= 2
            checks = "assert len(results) == 2 and results[0]['mask'].shape == (48, 64)\ndel results"
            code += [*of_card, checks]
        run_blocks(code, hub, tmp_path / "hf", tmp_path, "")
    assert Image.open(tmp_path / "left dog.png").size == (64, 48)


@pytest.mark.parametrize("path", METRICS, ids=lambda path: path.parent.name)
def test_python_of_the_metric_cards(path, monkeypatch):
    """The last line of a block is an expression, and the comment under it is its value."""
    monkeypatch.chdir(ROOT)
    for block in blocks(path, "python"):
        *statements, last = ast.parse(block).body
        names: dict = {}
        exec(compile(ast.Module(statements, []), str(path), "exec"), names)
        value = eval(compile(ast.Expression(last.value), str(path), "eval"), names)
        assert value == ast.literal_eval(block.strip().splitlines()[-1].lstrip("# "))


# ---------------------------------------------------------------- heads


def test_every_architecture_has_a_card():
    found = sorted(path.stem for path in (ROOT / "model_cards").glob("*.md"))
    assert found == sorted(hf_ris.ARCHITECTURES | hf_ris.VIDEO_ARCHITECTURES)


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_a_model_card_is_valid(path):
    card = ModelCard.load(path)
    head = card.data.to_dict()
    assert head["license"] == "apache-2.0" and head["library_name"] == "transformers"
    assert head["pipeline_tag"] == "image-segmentation"
    assert head["tags"] == ["referring-image-segmentation", path.stem]
    assert not card.data.eval_results  # numbers belong to weights, and this one has none
    headings = re.findall(r"^## (.+)", card.text, re.MULTILINE)
    for wanted in ("Use", "Deviations", "The paper's numbers", "Limits"):
        assert any(heading.startswith(wanted) for heading in headings), wanted
    assert card.text.count("REPO_ID") == 3 and "Code: Apache-2.0" in " ".join(card.text.split())


@pytest.mark.parametrize("path", METRICS, ids=lambda path: path.parent.name)
def test_a_metric_card_is_valid(path):
    head = SpaceCard.load(path).data
    assert head.sdk == "gradio" and head.app_file == "app.py" and head.license == "apache-2.0"
    assert {"evaluate", "metric"} <= set(head.tags)
    assert json.dumps(head.to_dict())
