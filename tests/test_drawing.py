"""Drawing: what is marked where, that nothing is cut, and that a page stands alone."""

import re

import numpy as np
import pytest
from PIL import Image

from hf_ris.drawing import (
    COLOURS,
    Panel,
    Strip,
    agreement,
    contact_sheet,
    curves,
    font,
    gallery_html,
    heatmap,
    overlay,
    rgb,
    save_gallery,
    sheet,
    wrap,
)


LONG = "the second smallest lamp between the tall green building and a donaudampfschifffahrtsgesellschaftskapitän " * 3


def photo(width: int = 900, height: int = 600) -> Image.Image:
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([columns % 256, rows % 256, (columns + rows) % 256], 2).astype(np.uint8))


def half(width: int = 900, height: int = 600) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[100:500, :450] = True
    return mask


def luminance(colour: np.ndarray) -> float:
    linear = np.where(colour / 255 <= 0.04045, colour / 255 / 12.92, ((colour / 255 + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def test_overlay_keeps_the_colours_of_the_mask_and_outlines_it():
    image, mask = photo(), half()
    drawn = np.asarray(overlay(image, [mask]), int)
    assert drawn.shape == (600, 900, 3)
    inner = np.s_[120:480, 20:430]
    assert np.abs(drawn[inner] - np.asarray(image, int)[inner]).max() <= 1  # the colours that words speak of
    assert drawn[550:, 600:].std() < 0.5 * np.asarray(image, int)[550:, 600:].std()  # dimmed outside
    border = drawn[300, 440:460]
    assert np.abs(border - rgb(COLOURS[0])).sum(1).min() < 30  # the line itself
    assert border.min(1).max() > 180  # and a light rim


def test_overlay_takes_probabilities_and_small_pictures_and_no_mask():
    small = photo(90, 60)
    probability = np.zeros((30, 45), np.float16)
    probability[10:20, 10:20] = 0.4
    assert overlay(small, [probability], threshold=0.3).size == (640, 427)
    empty = np.asarray(overlay(small, [probability], threshold=0.5), int)
    assert np.array_equal(empty, np.asarray(overlay(small, []), int))
    assert len({tuple(rgb(colour)) for colour in COLOURS}) == len(COLOURS)
    many = overlay(small, [probability > 0] * (len(COLOURS) + 2))
    assert many.mode == "RGB"


def test_agreement_and_heatmap():
    truth, answer = half(), np.roll(half(), 100, 1)
    drawn = np.asarray(agreement(photo(), answer, truth), int)
    both, too_much, missed = drawn[300, 300], drawn[300, 500], drawn[300, 50]
    assert both.argmax() == 1 and too_much.argmax() == 0 and missed.argmax() == 2
    ramp = np.linspace(0, 1, 900, dtype=np.float32)[None].repeat(600, 0)
    warm = np.asarray(heatmap(Image.new("RGB", (900, 600), "grey"), ramp), int)
    assert (np.diff(warm[300].sum(1)) >= -2).all()


@pytest.mark.parametrize("ground", [(255, 255, 255), (17, 19, 24)])
def test_colours_are_seen_on_white_and_on_dark(ground):
    other = luminance(np.array(ground, float))
    for colour in COLOURS:
        low, high = sorted((other, luminance(rgb(colour).astype(float))))
        assert (high + 0.05) / (low + 0.05) >= 3, f"{colour} on {ground}"


def test_lines_lose_no_letter_and_fit():
    for width in (40, 120, 400):
        lines = wrap(LONG, font(12), width)
        assert "".join(lines).replace(" ", "") == LONG.replace(" ", "")
        assert all(font(12).getlength(line) <= width for line in lines)
    assert wrap("  ", font(12), 100) == []


def test_sheets_cut_nothing():
    panels = [Panel(photo(w, h), LONG, "IoU 0.83", COLOURS[1]) for w, h in ((900, 100), (100, 900), (50, 50))]
    drawn = np.asarray(sheet([Strip(LONG, panels, LONG), Strip("", panels[:1])], LONG), int)
    edge = [drawn[:4], drawn[-3:], drawn[:, :4], drawn[:, -4:]]
    assert all((part == 255).all() for part in edge)  # a margin all around: neither letters nor pictures reach it
    tall = np.asarray(sheet([Strip("", [Panel(photo(), "caption " * 40)])]), int)
    short = np.asarray(sheet([Strip("", [Panel(photo(), "caption")])]), int)
    assert tall.shape[0] > short.shape[0] + 100
    assert contact_sheet(panels * 2, columns=4).width == 4 * (256 + 14) + 14
    with pytest.raises(ValueError, match="nothing to draw"):
        contact_sheet([])


def test_a_page_stands_alone(tmp_path):
    nasty = "<script>alert('x')</script> & \"left\" dog"
    strips = [Strip(nasty, [Panel(photo(), nasty, "IoU 0.5", COLOURS[0]), Panel(photo(80, 60), "truth")], "note")]
    page = gallery_html(nasty, strips, intro=nasty)
    assert "<script" not in page and page.count("&lt;script&gt;") >= 4
    assert page.count("data:image/jpeg;base64,") == page.count("<img") == 2
    assert not re.findall(r"(?:src|href)=['\"](?!data:)", page) and "url(" not in page and "http" not in page
    assert "prefers-color-scheme: dark" in page
    for name in ("a/page.html", "a/page.png"):
        save_gallery(tmp_path / name, "Worst", strips)
    assert Image.open(tmp_path / "a/page.png").size[0] == 2 * (256 + 14) + 14
    with pytest.raises(ValueError, match=r"page.gif must end in one of these"):
        save_gallery(tmp_path / "page.gif", "Worst", strips)
    with pytest.raises(ValueError, match="nothing to draw"):
        save_gallery(tmp_path / "b.html", "Worst", [Strip("empty", [])])
    assert not (tmp_path / "b.html").exists()


def test_curves(tmp_path):
    lines = {"loss": {"loss": ([1, 2, 3], [3.0, 2.0, 1.0])}, "validation": {"mIoU": ([2], [0.4]), "oIoU": ([], [])}}
    figure = curves(lines | {"nothing": {"a": ([], [])}}, "Training")
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "validation"]
    figure.savefig(tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").size == (700, 570)
