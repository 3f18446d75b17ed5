"""Effective learning rates of your model while your own optimizer trains it.

Knows torch.optim; nothing of our networks or sweeps.
"""

import inspect
import math
import numbers
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.optim import Optimizer

from normlib import theory
from normlib.theory import Theory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# p of torch's own optimizers; tests/test_tracking.py measures each with `scale_exponent`. Two have
# none: Adadelta has 1 where its eps is small beside the squared gradients and 2 where it is large;
# L-BFGS mixes steps of several kinds.
_EXPONENTS = {
    "SGD": 2.0, "ASGD": 2.0,
    "Adagrad": 1.0, "Adam": 1.0, "AdamW": 1.0, "Adamax": 1.0, "NAdam": 1.0, "RAdam": 1.0,
    "RMSprop": 1.0, "Rprop": 1.0, "Muon": 1.0,
    "Adafactor": 0.0,
    "Adadelta": math.nan, "LBFGS": math.nan,
}  # fmt: skip
_VARIABLES = {
    "lr": "learning rate of the parameter's group",
    "weight_decay": "weight decay of the parameter's group",
    "weight_norm": "norm of the weights before the step",
    "gradient_norm": "norm of the gradient there, as the optimizer gets it",
    "alignment": "cosine between weights and gradient, 0 if scale-invariant",
    "angle": "angle that the weights turn in the step, radians",
    "effective_lr": "effective learning rate, lr / norm^p",
    "equilibrium_angle": "angle per step at equilibrium, radians (formula)",
}
_MEASURED = tuple(_VARIABLES)[2:6]
_BLOCK = 64  # measured steps between two copies from the device
_RECENT = 20  # measured steps that a summary looks back
_NEAR = 0.8  # fraction of the equilibrium's angle (or its inverse) that counts as being there
_ALIGNED = 0.05  # a mean cosine beyond this is no accident and no eps of a normalization


def track(
    optimizer: Optimizer, model: Any, every: int = 1, exponent: float | None = None
) -> "Tracker":
    """Measure the effective learning rates of a model while its optimizer trains it.

    Nothing in the training loop changes, and no bit of the training: the tracker hangs on the
    optimizer's own step hooks. Attach it before the loop, read it at any time.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
    model : nn.Module or audit
        All parameters of the model with two or more dimensions that the optimizer holds; or the
        result of `nl.audit`, then those that it found scale-invariant. A model in
        DistributedDataParallel is taken as it is: each process holds all weights and, by the time
        of the step, the mean gradient, so every process measures the same; track in one of them.
    every : int
        Measure every so many steps, beginning with the first. A measured step holds one more
        copy of the tracked weights; on a CPU it stays until the tracker is removed.
    exponent : float or None
        p in lr / ‖w‖^p. None: known for torch's optimizers (with an eps that is small beside the
        gradients), else measured by `scale_exponent` on a fresh one of the same class and settings.

    Returns
    -------
    Tracker

    Raises
    ------
    ValueError
        For sharded parameters (FSDP, DTensor), of which a process sees only a part; parameters of
        the optimizer that are not the model's; sparse, complex or integer parameters; nothing to
        track; `every` below 1.

    Notes
    -----
    Works with gradient accumulation, closures, schedules, foreach and fused optimizers, autocast
    and `GradScaler`; steps that the scaler skips are no steps. With a fused optimizer the tracker
    must ask the device for that, once a step; otherwise it fetches results in blocks and does not
    wait. Parameters that join the optimizer later are not tracked. Chapter 09.

    >>> import torch
    >>> model = torch.nn.Linear(3, 2)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with track(optimizer, model) as tracker:
    ...     for _ in range(3):
    ...         optimizer.zero_grad()
    ...         model(torch.ones(4, 3)).square().mean().backward()
    ...         optimizer.step()
    >>> tracker.to_dataset().angle.sizes
    Frozen({'parameter': 1, 'step': 3})
    """
    if not isinstance(optimizer, Optimizer):
        raise ValueError(
            f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}; if it "
            "wraps one, pass that"
        )
    if isinstance(every, bool) or not isinstance(every, numbers.Integral) or every < 1:
        raise ValueError(f"every must be a whole number of at least 1, got {every!r}")
    if exponent is not None and not isinstance(exponent, numbers.Real):
        raise ValueError(f"exponent must be a number or None, got {exponent!r}")
    chosen = _tracked(optimizer, model)
    if exponent is None:
        exponent = _exponent(optimizer)
    return Tracker(optimizer, chosen, int(every), float(exponent))


