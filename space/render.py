"""Pictures and HTML of the results: mask overlays, heatmaps, and one card per model."""

import base64
import io
from html import escape

import numpy as np
from inference import Comparison, ModelMaps, cut
from PIL import Image, ImageFilter


VIEWS = ("Masks", "Probability", "Location", "Queries")
COLOURS = ("#f43f5e", "#3b82f6", "#f59e0b", "#10b981", "#a855f7", "#06b6d4", "#f97316", "#ec4899")  # one per expression
MIN_SIDE = 640  # smaller pictures are enlarged for display, so that outlines stay fine
# anchors of the heatmap's colours, dark to bright, evenly spaced, and the 256 colours between them
_ANCHORS = [(13, 8, 60), (72, 12, 120), (150, 32, 122), (218, 72, 92), (250, 140, 60), (252, 210, 90), (255, 252, 200)]
_HEAT = np.stack([np.interp(np.linspace(0, 6, 256), range(7), channel) for channel in zip(*_ANCHORS)], 1)


def rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)], np.float32)


def display_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) for the page: the image's own, or enlarged to a long side of `MIN_SIDE`."""
    scale = max(1.0, MIN_SIDE / max(image.size))
    return round(image.width * scale), round(image.height * scale)


def resize_map(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) 8-bit map -> float32 in [0, 1] at (width, height)."""
    values = values.astype(np.float32) / 255
    if values.shape == size[::-1]:
        return values
    return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BILINEAR))


def overlay(image: Image.Image, probabilities: np.ndarray, threshold: float) -> Image.Image:
    """The image, dimmed where no mask lies, each mask tinted and outlined in its expression's colour."""
    size = display_size(image)
    pixels = np.asarray(image.resize(size, Image.Resampling.BICUBIC), np.float32)
    width = max(1.2, (size[0] * size[1]) ** 0.5 / 450)
    # a blurred mask crosses 1/2 at its border: how near it is to 1/2 there draws a smooth line
    masks = [_blurred(resize_map(probability, size) > threshold, width) for probability in probabilities]
    covered = np.max(masks, axis=0)[..., None]
    dimmed = 0.55 * pixels + (0.25 * pixels.mean(2, keepdims=True) + 20)
    pixels = dimmed + (pixels - dimmed) * covered
    for mask, colour in zip(masks, COLOURS):
        pixels += (rgb(colour) - pixels) * (0.28 * mask)[..., None]
    for mask, colour in zip(masks, COLOURS):
        distance = abs(mask - 0.5)
        pixels += (255 - pixels) * (0.85 * ((0.49 - distance) / 0.04).clip(0, 1))[..., None]
        pixels += (rgb(colour) - pixels) * ((0.42 - distance) / 0.12).clip(0, 1)[..., None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _blurred(mask: np.ndarray, width: float) -> np.ndarray:
    """Bool (H, W) -> float32 in [0, 1], blurred by `width` pixels."""
    blurred = Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(width))
    return np.asarray(blurred, np.float32) / 255


def heatmap(image: Image.Image, values: np.ndarray) -> Image.Image:
    """A (H, W) map in [0, 1] in colours over the grey image; it shows through where the map is low."""
    size = display_size(image)
    grey = np.asarray(image.convert("L").resize(size, Image.Resampling.BICUBIC), np.float32)
    level = (resize_map(values, size) * 255).round().astype(np.uint8)
    weight = (0.55 + 0.35 * np.arange(256) / 255).astype(np.float32)
    colours = (_HEAT * weight[:, None]).astype(np.float32)
    return Image.fromarray((colours[level] + (grey * (1 - weight)[level])[..., None]).astype(np.uint8))


def data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def card(comparison: Comparison, maps: ModelMaps, view: str, threshold: float) -> str:
    """One model's results as HTML.

    Args:
        view: one of `VIEWS`.
        threshold: of the masks, in [0, 1].
    """
    remarks = "".join(f"<p class='ris-remark' dir='auto'>{escape(remark)}</p>" for remark in maps.remarks)
    return (
        f"<article class='ris-card' aria-label='{escape(maps.entry.title, quote=True)}'>"
        f"{_head(maps, len(comparison.expressions))}{_figures(comparison, maps, view, threshold)}{remarks}</article>"
    )


