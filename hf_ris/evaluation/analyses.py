"""What a model's answers look like from inside: the analyses of VATEX's paper, as functions and plots.

    hf-ris evaluate --model outputs/vatex-refscenes/best --data refscenes --split test --analyse analysis

writes into the folder, for every architecture, analyses.json, consistency (Table 3: Oc-IoU beside mIoU) and lengths.png
(supplementary Fig. 4: mIoU by expression length, in groups of about equal size); for one with text_states
similarity.png (Fig. 5: cosines between the sentences of one object, and of different objects of an image, level by
level) and matrix.png (Fig. 4: all sentences of an image before and after the decoder); for one with a CLIP prior
heatmaps.png (supplementary Fig. 1: the heatmap of the whole expression and of its noun phrase).
"""

import copy
import json
import re
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure  # not pyplot, which looks for a display
from PIL import Image
from torch import Tensor
from torch.nn import functional as F


HEATMAP_VIEW = 4  # heatmaps are drawn from a view of CLIP's so many times as large as the model's own (960 to 224)
HEATMAPS = 4  # images drawn
KINDS = ("same_object", "different_objects")  # of pairs of expressions of one image


class TextSimilarity:
    """Cosines between sentences at each level, summed over pairs of one image: of one object, of different objects.

    Pairs are those that came in one batch; `EvaluationRows` keeps an image's expressions together up to its limit.
    """

    def __init__(self) -> None:
        # by (image, first expression): sums and counts, (levels, 2) each; so that nothing counts twice
        self._images: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}

    def add(self, text_states: Sequence[Tensor], metadata: Sequence[dict[str, Any]]) -> None:
        """Sentence features (N, C) of every level, and what `expression_metadata` tells of the N expressions."""
        matrices = [similarity_matrix(states) for states in text_states]
        images = np.array([entry["image_id"] for entry in metadata])
        objects = [tuple(entry["object_ids"]) for entry in metadata]
        for image in np.unique(images):
            members = np.flatnonzero(images == image)
            same = np.array([[objects[a] == objects[b] and bool(objects[a]) for b in members] for a in members])
            other = np.array([[not set(objects[a]) & set(objects[b]) for b in members] for a in members])
            upper = np.triu(np.ones_like(same), 1).astype(bool)
            pairs = [same & upper, other & upper]
            cosines = [matrix[np.ix_(members, members)] for matrix in matrices]
            sums = np.array([[matrix[pair].sum() for pair in pairs] for matrix in cosines])
            counts = np.tile([pair.sum() for pair in pairs], (len(matrices), 1))
            self._images[int(image), int(metadata[members[0]]["expression_id"])] = (sums, counts)

    def observe(self, outputs, metadata: Sequence[dict[str, Any]]) -> None:
        """Take from a model's output what is there (`evaluate_model`'s observer)."""
        if outputs.text_states is not None:
            self.add(outputs.text_states, metadata)

    def state(self) -> dict:
        return self._images

    def merge(self, states: Iterable[dict]) -> None:
        """Take in the `state()` of other processes; no image counts twice."""
        for state in states:
            self._images.update(state)

    def result(self) -> dict[str, Any] | None:
        """For each of `KINDS` that there is, means by level (0: before the decoder), and under `pairs` their number.

        None where nothing was added.
        """
        if not self._images:
            return None
        sums, counts = (sum(values) for values in zip(*self._images.values()))
        kinds = {name: column for column, name in enumerate(KINDS) if counts[0, column]}
        means = {name: (sums[:, column] / counts[:, column]).tolist() for name, column in kinds.items()}
        return {**means, "pairs": {name: int(counts[0, column]) for name, column in kinds.items()}}


def similarity_matrix(states: Tensor) -> np.ndarray:
    """Features (N, C) -> their cosines (N, N), float64."""
    states = F.normalize(states.double(), dim=1)
    return (states @ states.T).cpu().numpy()


def consistency(metrics: dict[str, float]) -> dict[str, float]:
    """Of an evaluator's metrics, what Table 3 compares: Oc-IoU, and mIoU beside it."""
    return {name: metrics[name] for name in ("Oc-IoU", "mIoU", "oIoU") if name in metrics}


def iou_by_length(metrics: dict[str, float]) -> dict[str, float]:
    """Of an evaluator's metrics, mIoU of each group of lengths, as {"1-2": ...}."""
    found = ((re.fullmatch(r"mIoU \((.+) words\)", name), value) for name, value in metrics.items())
    return {match[1]: value for match, value in found if match}


