"""The card (README.md) of a trained model: its architecture's, `model_cards/<arch>.md`, with the run's own numbers.

The section "Measured" of the architecture's card, which is about the model bundled with this project, makes way for
what was measured of this one, or for the sentence that nothing was. "This model" tells in what it differs from the
paper's configuration, which the rest of the card speaks of. The head gets a `model-index`, and `base_model` where the
training started from weights on the Hub.
"""

import json
import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard

from hf_ris.data.refscenes.moving import NAME as MOVING
from hf_ris.data.refscenes.scenes import NAMES as REFSCENES
from hf_ris.metrics import VIDEO_PROTOCOLS, leading_metrics
from hf_ris.resources import model_card_template


PLACEHOLDER = "REPO_ID"  # in the examples of the architectures' cards
UNTRAINED = "; nothing was trained on photographs yet"  # in their tables of the paper's numbers

_CONTROLS = {
    "largest_object": "the largest object, without reading",
    "other_scene_expression": "given the expression of another scene",
    "other_object_expression": "given the expression of another object of the same image or video",
    "shuffled_frames": "the frames in a random order",
    "first_frame": "the first frame instead of each",
}


def model_card(
    repo_id: str,
    facts: dict[str, Any],
    recipe: dict[str, Any],
    log: list[dict[str, Any]],
    model: dict[str, Any] | None = None,
) -> str:
    """The card as Markdown with its YAML head.

    Args:
        facts: what results.json of a bundle says (train/bundle.py).
        recipe: the resolved recipe. log: the lines of log.jsonl.
        model: what a reader must know of the model itself: `threshold`, `config` (the fields that are not the paper's)
            and `encoders` (Hub ids of the public weights that `initialize.weights: encoders` loads).

    Raises:
        ValueError: an architecture without a card.
    """
    model = model or {}
    card = ModelCard(model_card_template(facts["architecture"]).read_text(encoding="utf-8"))
    validation = _validation(facts, recipe, log)
    own = {
        "This model": _this_model(facts, model),
        "Measured": _measured(facts, validation, _unit(recipe)),
        "Training": _training(facts, recipe),
        "Licence": _licence(facts, recipe),
    }
    sections = {**_sections(card.text), **own}
    if recipe["data"]["name"] in (*REFSCENES, MOVING):
        sections["Limits"] += "Trained on RefScenes, drawn scenes: this model knows nothing of photographs.\n\n"
    last = ("Measured", "Training", "Limits", "Licence")
    names = ["", "This model", *(name for name in sections if name not in ("", "This model", *last)), *last]
    card.text = "".join(f"## {name}\n{sections[name]}" if name else sections[name] for name in names)
    card.text = card.text.replace(PLACEHOLDER, repo_id).replace(UNTRAINED, "")
    name = recipe["data"]["name"]
    if "/" in name and _dataset(name) == name:
        card.data.datasets = [name]
    bases = _base_models(facts, recipe, model.get("encoders", []))
    if bases:
        card.data.base_model = bases
    if _start(facts, recipe) != "scratch":  # others' terms hold on: the section tells whose
        card.data.license, card.data.license_name = "other", "see-licence-section"
    results = _eval_results(facts, validation)
    if results:
        card.data.model_name, card.data.eval_results = repo_id.split("/")[-1], results
    return str(card)


def _sections(text: str) -> dict[str, str]:
    """What stands under each "## " heading, and under "" what stands before the first."""
    before, *rest = text.split("\n## ")
    sections = {"": before + "\n"}
    for part in rest:
        name, _, body = part.partition("\n")
        sections[name] = body.rstrip() + "\n\n"
    return sections


def _this_model(facts: dict[str, Any], model: dict[str, Any]) -> str:
    lines = [f"- {facts['parameters']:,} parameters"]
    if "threshold" in model:
        lines.append(f"- a pixel is in the mask where its probability is above {model['threshold']:g}")
    fields = [f"`{name}: {json.dumps(value)}`" for name, value in sorted(model.get("config", {}).items())]
    if fields:
        lines.append("- fields of its configuration that are not the paper's: " + ", ".join(fields))
    elif "config" in model:
        lines.append("- its configuration is the paper's")
    about = (
        "Sizes, encoders, thresholds and numbers on this card are those of the paper's configuration and of the paper, "
    )
    return f"\n{about}except here and under Measured and Training.\n\n" + "\n".join(lines) + "\n\n"


