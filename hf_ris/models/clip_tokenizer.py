"""CLIP's tokenizer as a transformers fast tokenizer, made offline from the vocabulary that open_clip carries."""

from functools import cache

from open_clip.tokenizer import SimpleTokenizer
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


_open_clip = cache(SimpleTokenizer)


def clip_tokenizer() -> PreTrainedTokenizerFast:
    """Byte pairs of the 49,408 entries, between a start and an end token.

    It takes text from `clean_text`, which knows where a word ends; together they give open_clip's ids, whatever the
    text. Padding has the end token's id and is to be told by the attention mask.
    """
    vocabulary, merges = _open_clip().encoder, list(_open_clip().bpe_ranks)
    start, end = _open_clip().all_special_ids
    start_token, end_token = (_open_clip().decoder[token] for token in (start, end))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(" ", behavior="removed"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start_token} $A {end_token}", special_tokens=[(start_token, start), (end_token, end)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=AddedToken(start_token, normalized=False),
        eos_token=AddedToken(end_token, normalized=False),
        pad_token=end_token,
        model_input_names=["input_ids", "attention_mask"],
    )


def clean_text(text: str) -> str:
    """Text as CLIP was trained on: broken encodings mended, HTML unescaped, lower case, a blank between any two words.

    Words are runs of letters, single digits, runs of other characters, and the endings `'s`, `'t` and their like.
    """
    return " ".join(_open_clip().pat.findall(_open_clip().clean_fn(text)))
