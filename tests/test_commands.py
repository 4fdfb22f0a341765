"""The command line: every verb's help, what a user gets wrong, and the way imports run."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from hf_ris import resources
from hf_ris.__main__ import VERBS, main
from hf_ris.commands import command


def hf_ris(*words: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"} | environment
    call = [sys.executable, "-m", "hf_ris", *words]
    return subprocess.run(call, cwd=cwd, env=environment, capture_output=True, text=True, timeout=280)


# ---------------------------------------------------------------- help


def test_help_and_version_need_nothing_heavy():
    script = """
import json, sys
from hf_ris.__main__ import VERBS, main
seen = {}
for words in [["--help"], ["--version"], *([verb, "--help"] for verb in VERBS)]:
    try:
        main(words)
    except SystemExit as stop:
        seen[" ".join(words)] = stop.code
heavy = sorted({"torch", "transformers", "datasets", "timm", "open_clip"} & sys.modules.keys())
print(json.dumps([seen, heavy]), file=sys.stderr)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    seen, heavy = json.loads(done.stderr.splitlines()[-1])
    assert set(seen.values()) == {0} and len(seen) == 2 + len(VERBS) and heavy == []
    for verb, says in VERBS.items():
        assert says in done.stdout and f"usage: hf-ris {verb}" in done.stdout


def test_every_verb_has_a_file():
    files = {path.stem for path in (ROOT / "hf_ris" / "commands").glob("*.py")} - {"__init__", "command"}
    assert files == set(VERBS)


# ---------------------------------------------------------------- what a user gets wrong


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train"], "Give a recipe, a YAML file or one of "),
        (["train", "lts/refcocoo"], "There is no recipe lts/refcocoo: give the path of a file, or one of "),
        (["train", "lts/refscenes", "training.stepz=1"], "training has no key 'stepz'"),
        (["train", "lts/refscenes", "--private"], "--private would be ignored: it is for --push-to-hub"),
        (["train", "lts/refscenes", "data.name=nope", "output_dir=OUT"], "there is no data set 'nope'"),
        (["evaluate"], "Give --model DIR_OR_HUB_ID, or --predictions FILE.jsonl"),
        (["evaluate", "--predictions", "none.jsonl"], "No such file or directory: 'none.jsonl'"),
        (["evaluate", "--predictions", "empty.jsonl"], "empty.jsonl holds no predictions"),
        (["evaluate", "--predictions", "broken.jsonl"], "broken.jsonl, line 1: the line lacks expression_id"),
        (["evaluate", "--predictions", "a", "--split", "val"], "--split would be ignored"),
        (["evaluate", "--model", "none"], "There is no folder none, and a Hub id has the form user/name"),
        (["evaluate", "--model", "user/none"], "user/none cannot be loaded"),
        (["evaluate", "--model", "bare"], "bare cannot be loaded"),
        (["benchmark", "--model", "bare"], "bare cannot be loaded"),
        (["evaluate", "--model", "none", "--batch-size", "0"], "--batch-size is at least 1, not 0"),
        (["prepare", "refcoco", "--raw", "none", "--out", "OUT"], "none"),
        (["prepare", "refcoco", "--raw", "r", "--out", "o", "--split-by", "umd"], "--split-by would be ignored: it is"),
        (["describe", "none"], "there is no data set 'none'"),
        (["convert", "lavt", "none.pth", "OUT"], "none.pth"),
        (["convert", "lavt", "a.pth", "OUT", "--config", "broken.jsonl", "--private"], "--private would be ignored"),
        (["export", "--arch", "lts"], "Give --out FILE.pt2 or --out FILE.onnx"),
        (["export", "--table", "lts", "--out", "a.onnx"], "--out would be ignored: --table writes no file"),
        (["export", "--model", "none", "--out", "a.pt2"], "There is no folder none"),
        (["push", "none", "user/x", "--out", "OUT"], "There is no folder none"),
        (["push", "none", "user/x", "--out", "OUT", "--private"], "--private would be ignored: --out pushes nothing"),
        (["benchmark", "--arch", "lts", "--raw", "x"], "--raw would be ignored: it is for --data"),
        (["benchmark", "--arch", "lts", "--config", "none.json"], "No such file or directory: 'none.json'"),
        (["benchmark", "--arch", "lts", "--config", "deep.json"], "deep.json is not a readable JSON file"),
        (["benchmark", "--arch", "lts", "--config", "list.json"], "list.json holds a JSON list; it takes an object"),
        (["evaluate", "--predictions", "deep.json"], "deep.json, line 1: not JSON"),
        (["benchmark", "--arch", "lts", "--expressions", "1"], "--expressions must be at least 2"),
        (["benchmark", "--arch", "lts", "--against", "nowhere"], "nowhere holds no hf_ris"),
        (["benchmark", "--arch", "lts", "--training-step"], "--training-step would be ignored: it is for --against"),
    ],
    ids=lambda value: "_".join(value)[:50] if isinstance(value, list) else "",
)
def test_a_users_error_is_one_sentence(words, sentence, tmp_path, monkeypatch, capsys):
    (tmp_path / "bare").mkdir()
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "broken.jsonl").write_text("{}\n")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "list.json").write_text("[]")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SystemExit) as stop:
        main([word.replace("OUT", str(tmp_path / "out")) for word in words])
    said = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and said.startswith(f"hf-ris {words[0]}: ") and sentence in said
    assert not (tmp_path / "out" / "best").exists()


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch):
    def breaks(*_):
        raise KeyError("a fault")

    monkeypatch.setattr("hf_ris.commands.train.run", breaks)
    with pytest.raises(KeyError, match="a fault"):
        main(["train", "lts/refscenes"])


