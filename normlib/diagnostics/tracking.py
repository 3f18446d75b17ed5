"""Effective learning rates while your own optimizer trains your model. Knows `exponents`."""

import math
import numbers
from collections.abc import Iterable, Mapping
from copy import deepcopy
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.optim import Optimizer

from normlib.diagnostics.equilibria import RECENT, equilibrium_angle, in_words
from normlib.diagnostics.exponents import exponent_of, theory_of, turned_angle
from normlib.theory import Theory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DESCRIPTIONS = {
    "lr": "learning rate of the parameter's group",
    "weight_decay": "weight decay of the parameter's group",
    "weight_norm": "norm of the weights before the step",
    "gradient_norm": "norm of the gradient there, as the optimizer gets it",
    "alignment": "cosine between weights and gradient, 0 if scale-invariant",
    "angle": "angle that the weights turn in the step, radians",
    "effective_lr": "effective learning rate, lr / norm^p",
    "equilibrium_angle": "angle per step at equilibrium, radians (formula)",
}
_MEASUREMENTS = tuple(_DESCRIPTIONS)[:6]
_ON_DEVICE = _MEASUREMENTS[2:]
_BLOCK = 64  # measured steps between two copies from the device


def track(
    optimizer: Optimizer, model: Any, record_every: int = 1, exponent: float | None = None
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
    record_every : int
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
    TypeError
        For an argument of a wrong type.
    ValueError
        For sharded parameters (FSDP, DTensor); parameters of the optimizer that the model lacks;
        sparse, complex or integer parameters; nothing to track; `record_every` below 1.

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
        raise TypeError(
            f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}; if it "
            "wraps one, pass that"
        )
    whole = isinstance(record_every, numbers.Integral) and not isinstance(record_every, bool)
    if not whole or record_every < 1:
        error = ValueError if whole else TypeError
        raise error(f"record_every must be a whole number of at least 1, got {record_every!r}")
    if exponent is not None and not isinstance(exponent, numbers.Real):
        raise TypeError(f"exponent must be a number or None, got {exponent!r}")
    chosen = _tracked(optimizer, model)
    exponent = exponent_of(optimizer) if exponent is None else exponent
    return Tracker(optimizer, chosen, int(record_every), float(exponent))


