"""FSDP on two processes: the losses of one, a model that loads everywhere, and resuming bit for bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_run_folder import told
from test_train import LTS, ROOT, TINY, assert_same_weights, log_of, run
from transformers import AutoModelForImageSegmentation, AutoProcessor


# batch statistics, of which each process has its own, rest; what has none is trained
FIXED = [
    "optimizer.rules=[{pattern: ., freeze: true, eval_mode: true}, {pattern: ^text_enc|^localiz, freeze: false}]",
    "training.save_every=1",
]


def run_sharded(folder: Path, *extra: str) -> Path:
    """As `run`, in two processes that hold half of each parameter."""
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(ROOT / "train" / "accelerate" / "fsdp.yaml")]
    script = str(ROOT / "tests" / "sharded_training.py")
    arguments = ["--recipe", str(LTS), *TINY, *FIXED, f"output_dir={folder}", *extra]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, *launch, "--num_processes", "2", script, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_processes_that_share_the_parameters_train_like_one(tmp_path):
    sharded, one = run_sharded(tmp_path / "sharded"), run(tmp_path / "one", *FIXED)
    assert json.loads((sharded / "run.json").read_text())["hardware"]["processes"] == 2
    compared = 0
    for ours, theirs in zip(log_of(one), log_of(sharded), strict=True):
        for name in {"loss", "gradient_norm", "segmentation"} & ours.keys():
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3)
            compared += 1
        if "evaluation" in ours:
            assert ours["evaluation"]["mIoU"] == pytest.approx(theirs["evaluation"]["mIoU"], abs=0.01)
    assert compared >= 12
    for name in ("best", "last"):  # whole, in one file, as every other model
        model, missing = AutoModelForImageSegmentation.from_pretrained(sharded / name, output_loading_info=True)
        assert not any(missing.values())
        assert AutoProcessor.from_pretrained(sharded / name).tokenizer.get_vocab()
    ours, theirs = (load_file(folder / "last" / "model.safetensors") for folder in (one, sharded))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, atol=1e-3, rtol=1e-3)

    broken = run_sharded(tmp_path / "broken", "--stop-at-step", "4")
    run_sharded(broken, "--resume")
    assert told(broken) == told(sharded)
    assert_same_weights(sharded, broken)
    assert_same_weights(sharded, broken, "best")
