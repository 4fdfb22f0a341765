"""The one place that draws: masks and maps on pictures, contact sheets and galleries, as PNG and as HTML.

    overlay(image, [mask]).save("mask.png")
    save_gallery("worst.html", "The worst answers", [Strip("left dog", [Panel(image, "image"), Panel(drawn, "truth")])])

Pictures keep the colours that an expression speaks of: a mask is left as it is, the rest is dimmed, and the outline is
a coloured line between a light and a dark one, so that it is seen on any ground. Sheets are white paper with dark
letters and a margin, so that they can lie on a white or a dark page; HTML follows the reader's own light or dark.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont


# one per expression, far from each other, legible on white and on near-black
COLOURS = ("#e11d48", "#2563eb", "#d97706", "#059669", "#9333ea", "#0891b2", "#ea580c", "#db2777")
TRUTH = "#059669"  # of ground truth, where it stands beside answers
MIN_SIDE = 640  # smaller pictures are enlarged before lines are drawn on them, so that the lines stay fine
# anchors of the heatmap's colours, dark to bright, evenly spaced, and the 256 colours between them
_ANCHORS = [(13, 8, 60), (72, 12, 120), (150, 32, 122), (218, 72, 92), (250, 140, 60), (252, 210, 90), (255, 252, 200)]
_HEAT = np.stack([np.interp(np.linspace(0, 6, 256), range(7), channel) for channel in zip(*_ANCHORS)], 1)
_PAPER, _INK, _FAINT, _MARGIN = "#ffffff", "#16181d", "#5b6270", 14


@dataclass(frozen=True, eq=False)
class Panel:
    """A picture and what stands beneath it.

    Attributes:
        image: of any size.
        caption: whose picture it is, as "truth" or a model's name.
        note: a fainter second line, as "IoU 0.83".
        colour: `#rrggbb` of the caption's mark; None is no mark.
    """

    image: Image.Image
    caption: str = ""
    note: str = ""
    colour: str | None = None


@dataclass(frozen=True, eq=False)
class Strip:
    """Panels side by side under one heading, as one expression with image, truth and the answers of several models."""

    heading: str
    panels: Sequence[Panel]
    note: str = ""


def rgb(colour: str) -> np.ndarray:
    """`#rrggbb` -> (3,) float32 in [0, 255]."""
    return np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)], np.float32)


def display_size(image: Image.Image, least: int = MIN_SIDE) -> tuple[int, int]:
    """(width, height) to draw at: the image's own, or enlarged to a long side of `least`."""
    scale = max(1.0, least / max(image.size))
    return round(image.width * scale), round(image.height * scale)


