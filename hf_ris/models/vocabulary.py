"""How much of a text a tokenizer knows. A model reads every word that is not in its vocabulary as the same `[UNK]`."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from unicodedata import category

from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class UnknownWords:
    """How many of some expressions' words a tokenizer does not know; each is read as the same unknown word.

    Args:
        unknown, words: numbers of words, as often as they come.
        examples: unknown words, the most frequent first.
    """

    unknown: int
    words: int
    examples: tuple[str, ...]

    @property
    def share(self) -> float:
        return self.unknown / max(self.words, 1)

    def __str__(self) -> str:
        such = f", such as {', '.join(map(repr, self.examples))}" if self.examples else ""
        return f"{self.unknown:,} of {self.words:,} words ({self.share:.1%}) are not in the vocabulary{such}"


def unknown_words(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> UnknownWords:
    """The words of texts that a fast tokenizer does not know, punctuation left out. Byte pairs know all.

    Tokenizers part texts at white space first, so each distinct piece is looked at once, of which a data set has few.
    """
    pieces = Counter(piece for text in texts for piece in text.split())
    words, unknown = 0, Counter()
    if not pieces:
        return UnknownWords(0, 0, ())
    encoded = tokenizer(list(pieces), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    for row, (piece, times) in enumerate(pieces.items()):
        tokens = zip(encoded["input_ids"][row], encoded["offset_mapping"][row], encoded.word_ids(row), strict=True)
        tokens = [(token, piece[start:end].lower(), word) for token, (start, end), word in tokens]
        tokens = [entry for entry in tokens if not all(category(mark).startswith("P") for mark in entry[1])]
        words += times * len({word for _, _, word in tokens})
        for token, read, _ in tokens:
            if token == tokenizer.unk_token_id:
                unknown[read] += times
    frequent = sorted(unknown.items(), key=lambda item: (-item[1], item[0]))
    return UnknownWords(unknown.total(), words, tuple(word for word, _ in frequent[:5]))
