"""Weights that random gradients move. Knows update rules; there is no loss."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from normlib.optimizers.rule import Optimizer, Rate


def random_walk(
    optimizer: Optimizer,
    shape: tuple[int, int, int],
    start: Rate,
    lr: Rate | Callable[[int], float],
    weight_decay: Rate | Callable[[int], float],
    steps: int,
    orthogonal: bool = True,
) -> Iterator[Tensor]:
    """Weights under random gradients of unit gradient 1: at the start, and after each step.

    What the formulas of `nl.theory` assume: gradients independent from step to step, with
    ‖w‖‖g‖ = 1, at right angles to w. In double precision, from seed 0.

    Parameters
    ----------
    optimizer : Optimizer
    shape : (int, int, int)
        Copies, channels and inputs; each copy has its own gradients, and is one vector.
    start : float or Tensor
        Norm at the start; a tensor (copies, 1, 1) for each copy its own.
    lr, weight_decay : float, Tensor or callable
        The same for all steps, or a function of the step, which counts from 0.
    steps : int
    orthogonal : bool
        Whether the part of a gradient along w is taken out.

    Notes
    -----
    Chapters 03, 05, 11 and 12.

    >>> from normlib.optimizers import sgd
    >>> path = list(random_walk(sgd(), (2, 1, 100), 1.0, lr=0.1, weight_decay=0.0, steps=3))
    >>> len(path), round(float(path[1][0].norm() ** 2), 4)  # 1 + lr²
    (4, 1.01)
    """
    generator = torch.Generator().manual_seed(0)

    def noise() -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def length(x: Tensor) -> Tensor:
        return x.norm(dim=(1, 2), keepdim=True)

    w = noise()
    w = w * (start / length(w))
    yield w
    state = optimizer.init(w)
    for step in range(steps):
        g, norm = noise(), length(w)
        if orthogonal:
            g = g - (g * w).sum((1, 2), keepdim=True) * w / norm**2
        g = g / length(g) / norm
        rate, decay = (x(step) if callable(x) else x for x in (lr, weight_decay))
        w, state = optimizer.update(w, g, state, rate, decay, step + 1)
        yield w