@torch.no_grad()
def matrices_of_image(model, processor, row: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Cosines of all sentences of an image before and after the decoder, sorted by object; and the sentences."""
    said = sorted(row["expressions"], key=lambda expression: list(expression["object_indices"]))
    texts = [expression["text"] for expression in said]
    inputs = processor(row["image"], [texts]).to(model.device)
    states = model(**inputs).text_states
    return similarity_matrix(states[0]), similarity_matrix(states[-1]), texts


@torch.no_grad()
def heatmaps_of(model, processor, image: Image.Image, expression: str) -> dict[str, np.ndarray]:
    """CLIP's heatmaps of the whole expression and of its noun phrase, cosines (h, w), by a title for each."""
    view = processor.clip_view(HEATMAP_VIEW * processor.clip_image_size)
    pixels = view(image, return_tensors="pt")["pixel_values"].to(model.device)
    heatmaps = {}
    for prompt in ("expression", "object"):
        reader = copy.copy(processor)
        reader.prompt = prompt
        prompts = {name: value.to(model.device) for name, value in reader.prompts([expression]).items()}
        heatmap = model.clip_heatmap(pixels, **prompts)[0].cpu().numpy()
        heatmaps[f"{prompt}: {reader.phrase(expression)}"] = heatmap
    return heatmaps


def plot_similarity(result: dict[str, Any], path: Path) -> None:
    """Fig. 5: a line over the levels for each kind of pairs."""
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    for name, count in result["pairs"].items():
        axes.plot(result[name], "o-", label=f"{name.replace('_', ' ')} ({count:,} pairs)")
    axes.set(xlabel="level of the decoder", ylabel="cosine of the sentences")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def plot_lengths(by_length: dict[str, float], path: Path) -> None:
    """Supplementary Fig. 4: a bar for each group of lengths."""
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    bars = axes.bar(list(by_length), [100 * value for value in by_length.values()], color="tab:blue")
    axes.bar_label(bars, fmt="%.1f")
    axes.set(xlabel="words of an expression, groups of about equal size", ylabel="mIoU (%)")
    figure.savefig(path, dpi=120)


def plot_matrices(before: np.ndarray, after: np.ndarray, texts: list[str], path: Path) -> None:
    """Fig. 4: two matrices side by side, cosines from -1 to 1."""
    side = 2 + 0.4 * len(texts)
    figure = Figure(figsize=(2 * side + 3, side), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for one, matrix, title in zip(axes, (before, after), ("before the decoder", "after it")):
        shown = one.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1)
        one.set_title(title)
        one.set_xticks(range(len(texts)))
    axes[0].set_yticks(range(len(texts)), [f"{text[:40]} {number}" for number, text in enumerate(texts)])
    figure.colorbar(shown, ax=axes, label="cosine")
    figure.savefig(path, dpi=120)


def plot_heatmaps(examples: Sequence[tuple[Image.Image, dict[str, np.ndarray]]], path: Path) -> None:
    """Supplementary Fig. 1: a row for each image, with the heatmap of the expression and of its noun phrase."""
    figure = Figure(figsize=(9, 3 * len(examples)), layout="constrained")
    axes = figure.subplots(len(examples), 3, squeeze=False)
    for line, (image, heatmaps) in zip(axes, examples):
        line[0].imshow(image)
        for one, (text, heatmap) in zip(line[1:], heatmaps.items()):
            one.imshow(image.convert("L"), cmap="gray")
            one.imshow(heatmap, cmap="inferno", alpha=0.65, extent=(0, image.width, image.height, 0))
            one.set_title(text[:45], fontsize=9)
        for one in line:
            one.set_axis_off()
    figure.savefig(path, dpi=120)


def write(folder: Path, model, processor, dataset, similarity: TextSimilarity, metrics: dict[str, float]) -> None:
    """All that the head of this file names, as far as the model has it.

    Args:
        model, processor: None where a control answered instead.
        similarity: of the whole data set. metrics: an evaluator's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    result = {"consistency": consistency(metrics), "lengths": iou_by_length(metrics), "similarity": similarity.result()}
    plot_lengths(result["lengths"], folder / "lengths.png")
    if result["similarity"] is not None:
        plot_similarity(result["similarity"], folder / "similarity.png")
        row = next(filter(_has_pairs, dataset), None)
        if row is not None:
            plot_matrices(*matrices_of_image(model, processor, row), folder / "matrix.png")
    if model is not None and model.config.to_dict().get("clip_prior"):
        examples = []
        for row in islice((row for row in dataset if row["expressions"]), HEATMAPS):
            text = max((said["text"] for said in row["expressions"]), key=len)
            examples.append((row["image"], heatmaps_of(model, processor, row["image"], text)))
        plot_heatmaps(examples, folder / "heatmaps.png")
    (folder / "analyses.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _has_pairs(row: dict[str, Any]) -> bool:
    """Whether two objects of an image have two expressions each."""
    targets = [tuple(said["object_indices"]) for said in row["expressions"]]
    return sum(targets.count(target) > 1 for target in set(targets)) > 1
