"""What grids say: cells at equilibrium, dead networks, trade-offs of lr and weight_decay,
intervals. Knows least squares and what an optimizer's theory says; nothing of training.
"""

import math
from collections.abc import Sequence

import numpy as np
import xarray as xr
from attrs import field, frozen

from normlib.data import Dataset, Identity
from normlib.optimizers import Optimizer

Cells = tuple[np.ndarray, np.ndarray, np.ndarray]  # log lr, log weight_decay, score


def interval(values: Sequence[float] | np.ndarray | xr.DataArray) -> tuple[float, float, float]:
    """Mean and 95 % t-interval (mean, low, high) of independent values, e.g. one a seed.

    Raises
    ------
    ValueError
        If there are no values.

    Notes
    -----
    Student's interval. Chapters 04, 05, 07, 08 and 10.

    >>> [round(v, 2) for v in interval([1.0, 2.0, 3.0])]
    [2.0, -0.48, 4.48]
    """
    from scipy import stats  # slow to import, and few need it

    values = np.ravel(np.asarray(values, float))
    if len(values) == 0:
        raise ValueError("interval needs at least one value")
    mean = float(values.mean())
    if len(values) == 1:
        return mean, mean, mean
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return mean, mean - half, mean + half


@frozen(eq=False)
class Tradeoff:
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
    _cells: tuple[Cells, ...] = field(repr=False)
    _degree: int = field(repr=False)

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
        direction = np.array([math.atan(kappa)])
        values = [_r2(cells, direction, self._degree)[0] for cells in self._cells]
        return self.r2.copy(data=np.reshape(values, self.r2.shape))


def tradeoff(score: xr.DataArray, where: xr.DataArray | None = None, degree: int = 4) -> Tradeoff:
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
    Tradeoff

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
    >>> round(float(tradeoff(np.cos(np.log(lr) + 0.5 * np.log(weight_decay))).kappa), 1)
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
    log_decay = np.log(score.weight_decay.where(score.weight_decay > 0))
    score, good, x, y = xr.broadcast(score, good, np.log(score.lr), log_decay)
    seeds = [{"seed": i} for i in range(score.sizes["seed"])] if "seed" in score.dims else [{}]
    found, best = [], []
    for one in seeds:
        used = good.isel(one).values
        if used.sum() < degree + 4:
            raise ValueError(
                f"{int(used.sum())} usable cells are too few for a polynomial of degree {degree}; "
                f"at least {degree + 4} are needed"
            )
        log_lr, log_wd, scores = (array.isel(one).values[used] for array in (x, y, score))
        if np.ptp(scores) == 0:
            raise ValueError(
                "score is the same in all usable cells of a seed: it depends on nothing"
            )
        found.append((log_lr, log_wd, scores))
        best.append(_best(found[-1], degree))
    directions, r2 = np.array(best).T
    kappa = np.where(np.isclose(np.cos(directions), 0), np.inf, np.tan(directions))
    like = score.isel(lr=0, weight_decay=0, drop=True)
    return Tradeoff(
        like.copy(data=kappa.reshape(like.shape)).rename("kappa"),
        like.copy(data=r2.reshape(like.shape)).rename("r2"),
        tuple(found),
        degree,
    )


