"""Oc-IoU's pixel counts per object (VATEX, Eq. 9): what all masks of one object share, over what any of them has."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np


def object_counts(predictions: Sequence[np.ndarray], target: np.ndarray) -> tuple[int, int]:
    """(intersection, union) in pixels of `target` and all `predictions`, bool (H, W), of one object."""
    masks = np.stack([target, *predictions])
    return int(masks.all(axis=0).sum()), int(masks.any(axis=0).sum())


@dataclass
class _Open:
    """An object some of whose expressions may still come: 1 bit per pixel for either mask."""

    shape: tuple[int, int]
    shared: np.ndarray
    covered: np.ndarray
    expected: int | None
    seen: set[int] = field(default_factory=set)


class ObjectConsistency:
    """Gathers `object_counts` expression by expression.

    It holds masks (bit-packed) only of objects that wait for more expressions; two integers of the others. Adding an
    expression twice, or in two processes that are merged later, changes nothing.
    """

    def __init__(self) -> None:
        self._open: dict[Hashable, _Open] = {}
        self._closed: dict[Hashable, tuple[int, int, int]] = {}

    def add(
        self,
        key: Hashable,
        expression_id: int,
        prediction: np.ndarray,
        target: np.ndarray,
        expected: int | None = None,
    ) -> None:
        """Add one expression of the object `key`: bool masks (H, W) of one shape.

        expected: how many expressions the object has in all, so that its masks can be dropped after the last; None
        keeps them until the end.
        """
        if key in self._closed:
            return
        mask, truth = np.packbits(prediction), np.packbits(target)
        fresh = _Open(prediction.shape, mask & truth, mask | truth, expected, {expression_id})
        self._join(key, fresh)

    def merge(self, state: tuple[dict, dict]) -> None:
        """Take in the `state()` of another process."""
        opened, closed = state
        self._closed.update(closed)
        for key in closed:
            self._open.pop(key, None)
        for key, entry in opened.items():
            if key not in self._closed:
                self._join(key, _Open(**entry))

    def state(self) -> tuple[dict, dict]:
        """(open, closed) as plain dicts that pickle small; closed: key -> (intersection, union, expressions)."""
        return {key: dict(vars(entry)) for key, entry in self._open.items()}, dict(self._closed)

    def counts(self) -> dict[Hashable, tuple[int, int, int]]:
        """key -> (intersection, union, expressions) of every object, with what has been added so far."""
        return self._closed | {key: self._finish(entry) for key, entry in self._open.items()}

    def _join(self, key: Hashable, entry: _Open) -> None:
        before = self._open.get(key)
        if before is not None:
            if before.shape != entry.shape:
                raise ValueError(
                    f"the masks of object {key} have shapes {before.shape} and {entry.shape}, but must have one"
                )
            entry = _Open(
                entry.shape,
                before.shared & entry.shared,
                before.covered | entry.covered,
                entry.expected,
                before.seen | entry.seen,
            )
        if len(entry.seen) == entry.expected:
            self._open.pop(key, None)
            self._closed[key] = self._finish(entry)
        else:
            self._open[key] = entry

    @staticmethod
    def _finish(entry: _Open) -> tuple[int, int, int]:
        return int(np.bitwise_count(entry.shared).sum()), int(np.bitwise_count(entry.covered).sum()), len(entry.seen)
