"""3x3 convolutions with a quarter of the multiplications, for float32 on CPUs.

Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR
2016): tiles of 6x6 positions that overlap by two, and kernels, are taken to 36 points each; at every point all channels
meet in one matrix product; and 4x4 answers come back. The points along an axis are 0, +-sqrt(1/2), +-sqrt(2) and
infinity: their rounding errors are those of the plain sum (the usual +-1 and +-2 have twice these). What depends on one
image alone stays so: no tile knows of another image.

Tiles are worked through in bands that stay in a CPU's cache, so that all points of a whole map are never there at once.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


TILE = 4  # answers of a tile along an axis
POINTS = TILE + 2
BAND = 256  # tiles at work at once
# Below these the plain convolution is as quick: what is done for each channel, and for each kernel, costs too.
CHANNELS, TILES = 128, 32
_A, _B = math.sqrt(0.5), math.sqrt(2)

# One axis of a kernel (3) to its points (6): values of the polynomial over the derivatives of the points' own.
_KERNEL_AXIS = torch.tensor(
    [[1 / n, x / n, x * x / n] for x, n in ((0, 1), (_A, -1.5), (-_A, -1.5), (_B, 6), (-_B, 6))] + [[0, 0, 1]],
    dtype=torch.float64,
    device="cpu",
)
_KERNEL = torch.kron(_KERNEL_AXIS, _KERNEL_AXIS).float()  # (36, 9)

_PLAIN: ContextVar[bool] = ContextVar("_PLAIN", default=False)


class WinogradConv2d(nn.Conv2d):
    """A 3x3 convolution of stride 1 that keeps the map's size, by the quicker of both ways."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not pays(x, weight):
            return super()._conv_forward(x, weight, bias)
        y = _Convolution.apply(x, weight)
        return y if bias is None else y + bias[:, None, None]


def use_winograd(model: nn.Module) -> None:
    """Every convolution of a model that may become quicker; parameters and their names stay."""
    for module in model.modules():
        if type(module) is nn.Conv2d and _fits(module):
            module.__class__ = WinogradConv2d


def _fits(conv: nn.Conv2d) -> bool:
    plain = (conv.kernel_size, conv.stride, conv.dilation, conv.groups) == ((3, 3), (1, 1), (1, 1), 1)
    padded = conv.padding == (1, 1) and conv.padding_mode == "zeros"
    return plain and padded and min(conv.in_channels, conv.out_channels) >= CHANNELS


@contextmanager
def plain_convolutions() -> Iterator[None]:
    """Inside it every convolution is the plain one, whose operations are those that are counted."""
    token = _PLAIN.set(True)
    try:
        yield
    finally:
        _PLAIN.reset(token)


def pays(x: Tensor, weight: Tensor) -> bool:
    """Whether maps (N, C, h, w) are large enough, of the right kind, and no graph is being traced."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or _PLAIN.get():
        return False
    if not (x.is_cpu and x.dtype == weight.dtype == torch.float32) or torch.is_autocast_enabled("cpu"):
        return False
    return x.ndim == 4 and len(x) * math.prod(_tiles(x)) >= TILES


def _tiles(x: Tensor) -> tuple[int, int]:
    """Rows and columns of tiles that maps (..., h, w) have."""
    return -(-x.shape[-2] // TILE), -(-x.shape[-1] // TILE)


class _Convolution(torch.autograd.Function):
    """x (N, C, h, w), weight (O, C, 3, 3) -> (N, O, h, w) in memory order NHWC."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _convolve(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x = _convolve(grad, weight.flip(2, 3).transpose(0, 1)) if ctx.needs_input_grad[0] else None
        return of_x, _weight_gradient(x, grad) if ctx.needs_input_grad[1] else None


def _convolve(x: Tensor, weight: Tensor) -> Tensor:
    kernels = (_KERNEL @ weight.permute(2, 3, 0, 1).reshape(9, -1)).view(-1, *weight.shape[:2])  # (36, O, C)
    (height, width), (rows, columns) = x.shape[-2:], _tiles(x)
    padded = _padded(x, 1)
    out = x.new_empty(len(x), rows, TILE, columns, TILE, len(weight))
    for images, part in _bands(len(x), rows, columns):
        points = _to_points(padded, images, part)
        products = torch.bmm(points.flatten(2, 4).flatten(0, 1), kernels.transpose(1, 2))
        _to_answers(products.view(*points.shape[:-1], -1), out[images, part])
    return out.view(len(x), rows * TILE, columns * TILE, -1)[:, :height, :width].permute(0, 3, 1, 2)


def _weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """Of inputs (N, C, h, w) and the gradients (N, O, h, w) of their answers: (O, C, 3, 3)."""
    padded, answers = _padded(x, 1), _padded(grad, 0)
    of_kernels = x.new_zeros(POINTS**2, grad.shape[1], x.shape[1])
    for images, part in _bands(len(x), *_tiles(x)):
        points = _to_points(padded, images, part)
        spread = _from_answers(answers[images, part])
        points, spread = (values.flatten(2, 4).flatten(0, 1) for values in (points, spread))
        of_kernels.baddbmm_(spread.transpose(1, 2), points)
    gradient = _KERNEL.T @ of_kernels.flatten(1)
    return gradient.view(3, 3, grad.shape[1], x.shape[1]).permute(2, 3, 0, 1).contiguous()


