"""Pictures and masks of every kind: read rightly, or refused in one sentence that names them."""

import base64
import os
import socket
import threading
import time
import warnings
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from hf_ris.models.images_ris import FORMATS, as_pil, binary_mask, open_image, show, to_rgb


RAMP = np.linspace(0, 255, 40 * 60).round().astype(np.uint8).reshape(40, 60)  # grey, all 256 values
COLOURS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def pixels(image, **kwargs) -> np.ndarray:
    return np.asarray(as_pil(image, **kwargs))


def grey(image) -> np.ndarray:
    values = pixels(image)
    assert (values == values[..., :1]).all()
    return values[..., 0]


@pytest.mark.parametrize(
    "scaled",
    [
        RAMP,
        RAMP.astype(np.uint16) * 257,
        RAMP.astype(">u2") * 257,
        RAMP.astype(np.int32),
        RAMP.astype(np.int64) * 257,
        RAMP.astype(np.float32),
        RAMP / 255,
        (RAMP / 255).astype(np.float16),
        Image.fromarray(RAMP.astype(np.uint16) * 257),
        Image.fromarray(RAMP.astype(np.int32)),
        Image.fromarray(RAMP.astype(np.int32) * 257),
        Image.fromarray(RAMP.astype(np.float32)),
        Image.fromarray((RAMP / 255).astype(np.float32)),
        torch.from_numpy(RAMP),
        torch.from_numpy(RAMP / 255)[None],
    ],
    ids=lambda value: (
        f"{type(value).__name__} {value.mode if isinstance(value, Image.Image) else value.dtype}"
        f" to {np.asarray(value).max()}"
    ),
)
def test_grey_values_of_every_scale_are_one_picture(scaled):
    assert np.abs(grey(scaled).astype(int) - RAMP).max() <= 1


def test_colours_lie_first_or_last():
    for array in (COLOURS, COLOURS.transpose(2, 0, 1), COLOURS / 255, COLOURS.astype(int)):
        assert (pixels(array) == COLOURS).all() and (pixels(torch.from_numpy(np.array(array))) == COLOURS).all()
    assert pixels(torch.from_numpy(COLOURS).to(torch.bfloat16)).shape == COLOURS.shape
    row = COLOURS[:1]  # its first side could be channels too: an array has them last, a tensor first
    assert (pixels(row) == row).all() and pixels(torch.from_numpy(row.transpose(2, 0, 1).copy())).shape == row.shape
    assert (pixels(torch.from_numpy(COLOURS[:, :3].transpose(2, 0, 1).copy())) == COLOURS[:, :3]).all()
    assert (grey(RAMP[None]) == RAMP).all() and (grey(RAMP[..., None]) == RAMP).all()
    assert (grey(RAMP > 100) == np.where(RAMP > 100, 255, 0)).all()
    clear = np.dstack([COLOURS, np.where(RAMP > 100, 255, 0).astype(np.uint8)])
    assert (pixels(clear) == np.where((RAMP > 100)[..., None], COLOURS, 255)).all()


