"""Layers of many networks at once where torch's own are slow. Knows tensors only."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = Sequence[int]


def windows(x: Tensor, kernel: Pair, stride: Pair, padding: Pair) -> Tensor:
    """What a convolution of (N, C, H, W) sees at each place, (N, height, width, C, *kernel).

    Its product with the kernels is the convolution, channels-last. That is how convolutions of one
    input channel are made: torch cannot tell their channels-last layout from its other one,
    answers in the other, and everything after runs at a third of the speed.
    """
    (down, right), (up, left) = stride, padding
    seen = F.pad(x, (left, left, up, up)).permute(0, 2, 3, 1).unfold(1, kernel[0], down)
    return seen.unfold(2, kernel[1], right)


def grouped(x: Tensor, weight: Tensor, groups: int, stride: Pair, padding: Pair) -> Tensor:
    """``F.conv2d`` with groups, for CUDA.

    Narrow groups are one batched matrix product: cuDNN computes the gradient of their inputs group
    by group, a launch or more for each. On an H100 a step of 512 networks with 25 channels takes
    4.6 ms instead of 73. From 64 channels on cuDNN is the faster.

    >>> x, w = torch.randn(2, 6, 7, 8), torch.randn(4, 3, 3, 3)
    >>> ours = grouped(x, w, 2, (2, 2), (1, 1))
    >>> torch.allclose(ours, F.conv2d(x, w, stride=2, padding=1, groups=2), atol=1e-5)
    True
    """
    if weight.shape[1] >= 64:
        return F.conv2d(x, weight, stride=stride, padding=padding, groups=groups)
    return product(x, weight, groups, stride, padding)


def product(x: Tensor, weight: Tensor, groups: int, stride: Pair, padding: Pair) -> Tensor:
    """All windows side by side, times the kernels: one batched matrix product."""
    seen = windows(x, weight.shape[2:], stride, padding)
    n, high, wide = seen.shape[:3]
    columns = seen.reshape(n * high * wide, groups, -1).transpose(0, 1)
    kernels = weight.reshape(groups, -1, columns.shape[2])
    out = (columns @ kernels.mT).transpose(0, 1).reshape(n, high, wide, -1)
    return out.permute(0, 3, 1, 2)


def from_rows(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Rows (N, n) times weights (C, n), plus biases: (N, C), for few inputs and many outputs."""
    weight = weight.T.contiguous()  # else autograd takes a product that is five times as slow
    if bias is not None:  # as an input more, which is 1: a sum would pass over all outputs again
        rows, weight = F.pad(rows, (0, 1), value=1.0), torch.cat([weight, bias[None]])
    return rows @ weight


def folded(
    rows: Tensor,
    weight: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    gain: Tensor,
    shift: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Weights (C, n) and biases (C,) with the batch norm after them inside; rows are (N, n).

    Mean and variance of a linear map follow from those of its inputs, so its many outputs are not
    read for them. In double precision: the matrices are small, and a variance may be. Running
    averages are updated as by ``F.batch_norm``.

    >>> x, w, one, zero = torch.randn(50, 5), torch.randn(3, 5), torch.ones(3), torch.zeros(3)
    >>> weight, bias = folded(x, w, zero.clone(), one.clone(), one, zero, 1e-5)
    >>> torch.allclose(x @ weight.T + bias, F.batch_norm(x @ w.T, None, None, training=True),
    ...                atol=1e-5)
    True
    """
    inputs, w = rows.double(), weight.double()
    average, count = inputs.mean(0), len(inputs)
    centred = inputs - average
    mean = w @ average
    var = (w @ (centred.T @ centred / count) * w).sum(1)
    with torch.no_grad():
        running_mean.lerp_(mean.to(running_mean), 0.1)
        running_var.lerp_((var * count / (count - 1)).to(running_var), 0.1)
    scale = gain / (var + eps).sqrt()
    return (w * scale[:, None]).to(weight), (shift - mean * scale).to(weight)


def heads(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Logits (K, N, C) of features (K, N, n), weights (K, C, n) and biases (K, C, 1).

    As ``torch.baddbmm``, but for the order of the product that is the gradient of the weights:
    this way round it is three times as fast.
    """
    kind = h.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        h, weight, bias = (x.to(torch.get_autocast_dtype(kind)) for x in (h, weight, bias))
    logits: Tensor = _Heads.apply(h, weight, bias)
    return logits


class _Heads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(h, weight)
        return torch.baddbmm(bias.mT, h, weight.mT)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (g,), (h, weight) = grads, ctx.saved_tensors
        return g @ weight, g.mT @ h, g.sum(1)[..., None]
