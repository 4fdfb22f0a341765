"""J, F and J&F of referring video segmentation under two protocols, gathered video by video and over processes.

`youtube_vos`: every expression is an answer by itself, compared with its own target in every annotated frame; the mean
over expressions (Ref-YouTube-VOS's server).

`davis`: what referring programs report on Ref-DAVIS17. Of each annotation set (the data set has four) the answers of a
video become one map of numbers per frame (`merge_answers`); its regions and the video's objects are matched one to one
so that their J&F is best, an object without a region gets an empty one, void pixels count for neither, and all
annotated frames count (the toolkit's `unsupervised` task). The mean over all objects, then over the sets.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from .bootstrap import ImageBootstrap
from .ris_video_jf.region_contour import contour_accuracy, frame_counts, region_similarity
from .slices import has_location_word, has_motion, has_ordinal, word_count


VIDEO_PROTOCOLS = {
    "youtube_vos": "Ref-YouTube-VOS: each expression by itself, all annotated frames, mean over expressions",
    "davis": "Ref-DAVIS17: a video's answers merged, matched to its objects, mean of the annotation sets",
}
_BACKGROUND = 0.1  # probability of "no object" when answers are merged


class Answers(NamedTuple):
    """Arrays (N,) of one protocol's answers, sorted: their video, annotation set, number (expression or object), frames
    that count, and the means of J and F over these."""

    video_id: np.ndarray
    annotation_set: np.ndarray
    number: np.ndarray
    frames: np.ndarray
    j: np.ndarray
    f: np.ndarray


def merge_answers(probabilities: np.ndarray) -> np.ndarray:
    """Probabilities (K, H, W) of K answers -> int (H, W): k + 1 where answer k is the most probable, 0 for none.

    A probability below 0.5 counts as 0, "none" has 0.1 everywhere, and of equal ones the first wins.
    """
    kept = np.where(probabilities < 0.5, 0.0, probabilities)
    best = kept.argmax(0)
    return np.where(kept.max(0) > _BACKGROUND, best + 1, 0)


class VideoScorer:
    """The frames of one video, added one by one in any order; `VideoEvaluator.video` makes it and takes its result.

    Of a frame only counts are kept.
    """

    def __init__(self, expressions: Sequence[dict[str, Any]], objects: int, protocols: Sequence[str]):
        self.expressions, self.objects, self.protocols = list(expressions), objects, protocols
        self.single: list[list[tuple]] = [[] for _ in self.expressions]
        sets = sorted({said["annotation_set"] for said in self.expressions})
        self.sets = {
            number: [i for i, said in enumerate(self.expressions) if said["annotation_set"] == number]
            for number in sets
        }
        self.pairs = {number: [] for number in sets}  # per frame (answers, objects, 6)

    def add(
        self,
        predictions: np.ndarray,
        targets: Sequence[np.ndarray | None],
        probabilities: np.ndarray | None = None,
        void: np.ndarray | None = None,
    ) -> None:
        """One frame.

        Args:
            predictions: bool (N, H, W), the answers to the N expressions, cut by the model's threshold.
            targets: the K objects' masks, bool (H, W); None where the object is not annotated in this frame.
            probabilities: float (N, H, W) in [0, 1], which `davis` needs.
            void: bool (H, W), pixels that count for nothing.

        Raises:
            ValueError: another number of predictions or targets than the video has, or no probabilities for `davis`.
        """
        if len(predictions) != len(self.expressions) or len(targets) != self.objects:
            raise ValueError(
                f"the video has {len(self.expressions)} expressions and {self.objects} objects, but the frame brings "
                f"{len(predictions)} predictions and {len(targets)} targets"
            )
        if all(target is None for target in targets) and self.objects:
            return
        if "youtube_vos" in self.protocols:
            self._add_single(predictions, targets, void)
        if "davis" in self.protocols:
            if probabilities is None:
                raise ValueError("the davis protocol merges answers by their probabilities: give those too")
            self._add_merged(probabilities, targets, void)

    def _add_single(self, predictions: np.ndarray, targets: Sequence[np.ndarray | None], void) -> None:
        for rows, said, prediction in zip(self.single, self.expressions, predictions):
            chosen = [targets[index] for index in said["object_indices"]]
            if any(target is None for target in chosen):
                continue
            target = np.logical_or.reduce(chosen) if chosen else np.zeros_like(prediction)
            rows.append(frame_counts(prediction, target, void))

    def _add_merged(self, probabilities: np.ndarray, targets: Sequence[np.ndarray | None], void) -> None:
        shape = probabilities.shape[1:]
        known = [np.zeros(shape, bool) if target is None else target for target in targets]
        for number, members in self.sets.items():
            merged = merge_answers(probabilities[members])
            answers = [merged == k + 1 for k in range(len(members))]
            answers += [np.zeros(shape, bool)] * (self.objects - len(answers))
            self.pairs[number].append([[frame_counts(answer, target, void) for target in known] for answer in answers])

    def rows(self, video_id: int) -> dict[str, list[tuple]]:
        """protocol -> (video, annotation set, number, frames, J, F) of each answer."""
        result: dict[str, list[tuple]] = {name: [] for name in self.protocols}
        for said, counts in zip(self.expressions, self.single):
            if counts:
                j, f = region_similarity(counts).mean(), contour_accuracy(counts).mean()
                key = (video_id, said["annotation_set"], said["expression_id"])
                result["youtube_vos"].append((*key, len(counts), j, f))
        for number, frames in self.pairs.items():
            if not frames or not self.objects:
                continue
            counts = np.array(frames)  # (frames, answers, objects, 6)
            flat = counts.reshape(-1, counts.shape[-1])
            j, f = (
                measure(flat).reshape(counts.shape[:3]).mean(0) for measure in (region_similarity, contour_accuracy)
            )
            answers, objects = linear_sum_assignment(j + f, maximize=True)
            for answer, target in sorted(zip(answers.tolist(), objects.tolist()), key=lambda pair: pair[1]):
                result["davis"].append((video_id, number, target, len(frames), j[answer, target], f[answer, target]))
        return result


class VideoEvaluator:
    """J and F of every answer under `protocols`, video by video, merged over processes, computed at the end."""

    def __init__(self, protocols: Sequence[str] = ("youtube_vos",)):
        unknown = [name for name in protocols if name not in VIDEO_PROTOCOLS]
        if unknown:
            raise ValueError(
                f"there is no video protocol {unknown[0]!r}; there are {', '.join(VIDEO_PROTOCOLS)} (those of images, "
                "such as original, need single images)"
            )
        self.protocols = list(protocols)
        self._rows: dict[int, dict[str, list[tuple]]] = {}
        self._texts: dict[int, str] = {}

    def video(self, expressions: Sequence[dict[str, Any]], objects: int) -> VideoScorer:
        """For the frames of one video: its `expressions` (dicts with expression_id, annotation_set, object_indices) and
        the number of its objects."""
        return VideoScorer(expressions, objects, self.protocols)

    def add(self, video_id: int, scorer: VideoScorer) -> None:
        """Take in a video whose frames have all been added. Parts of a video's expressions may come one after the other
        (not under `davis`); an expression that is known already is left out."""
        own = self._rows.setdefault(int(video_id), {name: [] for name in self.protocols})
        for name, rows in scorer.rows(int(video_id)).items():
            known = {row[1:3] for row in own[name]}
            own[name] += [row for row in rows if row[1:3] not in known]
        self._texts |= {said["expression_id"]: said["text"] for said in scorer.expressions}

    def __len__(self) -> int:
        """How many expressions were added."""
        return len(self._texts)

    @property
    def has_answers(self) -> bool:
        """Whether any frame that was added is annotated."""
        return any(parts[name] for parts in self._rows.values() for name in self.protocols)

    @property
    def videos(self) -> int:
        return len(self._rows)

    def state(self) -> dict[str, Any]:
        """What other processes need (`merge`)."""
        return {"protocols": self.protocols, "rows": self._rows, "texts": self._texts}

    def merge(self, states: Iterable[dict[str, Any]]) -> None:
        """Take in the `state()` of other processes (its own may be among them); no answer counts twice."""
        for state in states:
            if state["protocols"] != self.protocols:
                raise ValueError("only evaluators made with the same protocols can be merged")
            for video_id, parts in state["rows"].items():
                own = self._rows.setdefault(video_id, {name: [] for name in self.protocols})
                for name, rows in parts.items():
                    known = {row[1:3] for row in own[name]}
                    own[name] += [row for row in rows if row[1:3] not in known]
            self._texts |= state["texts"]

    def answers(self, protocol: str) -> Answers:
        """What counts under `protocol`, sorted, so that results do not depend on the order of adding."""
        if protocol not in self.protocols:
            raise ValueError(f"this evaluator holds {', '.join(self.protocols)}, but not protocol {protocol!r}")
        rows = sorted(row for parts in self._rows.values() for row in parts[protocol])
        if not rows:
            raise ValueError("no answer has an annotated frame, so that there is nothing to compute")
        columns = list(zip(*rows))
        return Answers(*(np.array(c, np.int64) for c in columns[:4]), *(np.array(c, np.float64) for c in columns[4:]))

    def compute(self, protocol: str = "youtube_vos") -> dict[str, float]:
        """J&F, J, F in [0, 1]; under `davis` with several sets, also each one's, as "J&F (set 2)"."""
        answers = self.answers(protocol)
        everything = np.ones(len(answers.j), bool)
        return _means(answers, everything, protocol == "davis")

    def slices(self, protocol: str = "youtube_vos") -> dict[str, dict[str, np.ndarray]]:
        """kind -> label -> bool (N,) over `answers`; only `youtube_vos` has an expression for each answer."""
        if protocol != "youtube_vos":
            return {}
        texts = [self._texts[number] for number in self.answers(protocol).number.tolist()]
        kinds = {"motion": has_motion, "location word": has_location_word, "ordinal": has_ordinal}
        parts = {kind: np.array([says(text) for text in texts]) for kind, says in kinds.items()}
        long = np.array([word_count(text) > 5 for text in texts])
        slices = {kind: {"with": flags, "without": ~flags} for kind, flags in parts.items()}
        slices["words"] = {"1-5": ~long, "6+": long}
        return {kind: {k: m for k, m in part.items() if m.any()} for kind, part in slices.items()}

    def report(self, protocol: str = "youtube_vos", resamples: int = 1000, confidence: float = 0.95, seed: int = 0):
        """{"overall": metric -> {"value", "low", "high"}, "slices": kind -> label -> {"expressions", "metrics"}}.

        Intervals are percentile bootstraps over whole videos.
        """
        answers = self.answers(protocol)
        bootstrap = ImageBootstrap(answers.video_id, resamples, confidence, seed)
        everything = np.ones(len(answers.j), bool)
        overall = _estimate(bootstrap, answers, everything, protocol == "davis")
        slices = {
            kind: {
                label: {"expressions": int(m.sum()), "metrics": _estimate(bootstrap, answers, m, False)}
                for label, m in part.items()
            }
            for kind, part in self.slices(protocol).items()
        }
        return {"description": VIDEO_PROTOCOLS[protocol], "overall": overall, "slices": slices}