@pytest.mark.parametrize(
    "image, sentence",
    [
        (RAMP - 100.0, "values from -100 to 155, whose scale is unclear"),
        (RAMP / 255 * 3, "whose scale is unclear"),
        (RAMP * 300.0, "whose scale is unclear"),
        (RAMP.astype(np.uint16), "whose scale is unclear"),
        (RAMP.astype(np.int32) - 1, "whose scale is unclear"),
        (RAMP.astype(np.int64) * 1000, "whose scale is unclear"),
        (Image.fromarray(RAMP.astype(np.float32) - 128), "whose scale is unclear"),
        (np.where(RAMP > 3, np.nan, 0.0), "not finite"),
        (np.where(RAMP > 3, np.inf, 0.0), "not finite"),
        (RAMP.astype(complex), "must be a PIL image, a path"),
        (np.zeros((40, 60, 5), np.uint8), r"got uint8 \(40, 60, 5\)"),
        (np.zeros((2, 40, 60, 3), np.uint8), r"got uint8 \(2, 40, 60, 3\)"),
        (RAMP[:0], "has no pixels"),
        (Image.new("RGB", (0, 5)), "has no pixels"),
        (torch.zeros(3, 8, 8, device="meta"), "must be a PIL image"),
        (None, "must be a PIL image"),
        ({"image": 1}, "must be a PIL image"),
        ([[1, 2], [3]], "must be a PIL image"),
        (iter("ab"), "must be a PIL image"),
        ("no/such.png", r"The image \('no/such.png'\): there is no such file"),
        (".", "no regular file"),
        ("a\0b.png", "no such file|cannot be a path"),
        ("x" * 5000, "cannot be a path|no such file"),
        ("\ud800.png", "no such file|cannot be a path"),
        ("data:image/png;base64,%%%", "no base64"),
        (b"", "is no picture that is read here"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is no picture that is read here"),
    ],
)
def test_what_has_no_right_reading_is_refused(image, sentence):
    with pytest.raises(ValueError, match=sentence) as raised:
        as_pil(image)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400
    str(raised.value).encode()


def files() -> dict[str, tuple[Image.Image, dict]]:
    """Pictures whose conversion loses something where it is done too early, by file name."""
    palette = Image.fromarray(COLOURS).quantize(8)
    palette.info["transparency"] = 3
    turned = Image.fromarray(COLOURS)
    turned.getexif()[0x0112] = 6
    alpha = Image.fromarray(RAMP)
    return {
        "cutout.png": (Image.merge("RGBA", (*Image.fromarray(COLOURS).split(), alpha)), {}),
        "grey_alpha.png": (Image.merge("LA", (alpha, alpha)), {}),
        "scan16.png": (Image.fromarray(RAMP.astype(np.uint16) * 257), {}),
        "palette.png": (palette, {"transparency": 3}),
        "palette.gif": (palette, {"transparency": 3}),
        "keyed.png": (Image.fromarray(COLOURS), {"transparency": tuple(COLOURS[0, 0].tolist())}),
        "turned.jpg": (turned, {"exif": turned.getexif()}),
        "print.tiff": (Image.fromarray(COLOURS).convert("CMYK"), {}),
        "float.tiff": (Image.fromarray((RAMP / 255).astype(np.float32)), {}),
        "one.png": (Image.fromarray(RAMP > 100), {}),
        "photo.webp": (Image.fromarray(COLOURS), {"lossless": True}),
        "grey.pgm": (Image.fromarray(RAMP), {}),
    }


@pytest.mark.parametrize("name", files())
def test_a_path_and_the_opened_file_are_the_same_picture(name, tmp_path):
    image, kwargs = files()[name]
    path = tmp_path / name
    image.save(path, **kwargs)
    with Image.open(path) as opened:
        expected = np.asarray(to_rgb(opened))
    assert expected.shape == ((60, 40, 3) if name == "turned.jpg" else (40, 60, 3))
    data = path.read_bytes()
    for given in (str(path), path, data, f"data:image/x;base64,{base64.b64encode(data).decode()}"):
        assert (pixels(given) == expected).all()
    if name in ("cutout.png", "palette.png", "palette.gif", "keyed.png"):
        assert (expected == 255).all(-1).any()


def test_sixteen_bits_keep_their_transparent_grey(tmp_path):
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(tmp_path / "keyed.png", transparency=0)
    if Image.open(tmp_path / "keyed.png").info.get("transparency") == 0:
        assert grey(tmp_path / "keyed.png")[RAMP == 0].min() == 255


def test_damaged_files_are_named(tmp_path):
    buffer = BytesIO()
    Image.fromarray(COLOURS).save(buffer, "PNG")
    png = buffer.getvalue()
    random = np.random.default_rng(0)
    for number, cut in enumerate([30, 60, len(png) // 2, len(png) - 60]):
        (tmp_path / f"{number}.png").write_bytes(png[:cut])
        with pytest.raises(ValueError, match=rf"{number}.png'\) (cannot be decoded|is no picture)"):
            as_pil(tmp_path / f"{number}.png")
    for format in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "PPM"):
        buffer = BytesIO()
        Image.fromarray(COLOURS).save(buffer, format)
        for _ in range(20):
            data = bytearray(buffer.getvalue())
            for place in random.integers(0, len(data), 8):
                data[place] = random.integers(256)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    as_pil(bytes(data))
            except ValueError as error:
                assert str(error).startswith("The image ")
    lazy = Image.open(BytesIO(png[: len(png) // 2]))
    with pytest.raises(ValueError, match="Image 3 cannot be decoded"):
        as_pil(lazy, "Image 3")


def test_bombs_are_not_decoded():
    header = b"P5 30000 30000 255\n"  # 900 megapixels in 19 bytes
    with pytest.raises(ValueError, match="more pixels than are safe to decode"):
        open_image(header)
    assert "EPS" not in FORMATS


def test_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match="is no regular file"):
        as_pil(tmp_path / "pipe.png")


def serve(answer) -> tuple[str, socket.socket]:
    """The address of a server that hands each connection to `answer`."""
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        try:
            while True:
                answer(listener.accept()[0])
        except OSError:  # closed
            return

    threading.Thread(target=accept, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}/x.png", listener


def drip(connection: socket.socket) -> None:
    for _ in range(100):
        connection.sendall(b"HTTP/1.1 200 OK\r\nX: " if _ == 0 else b"x")
        time.sleep(0.1)


@pytest.mark.parametrize(
    "answer, sentence",
    [
        (lambda connection: time.sleep(3), "did not come within 0.5 seconds"),
        (drip, "did not come within 0.5 seconds"),
        (lambda connection: connection.close(), "could not be fetched"),
        (lambda connection: connection.sendall(b"HTTP/1.1 404 Not Found\r\n\r\n") or connection.close(), "404"),
    ],
    ids=["silent", "dripping", "closing", "missing"],
)
def test_addresses_have_a_time_limit(answer, sentence):
    url, listener = serve(answer)
    start = time.monotonic()
    with listener, pytest.raises(ValueError, match=sentence):
        as_pil(url, timeout=0.5)
    assert time.monotonic() - start < 2


def test_addresses_that_are_none():
    for url in ("http://", "http://[::1", "http://nowhere.invalid/x.png", "http://127.0.0.1:1/x.png", "http://a b/"):
        with pytest.raises(ValueError, match="could not be fetched|did not come"):
            as_pil(url, timeout=5)
    with pytest.raises(ValueError, match="timeout is a number of seconds"):
        as_pil("http://127.0.0.1:1/", timeout=0)


MASK = RAMP > 100


@pytest.mark.parametrize(
    "mask",
    [
        MASK,
        MASK.astype(np.uint8),
        MASK.astype(np.uint8) * 255,
        MASK.astype(np.float32),
        MASK * 255.0,
        MASK.astype(np.int64),
        Image.fromarray(MASK),
        Image.fromarray(MASK.astype(np.uint8) * 255),
        torch.from_numpy(MASK),
        torch.from_numpy(MASK).to(torch.bfloat16),
        MASK.tolist(),
    ],
)
def test_masks_of_two_values(mask):
    assert (binary_mask(mask) == MASK).all()
    assert not binary_mask(np.zeros((4, 4))).any() and binary_mask(np.full((4, 4), 255)).all()


@pytest.mark.parametrize(
    "mask, value",
    [
        (MASK * 0.9, "0.9"),
        (MASK * 256, "256"),
        (MASK * 7, "7"),
        (MASK * -1, "-1"),
        (MASK * 254, "254"),
        (RAMP, "1"),
        (np.where(MASK, np.nan, 0), "nan"),
        (np.where(MASK, np.inf, 0), "inf"),
        (Image.fromarray(RAMP), "1"),
    ],
)
def test_label_maps_and_soft_masks_are_refused(mask, value):
    with pytest.raises(ValueError, match=f"The mask holds {value} where booleans"):
        binary_mask(mask)


def test_show_is_short_and_printable():
    values = ["x" * 10**6, b"y" * 10**6, "\ud800", 10**10**5, list(range(10**5)), RAMP, torch.zeros(3), None, object()]
    for value in values:
        assert len(show(value)) < 120 and show(value).encode()