def resize_map(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) map in [0, 1] -> float32 at (width, height), bilinear."""
    values = np.asarray(values).astype(np.float32)
    if values.shape == size[::-1]:
        return values
    return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BILINEAR))


def overlay(
    image: Image.Image,
    masks: Sequence[np.ndarray],
    threshold: float = 0.5,
    colours: Sequence[str] = COLOURS,
    tint: float = 0.0,
) -> Image.Image:
    """The image with its masks: dimmed where none lies, each mask outlined in its colour.

    Args:
        masks: N masks (H, W), bool or probabilities in [0, 1], of the image's shape at any resolution. An empty one
            leaves no line, and if all are empty the whole image is dimmed.
        threshold: a pixel belongs to a mask where its value is greater.
        colours: of the outlines, repeated if there are more masks.
        tint: how much of its colour fills a mask, in [0, 1]; 0 leaves the picture's own colours.

    Returns:
        RGB, at `display_size`.
    """
    size = display_size(image)
    pixels = np.asarray(image.convert("RGB").resize(size, Image.Resampling.BICUBIC), np.float32)
    width = max(1.2, (size[0] * size[1]) ** 0.5 / 330)
    # a blurred mask crosses 1/2 at its border: how near it is to 1/2 there draws a smooth line
    blurred = [_blurred(resize_map(mask, size) > threshold, width) for mask in masks]
    chosen = [rgb(colours[index % len(colours)]) for index in range(len(blurred))]
    covered = np.max(blurred, axis=0)[..., None] if blurred else np.zeros((*size[::-1], 1), np.float32)
    grey = pixels.mean(2, keepdims=True)
    dimmed = 0.30 * pixels + 0.22 * grey + 20
    pixels = dimmed + (pixels - dimmed) * covered
    for mask, colour in zip(blurred, chosen):
        pixels += (colour - pixels) * (tint * mask)[..., None]
    for mask, colour in zip(blurred, chosen):
        distance = abs(mask - 0.5)
        rim = ((0.495 - distance) / 0.04).clip(0, 1)[..., None]
        pixels += (255 - pixels) * (0.9 * rim * (mask < 0.5)[..., None])  # light without, dark within
        pixels += (10 - pixels) * (0.6 * rim * (mask >= 0.5)[..., None])
        pixels += (colour - pixels) * ((0.42 - distance) / 0.12).clip(0, 1)[..., None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def agreement(image: Image.Image, answer: np.ndarray, truth: np.ndarray) -> Image.Image:
    """The grey image; green where answer and truth (bool (H, W)) meet, red what is too much, blue what is missed."""
    size = display_size(image)
    grey = np.asarray(image.convert("L").resize(size, Image.Resampling.BICUBIC), np.float32)[..., None].repeat(3, 2)
    answer, truth = (resize_map(mask, size) > 0.5 for mask in (answer, truth))
    pixels = 0.6 * grey + 60
    for where, colour in ((answer & truth, "#22c55e"), (answer & ~truth, "#ef4444"), (truth & ~answer, "#3b82f6")):
        pixels[where] = 0.45 * grey[where] + 0.55 * rgb(colour)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _blurred(mask: np.ndarray, width: float) -> np.ndarray:
    """Bool (H, W) -> float32 in [0, 1], blurred by `width` pixels."""
    blurred = Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(width))
    return np.asarray(blurred, np.float32) / 255


def heatmap(image: Image.Image, values: np.ndarray) -> Image.Image:
    """A (H, W) map in [0, 1] in colours over the grey image, which shows through where the map is low."""
    size = display_size(image)
    grey = np.asarray(image.convert("L").resize(size, Image.Resampling.BICUBIC), np.float32)
    level = (resize_map(values, size) * 255).round().clip(0, 255).astype(np.uint8)
    weight = (0.55 + 0.35 * np.arange(256) / 255).astype(np.float32)
    colours = (_HEAT * weight[:, None]).astype(np.float32)
    return Image.fromarray((colours[level] + (grey * (1 - weight)[level])[..., None]).astype(np.uint8))


def font(size: float) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib carries: Latin, Greek, Cyrillic, Arabic and Hebrew letters, no Chinese ones."""
    path = resources.files("matplotlib") / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), size)


