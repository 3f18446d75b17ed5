"""The update rules that torch has, and Lion. Knows their steps; nothing of networks or losses."""

import math

import torch
from attrs import field, frozen
from torch import Tensor

from normlib import theory
from normlib.optimizers.rule import Optimizer, Rate, State, as_tuple, two_fractions
from normlib.theory import Theory
from normlib.validation import number


def sgd() -> Optimizer:
    """Plain gradient descent on minibatches, w ← w − η(g + λw). Chapter 00.

    >>> w, g = torch.ones(1, 1, 2), torch.full((1, 1, 2), 0.5)
    >>> sgd().update(w, g, (), lr=0.1, weight_decay=1.0, step=1)[0]
    tensor([[[0.8500, 0.8500]]])
    >>> sgd() == sgd()
    True
    """
    return SGD()


def momentum(momentum: float = 0.9) -> Optimizer:
    """Heavy-ball momentum, b ← μb + g + λw, w ← w − ηb (torch: no dampening). Chapter 03."""
    return Momentum(momentum)


def nesterov(momentum: float = 0.9) -> Optimizer:
    """Nesterov momentum as torch has it, w ← w − η(g + λw + μb). Chapters 03 and 04."""
    return Nesterov(momentum)


def adam(betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> Optimizer:
    """Adam with L2: the decay is added to the gradient and divided with it. Chapter 05.

    Raises
    ------
    ValueError
        If a beta lies outside [0, 1) or eps is negative (so for every rule of this family).
    TypeError
        If one is no number.
    """
    return Adam(betas, eps)


def adamw(betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> Optimizer:
    """AdamW: w ← (1 − ηλ)w first, then Adam's step without decay. Chapter 05."""
    return AdamW(betas, eps)


def rmsprop(alpha: float = 0.99, eps: float = 1e-8) -> Optimizer:
    """RMSprop with L2, as torch has it (not centred, no momentum). Chapter 05."""
    return RMSprop(alpha, eps)


def adagrad(eps: float = 1e-10) -> Optimizer:
    """AdaGrad with L2: divides by the root of the sum of all squared gradients. Chapter 05."""
    return Adagrad(eps)


def adadelta(rho: float = 0.9, eps: float = 1e-6) -> Optimizer:
    """Adadelta with L2: its step has the unit of w. Chapter 05."""
    return Adadelta(rho, eps)


def lion(betas: tuple[float, float] = (0.9, 0.99)) -> Optimizer:
    """Lion: the sign of a blend of gradient and average, decoupled decay (Chen et al. 2023)."""
    return Lion(betas)


# The rules themselves ---------------------------------------------------------------------------


@frozen(repr=False)
class SGD(Optimizer):
    @property
    def theory(self) -> Theory:
        return theory.sgd()

    def direction(self, g: Tensor, state: State, step: int) -> tuple[Tensor, State]:
        return g, state


@frozen(repr=False)
class Momentum(Optimizer):
    momentum: float = field(validator=number(below=1))
    buffers = 1

    @property
    def theory(self) -> Theory:
        return theory.sgd(self.momentum)

    def direction(self, g: Tensor, state: State, step: int) -> tuple[Tensor, State]:
        buffer = torch.add(g, state[0], alpha=self.momentum)
        return buffer, (buffer,)


@frozen(repr=False)
class Nesterov(Momentum):
    @property
    def theory(self) -> Theory:
        return theory.sgd(self.momentum, nesterov=True)

    def direction(self, g: Tensor, state: State, step: int) -> tuple[Tensor, State]:
        buffer, state = super().direction(g, state, step)
        return torch.add(g, buffer, alpha=self.momentum), state


@frozen(repr=False)
class Adam(Optimizer):
    betas: tuple[float, float] = field(converter=as_tuple, validator=two_fractions)
    eps: float = field(validator=number())
    buffers = 2

    @property
    def theory(self) -> Theory:
        return theory.adam(self.betas)

    def rate(self, lr: Rate, step: int) -> Rate:
        return lr / (1 - self.betas[0] ** step)

    def direction(self, g: Tensor, state: State, step: int) -> tuple[Tensor, State]:
        (m, v), (b1, b2) = state, self.betas
        m = torch.lerp(m, g, 1 - b1)
        v = torch.addcmul(b2 * v, g, g, value=1 - b2)
        root = torch.add(self.eps, v.sqrt(), alpha=1 / math.sqrt(1 - b2**step))
        return m / root, (m, v)


@frozen(repr=False)
class AdamW(Adam):
    decoupled = True

    @property
    def theory(self) -> Theory:
        return theory.adamw(self.betas)


@frozen(repr=False)
class RMSprop(Optimizer):
    alpha: float = field(validator=number(below=1))
    eps: float = field(validator=number())
    buffers = 1

    @property
    def theory(self) -> Theory:
        return theory.rmsprop()

    def direction(self, g: Tensor, state: State, step: int) -> tuple[Tensor, State]:
        v = torch.addcmul(self.alpha * state[0], g, g, value=1 - self.alpha)
        return g / (v.sqrt() + self.eps), (v,)


@frozen(repr=False)
class Adagrad(Optimizer):
    eps: float = field(validator=number())
    buffers = 1

    @property
    def theory(self) -> Theory:
        return theory.adagrad()

    def direction(self, g: Tensor, state: State, step: int) -> tuple[Tensor, State]:
        total = torch.addcmul(state[0], g, g)
        return g / (total.sqrt() + self.eps), (total,)


@frozen(repr=False)
class Adadelta(Optimizer):
    rho: float = field(validator=number(below=1))
    eps: float = field(validator=number())
    buffers = 2

    @property
    def theory(self) -> Theory:
        return theory.adadelta()

    def direction(self, g: Tensor, state: State, step: int) -> tuple[Tensor, State]:
        square, moved = state
        square = torch.addcmul(self.rho * square, g, g, value=1 - self.rho)
        delta = (moved + self.eps).sqrt() / (square + self.eps).sqrt() * g
        moved = torch.addcmul(self.rho * moved, delta, delta, value=1 - self.rho)
        return delta, (square, moved)


@frozen(repr=False)
class Lion(Optimizer):
    betas: tuple[float, float] = field(converter=as_tuple, validator=two_fractions)
    buffers = 1
    decoupled = True

    @property
    def theory(self) -> Theory:
        return theory.lion(self.betas)

    def direction(self, g: Tensor, state: State, step: int) -> tuple[Tensor, State]:
        (m,), (b1, b2) = state, self.betas
        return torch.lerp(m, g, 1 - b1).sign(), (torch.lerp(m, g, 1 - b2),)
