"""What every update rule is: a frozen value. Knows formulas of steps; nothing of networks.

An optimizer moves the weights w of K networks at once. w and its gradient g have shape (K, C, n):
networks, channels (output units), inputs of one channel. `lr` and `weight_decay` are columns that
broadcast against it, (K, 1, 1), so that each network has its own. All follow torch's conventions;
λ is torch's `weight_decay`.
"""

from typing import Any, ClassVar

import attrs
import torch
from attrs import frozen
from torch import Tensor

from normlib.theory import Theory
from normlib.validation import checked_number

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
            w = minus(w, lr * weight_decay, w)
        else:
            g = plus(g, weight_decay, w)
        direction, state = self.direction(g, state, step)
        return minus(w, self.rate(lr, step), direction), state


def as_tuple(values: Any) -> Any:
    return tuple(values) if isinstance(values, list) else values


def two_fractions(_: Any, attribute: "attrs.Attribute[Any]", values: Any) -> None:
    if not isinstance(values, tuple) or len(values) != 2:
        error = ValueError if isinstance(values, tuple) else TypeError
        raise error(f"{attribute.name} must be two numbers in [0, 1), got {values!r}")
    for i, value in enumerate(values):
        checked_number(f"{attribute.name}[{i}]", value, below=1)


def plus(g: Tensor, weight_decay: Rate, w: Tensor) -> Tensor:
    """g + λw in one pass over memory, which is what an update costs."""
    if isinstance(weight_decay, Tensor):
        return torch.addcmul(g, weight_decay, w)
    return torch.add(g, w, alpha=weight_decay) if weight_decay else g


def minus(w: Tensor, lr: Rate, step: Tensor) -> Tensor:
    """w − η step in one pass."""
    if isinstance(lr, Tensor):
        return torch.addcmul(w, lr, step, value=-1)
    return torch.add(w, step, alpha=-lr)
