"""Which formulas hold for the parameters of an optimizer. Knows `exponents` and `theory`."""

import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from normlib import theory
from normlib.diagnostics.exponents import Make, exponent_of, like, made, torch_rule
from normlib.theory import Theory

# Rows, steps of random gradients, and lags of their autocorrelation; longer if that is too short.
_LENGTHS = ((64, 900, 200), (32, 3000, 700))
_FILLED = 100  # steps until averages are filled


def theory_of(
    optimizer: Optimizer, group: Mapping[str, Any], shape: tuple[int, ...] = (64, 64), step: int = 0
) -> Theory | None:
    """The formulas of a group of parameters, if there are any.

    Closed ones for torch's own rules. For any other whose decay stands beside the gradient's step
    (Lion, Muon, most of other libraries) its own steps under random gradients are measured: how
    large they are, and how alike.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
    group : mapping
        Its settings for these parameters.
    shape : tuple of int
        Of a parameter: how alike Muon's steps are depends on it.
    step : int
        How many steps were made: NAdam's and RAdam's rules change slowly.
    """
    name = torch_rule(optimizer)
    if name == "SGD":
        return None if group["dampening"] else theory.sgd(group["momentum"], group["nesterov"])
    if name in ("Adam", "AdamW"):
        if group.get("decoupled_weight_decay", name == "AdamW"):
            return theory.adamw(group["betas"], group["amsgrad"])
        return None if group["amsgrad"] else theory.adam(group["betas"])
    if name == "NAdam":
        decoupled = group["decoupled_weight_decay"]
        return theory.nadam(group["betas"], group["momentum_decay"], step, decoupled)
    if name == "RAdam":
        return theory.radam(group["betas"], step, group["decoupled_weight_decay"])
    if name == "RMSprop":
        return None if group["centered"] or group["momentum"] else theory.rmsprop()
    if name == "Adafactor":
        return theory.adafactor()
    return None if name not in ("", "Muon") else _measured(optimizer, group, shape)


def _measured(
    optimizer: Optimizer, group: Mapping[str, Any], shape: tuple[int, ...]
) -> Theory | None:
    """The formulas of a rule that is known by its steps alone; None if they do not hold for it."""
    lr = group.get("lr") or optimizer.defaults.get("lr")  # a schedule may have come to 0
    if lr is None:
        return None
    group = {**group, "lr": float(lr)}
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if not abs(exponent_of(optimizer, group)[0] - 1) < 0.02:
                return None
            decay = decay_of(optimizer, group)
            found = _persistence(like(optimizer, group, weight_decay=0.0), shape) if decay else None
    except Exception:  # whatever a stranger's constructor or step may do
        return None
    if found is None:
        return None
    persistence, update = found
    rule = theory.decoupled(persistence, update / group["lr"])
    return rule.independent() if decay == "independent" else rule


def decay_of(optimizer: Optimizer, group: Mapping[str, Any]) -> str:
    """How a step's decay depends on lr: "times lr", "independent", or "" for any other kind.

    Each step must be −lr · (u + λw), or without that lr, with u that is the same for all w.
    """
    random = torch.Generator().manual_seed(0)
    w = torch.randn(6, 6, generator=random, dtype=torch.float64)
    grads = []
    for _ in range(3):
        g = torch.randn(6, 6, generator=random, dtype=torch.float64)
        grads.append(g - (g * w).sum() / w.square().sum() * w)
    rate, decay = group["lr"] / 2, float(group["weight_decay"])
    # At half the lr that it is made with: some rules remember that one.
    make = {wd: like(optimizer, group, weight_decay=wd) for wd in (0.0, decay)}
    free, far, held = (
        list(steps_of(make[wd], start, grads, rate))
        for wd, start in ((0.0, w), (0.0, 4 * w), (decay, w))
    )
    length = torch.stack(free).norm()
    if not (0 < length < math.inf) or (torch.stack(free) - torch.stack(far)).norm() > 1e-6 * length:
        return ""
    for kind, share in (("times lr", rate * decay), ("independent", decay)):
        now, worst = w, 0.0
        for u, step in zip(free, held, strict=True):
            worst = max(worst, float((step - (u - share * now)).norm()))
            now = now + step
        if worst <= 1e-6 * float(w.norm()) * share + 1e-12 * float(w.norm()):
            return kind
    return ""


def steps_of(
    make: Make, start: Tensor, grads: list[Tensor], rate: float | None
) -> Iterator[Tensor]:
    """The steps that an optimizer makes from `start` under given gradients."""
    weights = nn.Parameter(start.clone())
    optimizer = made(make, weights)
    step: Callable[..., Any] = optimizer.step
    takes = "closure" in inspect.signature(step).parameters
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] if rate is None else rate
    for g in grads:
        before = weights.detach().clone()

        def closure(g: Tensor = g) -> Tensor:
            weights.grad = g.clone()
            return torch.zeros(())

        closure()
        step(*[closure] * takes)
        yield weights.detach() - before


def _persistence(make: Make, shape: tuple[int, ...]) -> tuple[float, float] | None:
    """κ of the steps under independent gradients and their root mean square, if κ converges."""
    rows, columns = shape[0], max(1, math.prod(shape[1:]))
    for most, count, lags in _LENGTHS:
        scale = min(1.0, most / min(rows, columns))
        size = [min(4 * most, max(1, round(scale * side))) for side in (rows, columns)]
        if min(rows, columns) == 1:  # a vector: as many entries as a matrix has
            size = [most * most if side > 1 else 1 for side in (rows, columns)]
        random = torch.Generator().manual_seed(0)
        grads = [torch.randn(size, generator=random) for _ in range(_FILLED + count)]
        steps = torch.stack([*steps_of(make, torch.zeros(size), grads, None)][_FILLED:]).flatten(1)
        power = torch.fft.rfft(steps, n=2 * count, dim=0).abs().square().sum(1)
        sums = torch.fft.irfft(power, n=2 * count)[: lags + 1]
        alike = sums / (count - torch.arange(lags + 1)) / (sums[0] / count)
        early, late = (float(part.square().mean().sqrt()) for part in steps.tensor_split(2))
        half, whole = (float(1 + 2 * alike[1:n].sum()) for n in (lags // 2, lags + 1))
        if abs(half - whole) <= 0.03 * whole and abs(early - late) <= 0.03 * late:
            return whole, float(steps.square().mean().sqrt())
    return None
