"""Which words matter: each word left out in turn, and how much of the mask changes."""

from comparison.answers import from_png
from comparison.comparing import Comparer
from comparison.entries import Entry
from comparison.limits import time_limit
from comparison.pictures import Picture


MAX_WORDS = 12  # that are left out; of a longer text, the first
WORDS_SECONDS = 20


def word_changes(
    comparer: Comparer, entry: Entry, picture: Picture, expression: str, threshold: float | None = None
) -> list[dict]:
    """For each word its text and `change`: 1 - IoU of the mask with the mask of the expression without that word.

    `change` is None for a word that is not tried: an only word, or one beyond `MAX_WORDS`. Raises Refusal.
    """
    words = expression.split()
    count = min(len(words), MAX_WORDS) if len(words) > 1 else 0
    without = [" ".join(words[:k] + words[k + 1 :]) for k in range(count)]
    with time_limit(WORDS_SECONDS, "Leaving out words"):
        whole, *parts = comparer.answer(entry, picture, [expression, *without])
    cut = 255 * (whole.threshold if threshold is None else threshold)
    mask = from_png(whole.probability) > cut
    changes = []
    for part in parts:
        other = from_png(part.probability) > cut
        union = (mask | other).sum()
        changes.append(round(1 - float((mask & other).sum() / union), 4) if union else 0.0)
    changes += [None] * (len(words) - count)
    return [{"word": word, "change": change} for word, change in zip(words, changes)]
