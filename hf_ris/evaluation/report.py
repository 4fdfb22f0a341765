"""The evaluator that runs without a model: a file of predictions in, every metric under every protocol out.

`evaluate_predictions` reads one file (format: `predictions.py`), `compare_predictions` two of the same expressions,
pair by pair; `format_report` and `format_comparison` make text of it.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_ris.data.schema import decode_mask

from ..metrics.bootstrap import ImageBootstrap
from ..metrics.evaluator import Evaluator, Samples, object_terms, sample_terms
from ..metrics.predictions import read_predictions
from ..metrics.protocols import PROTOCOLS, Protocol, get_protocol
from ..metrics.ris_iou.iou_terms import Terms, ratios
from ..metrics.ris_length_iou.length_groups import length_groups
from ..metrics.slices import distractor_group, has_location_word, has_negation, has_ordinal


Lines = list[dict[str, Any]]


def _target_key(line: dict[str, Any]) -> tuple[int, ...]:
    return line["image_id"], *sorted(line["object_ids"])


def _cuts(line: dict[str, Any], thresholds: Iterable[float]) -> dict[float, dict[str, Any] | None]:
    """The prediction cut at each of `thresholds`, as RLE; None where the line does not hold it."""
    known = {float(threshold): rle for threshold, rle in line.get("cuts", {}).items()}
    known.setdefault(line.get("threshold"), line["prediction"])
    return {threshold: known.get(threshold) for threshold in thresholds}


def _thresholds(protocols: Sequence[str]) -> list[float]:
    """Those that the protocols have of their own."""
    return sorted({get_protocol(name).threshold for name in protocols} - {None})


def _gather(lines: Lines, protocols: Sequence[str]) -> Evaluator:
    """An evaluator that holds all lines under all protocols."""
    parts = all("target_parts" in line for line in lines)
    thresholds = _thresholds(protocols)
    cut = bool(thresholds) and all(None not in _cuts(line, thresholds).values() for line in lines)
    evaluator = Evaluator(protocols, probabilities=cut, target_parts=parts)
    expressions = Counter(map(_target_key, lines))
    for line in sorted(lines, key=_target_key):  # so that few objects are open at a time
        evaluator.add(
            decode_mask(line["prediction"]),
            decode_mask(line["target"]),
            line | {"object_expressions": expressions[_target_key(line)]},
            hit=line.get("hit"),
            cuts={at: decode_mask(rle) for at, rle in _cuts(line, thresholds).items()} if cut else None,
            prediction_480=decode_mask(line["prediction_480"]) if "prediction_480" in line else None,
            target_parts=[decode_mask(part) for part in line["target_parts"]] if parts else None,
            target_without_crowds=(
                decode_mask(line["target_without_crowds"]) if "target_without_crowds" in line else None
            ),
        )
    return evaluator


def _notes(lines: Lines, protocols: Sequence[str]) -> list[str]:
    """What the file does not hold and how the numbers were taken in its stead, one sentence each."""
    notes = []
    settings = [get_protocol(name) for name in protocols]

    def names(chosen: list) -> str:
        return ", ".join(protocol.name for protocol in chosen)

    lacking = sum("target_parts" not in line for line in lines)
    summed = [protocol for protocol in settings if protocol.target == "sum_equals_one"]
    if summed and lacking:
        notes.append(
            f"{names(summed)}: {lacking} of {len(lines)} lines have no target_parts, so that overlapping polygons "
            "cannot be told apart; the ground truth of all lines is the union."
        )
    resized = [protocol for protocol in settings if protocol.size is not None]
    lacking = sum("prediction_480" not in line for line in lines)
    if resized and lacking:
        notes.append(
            f"{names(resized)}: {lacking} of {len(lines)} lines have no prediction_480; their prediction was resized "
            "to 480x480 (nearest)."
        )
    if "rela" in protocols:
        notes.append("rela: the ground truth is the resized mask; the original draws its polygons at 480x480 anew.")
    thresholds = _thresholds(protocols)
    lacking = sum(None in _cuts(line, thresholds).values() for line in lines)
    if lacking:
        cuts = sorted({line.get("threshold") for line in lines}, key=str)
        cut = ", ".join("an unknown threshold" if cut is None else f"{cut:g}" for cut in cuts)
        for threshold in thresholds:
            if cuts != [threshold]:
                cutting = names([protocol for protocol in settings if protocol.threshold == threshold])
                notes.append(f"{cutting}: a pixel counts above {threshold}, but the predictions were cut at {cut}.")
    lacking = sum("hit" not in line for line in lines)
    if 0 < lacking < len(lines):
        notes.append(f"localization: {lacking} of {len(lines)} lines have no hit and are left out of it.")
    return notes


def _slices(lines: Lines, samples: Samples, groups: int) -> dict[str, dict[str, np.ndarray]]:
    """kind -> label -> bool (N,) over `samples`; empty slices are left out."""
    by_id = {line["expression_id"]: line for line in lines}
    lines = [by_id[identity] for identity in samples.expression_id.tolist()]
    slices = {"words": dict(length_groups(samples.words, groups))}
    for kind, says in (("location word", has_location_word), ("ordinal", has_ordinal), ("negation", has_negation)):
        flags = np.array([says(line["text"]) for line in lines])
        slices[kind] = {"with": flags, "without": ~flags}
    distractors = [line["same_class_distractors"] for line in lines]
    labels = np.array(["unknown" if number is None else distractor_group(number) for number in distractors])
    slices["same-class distractors"] = {label: labels == label for label in ("0", "1-2", "3+", "unknown")}
    return {kind: {label: members for label, members in part.items() if members.any()} for kind, part in slices.items()}


def _select(terms: Terms, members: np.ndarray) -> Terms:
    return {name: (numerator[members], denominator[members]) for name, (numerator, denominator) in terms.items()}


def _with_bounds(values: dict[str, float], names: Sequence[str], bounds: np.ndarray) -> dict[str, dict[str, Any]]:
    """name -> {"value", "low", "high"} of what is defined; None for a bound that is not."""
    result = {}
    for name, low, high in zip(names, *bounds.tolist()):
        if name in values:
            low, high = (None if np.isnan(bound) else bound for bound in (low, high))
            result[name] = {"value": values[name], "low": low, "high": high}
    return result


def _estimate(bootstrap: ImageBootstrap, image_ids: np.ndarray, terms: Terms) -> dict[str, dict[str, Any]]:
    return _with_bounds(ratios(terms), list(terms), bootstrap.bounds(bootstrap.resample(image_ids, terms)))


def evaluate_predictions(
    path: str | Path,
    protocols: Sequence[str] | None = None,
    compare: str | Path | None = None,
    *,
    name: str | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    groups: int = 4,
) -> dict[str, Any]:
    """Every metric of the predictions file `path` under each of `protocols` (names; None: all), with intervals.

    name: what the report calls these predictions; None is their path.

    Returns a dict ready for `json.dumps`: file, expressions, images, objects, bootstrap, notes, and
    protocols -> name -> {"description", "overall": metric -> {"value", "low", "high"},
    "slices": kind -> label -> {"expressions", "metrics"}}; with `compare`, another file, also comparison, which is what
    `compare_predictions` gives under the first protocol. All values lie in [0, 1].
    """
    protocols = list(PROTOCOLS) if protocols is None else list(protocols)
    lines = read_predictions(path)
    evaluator = _gather(lines, protocols)
    bootstrap = ImageBootstrap(np.array([line["image_id"] for line in lines]), resamples, confidence, seed)
    report: dict[str, Any] = {
        "file": name or str(path),
        "expressions": len(lines),
        "images": int(bootstrap.images.size),
        "objects": len({_target_key(line) for line in lines if line["object_ids"]}),
        "bootstrap": {"resamples": resamples, "confidence": confidence, "seed": seed, "unit": "image"},
        "notes": _notes(lines, protocols),
        "protocols": {},
    }
    for key in protocols:
        protocol, samples, objects = get_protocol(key), evaluator.samples(key), evaluator.objects(key)
        terms = sample_terms(samples, protocol)
        overall = _estimate(bootstrap, samples.image_id, terms)
        oc_terms = object_terms(objects, protocol)
        if oc_terms:
            overall |= _estimate(bootstrap, objects.image_id, oc_terms)
        slices = {
            kind: {
                label: {
                    "expressions": int(members.sum()),
                    "metrics": _estimate(bootstrap, samples.image_id[members], _select(terms, members)),
                }
                for label, members in part.items()
            }
            for kind, part in _slices(lines, samples, groups).items()
        }
        report["protocols"][key] = {"description": protocol.description, "overall": overall, "slices": slices}
    if compare is not None:
        other_lines = read_predictions(compare)
        _check_pairs(path, compare, lines, other_lines)
        settings = get_protocol(protocols[0])
        report["comparison"] = {"a": report["file"], "b": str(compare)} | _duel(
            lines, other_lines, settings, bootstrap, groups
        )
    return report


def _check_pairs(path: str | Path, other: str | Path, lines: Lines, other_lines: Lines) -> None:
    """ValueError unless both files speak of the same expressions, images and targets."""
    first, second = ({line["expression_id"]: line for line in part} for part in (lines, other_lines))
    only_first, only_second = sorted(first.keys() - second.keys()), sorted(second.keys() - first.keys())
    if only_first or only_second:
        examples = ", ".join(map(str, (only_first + only_second)[:3]))
        raise ValueError(
            f"a comparison needs the same expressions, but {len(only_first)} stand only in {path} and "
            f"{len(only_second)} only in {other} (such as expression_id {examples})"
        )
    for identity, a in first.items():
        b = second[identity]
        for name in ("image_id", "object_ids", "text"):
            if a[name] != b[name]:
                raise ValueError(f"expression {identity} has {name} {a[name]!r} in {path}, but {b[name]!r} in {other}")
        # One mask can be written in several ways, so only different strings are decoded.
        if a["target"] != b["target"] and not np.array_equal(decode_mask(a["target"]), decode_mask(b["target"])):
            raise ValueError(f"expression {identity} has another target in {path} than in {other}")


def _differences(bootstrap: ImageBootstrap, image_ids: np.ndarray, a: Terms, b: Terms) -> dict[str, dict[str, Any]]:
    """metric -> {"a", "b", "difference", "low", "high"} of the metrics that both have."""
    names = [name for name in a if name in b]
    a, b = ({name: part[name] for name in names} for part in (a, b))
    drawn = bootstrap.resample(image_ids, a) - bootstrap.resample(image_ids, b)
    value_a, value_b = ratios(a), ratios(b)
    gap = {name: value_a[name] - value_b[name] for name in names if name in value_a and name in value_b}
    return {
        name: {"a": value_a[name], "b": value_b[name], "difference": entry["value"]}
        | {"low": entry["low"], "high": entry["high"]}
        for name, entry in _with_bounds(gap, names, bootstrap.bounds(drawn)).items()
    }


def _duel(
    lines: Lines, other_lines: Lines, protocol: Protocol, bootstrap: ImageBootstrap, groups: int
) -> dict[str, Any]:
    """What `compare_predictions` returns but for the names of the files; the lines are those of `_check_pairs`."""
    if not all("target_parts" in line for line in lines + other_lines):  # one kind of ground truth for both
        lines, other_lines = (
            [{name: value for name, value in line.items() if name != "target_parts"} for line in part]
            for part in (lines, other_lines)
        )
    evaluators = [_gather(part, [protocol.name]) for part in (lines, other_lines)]
    samples = [evaluator.samples(protocol.name) for evaluator in evaluators]
    terms = [sample_terms(part, protocol) for part in samples]
    iou_a, iou_b = (part["mIoU"][0] for part in terms)

    def outcome(members: np.ndarray) -> dict[str, Any]:
        return {
            "expressions": int(members.sum()),
            "wins": int((iou_a > iou_b)[members].sum()),
            "losses": int((iou_a < iou_b)[members].sum()),
            "ties": int((iou_a == iou_b)[members].sum()),
            "metrics": _differences(
                bootstrap, samples[0].image_id[members], *(_select(part, members) for part in terms)
            ),
        }

    overall = outcome(np.ones(iou_a.size, bool))
    objects = [evaluator.objects(protocol.name) for evaluator in evaluators]
    oc_terms = [object_terms(part, protocol) for part in objects]
    if oc_terms[0]:
        overall["metrics"] |= _differences(bootstrap, objects[0].image_id, *oc_terms)
    slices = {
        kind: {label: outcome(members) for label, members in part.items()}
        for kind, part in _slices(lines, samples[0], groups).items()
    }
    return {"protocol": protocol.name, "overall": overall, "slices": slices}


def compare_predictions(
    path: str | Path,
    other: str | Path,
    protocol: str = "original",
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    groups: int = 4,
) -> dict[str, Any]:
    """Predictions file `path` (a) against `other` (b), expression by expression, under one protocol.

    Returns a dict: a, b, protocol, overall and slices -> kind -> label, each with expressions, wins, losses and ties of
    a by IoU, and metrics -> name -> {"a", "b", "difference" (a - b), "low", "high" (its paired interval)}. Files with
    different expressions or targets raise ValueError.
    """
    lines, other_lines = read_predictions(path), read_predictions(other)
    _check_pairs(path, other, lines, other_lines)
    bootstrap = ImageBootstrap(np.array([line["image_id"] for line in lines]), resamples, confidence, seed)
    return {"a": str(path), "b": str(other)} | _duel(lines, other_lines, get_protocol(protocol), bootstrap, groups)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Plain text with the first column to the left and the others to the right."""
    widths = [max(len(row[index]) for row in (header, *rows)) for index in range(len(header))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]).rstrip()
        for row in (header, *rows)
    ]


