"""Gathers per-expression pixel counts under any number of protocols, over processes, and turns them into metrics."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .consistency import ObjectConsistency
from .protocols import Counts, Protocol, get_protocol, mask_counts, protocol_prediction, protocol_target
from .ris_iou.iou_terms import Terms, iou_terms, ratios
from .ris_length_iou.length_groups import length_groups
from .ris_localization.hit import localization_hit
from .ris_oc_iou.object_iou import object_iou
from .slices import word_count


_FIXED = ("expression_id", "image_id", "ref_id", "words", "no_target", "hit")  # columns before the counts
_NO_HIT = -1


class Samples(NamedTuple):
    """Arrays (N,) of the expressions of one protocol, by rising expression_id; hit is -1 where it is not known."""

    expression_id: np.ndarray
    image_id: np.ndarray
    ref_id: np.ndarray
    words: np.ndarray
    no_target: np.ndarray
    hit: np.ndarray
    intersection: np.ndarray
    union: np.ndarray
    prediction_area: np.ndarray
    target_area: np.ndarray


class Objects(NamedTuple):
    """Arrays (N,) of the objects of one protocol: their image, and Eq. 9's pixels over all their expressions."""

    image_id: np.ndarray
    intersection: np.ndarray
    union: np.ndarray


def expression_metadata(row: dict[str, Any], expression: dict[str, Any]) -> dict[str, Any]:
    """What `Evaluator.add` and the predictions file want to know of `expression`, one of `row["expressions"]`.

    same_class_distractors: other objects of the image with a target's category; None where a target's category is
    unknown ("") or there is no target. object_expressions: expressions of the row with just these targets.
    """
    targets = set(expression["object_indices"])
    categories = {row["objects"][index]["category"] for index in targets}
    distractors = [
        index for index, entry in enumerate(row["objects"]) if index not in targets and entry["category"] in categories
    ]
    return {
        "expression_id": int(expression["expression_id"]),
        "image_id": int(row["image_id"]),
        "ref_id": int(expression["ref_id"]),
        "object_ids": sorted(int(row["objects"][index]["object_id"]) for index in targets),
        "text": expression["text"],
        "height": int(row["height"]),
        "width": int(row["width"]),
        "category": ", ".join(sorted(categories)),
        "same_class_distractors": len(distractors) if categories and "" not in categories else None,
        "object_expressions": sum(set(other["object_indices"]) == targets for other in row["expressions"]),
    }


def sample_terms(samples: Samples, protocol: Protocol) -> Terms:
    """Numerator and denominator per expression of each per-expression metric of `protocol` (`ris_iou.iou_terms`)."""
    terms = iou_terms(
        samples.intersection,
        samples.union,
        thresholds=protocol.precision_at,
        strict=protocol.strict,
        empty_value=protocol.empty_value,
        no_target=samples.no_target,
        empty_prediction=samples.prediction_area == 0,
        no_target_value=protocol.no_target_value,
        precision_needs_target=protocol.precision_needs_target,
    )
    known = samples.hit != _NO_HIT
    if known.any():
        terms["localization"] = (samples.hit == 1, known)
    return terms


def object_terms(objects: Objects, protocol: Protocol) -> Terms:
    """Numerator and denominator per object of Oc-IoU; empty where there is no object."""
    if objects.image_id.size == 0:
        return {}
    iou = object_iou(objects.intersection, objects.union, protocol.empty_value)
    return {"Oc-IoU": (iou, np.ones(iou.size))}