def _tracked(optimizer: Optimizer, model: Any) -> dict[str, nn.Parameter]:
    """The parameters to track by name, once it is sure that they can be."""
    audited = None
    if not isinstance(model, nn.Module):
        model, audited = getattr(model, "model", None), getattr(model, "invariant", None)
        if not isinstance(model, nn.Module) or audited is None:
            raise ValueError("model must be an nn.Module or the result of nl.audit")
        audited = {_plain(name) for name in audited}
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    named = {_plain(name): p for name, p in model.named_parameters()}
    # FSDP's two generations; by name, since their modules are slow to import.
    wrapped = any(type(m).__name__ == "FullyShardedDataParallel" for m in model.modules())
    if wrapped or any(hasattr(p, "placements") for p in named.values()):
        raise ValueError(
            "the model's parameters are sharded (FSDP or DTensor), expected whole tensors: a norm "
            "or an angle of a part says nothing; track an unsharded run, or one under DDP"
        )
    strangers = len(held - {id(p) for p in named.values()})
    if strangers:
        raise ValueError(
            f"{strangers} of the optimizer's {len(held)} parameters are not in the model, expected "
            "all of them; pass the module that holds all, and attach after it is wrapped or moved"
        )
    chosen = {
        name: p
        for name, p in named.items()
        if id(p) in held and (p.ndim >= 2 if audited is None else name in audited)
    }
    if not chosen:
        wanted = "two or more dimensions" if audited is None else "the audit's verdict invariant"
        raise ValueError(
            f"nothing to track: no parameter that the optimizer holds has {wanted}; pass a model "
            "or an audit with such parameters"
        )
    for name, p in chosen.items():
        if p.layout != torch.strided or not p.is_floating_point():
            raise ValueError(
                f"{name} is {p.dtype}, {p.layout}; expected a dense tensor of real numbers; "
                "leave it out by passing an audit"
            )
    return chosen


def _plain(name: str) -> str:
    """The name that a parameter has without `torch.compile`."""
    return name.replace("_orig_mod.", "")


