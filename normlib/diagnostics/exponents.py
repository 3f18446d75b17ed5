"""Scale exponents and formulas of any torch optimizer. Knows torch.optim and `theory`."""

import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from normlib import theory
from normlib.theory import Theory

# p of torch's own optimizers; the tests measure each with `scale_exponent`. Two have
# none: Adadelta has 1 where its eps is small beside the squared gradients and 2 where it is large;
# L-BFGS mixes steps of several kinds.
EXPONENTS = {
    "SGD": 2.0, "ASGD": 2.0,
    "Adagrad": 1.0, "Adam": 1.0, "AdamW": 1.0, "Adamax": 1.0, "NAdam": 1.0, "RAdam": 1.0,
    "RMSprop": 1.0, "Rprop": 1.0, "Muon": 1.0,
    "Adafactor": 0.0,
    "Adadelta": math.nan, "LBFGS": math.nan,
}  # fmt: skip


def scale_exponent(
    make_optimizer: Callable[[list[nn.Parameter]], Optimizer], seed: int = 0
) -> float:
    """Measure p in an optimizer's effective learning rate, lr / ‖w‖^p.

    Trains a 6 × 6 matrix in double precision on a loss that does not depend on its scale, three
    times: from w₀, 4 w₀ and 16 w₀. How the angle per step falls with the scale is p: 2 for SGD,
    1 for Adam, 0 for an optimizer that does not feel the scale of the weights.

    Parameters
    ----------
    make_optimizer : callable
        (list of parameters) -> torch optimizer. Choose a small lr, a small eps and no weight decay
        to measure the rule itself; with a large eps, to see what that does to it.
    seed : int
        Of the loss and of w₀; p should not depend on it.

    Returns
    -------
    float
        p from 4 w₀ against 16 w₀, rounded to 0.001; nan, with a warning that says why, if w₀
        against 4 w₀ says otherwise, the weights do not turn, or turn too far.

    Raises
    ------
    TypeError
        If it makes no torch optimizer.
    ValueError
        If it makes one that cannot step on a dense matrix (SparseAdam).

    Notes
    -----
    The angles are those of steps 10 to 19: RAdam is SGD for its first five. The factors are powers
    of two, which change no bit of what is computed but the exponents; Muon computes in bfloat16,
    and factors like 3 show its rounding. L-BFGS with lr = 1 reaches the minimum at once (nan), and
    with a tiny lr it never accepts a curvature and is gradient descent (2). Chapter 09.

    >>> import torch
    >>> scale_exponent(lambda params: torch.optim.Adam(params, lr=1e-6, eps=1e-30))
    1.0
    >>> scale_exponent(lambda params: torch.optim.SGD(params, lr=1e-6, momentum=0.9))
    2.0
    """
    turned = [_turned(make_optimizer, scale, seed) for scale in (1.0, 4.0, 16.0)]
    reason = None
    if not all(np.isfinite(angles).all() for angles in turned):
        reason = "the weights did not stay finite; choose a smaller lr"
    elif max(sum(angles) for angles in turned) > 0.1:
        reason = "the weights turned by more than 0.1 radian in 20 steps; choose a smaller lr"
    elif not all(any(angles[10:]) for angles in turned):
        reason = "the weights did not turn; choose a larger lr or eps"
    else:
        first, second, third = (math.log(math.hypot(*angles[10:]), 4) for angles in turned)
        near, far = first - second, second - third
        if abs(near - far) <= 0.02:
            return round(far, 3) + 0.0  # no -0.0
        reason = f"it is {near:.2f} from w to 4 w and {far:.2f} from 4 w to 16 w: no power law"
    warnings.warn(f"no scale exponent: {reason}", stacklevel=2)
    return math.nan


def _turned(
    make_optimizer: Callable[[list[nn.Parameter]], Optimizer], scale: float, seed: int
) -> list[float]:
    """The angle of each of 20 steps from scale · w₀."""
    random = torch.Generator().manual_seed(seed)
    a, b, w = (torch.randn(6, 6, generator=random, dtype=torch.float64) for _ in range(3))
    weights = nn.Parameter(w * scale)
    optimizer = make_optimizer([weights])
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"make_optimizer must return a torch optimizer, got {type(optimizer).__name__}"
        )

    def closure() -> Tensor:
        with torch.enable_grad():
            optimizer.zero_grad()
            unit = weights / weights.norm()
            loss = (a * unit + b * unit**2).sum()
            loss.backward()
        return loss

    # Some need a closure, others have no place for one.
    step: Callable[..., Any] = optimizer.step
    takes = "closure" in inspect.signature(step).parameters
    angles = []
    for _ in range(20):
        closure()
        before = weights.detach().clone()
        try:
            step(*[closure] * takes)
        except RuntimeError as error:
            raise ValueError(
                f"{type(optimizer).__name__} cannot step on a dense 6 × 6 matrix ({error}), as "
                "scale_exponent expects; give its exponent by hand"
            ) from None
        angles.append(float(turned_angle(before.ravel(), weights.detach().ravel(), before.norm())))
    return angles


def turned_angle(old: Tensor, new: Tensor, norm: Tensor) -> Tensor:
    """Angle between two vectors, the first of a known norm.

    From the step itself: the cosine of a small angle would be lost in rounding.
    """
    step = new - old
    along = torch.dot(step, old) / norm
    step.addcmul_(old, along / norm, value=-1)
    return torch.atan2(step.norm(), norm + along)


def exponent_of(optimizer: Optimizer) -> float:
    """p of a user's optimizer: known, or measured on a fresh one; nan, with a warning, if not."""
    if _torch_name(optimizer) in EXPONENTS:
        return EXPONENTS[_torch_name(optimizer)]
    make, taken = type(optimizer), inspect.signature(type(optimizer)).parameters
    settings = optimizer.defaults | {"lr": 1e-6, "weight_decay": 0.0}
    settings = {name: value for name, value in settings.items() if name in taken}
    try:
        with torch.random.fork_rng(devices=[]):  # its steps may draw numbers
            return scale_exponent(lambda params: make(params, **settings))
    except Exception as error:  # whatever a stranger's constructor may do
        warnings.warn(
            f"effective_lr will be nan: the scale exponent of {make.__name__} could not be "
            f"measured ({error}); give it as exponent=",
            stacklevel=3,
        )
        return math.nan


def theory_of(optimizer: Optimizer, group: Mapping[str, Any]) -> Theory | None:
    """The formulas of a group of parameters, if there are any."""
    name = _torch_name(optimizer)
    if name == "SGD" and not group["dampening"]:
        return theory.sgd(group["momentum"], group["nesterov"])
    if name in ("Adam", "AdamW") and not group["amsgrad"]:
        decoupled = name == "AdamW" or group.get("decoupled_weight_decay", False)
        return (theory.adamw if decoupled else theory.adam)(group["betas"])
    if name == "RMSprop" and not group["centered"] and not group["momentum"]:
        return theory.rmsprop()
    return None


def _torch_name(optimizer: Optimizer) -> str:
    """The class's name if it is torch's own; a subclass may step otherwise."""
    name = type(optimizer).__name__
    return name if type(optimizer) is getattr(torch.optim, name, None) else ""