def _start(facts: dict[str, Any], recipe: dict[str, Any]) -> str:
    """`initialize.weights` of the first of the runs that led here; each other began where the one before it ended."""
    runs = [*(one["recipe"] for one in facts["pretraining"] if "architecture" in one), recipe]
    return runs[0]["initialize"]["weights"]


def _base_models(facts: dict[str, Any], recipe: dict[str, Any], encoders: list[str]) -> list[str]:
    """Hub ids of the weights that the training started from."""
    first = _start(facts, recipe)
    if first == "encoders":
        return encoders
    is_id = re.fullmatch(r"[\w.-]+/[\w.-]+", first) and not Path(first).exists() and not first.startswith("outputs/")
    return [first] if is_id else []


def _validation(facts: dict[str, Any], recipe: dict[str, Any], log: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The evaluation during training that chose the model: step, split, images, protocol and metrics."""
    lines = [line for line in log if "evaluation" in line]
    lines = [line for line in lines if not line.get("early_end")] or lines
    if not lines:
        return None
    chief = leading_metrics(lines[0]["evaluation"])[0]
    best = max(lines, key=lambda line: line["evaluation"][chief])
    data = recipe["data"]
    return {
        "step": best["step"],
        "split": data["validation_split"],
        "images": _read(facts, recipe, "validation"),
        "protocol": recipe["evaluation"]["protocol"],
        "metrics": best["evaluation"],
    }


def _dataset(name: str) -> str:
    """A Hub id or RefScenes' name as it is, of a folder its own name."""
    return Path(name).name if Path(name).exists() or Path(name).is_absolute() else name


def _read(facts: dict[str, Any], recipe: dict[str, Any], part: str) -> int | None:
    """Images of `training` or `validation` that were read; None where it is not known.

    A run tells it. Of older ones the recipe's limit is it only for RefScenes, which has as many as are asked for.
    """
    if facts.get("read"):
        return facts["read"][part]["images"]
    limit = recipe["data"]["size" if part == "training" else "validation_size"]
    return limit if recipe["data"]["name"] in (*REFSCENES, MOVING) else None


def _unit(recipe: dict[str, Any]) -> str:
    return "videos" if recipe["evaluation"]["protocol"] in VIDEO_PROTOCOLS else "images"


def _whole(metrics: dict[str, float]) -> dict[str, float]:
    """Without the metrics of parts, as `mIoU (1-2 words)`."""
    return {name: value for name, value in metrics.items() if "(" not in name}


def _results(facts: dict[str, Any]) -> list[tuple[str, str, str | None, dict[str, Any]]]:
    """(data set, split, control or None, what was measured) of each evaluation."""
    rows = []
    for key, measured in facts["results"].items():
        split, _, control = key.partition("/")
        rows.append((_dataset(measured.get("data") or facts["trained_on"][0]), split, control or None, measured))
    return rows


def _eval_results(facts: dict[str, Any], validation: dict[str, Any] | None) -> list[EvalResult]:
    """The entries of `model-index`, in percent; controls measure the benchmark and are left out."""
    entries = [
        (data, split, None, protocol, metrics)
        for data, split, control, measured in _results(facts)
        if control is None
        for protocol, metrics in measured["protocols"].items()
    ]
    if validation and validation["split"] not in facts["results"]:
        data = _dataset(facts["trained_on"][0])
        images = {"images": validation["images"]} if validation["images"] else None
        entries.append((data, validation["split"], images, validation["protocol"], validation["metrics"]))
    return [
        EvalResult(
            task_type="image-segmentation",
            task_name=f"Referring {'video' if protocol in VIDEO_PROTOCOLS else 'image'} segmentation",
            dataset_name=data,
            dataset_type=data,
            dataset_split=split,
            dataset_args=part,
            metric_type=name,
            metric_name=f"{name} (percent, protocol {protocol})",
            metric_value=round(100 * value, 2),
            metric_args={"protocol": protocol},
        )
        for data, split, part, protocol, metrics in entries
        for name, value in _whole(metrics).items()
    ]


def _measured(facts: dict[str, Any], validation: dict[str, Any] | None, unit: str) -> str:
    text = ""
    for controls in (False, True):
        rows = [row for row in _results(facts) if (row[2] is not None) is controls]
        if controls and rows:
            text += "Controls, which show what can be had without understanding:\n\n"
        elif rows:
            text += "By `hf-ris evaluate`, in percent; a number holds under its protocol only.\n\n"
        text += _table(rows)
    if validation:
        of = f"{validation['images']} {unit} of " if validation["images"] else ""
        metrics = ", ".join(f"{name} {100 * value:.2f}" for name, value in _whole(validation["metrics"]).items())
        chief = leading_metrics(validation["metrics"])[0]
        text += f"The model is the best by {chief}, at step {validation['step']:,}, on {of}`{validation['split']}` "
        text += f"(protocol {validation['protocol']}): {metrics}. These chose it, so they flatter it.\n\n"
    if not any(control is None for _, _, control, _ in _results(facts)):
        missing = "On no test split has it been measured." if validation else "Nothing has been measured of this model."
        text = f"{missing}\n\n{text}"
    return f"\n{text}"


def _table(rows: list[tuple[str, str, str | None, dict[str, Any]]]) -> str:
    lines = []
    for data, split, control, measured in rows:
        for protocol, metrics in measured["protocols"].items():
            what = f"{data}, {split}" + (f": {_CONTROLS[control]}" if control else "")
            lines.append((what, protocol, f"{measured['expressions']:,}", _whole(metrics)))
    if not lines:
        return ""
    names = list(dict.fromkeys(name for *_, metrics in lines for name in metrics))
    head = ["data", "protocol", "expressions", *names]
    cells = [
        [*front, *(f"{100 * metrics[name]:.2f}" if name in metrics else "" for name in names)]
        for *front, metrics in lines
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *cells)) + "\n"