class Tracker:
    """The record of a training, made by `track`.

    Memory grows by about 32 bytes a tracked tensor and measured step (48 in double precision): 60
    tensors measured at 10,000 steps take 20 MB. A context manager that detaches itself at its end.

    Attributes
    ----------
    steps : int
        Steps that the optimizer has made.
    scale_exponent : float
        p in the effective learning rate lr / ‖w‖^p; nan if it has none.
    """

    def __init__(
        self, optimizer: Optimizer, named: Mapping[str, nn.Parameter], every: int, exponent: float
    ) -> None:
        self.optimizer, self.every, self.scale_exponent = optimizer, every, exponent
        self.steps = 0
        self._named = dict(named)
        groups = optimizer.param_groups
        place = {id(p): i for i, group in enumerate(groups) for p in group["params"]}
        # By position: optimizer.load_state_dict puts new dictionaries in the old places.
        self._groups = [place[id(p)] for p in self._named.values()]
        self._open: dict[str, list[Tensor]] | None = None
        self._room: list[Tensor] | None = None
        self._rows: list[tuple[int, list, Tensor]] = []
        count = len(self._named)
        shapes = (0, (0, 2, count), (0, len(_MEASURED), count))
        self._kept = [tuple(np.zeros(shape, np.float32) for shape in shapes)]
        self._hooks = (
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        )

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Stop measuring; what was measured stays."""
        for hook in self._hooks:
            hook.remove()
        self._room = None

    # Measuring: everything stays on the device -------------------------------------------------

    @torch.no_grad()
    def _before(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> tuple | None:
        self._open = None
        if self.steps % self.every:
            return None
        flat = [_flat(p) for p in self._named.values()]
        old = self._room or [torch.empty_like(w) for w in flat]
        for room, w in zip(old, flat, strict=True):
            room.copy_(w)
        # A CPU would have to fetch the memory page by page again; CUDA keeps it at hand.
        self._room = old if all(w.is_cpu for w in old) else None
        self._open = now = {"old": old, "weight_norm": list(torch._foreach_norm(old))}
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if not callable(closure):
            self._see_gradient(now)
            return None

        def watched() -> Any:  # the gradient comes into being inside the step
            loss = closure()
            if "gradient_norm" not in now:
                self._see_gradient(now)
            return loss

        if len(args) > 1:
            return (args[0], watched, *args[2:]), kwargs
        return args, kwargs | {"closure": watched}

    @torch.no_grad()
    def _see_gradient(self, now: dict[str, list[Tensor]]) -> None:
        grads = {i: _flat(p.grad) for i, p in enumerate(self._named.values()) if p.grad is not None}
        if not grads:
            return
        norms = dict(zip(grads, torch._foreach_norm([*grads.values()]), strict=True))
        # A fused optimizer gets scaled gradients from a GradScaler, and the scale with them.
        scale = getattr(self.optimizer, "grad_scale", None)
        now |= _no_gradient(now["weight_norm"])
        for i, g in grads.items():
            now["alignment"][i] = torch.dot(g, now["old"][i]) / (norms[i] * now["weight_norm"][i])
            now["gradient_norm"][i] = norms[i] if scale is None else norms[i] / scale.to(g.device)

    @torch.no_grad()
    def _after(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        now, self._open = self._open, None
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and found_inf.item():
            return  # a fused optimizer was told by a GradScaler to skip, and did
        if now is not None:
            now = _no_gradient(now["weight_norm"]) | now
            new = map(_flat, self._named.values())
            now["angle"] = list(map(_angle, now["old"], new, now["weight_norm"]))
            groups = [optimizer.param_groups[i] for i in self._groups]
            rates = [[_kept(group.get("lr", math.nan)) for group in groups],
                     [_kept(group.get("weight_decay", 0.0)) for group in groups]]  # fmt: skip
            values = torch.stack([_stack(now[name]) for name in _MEASURED])
            self._rows.append((self.steps, rates, values))
        self.steps += 1
        if len(self._rows) >= _BLOCK:
            self._fetch()

    def _fetch(self) -> None:
        """Bring what was measured since the last time to the host."""
        if not self._rows:
            return
        steps, rates, values = zip(*self._rows, strict=True)
        rates = [[[float(rate) for rate in kind] for kind in row] for row in rates]
        self._kept.append((np.array(steps), np.array(rates), torch.stack(values).cpu().numpy()))
        self._rows = []

    def _record(self) -> tuple[np.ndarray, ...]:
        """Steps (n,), rates (n, 2, parameters), measurements (n, 4, parameters)."""
        self._fetch()
        self._kept = [tuple(np.concatenate(parts) for parts in zip(*self._kept, strict=True))]
        return self._kept[0]

    # Reading -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The record so far, for a checkpoint; ``torch.load(weights_only=True)`` reads it."""
        parts = dict(zip(("step", "rates", "values"), self._record(), strict=True))
        record = {name: torch.from_numpy(part.copy()) for name, part in parts.items()}
        return {"parameters": list(self._named), "steps": self.steps, **record}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the record of an earlier tracker of the same parameters.

        Raises
        ------
        ValueError
            If it recorded other parameters.
        """
        if list(state["parameters"]) != list(self._named):
            other = sorted(set(state["parameters"]) ^ set(self._named))
            raise ValueError(
                "the state is a record of other parameters, expected the same in the same order; "
                f"track the same model. They differ in {', '.join(other) or 'order'}"
            )
        self.steps, self._rows = int(state["steps"]), []
        self._kept = [tuple(state[name].numpy().copy() for name in ("step", "rates", "values"))]

    def to_dataset(self) -> xr.Dataset:
        """What was measured, with dimensions (parameter, step).

        `step` counts the optimizer's steps from 0. Beside the measurements: lr and weight_decay of
        the parameter's group at that step; `effective_lr`, lr / ‖w‖^p; and `equilibrium_angle`,
        what the angle would be at equilibrium with this lr and weight_decay, nan where there is no
        formula, lr or decay (momentum and betas as they are now). Whatever is not finite is nan.
        """
        steps, rates, values = self._record()
        values = np.concatenate([rates, values], axis=1, dtype=float)  # in the order of _VARIABLES
        data = dict(zip(_VARIABLES, np.moveaxis(values, 1, 0), strict=False))
        with np.errstate(divide="ignore"):
            data["effective_lr"] = data["lr"] / data["weight_norm"] ** self.scale_exponent
        data["equilibrium_angle"] = np.full(data["lr"].shape, math.nan)
        now = np.stack([data["lr"], data["weight_decay"], _unit_gradient(data)], axis=2)
        for i, (p, known) in enumerate(zip(self._named.values(), self._theories, strict=True)):
            if known is not None:
                angles = [_or_nan(known.angle, *row, p.numel()) for row in now[:, i]]
                data["equilibrium_angle"][:, i] = angles
        data["equilibrium_angle"][data["equilibrium_angle"] == 0] = math.nan  # no lr or no decay
        finite = {name: np.where(np.isfinite(a), a, math.nan) for name, a in data.items()}
        about = {"optimizer": type(self.optimizer).__name__, "steps": self.steps}
        about |= {"every": self.every, "scale_exponent": self.scale_exponent}
        dims = ("parameter", "step")
        return xr.Dataset(
            {name: (dims, a.T, {"long_name": _VARIABLES[name]}) for name, a in finite.items()},
            {"parameter": list(self._named), "step": steps.astype(int)},
            about,
        )

    @property
    def _theories(self) -> list[Theory | None]:
        groups = self.optimizer.param_groups
        return [_theory(self.optimizer, groups[i]) for i in self._groups]

    def summary(self) -> str:
        """For each parameter, in words, how far it is from equilibrium; one line each.

        Compares the angles of the last 20 measured steps with the formulas of `normlib.theory`;
        the steps to go are those until the angle is within 20 % of its equilibrium, if lr,
        weight decay and the size of the unit gradient stay. Chapter 09.
        """
        record = self.to_dataset()
        head = f"{type(self.optimizer).__name__} after {self.steps:,} steps"
        if not record.sizes["step"]:
            return f"{head}: nothing measured yet"
        recent = record.isel(step=slice(-_RECENT, None))
        p = self.scale_exponent
        rate = f"lr / ‖w‖^{p:g}" if math.isfinite(p) else "not known"
        lines = [f"{head}; effective learning rate {rate}"]
        for name, p, known in zip(self._named, self._named.values(), self._theories, strict=True):
            lines.append(f"{name}: {_words(recent.sel(parameter=name), known, p.numel())}")
        return "\n".join(lines)

    def plot(self, parameters: Iterable[str] | None = None) -> "Figure":
        """Draw the angle of each step beside what it would be at equilibrium.

        Parameters
        ----------
        parameters : iterable of str or None
            Their names; None for all.

        Raises
        ------
        ValueError
            For a name that is not tracked.
        """
        import matplotlib.pyplot as plt  # only who draws needs it

        names = list(self._named if parameters is None else parameters)
        unknown = [name for name in names if name not in self._named]
        if unknown or not names:
            raise ValueError(
                f"parameters must be tracked ones, got {unknown or names}; tracked are "
                f"{', '.join(self._named)}"
            )
        record = self.to_dataset()
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


def _words(recent: xr.Dataset, known: Theory | None, size: int) -> str:
    """How far one parameter is from its equilibrium."""
    lr, decay, norm = (float(recent[n][-1]) for n in ("lr", "weight_decay", "weight_norm"))
    angle = _rms(recent.angle)
    facts = f"angle {angle:.2g} a step, norm {norm:.3g}"
    if not lr or not decay:
        return f"no {'weight decay' if lr else 'learning rate'}, so no equilibrium; {facts}"
    if known is None:
        return f"no formula for the equilibrium of this optimizer; {facts}"
    cosine = float(recent.alignment.mean())
    if abs(cosine) > _ALIGNED:
        return (
            f"not scale-invariant (cosine of weights and gradient {cosine:.2f}), so the "
            f"formulas do not hold; {facts}"
        )
    ratio = _rms(recent.angle / recent.equilibrium_angle)
    if not ratio > 0 or math.isinf(ratio):
        return f"no gradient reaches it, so nothing to compare; {facts}"
    there = f"angle {ratio:.2g} of its equilibrium"
    if _NEAR <= ratio <= 1 / _NEAR:
        return f"{there}: it is there; {facts}"
    unit_gradient = _rms(recent.weight_norm * recent.gradient_norm)
    time = _or_nan(known.relaxation_time, lr, decay, unit_gradient, size)
    left = max(1.0, float(f"{_steps_to_go(known, ratio, time):.2g}"))
    return f"{there}; about {left:,.0f} steps to go at this lr × weight_decay"


def _flat(x: Tensor) -> Tensor:
    """A dense vector, in a precision in which an angle can be computed."""
    x = x.detach()
    x = x if x.layout == torch.strided else x.to_dense()
    return x.reshape(-1).to(torch.promote_types(x.dtype, torch.float32))


def _no_gradient(like: list[Tensor]) -> dict[str, list[Tensor]]:
    nan = torch.full_like(like[0], math.nan)
    return {name: [nan] * len(like) for name in ("gradient_norm", "alignment")}


def _kept(rate: float | Tensor) -> float | Tensor:
    """A rate as it is now: a tensor may be changed in place later."""
    return rate.detach().clone() if isinstance(rate, Tensor) else rate


def _stack(scalars: list[Tensor]) -> Tensor:
    """One vector, wherever and of whatever precision the parts are."""
    dtype = torch.float64 if any(x.dtype == torch.float64 for x in scalars) else torch.float32
    return torch.stack([x.to(scalars[0].device, dtype) for x in scalars])


def _angle(old: Tensor, new: Tensor, norm: Tensor) -> Tensor:
    """Angle between two vectors, the first of a known norm.

    From the step itself: the cosine of a small angle would be lost in rounding.
    """
    step = new - old
    along = torch.dot(step, old) / norm
    step.addcmul_(old, along / norm, value=-1)
    return torch.atan2(step.norm(), norm + along)


def _rms(values: xr.DataArray) -> float:
    return float((values**2).mean() ** 0.5)


def _unit_gradient(data: Mapping[str, np.ndarray]) -> np.ndarray:
    """‖w‖‖g‖, root mean square over the last measured steps, at every step."""
    squares = (data["weight_norm"] * data["gradient_norm"]) ** 2
    if not len(squares):
        return squares
    recent = xr.DataArray(squares, dims=("step", "parameter")).rolling(step=_RECENT, min_periods=1)
    return np.sqrt(recent.mean().values)


def _or_nan(formula: Callable[..., float], *values: float) -> float:
    """A formula's value, nan where it has none (no gradient, lr 0)."""
    try:
        return formula(*(float(v) for v in values))
    except (ZeroDivisionError, ValueError):
        return math.nan


