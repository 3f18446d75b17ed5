"""Update rules as pure functions. Knows formulas of steps; nothing of networks, data or losses.

A rule moves the weights w of K networks at once. w and its gradient g have shape (K, C, n):
networks, channels (output units), inputs of one channel. `lr` and `weight_decay` are columns that
broadcast against it, (K, 1, 1), so that each network has its own. All rules follow torch's
conventions; λ is torch's `weight_decay`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from normlib import theory
from normlib.theory import Theory

State = tuple[Tensor, ...]


@dataclass(frozen=True)
class Rule:
    """One update rule.

    Attributes
    ----------
    name : str
    settings : dict
        The hyperparameters that do not vary over a grid; with the name they identify the rule.
    theory : Theory
        What is known of it on scale-invariant weights.
    init : callable
        (w) -> state before the first step.
    update : callable
        (w, g, state, lr, weight_decay, step) -> (new w, new state); `step` counts from 1.
    start : callable
        (w) -> w, applied once before training; the identity but for `unit_norm`.
    other : Rule or None
        The rule for parameters that are not scale-invariant, where it differs.
    """

    name: str
    settings: dict[str, object]
    theory: Theory
    init: Callable[[Tensor], State]
    update: Callable[..., tuple[Tensor, State]]
    start: Callable[[Tensor], Tensor] = field(default=lambda w: w)
    other: "Rule | None" = None

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v}' for k, v in self.settings.items())})"


def _fraction(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(f"{name} must be a number in [0, 1), got {value!r}")
    return float(value)


def _pair(name: str, values: tuple[float, float]) -> tuple[float, float]:
    if not isinstance(values, tuple | list) or len(values) != 2:
        raise ValueError(f"{name} must be two numbers in [0, 1), got {values!r}")
    return _fraction(f"{name}[0]", values[0]), _fraction(f"{name}[1]", values[1])


def _positive(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ValueError(f"{name} must be a positive number, got {value!r}")
    return float(value)


def sgd() -> Rule:
    """Plain gradient descent on minibatches, w ← w − η(g + λw). Chapter 00.

    >>> w, g = torch.ones(1, 1, 2), torch.full((1, 1, 2), 0.5)
    >>> sgd().update(w, g, (), lr=0.1, weight_decay=1.0, step=1)[0]
    tensor([[[0.8500, 0.8500]]])
    """

    def update(w, g, state, lr, weight_decay, step):
        return w - lr * (g + weight_decay * w), state

    return Rule("sgd", {}, theory.sgd(), lambda w: (), update)


def momentum(momentum: float = 0.9) -> Rule:
    """Heavy-ball momentum, b ← μb + g + λw, w ← w − ηb (torch: no dampening). Chapter 03."""
    mu = _fraction("momentum", momentum)

    def update(w, g, state, lr, weight_decay, step):
        (buffer,) = state
        buffer = mu * buffer + g + weight_decay * w
        return w - lr * buffer, (buffer,)

    return Rule("momentum", {"momentum": mu}, theory.sgd(mu), _zeros(1), update)


def nesterov(momentum: float = 0.9) -> Rule:
    """Nesterov momentum as torch has it, w ← w − η(g + λw + μb). Chapters 03 and 04."""
    mu = _fraction("momentum", momentum)

    def update(w, g, state, lr, weight_decay, step):
        (buffer,) = state
        g = g + weight_decay * w
        buffer = mu * buffer + g
        return w - lr * (g + mu * buffer), (buffer,)

    return Rule("nesterov", {"momentum": mu}, theory.sgd(mu, nesterov=True), _zeros(1), update)


def _zeros(count: int) -> Callable[[Tensor], State]:
    return lambda w: tuple(torch.zeros_like(w) for _ in range(count))