def wrap(text: str, letters: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Lines of at most `width` pixels; a word that is longer is broken, nothing is left out."""
    lines, line = [], ""
    for word in text.split():
        joined = f"{line} {word}" if line else word
        if letters.getlength(joined) <= width:
            line = joined
            continue
        if line:
            lines.append(line)
        while letters.getlength(word) > width and len(word) > 1:
            fits = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or letters.getlength(word[:n]) <= width)
            lines.append(word[:fits])
            word = word[fits:]
        line = word
    return [*lines, line] if line else lines


def _written(text: str, letters: ImageFont.FreeTypeFont, width: int, ink: str) -> list[tuple[str, object, str]]:
    return [(line, letters, ink) for line in wrap(text, letters, width)]


def _line_height(letters: ImageFont.FreeTypeFont) -> int:
    return round(letters.size * 1.3)


def _write(sheet: Image.Image, lines: list[tuple[str, object, str]], x: int, y: int) -> int:
    """Draws lines from (x, y) down; returns where they end."""
    pen = ImageDraw.Draw(sheet)
    for text, letters, ink in lines:
        pen.text((x, y), text, font=letters, fill=ink)
        y += _line_height(letters)
    return y


def sheet(strips: Sequence[Strip], title: str = "", side: int = 256) -> Image.Image:
    """Strips one beneath another on white paper; a panel's picture fits in a square of `side` pixels.

    Raises:
        ValueError: nothing to draw.
    """
    if not any(strip.panels for strip in strips):
        raise ValueError("there is nothing to draw: a sheet needs at least one panel")
    columns = max(len(strip.panels) for strip in strips)
    width = columns * (side + _MARGIN) + _MARGIN
    drawn = [_draw_strip(strip, width, side) for strip in strips]
    head = _written(title, font(20), width - 2 * _MARGIN, _INK)
    height = sum(part.height for part in drawn) + _MARGIN + sum(_line_height(of) for _, of, _ in head)
    paper = Image.new("RGB", (width, height + (_MARGIN if head else 0)), _PAPER)
    y = _write(paper, head, _MARGIN, _MARGIN) if head else 0
    for part in drawn:
        paper.paste(part, (0, y))
        y += part.height
    return paper


def _draw_strip(strip: Strip, width: int, side: int) -> Image.Image:
    head = _written(strip.heading, font(15), width - 2 * _MARGIN, _INK)
    head += _written(strip.note, font(12), width - 2 * _MARGIN, _FAINT)
    captions = [
        _written(panel.caption, font(12), side - (16 if panel.colour else 0), _INK)
        + _written(panel.note, font(11), side, _FAINT)
        for panel in strip.panels
    ]
    pictures = [_fitted(panel.image, side) for panel in strip.panels]
    tallest = max((picture.height for picture in pictures), default=0)
    above = sum(_line_height(of) for _, of, _ in head) + (8 if head else 0)
    beneath = max((sum(_line_height(of) for _, of, _ in lines) for lines in captions), default=0)
    paper = Image.new("RGB", (width, _MARGIN + above + tallest + 6 + beneath + 4), _PAPER)
    _write(paper, head, _MARGIN, _MARGIN)
    for column, (panel, picture, lines) in enumerate(zip(strip.panels, pictures, captions)):
        x, y = _MARGIN + column * (side + _MARGIN), _MARGIN + above
        paper.paste(picture, (x + (side - picture.width) // 2, y + (tallest - picture.height) // 2))
        below = y + tallest + 6
        if panel.colour:
            ImageDraw.Draw(paper).rounded_rectangle((x, below + 2, x + 10, below + 12), 3, fill=panel.colour)
        _write(paper, lines, x + (16 if panel.colour else 0), below)
    return paper


def _fitted(image: Image.Image, side: int) -> Image.Image:
    """RGB, its long side `side`."""
    scale = side / max(image.size)
    size = tuple(max(1, round(length * scale)) for length in image.size)
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def contact_sheet(panels: Sequence[Panel], columns: int = 4, title: str = "", side: int = 256) -> Image.Image:
    """Panels in reading order, `columns` a row. Raises ValueError for none."""
    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    return sheet([Strip("", row) for row in rows], title, side)


def curves(groups: dict[str, dict[str, tuple[Sequence[float], Sequence[float]]]], title: str, x_label: str = "step"):
    """Lines by name, each (x, y), as a matplotlib `Figure` for `savefig`: an axis for each group, named at its side.

    Few points are marked, so that one alone is seen; empty lines and groups without any point are left out.
    """
    from matplotlib.figure import Figure  # not pyplot, which looks for a display; and not for those who draw no curve

    known = {name: {line: points for line, points in lines.items() if len(points[0])} for name, lines in groups.items()}
    known = {name: lines for name, lines in known.items() if lines}
    figure = Figure(figsize=(7, 0.5 + 2.6 * max(len(known), 1)), layout="constrained", facecolor=_PAPER)
    figure.suptitle(title)
    rows = figure.subplots(max(len(known), 1), sharex=True, squeeze=False)[:, 0]
    for axes, (name, lines) in zip(rows, known.items()):
        for index, (line, (x, y)) in enumerate(lines.items()):
            marker = "o" if len(x) <= 30 else None
            axes.plot(x, y, label=line, color=COLOURS[index % len(COLOURS)], marker=marker, markersize=3, linewidth=1.5)
        axes.set_ylabel(name)
        axes.grid(alpha=0.25)
        if len(lines) > 1:
            axes.legend(frameon=False)
    rows[-1].set_xlabel(x_label)
    return figure


def data_url(image: Image.Image, quality: int = 88) -> str:
    """A JPEG as a URL that needs no file."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=quality, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #16181d; --faint: #5b6270; --line: #dfe2e8; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #111318; --ink: #eceef2; --faint: #a4abb8; --line: #2c313b; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 100rem; background: var(--paper); color: var(--ink);
  font: 16px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.05rem; margin: 0; overflow-wrap: anywhere; }
