"""What models answered, kept for minutes as 8-bit PNG, bounded in sum: maps of any age or number never fill the memory.

Nothing belongs to a visitor: an answer is found by the picture's content, the model and the expression, so that asking
the same again, moving on to a download, or two visitors with one example run a model once.
"""

import io
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from comparison.inference import ModelMaps


MAX_BYTES = 64_000_000  # of all that is kept
KEEP_SECONDS = 600


@dataclass(frozen=True)
class Answer:
    """What one model said to one expression of one picture.

    Attributes:
        probability: PNG of 8 bits, 255 times the probability, over the whole picture.
        location: likewise what the architecture located before it segmented, or None.
        queries: PNGs of the query masks that count most, most first; empty for architectures without.
        query_scores: how much each counts, in [0, 1].
        phrase: the part of the expression that `location` is of, or None for all of it.
        seconds: that the run took, and `together` how many expressions it answered.
        threshold, parameters: of the model.
        remarks: what it could not read of this expression.
    """

    probability: bytes
    location: bytes | None
    queries: tuple[bytes, ...]
    query_scores: tuple[float, ...]
    phrase: str | None
    seconds: float
    together: int
    threshold: float
    parameters: int
    remarks: tuple[str, ...]

    @property
    def size(self) -> int:
        maps = (self.probability, self.location or b"", *self.queries)
        return sum(map(len, maps)) + 500  # and the rest


def pack(maps: ModelMaps) -> list[Answer]:
    """One answer for each expression."""
    return [
        Answer(
            probability=to_png(maps.probabilities[n]),
            location=None if maps.localization is None else to_png(maps.localization[n]),
            queries=() if maps.queries is None else tuple(map(to_png, maps.queries[n])),
            query_scores=() if maps.query_scores is None else tuple(map(float, maps.query_scores[n])),
            phrase=maps.phrases[n],
            seconds=maps.seconds,
            together=len(maps.probabilities),
            threshold=maps.threshold,
            parameters=maps.parameters,
            remarks=tuple(maps.remarks[n]),
        )
        for n in range(len(maps.probabilities))
    ]


def to_png(values: np.ndarray) -> bytes:
    """(h, w) uint8 or bool -> a grey PNG."""
    buffer = io.BytesIO()
    values = values.astype(np.uint8) * 255 if values.dtype == bool else values
    Image.fromarray(values).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def from_png(png: bytes) -> np.ndarray:
    """(h, w) uint8 out of `to_png`."""
    return np.asarray(Image.open(io.BytesIO(png)))


class AnswerStore:
    """Answers by key, least recently asked for first to go.

    Args:
        max_bytes: of all answers; those asked for longest ago make room.
        seconds: after which an answer goes, unless it is kept for good.
        clock: in seconds.
    """

    def __init__(
        self,
        max_bytes: int = MAX_BYTES,
        seconds: float = KEEP_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.max_bytes, self.seconds, self.clock = max_bytes, seconds, clock
        self.bytes = 0
        self._kept: OrderedDict[tuple, tuple[float, Answer]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: tuple) -> Answer | None:
        with self._lock:
            self._drop_old()
            if key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key][1]

    def put(self, key: tuple, answer: Answer) -> None:
        with self._lock:
            self._forget(key)
            self._kept[key] = (self.clock() + self.seconds, answer)
            self.bytes += answer.size
            self._drop_old()
            while self.bytes > self.max_bytes:
                self._forget(next(iter(self._kept)))

    def _drop_old(self) -> None:
        now = self.clock()
        for key in [key for key, (end, _) in self._kept.items() if end < now]:
            self._forget(key)

    def _forget(self, key: tuple) -> None:
        if key in self._kept:
            self.bytes -= self._kept.pop(key)[1].size
