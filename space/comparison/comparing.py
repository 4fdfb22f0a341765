"""Several models on one picture: each answer as soon as it is there, a model that gives none by its sentence."""

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

import numpy as np

from comparison.answers import Answer, AnswerStore, pack
from comparison.entries import Entry
from comparison.inference import ModelMaps, run_model
from comparison.limits import time_limit
from comparison.pictures import Picture, Refusal
from comparison.zoo import Zoo


MODEL_SECONDS = 60  # for one model

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelAnswers:
    """A model's answers to the expressions, in their order."""

    entry: Entry
    answers: list[Answer]


@dataclass(frozen=True)
class Failure:
    """A model that gave no answer, and the sentence that says why."""

    entry: Entry
    sentence: str


class Comparer:
    """Models, and what they answered lately.

    Args:
        on_gpu: wraps what runs a model; `spaces.GPU` on a Space with ZeroGPU.
    """

    def __init__(self, zoo: Zoo, on_gpu: Callable | None = None):
        self.zoo = zoo
        self.on_gpu = on_gpu or (lambda function: function)
        self.store = AnswerStore()
        self._times: dict[str, deque[float]] = {}  # seconds of each model's last runs

        def run(entry: Entry, picture: Picture, expressions: list[str]) -> ModelMaps:
            # ZeroGPU sends the arguments to another process: an entry travels, its model does not
            with time_limit(MODEL_SECONDS, entry.title):
                return run_model(entry, zoo.get(entry), picture, expressions, zoo.device)

        self._run = self.on_gpu(run)

    def answer(self, entry: Entry, picture: Picture, expressions: list[str]) -> list[Answer]:
        """One model's answers; what it was not asked lately is run together. Raises Refusal."""
        keys = {text: (digest(picture), entry.key, text) for text in expressions}
        known = {text: self.store.get(key) for text, key in keys.items()}
        missing = [text for text, answer in known.items() if answer is None]
        if missing:
            self.zoo.get(entry)  # waits here, outside the time that running may take
            answers = pack(self._run(entry, picture, missing))
            self._times.setdefault(entry.key, deque(maxlen=21)).append(answers[0].seconds)
            for text, answer in zip(missing, answers):
                known[text] = answer
                self.store.put(keys[text], answer)
        return [known[text] for text in expressions]

    def seconds(self, entry: Entry) -> float | None:
        """The median time of a model's last runs here; None before its first."""
        times = self._times.get(entry.key)
        return median(times) if times else None

    def answer_each(
        self, entries: list[Entry], picture: Picture, expressions: list[str]
    ) -> Iterator[ModelAnswers | Failure]:
        """One model after the other; one that cannot be loaded, fails or takes too long is a Failure."""
        for entry in entries:
            try:
                answer = ModelAnswers(entry, self.answer(entry, picture, expressions))
            except Refusal as refusal:
                answer = Failure(entry, str(refusal))
            except RuntimeError:  # torch's own, such as memory that runs out
                logger.exception("%s failed", entry.key)
                answer = Failure(entry, f"{entry.title} failed on this picture; the others are answered.")
            yield answer

    def answer_all(
        self, entries: list[Entry], picture: Picture, expressions: list[str]
    ) -> tuple[list[ModelAnswers], list[Failure]]:
        """Every answer, and the models that gave none. Raises Refusal if no model gives one."""
        answers = list(self.answer_each(entries, picture, expressions))
        failures = [answer for answer in answers if isinstance(answer, Failure)]
        if len(failures) == len(answers):
            raise Refusal(failures[0].sentence)
        return [answer for answer in answers if isinstance(answer, ModelAnswers)], failures


def digest(picture: Picture) -> bytes:
    """What tells a picture's content."""
    found = hashlib.sha256(np.asarray(picture.image).tobytes())
    found.update(repr(picture.image.size).encode())
    return found.digest()
