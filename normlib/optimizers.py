"""Update rules as pure functions. Knows formulas of steps; nothing of networks, data or losses.

A rule moves the weights w of K networks at once. w and its gradient g have shape (K, C, n):
networks, channels (output units), inputs of one channel. `lr` and `weight_decay` are columns that
broadcast against it, (K, 1, 1), so that each network has its own. All rules follow torch's
conventions; λ is torch's `weight_decay`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from normlib import theory
from normlib.theory import Theory

State = tuple[Tensor, ...]


@dataclass(frozen=True)
class Optimizer:
    """One update optimizer.

    Attributes
    ----------
    name : str
    settings : dict
        The hyperparameters that do not vary over a grid; with the name they identify the optimizer.
    theory : Theory
        What is known of it on scale-invariant weights.
    init : callable
        (w) -> state before the first step.
    update : callable
        (w, g, state, lr, weight_decay, step) -> (new w, new state); `step` counts from 1.
    start : callable
        (w) -> w, applied once before training; the identity but for `unit_norm`.
    other : Optimizer or None
        The rule for parameters that are not scale-invariant, where it differs.
    """

    name: str
    settings: dict[str, object]
    theory: Theory
    init: Callable[[Tensor], State]
    update: Callable[..., tuple[Tensor, State]]
    start: Callable[[Tensor], Tensor] = field(default=lambda w: w)
    other: "Optimizer | None" = None

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


def _at_least_0(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a number of at least 0, got {value!r}")
    return float(value)


def sgd() -> Optimizer:
    """Plain gradient descent on minibatches, w ← w − η(g + λw). Chapter 00.

    >>> w, g = torch.ones(1, 1, 2), torch.full((1, 1, 2), 0.5)
    >>> sgd().update(w, g, (), lr=0.1, weight_decay=1.0, step=1)[0]
    tensor([[[0.8500, 0.8500]]])
    """

    def update(w, g, state, lr, weight_decay, step):
        return _minus(w, lr, _plus(g, weight_decay, w)), state

    return Optimizer("sgd", {}, theory.sgd(), lambda w: (), update)


def momentum(momentum: float = 0.9) -> Optimizer:
    """Heavy-ball momentum, b ← μb + g + λw, w ← w − ηb (torch: no dampening). Chapter 03."""
    mu = _fraction("momentum", momentum)

    def update(w, g, state, lr, weight_decay, step):
        (buffer,) = state
        buffer = torch.add(_plus(g, weight_decay, w), buffer, alpha=mu)
        return _minus(w, lr, buffer), (buffer,)

    return Optimizer("momentum", {"momentum": mu}, theory.sgd(mu), _zeros(1), update)


def nesterov(momentum: float = 0.9) -> Optimizer:
    """Nesterov momentum as torch has it, w ← w − η(g + λw + μb). Chapters 03 and 04."""
    mu = _fraction("momentum", momentum)

    def update(w, g, state, lr, weight_decay, step):
        (buffer,) = state
        g = _plus(g, weight_decay, w)
        buffer = torch.add(g, buffer, alpha=mu)
        return _minus(w, lr, torch.add(g, buffer, alpha=mu)), (buffer,)

    return Optimizer("nesterov", {"momentum": mu}, theory.sgd(mu, nesterov=True), _zeros(1), update)


def adam(betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> Optimizer:
    """Adam with L2: the decay is added to the gradient and divided with it. Chapter 05.

    Raises
    ------
    ValueError
        If a beta lies outside [0, 1) or eps is negative (so for every rule of this family).
    """
    settings, update = _adam(betas, eps)
    return Optimizer("adam", settings, theory.adam(settings["betas"]), _zeros(2), update)


def adamw(betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> Optimizer:
    """AdamW: w ← (1 − ηλ)w first, then Adam's step without decay. Chapter 05."""
    settings, step_without_decay = _adam(betas, eps)
    return Optimizer(
        "adamw",
        settings,
        theory.adamw(settings["betas"]),
        _zeros(2),
        _decoupled(step_without_decay),
    )


def _adam(betas, eps):
    b1, b2 = _pair("betas", betas)
    eps = _at_least_0("eps", eps)

    def update(w, g, state, lr, weight_decay, step):
        m, v = state
        g = _plus(g, weight_decay, w)
        m = torch.lerp(m, g, 1 - b1)
        v = torch.addcmul(b2 * v, g, g, value=1 - b2)
        root = torch.add(eps, v.sqrt(), alpha=1 / math.sqrt(1 - b2**step))
        return _minus(w, lr / (1 - b1**step), m / root), (m, v)

    return {"betas": (b1, b2), "eps": eps}, update


def rmsprop(alpha: float = 0.99, eps: float = 1e-8) -> Optimizer:
    """RMSprop with L2, as torch has it (not centred, no momentum). Chapter 05."""
    alpha, eps = _fraction("alpha", alpha), _at_least_0("eps", eps)

    def update(w, g, state, lr, weight_decay, step):
        (v,) = state
        g = _plus(g, weight_decay, w)
        v = torch.addcmul(alpha * v, g, g, value=1 - alpha)
        return _minus(w, lr, g / (v.sqrt() + eps)), (v,)

    return Optimizer("rmsprop", {"alpha": alpha, "eps": eps}, theory.rmsprop(), _zeros(1), update)


