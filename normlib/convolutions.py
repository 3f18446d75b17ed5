"""Convolutions of many networks at once where torch's own are slow. Knows tensors only."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = Sequence[int]


def one_channel(
    x: Tensor, weight: Tensor, bias: Tensor | None, kernel: Pair, geometry: dict[str, Any]
) -> Tensor:
    """A convolution of (N, 1, H, W) by (C, kernel) as one matrix product, channels-last.

    With one input channel torch cannot tell channels-last from its other layout, answers in the
    other, and everything after runs at a third of the speed.
    """
    (up, left), (down, right) = geometry["padding"], geometry["stride"]
    windows = F.pad(x[:, 0], (left, left, up, up)).unfold(1, kernel[0], down)
    windows = windows.unfold(2, kernel[1], right)
    n, height, width = windows.shape[:3]
    h = windows.reshape(n * height * width, -1) @ weight.T
    h = h if bias is None else h + bias
    return h.view(n, height, width, -1).permute(0, 3, 1, 2)


def grouped(x: Tensor, weight: Tensor, groups: int, stride: Pair, padding: Pair) -> Tensor:
    """``F.conv2d`` with groups, for CUDA: the gradient of x is made of forward convolutions.

    cuDNN computes that gradient group by group, a launch or more for each: 94 % of a step of 128
    small networks on an H100.

    >>> x, w = torch.randn(2, 6, 7, 8), torch.randn(4, 3, 3, 3)
    >>> ours = grouped(x, w, 2, (2, 2), (1, 1))
    >>> torch.equal(ours, F.conv2d(x, w, stride=2, padding=1, groups=2))
    True
    """
    if torch.is_autocast_enabled(x.device.type):
        narrow = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(narrow), weight.to(narrow)
    out: Tensor = _Grouped.apply(x, weight, groups, tuple(stride), tuple(padding))
    return out


class _Grouped(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, groups: int, stride: Pair, padding: Pair
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = groups, stride, padding
        return F.conv2d(x, weight, stride=stride, padding=padding, groups=groups)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,), (x, weight), (groups, stride, padding) = gradients, ctx.saved_tensors, ctx.geometry
        g = g.contiguous(memory_format=torch.channels_last)
        of_weight = of_x = None
        if ctx.needs_input_grad[1]:
            rest = (None, stride, padding, (1, 1), False, (0, 0), groups, (False, True, False))
            of_weight = torch.ops.aten.convolution_backward(g, x, weight, *rest)[1]
        if ctx.needs_input_grad[0]:
            of_x = input_gradient(g, weight, x.shape, groups, stride, padding)
        return of_x, of_weight, None, None, None


def input_gradient(
    g: Tensor, weight: Tensor, shape: Sequence[int], groups: int, stride: Pair, padding: Pair
) -> Tensor:
    """The gradient of a grouped convolution's input, from that of its output.

    Input i meets output o through kernel entry j where i = o·stride + j − padding. So the inputs
    with one remainder of i by the stride see every stride-th entry of the kernel, turned round: a
    convolution of its own, without a stride. There are as many as remainders.
    """
    out, inputs = weight.shape[0] // groups, weight.shape[1]
    turned = weight.view(groups, out, inputs, *weight.shape[2:]).transpose(1, 2)
    turned = turned.reshape(groups * inputs, out, *weight.shape[2:]).flip(2, 3)
    found = g.new_zeros(tuple(shape)).contiguous(memory_format=torch.channels_last)
    for remainders in itertools.product(*(range(s) for s in stride)):
        entries, edges, inside = [], [], True
        for side, a in enumerate(remainders):
            s, p, k, size = stride[side], padding[side], weight.shape[2 + side], shape[2 + side]
            first = (a + p) % s
            count, targets = len(range(first, k, s)), len(range(a, size, s))
            inside = inside and count > 0 and targets > 0
            last = first + (count - 1) * s  # in the turned kernel these entries begin here
            entries.append(slice(k - 1 - last, k - first, s))
            before = count - 1 - (a + p - first) // s
            edges.append((before, targets + count - 1 - before - g.shape[2 + side]))
        if inside:
            padded = F.pad(g, (*edges[1], *edges[0]))
            kernel = turned[:, :, entries[0], entries[1]]
            kernel = kernel.contiguous(memory_format=torch.channels_last)
            down, right = stride
            found[:, :, remainders[0] :: down, remainders[1] :: right] = F.conv2d(
                padded, kernel, groups=groups
            )
    return found
