"""The scale exponent of any torch optimizer. Knows `wrapping`, torch.optim."""

import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from normlib.diagnostics.wrapping import local

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


Make = Callable[[list[nn.Parameter]], Optimizer]


def scale_exponent(make_optimizer: Make, seed: int = 0) -> float:
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
    with a tiny lr it never accepts a curvature and is gradient descent (2). An optimizer with a
    ``train()`` of its own is put into that mode. Chapter 09.

    >>> import torch
    >>> scale_exponent(lambda params: torch.optim.Adam(params, lr=1e-6, eps=1e-30))
    1.0
    >>> scale_exponent(lambda params: torch.optim.SGD(params, lr=1e-6, momentum=0.9))
    2.0
    """
    p, reason = _measured(make_optimizer, seed)
    if reason:
        warnings.warn(f"no scale exponent: {reason}", stacklevel=2)
    return p


def _measured(
    make_optimizer: Make, seed: int = 0, scale: float = 1.0, gradient: float = 1.0
) -> tuple[float, str]:
    """p, or nan and the reason."""
    turned = [_turned(make_optimizer, scale * a, seed, gradient=gradient) for a in (1.0, 4.0, 16.0)]
    if not all(np.isfinite(angles).all() for angles in turned):
        return math.nan, "the weights did not stay finite; choose a smaller lr"
    if max(sum(angles) for angles in turned) > 0.1:
        reason = "the weights turned by more than 0.1 radian in 20 steps; choose a smaller lr"
        return math.nan, reason
    if not all(any(angles[10:]) for angles in turned):
        return math.nan, "the weights did not turn; choose a larger lr or eps"
    first, second, third = (math.log(math.hypot(*angles[10:]), 4) for angles in turned)
    near, far = first - second, second - third
    if abs(near - far) <= 0.02:
        return round(far, 3) + 0.0, ""  # no -0.0
    return math.nan, f"it is {near:.2f} from w to 4 w and {far:.2f} from 4 w to 16 w: no power law"


def _turned(
    make_optimizer: Make, scale: float, seed: int, steps: int = 20, gradient: float = 1.0
) -> list[float]:
    """The angle of each step from scale · w₀."""
    random = torch.Generator().manual_seed(seed)
    a, b, w = (torch.randn(6, 6, generator=random, dtype=torch.float64) for _ in range(3))
    weights = nn.Parameter(w * scale)
    optimizer = made(make_optimizer, weights)

    def closure() -> Tensor:
        with torch.enable_grad():
            optimizer.zero_grad()
            unit = weights / weights.norm()
            # positive, as losses are: some rules divide it by the gradient
            loss = gradient * (12 + (a * unit + b * unit**2).sum())
            loss.backward()
        return loss

    # Some need a closure, others have no place for one.
    step: Callable[..., Any] = optimizer.step
    takes = "closure" in inspect.signature(step).parameters
    angles = []
    for _ in range(steps):
        closure()
        before = weights.detach().clone()
        try:
            step(*[closure] * takes)
        except RuntimeError as error:
            raise ValueError(
                f"{type(optimizer).__name__} cannot step on a dense 6 × 6 matrix ({error}), as "
                "scale_exponent expects; give its exponent by hand"
            ) from None
        along, across = split(before.ravel(), weights.detach().ravel(), before.norm())
        angles.append(math.atan2(float(across), float(before.norm() + along)))
    return angles


def made(make_optimizer: Make, weights: nn.Parameter) -> Optimizer:
    """An optimizer of these weights, ready to step."""
    optimizer = make_optimizer([weights])
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"make_optimizer must return a torch optimizer, got {type(optimizer).__name__}"
        )
    ready = getattr(optimizer, "train", None)
    if callable(ready):
        ready()
    return optimizer


def split(old: Tensor, new: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
    """A step's length along a vector of a known norm, with its sign, and across.

    From the step itself: the cosine of a small angle would be lost in rounding.
    """
    step = new - old
    along = torch.dot(step, old) / norm
    step.addcmul_(old, along / norm, value=-1)
    return along, step.norm()


def taken(optimizer: Optimizer) -> list[str]:
    """Names of the settings that its class takes."""
    return [name for name in inspect.signature(type(optimizer)).parameters if name != "params"]


def like(optimizer: Optimizer, group: Mapping[str, Any], **changes: Any) -> Make:
    """Make fresh ones of the same class, with the settings of a group but for some changes."""
    kind = type(optimizer)
    settings = {**optimizer.defaults, **group, **changes}
    settings = {name: settings[name] for name in taken(optimizer) if name in settings}

    def make(params: list[nn.Parameter]) -> Optimizer:
        fresh = kind(params, **settings)
        for own in fresh.param_groups:  # a constructor may divide the lr that it is given
            own |= {n: settings[n] for n in ("lr", "weight_decay") if n in own and n in settings}
        return fresh

    return make


def exponent_of(optimizer: Optimizer, group: Mapping[str, Any]) -> tuple[float, str]:
    """p under the settings of a group, and why there is none (then it is nan).

    Known, or measured: with weights of the size of the group's, since LAMB may clip by that; with a
    tiny decay where the group has one, since LAMB and LARS adapt the rate only there; and with the
    group's lr, since Prodigy and others multiply a rate of their own by it. If that shows no power
    law, perhaps since it turns weights too far, with a small lr, and the group's must bear it out.
    """
    if torch_rule(optimizer) in EXPONENTS:
        return EXPONENTS[torch_rule(optimizer)], ""
    decay = 1e-9 if group.get("weight_decay") else 0.0
    lr = group.get("lr") or optimizer.defaults.get("lr")  # a schedule may start at 0
    scale = _size(group["params"]) / 4

    def make(lr: float | None) -> Make:
        return like(optimizer, group, weight_decay=decay, lr=lr)

    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            p, reason = _measured(make(lr), scale=scale)
            if reason:
                p, reason = (0.0, "") if lr is None else _measured(make(1e-6 * scale), scale=scale)
            reason = reason or _contradicted(p, make, lr, scale)
    except Exception as error:  # whatever a stranger's constructor may do
        reason = str(error).split("\n")[0]
    if not reason:
        return p, ""
    return math.nan, (
        f"effective_lr will be nan: the scale exponent of {type(optimizer).__name__} could not be "
        f"measured ({reason}); give it as exponent="
    )


def _size(params: Iterable[Tensor]) -> float:
    """Root mean square entry of what may be scale-invariant, 1 if there is none."""
    mine = [local(p.detach()).float() for p in params if p.ndim > 1]
    count = sum(w.numel() for w in mine)
    square = sum(float(w.square().sum()) for w in mine)
    return math.sqrt(square / count) if square else 1.0


def _contradicted(
    p: float, make: Callable[[float | None], Make], lr: float | None, scale: float
) -> str:
    """Why (4 w, 4^p lr) is not the same training as (w, lr), or another lr is; "" if all agrees."""

    small, _ = _measured(make(lr and 1e-6 * scale), scale=scale, gradient=1e-4)
    if lr is not None and abs(small - p) > 0.02:
        return f"it is {p:.2f}, and {small:.2f} where gradients are 10,000 times smaller"

    def path(a: float, lr: float | None) -> np.ndarray:
        return np.array(_turned(make(lr), a * scale, 0, 100, gradient=0.01))

    own = path(1.0, lr)

    def same(other: np.ndarray) -> bool:
        return bool(np.abs(own - other).sum() <= 0.02 * own.sum())

    if same(path(4.0, None if lr is None else float(lr) * 4**p)) and not (
        p and same(path(4.0, lr))
    ):
        return ""
    return f"p = {p:g}, but not over 100 steps{'' if lr is None else f' at lr = {lr:g}'}"


def torch_rule(optimizer: Optimizer) -> str:
    """The name of torch's own class that makes the steps, also for a subclass that changes none."""
    kinds = type(optimizer).__mro__
    for i, kind in enumerate(kinds):
        if kind is getattr(torch.optim, kind.__name__, None) and kind is not Optimizer:
            own = {name: value for k in kinds[:i] for name, value in vars(k).items()}
            # Torch wraps the `step` of every class, once it makes one.
            changed = any(
                inspect.unwrap(value) is not inspect.unwrap(getattr(kind, name))
                for name, value in own.items()
                if callable(value) and hasattr(kind, name) and not name.startswith("__")
            )
            return "" if changed else kind.__name__
    return ""
