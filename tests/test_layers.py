"""Layers of many networks at once agree with torch's."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as some

from normlib import layers

side = some.tuples(
    some.integers(1, 9), some.integers(1, 5), some.integers(1, 3), some.integers(0, 2)
).filter(lambda s: s[0] + 2 * s[3] >= s[1])  # size, kernel, stride, padding


@settings(deadline=None, max_examples=60)
@given(side, side, some.integers(1, 3), some.integers(1, 3), some.integers(1, 3))
def test_a_grouped_convolution_as_a_matrix_product_is_torchs(down, right, groups, inputs, out):
    (height, width), kernel, stride, padding = zip(down, right, strict=True)
    torch.manual_seed(0)
    x = torch.randn(2, groups * inputs, height, width, dtype=torch.float64, requires_grad=True)
    w = torch.randn(groups * out, inputs, *kernel, dtype=torch.float64, requires_grad=True)
    ours = layers.grouped(x, w, groups, stride, padding)
    torchs = F.conv2d(x, w, stride=stride, padding=padding, groups=groups)
    torch.testing.assert_close(ours, torchs, rtol=1e-10, atol=1e-10)
    g = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad(ours, (x, w), g), torch.autograd.grad(torchs, (x, w), g), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_a_grouped_convolution_works_in_the_precision_of_autocast():
    x, w = torch.randn(2, 4, 5, 5), torch.randn(4, 2, 3, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = layers.grouped(x, w, 2, (1, 1), (1, 1))
    assert out.dtype == torch.bfloat16
    (gradient,) = torch.autograd.grad(out.float().sum(), w)
    assert gradient.dtype == torch.float32


@pytest.mark.parametrize("width", [1, 4])
def test_windows_times_kernels_are_a_convolution(width):
    x, w, b = torch.randn(3, 1, 6, 7), torch.randn(width, 6), torch.randn(width)
    geometry = {"stride": (2, 1), "padding": (1, 0)}
    ours = (layers.windows(x, (3, 2), **geometry).flatten(3) @ w.T + b).permute(0, 3, 1, 2)
    torchs = F.conv2d(x, w.view(width, 1, 3, 2), b, **geometry)
    torch.testing.assert_close(ours, torchs)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-11), (torch.float32, 2e-4)])
def test_batch_norm_inside_the_weights_is_batch_norm_after_them(dtype, close):
    torch.manual_seed(0)
    rows = (torch.randn(300, 5) @ torch.randn(5, 5) + 3).to(dtype)  # correlated, not centred
    w, gain, shift = (torch.randn(*size, dtype=dtype) for size in ((7, 5), (7,), (7,)))
    found = []
    for inside in (True, False):
        mean, var = torch.zeros(7, dtype=dtype), torch.ones(7, dtype=dtype)
        leaves = [p.clone().requires_grad_() for p in (w, gain, shift)]
        if inside:
            weight, bias = layers.folded(rows, leaves[0], mean, var, *leaves[1:], 1e-5)
            out = layers.from_rows(rows, weight, bias)
        else:
            out = F.batch_norm(rows @ leaves[0].T, mean, var, *leaves[1:], training=True, eps=1e-5)
        grads = torch.autograd.grad((out**3).mean(), leaves)
        found.append([out.detach(), mean, var, *grads])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=close, atol=close)


def test_heads_and_their_gradients_are_torchs():
    torch.manual_seed(0)
    h, w, b = (torch.randn(3, *s).double().requires_grad_() for s in ((6, 4), (5, 4), (5, 1)))
    torch.testing.assert_close(layers.heads(h, w, b), torch.baddbmm(b.mT, h, w.mT))
    assert torch.autograd.gradcheck(layers.heads, (h, w, b))
    assert torch.autograd.gradgradcheck(layers.heads, (h, w, b))
