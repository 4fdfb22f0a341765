"""Text encoders: BERT through transformers, and a Bi-GRU over a word vocabulary (LTS, VLT) with its tokenizer."""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor, nn
from transformers import BertModel, BertTokenizer, PreTrainedTokenizerFast


def word_tokenizer(vocabulary: Iterable[str]) -> PreTrainedTokenizerFast:
    """A lower-casing word tokenizer: id 0 is `[PAD]`, id 1 is `[UNK]`, then the words in the order given."""
    words = list(dict.fromkeys(["[PAD]", "[UNK]", *vocabulary]))
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # runs of word characters, runs of other characters
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_input_names=["input_ids", "attention_mask"],
    )


def corpus_words(texts: Iterable[str], min_count: int = 1) -> list[str]:
    """The words of a corpus seen at least `min_count` times, most frequent first."""
    counts = Counter(word for text in texts for word in re.findall(r"\w+|[^\w\s]+", text.lower()))
    return sorted((word for word, count in counts.items() if count >= min_count), key=lambda w: (-counts[w], w))


def word_tokenizer_from_corpus(texts: Iterable[str], min_count: int = 1) -> PreTrainedTokenizerFast:
    """`word_tokenizer` over `corpus_words`."""
    return word_tokenizer(corpus_words(texts, min_count))


def wordpiece_tokenizer(vocabulary: Iterable[str]) -> BertTokenizer:
    """A small uncased BERT tokenizer, made offline for tiny models.

    Ids 0-4 are `[PAD] [UNK] [CLS] [SEP] [MASK]`; then come the words in the order given, then letters and digits, alone
    and as continuations (`##a`), so that an unknown word is spelled rather than lost.
    """
    characters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = [*characters, *(f"##{character}" for character in characters)]
    words = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str.lower, vocabulary), *pieces])
    return BertTokenizer(vocab={word: index for index, word in enumerate(words)})


def load_bert(encoder: BertModel, name: str) -> None:
    """Copy the public weights of a BERT, a Hub name or a folder, into an encoder built from its config.

    Raises:
        OSError: weights that are neither cached nor reachable; the message names them.
        ValueError: weights of another size; the message names the field.
    """
    try:
        bert = BertModel.from_pretrained(name, add_pooling_layer=False)
    except OSError as error:
        raise OSError(
            f"The public weights of BERT {name!r} could not be loaded ({error}). Connect to the Hub once, or build "
            "the model from its config alone, which needs no download."
        ) from error
    for field in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
        ours, theirs = encoder.config.to_dict()[field], bert.config.to_dict()[field]
        if ours != theirs:
            raise ValueError(f"BERT {name!r} has {field}={theirs}, but text_config asks for {ours}.")
    encoder.load_state_dict(bert.state_dict())


def read_glove(path: str | Path, words: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """Vectors of a GloVe text file (`word v1 ... vd` a line), all or only those of `words`.

    Raises:
        ValueError: a line whose number of values differs from the first line's; the message names the line.
    """
    wanted = None if words is None else set(words)
    vectors: dict[str, np.ndarray] = {}
    dimension = None
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            first, *values = line.rstrip("\n").split(" ")
            dimension = dimension or len(values)
            # some public files hold words with spaces: the vector is the last `dimension` values
            word, values = " ".join([first, *values[:-dimension]]), values[-dimension:]
            if len(values) != dimension or dimension == 0:
                raise ValueError(f"{path}, line {number}: expected a word and {dimension} numbers, got {len(values)}.")
            if wanted is None or word in wanted:
                vectors[word] = np.array(values, dtype=np.float32)
    return vectors


class Gru(nn.RNNBase):
    """`nn.GRU` of one layer and direction from a state of zeros, (N, L, D) -> (N, L, C), with its parameters' names.

    A class of its own, since `torch.compile` cuts its graph at every `nn.GRU`.
    """

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__("GRU", input_size, hidden_size, batch_first=True)

    def forward(self, words: Tensor) -> Tensor:
        start = words.new_zeros(1, words.shape[0], self.hidden_size)
        weights = [self.weight_ih_l0, self.weight_hh_l0, self.bias_ih_l0, self.bias_hh_l0]  # as they are now: offloaded
        return torch.gru(words, start, weights, True, 1, 0.0, self.training, False, True)[0]


class BiGru(nn.Module):
    """Word embedding and bidirectional GRU (LTS Eq. 1-4; Bi-GRU of VLT).

    The two directions are two GRUs: the backward one reads each expression reversed within its own length, so padding
    changes nothing and no packing (a data-dependent shape) is needed.

    Args:
        vocab_size, embedding_dim: of the word table (row 0 is padding).
        hidden_size: of one direction.
        combine: `concat` gives 2 * hidden_size channels (Eq. 4), `sum` gives hidden_size (VLT).
        dropout: of the words' vectors, in training.
    """

    max_length = None  # reads any number of words
    config = None  # its sizes are fields of the architecture's

    def __init__(
        self, vocab_size: int, embedding_dim: int, hidden_size: int, combine: str = "concat", dropout: float = 0.0
    ):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embedding_dim, padding_idx=0)
        self.forward_gru = Gru(embedding_dim, hidden_size)
        self.backward_gru = Gru(embedding_dim, hidden_size)
        self.combine = combine
        self.dropout = nn.Dropout(dropout)
        self.channels = hidden_size * (2 if combine == "concat" else 1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """(N, L) ids and 0/1 mask (padding at the end) -> word states (N, L, C), zero on padding; mean (N, C)."""
        mask = attention_mask.to(self.embedding.weight.dtype)[..., None]
        words = self.dropout(self.embedding(input_ids)) * mask
        reverse = reversed_positions(attention_mask)[..., None]
        forward = self.forward_gru(words)
        backward = self.backward_gru(words.gather(1, reverse.expand(-1, -1, words.shape[-1])))
        backward = backward.gather(1, reverse.expand(-1, -1, backward.shape[-1]))
        states = torch.cat([forward, backward], -1) if self.combine == "concat" else forward + backward
        states = states * mask
        return states, mean_of_words(states, attention_mask)

    @property
    def vocab_size(self) -> int:
        return self.embedding.num_embeddings

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embedding = value

    def load_glove(self, path: str | Path, tokenizer: PreTrainedTokenizerFast) -> int:
        """Copy GloVe vectors into the rows of the tokenizer's words; returns how many words were found."""
        vocabulary = tokenizer.get_vocab()
        vectors = read_glove(path, vocabulary)
        with torch.no_grad():
            for word, vector in vectors.items():
                if len(vector) != self.embedding.embedding_dim:
                    raise ValueError(
                        f"{path} has {len(vector)}-dimensional vectors; the model's embedding takes "
                        f"{self.embedding.embedding_dim}."
                    )
                self.embedding.weight[vocabulary[word]] = torch.from_numpy(vector)
        return len(vectors)


def reversed_positions(attention_mask: Tensor) -> Tensor:
    """(N, L) index that reverses the first `length` positions of each row and leaves padding where it is."""
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)[None]
    lengths = attention_mask.long().sum(1, keepdim=True)
    return torch.where(positions < lengths, lengths - 1 - positions, positions)


def mean_of_words(words: Tensor, attention_mask: Tensor) -> Tensor:
    """(N, L, D) and its 0/1 mask (N, L) -> (N, D), padding left out."""
    mask = attention_mask.to(words.dtype)[..., None]
    return (words * mask).sum(1) / mask.sum(1).clamp(min=1)