def _steps_to_go(known: Theory, ratio: float, time: float) -> float:
    """Steps until an angle that is `ratio` of its equilibrium is near it.

    With angle ∝ ‖w‖^−p and ρ = ‖w‖ over its equilibrium, x = ρ^(p+q) follows
    dx/dt = ρ^(q−p) (1 − x) / time: exactly exponential for SGD and AdamW, where q = p.
    """
    p, q = known.scale_exponent, known.decay_exponent
    start, end = (a ** (-(p + q) / p) for a in (ratio, _NEAR if ratio < 1 else 1 / _NEAR))
    log = np.linspace(math.log(abs(start - 1)), math.log(abs(end - 1)), 200)
    x = 1 + math.copysign(1, start - 1) * np.exp(log)
    return -time * float(np.trapezoid(x ** ((p - q) / (p + q)), log))


# Optimizers -------------------------------------------------------------------------------------


def _name(optimizer: Optimizer) -> str:
    """The class's name if it is torch's own; a subclass may step otherwise."""
    name = type(optimizer).__name__
    return name if type(optimizer) is getattr(torch.optim, name, None) else ""


def _theory(optimizer: Optimizer, group: Mapping[str, Any]) -> Theory | None:
    """The formulas of a group of parameters, if there are any."""
    name = _name(optimizer)
    if name == "SGD" and not group["dampening"]:
        return theory.sgd(group["momentum"], group["nesterov"])
    if name in ("Adam", "AdamW") and not group["amsgrad"]:
        decoupled = name == "AdamW" or group.get("decoupled_weight_decay", False)
        return (theory.adamw if decoupled else theory.adam)(group["betas"])
    if name == "RMSprop" and not group["centered"] and not group["momentum"]:
        return theory.rmsprop()
    return None