class Evaluator:
    """Per-expression counts under `protocols` (names), added one by one, merged over processes, computed at the end.

    probabilities: every `add` brings the probability map, or masks cut at the thresholds that protocols have of their
    own; without, these too take the mask as the model cut it. target_parts: every `add` brings the polygons of the
    ground truth, which "sum_equals_one" needs; without, it takes their union.
    """

    def __init__(
        self, protocols: Sequence[str] = ("original",), *, probabilities: bool = False, target_parts: bool = False
    ) -> None:
        self.protocols = {name: get_protocol(name) for name in protocols}
        self.probabilities = probabilities
        self.target_parts = target_parts
        self._rows: dict[int, tuple[int, ...]] = {}
        # One column of counts and one Oc-IoU per view: protocols that look at the same pixels share them.
        self._views = {self._view(protocol): protocol for protocol in self.protocols.values()}
        self._consistency = {view: ObjectConsistency() for view in self._views}

    def __len__(self) -> int:
        """How many expressions have been added or merged."""
        return len(self._rows)

    def _view(self, protocol: Protocol) -> tuple:
        size, target, threshold, crowds = protocol.view
        return size, target if self.target_parts else "union", threshold if self.probabilities else None, crowds

    def add(
        self,
        prediction: np.ndarray,
        target: np.ndarray,
        metadata: dict[str, Any],
        *,
        probability: np.ndarray | None = None,
        cuts: Mapping[float, np.ndarray] | None = None,
        heatmap: np.ndarray | None = None,
        hit: bool | None = None,
        prediction_480: np.ndarray | None = None,
        target_parts: list[np.ndarray] | None = None,
        target_without_crowds: np.ndarray | None = None,
    ) -> None:
        """Add one expression; one whose expression_id is known already is left out.

        prediction, target: bool (H, W), the image's size, cut by the model's own threshold. metadata: expression_id,
        image_id, ref_id, object_ids, text, and, so that its masks can be dropped early, object_expressions
        (`expression_metadata` makes them). probability: float (H, W) in [0, 1]; or cuts: a bool (H, W) for each
        threshold that a protocol has of its own. heatmap: float (H, W) whose maximum should lie in the target; without
        it `hit` says so, else the probability stands in. prediction_480: what the model gives at 480x480, bool (cut at
        the protocols' 0.5) or, with `probabilities`, float; else the prediction is resized (nearest).
        target_without_crowds: bool (H, W), the part of the target that is no region of a crowd; None: all of it.
        """
        expression_id = int(metadata["expression_id"])
        if expression_id in self._rows:
            return
        prediction, target = np.asarray(prediction), np.asarray(target)
        where = f"expression {expression_id}"
        if prediction.dtype != np.bool_ or target.dtype != np.bool_ or prediction.shape != target.shape:
            raise ValueError(
                f"{where}: prediction and target are bool masks of one shape, but they are "
                f"{prediction.dtype} {prediction.shape} and {target.dtype} {target.shape}"
            )
        if self.probabilities and probability is None and cuts is None:
            raise ValueError(f"{where}: an Evaluator with probabilities=True needs the probability of every expression")
        if self.target_parts and target_parts is None:
            raise ValueError(f"{where}: an Evaluator with target_parts=True needs the parts of every target")
        no_target = not target.any()
        peak = probability if heatmap is None and hit is None else heatmap
        if peak is not None and not no_target:
            hit = localization_hit(peak, target)
        row = [int(metadata["image_id"]), int(metadata["ref_id"]), word_count(metadata["text"]), int(no_target)]
        row.append(_NO_HIT if hit is None or no_target else int(hit))
        key = (int(metadata["image_id"]), tuple(sorted(metadata["object_ids"])))
        for view, protocol in self._views.items():
            cut = prediction
            if view[2] is not None:
                cut = np.asarray(probability) if cuts is None else cuts[view[2]]
            if protocol.size == (480, 480) and prediction_480 is not None:
                cut = np.asarray(prediction_480)
            predicted = protocol_prediction(cut, protocol, target.shape)
            parts = target_parts if self.target_parts else None
            truth = protocol_target(target, protocol, parts, target_without_crowds)
            row += mask_counts(predicted, truth)
            if not no_target:
                expected = metadata.get("object_expressions")
                self._consistency[view].add(key, expression_id, predicted, truth, expected)
        self._rows[expression_id] = tuple(row)

    def state(self) -> dict[str, Any]:
        """What other processes need (`merge`): an int64 array with a row per expression, and counts per object."""
        table = [(expression_id, *row) for expression_id, row in self._rows.items()]
        return {
            "views": list(self._views),
            "expressions": np.array(table, np.int64).reshape(len(table), len(_FIXED) + 4 * len(self._views)),
            "objects": [consistency.state() for consistency in self._consistency.values()],
        }

    def merge(self, states: Iterable[dict[str, Any]]) -> None:
        """Take in the `state()` of other processes (its own may be among them); no expression counts twice."""
        for state in states:
            if state["views"] != list(self._views):
                raise ValueError("only evaluators made with the same arguments can be merged")
            for expression_id, *row in state["expressions"].tolist():
                self._rows.setdefault(expression_id, tuple(row))
            for consistency, other in zip(self._consistency.values(), state["objects"]):
                consistency.merge(other)

    def samples(self, protocol: str = "original") -> Samples:
        """The expressions that count under `protocol`, sorted, so that results do not depend on the order of adding."""
        view, first = self._find(protocol)
        if not self._rows:
            raise ValueError("nothing has been added, so that there is nothing to compute")
        table = self.state()["expressions"]
        table = table[table[:, 0].argsort()]
        if first:
            table = table[np.sort(np.unique(table[:, 2], return_index=True)[1])]
        fixed = dict(zip(_FIXED, table[:, : len(_FIXED)].T))
        fixed["no_target"] = fixed["no_target"].astype(bool)
        start = len(_FIXED) + 4 * list(self._views).index(view)
        return Samples(**fixed, **Counts(*table[:, start : start + 4].T)._asdict())

    def objects(self, protocol: str = "original") -> Objects:
        """The objects under `protocol`, sorted; none where only the first expression of each reference counts."""
        view, first = self._find(protocol)
        found = {} if first else self._consistency[view].counts()
        table = [(key[0], *found[key][:2]) for key in sorted(found)]
        return Objects(*np.array(table, np.int64).reshape(len(table), 3).T)

    def _find(self, protocol: str) -> tuple[tuple, bool]:
        if protocol not in self.protocols:
            raise ValueError(f"this evaluator holds {', '.join(self.protocols)}, but not protocol {protocol!r}")
        return self._view(self.protocols[protocol]), self.protocols[protocol].expressions == "first"

    def compute(self, protocol: str = "original", groups: int = 4) -> dict[str, float]:
        """Metrics in [0, 1] by name: oIoU, mIoU, Pr@X; N-acc, T-acc, localization, Oc-IoU where there is something to
        count; mIoU by length in words, in `groups` groups of about equal size, as "mIoU (1-2 words)".
        """
        samples, settings = self.samples(protocol), get_protocol(protocol)
        terms = sample_terms(samples, settings)
        result = ratios(terms | object_terms(self.objects(protocol), settings))
        for label, members in length_groups(samples.words, groups):
            result[f"mIoU ({label} words)"] = float(terms["mIoU"][0][members].mean())
        return result
