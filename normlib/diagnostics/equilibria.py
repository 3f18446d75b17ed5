"""How far weights are from equilibrium, by a record of their steps. Knows `theory` and xarray."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import xarray as xr

from normlib.theory import Theory

RECENT = 20  # measured steps to look back
NEAR = 0.8  # fraction of the equilibrium's angle (or its inverse) that counts as being there
ALIGNED = 0.05  # a mean cosine beyond this is no accident and no eps of a normalization


def equilibrium_angle(
    record: xr.Dataset, theories: Sequence[Theory | None], sizes: Sequence[int]
) -> xr.DataArray:
    """At every step the angle at equilibrium with its lr, decay and recent unit gradient."""
    found = xr.full_like(record.lr, math.nan)
    squares = (record.weight_norm * record.gradient_norm) ** 2
    if record.sizes["step"]:
        unit_gradient = squares.rolling(step=RECENT, min_periods=1).mean() ** 0.5
        for i, (known, size) in enumerate(zip(theories, sizes, strict=True)):
            if known is not None:
                angle = np.vectorize(_or_nan(known.angle), otypes=[float])
                found[i] = angle(record.lr[i], record.weight_decay[i], unit_gradient[i], size)
    return found.where(found > 0)  # no lr or no decay


def in_words(recent: xr.Dataset, known: Theory | None, size: int) -> str:
    """How far one parameter is from its equilibrium."""
    lr, decay, norm = (float(recent[n][-1]) for n in ("lr", "weight_decay", "weight_norm"))
    angle = _rms(recent.angle)
    facts = f"angle {angle:.2g} a step, norm {norm:.3g}"
    if not lr or not decay:
        return f"no {'weight decay' if lr else 'learning rate'}, so no equilibrium; {facts}"
    if known is None:
        return f"no formula for the equilibrium of this optimizer; {facts}"
    cosine = float(recent.alignment.mean())
    if abs(cosine) > ALIGNED:
        return (
            f"not scale-invariant (cosine of weights and gradient {cosine:.2f}), so the "
            f"formulas do not hold; {facts}"
        )
    ratio = _rms(recent.angle / recent.equilibrium_angle)
    if not ratio > 0 or math.isinf(ratio):
        return f"no gradient reaches it, so nothing to compare; {facts}"
    there = f"angle {ratio:.2g} of its equilibrium"
    if NEAR <= ratio <= 1 / NEAR:
        return f"{there}: it is there; {facts}"
    unit_gradient = _rms(recent.weight_norm * recent.gradient_norm)
    time = _or_nan(known.relaxation_time)(lr, decay, unit_gradient, size)
    left = max(1.0, float(f"{_steps_to_go(known, ratio, time):.2g}"))
    return f"{there}; about {left:,.0f} steps to go at this lr × weight_decay"


def _rms(values: xr.DataArray) -> float:
    return float((values**2).mean() ** 0.5)


def _or_nan(formula: Callable[..., float]) -> Callable[..., float]:
    """The formula, nan where it has no value (no gradient, lr 0)."""

    def value(*arguments: float) -> float:
        try:
            return formula(*map(float, arguments))
        except (ZeroDivisionError, ValueError):
            return math.nan

    return value


def _steps_to_go(known: Theory, ratio: float, time: float) -> float:
    """Steps until an angle that is `ratio` of its equilibrium is near it.

    With angle ∝ ‖w‖^−p and ρ = ‖w‖ over its equilibrium, x = ρ^(p+q) follows
    dx/dt = ρ^(q−p) (1 − x) / time: exactly exponential for SGD and AdamW, where q = p.
    """
    p, q = known.scale_exponent, known.decay_exponent
    start, end = (a ** (-(p + q) / p) for a in (ratio, NEAR if ratio < 1 else 1 / NEAR))
    log = np.linspace(math.log(abs(start - 1)), math.log(abs(end - 1)), 200)
    x = 1 + math.copysign(1, start - 1) * np.exp(log)
    return -time * float(np.trapezoid(x ** ((p - q) / (p + q)), log))