def pretraining_seconds(facts: dict[str, Any]) -> float:
    """Of all pretrainings and earlier runs that results.json tells of, each with the one that it went on from."""
    return sum(_seconds(one) for one in facts.get("pretraining", []))


def _seconds(pretraining: dict[str, Any]) -> float:
    return pretraining["seconds"] + (_seconds(pretraining["after"]) if "after" in pretraining else 0)


def _training(facts: dict[str, Any], recipe: dict[str, Any]) -> str:
    hardware, data = facts["hardware"], recipe["data"]
    machine = ", ".join(hardware["gpus"]) or f"{hardware['cpu']}, {hardware['threads']} of {hardware['cores']} cores"
    images = _read(facts, recipe, "training")
    size = f"{images:,} {_unit(recipe)}" if images is not None else "how many images was not recorded"
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    lines = [
        f"- Data: {' and '.join(map(_dataset, facts['trained_on']))}, `{data['split']}`, {size}",
        f"- {facts['steps']:,} steps in {facts['training_seconds'] / 60:.0f} minutes, seed {facts['seed']}",
        f"- Hardware: {machine}; processes: {hardware['processes']}",
        f"- Parameters: {facts['parameters']:,}",
        f"- hf_ris at git revision `{facts['revision']}`",
        f"- {versions}",
    ]
    for change in facts.get("changes") or []:
        lines.append(
            f"- From step {change['step']:,} on `{change['key']}` was {change['after']}, before {change['before']}"
        )
    if facts["pretraining"]:
        minutes = pretraining_seconds(facts) / 60
        lines.insert(1, f"- Before: {minutes:.0f} minutes of pretraining (`pretraining` in results.json)")
    plain = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    return (
        "\n" + "\n".join(lines) + "\n\nThe recipe, for `hf-ris train recipe.json`; the run's log is "
        f"log.jsonl:\n\n<details>\n\n```yaml\n{plain}```\n\n</details>\n\n"
    )


def _licence(facts: dict[str, Any], recipe: dict[str, Any]) -> str:
    weights = _start(facts, recipe)
    start = {
        "scratch": "The weights, trained from a random start",
        "encoders": "The encoders started from public weights, which keep their authors' licence; all else",
    }.get(weights, f"Training started from the weights of {_dataset(weights)}, whose licence holds on; the code")
    return f"\n{start}: Apache-2.0. The data keep the terms of their authors.\n"