section { border-top: 1px solid var(--line); padding: 1rem 0; }
.note, .intro { color: var(--faint); margin: .15rem 0 .6rem; overflow-wrap: anywhere; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr)); gap: 1rem; }
figure { margin: 0; } img { width: 100%; height: auto; max-height: 30rem; object-fit: contain; display: block; }
figcaption { font-size: .875rem; padding-top: .3rem; overflow-wrap: anywhere; }
figcaption i { display: inline-block; width: .7rem; height: .7rem; border-radius: .2rem; margin-inline-end: .4rem; }
figcaption span { color: var(--faint); display: block; }
@media print { section { break-inside: avoid; } }
"""


def gallery_html(title: str, strips: Sequence[Strip], intro: str = "", side: int = 512) -> str:
    """One HTML page with all pictures in it: no other file, no script, nothing from outside.

    side: pixels of a picture's long side; longer ones are scaled down. Texts are escaped. Raises ValueError for none.
    """
    if not any(strip.panels for strip in strips):
        raise ValueError("there is nothing to draw: a gallery needs at least one panel")
    sections = "\n".join(_section(strip, side) for strip in strips)
    introduction = f"<p class='intro' dir='auto'>{escape(intro)}</p>" if intro else ""
    return (
        "<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        f"{introduction}\n{sections}\n</body>\n</html>\n"
    )


def _section(strip: Strip, side: int) -> str:
    heading = f"<h2 dir='auto'>{escape(strip.heading)}</h2>" if strip.heading else ""
    note = f"<p class='note' dir='auto'>{escape(strip.note)}</p>" if strip.note else ""
    figures = "".join(_figure(strip, panel, side) for panel in strip.panels)
    return f"<section>{heading}{note}<div class='panels'>{figures}</div></section>"


def _figure(strip: Strip, panel: Panel, side: int) -> str:
    image = panel.image if max(panel.image.size) <= side else _fitted(panel.image, side)
    described = escape(", ".join(text for text in (strip.heading, panel.caption, panel.note) if text), quote=True)
    mark = f"<i style='background:{escape(panel.colour, quote=True)}'></i>" if panel.colour else ""
    note = f"<span>{escape(panel.note)}</span>" if panel.note else ""
    return (
        f"<figure><img src='{data_url(image)}' alt='{described}' width='{image.width}' height='{image.height}'>"
        f"<figcaption dir='auto'>{mark}{escape(panel.caption)}{note}</figcaption></figure>"
    )


def save_gallery(path: str | Path, title: str, strips: Sequence[Strip], intro: str = "", side: int = 256) -> None:
    """A gallery as a page (`.html`) or a picture (`.png`), by the file's name; its folder is made.

    Raises:
        ValueError: a name that ends in neither, or nothing to draw.
    """
    path = Path(path)
    if path.suffix not in (".html", ".png"):
        raise ValueError(f"a gallery is a .html page or a .png picture, so {path.name} must end in one of these")
    if path.suffix == ".html":
        content = gallery_html(title, strips, intro, 2 * side).encode()
    else:
        buffer = io.BytesIO()
        sheet(strips, title, side).save(buffer, "PNG")
        content = buffer.getvalue()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
