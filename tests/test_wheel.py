"""The package as `pip install` gives it: a wheel in an environment of its own, used from an empty folder."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from raw_refcoco import write_raw_refcoco
from test_conversion import OVERRIDES, WORDS, official, tiny_model


METRICS = ("ris_iou", "ris_oc_iou", "ris_localization", "ris_length_iou", "ris_video_jf")
SMOKE = ["training.max_steps=4", "data.size=32", "data.validation_size=4", "output_dir=run"]


def call(*words: str | Path, cwd: Path, env: dict[str, str]) -> str:
    done = subprocess.run([str(word) for word in words], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{words}: {done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a clone of what is committed, so that nothing lies beside it by chance."""
    place = tmp_path_factory.mktemp("wheel")
    call("git", "clone", "--quiet", ROOT, place / "clone", cwd=place, env=dict(os.environ))
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", place, place / "clone"]
    call(*build, cwd=place, env=dict(os.environ))
    shutil.rmtree(place / "clone")
    return next(place.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The programs of an environment with the wheel in it; the libraries are those of the tests' environment."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    packages = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        folder / "bin" / "python",
        "install",
        "--quiet",
        "--no-deps",
        wheel,
    ]
    call(*install, cwd=folder, env=dict(os.environ))
    return folder / "bin"


@pytest.mark.slow
def test_recipes_launch_configs_and_cards_are_in_the_wheel(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, there in (
        ("train/recipes", "recipes"),
        ("train/accelerate", "accelerate"),
        ("model_cards", "model_cards"),
    ):
        for path in (ROOT / folder).rglob("*.*"):
            assert f"hf_ris/_resources/{there}/{path.relative_to(ROOT / folder).as_posix()}" in names
    assert "hf_ris/py.typed" in names and not any(name.startswith(("space/", "tests/", "train/")) for name in names)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_every_tool_works_from_an_empty_folder(installed, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1"}
    inputs, folder = tmp_path / "inputs", tmp_path / "empty"
    folder.mkdir()
    write_raw_refcoco(inputs / "raw", 8, 64)
    torch.save({"model": official(tiny_model())}, inputs / "official.pth")
    (inputs / "overrides.json").write_text(json.dumps(OVERRIDES))
    (inputs / "vocab.txt").write_text("\n".join(WORDS) + "\n")

    def hf_ris(*words: str | Path) -> str:
        return call(installed / "hf-ris", *words, cwd=folder, env=environment)

    where = call(installed / "python", "-c", "import hf_ris; print(hf_ris.__file__)", cwd=folder, env=environment)
    assert Path(where.strip()).is_relative_to(installed.parent)
    hf_ris("train", "lts/refscenes", *SMOKE)
    printed = hf_ris("evaluate", "--model", "run/best", "--size", "2", "--result", "test.json", "--output", "a.jsonl")
    assert "slices under original" in printed
    assert (
        json.loads((folder / "test.json").read_text())["protocols"]
        == json.loads(hf_ris_result(hf_ris, folder, "evaluate", "--predictions", "a.jsonl"))["protocols"]
    )
    hf_ris("export", "--model", "run/best", "--out", "lts.pt2")
    hf_ris("push", "run", "user/lts", "test.json", "--out", "repository")
    assert (folder / "repository" / "modeling_lts.py").is_file()
    hf_ris(
        "convert",
        "lavt",
        inputs / "official.pth",
        "lavt",
        "--config",
        inputs / "overrides.json",
        "--vocab",
        inputs / "vocab.txt",
    )
    hf_ris("prepare", "refcoco", "--raw", inputs / "raw", "--out", "refcoco", "--skip-count-check", "--workers", "1")
    assert "train: " in hf_ris("describe", "refcoco", "--contact-sheet", "sheet.png")
    hf_ris("benchmark", "--model", "run/best", "--cpu", "--repeats", "1", "--expressions", "2")
    script = "import evaluate, hf_ris.metrics\n" + "".join(
        f"print(evaluate.load(hf_ris.metrics.module_path({name!r})).name)\n" for name in METRICS
    )
    assert call(installed / "python", "-c", script, cwd=folder, env=environment).split() == list(METRICS)


def hf_ris_result(hf_ris, folder: Path, *words: str) -> str:
    hf_ris(*words, "--result", "again.json")
    return (folder / "again.json").read_text()
