"""Closed formulas for each update rule. Knows mathematics only: no tensors, no networks.

Notation: a scale-invariant weight vector w of `size` d entries has norm r = ‖w‖ and gradient g,
orthogonal to w. Its *unit gradient* is G = r‖g‖, the gradient's norm if w were scaled to norm 1.
λ is `weight_decay` in torch's convention: the gradient gets + λw. All formulas hold for small
lr × weight_decay and gradients that are independent from step to step; `tests/test_theory.py`
compares each with a simulation. Chapter 03 teaches the SGD family, chapter 05 the Adam family.

Momentum is a filter: the step is lr · Σ c_k g_(t−k), with Σ c_k = 1. Its *persistence*
κ = (Σ c_k)² / Σ c_k² says how much farther many steps lead than independent ones of that length:
(1 + β) / (1 − β) for an average with β. Norms feel many steps, an angle is one step's, so at
equilibrium the angle is smaller by √κ than without momentum.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

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
    _timescale: Formula = _unknown
    # of the norm that comes to rest exponentially: p + q, unless the rule has a memory of its own
    _power: float | None = None

    @property
    def power(self) -> float:
        """The power of ‖w‖ that comes to rest exponentially, p + q (4 for SGD, 2 for AdamW)."""
        return self.scale_exponent + self.decay_exponent if self._power is None else self._power

    @property
    def tradeoff_exponent(self) -> float:
        """The κ of a grid at equilibrium, where results depend on log lr + κ log λ alone.

        >>> sgd().tradeoff_exponent, adam().tradeoff_exponent, adamw().tradeoff_exponent
        (1.0, 0.5, 1.0)

        Infinite where log λ alone counts, as for AdamW with `independent` decay.
        """
        if not self.scale_exponent:
            return 0.0
        return self.scale_exponent / self.decay_exponent if self.decay_exponent else math.inf

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
        return self.timescale(lr, weight_decay, gradient, size) / (self.power or math.nan)

    def timescale(
        self,
        lr: float,
        weight_decay: float,
        gradient: float = math.nan,
        size: float = math.nan,
        per_step: float = 1.0,
    ) -> float:
        """Time in which decay alone shrinks the weights by e: how long they remember a step.

        In steps, 1 / (lr · λ) for AdamW; with ``per_step=1 / steps_per_epoch`` in epochs, with
        ``per_step=tokens_per_batch`` in tokens. For decay in the gradient, at equilibrium. The
        norm comes to rest p + q times faster. Parameters as for `equilibrium_norm`.

        Source: Wang and Aitchison 2024 (AdamW as a moving average of its steps).

        >>> round(adamw().timescale(1e-3, 0.1))
        10000
        >>> round(adamw().timescale(1e-3, 0.1, per_step=1 / 500))  # in epochs of 500 steps
        20
        """
        if not weight_decay or not lr:
            return math.inf
        return per_step * self._timescale(lr, weight_decay, gradient, size)

    def next_norm(
        self,
        norm: float,
        lr: float,
        weight_decay: float,
        gradient: float = math.nan,
        size: float = math.nan,
        steps: int = 1,
    ) -> float:
        """‖w‖ after some steps with this lr and λ, from any norm: a schedule, piece by piece.

        With x = (norm over its equilibrium)^(p+q), dx/dt = x^((q−p)/(q+p)) (1 − x) / time. Averages
        that reach far back (β₂) lag behind a quick schedule. Parameters as for `equilibrium_norm`.

        >>> norm = adamw().next_norm(1.0, lr=1e-3, weight_decay=0.1, size=10_000, steps=10_000)
        >>> round(norm, 2), round(adamw().equilibrium_norm(1e-3, 0.1, size=10_000), 2)
        (6.59, 7.07)
        """
        if not lr or not steps:
            return norm
        decay = weight_decay or 1e-12 / lr  # growth without decay is the limit
        rest = self.equilibrium_norm(lr, decay, gradient, size)
        time = self.relaxation_time(lr, decay, gradient, size)
        if not (rest > 0 and time > 0):
            return math.nan
        rho, lag = norm / rest, self.power - 2 * self.scale_exponent
        pieces = steps if lag else 1
        for _ in range(pieces):
            share = -math.expm1(-(steps / pieces) * rho**lag / time)
            rho = (rho**self.power + (1 - rho**self.power) * share) ** (1 / self.power)
        return rest * rho

    def gradient_ratio(
        self, lr: float, weight_decay: float, gradient: float = math.nan, size: float = math.nan
    ) -> float:
        """‖g‖ / ‖w‖ at equilibrium; nan if unknown. It rises as lr falls.

        √(2λ(1−μ)/lr) for SGD with momentum, 2λG / (lr · d) for AdamW. Parameters as for
        `equilibrium_norm`.

        Source: Defazio 2025 for plain SGD; otherwise from `equilibrium_norm`.

        >>> round(sgd(momentum=0.9).gradient_ratio(0.1, 0.01, gradient=3.0), 4)
        0.1414
        """
        norm = self.equilibrium_norm(lr, weight_decay, gradient, size)
        return gradient / norm**2 if norm else math.nan

    def independent(self) -> "Theory":
        """The same rule, if a step takes off λ of the weights and not lr · λ.

        >>> round(adamw().independent().timescale(lr=1e-3, weight_decay=1e-4))
        10000
        """
        return self._with(lambda lr, wd: (lr, wd / lr), self.decay_exponent - self.scale_exponent)

    def _with(
        self, change: Callable[[float, float], tuple[float, float]], decay_exponent: float
    ) -> "Theory":
        """The rule for another meaning of (lr, λ)."""

        def changed(formula: Formula) -> Formula:
            return lambda lr, wd, gradient, size: formula(*change(lr, wd), gradient, size)

        norm, angle, timescale = map(changed, (self._norm, self._angle, self._timescale))
        return Theory(self.scale_exponent, decay_exponent, norm, angle, timescale, self.power)


def sgd(momentum: float = 0.0, nesterov: bool = False) -> Theory:
    """SGD, heavy-ball momentum and Nesterov as torch writes them (decay enters the buffer)."""
    mu = momentum
    boost = 1 + 2 * mu - 2 * mu**3 if nesterov else 1.0

    def norm(lr: float, wd: float, gradient: float, size: float) -> float:
        return (lr * gradient**2 / (wd * (1 - mu) * (2 - lr * wd / (1 + mu)))) ** 0.25

    def angle(lr: float, wd: float, gradient: float, size: float) -> float:
        return math.sqrt(2 * lr * wd * boost / (1 + mu))

    def timescale(lr: float, wd: float, gradient: float, size: float) -> float:
        return (1 - mu) / (lr * wd)

    return Theory(2, 2, norm, angle, timescale)


def adam(betas: tuple[float, float] = (0.9, 0.999)) -> Theory:
    """Adam whose decay is added to the gradient (`torch.optim.Adam`)."""
    return _coupled((1 + betas[0]) / (1 - betas[0]))


def rmsprop() -> Theory:
    """RMSprop with decay added to the gradient: Adam without momentum, if α is close to 1."""
    return adam(betas=(0.0, 0.999))


def adamw(betas: tuple[float, float] = (0.9, 0.999), amsgrad: bool = False) -> Theory:
    """Adam with decoupled decay, multiplied by lr (`torch.optim.AdamW`).

    AMSGrad divides by its largest gradients so far. Then the norm has no formula, but the angle at
    equilibrium is the same: decoupled decay alone sets it.
    """
    kappa = (1 + betas[0]) / (1 - betas[0])
    rule = decoupled(kappa, 1 / math.sqrt(kappa))
    return replace(rule, _norm=_unknown, _power=math.nan) if amsgrad else rule


def nadam(
    betas: tuple[float, float] = (0.9, 0.999),
    momentum_decay: float = 4e-3,
    step: float = math.inf,
    decoupled_weight_decay: bool = False,
) -> Theory:
    """NAdam: Adam that looks ahead, by a μ that grows from β₁/2 to β₁ over thousands of steps."""
    b1, mu = betas[0], betas[0] * (1 - 0.5 * 0.96 ** (momentum_decay * step))
    kappa = 1 / ((1 - mu * b1) ** 2 + (mu * b1) ** 2 * (1 - b1) / (1 + b1))
    return decoupled(kappa, 1 / math.sqrt(kappa)) if decoupled_weight_decay else _coupled(kappa)


def radam(
    betas: tuple[float, float] = (0.9, 0.999),
    step: float = math.inf,
    decoupled_weight_decay: bool = False,
) -> Theory:
    """RAdam: Adam whose rate starts small and comes to lr in some 5 / (1 − β₂) steps.

    Its first few steps are those of momentum; then all formulas are nan.
    """
    last, left = 2 / (1 - betas[1]) - 1, betas[1] ** step
    now = last - (2 * step * left / (1 - left) if left else 0.0)
    ready = (now - 4) * (now - 2) * last / ((last - 4) * (last - 2) * now) if now > 5 else math.nan
    rate = math.sqrt(ready)
    if decoupled_weight_decay:
        return adamw(betas)._with(lambda lr, wd: (lr * rate, wd / rate), 1)
    return adam(betas)._with(lambda lr, wd: (lr * rate, wd), 2)


def lion(betas: tuple[float, float] = (0.9, 0.99)) -> Theory:
    """Lion with decoupled decay; good to about 3 % (the sign is not linear)."""
    b1, b2 = betas
    blend = (1 - b1) ** 2 + b1**2 * (1 - b2) / (1 + b2)
    return decoupled(2 / (math.pi * blend), 1.0)


def muon(
    shape: tuple[int, int],
    momentum: float = 0.95,
    nesterov: bool = True,
    adjust_lr_fn: str | None = None,
    persistence: float | None = None,
    overshoot: float = 1.0,
) -> Theory:
    """Muon as torch has it, with decoupled decay that is multiplied by lr alone.

    Parameters
    ----------
    shape : pair of int
        Of the matrix, output and input: `adjust_lr_fn` multiplies lr by a function of it.
    momentum, nesterov, adjust_lr_fn
        As in `torch.optim.Muon`.
    persistence : float or None
        None: the momentum's own, right for long matrices. For square ones steps are less alike
        than the momentum that they come from; `normlib.track` measures how much.
    overshoot : float
        Root mean square of the update's singular values, 1 if orthogonal; measured there too.
    """
    mu, (rows, columns) = momentum, shape
    first, share = ((1 - mu) * (1 + mu), mu * (1 - mu)) if nesterov else (1 - mu, 1 - mu)
    if persistence is None:
        persistence = 1 / (first**2 + (share * mu) ** 2 / (1 - mu**2))
    factor = {
        "match_rms_adamw": 0.2 * math.sqrt(max(rows, columns)),
        "spectral_unclamped": math.sqrt(rows / columns),
    }.get(adjust_lr_fn or "original", math.sqrt(max(1, rows / columns)))
    return decoupled(persistence, overshoot * factor / math.sqrt(max(rows, columns)))


def decoupled(persistence: float = 1.0, update: float = 1.0) -> Theory:
    """Any rule whose step is −lr · (u + λw), with u that does not feel the scale of w or g.

    Parameters
    ----------
    persistence : float
        κ of the updates u: the sum of their autocorrelations over all lags, 1 if independent.
    update : float
        Root mean square of u's entries.

    Notes
    -----
    The angle is √(2 lr λ / κ) whatever `update` is.

    >>> decoupled(19.0, 19**-0.5).angle(1e-3, 0.1) == adamw((0.9, 0.999)).angle(1e-3, 0.1)
    True
    """

    def norm(lr: float, wd: float, gradient: float, size: float) -> float:
        return update * math.sqrt(lr * persistence * size / (2 * wd))

    def angle(lr: float, wd: float, gradient: float, size: float) -> float:
        return math.sqrt(2 * lr * wd / persistence)

    return Theory(1, 1, norm, angle, lambda lr, wd, gradient, size: 1 / (lr * wd))


def _coupled(persistence: float) -> Theory:
    """Adam's kind, with decay added to the gradient."""

    def norm(lr: float, wd: float, gradient: float, size: float) -> float:
        return (lr * math.sqrt(size) * gradient / (2 * wd)) ** (1 / 3)

    def angle(lr: float, wd: float, gradient: float, size: float) -> float:
        return (2 * lr**2 * wd * size / gradient) ** (1 / 3) / math.sqrt(persistence)

    def timescale(lr: float, wd: float, gradient: float, size: float) -> float:
        return gradient / (lr * wd * math.sqrt(size) * norm(lr, wd, gradient, size))

    return Theory(1, 2, norm, angle, timescale)


def adafactor() -> Theory:
    """Adafactor as torch has it: lr is relative to the weights' norm, and nothing balances it.

    It turns by lr a step (1/√step if that is less). The norm grows by lr²/2 and shrinks by lr · λ
    of itself a step, at every norm: no equilibrium.
    """
    return Theory(0, 0, _unknown, lambda lr, *_: math.atan(lr), lambda lr, wd, *_: 1 / (lr * wd))


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
