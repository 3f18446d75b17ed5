"""Effective learning rates while your own optimizer trains your model. Knows `records`."""

import math
import numbers
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import xarray as xr
from torch.optim import Optimizer

from normlib.diagnostics import records
from normlib.diagnostics.equilibria import RECENT, drawn, in_words, why_gradients
from normlib.diagnostics.exponents import exponent_of, taken, torch_rule
from normlib.diagnostics.measuring import Measuring
from normlib.diagnostics.records import Row
from normlib.diagnostics.rules import theory_of
from normlib.diagnostics.selecting import Groups, Only, Selection, select
from normlib.diagnostics.wrapping import rule_of, steps_of
from normlib.theory import Theory

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def track(
    optimizer: Optimizer,
    model: Any,
    record_every: int = 1,
    exponent: float | None = None,
    only: Only = None,
    groups: Groups | None = None,
    rule: Theory | None = None,
    at_most: int = 10_000,
) -> "Tracker":
    """Measure the effective learning rates of a model while its optimizer trains it.

    Nothing in the training loop changes, and no bit of the training: the tracker hangs on the
    optimizer's own step hooks. Attach it before the loop, read it at any time.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        One that Accelerate, Lightning or SAM has wrapped is taken out.
    model : nn.Module or audit
        All parameters of the model with two or more dimensions that the optimizer holds; or the
        result of `nl.audit`, then those that it found scale-invariant, alone or in a joint group.
        A model in DistributedDataParallel is taken as it is, and it is enough to track in one
        process. Parameters sharded by `fully_shard` or as DTensors are measured whole: track in
        every process, since all add up their parts.
    record_every : int
        Measure every so many steps, beginning with the first. A measured step holds one more
        copy of the tracked weights; on a CPU it stays until the tracker is removed.
    exponent : float or None
        p in lr / ‖w‖^p. None: known for torch's optimizers (with an eps that is small beside the
        gradients), else measured for each parameter group by `scale_exponent`, on a fresh
        optimizer of the same class with the group's settings.
    only : str, iterable of str or None
        Names, or patterns as in ``"*.attention.*"``, of the rows to keep.
    groups : iterable of dict or None
        Joint groups, name -> exponent c > 0: the loss stays if each tensor is multiplied by a^c.
        Each is one more row, whose norm √(Σ c ‖w‖²) and angle come to equilibrium where those of
        its tensors need not. None: those of the audit, if the model is one.
    rule : theory.Theory or None
        The optimizer's formulas. None: closed ones for torch's rules; for others with decoupled
        decay measured on random gradients (some seconds, once); else none.
    at_most : int
        Measured steps to keep. When there are more, every second one is dropped and `record_every`
        doubles.

    Returns
    -------
    Tracker

    Raises
    ------
    TypeError
        For an argument of a wrong type.
    ValueError
        For an optimizer whose steps cannot be seen; for flat parameters of FSDP's first version;
        parameters of the optimizer that the model lacks; sparse, complex or integer parameters;
        nothing to track; `record_every` below 1 or `at_most` below 2.

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
    optimizer = steps_of(optimizer)
    for name, number, least in (("record_every", record_every, 1), ("at_most", at_most, 2)):
        whole = isinstance(number, numbers.Integral) and not isinstance(number, bool)
        if not whole or number < least:
            error = ValueError if whole else TypeError
            raise error(f"{name} must be a whole number of at least {least}, got {number!r}")
    if exponent is not None and not isinstance(exponent, numbers.Real):
        raise TypeError(f"exponent must be a number or None, got {exponent!r}")
    selection = select(optimizer, model, only, groups)
    powers = _exponents(optimizer, selection, exponent)
    return Tracker(optimizer, selection, powers, rule, int(record_every), int(at_most))


def _exponents(optimizer: Optimizer, selection: Selection, given: float | None) -> dict[int, float]:
    """p of each parameter group that is tracked, with a warning for each kind without one."""
    tracked = {id(p) for p in selection.params.values()}
    powers, seen = dict[int, float](), dict[str, float]()
    for i, group in enumerate(optimizer.param_groups):
        if not any(id(p) in tracked for p in group["params"]):
            continue
        key = _settings(optimizer, group)
        if given is None and key not in seen:
            seen[key], reason = exponent_of(rule_of(optimizer), group)
            if reason:
                warnings.warn(reason, stacklevel=3)
        powers[i] = seen[key] if given is None else float(given)
    return powers


def _settings(optimizer: Optimizer, group: Mapping[str, Any]) -> str:
    """What of a group says how its rule behaves, beside the size of lr and decay."""
    names = sorted(set(taken(rule_of(optimizer))) & set(group) - {"params", "lr", "weight_decay"})
    return repr([bool(group.get("weight_decay")), *((name, group[name]) for name in names)])


class Tracker(Measuring):
    """The record of a training, made by `track`. Chapter 09.

    Memory grows by about 36 bytes a tracked tensor and measured step, up to `at_most` steps: 60
    tensors measured at 10,000 steps take 22 MB. A context manager that detaches itself at its end.

    Attributes
    ----------
    steps : int
        Steps that the optimizer has made.
    record_every : int
        Steps from one measured step to the next.
    scale_exponent : float
        p in the effective learning rate lr / ‖w‖^p; nan if it has none, or several.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        selection: Selection,
        powers: Mapping[int, float],
        rule: Theory | None,
        record_every: int,
        at_most: int,
    ) -> None:
        super().__init__(optimizer, selection.params, record_every, at_most)
        several = set(powers.values())
        self.scale_exponent = several.pop() if len(several) == 1 else math.nan
        self._selection, self._powers, self._rule = selection, powers, rule
        self._rules = dict[tuple, Theory | None]()

    def _table(self, last: int | None = None) -> tuple[xr.Dataset, list[Row]]:
        """The record, or its last steps, and what each of its rows is."""
        parts = self._record()
        rows = [self._row(*item) for item in self._selection.rows.items()]
        return records.table(rows, *(part[-(last or 0) :] for part in parts)), rows

    def _row(self, name: str, exponents: Mapping[str, float]) -> Row:
        places = {member: i for i, member in enumerate(self._selection.params)}
        members = {places[member]: c for member, c in exponents.items()}
        size = sum(c * self._list[i].numel() for i, c in members.items())
        powers = {self._powers[self._group_of[i]] for i in members}
        rules = {self._theory(i) for i in members}
        rule = rules.pop() if len(rules) == 1 else None
        return Row(name, members, size, powers.pop() if len(powers) == 1 else math.nan, rule)

    def _theory(self, i: int) -> Theory | None:
        """The formulas of a parameter; those of equal rules are one object."""
        if self._rule is not None:
            return self._rule
        optimizer = rule_of(self.optimizer)
        group, shape = self.optimizer.param_groups[self._group_of[i]], tuple(self._list[i].shape)
        name = torch_rule(optimizer)
        # A closed formula does not depend on the shape; a measured one not on the step.
        key = (_settings(self.optimizer, group), self.steps if name else shape)
        if key not in self._rules:
            self._rules = {k: v for k, v in self._rules.items() if not isinstance(k[1], int)}
            self._rules[key] = theory_of(optimizer, group, shape, self.steps)
        return self._rules[key]

    def to_dataset(self) -> xr.Dataset:
        """What was measured, with dimensions (parameter, step).

        `step` counts the optimizer's steps from 0. Beside the measurements: lr and weight_decay of
        the parameter's group at that step; `effective_lr`, lr / ‖w‖^p; and `equilibrium_angle`,
        what the angle would be at equilibrium with this lr and weight_decay, nan where there is no
        formula, lr or decay (momentum and betas as they are now). Whatever is not finite is nan. A
        joint group is one `parameter` more: its tensors w become one vector of norm √(Σ c ‖w‖²).
        """
        record = records.described(self._table()[0])
        about = {"optimizer": type(self.optimizer).__name__, "steps": self.steps}
        about |= {"record_every": self.record_every, "scale_exponent": self.scale_exponent}
        return record.assign_attrs(about)

    def forces(self) -> xr.Dataset:
        """What moved each squared norm: alignment, step, decay, with dimensions (parameter, step).

        A step takes w to (1−c) w + s. Then ‖w‖² changes by 2(1−c)⟨w, s⟩ (`from_alignment`: the
        step, without decay, points along the weights), ‖s‖² (`from_step`: any step across makes
        them longer) and −c(2−c)‖w‖² (`from_decay`). The three add up to `change`, exactly.

        c is lr · λ for decoupled decay. Where decay goes through the optimizer's averages, as in
        SGD and Adam, the split is by definition: c = 1 / `Theory.timescale`, what weights that stay
        lose in a step once the averages are filled, lr · λ / (1−μ) for SGD with momentum. All but
        `change` are nan where there is decay and no formula.
        """
        return records.forces(*self._table())

    def latest(self) -> dict[str, float]:
        """The last measured step as flat names and numbers, for any logger.

        Such as ``{"angle/0.weight": 0.02, "equilibrium_angle/0.weight": 0.019, …}``; what is not
        finite is left out. It waits for the device.

        >>> import torch
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        >>> tracker = track(optimizer, model)
        >>> model(torch.ones(4, 3)).square().mean().backward()
        >>> optimizer.step()
        >>> sorted(tracker.latest())[:3]
        ['alignment/weight', 'angle/weight', 'effective_lr/weight']
        """
        record = records.described(self._table(RECENT)[0]).isel(step=slice(-1, None))
        return {
            f"{name}/{parameter}": float(value)
            for name, values in record.items()
            for parameter, one in zip(self._selection.rows, values.values, strict=True)
            for value in one
            if math.isfinite(value)
        }

    def summary(self) -> str:
        """For each parameter, in words, how far it is from equilibrium; one line each.

        Compares the angles of the last 20 measured steps with the formulas of `normlib.theory`;
        the steps to go are those until the angle is within 20 % of its equilibrium, if lr,
        weight decay and the size of the unit gradient stay. Chapter 09.
        """
        p = self.scale_exponent
        several = len(set(self._powers.values())) > 1
        rate = f"lr / ‖w‖^{p:g}" if math.isfinite(p) else "not known"
        rate = "lr / ‖w‖^p, with p by group" if several else rate
        lines = self._lines(f"effective learning rate {rate}", in_words, RECENT)
        if self._selection.left:
            lines.append(f"not tracked, being parts of tensors: {', '.join(self._selection.left)}")
        return "\n".join(lines)

    def explain_gradients(self) -> str:
        """Why the norm of each parameter's gradient has changed since the beginning, in words.

        The gradient of a scale-invariant weight is G / ‖w‖, with G what it would be at norm 1. So
        it rises where ‖w‖ falls. Compares the last 20 measured steps with the first 20; and the
        ratio ‖g‖ / ‖w‖ with that at equilibrium by the optimizer's formula, `gradient_ratio`, which
        rises as lr falls. Weights follow a falling lr late, so the end of a schedule is below it.
        """
        return "\n".join(self._lines("‖g‖ = G / ‖w‖", why_gradients))

    def _lines(self, title: str, words: Any, last: int | None = None) -> list[str]:
        head = f"{type(self.optimizer).__name__} after {self.steps:,} steps"
        if not self.steps:
            return [
                f"{head}: nothing measured yet; if it trains, another optimizer makes the steps"
            ]
        record, rows = self._table(last)
        return [f"{head}; {title}"] + [
            f"{row.name}: {words(record.isel(parameter=i), row.rule, row.size)}"
            for i, row in enumerate(rows)
        ]

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
        names = list(self._selection.rows if parameters is None else parameters)
        unknown = [name for name in names if name not in self._selection.rows]
        if unknown or not names:
            raise ValueError(
                f"parameters must be tracked ones, got {unknown or names}; tracked are "
                f"{', '.join(self._selection.rows)}"
            )
        return drawn(self.to_dataset(), names)
