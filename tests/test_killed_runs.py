"""Runs that are killed at random moments, while they train and while they write, end as one that was left alone."""

import multiprocessing
import os
import random
import signal
import sys
import threading
from pathlib import Path

import pytest
from test_run_folder import told
from test_train import LTS, TINY, assert_same_weights


LONG = [
    "training={max_steps: 24, batch_size: 4, clip_norm: 1.0, log_every: 4, evaluate_every: 6, save_every: 2}",
    "training.ema_decay=0.9",
]
TOUCHES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}


def die(*_) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def live(folder: Path, touches: int | None, seconds: float | None) -> None:
    """Train into `folder`, in a process of its own, which is killed when it touches its `touches`-th file in there, or
    `seconds` after run.json is written, or never."""
    from tqdm import tqdm

    from hf_ris.commands.train import main

    tqdm.set_lock(threading.RLock())  # its own is shared with the processes of the other lives, and would die locked
    seen = 0

    def watch(event: str, arguments: tuple) -> None:
        nonlocal seen
        if event not in TOUCHES or not str(arguments[0]).startswith(str(folder)):
            return
        seen += 1
        if seen == touches:
            die()
        if seconds is not None and str(arguments[0]).endswith("run.json.tmp") and event == "os.rename":
            threading.Timer(seconds, die).start()

    sys.addaudithook(watch)
    resume = ["--resume"] if (folder / "run.json").exists() else []
    main(["--recipe", str(LTS), *TINY, *LONG, f"output_dir={folder}", *resume])


@pytest.fixture
def lives(monkeypatch):
    """`lives(folder, touches, seconds)` -> exit code: forked from a process that has imported all and done nothing."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["hf_ris.training.loop", "hf_ris.evaluation.answers", "hf_ris.data.refscenes.scenes"]
    )

    def live_once(*arguments) -> int:
        process = context.Process(target=live, args=arguments)
        process.start()
        process.join()
        return process.exitcode

    return live_once


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills_at_random_moments_change_nothing(lives, tmp_path):
    assert lives(tmp_path / "whole", None, None) == 0
    moments, kills, half_written, runs = random.Random(0), 0, 0, 0
    while kills < 20:
        folder, runs = tmp_path / f"killed_{runs}", runs + 1
        ended = False
        while not ended:
            by_touch = kills < 20 and moments.random() < 0.6
            by_time = kills < 20 and not by_touch
            code = lives(folder, moments.randint(1, 90) if by_touch else None, moments.random() if by_time else None)
            assert code in (0, -signal.SIGKILL)
            ended = code == 0
            kills += not ended
            half_written += not ended and any(folder.glob("**/*.tmp"))
        assert told(folder) == told(tmp_path / "whole")
        for name in ("best", "last"):
            assert_same_weights(tmp_path / "whole", folder, name)
    assert half_written >= 5  # kills that hit a checkpoint, a model or a log while it was written
