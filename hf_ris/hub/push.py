"""Pushing a trained model to the Hub: weights, processor, code, card, recipe, log and results, in one commit."""

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import validate_repo_id
from transformers import AutoModelForImageSegmentation, AutoProcessor

import hf_ris  # noqa: F401, registers the architectures
from hf_ris.hub.bundle import measured, pretraining_log, results
from hf_ris.hub.card import model_card
from hf_ris.hub.run_log import read_log
from hf_ris.models.hub_ris import upload


def check(repo_id: str) -> None:
    """What can be known before anything is sent.

    Raises:
        ValueError: a name the Hub does not take, or nobody logged in.
    """
    validate_repo_id(repo_id)
    if get_token() is None:
        raise ValueError("Nobody is logged in to the Hub: run `hf auth login`, or set HF_TOKEN.")


def make_repository(repo_id: str, private: bool) -> None:
    """Make the repository, if it is not there, so that what is wrong with it shows before a training.

    Raises:
        ValueError: the Hub refuses, or cannot be reached.
    """
    try:
        HfApi().create_repo(repo_id, private=private or None, exist_ok=True)
    except (HTTPError, OSError) as error:
        raise ValueError(f"{constants.ENDPOINT} did not make {repo_id}: {error}") from error


def push(
    source: Path,
    repo_id: str,
    private: bool = False,
    evaluations: list[Path] | None = None,
    pretraining: list[Path] | None = None,
) -> str:
    """Push a run or a bundle; returns the commit's address.

    Raises:
        ValueError: a folder that is neither, or what the Hub said when it refused.
    """
    check(repo_id)
    with TemporaryDirectory() as folder:
        write_repository(source, Path(folder), repo_id, evaluations or [], pretraining or [])
        try:
            message = f"Push {source.name} with hf_ris"
            return upload(folder, repo_id, private or None, commit_message=message, replace_card=True).commit_url
        except (HTTPError, OSError, RuntimeError) as error:  # RuntimeError: the client's, of an upload that broke
            reason = f"{error} {error.__cause__ or ''}"
            raise ValueError(f"{repo_id} was not pushed to {constants.ENDPOINT}: {reason}") from error


def write_repository(source: Path, out: Path, repo_id: str, evaluations: list[Path], pretraining: list[Path]) -> None:
    """All that the repository shall hold, from a run's folder or a bundle."""
    folder, facts, recipe = read(source, evaluations, pretraining)
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageSegmentation.from_pretrained(folder)
    model.save_pretrained(out)
    processor.save_pretrained(out)
    for name in ("log.jsonl", "pretraining_log.jsonl"):
        if (source / name).exists():
            shutil.copyfile(source / name, out / name)
    if pretraining:
        (out / "pretraining_log.jsonl").write_text(pretraining_log(pretraining))
    log = read_log(source / "log.jsonl")
    for name, content in (("results.json", facts), ("recipe.json", recipe)):
        (out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (out / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log), encoding="utf-8")
    card = model_card(repo_id, facts, recipe, log, _of_model(model, processor))
    (out / "README.md").write_text(card, encoding="utf-8")


_OF_EVERY_CONFIG = ("architectures", "auto_map", "dtype", "model_type", "transformers_version", "custom_pipelines")


def _of_model(model, processor) -> dict[str, Any]:
    """What the card tells of the model itself."""
    config, paper = model.config.to_dict(), type(model.config)().to_dict()
    encoders = []
    vision = config.get("vision_config") or {}
    if vision.get("pretrained_tag"):
        encoders.append(f"timm/{vision['name']}.{vision['pretrained_tag']}")
    if config.get("text_config") and config.get("text_pretrained"):
        encoders.append(config["text_pretrained"])
    own = _different({name: value for name, value in config.items() if name not in _OF_EVERY_CONFIG}, paper)
    return {"threshold": processor.threshold, "config": own, "encoders": encoders}


def _different(own: dict[str, Any], paper: dict[str, Any]) -> dict[str, Any]:
    """What of `own` is not as in `paper`, nested dictionaries key by key."""
    different = {}
    for name, value in own.items():
        theirs = paper.get(name)
        if value != theirs:
            nested = isinstance(value, dict) and isinstance(theirs, dict)
            different[name] = _different(value, theirs) if nested else value
    return different


def read(source: Path, evaluations: list[Path], pretraining: list[Path]) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """(folder of the model, facts as in results.json, recipe without its output_dir) of a run or a bundle."""
    if not source.is_dir():
        raise ValueError(f"There is no folder {source}.")
    is_run = (source / "run.json").exists()
    if not is_run and not (source / "results.json").exists():
        raise ValueError(f"{source} is neither a training run (no run.json) nor a bundle (no results.json).")
    folder = source / "best" if is_run else source
    if not (folder / "config.json").exists():
        raise ValueError(f"There is no model in {folder}: a run has one after its first evaluation.")
    if is_run:
        facts = results(source, evaluations, pretraining)
        recipe = json.loads((source / "run.json").read_text(encoding="utf-8"))["recipe"]
    else:
        facts = json.loads((source / "results.json").read_text(encoding="utf-8"))
        facts["results"] |= measured(evaluations)
        recipe = json.loads((source / "recipe.json").read_text(encoding="utf-8"))
    return folder, facts, {**recipe, "output_dir": None}