def _bands(count: int, rows: int, columns: int) -> list[tuple[slice, slice]]:
    """Images, and rows of their tiles, that are worked on together: some images whole, or part of one."""
    images, step = max(1, BAND // (rows * columns)), max(1, BAND // columns)
    return [
        (slice(first, min(first + images, count)), slice(row, min(row + step, rows)))
        for first in range(0, count, images)
        for row in range(0, rows, step)
    ]


def _padded(x: Tensor, margin: int) -> Tensor:
    """(N, C, h, w) -> (N, rows + margin, 4, columns + margin, 4, C): zeros around, `margin` of them before."""
    (height, width), (rows, columns) = x.shape[-2:], _tiles(x)
    padded = x.new_zeros(len(x), (rows + margin) * TILE, (columns + margin) * TILE, x.shape[1])
    padded[:, margin : margin + height, margin : margin + width] = x.permute(0, 2, 3, 1)
    return padded.view(len(x), rows + margin, TILE, columns + margin, TILE, -1)


def _to_points(padded: Tensor, images: slice, part: slice) -> Tensor:
    """Tiles of `_padded` (N, rows + 1, 4, columns + 1, 4, C) -> (6, 6, images, rows, columns, C)."""
    tiles, below = padded[images, part], padded[images, part.start + 1 : part.stop + 1]
    halfway = tiles.new_empty(POINTS, *tiles.shape[:2], *tiles.shape[3:])
    _points_of_axis([*tiles.unbind(2), below[:, :, 0], below[:, :, 1]], halfway)
    left, right = halfway[:, :, :, :-1], halfway[:, :, :, 1:]
    points = tiles.new_empty(POINTS, POINTS, *left.shape[1:4], tiles.shape[-1])
    _points_of_axis([*left.unbind(4), right[..., 0, :], right[..., 1, :]], points.transpose(0, 1))
    return points


def _points_of_axis(x: list[Tensor], out: Tensor) -> None:
    """Six positions of a tile along an axis to its points."""
    torch.add(x[0], x[4], out=out[0]).sub_(x[2], alpha=2.5)
    for index, (root, other) in enumerate(((_A, 2.0), (_B, 0.5))):  # the square of the other root
        even, odd = torch.sub(x[4], x[2], alpha=other), torch.sub(x[3], x[1], alpha=other)
        torch.add(even, odd, alpha=root, out=out[1 + 2 * index])
        torch.sub(even, odd, alpha=root, out=out[2 + 2 * index])
    torch.add(x[1], x[5], out=out[5]).sub_(x[3], alpha=2.5)


def _to_answers(products: Tensor, out: Tensor) -> None:
    """(6, 6, images, rows, columns, O) -> out (images, rows, 4, columns, 4, O)."""
    halfway = products.new_empty(TILE, *products.shape[1:])
    _answers_of_axis(products, halfway.unbind(0))
    for row, columns in zip(halfway, out.unbind(2), strict=True):
        _answers_of_axis(row, columns.unbind(3))


def _answers_of_axis(x: Tensor, out: tuple[Tensor, ...]) -> None:
    """Six points along an axis to the four answers of a tile."""
    one, other = x[1] + x[2], x[3] + x[4]
    torch.add(x[0], one, out=out[0]).add_(other)
    torch.mul(one, 0.5, out=out[2]).add_(other, alpha=2)
    torch.sub(x[1], x[2], out=one)
    torch.sub(x[3], x[4], out=other)
    torch.mul(one, _A, out=out[1]).add_(other, alpha=_B)
    torch.add(x[5], one, alpha=_A**3, out=out[3]).add_(other, alpha=_B**3)


def _from_answers(grad: Tensor) -> Tensor:
    """The transpose of `_to_answers`: (images, rows, 4, columns, 4, O) -> (6, 6, images, rows, columns, O)."""
    halfway = grad.new_empty(POINTS, *grad.shape[:2], *grad.shape[3:])
    _spread_axis(grad.unbind(2), halfway)
    spread = grad.new_empty(POINTS, *halfway.shape[:4], grad.shape[-1])
    _spread_axis(halfway.unbind(4), spread.transpose(0, 1))
    return spread


def _spread_axis(x: tuple[Tensor, ...], out: Tensor) -> None:
    """Four answers of a tile along an axis to its points."""
    out[0], out[5] = x[0], x[3]
    for index, (root, square) in enumerate(((_A, 0.5), (_B, 2.0))):
        even, odd = torch.add(x[0], x[2], alpha=square), torch.add(x[1], x[3], alpha=square)
        torch.add(even, odd, alpha=root, out=out[1 + 2 * index])
        torch.sub(even, odd, alpha=root, out=out[2 + 2 * index])
