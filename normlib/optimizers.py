"""Update rules as frozen values. Knows formulas of steps; nothing of networks, data or losses.

An optimizer moves the weights w of K networks at once. w and its gradient g have shape (K, C, n):
networks, channels (output units), inputs of one channel. `lr` and `weight_decay` are columns that
broadcast against it, (K, 1, 1), so that each network has its own. All follow torch's conventions;
λ is torch's `weight_decay`.
"""

import math
from typing import Any, ClassVar

import attrs
import torch
from attrs import field, frozen
from torch import Tensor

from normlib import theory
from normlib.theory import Theory
from normlib.validation import checked_number, kind, number, one_of

State = tuple[Tensor, ...]
Rate = Tensor | float


@frozen(repr=False)
class Optimizer:
    """One update rule; its fields are the hyperparameters that do not vary over a grid.

    Two of the same class and fields are equal. A rule of your own is a subclass that says which
    way it steps (`direction`) and what is known of it (`theory`): see `book/own_rule.md`.

    Attributes
    ----------
    buffers : int
        How many tensors like w, zero at first, make up the state.
    decoupled : bool
        Whether decay multiplies w before the step, instead of being added to the gradient.
    """

    buffers: ClassVar[int] = 0
    decoupled: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """The class's name, e.g. ``"adam"``; with the fields it identifies the rule."""
        return type(self).__name__.lower()

    @property
    def theory(self) -> Theory:
        """What is known of it on scale-invariant weights."""
        raise NotImplementedError

    @property
    def other(self) -> "Optimizer":
        """What moves parameters that are not scale-invariant; itself, but for `unit_norm`."""
        return self

    def __repr__(self) -> str:
        fields = attrs.asdict(self, recurse=False).items()
        return f"{self.name}({', '.join(f'{name}={value}' for name, value in fields)})"

    def start(self, w: Tensor) -> Tensor:
        """The weights with which training begins: w itself, but for `unit_norm`."""
        return w

    def init(self, w: Tensor) -> State:
        """The state before the first step."""
        return tuple(torch.zeros_like(w) for _ in range(self.buffers))

    def direction(self, g: Tensor, state: State, step: int) -> tuple[Tensor, State]:
        """What is subtracted from w, times lr, and the new state; `step` counts from 1."""
        raise NotImplementedError

    def rate(self, lr: Rate, step: int) -> Rate:
        """The factor of the direction: lr itself, but for Adam's first steps."""
        return lr

    def update(
        self, w: Tensor, g: Tensor, state: State, lr: Rate, weight_decay: Rate, step: int
    ) -> tuple[Tensor, State]:
        """New weights and state, from the gradient without decay."""
        if self.decoupled:
            w = _minus(w, lr * weight_decay, w)
        else:
            g = _plus(g, weight_decay, w)
        direction, state = self.direction(g, state, step)
        return _minus(w, self.rate(lr, step), direction), state


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

    >>> unit_norm(sgd()).start(torch.tensor([[[3.0, 4.0]]]))
    tensor([[[0.6000, 0.8000]]])
    """
    return UnitNorm(optimizer, per)


# The rules themselves ---------------------------------------------------------------------------


def _as_tuple(values: Any) -> Any:
    return tuple(values) if isinstance(values, list) else values


def _betas(_: Any, attribute: "attrs.Attribute[Any]", values: Any) -> None:
    if not isinstance(values, tuple) or len(values) != 2:
        error = ValueError if isinstance(values, tuple) else TypeError
        raise error(f"{attribute.name} must be two numbers in [0, 1), got {values!r}")
    for i, value in enumerate(values):
        checked_number(f"{attribute.name}[{i}]", value, below=1)


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
    betas: tuple[float, float] = field(converter=_as_tuple, validator=_betas)
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
    betas: tuple[float, float] = field(converter=_as_tuple, validator=_betas)
    buffers = 1
    decoupled = True

    @property
    def theory(self) -> Theory:
        return theory.lion(self.betas)

    def direction(self, g: Tensor, state: State, step: int) -> tuple[Tensor, State]:
        (m,), (b1, b2) = state, self.betas
        return torch.lerp(m, g, 1 - b1).sign(), (torch.lerp(m, g, 1 - b2),)


@frozen(repr=False)
class UnitNorm(Optimizer):
    optimizer: Optimizer = field(validator=kind(Optimizer, "an optimizer such as nl.nesterov()"))
    per: str = field(validator=one_of("channel", "layer"))

    @property
    def name(self) -> str:
        return "unit_norm"

    @property
    def theory(self) -> Theory:
        return theory.unit_norm()

    @property
    def other(self) -> Optimizer:
        return self.optimizer.other

    def start(self, w: Tensor) -> Tensor:
        return w / w.norm(dim=(2,) if self.per == "channel" else (1, 2), keepdim=True)

    def init(self, w: Tensor) -> State:
        return self.optimizer.init(w)

    def update(
        self, w: Tensor, g: Tensor, state: State, lr: Rate, weight_decay: Rate, step: int
    ) -> tuple[Tensor, State]:
        w, state = self.optimizer.update(w, g, state, lr, weight_decay, step)
        return self.start(w), state


def _plus(g: Tensor, weight_decay: Rate, w: Tensor) -> Tensor:
    """g + λw in one pass over memory, which is what an update costs."""
    if isinstance(weight_decay, Tensor):
        return torch.addcmul(g, weight_decay, w)
    return torch.add(g, w, alpha=weight_decay) if weight_decay else g


def _minus(w: Tensor, lr: Rate, step: Tensor) -> Tensor:
    """w − η step in one pass."""
    if isinstance(lr, Tensor):
        return torch.addcmul(w, lr, step, value=-1)
    return torch.add(w, step, alpha=-lr)