def at_equilibrium(runs: xr.Dataset, optimizer: Optimizer, times: float = 3.0) -> xr.DataArray:
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
        Over the grid and the seed. Cells without decay never get there.

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
    ...     lr=0.1, weight_decay=[0.01, 3], epochs=1, record_every=20,
    ... )
    >>> at_equilibrium(runs, nl.sgd()).values
    array([False,  True])
    """
    theory, steps = optimizer.theory, runs.attrs["steps"]
    if math.isnan(theory.relaxation_time(1.0, 1.0, 1.0, 1.0)):
        raise ValueError(
            f"the theory of {optimizer.name} has no relaxation time, so which cells are there is "
            "not known; choose them yourself"
        )
    middle = runs.sel(step=slice(0.4 * steps, 0.7 * steps))
    if not middle.sizes["step"]:
        raise ValueError(
            f"runs holds no trace between 40 and 70 % of its {steps} steps; choose a smaller "
            "record_every"
        )
    gradient = (middle.weight_norm * middle.gradient_norm).mean("step")
    time = xr.apply_ufunc(
        theory.relaxation_time, runs.lr, runs.weight_decay, gradient, runs["size"], vectorize=True
    )
    return (steps >= times * time).all("layer")


def dead(runs: xr.Dataset, data: Dataset | Identity) -> xr.DataArray:
    """Networks of a sweep that cannot learn any more: no gradient, and they guess.

    Dead is a network whose loss gradient at the last trace is exactly 0 in every hidden layer, and
    whose test error is not below that of guessing, 1 - 1/classes, by more than three standard
    errors of a test set of that size. The second half tells it apart from a network that fits its
    batch so well that the gradient is rounded to 0.

    Parameters
    ----------
    runs : Dataset
        What ``nl.sweep`` returned, or a recording's ``runs``.
    data : Dataset or Identity
        What it was trained on, for the numbers of classes and of test images; of a recording
        ``recording.spec.data``.

    Returns
    -------
    DataArray of bool
        Over the grid and the seed. A network that diverged has no gradient to speak of: it is not
        counted.

    Notes
    -----
    One trace is one batch: a network that is dead for most batches may twitch in others. Chapters
    04 and 05.

    >>> recording = nl.recorded("nesterov")
    >>> int(dead(recording.runs, recording.spec.data).sel(lr=3).sum())  # of 9 decays x 5 seeds
    44
    """
    guessing = 1 - 1 / data.classes
    sampling = math.sqrt(guessing * (1 - guessing) / data.sizes[1])
    silent = (runs.gradient_norm.isel(step=-1) == 0).all("layer")
    return (silent & (runs.test_error >= guessing - 3 * sampling)).rename("dead")


def _best(cells: Cells, degree: int) -> tuple[float, float]:
    """The direction with the largest R², and that R²: the best of many, made finer."""
    from scipy.optimize import minimize_scalar  # slow to import, and few need it

    coarse, apart = np.linspace(-math.pi / 2, math.pi / 2, 361, retstep=True)
    values = _r2(cells, coarse, degree)
    start = coarse[int(np.argmax(values))]
    finer = minimize_scalar(
        lambda direction: -_r2(cells, np.array([direction]), degree)[0],
        bounds=(start - apart, start + apart),
        method="bounded",
        options={"xatol": 1e-6},
    )
    found = (float(start), float(values.max())), (float(finer.x), -float(finer.fun))
    return max(found, key=lambda pair: pair[1])


def _r2(cells: Cells, directions: np.ndarray, degree: int) -> np.ndarray:
    """Leave-one-out R² of a polynomial in x cos + y sin; one solution of the normal equations."""
    x, y, z = cells
    along = np.outer(np.cos(directions), x) + np.outer(np.sin(directions), y)
    spread = np.ptp(along, axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):  # 0/0 where all cells are one in a direction
        place = 2 * (along - along.min(1, keepdims=True)) / spread - 1
    design = np.polynomial.chebyshev.chebvander(np.nan_to_num(place), degree)
    q, r = np.linalg.qr(design)
    for i in np.flatnonzero(np.abs(np.diagonal(r, axis1=1, axis2=2)).min(1) < 1e-9):
        # too few different values in this direction for the degree: use as many as there are
        count = len(np.unique(along[i].round(9)))
        q[i, :, :count], q[i, :, count:] = np.linalg.qr(design[i, :, :count])[0], 0
    fitted = (q @ (q.transpose(0, 2, 1) @ z)[..., None])[..., 0]
    residual = (z - fitted) / (1 - (q**2).sum(2)).clip(1e-12)
    from_mean = (z - z.mean()) * len(z) / (len(z) - 1)
    return np.where(spread[:, 0] > 0, 1 - (residual**2).sum(1) / (from_mean**2).sum(), -math.inf)
