"""How many expressions of the real data sets are cut, per data set and architecture, at the papers' lengths.

    python train/lengths.py --data data                                  # data/refcoco, data/refcoco+, data/refcocog
    python train/lengths.py --data lists --bert bert-base-uncased        # lists/refcoco_val.json, ...; a BERT folder

Every expression goes through the processor that `train/recipes/<architecture>/<data set>.yaml` describes. DIR holds
prepared folders called as the data sets, of which all splits but train are read, or files `<data set>_<split>.json`,
lists of entries whose text is "sents". --bert is a folder with BERT's vocab.txt, for work without the Hub. A vocabulary
of words is taken from the expressions themselves: it does not change how many there are.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import Image
from transformers import BertTokenizer
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

import hf_ris
from hf_ris.data import load
from hf_ris.resources import recipe_names
from hf_ris.training.build import build_config, build_tokenizer
from hf_ris.training.recipe import Recipe, load_recipe


SETS = ("refcoco", "refcoco+", "refcocog")
_UNCUT = 200  # tokens, more than any expression has
_BATCH = 1000


def read_expressions(data: Path, name: str) -> list[str]:
    """The evaluation expressions of a data set; none if `data` does not hold it."""
    texts = []
    for file in sorted(data.glob(f"{name}_*.json")):
        texts += [entry["sents"] for entry in json.loads(file.read_text(encoding="utf-8"))]
    if not texts and (data / name).is_dir():
        for split, rows in load(data / name).items():
            if split != "train":
                texts += [said["text"] for said in _expressions(rows)]
    return texts


def _expressions(rows: Dataset) -> Iterator[dict[str, Any]]:
    for batch in rows.select_columns(["expressions"]).iter(batch_size=_BATCH):
        for of_image in batch["expressions"]:
            yield from of_image


def build_processor(recipe: Recipe, texts: list[str], bert: Path | None):
    """The recipe's processor, with the vocabulary of `texts` where the recipe's is its corpus's."""
    if bert is not None and recipe.processor.tokenizer == "pretrained":
        tokenizer = BertTokenizer(str(bert / "vocab.txt"))
    else:
        corpus = Dataset.from_dict({"expressions": [[{"text": text}] for text in texts]})
        tokenizer = build_tokenizer(recipe.processor, corpus)
    config = build_config(recipe, len(tokenizer))
    return PROCESSOR_MAPPING[type(config)].from_config(config, tokenizer)


def token_counts(processor, texts: list[str]) -> np.ndarray:
    """Tokens of each expression, special ones included, as the processor gives them to the model."""
    image = Image.new("RGB", (8, 8))
    counts = []
    for start in range(0, len(texts), _BATCH):
        inputs = processor(images=[image], text=[texts[start : start + _BATCH]])
        counts.append(inputs["attention_mask"].sum(1).numpy())
    return np.concatenate(counts) if counts else np.zeros(0, int)


def measure(recipe: Recipe, texts: list[str], bert: Path | None) -> dict[str, Any]:
    """Lengths of all `texts` under one recipe. ValueError if the processor refuses one of them."""
    processor = build_processor(recipe, texts, bert)
    limit = processor.max_text_length
    counts = token_counts(processor, texts)
    full = np.flatnonzero(counts == limit)  # only these can have been cut
    processor.max_text_length = _UNCUT
    counts[full] = token_counts(processor, [texts[index] for index in full])
    return {
        "tokenizer": type(processor.tokenizer).__name__,
        "length": limit,
        "expressions": len(texts),
        "truncated": int((counts > limit).sum()),
        "longest": int(counts.max()),
    }


def measure_all(data: Path, bert: Path | None) -> dict[str, dict[str, dict[str, Any]]]:
    """By data set and architecture; every architecture that has a recipe for the data set."""
    texts = {name: read_expressions(data, name) for name in SETS}
    if not any(texts.values()):
        raise ValueError(f"{data} holds none of {', '.join(SETS)}, neither prepared nor as <data set>_<split>.json")
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for name, said in texts.items():
        for architecture in hf_ris.ARCHITECTURES:
            if said and f"{architecture}/{name}" in recipe_names():
                recipe = load_recipe(f"{architecture}/{name}")
                results.setdefault(name, {})[architecture] = measure(recipe, said, bert)
    return results


def table(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Markdown."""
    lines = [
        "| data set | architecture | kept tokens | expressions | truncated | longest |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, of_set in results.items():
        for architecture, of in of_set.items():
            share = f"{of['truncated']:,} ({of['truncated'] / of['expressions']:.2%})"
            lines.append(
                f"| {name} | {architecture} | {of['length']} | {of['expressions']:,} | {share} | {of['longest']} |"
            )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--bert", type=Path, metavar="DIR", help="folder with BERT's vocab.txt")
    parser.add_argument("--result", type=Path, metavar="FILE.json")
    options = parser.parse_args(arguments)
    try:
        results = measure_all(options.data, options.bert)
    except ValueError as error:
        parser.error(str(error))
    print(table(results))
    if options.result is not None:
        options.result.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


if __name__ == "__main__":
    main()
