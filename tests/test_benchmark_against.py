"""Comparison of two states of this project."""

import json
from pathlib import Path

import pytest
import torch

from hf_ris.benchmark_against import show
from hf_ris.commands.benchmark import main
from hf_ris.models.inference_ris import recommended_dtype


def test_table(capsys):
    row = {"architecture": "lts", "expressions": 8, "training": False, "way": "recommended", "difference": 1.2e-6}
    show([row | {"wall": (1.0, 2.0, 0.5), "cpu": (1.0, 4.0, 0.25)}])
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == "| lts, 8 expressions | recommended | 1.00 / 2.00 | 0.50 | 1.00 / 4.00 | 0.25 | 1e-06 |"


@pytest.mark.slow
@pytest.mark.parametrize("extra", [[], ["--training-step"]])
def test_a_checkout_against_itself_gives_the_same_numbers(extra, tiny_trio, tmp_path):
    config = tiny_trio("lts")[0].config.to_diff_dict()
    fields = {name: config[name] for name in config if name not in ("model_type", "transformers_version", "dtype")}
    path, result = tmp_path / "tiny.json", tmp_path / "result.json"
    path.write_text(json.dumps(fields))
    here = str(Path(__file__).resolve().parents[1])
    options = ["--expressions", "2", "--repeats", "3", "--config", str(path), "--result", str(result), *extra]
    main(["--arch", "lts", "--against", here, *options])
    rows = json.loads(result.read_text())["rows"]
    assert [row["way"] for row in rows] == (["float32"] if extra else ["float32", "recommended"])
    half = recommended_dtype(torch.device("cpu")) != torch.float32  # on a processor that is faster so
    assert rows[0]["difference"] == 0 and all(row["difference"] < (5e-2 if half else 1e-5) for row in rows)
    assert all(row["cpu"][0] > 0 for row in rows)
