"""Where the loss lies: of a file of predictions, how often the right object is found, and how well it is drawn.

    hf-ris evaluate --model outputs/lts-refscenes/best --errors errors
    hf-ris evaluate --predictions answers.jsonl --compare others.jsonl --errors errors

writes into the folder errors.json, errors.txt and errors.png: what is lost to a full mIoU, in three parts, of all and
by kind of expression, size of the target and distractors of its class.

An answer has found the right object if no other object of the image has a larger IoU with it than the target has, and
the target's is not 0. Objects are those that some expression of the file speaks of alone. The loss 1 - mIoU is the sum
of `outline`, what is lost where the object is right; `both`, what such outlines would lose where it is wrong; and
`wrong object`, the rest of what is lost there. Expressions without a target are left out.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from hf_ris.data.schema import decode_mask

from ..metrics.predictions import read_predictions
from ..metrics.slices import distractor_group, expression_kind


COVERED = 0.5  # share of a neighbour that an answer covers to be merged with it
PARTS = ("wrong object", "outline", "both")  # of the loss
COLUMNS = ("expressions", "mIoU", "right object", "IoU if right", "empty", "merged", *PARTS)


def tabulate_errors(path: str | Path) -> dict[str, Any]:
    """What `answers_of` tells, summed up: {"file", "overall": row, "slices": kind -> label -> row}.

    A row has `COLUMNS`; all but the number of expressions are shares in [0, 1], `IoU if right` is None if none is.

    Raises:
        ValueError: a damaged file, or one in which no expression has a target.
    """
    answers = answers_of(read_predictions(path))
    if not answers:
        raise ValueError(f"{path}: no expression has a target, so there is no error to look into.")
    sizes = np.array([answer["share"] for answer in answers])
    small, large = np.quantile(sizes, (1 / 3, 2 / 3))
    for answer in answers:
        place = int(answer["share"] > small) + int(answer["share"] > large)
        answer["size of the target"] = ("1st third", "2nd third", "3rd third")[place]
    slices = {}
    for kind in ("kind of expression", "size of the target", "same-class distractors"):
        labels = sorted({answer[kind] for answer in answers})
        slices[kind] = {label: summary([a for a in answers if a[kind] == label]) for label in labels}
    return {"file": str(path), "overall": summary(answers), "slices": slices}


def answers_of(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each line of a predictions file that has a target: IoU, right, empty, merged, share of the image, labels."""
    of_images = defaultdict(list)
    for line in lines:
        of_images[line["image_id"]].append(line)
    answers = []
    for of_image in of_images.values():
        objects = {line["object_ids"][0]: line["target"] for line in of_image if len(line["object_ids"]) == 1}
        masks = {identity: decode_mask(rle) for identity, rle in objects.items()}
        answers += [answer(line, masks) for line in of_image if line["object_ids"]]
    return answers


def answer(line: dict[str, Any], objects: dict[int, np.ndarray]) -> dict[str, Any]:
    """One line, with the masks of its image's objects by id."""
    prediction, target = decode_mask(line["prediction"]), decode_mask(line["target"])
    others = [mask for identity, mask in objects.items() if identity not in line["object_ids"]]
    iou = overlap(prediction, target)
    distractors = line["same_class_distractors"]
    return {
        "iou": iou,
        "right": iou > 0 and all(overlap(prediction, other) <= iou for other in others),
        "empty": not prediction.any(),
        "merged": any((prediction & other).sum() >= COVERED * other.sum() for other in others if other.any()),
        "share": target.mean(),
        "kind of expression": expression_kind(line["text"]),
        "same-class distractors": "unknown" if distractors is None else distractor_group(distractors),
    }


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """IoU of two masks; two empty ones agree."""
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 1.0


def summary(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """A row of `COLUMNS`."""
    iou, right = np.array([a["iou"] for a in answers]), np.array([a["right"] for a in answers])
    found = right.mean()
    if_right = iou[right].mean() if right.any() else None
    outline = found * (1 - if_right) if right.any() else 0.0
    both = (1 - found) * (1 - if_right) if right.any() else 0.0
    values = {
        "expressions": len(answers),
        "mIoU": iou.mean(),
        "right object": found,
        "IoU if right": if_right,
        "empty": np.mean([a["empty"] for a in answers]),
        "merged": np.mean([a["right"] and a["merged"] for a in answers]),
        "wrong object": 1 - iou.mean() - outline - both,
        "outline": outline,
        "both": both,
    }
    return {name: value if value is None or name == "expressions" else float(value) for name, value in values.items()}


def rows_of(table: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Label and row of all, then of every slice."""
    slices = [(f"{kind}: {label}", row) for kind, part in table["slices"].items() for label, row in part.items()]
    return [("all", table["overall"]), *slices]


def format_errors(table: dict[str, Any]) -> str:
    """Plain text."""
    rows = rows_of(table)
    width = max(len(label) for label, _ in rows)
    lines = [f"where the loss lies: {table['file']}", " ".join(["".ljust(width), *(f"{name:>12}" for name in COLUMNS)])]
    for label, row in rows:
        cells = [f"{row['expressions']:>12,}"]
        cells += ["-".rjust(12) if row[name] is None else f"{row[name]:>12.3f}" for name in COLUMNS[1:]]
        lines.append(" ".join([label.ljust(width), *cells]))
    return "\n".join(lines)


def plot_errors(tables: list[dict[str, Any]], path: Path) -> None:
    """A panel per file: bars of mIoU and of the three parts of the loss, a bar per slice."""
    from matplotlib.figure import Figure  # of the extra `train`; not pyplot, which looks for a display

    count = max(len(rows_of(table)) for table in tables)
    figure = Figure(figsize=(7 * len(tables), 1.5 + 0.32 * count), layout="constrained")
    colours = {"mIoU": "#5b8c5a", "outline": "#e0b04c", "both": "#b0763a", "wrong object": "#b04a4a"}
    for axes, table in zip(np.atleast_1d(figure.subplots(1, len(tables))), tables):
        labels, rows = zip(*rows_of(table))
        left = np.zeros(len(rows))
        for name, colour in colours.items():
            values = np.array([row[name] for row in rows])
            axes.barh(range(len(rows)), values, left=left, color=colour, label=name)
            left += values
        axes.set_yticks(range(len(rows)), [f"{label} ({row['expressions']:,})" for label, row in zip(labels, rows)])
        axes.invert_yaxis()
        axes.set(xlim=(0, 1), title=Path(table["file"]).stem, xlabel="share of a full mIoU")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(colours))
    figure.savefig(path)


def write_errors(paths: list[Path], names: list[str], folder: Path) -> str:
    """Write the folder (see the head of this file) for one file of predictions or several; returns the text.

    names: what the files are called.
    """
    tables = [tabulate_errors(path) | {"file": name} for path, name in zip(paths, names, strict=True)]
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n\n".join(map(format_errors, tables))
    (folder / "errors.json").write_text(json.dumps(tables, indent=2) + "\n", encoding="utf-8")
    (folder / "errors.txt").write_text(text + "\n", encoding="utf-8")
    plot_errors(tables, folder / "errors.png")
    return text
