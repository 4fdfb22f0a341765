"""What RefScenes draws with: vector outlines of the categories, colours, textures, and sprites made of them.

Everything is integer arithmetic once the outlines are rounded to 1/16 pixel, with a scanline rasteriser of its own, so
that a sprite has the same bytes under every numpy, Pillow and C library.
"""

import math
from functools import cache
from typing import NamedTuple

import numpy as np


Point = tuple[float, float]
Contour = list[Point]

COLOURS = {
    "red": (208, 36, 44),
    "orange": (242, 130, 22),
    "yellow": (248, 212, 44),
    "green": (44, 150, 68),
    "blue": (40, 92, 206),
    "purple": (134, 60, 170),
    "white": (246, 246, 244),
    "black": (42, 42, 48),
}
TEXTURES = ("plain", "striped", "dotted", "checkered")
SIZES = ("small", "medium", "large")
# Square root of the silhouette's area in pixels of a 128-pixel image. With a third hidden no class reaches the next.
SIZE_STEPS = {
    "small": (13.5, 14.25, 15.0, 15.75),
    "medium": (22.0, 23.0, 24.0, 25.5),
    "large": (34.5, 36.0, 38.0, 40.0),
}
# Pythagorean rotations (cosine, sine): upright, and about 10 degrees either way, exact in every C library.
TILTS = ((1.0, 0.0), (60 / 61, 11 / 61), (60 / 61, -11 / 61))
# Columns of a sprite's weights. BODY takes the texture; INK, PALE and WOOD do not depend on the object's colour.
BODY, DARK, LIGHT, RIM, INK, PALE, WOOD = range(7)
_SUPER = 4  # subpixels per side of a pixel
_GRID = 16  # outline coordinates are rounded to 1/16 pixel


def _mix(a: tuple[int, int, int], b: tuple[int, int, int], percent: int) -> tuple[int, int, int]:
    return tuple((x * (100 - percent) + y * percent) // 100 for x, y in zip(a, b, strict=True))


@cache
def tones(colour: str) -> np.ndarray:
    """(8, 3) float32: the colours of BODY .. WOOD for an object of this colour, last the second tone of its texture."""
    base, white, night = COLOURS[colour], (255, 255, 255), (24, 22, 40)
    dark, light, rim = _mix(base, night, 32), _mix(base, white, 42), _mix(base, night, 62)
    ink, second = (58, 52, 62), _mix(base, white, 68)
    if colour == "black":
        dark, light, rim, ink, second = (26, 26, 30), (92, 92, 102), (14, 14, 18), (112, 108, 116), (148, 148, 158)
    elif colour == "white":
        dark, light, rim, second = (196, 198, 206), (255, 255, 255), (118, 118, 130), (142, 146, 162)
    elif colour == "yellow":
        second = (164, 110, 12)
    return np.array([base, dark, light, rim, ink, (222, 234, 244), (124, 86, 56), second], np.float32)


def _ellipse(
    cx: float, cy: float, rx: float, ry: float, start: float = 0.0, stop: float = 360.0, n: int = 32
) -> Contour:
    steps = [math.radians(start + (stop - start) * k / n) for k in range(n + 1)]
    return [(cx + rx * math.cos(a), cy + ry * math.sin(a)) for a in steps]


def _box(x0: float, y0: float, x1: float, y1: float, r: float = 0.0) -> Contour:
    if r == 0.0:
        return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    return (
        _ellipse(x1 - r, y0 + r, r, r, -90, 0, 6)
        + _ellipse(x1 - r, y1 - r, r, r, 0, 90, 6)
        + _ellipse(x0 + r, y1 - r, r, r, 90, 180, 6)
        + _ellipse(x0 + r, y0 + r, r, r, 180, 270, 6)
    )


def _star(outer: float, inner: float) -> Contour:
    corners = [(outer if k % 2 == 0 else inner, math.radians(36 * k - 90)) for k in range(10)]
    return [(r * math.cos(a), r * math.sin(a)) for r, a in corners]


def _heart() -> Contour:
    angles = [math.radians(360 * k / 40) for k in range(40)]
    return [
        (
            3 * 16 * math.sin(a) ** 3,
            -3 * (13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)),
        )
        for a in angles
    ]


