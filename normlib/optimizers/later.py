"""Weights held at a norm, and rules that came after the paper. Knows the steps of other rules."""

import torch
from attrs import field, frozen
from torch import Tensor

from normlib import theory
from normlib.optimizers.rule import Optimizer, Rate, State, minus, plus
from normlib.optimizers.torchs import AdamW, Momentum
from normlib.theory import Theory
from normlib.validation import kind, number, one_of


def unit_norm(optimizer: Optimizer, per: str = "channel") -> Optimizer:
    """The paper's normalized update: after every step, scale-invariant weights go back to norm 1.

    Parameters
    ----------
    optimizer : Optimizer
        What makes the step; decay and all. Other parameters follow it unchanged.
    per : {"channel", "layer"}
        Whose norm is 1: each output channel's, as in the paper, or the whole layer's.

    Notes
    -----
    Source: van Laarhoven 2017. Chapter 07.

    >>> from normlib.optimizers import sgd
    >>> unit_norm(sgd()).start(torch.tensor([[[3.0, 4.0]]]))
    tensor([[[0.6000, 0.8000]]])
    """
    return UnitNorm(optimizer, per)


def sphere(optimizer: Optimizer) -> Optimizer:
    """Steps of length η times the norm, after which each layer goes back to its first norm.

    w ← R · (w − ηR u/‖u‖) / ‖w − ηR u/‖u‖‖, with R the norm at the start and u the rule's
    direction, so that η is the angle of a step in radians. λ does not enter: where the norm is
    held there is nothing for decay to do. Other parameters follow the rule itself.

    Parameters
    ----------
    optimizer : Optimizer
        Whose direction is taken, e.g. ``nl.adam()`` or ``nl.muon()``.

    Notes
    -----
    Source: Wen et al., "Hyperball" (arXiv 2606.16899), from its public code. Chapter 12.

    >>> from normlib.optimizers import sgd
    >>> rule, w, g = sphere(sgd()), torch.tensor([[[2.0, 0.0]]]), torch.tensor([[[0.0, 9.0]]])
    >>> w, _ = rule.update(w, g, rule.init(w), lr=0.1, weight_decay=0.0, step=1)
    >>> [round(float(x), 4) for x in (w.norm(), torch.atan2(-w[0, 0, 1], w[0, 0, 0]).tan())]
    [2.0, 0.1]
    """
    return Sphere(optimizer)


def projected(optimizer: Optimizer) -> Optimizer:
    """Steps without their part along the weights, so that momentum does not lengthen them.

    w ← (1 − ηλ)w − η(u − ŵ(ŵ·u)), with u the rule's direction and ŵ each output channel's
    direction. Decay is decoupled. Other parameters follow the rule itself.

    Parameters
    ----------
    optimizer : Optimizer
        Whose direction is taken: ``nl.momentum()`` gives SGDP, ``nl.adam()`` AdamP.

    Notes
    -----
    Source: Heo et al. 2021 (arXiv 2006.08217), from its public code, which guesses by a threshold
    which weights are scale-invariant; here that is known. Chapter 14.

    >>> from normlib.optimizers import sgd
    >>> rule, w, g = projected(sgd()), torch.tensor([[[2.0, 0.0]]]), torch.tensor([[[9.0, 3.0]]])
    >>> rule.update(w, g, rule.init(w), lr=0.5, weight_decay=0.0, step=1)[0]
    tensor([[[ 2.0000, -1.5000]]])
    """
    return Projected(optimizer)


def cautious(optimizer: Optimizer) -> Optimizer:
    """Decay only of those entries that the step shrinks, too: w ← w − η(u + λ[u·w ≥ 0]w).

    Parameters
    ----------
    optimizer : Optimizer
        One whose decay is decoupled, such as ``nl.adamw()``.

    Raises
    ------
    ValueError
        If its decay is added to the gradient.

    Notes
    -----
    Source: Chen et al., "Cautious weight decay" (arXiv 2510.12402). Chapter 12.
    """
    return Cautious(optimizer)


def muon(momentum: float = 0.95, nesterov: bool = True) -> Optimizer:
    """Muon as torch has it: momentum's singular values set to about 1, decoupled decay.

    Five steps of Newton–Schulz, in the precision of w (torch takes bfloat16); lr is multiplied by
    √max(1, C/n). γ, β and the head follow AdamW.

    Notes
    -----
    Source: Jordan et al. 2024, as in `torch.optim.Muon`. Chapter 12.
    """
    return Muon(momentum, nesterov)


def lars(momentum: float = 0.9, trust: float = 0.001) -> Optimizer:
    """LARS: each layer's g + λw is multiplied by trust · ‖w‖ / (‖g‖ + λ‖w‖), then momentum.

    γ, β and the head follow momentum alone.

    Notes
    -----
    Source: You, Gitman and Ginsburg 2017 (arXiv 1708.03888), the rate outside the buffer as in the
    library timm. Chapter 12.
    """
    return LARS(momentum, trust)


# The rules themselves ---------------------------------------------------------------------------