def _tracked(optimizer: Optimizer, model: Any) -> dict[str, nn.Parameter]:
    """The parameters to track by name, once it is sure that they can be."""
    audited = None
    if not isinstance(model, nn.Module):
        model, audited = getattr(model, "model", None), getattr(model, "invariant", None)
        if not isinstance(model, nn.Module) or audited is None:
            raise TypeError("model must be an nn.Module or the result of nl.audit")
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
    """The record of a training, made by `track`. Chapter 09.

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
        self, optimizer: Optimizer, named: Mapping[str, Tensor], record_every: int, exponent: float
    ) -> None:
        self.optimizer, self.record_every, self.scale_exponent = optimizer, record_every, exponent
        self.steps = 0
        self._named = dict(named)
        groups = optimizer.param_groups
        place = {id(p): i for i, group in enumerate(groups) for p in group["params"]}
        # By position: optimizer.load_state_dict puts new dictionaries in the old places.
        self._group_of = [place[id(p)] for p in self._named.values()]
        self._open: dict[str, list[Tensor]] | None = None
        self._room: list[Tensor] | None = None
        self._rows: list[tuple[int, list[Any], Tensor]] = []
        count = len(self._named)
        shapes = (0, (0, 2, count), (0, len(_ON_DEVICE), count))
        self._fetched = [tuple(np.zeros(shape, np.float32) for shape in shapes)]
        self._hooks = (
            optimizer.register_step_pre_hook(self._begin_step),
            optimizer.register_step_post_hook(self._end_step),
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

    @torch.no_grad()
    def _begin_step(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> tuple | None:
        self._open = None
        if self.steps % self.record_every:
            return None
        flat = [_flat(p) for p in self._named.values()]
        old = self._room or [torch.empty_like(w) for w in flat]
        for room, w in zip(old, flat, strict=True):
            room.copy_(w)
        # A CPU would have to fetch the memory page by page again; CUDA keeps it at hand.
        self._room = old if all(w.is_cpu for w in old) else None
        norms = list(torch._foreach_norm(old))
        unknown = [torch.full_like(norms[0], math.nan)] * len(norms)
        now = {"old": old, "weight_norm": norms, "gradient_norm": unknown, "alignment": unknown}
        self._open = now
        see_gradient = cache(partial(self._see_gradient, now))  # once
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if not callable(closure):
            see_gradient()
            return None

        def watched() -> Any:  # the gradient comes into being inside the step
            loss = closure()
            see_gradient()
            return loss

        if len(args) > 1:
            return (args[0], watched, *args[2:]), kwargs
        return args, kwargs | {"closure": watched}

    @torch.no_grad()
    def _see_gradient(self, now: dict[str, list[Tensor]]) -> None:
        grads = {i: _flat(p.grad) for i, p in enumerate(self._named.values()) if p.grad is not None}
        if not grads:
            return
        # A fused optimizer gets scaled gradients from a GradScaler, and the scale with them.
        scale = getattr(self.optimizer, "grad_scale", None)
        now |= {name: list(now[name]) for name in ("gradient_norm", "alignment")}
        for (i, g), norm in zip(grads.items(), torch._foreach_norm([*grads.values()]), strict=True):
            now["alignment"][i] = torch.dot(g, now["old"][i]) / (norm * now["weight_norm"][i])
            now["gradient_norm"][i] = norm if scale is None else norm / scale.to(g.device)

    @torch.no_grad()
    def _end_step(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        now, self._open = self._open, None
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and found_inf.item():
            return  # a fused optimizer was told by a GradScaler to skip, and did
        if now is not None:
            new = map(_flat, self._named.values())
            now["angle"] = list(map(turned_angle, now["old"], new, now["weight_norm"]))
            defaults = {"lr": math.nan, "weight_decay": 0.0}
            groups = [defaults | optimizer.param_groups[i] for i in self._group_of]
            # Copied, since a tensor may be changed in place later.
            rates = [[deepcopy(group[name]) for group in groups] for name in defaults]
            values = torch.stack([_stack(now[name]) for name in _ON_DEVICE])
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
        self._fetched.append((np.array(steps), np.array(rates), torch.stack(values).cpu().numpy()))
        self._rows = []

    def _record(self) -> tuple[np.ndarray, ...]:
        """Steps (n,), rates (n, 2, parameters), measurements (n, 4, parameters)."""
        self._fetch()
        self._fetched = [tuple(np.concatenate(parts) for parts in zip(*self._fetched, strict=True))]
        return self._fetched[0]

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
        self._fetched = [tuple(state[name].numpy().copy() for name in ("step", "rates", "values"))]

    def to_dataset(self) -> xr.Dataset:
        """What was measured, with dimensions (parameter, step).

        `step` counts the optimizer's steps from 0. Beside the measurements: lr and weight_decay of
        the parameter's group at that step; `effective_lr`, lr / ‖w‖^p; and `equilibrium_angle`,
        what the angle would be at equilibrium with this lr and weight_decay, nan where there is no
        formula, lr or decay (momentum and betas as they are now). Whatever is not finite is nan.
        """
        steps, rates, values = self._record()
        values = np.concatenate([rates, values], axis=1, dtype=float)
        about = {"optimizer": type(self.optimizer).__name__, "steps": self.steps}
        about |= {"record_every": self.record_every, "scale_exponent": self.scale_exponent}
        record = xr.Dataset(
            {name: (("step", "parameter"), values[:, i]) for i, name in enumerate(_MEASUREMENTS)},
            {"parameter": list(self._named), "step": steps.astype(int)},
            about,
        ).transpose("parameter", "step")
        record["effective_lr"] = record.lr / record.weight_norm**self.scale_exponent
        sizes = [p.numel() for p in self._named.values()]
        record["equilibrium_angle"] = equilibrium_angle(record, self._theories, sizes)
        record = record.where(np.isfinite(record))
        for name, words in _DESCRIPTIONS.items():
            record[name].attrs["long_name"] = words
        return record

    @property
    def _theories(self) -> list[Theory | None]:
        groups = self.optimizer.param_groups
        return [theory_of(self.optimizer, groups[i]) for i in self._group_of]

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
        recent = record.isel(step=slice(-RECENT, None))
        p = self.scale_exponent
        rate = f"lr / ‖w‖^{p:g}" if math.isfinite(p) else "not known"
        lines = [f"{head}; effective learning rate {rate}"]
        for i, (name, known) in enumerate(zip(self._named, self._theories, strict=True)):
            words = in_words(recent.isel(parameter=i), known, self._named[name].numel())
            lines.append(f"{name}: {words}")
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


def _flat(x: Tensor) -> Tensor:
    """A dense vector, in a precision in which an angle can be computed."""
    x = x.detach()
    x = x if x.layout == torch.strided else x.to_dense()
    return x.reshape(-1).to(torch.promote_types(x.dtype, torch.float32))


def _stack(scalars: list[Tensor]) -> Tensor:
    """One vector, wherever and of whatever precision the parts are."""
    dtype = torch.float64 if any(x.dtype == torch.float64 for x in scalars) else torch.float32
    return torch.stack([x.to(scalars[0].device, dtype) for x in scalars])
