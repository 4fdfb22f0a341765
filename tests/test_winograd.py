"""Convolutions by Winograd's filtering: equal to the plain sum, forwards and backwards, and only where they pay."""

import pytest
import torch
from torch import nn

from hf_ris.benchmark import FlopCounter
from hf_ris.models import winograd
from hf_ris.models.inference_ris import _fold_batch_norms


def convolution(channels: int = 128, width: int = 130, **arguments) -> nn.Conv2d:
    torch.manual_seed(0)
    layer = nn.Conv2d(channels, width, 3, padding=1, **arguments)
    winograd.use_winograd(layer)
    return layer


def answers(layer: nn.Conv2d, x: torch.Tensor, seed: int = 1) -> list[torch.Tensor]:
    """Of a layer: what it makes of x, and the gradients of x and of its parameters."""
    x = x.clone().requires_grad_()
    y = layer(x)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, (x, *layer.parameters()), grad)]


# one image in bands, images side by side in a band, sides that tiles do not divide
@pytest.mark.parametrize("shape", [(1, 70, 66), (5, 13, 18), (2, 24, 24)])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_equal_to_the_plain_sum(shape, order):
    layer, truth = convolution(), convolution().double()
    assert type(layer) is winograd.WinogradConv2d
    count, height, width = shape
    x = torch.randn(count, 128, height, width).to(memory_format=order)
    assert winograd.pays(x, layer.weight)
    found, expected = answers(layer, x), answers(truth, x.double())
    with winograd.plain_convolutions():
        plain = answers(layer, x)
    for one, true, other in zip(found, expected, plain, strict=True):
        spread = true.std()
        assert (one - true).abs().max() < 3e-5 * spread
        # no worse than what it takes the place of, which sums in float32 too
        assert (one - true).square().mean().sqrt() < max(4 * (other - true).square().mean().sqrt(), 2e-6 * spread)


def test_no_image_knows_of_another():
    layer, x = convolution(bias=False), torch.randn(7, 128, 26, 26)
    with torch.no_grad():
        torch.testing.assert_close(layer(x)[4:6], layer(x[4:6]), atol=1e-6, rtol=0)


def test_who_is_changed():
    kept = [
        nn.Conv2d(128, 128, 1),
        nn.Conv2d(128, 128, 3, padding=1, stride=2),
        nn.Conv2d(128, 128, 3, padding=2, dilation=2),
        nn.Conv2d(128, 128, 3, padding=1, groups=2),
        nn.Conv2d(128, 128, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(128, 64, 3, padding=1),
    ]
    model = nn.Sequential(*kept, convolution())
    names = list(model.state_dict())
    winograd.use_winograd(model)
    assert [type(layer) for layer in model] == [nn.Conv2d] * len(kept) + [winograd.WinogradConv2d]
    assert list(model.state_dict()) == names


def test_where_the_plain_sum_is_taken(monkeypatch):
    layer, x = convolution(), torch.randn(1, 128, 24, 24)
    weight = layer.weight
    assert winograd.pays(x, weight)
    assert not winograd.pays(x[..., :16, :16], weight)  # few tiles
    assert not winograd.pays(x.double(), weight.double())
    assert not winograd.pays(x.to("meta"), weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert not winograd.pays(x, weight) and layer(x).dtype == torch.bfloat16
    with winograd.plain_convolutions():
        assert not winograd.pays(x, weight)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not winograd.pays(x, weight)


def test_operations_count_as_the_plain_sum_takes_them():
    layer, x = convolution(), torch.randn(1, 128, 24, 24)
    with torch.no_grad(), FlopCounter() as counter:
        layer(x)
    assert counter.get_total_flops() == 2 * 24**2 * 9 * 128 * 130
    assert winograd.pays(x, layer.weight)


def test_batch_norms_are_folded_into_it():
    model = nn.Sequential(convolution(bias=False), nn.BatchNorm2d(130)).eval()
    model[1].running_mean.uniform_(-0.2, 0.2)
    model[1].running_var.uniform_(0.5, 1.5)
    x = torch.randn(1, 128, 24, 24)
    with torch.no_grad():
        expected = model(x)
        assert _fold_batch_norms(model) == 1
        torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=0)


def test_exported_graphs_hold_the_plain_convolution():
    layer, x = convolution().eval(), torch.randn(1, 128, 24, 24)
    program = torch.export.export(layer, (x,))
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert called == ["aten.conv2d.default"]
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), layer(x), atol=1e-5, rtol=0)