def _cell(entry: dict[str, Any] | None, value: str = "value") -> str:
    """A value and its interval in per cent, such as "61.2 (60.1 62.4)"; "-" where there is none."""
    if entry is None:
        return "-"
    bounds = "" if entry["low"] is None else f" ({100 * entry['low']:.1f} {100 * entry['high']:.1f})"
    return f"{100 * entry[value]:.1f}{bounds}"


def _slice_rows(slices: dict[str, dict[str, dict]], leading: Sequence[str], metrics: Sequence[str], value: str) -> list:
    return [
        [f"{kind}: {label}", *(f"{entry[name]:,}" for name in leading)]
        + [_cell(entry["metrics"].get(name), value) for name in metrics]
        for kind, part in slices.items()
        for label, entry in part.items()
    ]


def format_report(report: dict[str, Any]) -> str:
    """The report of `evaluate_predictions` as plain text: all protocols, the slices of the first, the comparison."""
    settings = report["bootstrap"]
    text = [
        f"{report['file']}: {report['expressions']:,} expressions of {report['objects']:,} objects in "
        f"{report['images']:,} images",
        f"per cent, with the {settings['confidence']:.0%} interval of {settings['resamples']:,} resamples of images "
        f"(seed {settings['seed']})",
        "",
    ]
    protocols = report["protocols"]
    names = list(dict.fromkeys(name for entry in protocols.values() for name in entry["overall"]))
    order = ["oIoU", "mIoU", "Oc-IoU", "localization", *sorted(name for name in names if name.startswith("Pr@"))]
    order = [name for name in order if name in names] + [name for name in names if name not in order]
    rows = [[name, *(_cell(entry["overall"].get(name)) for entry in protocols.values())] for name in order]
    text += _table(["metric", *protocols], rows)
    first = next(iter(protocols))
    metrics = ["mIoU", "oIoU", *[name for name in protocols[first]["overall"] if name.startswith("Pr@")][:1]]
    text += ["", f"slices under {first}"]
    text += _table(["slice", "n", *metrics], _slice_rows(protocols[first]["slices"], ["expressions"], metrics, "value"))
    if "comparison" in report:
        text += ["", format_comparison(report["comparison"])]
    if report["notes"]:
        text += ["", *(f"note: {note}" for note in report["notes"])]
    return "\n".join(text)


def format_comparison(comparison: dict[str, Any]) -> str:
    """The result of `compare_predictions` as plain text."""
    overall = comparison["overall"]
    text = [
        f"a = {comparison['a']}",
        f"b = {comparison['b']}",
        f"under {comparison['protocol']}: of {overall['expressions']:,} expressions a is better on "
        f"{overall['wins']:,}, worse on {overall['losses']:,}, equal on {overall['ties']:,}",
    ]
    rows = [
        [name, f"{100 * entry['a']:.1f}", f"{100 * entry['b']:.1f}", _cell(entry, "difference")]
        for name, entry in overall["metrics"].items()
    ]
    text += _table(["metric", "a", "b", "a - b"], rows)
    rows = _slice_rows(comparison["slices"], ["expressions", "wins", "losses"], ["mIoU", "oIoU"], "difference")
    return "\n".join([*text, "", *_table(["a - b", "n", "wins", "losses", "mIoU", "oIoU"], rows)])