def adagrad(eps: float = 1e-10) -> Optimizer:
    """AdaGrad with L2: divides by the root of the sum of all squared gradients. Chapter 05."""
    eps = _at_least_0("eps", eps)

    def update(w, g, state, lr, weight_decay, step):
        (total,) = state
        g = _plus(g, weight_decay, w)
        total = torch.addcmul(total, g, g)
        return _minus(w, lr, g / (total.sqrt() + eps)), (total,)

    return Optimizer("adagrad", {"eps": eps}, theory.adagrad(), _zeros(1), update)


def adadelta(rho: float = 0.9, eps: float = 1e-6) -> Optimizer:
    """Adadelta with L2: its step has the unit of w. Chapter 05."""
    rho, eps = _fraction("rho", rho), _at_least_0("eps", eps)

    def update(w, g, state, lr, weight_decay, step):
        square, moved = state
        g = _plus(g, weight_decay, w)
        square = torch.addcmul(rho * square, g, g, value=1 - rho)
        delta = (moved + eps).sqrt() / (square + eps).sqrt() * g
        moved = torch.addcmul(rho * moved, delta, delta, value=1 - rho)
        return _minus(w, lr, delta), (square, moved)

    return Optimizer("adadelta", {"rho": rho, "eps": eps}, theory.adadelta(), _zeros(2), update)


def lion(betas: tuple[float, float] = (0.9, 0.99)) -> Optimizer:
    """Lion: the sign of a blend of gradient and average, decoupled decay (Chen et al. 2023)."""
    b1, b2 = _pair("betas", betas)

    def step_without_decay(w, g, state, lr, weight_decay, step):
        (m,) = state
        direction = torch.lerp(m, g, 1 - b1).sign()
        return _minus(w, lr, direction), (torch.lerp(m, g, 1 - b2),)

    return Optimizer(
        "lion",
        {"betas": (b1, b2)},
        theory.lion((b1, b2)),
        _zeros(1),
        _decoupled(step_without_decay),
    )


def unit_norm(optimizer: Optimizer, per: str = "channel") -> Optimizer:
    """The paper's normalized update: after every step, scale-invariant weights go back to norm 1.

    Parameters
    ----------
    rule : Optimizer
        What makes the step; decay and all. Other parameters follow it unchanged.
    per : {"channel", "layer"}
        Whose norm is 1: each output channel's, as in the paper, or the whole layer's.

    Notes
    -----
    Source: van Laarhoven 2017, section 5.5. Chapter 07.

    >>> w = unit_norm(sgd()).start(torch.tensor([[[3.0, 4.0]]]))
    >>> w
    tensor([[[0.6000, 0.8000]]])
    """
    dims = _group(per)

    def start(w):
        return w / w.norm(dim=dims, keepdim=True)

    def update(w, g, state, lr, weight_decay, step):
        w, state = optimizer.update(w, g, state, lr, weight_decay, step)
        return start(w), state

    return Optimizer(
        "unit_norm",
        {"optimizer": repr(optimizer), "per": per},
        theory.unit_norm(),
        optimizer.init,
        update,
        start,
        optimizer.other or optimizer,
    )


def radial_free(optimizer: Optimizer, per: str = "channel") -> Optimizer:
    """Only the part of each step that is orthogonal to w; decay acts by itself.

    w ← (1 − ηλ)w − P(step), where the step is that of `rule` without decay and P removes its
    component along w. It keeps momentum from lengthening w, and decay out of the step.

    Parameters
    ----------
    rule : Optimizer
    per : {"channel", "layer"}
        Along whose w: each output channel's or the whole layer's.

    Notes
    -----
    Source: the projection of SGDP and AdamP (Heo et al. 2021), here for every scale-invariant
    weight, without their test for invariance. Chapter 07.
    """
    dims = _group(per)
    if optimizer.name == "unit_norm":
        raise ValueError("radial_free(unit_norm(...)) is no rule; use unit_norm(radial_free(...))")

    def update(w, g, state, lr, weight_decay, step):
        moved, state = optimizer.update(w, g, state, lr, 0.0, step)
        delta = moved - w
        unit = w / w.norm(dim=dims, keepdim=True)
        delta = delta - (delta * unit).sum(dim=dims, keepdim=True) * unit
        return w - lr * weight_decay * w + delta, state

    p = optimizer.theory.scale_exponent
    return Optimizer(
        "radial_free",
        {"optimizer": repr(optimizer), "per": per},
        Theory(p, p),
        optimizer.init,
        update,
        other=optimizer.other or optimizer,
    )


def _group(per: str) -> tuple[int, ...]:
    if per not in ("channel", "layer"):
        raise ValueError(f'per must be "channel" or "layer", got {per!r}')
    return (2,) if per == "channel" else (1, 2)


def _decoupled(step_without_decay):
    """The decay as a factor on w, applied before the step, as AdamW and Lion have it."""

    def update(w, g, state, lr, weight_decay, step):
        return step_without_decay(_minus(w, lr * weight_decay, w), g, state, lr, 0.0, step)

    return update


def _plus(g: Tensor, weight_decay: Tensor | float, w: Tensor) -> Tensor:
    """g + λw in one pass over memory, which is what an update costs."""
    if isinstance(weight_decay, Tensor):
        return torch.addcmul(g, weight_decay, w)
    return torch.add(g, w, alpha=weight_decay) if weight_decay else g


def _minus(w: Tensor, lr: Tensor | float, step: Tensor) -> Tensor:
    """w − η step in one pass."""
    if isinstance(lr, Tensor):
        return torch.addcmul(w, lr, step, value=-1)
    return torch.add(w, step, alpha=-lr)


def _zeros(count: int) -> Callable[[Tensor], State]:
    return lambda w: tuple(torch.zeros_like(w) for _ in range(count))
