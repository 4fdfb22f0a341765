"""Put a trained model, with all that tells how it came to be, into a folder that is small enough for the repository.

    python train/evaluate.py --model outputs/lts-refscenes/best --split test --result outputs/lts-refscenes/test.json
    python train/bundle.py outputs/lts-refscenes space/checkpoints/lts-refscenes outputs/lts-refscenes/test.json

The folder gets the best model and its processor, recipe.json (the resolved recipe, for `--recipe`), log.jsonl and
results.json: what it was trained on, for how long, on what, and the results of the JSON files given (`--result` of
train/evaluate.py), keyed by split and control. Of a run that started from encoders pretrained here, or from an earlier
run (`--pretraining` names the folders), it also tells these, with pretraining_log.jsonl. The first 200 steps can be
replayed and compared with the log, once the pretraining is repeated:

    python train/train.py --recipe space/checkpoints/lts-refscenes/recipe.json --stop-at-step 200 output_dir=again
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from hf_ris.hub.run_log import read_log
from hf_ris.metrics import leading_metrics


MODEL_FILES = ("config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "tokenizer_config.json")
_KEPT = ("data", "expressions", "images", "videos", "revision", "hardware")  # of an evaluation
LIMIT = 9_000_000  # bytes of weights: the repository carries tiny models only


def measured(evaluations: list[Path]) -> dict[str, Any]:
    """Of each evaluation what results.json keeps, under `split` or `split/control`.

    Raises:
        ValueError: a file that is no evaluation of a data set.
    """
    kept = {}
    for path in evaluations:
        one = json.loads(path.read_text())
        if not {"data", "split", "control", "protocols"} <= one.keys():
            raise ValueError(f"{path} is not what `hf-ris evaluate` writes with --result.")
        key = one["split"] if one["control"] is None else f"{one['split']}/{one['control']}"
        if key in kept:
            raise ValueError(f"{path} is a second evaluation of {key}; give one of each.")
        kept[key] = {name: one[name] for name in _KEPT if name in one}
        kept[key]["protocols"] = {
            name: {metric: entry["value"] for metric, entry in of["overall"].items()}
            for name, of in one["protocols"].items()
        }
        first = next(iter(one["protocols"].values()))  # the kinds of expressions, under the first protocol alone
        chief = leading_metrics(first["overall"])[0]
        kept[key]["slices"] = {
            kind: {
                label: {"expressions": part["expressions"], chief: part["metrics"][chief]["value"]}
                for label, part in of_kind.items()
            }
            for kind, of_kind in first["slices"].items()
        }
    return kept


def run_facts(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(resolved recipe, what results.json says of the training) of a run's folder."""
    facts = json.loads((run / "run.json").read_text())
    steps = [line for line in read_log(run / "log.jsonl") if "loss" in line]
    if not steps:
        raise ValueError(f"{run} has logged no step yet: there is nothing to tell of its training.")
    return facts["recipe"], {
        "architecture": facts["recipe"]["architecture"],
        "parameters": facts["parameters"],
        "seed": facts["recipe"]["training"]["seed"],
        "steps": steps[-1]["step"],
        "training_seconds": round(steps[-1]["seconds"]),
        "revision": facts["revision"],
        "versions": facts["versions"],
        "hardware": facts["hardware"],
        **{name: facts[name] for name in ("read", "changes") if name in facts},
    }


def pretraining_facts(folder: Path) -> dict[str, Any]:
    """What train/pretrain_*.py wrote of itself; of an earlier run, or a bundle of it, its recipe and facts.

    Raises:
        ValueError: a folder of none of them.
    """
    if (folder / "pretraining.json").is_file():
        return json.loads((folder / "pretraining.json").read_text())
    if (folder / "results.json").is_file() and (folder / "recipe.json").is_file():
        recipe = json.loads((folder / "recipe.json").read_text())
        facts = json.loads((folder / "results.json").read_text())
        del facts["results"]
    elif (folder / "run.json").is_file():
        recipe, facts = run_facts(folder)
    else:
        raise ValueError(
            f"--pretraining: {folder} is of neither train/pretrain_*.py (no pretraining.json) nor a run (no run.json) "
            "nor a bundle (no results.json, recipe.json)."
        )
    return {"recipe": recipe, "seconds": facts.pop("training_seconds"), **facts}


def results(run: Path, evaluations: list[Path], pretraining: list[Path]) -> dict[str, Any]:
    """What results.json says: the run's own facts, and each evaluation."""
    recipe, facts = run_facts(run)
    before = []
    for folder in pretraining:
        one = pretraining_facts(folder)
        before += [*one.pop("pretraining", []), {"folder": folder.name, **one}]  # a bundle has its own
    return {
        "trained_on": [name for name in (recipe["data"]["name"], recipe["data"].get("images")) if name],
        **facts,
        "pretraining": before,
        "results": measured(evaluations),
    }


def pretraining_log(pretraining: list[Path]) -> str:
    """The log lines of all pretrainings, each line with its folder's name, those before a bundle first."""
    lines = []
    for folder in pretraining:
        if (folder / "pretraining_log.jsonl").is_file():
            lines += read_log(folder / "pretraining_log.jsonl")
        lines += [{"folder": folder.name, **line} for line in read_log(folder / "log.jsonl")]
    return "".join(json.dumps(line) + "\n" for line in lines)


def bundle(run: Path, out: Path, evaluations: list[Path], pretraining: list[Path]) -> None:
    """Write the folder `out` from a run's folder.

    Raises:
        ValueError: weights over LIMIT.
    """
    size = (run / "best" / "model.safetensors").stat().st_size
    if size > LIMIT:
        raise ValueError(
            f"{run / 'best'} has {size / 1e6:.1f} MB of weights; at most {LIMIT / 1e6:.0f} MB are bundled."
        )
    recipe = json.loads((run / "run.json").read_text())["recipe"]
    told, earlier = results(run, evaluations, pretraining), pretraining_log(pretraining)  # `out` may be one of them
    out.mkdir(parents=True, exist_ok=True)
    for name in MODEL_FILES:
        shutil.copyfile(run / "best" / name, out / name)
    shutil.copyfile(run / "log.jsonl", out / "log.jsonl")
    (out / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n")
    (out / "results.json").write_text(json.dumps(told, indent=2) + "\n")
    if pretraining:
        (out / "pretraining_log.jsonl").write_text(earlier)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="output_dir of a training run")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("evaluations", type=Path, nargs="*", help="files that `hf-ris evaluate --result` wrote")
    parser.add_argument(
        "--pretraining",
        type=Path,
        nargs="+",
        default=[],
        help="folders of train/pretrain_*.py, of earlier runs or their bundles, that it started from",
    )
    options = parser.parse_args()
    bundle(options.run, options.out, options.evaluations, options.pretraining)


if __name__ == "__main__":
    main()
