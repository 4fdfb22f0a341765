"""Running models on a picture. What they say is kept as 8-bit maps, so that a threshold can move without a model."""

import time
from dataclasses import dataclass, field

import numpy as np
import torch

from comparison.entries import Entry
from comparison.limits import check_time
from comparison.opening import LoadedModel, check_input_size
from comparison.pictures import Picture, Refusal


MAP_PIXELS = 262_144  # of a map; as many as the finest model's own has
SHOWN_QUERIES = 5  # of each expression, those that count most
QUERY_SIDE = 160  # pixels of the long side that their masks are kept at


@dataclass(frozen=True, eq=False)
class ModelMaps:
    """What one model said of one picture and its N expressions.

    Attributes:
        entry: the model.
        parameters: how many it has.
        seconds: for the picture and all expressions, from pixels to probabilities, loading left out.
        threshold: the processor's own.
        probabilities: (N, h, w) uint8, 255 times the probability, over the whole picture at `map_size`.
        localization: (N, h, w) uint8 likewise, where the architecture locates before it segments; else None.
        remarks: of each expression, sentences on what the model could not read.
        queries: (N, K, h', w') uint8, the masks of the K queries that count most, most first, at `QUERY_SIDE`, where
            the architecture has such; else None.
        query_scores: (N, K) in [0, 1], how much each of them counts.
        phrases: of each expression the part that `localization` is of, or None where it is of all of it.
    """

    entry: Entry
    parameters: int
    seconds: float
    threshold: float
    probabilities: np.ndarray
    localization: np.ndarray | None
    remarks: list[list[str]]
    queries: np.ndarray | None = None
    query_scores: np.ndarray | None = None
    phrases: list[str | None] = field(default_factory=list)


def map_size(picture: Picture) -> tuple[int, int]:
    """(height, width) of a picture's maps: its own, or scaled down to `MAP_PIXELS`."""
    image = picture.image
    scale = min(1.0, (MAP_PIXELS / (image.width * image.height)) ** 0.5)
    return max(1, round(image.height * scale)), max(1, round(image.width * scale))


def run_model(
    entry: Entry, loaded: LoadedModel, picture: Picture, expressions: list[str], device: torch.device
) -> ModelMaps:
    """One forward pass: the image is encoded once for all expressions.

    Raises:
        Refusal: a too elongated picture, expressions that the processor refuses, or an answer that is not finite.
    """
    processor = loaded.processor
    check_input_size(entry.title, processor, picture.image.height, picture.image.width)
    sizes = [map_size(picture)] * len(expressions)
    start = time.perf_counter()
    with torch.inference_mode():
        try:
            inputs = processor(picture.image, [expressions]).to(device)
        except ValueError as error:  # an expression without a word that its tokenizer knows
            raise Refusal(f"{entry.title}: {error}") from error
        outputs = loaded.model(**inputs)
        check_time()
        results = processor.post_process_referring_segmentation(outputs, sizes)
        seconds = time.perf_counter() - start
        if not all(result["probability"].isfinite().all() for result in results):
            raise Refusal(f"{entry.title} gave numbers that are not finite; its weights are damaged.")
        location = location_maps(outputs, processor, sizes)
        queries = query_scores = None
        if outputs.query_logits is not None and loaded.model.query_logits_are_masks:
            queries, query_scores = query_maps(outputs, processor, sizes)
    return ModelMaps(
        entry=entry,
        parameters=loaded.parameters,
        seconds=seconds,
        threshold=processor.threshold,
        probabilities=to_bytes([result["probability"] for result in results]),
        localization=location,
        remarks=[
            [*said, *filter(None, [of.get("remark")])] for said, of in zip(remarks(processor, expressions), results)
        ],
        queries=queries,
        query_scores=query_scores,
        phrases=[processor.phrase(expression) for expression in expressions],
    )


def location_maps(outputs, processor, sizes: list[tuple[int, int]]) -> np.ndarray | None:
    """`localization` of `ModelMaps`: the last prior, or cosines rescaled from their least to their most."""
    if outputs.prior_logits is not None:
        last = outputs.prior_logits[:, -1:].float().sigmoid()
        return to_bytes([maps[0] for maps in processor.post_process_maps(last, sizes, outputs.input_size)])
    if outputs.heatmap is not None:
        heatmap = outputs.heatmap.float()
        low, high = heatmap.amin((1, 2), keepdim=True), heatmap.amax((1, 2), keepdim=True)
        return to_bytes(processor.post_process_heatmaps((heatmap - low) / (high - low).clamp(min=1e-6), sizes))
    return None


def query_maps(outputs, processor, sizes: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """`queries` and `query_scores` of `ModelMaps`; sizes: (height, width) of the picture, once for each expression."""
    masks, scores = outputs.query_logits.float().sigmoid(), outputs.query_scores.float()
    scores, best = scores.topk(min(SHOWN_QUERIES, scores.shape[1]), dim=1)
    masks = masks.gather(1, best[..., None, None].expand(-1, -1, *masks.shape[2:]))
    scale = min(1.0, QUERY_SIDE / max(sizes[0]))
    small = [(max(1, round(height * scale)), max(1, round(width * scale))) for height, width in sizes]
    return to_bytes(processor.post_process_maps(masks, small, outputs.input_size)), scores.cpu().numpy()


def to_bytes(maps: list[torch.Tensor]) -> np.ndarray:
    """Equal maps in [0, 1] -> uint8, one after the other."""
    return torch.stack([(values.clamp(0, 1) * 255).round().to(torch.uint8) for values in maps]).cpu().numpy()


def remarks(processor, expressions: list[str]) -> list[list[str]]:
    """What of each expression the tokenizer cuts off or does not know, in sentences."""
    tokenizer, limit = processor.tokenizer, processor.max_text_length
    said = []
    for text in expressions:
        encoded = tokenizer(text, return_offsets_mapping=True)
        unknown: dict[str, None] = {}
        for token, (start, stop) in list(zip(encoded["input_ids"], encoded["offset_mapping"]))[:limit]:
            if token == tokenizer.unk_token_id and stop > start:
                unknown[text[start:stop]] = None
        sentences = []
        if unknown:
            more = f" and {len(unknown) - 6} more" if len(unknown) > 6 else ""
            sentences.append(f"Words it does not know: {', '.join(word[:30] for word in list(unknown)[:6])}{more}.")
        if len(encoded["input_ids"]) > limit:
            sentences.append(f"It reads the first {limit} tokens of an expression.")
        said.append(sentences)
    return said


def cut(values: np.ndarray, threshold: float) -> tuple[np.ndarray, float]:
    """(H, W) 8-bit map -> bool mask (H, W), and its score: the mean probability in it, 0 for an empty one.

    The rule of `post_process_referring_segmentation`, on a map that is already there.
    """
    mask = values > 255 * threshold
    return mask, float(values[mask].mean(dtype=np.float64)) / 255 if mask.any() else 0.0
