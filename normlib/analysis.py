"""Reads grids: which cells reached their equilibrium, and along which lines of (lr, weight_decay)
results are equal. Knows least squares and what a optimizer's theory says; nothing of training.
"""

import math
from dataclasses import dataclass

import numpy as np
import xarray as xr

from normlib.optimizers import Optimizer

_DIRECTIONS = np.linspace(-math.pi / 2, math.pi / 2, 721)[1:]  # a quarter of a degree apart


@dataclass(frozen=True)
class Ridge:
    """How well a score is a function of log lr + κ log weight_decay.

    Attributes
    ----------
    kappa : xarray.DataArray
        The κ with the best fit, for every seed. ±inf where weight decay alone fits best.
    r2 : xarray.DataArray
        The leave-one-out R² at that κ, for every seed.
    """

    kappa: xr.DataArray
    r2: xr.DataArray
    _fits: tuple[tuple[np.ndarray, np.ndarray, np.ndarray], ...]
    _degree: int

    def r2_at(self, kappa: float) -> xr.DataArray:
        """Leave-one-out R² for a given κ: 0 is lr alone, ``inf`` is weight decay alone.

        Parameters
        ----------
        kappa : float

        Returns
        -------
        xarray.DataArray
            One value a seed. A fit that predicts worse than the mean has a negative one.
        """
        values = [_r2(*fit, math.atan(kappa), self._degree) for fit in self._fits]
        return self.r2.copy(data=np.reshape(values, self.r2.shape))


def ridge(score: xr.DataArray, where: xr.DataArray | None = None, degree: int = 4) -> Ridge:
    """Fit a smooth function of log lr + κ log weight_decay to a grid, for every seed.

    For each direction in the plane of (log lr, log weight_decay) a polynomial is fitted to the
    score by least squares, and judged by predicting each cell from all others.

    Parameters
    ----------
    score : DataArray
        Over lr and weight_decay, and possibly seed; e.g. ``np.log(runs.test_error)``. Cells that
        are not finite (diverged) and cells without decay are left out.
    where : DataArray of bool or None
        Cells to use, e.g. those that ran long enough to reach their equilibrium.
    degree : int
        Of the polynomial.

    Returns
    -------
    Ridge

    Raises
    ------
    ValueError
        If dimensions are missing, fewer than ``degree + 4`` cells are left for a seed, or all of
        them score the same.

    Notes
    -----
    Theory: κ = 1 for the SGD family and AdamW, 1/2 for Adam with L2 (``optimizer.theory``).
    Chapters 04, 05 and 07.

    >>> rates = np.geomspace(0.01, 1, 6)
    >>> lr = xr.DataArray(rates, dims="lr", coords={"lr": rates})
    >>> weight_decay = lr.rename(lr="weight_decay")
    >>> round(float(ridge(np.cos(np.log(lr) + 0.5 * np.log(weight_decay))).kappa), 1)
    0.5
    """
    if not {"lr", "weight_decay"} <= set(score.dims) <= {"lr", "weight_decay", "seed"}:
        raise ValueError(
            "score must have the dimensions lr and weight_decay, and may have seed; "
            f"it has {', '.join(map(str, score.dims))}"
        )
    good = np.isfinite(score) & (score.weight_decay > 0)
    if where is not None:
        good = good & where
    score, good, x, y = xr.broadcast(score, good, np.log(score.lr), _log(score.weight_decay))
    seeds = [{"seed": i} for i in range(score.sizes["seed"])] if "seed" in score.dims else [{}]
    fits, best = [], []
    for one in seeds:
        keep = good.isel(one).values
        if keep.sum() < degree + 4:
            raise ValueError(
                f"{int(keep.sum())} usable cells are too few for a polynomial of degree {degree}; "
                f"at least {degree + 4} are needed"
            )
        fit = tuple(array.isel(one).values[keep] for array in (x, y, score))
        if np.ptp(fit[2]) == 0:
            raise ValueError(
                "score is the same in all usable cells of a seed: it depends on nothing"
            )
        values = np.array([_r2(*fit, direction, degree) for direction in _DIRECTIONS])
        fits.append(fit)
        best.append((_DIRECTIONS[values.argmax()], values.max()))
    angles, r2 = np.array(best).T
    like = score.isel(lr=0, weight_decay=0, drop=True)
    kappa = np.where(np.isclose(np.abs(angles), math.pi / 2), np.inf, np.tan(angles))
    return Ridge(
        like.copy(data=kappa.reshape(like.shape)).rename("kappa"),
        like.copy(data=r2.reshape(like.shape)).rename("r2"),
        tuple(fits),
        degree,
    )


def arrived(runs: xr.Dataset, optimizer: Optimizer, times: float = 3.0) -> xr.DataArray:
    """Cells of a sweep in which every layer had time to reach its equilibrium.

    Parameters
    ----------
    runs : Dataset
        What ``nl.sweep`` returned, or a recording's ``runs``. The learning rate should be constant
        for most of the training; gradients are taken from the traces between 40 and 70 % of it.
    optimizer : Optimizer
        The optimizer of that sweep.
    times : float
        How many relaxation times (``optimizer.theory.relaxation_time``) a cell must have run for.

    Returns
    -------
    DataArray of bool
        Over the grid and the seed. Cells without decay never arrive.

    Raises
    ------
    ValueError
        If the optimizer's relaxation time is not known, or `runs` has no trace in the middle of the
        training.

    Notes
    -----
    Chapters 04, 05 and 10.

    >>> runs = nl.sweep(
    ...     nl.convnet(width=4), nl.mnist1d(), nl.sgd(),
    ...     lr=0.1, weight_decay=[0.01, 3], epochs=1, every=20,
    ... )
    >>> arrived(runs, nl.sgd()).values
    array([False,  True])
    """
    theory, steps = optimizer.theory, runs.attrs["steps"]
    if math.isnan(theory.relaxation_time(1.0, 1.0, 1.0, 1.0)):
        raise ValueError(
            f"the theory of {optimizer.name} has no relaxation time, so which cells have arrived is "
            "not known; choose them yourself"
        )
    middle = runs.sel(step=slice(0.4 * steps, 0.7 * steps))
    if not middle.sizes["step"]:
        raise ValueError(
            f"runs holds no trace between 40 and 70 % of its {steps} steps; choose a smaller every"
        )
    gradient = (middle.weight_norm * middle.gradient_norm).mean("step")
    time = xr.apply_ufunc(
        theory.relaxation_time, runs.lr, runs.weight_decay, gradient, runs["size"], vectorize=True
    )
    return (steps >= times * time).all("layer")


def _log(values: xr.DataArray) -> xr.DataArray:
    return np.log(values.where(values > 0))


def _r2(x: np.ndarray, y: np.ndarray, z: np.ndarray, direction: float, degree: int) -> float:
    """Leave-one-out R² of a polynomial in x cos + y sin; one solution of the normal equations."""
    along = x * math.cos(direction) + y * math.sin(direction)
    spread = np.ptp(along)
    if spread == 0:
        return -math.inf
    design = np.polynomial.chebyshev.chebvander(2 * (along - along.min()) / spread - 1, degree)
    q, r = np.linalg.qr(design)
    if np.abs(np.diag(r)).min() < 1e-9:
        # too few different values in this direction for the degree: use as many as there are
        q, r = np.linalg.qr(design[:, : len(np.unique(along.round(9)))])
    residual = (z - q @ (q.T @ z)) / (1 - (q**2).sum(1)).clip(1e-12)
    from_mean = (z - z.mean()) * len(z) / (len(z) - 1)
    return float(1 - (residual**2).sum() / (from_mean**2).sum())
