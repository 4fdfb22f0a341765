"""`hf-ris label` on two processes, killed while it works and gone on with."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import ROOT

from hf_ris import pipeline
from hf_ris.data import load, write_example_folder
from hf_ris.labelling import find_images, label


TEACHER = ROOT / "space" / "checkpoints" / "lts-refscenes"
TEXTS = ["the red ball", "blue"]
COUNT = 150  # enough to be killed amid them


def launch(photos: Path, out: Path) -> subprocess.Popen:
    words = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    words += [str(ROOT / "train" / "accelerate" / "cpu_two.yaml"), "--main_process_port", "0"]
    words += ["-m", "hf_ris.commands.label", str(photos), "--model", str(TEACHER), "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*words, "--expressions", *TEXTS], env=environment)


def scores(out: Path) -> list[tuple]:
    with (out / "scores.csv").open(encoding="utf-8", newline="") as file:
        return [tuple(row) for row in csv.reader(file)]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_go_on_after_a_kill_and_answer_as_one(tmp_path):
    photos, out = write_example_folder(tmp_path / "drawn", COUNT) / "images", tmp_path / "labelled"
    run, parts = launch(photos, out), [out / "progress" / f"{rank:05d}.jsonl" for rank in (0, 1)]
    while run.poll() is None and not all(part.exists() and part.stat().st_size for part in parts):
        time.sleep(0.01)
    workers = psutil.Process(run.pid).children(recursive=True)  # they would outlive the launch
    for process in (run, *workers):
        process.kill()
    run.wait()
    psutil.wait_procs(workers)
    assert not (out / "train.jsonl").exists(), "it had ended before it could be killed: raise COUNT"
    lines = [part.read_text().splitlines() for part in parts]
    done = [json.loads(line) for of in lines for line in of if line.endswith("}")]
    names = [line["file_name"] for line in done]
    assert len(set(names)) == len(names) < COUNT
    # what is done is not asked again: it keeps a score that no model gave
    mark = done[0]
    mark["scores"][0]["score"] = 7.0
    parts[0].write_text("".join(json.dumps(line) + "\n" for line in done))
    parts[1].write_text('{"file_name": "images/149.jp')  # killed while it wrote

    assert launch(photos, out).wait() == 0
    alone = tmp_path / "alone"
    label(pipeline(str(TEACHER), "cpu"), photos, TEXTS, alone, str(TEACHER))
    expected = scores(alone)
    place = expected.index(next(row for row in expected if row[0] == mark["file_name"]))
    expected[place] = (*expected[place][:2], "7.0", expected[place][3])
    assert len(expected) == 1 + 2 * COUNT and scores(out) == expected
    assert load(out)["expressions"] == load(alone)["expressions"] and load(out)["objects"] == load(alone)["objects"]
    assert find_images(out / "images") == find_images(alone / "images") and not (out / "progress").exists()
