"""How far weights are from equilibrium, by a record of their steps. Knows `theory` and xarray."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from normlib.theory import Theory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RECENT = 20  # measured steps to look back
NEAR = 0.8  # fraction of the equilibrium's angle (or its inverse) that counts as being there
ALIGNED = 0.05  # a mean cosine beyond this is no accident and no eps of a normalization


def equilibrium_angle(
    record: xr.Dataset, rules: Sequence[Theory | None], sizes: Sequence[float]
) -> xr.DataArray:
    """At every step the angle at equilibrium with its lr, decay and recent unit gradient."""
    found = _by_formula("angle", record, rules, sizes)
    return found.where(found > 0)  # no lr or no decay


def decay_rate(
    record: xr.Dataset, rules: Sequence[Theory | None], sizes: Sequence[float]
) -> xr.DataArray:
    """The share c of the weights that decay takes off in a step: 0 without, nan if unknown."""
    found = 1 / _by_formula("timescale", record, rules, sizes)
    return found.where((record.weight_decay != 0) & (record.lr != 0), 0.0)


def _by_formula(
    name: str, record: xr.Dataset, rules: Sequence[Theory | None], sizes: Sequence[float]
) -> xr.DataArray:
    found = xr.full_like(record.lr, math.nan)
    squares = (record.weight_norm * record.gradient_norm) ** 2
    if record.sizes["step"]:
        unit_gradient = squares.rolling(step=RECENT, min_periods=1).mean() ** 0.5
        for i, (rule, size) in enumerate(zip(rules, sizes, strict=True)):
            if rule is not None:
                value = np.vectorize(_or_nan(getattr(rule, name)), otypes=[float])
                found[i] = value(record.lr[i], record.weight_decay[i], unit_gradient[i], size)
    return found


def in_words(recent: xr.Dataset, known: Theory | None, size: float) -> str:
    """How far one parameter is from its equilibrium."""
    lr, decay, norm = (float(recent[n][-1]) for n in ("lr", "weight_decay", "weight_norm"))
    angle = _rms(recent.angle)
    facts = f"angle {angle:.2g} a step, norm {norm:.3g}"
    if not lr or not decay:
        return f"no {'weight decay' if lr else 'learning rate'}, so no equilibrium; {facts}"
    if math.isnan(lr + decay):
        return f"its tensors have several lr or weight decays, so no one equilibrium; {facts}"
    if known is not None and not known.scale_exponent:
        return (
            f"a step is relative to the norm, so no equilibrium: it turns by about {lr:.2g} a step "
            f"at any norm; {facts}"
        )
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
    if not known.power > 0:
        return f"{there}; how long the way is depends on the largest gradient so far; {facts}"
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
    p, q = known.scale_exponent, known.power - known.scale_exponent
    start, end = (a ** (-(p + q) / p) for a in (ratio, NEAR if ratio < 1 else 1 / NEAR))
    log = np.linspace(math.log(abs(start - 1)), math.log(abs(end - 1)), 200)
    x = 1 + math.copysign(1, start - 1) * np.exp(log)
    return -time * float(np.trapezoid(x ** ((p - q) / (p + q)), log))


def why_gradients(record: xr.Dataset, rule: Theory | None, size: float) -> str:
    """Why one parameter's gradient is larger or smaller than it was: ‖g‖ = G / ‖w‖."""
    first, last = record.isel(step=slice(RECENT)), record.isel(step=slice(-RECENT, None))
    g, r = (_rms(last[n]) / _rms(first[n]) for n in ("gradient_norm", "weight_norm"))
    if not g > 0 or math.isinf(g):
        return "no gradient reaches it"
    facts = f"gradient norm × {g:.2g} since its first steps"
    cosine = float(last.alignment.mean())
    if abs(cosine) > ALIGNED:
        return f"{facts}; not scale-invariant, so its norm need not go with 1/‖w‖"
    facts += f": × {1 / r:.2g} since ‖w‖ is × {r:.2g}, × {g * r:.2g} from the unit gradient"
    lr, decay = (float(last[name][-1]) for name in ("lr", "weight_decay"))
    unit_gradient = _rms(last.weight_norm * last.gradient_norm)
    if rule is None or not lr or not decay:
        return facts
    ratio = _or_nan(rule.gradient_ratio)(lr, decay, unit_gradient, size)
    if math.isnan(ratio):
        return facts
    there = _rms(last.gradient_norm / last.weight_norm)
    return f"{facts}; ‖g‖/‖w‖ is {there:.2g}, at equilibrium with this lr it would be {ratio:.2g}"


def drawn(record: xr.Dataset, names: Sequence[str]) -> "Figure":
    """The angles of some parameters beside those at equilibrium."""
    import matplotlib.pyplot as plt  # only who draws needs it

    figure, axes = plt.subplots()
    few = len(names) <= 8
    for i, name in enumerate(names):
        colour = f"C{i}" if few else plt.get_cmap("viridis")(i / (len(names) - 1))
        one = record.sel(parameter=name)
        label = name if few or i in (0, len(names) - 1) else None
        axes.plot(one.step, one.angle, color=colour, lw=1, label=label)
        axes.plot(one.step, one.equilibrium_angle, color=colour, ls="--", lw=1)
    axes.plot([], [], "k--", lw=1, label="at equilibrium")
    axes.set(xlabel="step", ylabel="angle per step, radians", yscale="log")
    axes.legend(fontsize="small")
    return figure
