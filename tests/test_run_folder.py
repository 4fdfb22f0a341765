"""Runs that are resumed, disturbed or damaged: the same weights and the same log, and nothing of anybody's is lost."""

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from test_train import assert_same_weights, log_of, run

from hf_ris.hub.run_log import read_log
from hf_ris.training.run_folder import RunFolder, damage


SPEED = {"seconds", "images_per_second", "expressions_per_second"}  # what two equal runs may differ in
LOGGED = ["training.log_every=4", "training.evaluate_every=4", "training.save_every=2"]


def told(folder: Path) -> list[dict]:
    """The log without its timings."""
    return [{name: value for name, value in line.items() if name not in SPEED} for line in log_of(folder)]


def group_of(folder: Path, step: int) -> dict:
    state = torch.load(folder / f"checkpoints/step_{step:08d}/optimizer.bin", weights_only=False)
    return state["param_groups"][0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(tmp_path_factory.mktemp("runs") / "whole", *LOGGED)


@pytest.mark.parametrize("stop", [2, 3, 5])
def test_a_resumed_run_has_the_log_of_one_that_was_not_interrupted(whole, tmp_path, stop):
    """Checkpoints lie between two lines of the log; an early end logs, evaluates and saves where nothing is due."""
    broken = run(tmp_path / "broken", *LOGGED, "--stop-at-step", str(stop))
    assert log_of(broken)[-1]["early_end"] and log_of(broken)[-1]["step"] == stop
    run(broken, *LOGGED, "--resume")
    assert told(broken) == told(whole)
    assert_same_weights(whole, broken)
    assert_same_weights(whole, broken, "best")


def test_a_resumed_run_uses_the_settings_it_records(tmp_path):
    folder = run(tmp_path / "run", "--stop-at-step", "4")
    rules = "optimizer.rules=[{pattern: ^vision_encoder, freeze: true}, {pattern: ^segmentation, lr_scale: 0.5}]"
    changed = ["optimizer.name=adam", "optimizer.learning_rate=0.02", "optimizer.weight_decay=0.9", rules]
    run(folder, *changed, "optimizer.betas=[0.5, 0.9]", "--resume")
    group = group_of(folder, 6)
    assert (group["initial_lr"], group["weight_decay"], list(group["betas"])) == (0.02, 0.9, [0.5, 0.9])
    old, new = (load_file(folder / f"checkpoints/step_0000000{step}/model.safetensors") for step in (4, 6))
    frozen = [
        name for name in old if name.startswith("vision_encoder") and "running" not in name and "num_b" not in name
    ]
    assert all(torch.equal(old[name], new[name]) for name in frozen)
    described = json.loads((folder / "run.json").read_text())
    assert {"step": 4, "key": "optimizer.weight_decay", "before": 0.01, "after": 0.9} in described["changes"]
    assert described["recipe"]["optimizer"]["name"] == "adam"


@pytest.mark.parametrize(
    "override, sentence",
    [
        ("model.segmentation_dim=16", "does not fit the recipe"),
        ("training.ema_decay=0.9", "does not fit the recipe"),
        ("data.size=8", "another vocabulary"),
        ("training.max_steps=1", "beyond the last step of the recipe, 1"),
    ],
)
def test_what_cannot_go_on_says_why(tmp_path, override, sentence):
    folder = run(tmp_path / "run", "--stop-at-step", "2")
    before = (folder / "run.json").read_text(), (folder / "log.jsonl").read_text()
    with pytest.raises(SystemExit, match=sentence):
        run(folder, override, "--resume")
    assert ((folder / "run.json").read_text(), (folder / "log.jsonl").read_text()) == before


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [cut, empty, flip, Path.unlink])
def test_a_damaged_checkpoint_is_named_and_the_older_one_used(whole, tmp_path, capfd, harm):
    folder = run(tmp_path / "run", *LOGGED, "--stop-at-step", "4")
    harm(folder / "checkpoints/step_00000004/optimizer.bin")
    run(folder, *LOGGED, "--resume")
    said = capfd.readouterr().out
    assert "step_00000004 is damaged" in said and "optimizer.bin" in said and "resumed at step 2" in said
    assert told(folder) == told(whole)
    assert_same_weights(whole, folder)
    assert damage(folder / "checkpoints/step_00000004") is None  # written again
    for step in (4, 6):
        harm(folder / f"checkpoints/step_0000000{step}/files.json")
    with pytest.raises(SystemExit, match="All checkpoints .* are damaged .step 4, 6"):
        run(folder, *LOGGED, "--resume")


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    wild = ["training.clip_norm=0", "schedule.warmup_steps=0", "training.log_every=100", "training.save_every=1"]
    for rate, name in (("1e38", "diverged"), ("1e30", "late")):
        # of 1e38 the weights are finite still after the first step, but what they compute is not
        with pytest.raises(SystemExit, match="weights are not finite any more, so they were not saved|holds NaN"):
            run(tmp_path / name, *wild, f"optimizer.learning_rate={rate}", "training.evaluate_every=1")
        for file in tmp_path.glob(f"{name}/**/model.safetensors"):
            assert all(value.isfinite().all() for value in load_file(file).values()), file


@pytest.mark.parametrize(
    "name", ["best/notes.txt", "last/notes.txt", "checkpoints/a/notes.txt", "log.jsonl", "best.old/a"]
)
@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_what_is_somebody_elses_is_not_touched(tmp_path, name, resume):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(SystemExit, match=f"holds {Path(name).parts[0]}, but no run.json"):
        run(tmp_path, *resume)
    assert (tmp_path / name).read_text() == "mine"


def test_what_is_put_into_a_runs_models_stays_there(tmp_path):
    folder = run(tmp_path / "run", "--stop-at-step", "3")
    for name in ("best", "last"):
        (folder / name / "notes").mkdir()
        (folder / name / "notes" / "mine.txt").write_text("mine")
        (folder / name / "mine.txt").write_text("mine")
    run(folder, "--resume")
    for name in ("best", "last"):
        assert (folder / name / "notes" / "mine.txt").read_text() == (folder / name / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("content", ["", '{"recipe": {}}', "[" * 100_000, '{"name": "another program"}'])
def test_a_run_json_that_is_none_is_not_overwritten(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    for resume in (False, True):
        with pytest.raises(ValueError, match="run.json is damaged|holds a run already"):
            RunFolder(tmp_path, Accelerator(cpu=True), resume)
    assert (tmp_path / "run.json").read_text() == content


def test_one_run_at_a_time_writes_to_a_folder(tmp_path):
    accelerator = Accelerator(cpu=True)
    with RunFolder(tmp_path, accelerator, resume=False):
        with pytest.raises(ValueError, match="written by another run"), RunFolder(tmp_path, accelerator, resume=True):
            pass
    with RunFolder(tmp_path, accelerator, resume=True):
        pass


@pytest.mark.parametrize("at", range(0, 47, 3))
def test_a_log_line_may_be_cut_anywhere(tmp_path, at):
    lines = ['{"step": 2, "loss": 0.5}', '{"step": 3, "evaluation": {"mIoU": 0.1}, "s": 1}']
    folder = RunFolder(tmp_path, Accelerator(cpu=True), resume=False)
    folder.log_path.write_text(lines[0] + "\n" + lines[1][:at])
    folder.cut_log(3)
    assert folder.log_path.read_text() == lines[0] + "\n"
    folder.log({"step": 3})
    assert [line["step"] for line in read_log(folder.log_path)] == [2, 3]