@frozen(repr=False)
class Around(Optimizer):
    """A rule around another one, which moves all other parameters by itself."""

    optimizer: Optimizer = field(validator=kind(Optimizer, "an optimizer such as nl.nesterov()"))

    @property
    def other(self) -> Optimizer:
        return self.optimizer.other

    def init(self, w: Tensor) -> State:
        return self.optimizer.init(w)


@frozen(repr=False)
class UnitNorm(Around):
    per: str = field(validator=one_of("channel", "layer"))

    @property
    def name(self) -> str:
        return "unit_norm"

    @property
    def theory(self) -> Theory:
        return theory.unit_norm()

    def start(self, w: Tensor) -> Tensor:
        return w / w.norm(dim=(2,) if self.per == "channel" else (1, 2), keepdim=True)

    def update(
        self, w: Tensor, g: Tensor, state: State, lr: Rate, weight_decay: Rate, step: int
    ) -> tuple[Tensor, State]:
        w, state = self.optimizer.update(w, g, state, lr, weight_decay, step)
        return self.start(w), state


@frozen(repr=False)
class Sphere(Around):
    @property
    def theory(self) -> Theory:
        return Theory(0, 0)

    def init(self, w: Tensor) -> State:
        return (_norm(w), *self.optimizer.init(w))

    def update(
        self, w: Tensor, g: Tensor, state: State, lr: Rate, weight_decay: Rate, step: int
    ) -> tuple[Tensor, State]:
        radius, inner = state[0], state[1:]
        u, inner = self.optimizer.direction(g, inner, step)
        # A gradient of exactly zero has no direction: then nothing moves.
        w = w - lr * radius * u / _norm(u).clamp(min=1e-30)
        return radius * w / _norm(w), (radius, *inner)


@frozen(repr=False)
class Projected(Around):
    decoupled = True

    @property
    def theory(self) -> Theory:
        of = self.optimizer.theory
        return Theory(of.scale_exponent, of.scale_exponent)

    def update(
        self, w: Tensor, g: Tensor, state: State, lr: Rate, weight_decay: Rate, step: int
    ) -> tuple[Tensor, State]:
        u, state = self.optimizer.direction(g, state, step)
        share = (w * u).sum(2, keepdim=True) / w.square().sum(2, keepdim=True).clamp(min=1e-30)
        kept = minus(w, lr * weight_decay, w)
        return minus(kept, self.optimizer.rate(lr, step), u - share * w), state


@frozen(repr=False)
class Cautious(Around):
    decoupled = True

    def __attrs_post_init__(self) -> None:
        if not self.optimizer.decoupled:
            raise ValueError(
                f"cautious decay needs a rule whose decay is decoupled, such as nl.adamw(); "
                f"that of {self.optimizer} is added to the gradient"
            )

    @property
    def theory(self) -> Theory:
        of = self.optimizer.theory
        return Theory(of.scale_exponent, of.decay_exponent)

    def update(
        self, w: Tensor, g: Tensor, state: State, lr: Rate, weight_decay: Rate, step: int
    ) -> tuple[Tensor, State]:
        u, state = self.optimizer.direction(g, state, step)
        kept = minus(w, lr * weight_decay, w * (u * w >= 0))
        return minus(kept, self.optimizer.rate(lr, step), u), state


@frozen(repr=False)
class Muon(Optimizer):
    momentum: float = field(validator=number(below=1))
    nesterov: bool = field(validator=kind(bool, "True or False"))
    buffers = 1
    decoupled = True

    @property
    def theory(self) -> Theory:
        return Theory(1, 1)  # the rest depends on the shape: `theory.muon`

    @property
    def other(self) -> Optimizer:
        return AdamW((0.9, 0.999), 1e-8)

    def direction(self, g: Tensor, state: State, step: int) -> tuple[Tensor, State]:
        buffer = torch.lerp(state[0], g, 1 - self.momentum)
        u = torch.lerp(g, buffer, self.momentum) if self.nesterov else buffer
        channels, inputs = u.shape[1:]
        return max(1, channels / inputs) ** 0.5 * _orthogonal(u), (buffer,)


@frozen(repr=False)
class LARS(Momentum):
    trust: float = field(validator=number())

    @property
    def theory(self) -> Theory:
        return Theory(0, 2)

    @property
    def other(self) -> Optimizer:
        return Momentum(self.momentum)

    def update(
        self, w: Tensor, g: Tensor, state: State, lr: Rate, weight_decay: Rate, step: int
    ) -> tuple[Tensor, State]:
        decayed, norm = plus(g, weight_decay, w), _norm(w)
        ratio = self.trust * norm / (_norm(g) + weight_decay * norm).clamp(min=1e-30)
        u, state = self.direction(ratio * decayed, state, step)
        return minus(w, lr, u), state


def _norm(w: Tensor) -> Tensor:
    """Of each network's layer, (K, 1, 1)."""
    return w.norm(dim=(1, 2), keepdim=True)


def _orthogonal(u: Tensor) -> Tensor:
    """Matrices with singular values near 1: five steps of Newton–Schulz, as torch makes them."""
    high = u.shape[1] > u.shape[2]
    x = u.transpose(1, 2) if high else u
    x = x / _norm(x).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.transpose(1, 2) if high else x