def _moon() -> Contour:
    return _ellipse(0, 0, 50, 50, 50, 310) + _ellipse(24, 0, 39, 39, 282, 78)


# category -> parts (tone, contours filled by the even-odd rule), painted in order; x to the right, y down
_OUTLINES: dict[str, list[tuple[int, list[Contour]]]] = {
    "ball": [(BODY, [_ellipse(0, 0, 50, 50)]), (LIGHT, [_ellipse(-19, -22, 12, 8)])],
    "star": [(BODY, [_star(54, 25)]), (LIGHT, [_star(18, 8)])],
    "heart": [(BODY, [_heart()]), (LIGHT, [_ellipse(-25, -18, 9, 8)])],
    "moon": [(BODY, [_moon()]), (DARK, [_ellipse(-34, -8, 6, 6)]), (DARK, [_ellipse(-22, 26, 5, 5)])],
    "cup": [
        (DARK, [_ellipse(36, 0, 24, 24), _ellipse(36, 0, 11, 11)]),
        (BODY, [[(-42, -40), (36, -40), (30, 26), (22, 40), (-28, 40), (-36, 26)]]),
        (LIGHT, [_ellipse(-3, -40, 39, 10)]),
        (INK, [_ellipse(-3, -39, 31, 6)]),
    ],
    "bottle": [
        (BODY, [[(-9, -50), (9, -50), (9, -24), (22, -6), (22, 62), (-22, 62), (-22, -6), (-9, -24)]]),
        (INK, [_box(-12, -62, 12, -48)]),
        (LIGHT, [_box(-22, 10, 22, 36)]),
    ],
    "chair": [
        (DARK, [_box(-34, 4, -22, 56), _box(22, 4, 34, 56)]),
        (BODY, [_box(-30, -56, 30, 4, 9)]),
        (INK, [_box(-13, -40, -7, -8), _box(7, -40, 13, -8)]),
        (LIGHT, [[(-32, 2), (32, 2), (42, 20), (-42, 20)]]),
    ],
    "car": [
        (BODY, [[(-34, -6), (-22, -34), (22, -34), (38, -6)]]),
        (BODY, [_box(-62, -8, 62, 22, 10)]),
        (PALE, [[(-25, -6), (-17, -27), (-3, -27), (-3, -6)]]),
        (PALE, [[(4, -6), (4, -27), (18, -27), (28, -6)]]),
        (INK, [_ellipse(-34, 22, 15, 15), _ellipse(34, 22, 15, 15)]),
        (PALE, [_ellipse(-34, 22, 6, 6), _ellipse(34, 22, 6, 6)]),
    ],
    "house": [
        (WOOD, [_box(18, -52, 32, -16)]),
        (BODY, [_box(-40, -8, 40, 50)]),
        (DARK, [[(-54, -6), (0, -56), (54, -6)]]),
        (INK, [_box(-28, 16, -8, 50)]),
        (PALE, [_box(6, 10, 30, 32)]),
    ],
    "tree": [
        (WOOD, [[(-9, 10), (9, 10), (13, 60), (-13, 60)]]),
        (BODY, [_ellipse(-22, 4, 27, 25)]),
        (BODY, [_ellipse(22, 4, 27, 25)]),
        (BODY, [_ellipse(0, -28, 31, 30)]),
        (LIGHT, [_ellipse(-11, -40, 9, 7)]),
    ],
    "fish": [
        (DARK, [[(26, 0), (62, -32), (54, 0), (62, 32)]]),
        (DARK, [[(-14, -24), (16, -44), (20, -18)]]),
        (BODY, [_ellipse(-10, 0, 50, 30)]),
        (LIGHT, [[(-4, 4), (18, -6), (14, 18)]]),
        (PALE, [_ellipse(-38, -7, 8, 8)]),
        (INK, [_ellipse(-39, -7, 4, 4)]),
    ],
    "bird": [
        (INK, [[(-44, -30), (-66, -20), (-44, -14)]]),
        (INK, [_box(-10, 24, -4, 50), _box(8, 24, 14, 50)]),
        (DARK, [[(18, -6), (66, -30), (58, 8), (24, 22)]]),
        (BODY, [_ellipse(2, 6, 38, 27)]),
        (BODY, [_ellipse(-30, -22, 22, 21)]),
        (LIGHT, [[(-8, 2), (28, -4), (12, 24)]]),
        (PALE, [_ellipse(-35, -26, 7, 7)]),
        (INK, [_ellipse(-36, -26, 4, 4)]),
    ],
    "umbrella": [
        (INK, [_box(-5, -6, 5, 50), _ellipse(13, 48, 18, 16, 0, 180) + _ellipse(13, 48, 8, 6, 180, 0)]),
        (BODY, [_ellipse(0, 4, 60, 52, 180, 360) + [(40, -6), (20, 4), (0, -6), (-20, 4), (-40, -6)]]),
        (LIGHT, [[(0, -48), (20, 4), (0, -6), (-20, 4)]]),
    ],
    "key": [
        (DARK, [_box(-8, -9, 68, 9), _box(40, 4, 50, 26), _box(56, 4, 68, 30)]),
        (BODY, [_ellipse(-34, 0, 36, 34), _ellipse(-42, 0, 12, 12)]),
    ],
    "hat": [
        (BODY, [[(-30, -44), (30, -44), (25, 26), (-25, 26)]]),
        (LIGHT, [[(-27, 2), (27, 2), (26, 18), (-26, 18)]]),
        (DARK, [_ellipse(0, 28, 58, 13)]),
    ],
    "boat": [
        (INK, [_box(-5, -60, 3, 26)]),
        (BODY, [[(6, -56), (50, 14), (6, 14)]]),
        (LIGHT, [[(-8, -40), (-8, 14), (-40, 14)]]),
        (BODY, [[(-58, 22), (58, 22), (38, 52), (-38, 52)]]),
        (DARK, [[(-58, 22), (58, 22), (54, 29), (-54, 29)]]),
    ],
}
CATEGORIES = tuple(_OUTLINES)
# One colour of every category, two categories of every colour: 16 of 128 pairs, seen in test_compositional alone.
HELD_OUT = frozenset((category, tuple(COLOURS)[(3 * i + 5 * (i // 8)) % 8]) for i, category in enumerate(CATEGORIES))


def _fill(contours: list[list[tuple[int, int]]], height: int, width: int, cell: int) -> np.ndarray:
    """Even-odd fill of integer contours, sampled at the centres of cells: bool (height, width). Exact.

    An edge from (x0, y0) to (x1, y1) crosses row y at x = x0 + (y - y0)(x1 - x0) / (y1 - y0); cells right of it flip.
    """
    flips = np.zeros((height, width + 1), np.uint8)
    half = cell // 2
    for contour in contours:
        for (x0, y0), (x1, y1) in zip(contour, contour[1:] + contour[:1], strict=True):
            if y0 == y1:
                continue
            if y0 > y1:
                x0, y0, x1, y1 = x1, y1, x0, y0
            first, last = max(-((half - y0) // cell), 0), min(-((half - y1) // cell), height)  # y0 <= centre < y1
            rows = np.arange(first, last)
            rise = y1 - y0
            cross = x0 * rise + (rows * cell + half - y0) * (x1 - x0) - half * rise
            columns = np.clip(-(-cross // (rise * cell)), 0, width)
            flips[rows, columns] ^= 1
    return np.bitwise_xor.accumulate(flips[:, :width], axis=1).view(bool)


def _paint(category: str, scale: float, tilt: int) -> np.ndarray:
    """The tone of each subpixel, uint8 (4h, 4w), 255 outside; h and w are odd, the origin is in the middle pixel."""
    cosine, sine = TILTS[tilt]
    unit = scale * _GRID
    parts = [
        (
            tone,
            [
                [(round((x * cosine - y * sine) * unit), round((x * sine + y * cosine) * unit)) for x, y in contour]
                for contour in contours
            ],
        )
        for tone, contours in _OUTLINES[category]
    ]
    points = [point for _, contours in parts for contour in contours for point in contour]
    half_w = max(abs(x) for x, _ in points) // _GRID + 2
    half_h = max(abs(y) for _, y in points) // _GRID + 2
    height, width = (2 * half_h + 1) * _SUPER, (2 * half_w + 1) * _SUPER
    dx, dy = half_w * _GRID + _GRID // 2, half_h * _GRID + _GRID // 2
    painted = np.full((height, width), 255, np.uint8)
    for tone, contours in parts:
        moved = [[(x + dx, y + dy) for x, y in contour] for contour in contours]
        painted[_fill(moved, height, width, _GRID // _SUPER)] = tone
    return painted


@cache
def _unit_scale(category: str) -> float:
    """The scale at which the silhouette covers an area of one pixel."""
    pixels = int((_paint(category, 1.0, 0) != 255).sum()) / _SUPER**2
    return 1.0 / math.sqrt(pixels)


class Sprite(NamedTuple):
    """A drawn outline without its colour. The origin is the middle pixel.

    weights: float32 (h, w, 7), sixteenths of a pixel that each tone covers; alpha: float32 (h, w), their sum;
    mask: bool (h, w), at least half covered; body: bool (h, w), wholly of the tone that takes colour and texture; area:
    pixels in the mask.
    """

    weights: np.ndarray
    alpha: np.ndarray
    mask: np.ndarray
    body: np.ndarray
    area: int


@cache
def sprite(category: str, side: float, tilt: int, flip: bool) -> Sprite:
    """The sprite of a category. side: square root of its area in pixels; tilt: index into TILTS; flip: mirrored."""
    if flip:
        *arrays, area = sprite(category, side, tilt, False)
        return Sprite(*(np.ascontiguousarray(array[:, ::-1]) for array in arrays), area)
    painted = _paint(category, side * _unit_scale(category), tilt)
    inside = painted != 255
    core = inside.copy()
    reach = max(2, round(side * 0.11))  # subpixels: the rim stays thin on small objects
    for step in range(1, reach + 1):
        for axis in (0, 1):
            core &= np.roll(inside, step, axis) & np.roll(inside, -step, axis)
    painted[inside & ~core] = RIM
    height, width = painted.shape[0] // _SUPER, painted.shape[1] // _SUPER
    pixel = np.arange(height * width).reshape(height, 1, width, 1)
    tone_of = np.minimum(painted, 7).reshape(height, _SUPER, width, _SUPER)
    counts = np.bincount((8 * pixel + tone_of).ravel(), minlength=8 * height * width)
    weights = counts.reshape(height, width, 8)[..., :7].astype(np.float32)
    alpha = weights.sum(-1)
    mask = alpha >= _SUPER**2 / 2
    return Sprite(weights, alpha, mask, weights[..., BODY] == _SUPER**2, int(mask.sum()))


@cache
def texture(name: str, direction: int, period: int, size: int) -> np.ndarray:
    """float32 (size, size), sixteenths of the second tone in each pixel. period in quarter pixels; direction 0, 1, 2
    (stripes along x, along y, slanting; the others ignore it)."""
    y, x = np.mgrid[: size * _SUPER, : size * _SUPER]
    if name == "striped":
        along = (y, x, x + y)[direction]
        length = period if direction < 2 else period * 7 // 5
        second = along % length < length * 9 // 20
    elif name == "checkered":
        second = (x * 2 // period + y * 2 // period) % 2 == 1
    elif name == "dotted":
        u, v = x % period - period // 2, (y + period // 2 * (x // period % 2)) % period - period // 2
        second = 10 * (u * u + v * v) < period * period
    else:
        second = np.zeros(x.shape, bool)
    return second.reshape(size, _SUPER, size, _SUPER).sum((1, 3)).astype(np.float32)
