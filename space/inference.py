"""Running models on a picture; probability maps are kept, so that a threshold can move without running a model."""

import time
from dataclasses import dataclass, field

import numpy as np
import torch
from pictures import Picture
from zoo import Entry, LoadedModel, Zoo, check_input_size


SHOWN_QUERIES = 5  # of each expression, those that count most
QUERY_SIDE = 320  # pixels of the long side that their masks are kept at


@dataclass(frozen=True, eq=False)
class ModelMaps:
    """What one model said of one picture and its N expressions.

    Attributes:
        entry: the model.
        parameters: how many it has.
        seconds: for the picture and all expressions, from pixels to probabilities, loading left out.
        threshold: the processor's own.
        probabilities: (N, H, W) float16 in [0, 1], at the working size.
        localization: (N, H, W) float16 in [0, 1], where the architecture locates before it segments; else None.
        remarks: sentences on what the model could not read.
        queries: (N, K, h, w) float16 in [0, 1], the masks of the K queries that count most, most first, at
            `QUERY_SIDE`, where the architecture has such; else None.
        query_scores: (N, K) in [0, 1], how much each of them counts.
        phrases: of each expression the part that `localization` is of, or None where it is of all of it.
    """

    entry: Entry
    parameters: int
    seconds: float
    threshold: float
    probabilities: np.ndarray
    localization: np.ndarray | None
    remarks: list[str]
    queries: np.ndarray | None = None
    query_scores: np.ndarray | None = None
    phrases: list[str | None] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Comparison:
    """One picture, its expressions, and each chosen model's maps. Compared by identity, as page state wants."""

    picture: Picture
    expressions: list[str]
    models: list[ModelMaps]


def compare(zoo: Zoo, picture: Picture, expressions: list[str], entries: list[Entry]) -> Comparison:
    """Run every model on the picture and all expressions. Raises Refusal if a model cannot be loaded."""
    return Comparison(
        picture, expressions, [run_model(entry, zoo.get(entry), picture, expressions, zoo.device) for entry in entries]
    )


def run_model(
    entry: Entry, loaded: LoadedModel, picture: Picture, expressions: list[str], device: torch.device
) -> ModelMaps:
    """One forward pass: the image is encoded once for all expressions. Raises Refusal for a too elongated picture."""
    processor = loaded.processor
    check_input_size(entry.title, processor, picture.image.height, picture.image.width)
    sizes = [(picture.image.height, picture.image.width)] * len(expressions)
    start = time.perf_counter()
    with torch.inference_mode():
        inputs = processor(picture.image, [expressions]).to(device)
        outputs = loaded.model(**inputs)
        results = processor.post_process_referring_segmentation(outputs, sizes)
        seconds = time.perf_counter() - start
        location = location_maps(outputs, processor, sizes)
        queries = query_scores = None
        if outputs.query_logits is not None and loaded.model.query_logits_are_masks:
            queries, query_scores = query_maps(outputs, processor, sizes)
    return ModelMaps(
        entry=entry,
        parameters=loaded.parameters,
        seconds=seconds,
        threshold=processor.threshold,
        probabilities=to_half([result["probability"] for result in results]),
        localization=location,
        remarks=remarks(processor, expressions),
        queries=queries,
        query_scores=query_scores,
        phrases=[processor.phrase(expression) for expression in expressions],
    )


def location_maps(outputs, processor, sizes: list[tuple[int, int]]) -> np.ndarray | None:
    """`localization` of `ModelMaps`: the last prior, or cosines rescaled from their least to their most."""
    if outputs.prior_logits is not None:
        last = outputs.prior_logits[:, -1:].float().sigmoid()
        return to_half([maps[0] for maps in processor.post_process_maps(last, sizes, outputs.input_size)])
    if outputs.heatmap is not None:
        heatmap = outputs.heatmap.float()
        low, high = heatmap.amin((1, 2), keepdim=True), heatmap.amax((1, 2), keepdim=True)
        return to_half(processor.post_process_heatmaps((heatmap - low) / (high - low).clamp(min=1e-6), sizes))
    return None


def query_maps(outputs, processor, sizes: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """`queries` and `query_scores` of `ModelMaps`; sizes: (height, width) of the picture, once for each expression."""
    masks, scores = outputs.query_logits.float().sigmoid(), outputs.query_scores.float()
    scores, best = scores.topk(min(SHOWN_QUERIES, scores.shape[1]), dim=1)
    masks = masks.gather(1, best[..., None, None].expand(-1, -1, *masks.shape[2:]))
    scale = min(1.0, QUERY_SIDE / max(sizes[0]))
    small = [(max(1, round(height * scale)), max(1, round(width * scale))) for height, width in sizes]
    return to_half(processor.post_process_maps(masks, small, outputs.input_size)), scores.cpu().numpy()


def to_half(maps: list[torch.Tensor]) -> np.ndarray:
    return torch.stack(maps).clamp(0, 1).half().cpu().numpy()


def remarks(processor, expressions: list[str]) -> list[str]:
    """What of the expressions the tokenizer cuts off or does not know."""
    tokenizer, limit = processor.tokenizer, processor.max_text_length
    unknown: dict[str, None] = {}
    long = False
    for text in expressions:
        encoded = tokenizer(text, return_offsets_mapping=True)
        long = long or len(encoded["input_ids"]) > limit
        for token, (start, stop) in list(zip(encoded["input_ids"], encoded["offset_mapping"]))[:limit]:
            if token == tokenizer.unk_token_id and stop > start:
                unknown[text[start:stop]] = None
    sentences = []
    if unknown:
        words = list(unknown)
        more = f" and {len(words) - 6} more" if len(words) > 6 else ""
        sentences.append(f"Words it does not know: {', '.join(word[:30] for word in words[:6])}{more}.")
    if long:
        sentences.append(f"It reads the first {limit} tokens of an expression.")
    return sentences


def cut(probabilities: np.ndarray, threshold: float) -> tuple[np.ndarray, list[float]]:
    """(N, H, W) maps -> bool masks (N, H, W) and N scores: the mean probability inside a mask, 0 for an empty one.

    The rule of `post_process_referring_segmentation`, on maps that are already there.
    """
    masks = probabilities > np.float16(threshold)
    scores = [float(p[m].mean(dtype=np.float64)) if m.any() else 0.0 for p, m in zip(probabilities, masks)]
    return masks, scores


def full_size_masks(comparison: Comparison, maps: ModelMaps, threshold: float) -> np.ndarray:
    """Bool masks (N, H, W) at the size of the file's picture."""
    picture = comparison.picture
    if (picture.width, picture.height) == picture.image.size:
        return cut(maps.probabilities, threshold)[0]
    enlarged = np.empty((len(maps.probabilities), picture.height, picture.width), bool)
    for mask, probability in zip(enlarged, maps.probabilities):
        tensor = torch.from_numpy(probability).float()[None, None]
        size = (picture.height, picture.width)
        mask[:] = torch.nn.functional.interpolate(tensor, size, mode="bilinear")[0, 0].numpy() > threshold
    return enlarged