def _sets(answers: Answers, members: np.ndarray, by_set: bool) -> dict[int | None, np.ndarray]:
    if not by_set:
        return {None: members}
    return {int(number): members & (answers.annotation_set == number) for number in np.unique(answers.annotation_set)}


def _means(answers: Answers, members: np.ndarray, by_set: bool) -> dict[str, float]:
    """Means of the sets' means (without `by_set`, of all members), and of each set where there are several."""
    parts = {}
    for number, chosen in _sets(answers, members, by_set).items():
        j, f = float(answers.j[chosen].mean()), float(answers.f[chosen].mean())
        parts[number] = {"J&F": (j + f) / 2, "J": j, "F": f}
    result = {name: float(np.mean([part[name] for part in parts.values()])) for name in ("J&F", "J", "F")}
    if len(parts) > 1:
        result |= {f"{name} (set {number})": value for number, part in parts.items() for name, value in part.items()}
    return result


def _estimate(bootstrap: ImageBootstrap, answers: Answers, members: np.ndarray, by_set: bool) -> dict[str, dict]:
    """metric -> {"value", "low", "high"} of J&F, J and F."""
    drawn = []
    for chosen in _sets(answers, members, by_set).values():
        terms = {"J": (answers.j * chosen, chosen.astype(float)), "F": (answers.f * chosen, chosen.astype(float))}
        drawn.append(bootstrap.resample(answers.video_id, terms))
    j, f = np.mean(drawn, axis=0).T
    low, high = bootstrap.bounds(np.stack([(j + f) / 2, j, f], 1))
    values = _means(answers, members, by_set)
    ends = [(None if np.isnan(end) else float(end) for end in pair) for pair in zip(low, high)]
    return {name: {"value": values[name], "low": a, "high": b} for name, (a, b) in zip(("J&F", "J", "F"), ends)}