def _head(maps: ModelMaps, count: int) -> str:
    entry = maps.entry
    note = f"<p class='ris-note'>{escape(entry.note)}</p>" if entry.note else ""
    kind = "" if entry.title.startswith(entry.architecture) else f"{escape(entry.architecture)} · "
    what = "expression" if count == 1 else "expressions"
    return (
        f"<header><h3>{escape(entry.title)}</h3>{note}"
        f"<p class='ris-facts'>{kind}{short_count(maps.parameters)} parameters · "
        f"<span title='picture and {count} {what}, from pixels to probabilities; loading left out'>"
        f"{short_time(maps.seconds)} for {count} {what}</span></p></header>"
    )


def _figures(comparison: Comparison, maps: ModelMaps, view: str, threshold: float) -> str:
    image = comparison.picture.image
    if view == "Masks":
        texts = ", ".join(comparison.expressions)[:300]
        figure = _figure(overlay(image, maps.probabilities, threshold), f"Masks of {maps.entry.title} for: {texts}")
        return figure + _legend(comparison.expressions, *cut(maps.probabilities, threshold))
    values = {"Probability": maps.probabilities, "Location": maps.localization, "Queries": maps.queries}[view]
    if values is None:
        what = "query masks" if view == "Queries" else "localisation map"
        return f"<p class='ris-empty'>{escape(maps.entry.architecture)} has no {what}.</p>"
    if view == "Queries":
        return _query_figures(comparison, maps)
    texts = comparison.expressions
    if view == "Location":
        texts = [f"{text} · “{part}”" if part else text for text, part in zip(texts, maps.phrases, strict=True)]
    figures = [
        _figure(heatmap(image, value), f"{view} heatmap of {maps.entry.title} for: {text[:300]}", text, colour)
        for value, text, colour in zip(values, texts, COLOURS)
    ]
    return _grid(figures)


def _query_figures(comparison: Comparison, maps: ModelMaps) -> str:
    """Of each expression, the masks of the queries that count most, each with how much it counts."""
    figures = [
        _figure(
            heatmap(comparison.picture.image, mask),
            f"Mask of query {rank} of {maps.entry.title}, which counts {score:.2f}, for: {text[:300]}",
            f"{score:.2f} · {text}",
            colour,
        )
        for masks, scores, text, colour in zip(maps.queries, maps.query_scores, comparison.expressions, COLOURS)
        for rank, (mask, score) in enumerate(zip(masks, scores), 1)
    ]
    return _grid(figures)


def _grid(figures: list[str]) -> str:
    """Heatmaps side by side, above their colour scale."""
    scale = "<p class='ris-scale' aria-hidden='true'><span>0</span><i></i><span>1</span></p>"
    return f"<div class='ris-grid ris-grid-{min(len(figures), 2)}'>{''.join(figures)}</div>{scale}"


def _figure(image: Image.Image, alternative: str, caption: str | None = None, colour: str | None = None) -> str:
    ratio = max(image.size) / min(image.size)
    shape = "" if ratio < 4 else " ris-wide" if image.width > image.height else " ris-tall"
    text = ""
    if caption is not None:
        text = (
            f"<figcaption dir='auto' style='--ris-colour:{colour}' title='{_clip(caption, 300)}'>"
            f"{_clip(caption, 120)}</figcaption>"
        )
    return (
        f"<figure class='ris-figure{shape}'><img src='{data_url(image)}' alt='{escape(alternative, quote=True)}' "
        f"width='{image.width}' height='{image.height}'>{text}</figure>"
    )


def _legend(expressions: list[str], masks: np.ndarray, scores: list[float]) -> str:
    lines = map(_legend_line, expressions, COLOURS, scores, masks.mean((1, 2)))
    return f"<p class='ris-legend-head' aria-hidden='true'>score</p><ol class='ris-legend'>{''.join(lines)}</ol>"


def _legend_line(text: str, colour: str, score: float, area: float) -> str:
    found = f"{score:.2f}" if area else "nothing"
    covers = f"mean probability inside the mask; the mask covers {area:.1%} of the picture"
    return (
        f"<li style='--ris-colour:{colour}'>"
        f"<span class='ris-text' dir='auto' title='{_clip(text, 300)}'>{_clip(text, 120)}</span>"
        f"<span class='ris-score' title='{covers}'>{found}</span></li>"
    )


def _clip(text: str, length: int) -> str:
    """Escaped text of at most `length` characters."""
    return escape(text if len(text) <= length else text[: length - 1] + "…", quote=True)


def short_count(number: int) -> str:
    """1234567 -> '1.2 M'."""
    for size, unit in ((1e9, " B"), (1e6, " M"), (1e3, " K")):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number)


def short_time(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