def _exponent(optimizer: Optimizer) -> float:
    """p of a user's optimizer: known, or measured on a fresh one; nan, with a warning, if not."""
    if _name(optimizer) in _EXPONENTS:
        return _EXPONENTS[_name(optimizer)]
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
    ValueError
        If it makes no torch optimizer, or one that cannot step on a dense matrix (SparseAdam).

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
    warnings.warn(f"no scale exponent: {reason}", stacklevel=3)
    return math.nan


def _turned(make_optimizer: Callable, scale: float, seed: int) -> list[float]:
    """The angle of each of 20 steps from scale · w₀."""
    random = torch.Generator().manual_seed(seed)
    a, b, w = (torch.randn(6, 6, generator=random, dtype=torch.float64) for _ in range(3))
    weights = nn.Parameter(w * scale)
    optimizer = make_optimizer([weights])
    if not isinstance(optimizer, Optimizer):
        raise ValueError(
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
    takes = "closure" in inspect.signature(optimizer.step).parameters
    angles = []
    for _ in range(20):
        closure()
        before = weights.detach().clone()
        try:
            optimizer.step(*[closure] * takes)
        except RuntimeError as error:
            raise ValueError(
                f"{type(optimizer).__name__} cannot step on a dense 6 × 6 matrix ({error}), as "
                "scale_exponent expects; give its exponent by hand"
            ) from None
        angles.append(float(_angle(before.ravel(), weights.detach().ravel(), before.norm())))
    return angles
