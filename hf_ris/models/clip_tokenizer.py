"""CLIP's tokenizer as a transformers fast tokenizer, made offline from the vocabulary that open_clip carries."""

import gzip

from open_clip.tokenizer import basic_clean, bytes_to_unicode, default_bpe, whitespace_clean
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


START, END = "<start_of_text>", "<end_of_text>"
_MERGES = 49_152 - 256 - 2  # of the packaged file, those that CLIP was trained with
_PIECES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def clip_tokenizer() -> PreTrainedTokenizerFast:
    """Byte pairs of the 49,408 entries, between a start and an end token.

    It takes text that `clean_text` has cleaned; together they give open_clip's ids. Padding is the end token's id and
    is to be told by the attention mask.
    """
    with gzip.open(default_bpe(), "rt", encoding="utf-8") as file:
        merges = [tuple(line.split()) for line in file.read().split("\n")[1 : _MERGES + 1]]
    characters = list(bytes_to_unicode().values())
    entries = [*characters, *(f"{c}</w>" for c in characters), *(a + b for a, b in merges), START, END]
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    special = [(token, vocabulary[token]) for token in (START, END)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=AddedToken(START, normalized=False, special=True),
        eos_token=AddedToken(END, normalized=False, special=True),
        pad_token=END,
        model_input_names=["input_ids", "attention_mask"],
    )


def clean_text(text: str) -> str:
    """As CLIP's training texts were cleaned: broken encodings mended, HTML unescaped, blanks merged, lower case."""
    return whitespace_clean(basic_clean(text)).lower()
