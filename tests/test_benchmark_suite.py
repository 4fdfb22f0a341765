"""The table of what every architecture costs."""

import json
import re

import pytest

from hf_ris import ARCHITECTURES
from hf_ris.benchmark_suite import lines
from hf_ris.commands.benchmark import main


def check(printed: list[str], rows: list[dict]) -> None:
    head, body = printed[2], printed[4:]
    assert re.search("torch .*, of the recipes `refscenes`; medians of 1 calls", printed[0])
    assert all(line.count("|") == head.count("|") for line in printed[3:]) and len(body) == 2 * len(rows)
    for row, first, second in zip(rows, body[::2], body[1::2]):
        assert first.startswith(f"| {row['architecture']} |") and "| float32 |" in first
        assert "recommended: " in second and "products in" in second
        for way in row["ways"]:
            assert way["seconds"].keys() == way["share"].keys() == way["memory"].keys() == {"1", "8"}
            assert all(of[clock] > 0 for of in way["seconds"].values() for clock in ("wall", "cpu"))
            assert 0 < way["share"]["1"] < 2 and way["memory"]["8"] >= way["memory"]["1"] > 0
        # what is told follows from what was measured
        alone = row["ways"][0]["training_step"]
        assert f"{alone['wall']:.3g} ({alone['cpu']:.3g})" in first and row["ways"][1]["training_step"] is None


def test_lines_of_an_architecture():
    way = {"way": "float32", "done": "as loaded", "training_step": {"wall": 0.5, "cpu": 0.25}}
    way |= {"seconds": dict.fromkeys(("1", "8"), {"wall": 0.125, "cpu": 0.0625}), "share": {"1": 0.5, "8": 0.25}}
    way |= {"memory": {"1": 2 << 20, "8": 9 << 20}}
    row = {"architecture": "lts", "parameters": 1_234_567, "flops": {"image": 10**9, "expression": 10**8}}
    recommended = way | {"way": "recommended", "done": "folded", "training_step": None}
    compiled = recommended | {"way": "compiled", "memory": {}, "compile_seconds": 64.4}
    first, second, third = lines(row | {"ways": [way, recommended, compiled]})
    assert (
        first
        == "| lts | 1.2 | 1.1 / 1.8 | float32 | 0.125 / 0.125 | 0.0625 / 0.0625 | 0.50 / 0.25 | 2 / 9 | 0.5 (0.25) |"
    )
    assert second == "|  |  |  | recommended: folded | 0.125 / 0.125 | 0.0625 / 0.0625 | 0.50 / 0.25 | 2 / 9 |  |"
    by_compile = "the same by torch.compile, which takes 64 s"
    assert third == f"|  |  |  | {by_compile} | 0.125 / 0.125 | 0.0625 / 0.0625 | 0.50 / 0.25 |  |  |"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_small_table_of_all(tmp_path, capsys):
    path = tmp_path / "suite.json"
    main(["--suite", "--small", "--repeats", "1", "--cpu", "--result", str(path)])
    rows = json.loads(path.read_text())["rows"]
    assert [row["architecture"] for row in rows] == list(ARCHITECTURES)
    check(capsys.readouterr().out.splitlines(), rows)


def test_options_that_would_be_ignored(capsys):
    for words, message in (
        (["--arch", "lts", "--small"], "--small would be ignored"),
        (["--model", "bundle", "--compile"], "--compile would be ignored"),
        (["--suite", "--words", "3"], "--words would be ignored"),
        (["--suite", "lts", "sam"], "There is no architecture sam"),
    ):
        with pytest.raises(SystemExit):
            main(words)
        assert message in capsys.readouterr().err
