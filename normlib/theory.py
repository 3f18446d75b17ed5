"""Closed formulas for each update rule. Knows mathematics only: no tensors, no networks.

Notation: a scale-invariant weight vector w of `size` d entries has norm r = ‖w‖ and gradient g,
orthogonal to w. Its *unit gradient* is G = r‖g‖, the gradient's norm if w were scaled to norm 1.
λ is `weight_decay` in torch's convention: the gradient gets + λw. All formulas hold for small
lr × weight_decay and gradients that are independent from step to step; `tests/test_theory.py`
compares each with a simulation. Chapter 03 teaches the SGD family, chapter 05 the Adam family.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

Formula = Callable[[float, float, float, float], float]


def _unknown(*_: float) -> float:
    return math.nan


@dataclass(frozen=True)
class Theory:
    """What is known of one update rule acting on scale-invariant weights.

    Attributes
    ----------
    scale_exponent : float
        p in the effective learning rate lr / ‖w‖^p: 2 for the SGD family, 1 for Adam.
    decay_exponent : float
        q in the exact symmetry (w, lr, λ) → (aw, a^p lr, a^−q λ), which leaves every function
        along the training unchanged (optimizer ε → 0).
    """

    scale_exponent: float
    decay_exponent: float
    _norm: Formula = _unknown
    _angle: Formula = _unknown
    _time: Formula = _unknown

    @property
    def tradeoff_exponent(self) -> float:
        """κ: on an (lr, λ) grid at equilibrium, results depend on log lr + κ log λ alone.

        >>> sgd().tradeoff_exponent, adam().tradeoff_exponent, adamw().tradeoff_exponent
        (1.0, 0.5, 1.0)
        """
        return self.scale_exponent / self.decay_exponent if self.scale_exponent else 0.0

    def effective_lr(self, lr: float, norm: float) -> float:
        """lr / ‖w‖^p, the learning rate that the direction of w feels (per unit gradient).

        Source: van Laarhoven 2017 for SGD and Adam. Chapter 03.

        >>> sgd().effective_lr(0.1, norm=10.0)
        0.001
        """
        return lr / norm**self.scale_exponent

    def symmetry(self, a: float) -> tuple[float, float]:
        """Factors of (lr, λ) that cancel a rescaling w → aw exactly.

        >>> sgd().symmetry(10.0)
        (100.0, 0.01)
        """
        return a**self.scale_exponent, a**-self.decay_exponent

    def equilibrium_norm(
        self, lr: float, weight_decay: float, gradient: float = math.nan, size: float = math.nan
    ) -> float:
        """‖w‖ at which growth by gradients and shrinking by decay balance; nan if unknown.

        Parameters
        ----------
        lr, weight_decay : float
            Without decay there is no equilibrium: the norm and the time are infinite.
        gradient : float
            Unit gradient G = ‖w‖‖g‖; not used by AdamW and Lion.
        size : float
            Number of entries d of w; not used by the SGD family.

        Notes
        -----
        Sources: Wan et al. 2021, theorems 1 and 2 (SGD, momentum); Kosson et al. 2024 (AdamW,
        Lion); the constant for Adam with L2 is derived in `book/proofs.md`. Chapters 03 and 05.

        >>> round(sgd(momentum=0.9).equilibrium_norm(0.1, 0.01, gradient=1.0), 3)
        2.659
        """
        return self._norm(lr, weight_decay, gradient, size) if weight_decay else math.inf

    def angle(
        self, lr: float, weight_decay: float, gradient: float = math.nan, size: float = math.nan
    ) -> float:
        """Root mean square angle (radians) that w turns per step at equilibrium; nan if unknown.

        Parameters as for `equilibrium_norm`. Chapters 03 and 05.

        >>> round(sgd().angle(0.1, 0.01), 4)
        0.0447
        """
        return self._angle(lr, weight_decay, gradient, size)

    def relaxation_time(
        self, lr: float, weight_decay: float, gradient: float = math.nan, size: float = math.nan
    ) -> float:
        """Steps in which a small deviation of ‖w‖ from equilibrium falls by e; nan if unknown.

        Parameters as for `equilibrium_norm`. Chapter 03.

        >>> round(sgd(momentum=0.9).relaxation_time(0.1, 0.01))
        25
        """
        return self._time(lr, weight_decay, gradient, size) if weight_decay else math.inf


def sgd(momentum: float = 0.0, nesterov: bool = False) -> Theory:
    """SGD, heavy-ball momentum and Nesterov as torch writes them (decay enters the buffer)."""
    mu = momentum
    boost = 1 + 2 * mu - 2 * mu**3 if nesterov else 1.0

    def norm(lr: float, wd: float, gradient: float, size: float) -> float:
        return (lr * gradient**2 / (wd * (1 - mu) * (2 - lr * wd / (1 + mu)))) ** 0.25

    def angle(lr: float, wd: float, gradient: float, size: float) -> float:
        return math.sqrt(2 * lr * wd * boost / (1 + mu))

    def time(lr: float, wd: float, gradient: float, size: float) -> float:
        return (1 - mu) / (4 * lr * wd)

    return Theory(2, 2, norm, angle, time)


def adam(betas: tuple[float, float] = (0.9, 0.999)) -> Theory:
    """Adam whose decay is added to the gradient (`torch.optim.Adam`)."""
    slow = math.sqrt((1 - betas[0]) / (1 + betas[0]))

    def norm(lr: float, wd: float, gradient: float, size: float) -> float:
        return (lr * math.sqrt(size) * gradient / (2 * wd)) ** (1 / 3)

    def angle(lr: float, wd: float, gradient: float, size: float) -> float:
        return slow * (2 * lr**2 * wd * size / gradient) ** (1 / 3)

    def time(lr: float, wd: float, gradient: float, size: float) -> float:
        r = norm(lr, wd, gradient, size)
        return gradient / (3 * lr * wd * math.sqrt(size) * r)

    return Theory(1, 2, norm, angle, time)


def rmsprop() -> Theory:
    """RMSprop with decay added to the gradient: Adam without momentum, if α is close to 1."""
    return adam(betas=(0.0, 0.999))


def adamw(betas: tuple[float, float] = (0.9, 0.999)) -> Theory:
    """Adam with decoupled decay, multiplied by lr (`torch.optim.AdamW`)."""
    slow = math.sqrt((1 - betas[0]) / (1 + betas[0]))

    def norm(lr: float, wd: float, gradient: float, size: float) -> float:
        return math.sqrt(lr * size / (2 * wd))

    def angle(lr: float, wd: float, gradient: float, size: float) -> float:
        return slow * math.sqrt(2 * lr * wd)

    return Theory(1, 1, norm, angle, _decoupled_time)


def lion(betas: tuple[float, float] = (0.9, 0.99)) -> Theory:
    """Lion with decoupled decay; good to about 3 % (the sign is not linear)."""
    b1, b2 = betas
    blend = math.sqrt((1 - b1) ** 2 + b1**2 * (1 - b2) / (1 + b2))

    def angle(lr: float, wd: float, gradient: float, size: float) -> float:
        return math.sqrt(math.pi * lr * wd) * blend

    def norm(lr: float, wd: float, gradient: float, size: float) -> float:
        return lr * math.sqrt(size) / angle(lr, wd, gradient, size)

    return Theory(1, 1, norm, angle, _decoupled_time)


def adagrad() -> Theory:
    """AdaGrad with decay added to the gradient: symmetry only, its steps shrink for ever."""
    return Theory(1, 2)


def adadelta() -> Theory:
    """Adadelta (ε → 0) with decay added to the gradient, its accumulators scaled along with w.

    The exponent 0 belongs to averages of squared steps that grow with ‖w‖². As torch starts it,
    with both accumulators 0, the first step gets its length from √ε and later ones descend from
    it: then the scale exponent is 1, as for Adam. Chapters 05 and 09.
    """
    return Theory(0, 2)


def unit_norm() -> Theory:
    """Weights put back to norm 1 after each step: the effective rate is lr, whatever λ is."""
    return Theory(0, 0, lambda *_: 1.0)


def _decoupled_time(lr: float, wd: float, gradient: float, size: float) -> float:
    return 1 / (2 * lr * wd)