def test_the_process_ends_with_two_and_no_traceback(tmp_path):
    done = hf_ris("evaluate", "--predictions", "none.jsonl", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def test_an_error_without_text_is_a_sentence_still():
    assert command.sentence(ValueError()) == "ValueError: nothing more is known"
    assert command.sentence(ValueError("two\n  lines")) == "two lines"


# ---------------------------------------------------------------- resources


def test_recipes_have_names():
    names = resources.recipe_names()
    assert "lavt/refcoco" in names and resources.recipe_path("lavt/refcoco").is_file()
    own = ROOT / "train" / "recipes" / "lts" / "refscenes.yaml"
    assert resources.recipe_path(own) == own and own == resources.recipe_path("lts/refscenes")
    assert (resources.folder("accelerate") / "ddp.yaml").is_file()
    with pytest.raises(ValueError, match="swan has no card: swan.md is missing in model_cards"):
        resources.model_card_template("swan")


# ---------------------------------------------------------------- the house


# Every room stands above those it imports; what stands on one line knows nothing of its neighbours but what is listed.
ABOVE = {
    "models": set(),
    "drawing": set(),
    "resources": set(),
    "environment": set(),
    "processes": set(),
    "data": {"models", "drawing"},
    "metrics": {"data"},
    "baselines": {"models"},
    "one_line": {"baselines", "models"},
    "labelling": {"data", "models", "processes"},
    "conversion": {"models"},
    "evaluation": {"metrics", "baselines", "data", "models", "drawing", "environment"},
    "hub": {"models", "data", "metrics", "resources", "environment", "evaluation"},
    "training": {"hub", "evaluation", "metrics", "data", "models", "drawing", "resources", "environment", "processes"},
    "export": {"training", "benchmark", "models"},
    "benchmark_against": set(),
    "benchmark_suite": {"benchmark", "environment", "models", "training"},
    "benchmark": {"data", "models", "environment", "evaluation", "training", "conversion"},
}
ENTRIES = {"__main__", "__init__", "commands"}  # may import all


def imported(path: Path) -> set[str]:
    """The rooms of hf_ris that a file imports, functions' own imports included."""
    rooms = set()
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = (
                ".".join([*package[: len(package) - node.level + 1], node.module or ""]) if node.level else node.module
            )
            names = [f"{base}.{alias.name}".replace("..", ".") for alias in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("hf_ris.")}
        if any(name.split(".")[0] in ("train", "space") for name in names):
            rooms.add("train or space")
    return rooms


def test_imports_run_one_way():
    wrong = []
    for path in sorted((ROOT / "hf_ris").rglob("*.py")):
        room = path.relative_to(ROOT / "hf_ris").parts[0].removesuffix(".py")
        if room in ENTRIES or path.name == "__main__.py":
            continue
        for other in (
            imported(path) - {room, "ARCHITECTURES", "VIDEO_ARCHITECTURES", "ALIASES", "__version__"} - ABOVE[room]
        ):
            wrong.append(f"{path.relative_to(ROOT)} imports {other}")
    assert wrong == []


def test_the_walk_sees_every_kind_of_import():
    assert imported(ROOT / "hf_ris" / "commands" / "train.py") >= {"resources", "training", "hub", "commands"}


def test_import_registers_what_transformers_finds_later():
    script = """
import sys
import hf_ris
assert not {"torch", "transformers"} & sys.modules.keys()
assert {"LtsConfig", "VatexProcessor", "LavtForReferringSegmentation"} <= set(dir(hf_ris))
from transformers import AutoConfig, AutoModel
assert type(AutoConfig.for_model("lts")) is hf_ris.LtsConfig
assert AutoModel._model_mapping[hf_ris.LtsConfig] is hf_ris.LtsForReferringSegmentation
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
