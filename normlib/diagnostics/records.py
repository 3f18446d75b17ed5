"""What a tracker measured as a table: rows, effective rates, forces. Knows `equilibria`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from normlib.diagnostics.equilibria import decay_rate, equilibrium_angle
from normlib.diagnostics.measuring import MEASURED
from normlib.theory import Theory

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
_FORCES = {
    "change": "change of the squared norm in the step",
    "from_alignment": "part of it from the step's component along the weights, without decay",
    "from_step": "part of it from the step's length, without decay",
    "from_decay": "part of it from weight decay",
}


@dataclass(frozen=True)
class Row:
    """One row of the table: a tensor, or a joint group.

    A joint group, with exponents c > 0, acts as one scale-invariant vector: the tensors times √c,
    one after another. For its squared norm Σ c ‖w‖² nothing else than for a single tensor holds:
    the gradient has no part in it, Σ c ⟨w, g⟩ = 0.

    Attributes
    ----------
    members : dict
        Position among the measured parameters -> exponent.
    size : float
        Σ c · entries.
    exponent : float
        p in the effective learning rate.
    rule : Theory or None
    """

    name: str
    members: Mapping[int, float]
    size: float
    exponent: float
    rule: Theory | None

    def rates(self, rates: np.ndarray) -> np.ndarray:
        """lr and weight decay (steps, 2), nan where the members differ."""
        mine = rates[:, :, list(self.members)]
        return np.where((mine == mine[:, :, :1]).all(2), mine[:, :, 0], math.nan)

    def measured(self, values: np.ndarray) -> np.ndarray:
        """As `MEASURED` (steps, 5), of the members' (steps, 5, parameters)."""
        if list(self.members.values()) == [1]:
            return values[:, :, next(iter(self.members))]
        c = np.array([*self.members.values()])
        r, g, cosine, along, across = np.moveaxis(values[:, :, list(self.members)], 1, 0)
        norm = np.sqrt((c * r**2).sum(1))
        silent = np.isnan(g).all(1)  # a member alone may well have no gradient in a step
        gradient = np.where(silent, math.nan, np.sqrt(np.nansum(c * g**2, 1)))
        inward = (c * along * r).sum(1) / norm
        length = (c * (along**2 + across**2)).sum(1)
        across = np.sqrt(np.maximum(length - inward**2, 0))
        product = np.nansum(c * cosine * g * r, 1) / (norm * gradient)
        return np.stack([norm, gradient, product, inward, across], 1)


def table(
    rows: Sequence[Row], steps: np.ndarray, rates: np.ndarray, values: np.ndarray
) -> xr.Dataset:
    """All rows with everything that is known of them, (parameter, step)."""
    with np.errstate(all="ignore"):
        values = (
            np.stack([np.concatenate([row.rates(rates), row.measured(values)], 1) for row in rows])
            if rows
            else np.zeros((0, len(steps), 7))
        )
    record = xr.Dataset(
        {name: (("parameter", "step"), values[:, :, i])
         for i, name in enumerate(("lr", "weight_decay", *MEASURED))},
        {"parameter": [row.name for row in rows], "step": steps.astype(int)},
    )  # fmt: skip
    record["angle"] = np.arctan2(record.across, record.weight_norm + record.along)
    powers = xr.DataArray([row.exponent for row in rows], dims="parameter")
    record["effective_lr"] = record.lr / record.weight_norm**powers
    record["equilibrium_angle"] = equilibrium_angle(
        record, [row.rule for row in rows], [row.size for row in rows]
    )
    return record


def described(record: xr.Dataset) -> xr.Dataset:
    """What `Tracker.to_dataset` gives of a table."""
    record = record[list(_DESCRIPTIONS)]
    record = record.where(np.isfinite(record))
    for name, words in _DESCRIPTIONS.items():
        record[name].attrs["long_name"] = words
    return record


def forces(record: xr.Dataset, rows: Sequence[Row]) -> xr.Dataset:
    """The change of ‖w‖² of each step in three parts."""
    r, along = record.weight_norm, record.along
    squared = along**2 + record.across**2
    decay = decay_rate(record, [row.rule for row in rows], [row.size for row in rows])
    # The step without decay is s + cw, s being the whole one.
    found = xr.Dataset(
        {
            "change": 2 * r * along + squared,
            "from_alignment": 2 * (1 - decay) * (along * r + decay * r**2),
            "from_step": squared + 2 * decay * along * r + (decay * r) ** 2,
            "from_decay": -decay * (2 - decay) * r**2,
        }
    )
    for name, words in _FORCES.items():
        found[name].attrs["long_name"] = words
    return found
