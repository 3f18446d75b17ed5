"""Train a grid of hyperparameters at once and measure it. Knows nets, rules and data; no plots."""

import contextlib
import ctypes
import inspect
import itertools
import json
import math
import numbers
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm

from normlib import files
from normlib.data.datasets import Dataset, Identity
from normlib.data.images import Augmentation
from normlib.networks import Net, Parameter, Wide
from normlib.optimizers import Optimizer

Schedule = str | Callable[[int, int], float]
Values = float | Sequence[float] | tuple[str, Sequence[float]] | np.ndarray | xr.DataArray

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.float32}
DECAYS = ("invariant", "weights", "all")
SCHEDULES = ("constant", "step", "cosine")

_ENDS = {
    "train_loss": "training loss, cross-entropy in nats",
    "train_error": "training error, fraction of images",
    "test_loss": "test loss, cross-entropy in nats",
    "test_error": "test error, fraction of images",
}
# Steps after which each network's loss and norms are kept, to recognise the same training.
EARLY = (1, 10, 50)

_TRACES = {
    "weight_norm": "norm of the layer's weights before the step",
    "gradient_norm": "norm of the loss gradient there, without decay",
    "effective_lr": "effective learning rate, lr / norm^p",
    "angle": "angle that the layer's weights turn in the step, radians",
}

_VARIABLES = (
    {name: ((), text) for name, text in _ENDS.items()}
    | {name: (("layer", "step"), text) for name, text in _TRACES.items()}
    | {
        "loss": (("step",), "loss on the step's minibatch, nats"),
        "early_loss": (("early",), "minibatch loss after a few steps, a fingerprint"),
        "early_norm": (("layer", "early"), "norm of the weights after a few steps"),
    }
)

_RESERVED = {"seed", "layer", "size", "step", "early", *_VARIABLES}


@dataclass(frozen=True)
class _Plan:
    """One sweep, checked and ready to train."""

    net: Net
    data: Dataset | Identity
    optimizer: Optimizer
    grid: dict[str, xr.DataArray]
    seeds: xr.DataArray
    epochs: int
    batch_size: int
    factors: np.ndarray
    factors_other: np.ndarray
    decay_on: str
    precision: str
    record_every: int
    chunk_size: int | None
    threads: int
    device: torch.device
    imposed_norms: xr.DataArray | None = None
    augment: Augmentation | None = None

    @property
    def steps(self) -> int:
        return len(self.factors)

    @property
    def measured(self) -> list[int]:
        """Steps at which traces are recorded: every `every`-th and the last."""
        return sorted({*range(0, self.steps, self.record_every), self.steps - 1})

    @property
    def early(self) -> list[int]:
        return [step for step in EARLY if step < self.steps]

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """The hyperparameters of every cell, one value a network."""
        return {name: values.values.reshape(-1) for name, values in self.grid.items()}

    @property
    def settings(self) -> dict[str, object]:
        """Everything that the results depend on but the seed, as JSON can hold it.

        How many networks stand side by side and the number of threads change results by rounding
        only; they are kept with each part and reused.
        """
        data = self.data
        settings = {
            "net": self.net.settings,
            "data": (data.identity if isinstance(data, Dataset) else data).settings,
            "optimizer": repr(self.optimizer),
            "grid": {name: [f"{v:.9g}" for v in column] for name, column in self.columns.items()},
            "factors": files.fingerprint([f"{v:.9g}" for v in self.factors]),
            "factors_other": files.fingerprint([f"{v:.9g}" for v in self.factors_other]),
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "decay_on": self.decay_on,
            "precision": self.precision,
            "record_every": self.record_every,
            "device": self.device.type,
        }
        if self.imposed_norms is not None:
            at, norms = self.imposed_norms.step.values.tolist(), self.imposed_norms.values.ravel()
            settings["imposed_norms"] = files.fingerprint([at, [f"{v:.5g}" for v in norms]])
        if self.augment is not None:
            settings["augment"] = repr(self.augment)
        return settings

    @property
    def spec(self) -> str:
        """The settings as a short digest."""
        return files.fingerprint(self.settings)


def sweep(
    net: Net,
    data: Dataset,
    optimizer: Optimizer,
    *,
    lr: Values,
    weight_decay: Values = 0.0,
    seed: int | Sequence[int] = 0,
    epochs: int = 40,
    batch_size: int = 100,
    schedule: Schedule = "constant",
    lr_other: Values | None = None,
    schedule_other: Schedule | None = None,
    init_scale: Values = 1.0,
    imposed_norms: xr.DataArray | None = None,
    augment: Augmentation | None = None,
    decay_on: str = "invariant",
    precision: str = "float32",
    record_every: int = 10,
    chunk_size: int | None = None,
    checkpoint_dir: str | Path | None = None,
    device: str | torch.device | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """Train one network for every combination of hyperparameters and seeds; measure all of them.

    Networks of one seed start from the same weights and see the same minibatches, so points of a
    grid are paired. A network that diverges becomes NaN and changes no bit of another.

    Parameters
    ----------
    net : Net
        E.g. ``nl.convnet(width=25)``.
    data : Dataset
        E.g. ``nl.mnist1d()``.
    optimizer : Optimizer
        E.g. ``nl.nesterov(momentum=0.9)``.
    lr, weight_decay, init_scale, lr_other : number, sequence, (dim, sequence) or DataArray
        A number makes no dimension, a sequence makes a dimension of the argument's name, and
        ``("line", [...])`` makes the dimension "line"; arguments that name the same dimension
        vary together along it. `scale` multiplies the hidden layers' weights at the start.
        `lr_other` is the learning rate of all other parameters (None: `lr` for every parameter,
        as in the paper).
    seed : int or sequence of int
        Initial weights and order of minibatches.
    epochs, batch_size : int
        The last, incomplete batch of an epoch is left out.
    schedule : {"constant", "step", "cosine"} or callable
        Factor on the learning rates: "step" divides by 10 at 50 % and at 75 % of the steps,
        "cosine" goes to 0; a callable gets (step, steps) and returns the factor.
    schedule_other : as `schedule`, or None
        The factor on the learning rate of parameters that are not scale-invariant (None: as
        `schedule`).
    imposed_norms : DataArray or None
        Norms to put the hidden layers' weights back to, such as another sweep's ``weight_norm``.
        It has the dimensions layer and step, and where norms differ, seed and those of the grid.
        At every step it names, before the gradient is taken, each layer's weights get that norm;
        their direction and the optimizer's buffers stay.
    augment : Augmentation or None
        Changes to every minibatch of training, e.g. ``nl.flip_and_shift()``; all networks of a
        seed see the same ones.
    decay_on : {"invariant", "weights", "all"}
        What decays: the scale-invariant weights, all weights (the head's too), or every parameter.
    precision : {"float32", "float64", "bfloat16"}
        "bfloat16" runs the network in autocast and keeps the weights in float32.
    record_every : int
        Traces hold every `every`-th step and the last.
    chunk_size : int or None
        How many networks to train side by side (None: a choice for the network and the device).
    checkpoint_dir : str, Path or None
        A folder of this sweep's own. Finished parts (one seed, one chunk) are written there, and
        a later call with the same arguments computes only what is missing, on a CPU to the same
        bits; seeds may be added. Parts that are damaged or of another sweep are set aside with a
        warning. If a part cannot be written, its results are returned all the same, and a warning
        says what was not kept.
    device : str or None
        None: CUDA where there is one, else the CPU.
    progress : bool or None
        A progress bar; None: only where a person watches.

    Returns
    -------
    xarray.Dataset
        ``train_loss``, ``train_error``, ``test_loss``, ``test_error`` at the end, over the
        dimensions of the grid and the seed; ``loss`` (minibatch) over step too; ``weight_norm``,
        ``gradient_norm``, ``effective_lr``, ``angle`` over layer and step too. A trace at step t
        holds the weights before that step. Errors are fractions, angles radians. ``early_loss``
        and ``early_norm``, after 1, 10 and 50 steps, are a fingerprint of the training. The
        coordinate ``size`` is the number of entries of each layer's weights.

    Raises
    ------
    ValueError
        For a wrong argument, before any work.

    Notes
    -----
    Chapter 00 uses it first; every later chapter stands on it.

    >>> runs = nl.sweep(
    ...     nl.convnet(width=4), nl.mnist1d(), nl.sgd(),
    ...     lr=[0.01, 0.1], weight_decay=[0, 1e-3], epochs=1,
    ... )
    >>> runs.test_error.dims
    ('lr', 'weight_decay')
    """
    plan = _plan(
        net, data, optimizer, lr, weight_decay, seed, epochs, batch_size, schedule, lr_other,
        schedule_other, init_scale, imposed_norms, augment, decay_on, precision, record_every, chunk_size, device,
    )  # fmt: skip
    return _run(_trainable(plan), _folder(keep), progress)


def _trainable(plan: _Plan) -> _Plan:
    if isinstance(plan.data, Identity):
        raise ValueError(
            f'the images of "{plan.data.source}" are not here, only what identifies them; '
            "give the data set itself"
        )
    return plan


def _folder(keep: str | Path | None) -> Path | None:
    if keep is not None and not isinstance(keep, str | Path):
        raise ValueError(f"keep must be the path of a folder, got {keep!r}")
    return None if keep is None else Path(keep)


def _run(plan: _Plan, folder: Path | None, progress: bool | None) -> xr.Dataset:
    start = time.perf_counter()
    plan, results = _resume(plan, folder)
    todo = [part for part in _parts(plan) if part not in results]
    lost: dict[str, str] = {}
    provenance = {} if folder is None else _provenance(plan)
    bar = tqdm(
        total=plan.steps * len(todo), unit="step", disable=not _watched(progress), leave=False
    )
    with bar, _memory_kept(plan.device), _threads(plan.threads):
        for part in todo:
            began = time.perf_counter()
            results[part] = _train(plan, part, bar.update)
            if folder is not None:
                about = {"seconds": round(time.perf_counter() - began, 2), **provenance}
                try:
                    files.write(folder, part.label, results[part], {**part.about, **about})
                except OSError as error:
                    lost[part.label] = str(error)
    if lost:
        warnings.warn(
            f"{len(lost)} of {len(todo)} parts could not be kept in {folder} "
            f"({next(iter(lost.values()))}): {', '.join(lost)}. Their results are returned; "
            "another run would compute them again.",
            stacklevel=3,
        )
    ordered = [results[part] for part in _parts(plan)]
    return _assemble(plan, ordered, time.perf_counter() - start)


def plan(*positional: object, **arguments: object) -> _Plan:
    """The checked plan of a sweep, without running it; its `spec` identifies the results."""
    bound = inspect.signature(sweep).bind(*positional, **arguments)
    bound.apply_defaults()
    return _plan(*(bound.arguments[name] for name in inspect.signature(_plan).parameters))


def estimate(*positional: object, keep: str | Path | None = None, **arguments: object) -> float:
    """How long `nl.sweep` would take with the same arguments, from some steps of its first part.

    Nothing is written, and nothing is set aside.

    Parameters
    ----------
    checkpoint_dir : str, Path or None
        As for `nl.sweep`; parts that are finished there cost nothing.
    *positional, **arguments
        All others of `nl.sweep`.

    Returns
    -------
    float
        Seconds.

    Raises
    ------
    ValueError
        As `nl.sweep`.

    Notes
    -----
    Chapter 10 says it before a long sweep starts.

    >>> seconds = nl.estimate(nl.convnet(width=4), nl.mnist1d(), nl.sgd(), lr=0.1)
    >>> 0 < seconds < 600
    True
    """
    todo, found = _resume(_trainable(plan(*positional, **arguments)), _folder(keep), tidy=False)
    missing = [part for part in _parts(todo) if part not in found]
    if not missing:
        return 0.0

    def seconds(steps: int) -> float:
        start = time.perf_counter()
        _train(todo, missing[0], lambda: None, stop=steps)
        return time.perf_counter() - start

    few, many = min(5, todo.steps), min(25, todo.steps)
    with _memory_kept(todo.device), _threads(todo.threads):
        seconds(few)  # what happens once, such as a library's choice of algorithms
        start = seconds(few)
        step = start / few if many == few else max(seconds(many) - start, 0.0) / (many - few)
    # An image that is only looked at costs about a third of one that is trained on.
    looks = sum(math.ceil(size / todo.batch_size) for size in todo.data.sizes) / 3
    return len(missing) * step * (todo.steps + looks)


def fast_precision(device: str | torch.device | None = None) -> str:
    """The precision for speed: bfloat16 where a CUDA device computes with it, else float32.

    Parameters
    ----------
    device : str or None
        None: the device that a sweep takes.

    Notes
    -----
    A CUDA device without bfloat16 can imitate it, slowly; that does not count. Chapter 10.

    >>> nl.fast_precision("cpu")
    'float32'
    """
    device = _device(device)
    if device.type == "cuda":
        with torch.cuda.device(device):
            if torch.cuda.is_bf16_supported(including_emulation=False):
                return "bfloat16"
    return "float32"


def assemble(plan: _Plan, kept: Iterable[tuple[dict[str, np.ndarray], dict]]) -> xr.Dataset:
    """The dataset of a sweep from all its parts, each with what it says about itself.

    Raises
    ------
    RuntimeError
        If a part is missing.
    """
    results, chunk = {}, plan.chunk_size
    for arrays, about in kept:
        results[_Part.of(about)] = arrays
        chunk = about["chunk_size"]
    plan = replace(plan, chunk_size=chunk)
    missing = [part.label for part in _parts(plan) if part not in results]
    if missing:
        raise RuntimeError(f"parts are missing: {', '.join(missing)}")
    return _assemble(plan, [results[part] for part in _parts(plan)], 0.0)


# Arguments --------------------------------------------------------------------------------------


def _plan(
    net, data, optimizer, lr, weight_decay, seed, epochs, batch_size, schedule, lr_other,
    schedule_other, init_scale, imposed_norms, augment, decay_on, precision, record_every, chunk_size, device,
) -> _Plan:  # fmt: skip
    for name, value, kinds, example in (
        ("net", net, (Net,), "nl.convnet()"),
        ("data", data, (Dataset, Identity), "nl.mnist1d()"),
        ("optimizer", optimizer, (Optimizer,), "nl.nesterov()"),
    ):
        if not isinstance(value, kinds):
            kind = kinds[0].__name__
            raise ValueError(f"{name} must be a {kind} such as {example}, got {value!r}")
    grid = {
        "lr": _values("lr", lr, positive=True),
        "weight_decay": _values("weight_decay", weight_decay),
        "init_scale": _values("init_scale", init_scale, positive=True),
    }
    grid["lr_other"] = grid["lr"] if lr_other is None else _values("lr_other", lr_other)
    for dim in {dim for values in grid.values() for dim in values.dims}:
        if dim in _RESERVED or (dim in grid and grid[dim].dims != (dim,)):
            raise ValueError(f'nothing can vary along "{dim}": the results use that name')
    try:
        grid = dict(zip(grid, xr.broadcast(*xr.align(*grid.values(), join="exact")), strict=True))
    except ValueError as error:
        raise ValueError(
            f"hyperparameters along one dimension differ in length or labels: {error}"
        ) from None
    seeds = _seeds(seed)
    epochs, every = _count("epochs", epochs), _count("record_every", record_every)
    batch_size = _count("batch_size", batch_size)
    images, _ = data.sizes
    if not 2 <= batch_size <= images:
        raise ValueError(
            f"batch_size must lie between 2 and the {images} training images, got {batch_size}"
        )
    per = optimizer.settings.get("per")
    if per and (net.norm == "none" or (net.norm == "layer" and per == "channel")):
        raise ValueError(
            f'optimizer {optimizer} normalizes each {per}, but with norm="{net.norm}" '
            + ("no weight is scale-invariant" if net.norm == "none" else
               'only whole layers are scale-invariant: use per="layer"')
        )  # fmt: skip
    if decay not in DECAYS:
        raise ValueError(f"decay must be one of {', '.join(DECAYS)}; got {decay!r}")
    if decay == "invariant" and net.norm == "none" and bool((grid["weight_decay"] > 0).any()):
        raise ValueError(
            'decay_on="invariant" decays nothing when norm="none": no weight is scale-invariant; '
            'use decay_on="weights" or decay_on="all"'
        )
    if not isinstance(precision, str) or precision not in DTYPES:
        raise ValueError(
            f"precision must be one of {', '.join(DTYPES)}; got {precision!r}"
            + (" (float16 needs loss scaling, which would couple the networks)"
               if "16" in str(precision) else "")
        )  # fmt: skip
    if augment is not None and not isinstance(augment, Augmentation):
        raise ValueError(f"augment must be None or such as nl.flip_and_shift(), got {augment!r}")
    steps = epochs * (images // batch_size)
    factors = _factors("schedule", schedule, steps)
    other = factors
    if schedule_other is not None:
        other = _factors("schedule_other", schedule_other, steps)
    device = _device(device)
    chunk = None if chunk is None else _count("chunk_size", chunk_size)
    return _Plan(
        net, data, optimizer, grid, seeds, epochs, batch_size, factors, other,
        decay_on, precision, record_every, chunk_size, torch.get_num_threads(), device,
        None if norms is None else _norms(norms, net, grid["lr"], seeds, steps), augment,
    )  # fmt: skip


def _values(name: str, values: Values, positive: bool = False) -> xr.DataArray:
    if isinstance(values, xr.DataArray):
        array = values
    else:
        dim = name
        if isinstance(values, tuple) and values and isinstance(values[0], str):
            if len(values) != 2:
                raise ValueError(f"{name} must be (dim, values), got {values!r}")
            dim, values = values
        listed = isinstance(values, Sequence | np.ndarray) and not isinstance(values, str)
        items = list(np.ravel(values)) if isinstance(values, np.ndarray) else values
        for item in items if listed else [items]:
            if isinstance(item, bool | np.bool_) or not isinstance(item, numbers.Real):
                raise ValueError(
                    f"{name} must be a number or a sequence of numbers, got {item!r} "
                    f"({type(item).__name__})"
                )
        try:
            array = np.asarray(values, float)
        except OverflowError:
            raise ValueError(f"{name} holds a number that is too large") from None
        array = xr.DataArray(array, dims=[dim] if array.ndim else [])
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{name} must hold numbers, got {array.dtype}")
    if array.dims == (name,):
        array = array.assign_coords({name: array.values.astype(float)})
    if array.size == 0:
        raise ValueError(f"{name} is empty: the grid needs at least one value")
    array = array.astype(float)
    low = "greater than 0" if positive else "at least 0"
    good = np.isfinite(array) & ((array > 0) if positive else (array >= 0))
    if not bool(good.all()):
        bad = float(array.values[~good.values].ravel()[0]) if array.ndim else float(array)
        raise ValueError(f"{name} must be finite and {low}, got {bad:g}")
    if name in array.coords and len(np.unique(array)) < array.size:
        raise ValueError(f"{name} lists a value twice: {list(array.values)}")
    return array


def _norms(
    imposed_norms: xr.DataArray, net: Net, cells: xr.DataArray, seeds: xr.DataArray, steps: int
) -> xr.DataArray:
    """The norms of every seed, cell and layer at every step that they name, in this order."""
    if not isinstance(norms, xr.DataArray):
        raise ValueError(f"norms must be a DataArray such as runs.weight_norm, got {norms!r}")
    own, possible = {"layer", "step"}, {"layer", "step", *cells.dims, *seeds.dims}
    if not own <= set(norms.dims) <= possible or not own <= set(norms.coords):
        raise ValueError(
            f"norms must have the dimensions layer and step with their labels, and may have "
            f"{', '.join(sorted(possible - own)) or 'no others'}; it has {', '.join(norms.dims)}"
        )
    if tuple(norms.layer.values) != net.layers:
        raise ValueError(f"norms must name the layers {', '.join(net.layers)} in this order")
    at = norms.step.values
    if at.dtype.kind not in "iu" or at.min(initial=0) < 0 or at.max(initial=0) >= steps:
        raise ValueError(f"norms must name steps from 0 to {steps - 1}, got {at}")
    if not bool((np.isfinite(norms) & (norms > 0)).all()):
        raise ValueError("norms must be finite and greater than 0; did a network diverge?")
    try:
        imposed_norms, cells, seeds = xr.align(norms, cells, seeds, join="exact")
    except ValueError as error:
        raise ValueError(f"norms are of other cells or seeds than this sweep: {error}") from None
    full = norms.broadcast_like(xr.broadcast(cells, seeds)[0])
    return full.transpose(*seeds.dims, *cells.dims, "layer", "step")


def _seeds(seed: int | Sequence[int]) -> xr.DataArray:
    listed = isinstance(seed, Sequence) and not isinstance(seed, str)
    listed = listed or (isinstance(seed, np.ndarray) and seed.ndim == 1)
    items = list(seed) if listed else [seed]
    if not items:
        raise ValueError("seed is empty: the sweep needs at least one")
    for item in items:
        if isinstance(item, bool) or not isinstance(item, int | np.integer) or item < 0:
            raise ValueError(f"seed must be whole numbers of at least 0, got {item!r}")
    if len(set(items)) < len(items):
        raise ValueError(f"seed lists a value twice: {items}")
    if listed:
        return xr.DataArray(items, dims="seed", coords={"seed": items})
    return xr.DataArray(int(seed))


def _count(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    return int(value)


def _factors(name: str, schedule: Schedule, steps: int) -> np.ndarray:
    done = np.arange(steps) / steps
    if schedule == "constant":
        return np.ones(steps)
    if schedule == "step":
        return 0.1 ** ((done >= 0.5).astype(float) + (done >= 0.75))
    if schedule == "cosine":
        return 0.5 * (1 + np.cos(np.pi * done))
    if not callable(schedule):
        raise ValueError(
            f"{name} must be one of {', '.join(SCHEDULES)}, or a function of (step, steps); "
            f"got {schedule!r}"
        )
    try:
        factors = np.array([float(schedule(step, steps)) for step in range(steps)])
    except TypeError as error:
        raise ValueError(
            f"{name} must be a function of (step, steps) to a number: {error}"
        ) from None
    if not (np.isfinite(factors) & (factors >= 0)).all():
        raise ValueError(f"{name} must return finite factors of at least 0")
    return factors


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device must name a torch device, got {device!r}") from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device must be a CPU, CUDA or MPS device, got {device}")
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ValueError(f'device="{device}" was asked for, but torch sees none here') from None
    return device


def _watched(progress: bool | None) -> bool:
    """Whether to show progress: a terminal or a notebook with a person, not a test or a build."""
    if progress is not None:
        return progress
    if "PYTEST_VERSION" in os.environ or os.environ.get("NORMLIB_PROGRESS") == "0":
        return False
    return sys.stderr.isatty() or "ipykernel" in sys.modules


# Training ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def _memory_kept(device: torch.device) -> Iterator[None]:
    """Let the process keep the memory it frees while a sweep runs on the CPU.

    glibc hands a large tensor's memory back to the system when it is freed, and the next step has
    to ask for it again, page by page: up to a third of a sweep's time. Elsewhere this does nothing.
    """
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # names of malloc.h
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(mmap_threshold, 32 << 20)  # the largest that glibc takes
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(top_pad, 256 << 20)
    try:
        yield
    finally:
        # Where glibc's own adjustment ends, once a program has freed a tensor of 32 MB.
        libc.mallopt(trim_threshold, 64 << 20)
        libc.mallopt(top_pad, 128 << 10)
        libc.malloc_trim(0)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute with a number of threads, and leave the number as it was."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class _Part:
    """One wide network of a sweep: a seed and a range of cells."""

    seed: int
    first: int
    stop: int

    @property
    def label(self) -> str:
        return f"seed{self.seed}-cells{self.first}-{self.stop}"

    @property
    def about(self) -> dict[str, int]:
        return {"seed": self.seed, "first": self.first, "stop": self.stop}

    @classmethod
    def of(cls, about: Mapping) -> "_Part":
        """The part that says this about itself."""
        return cls(about["seed"], about["first"], about["stop"])


def _parts(plan: _Plan) -> Iterator[_Part]:
    """Every wide network to train, of nearly equal sizes."""
    cells = len(plan.columns["lr"])
    count = math.ceil(cells / (plan.chunk_size or _side_by_side(plan)))
    edges = [round(cells * i / count) for i in range(count + 1)]
    for seed in np.ravel(plan.seeds):
        for first, stop in itertools.pairwise(edges):
            yield _Part(int(seed), first, stop)


def _side_by_side(plan: _Plan) -> int:
    """How many networks to train at once where nobody says."""
    if plan.device.type != "cpu":
        return 128
    # On a CPU large images gain little from company, and their activations fill the memory.
    return 32 if math.prod(plan.data.shape) <= 256 else 4


def _resume(plan: _Plan, folder: Path | None, tidy: bool = True) -> tuple[_Plan, dict[_Part, dict]]:
    """The plan with the chunk and threads it was begun with, and the results kept so far."""
    if folder is None or not folder.exists():
        return plan, {}
    if not folder.is_dir():
        raise ValueError(f"keep must be a folder, but {folder} is a file")
    found, begun = {}, None
    for arrays, about in files.usable(folder, plan.spec, tidy):
        found[_Part.of(about)] = arrays
        begun = about
    if begun is None:
        return plan, {}
    if plan.chunk_size not in (None, begun["chunk_size"]):
        raise ValueError(
            f"{folder} was begun with chunk_size={begun['chunk']}; leave chunk out, or use another "
            "folder"
        )
    return replace(plan, chunk_size=begun["chunk_size"], threads=begun["threads"]), found


def _provenance(plan: _Plan) -> dict[str, object]:
    """What else each part of a sweep says about itself."""
    settings = plan.settings  # reads all images: once a sweep
    return {
        "spec": files.fingerprint(settings),
        "settings": settings,
        "chunk_size": plan.chunk_size or _side_by_side(plan),
        "threads": plan.threads,
        "device": _name(plan.device),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _train(
    plan: _Plan, part: _Part, tick: Callable, stop: int | None = None
) -> dict[str, np.ndarray]:
    """Train the networks of a part; with `stop`, only so many steps and without evaluation."""
    seed, cells = part.seed, slice(part.first, part.stop)
    dtype = DTYPES[plan.precision]
    data = plan.data.to(plan.device, dtype)
    wide = plan.net.wide(part.stop - part.first, data.shape, data.classes, seed, plan.device, dtype)

    def column(name: str) -> Tensor:
        values = torch.tensor(plan.columns[name][cells], dtype=dtype, device=plan.device)
        return values.view(-1, 1, 1)

    lr, lr_other, weight_decay = column("lr"), column("lr_other"), column("weight_decay")
    wide.scale_(column("init_scale"))
    moves = []
    for p in wide.parameters.values():
        optimizer = plan.optimizer if p.invariant else (plan.optimizer.other or plan.optimizer)
        wide.values[p.name].data = optimizer.start(wide.values[p.name].data)
        moves.append((p.name, optimizer, bool(p.invariant), _decays(p, plan.decay_on)))
    states = {name: optimizer.init(wide.values[name].data) for name, optimizer, _, _ in moves}

    put_back = _norms_of(plan, part, dtype)
    traces = _Traces(plan, wide)
    order, changes = (torch.Generator().manual_seed(seed + i) for i in (0, 2**31))
    per_epoch = len(data.x_train) // plan.batch_size
    for step in range(plan.steps if stop is None else stop):
        if step % per_epoch == 0:
            shuffled = torch.randperm(len(data.x_train), generator=order).to(plan.device)
        for name, norm in put_back.get(step, {}).items():
            w = wide.values[name].data
            w *= norm / w.norm(dim=(1, 2), keepdim=True)
        at = (step % per_epoch) * plan.batch_size
        batch = shuffled[at : at + plan.batch_size]
        images = data.x_train[batch]
        if plan.augment is not None:
            images = plan.augment(images, changes)
        loss, grads = _gradients(plan, wide, images, data.y_train[batch])
        factor, factor_other = float(plan.factors[step]), float(plan.factors_other[step])
        rates = {True: lr * factor, False: lr_other * factor_other}
        before = traces.before(step, wide, grads, loss, rates)
        with torch.no_grad():
            for name, optimizer, invariant, decays in moves:
                value, states[name] = optimizer.update(
                    wide.values[name].data,
                    grads[name],
                    states[name],
                    rates[invariant],
                    weight_decay if decays else 0.0,
                    step + 1,
                )
                wide.values[name].data = value
        traces.after(before, wide)
        tick()

    results = traces.arrays()
    if stop is not None:
        return results
    for split in ("train", "test"):
        x, y = getattr(data, f"x_{split}"), getattr(data, f"y_{split}")
        loss, error = _evaluate(plan, wide, x, y)
        results[f"{split}_loss"], results[f"{split}_error"] = loss, error
    # A network that has diverged has no results, whatever argmax makes of NaN.
    lost = ~(np.isfinite(results["train_loss"]) & np.isfinite(results["test_loss"]))
    for name in _ENDS:
        results[name][lost] = np.nan
    return results


def _norms_of(plan: _Plan, part: _Part, dtype: torch.dtype) -> dict[int, dict[str, Tensor]]:
    """For every step at which norms are put back, the norm of each layer's weights, (K, 1, 1)."""
    if plan.imposed_norms is None:
        return {}
    layers = [f"{layer}.weight" for layer in plan.net.layers]
    values = torch.tensor(plan.imposed_norms.values, dtype=dtype, device=plan.device)
    values = values.reshape(plan.seeds.size, -1, len(layers), plan.imposed_norms.sizes["step"])
    values = values[list(np.ravel(plan.seeds)).index(part.seed), part.first : part.stop]
    return {
        int(step): {name: values[:, i, j].view(-1, 1, 1) for i, name in enumerate(layers)}
        for j, step in enumerate(plan.imposed_norms.step.values)
    }


def _decays(p: Parameter, decay: str) -> bool:
    if decay == "invariant":
        return p.invariant is not None
    return decay == "all" or p.kind == "weight"


def _losses(plan: _Plan, logits: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy of each network, (K,)."""
    k, n, classes = logits.shape
    loss = F.cross_entropy(logits.reshape(k * n, classes), y.repeat(k), reduction="none")
    return loss.view(k, n).mean(1)


def _autocast(plan: _Plan) -> contextlib.AbstractContextManager:
    if plan.precision == "bfloat16":
        return torch.autocast(plan.device.type, torch.bfloat16)
    return contextlib.nullcontext()


def _gradients(plan: _Plan, wide: Wide, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    with torch.enable_grad():
        with _autocast(plan):
            logits = wide(x, training=True)
        losses = _losses(plan, logits.to(DTYPES[plan.precision]), y)
        # The sum's gradient is each network's own; one network's NaN stays its own.
        grads = torch.autograd.grad(losses.sum(), list(wide.values.values()))
    return losses.detach(), dict(zip(wide.values, grads, strict=True))


@torch.no_grad()
def _evaluate(plan: _Plan, wide: Wide, x: Tensor, y: Tensor) -> tuple[np.ndarray, np.ndarray]:
    losses, wrong = 0.0, 0.0
    for x_part, y_part in zip(x.split(plan.batch_size), y.split(plan.batch_size), strict=True):
        with _autocast(plan):
            logits = wide(x_part)
        logits = logits.to(DTYPES[plan.precision])
        losses = losses + _losses(plan, logits, y_part) * len(y_part)
        wrong = wrong + (logits.argmax(2) != y_part).sum(1)
    return losses.cpu().double().numpy() / len(y), wrong.cpu().double().numpy() / len(y)


class _Traces:
    """Measurements of hidden layers along a training, in memory of fixed size."""

    def __init__(self, plan: _Plan, wide: Wide) -> None:
        self.layers = [f"{layer}.weight" for layer in plan.net.layers]
        self.slots = {step: i for i, step in enumerate(plan.measured)}
        self.exponent = plan.optimizer.theory.scale_exponent
        shape = (wide.networks, len(self.layers), len(self.slots))
        like = {"device": plan.device, "dtype": DTYPES[plan.precision]}
        self.values = {name: torch.zeros(shape, **like) for name in _TRACES}
        self.values["loss"] = torch.zeros(shape[0], shape[2], **like)
        self.early = {step: i for i, step in enumerate(plan.early)}
        self.values["early_loss"] = torch.zeros(shape[0], len(self.early), **like)
        self.values["early_norm"] = torch.zeros(*shape[:2], len(self.early), **like)

    def before(self, step, wide, grads, loss, rates):
        if step in self.early:
            self.values["early_loss"][:, self.early[step]] = loss
            for i, name in enumerate(self.layers):
                norm = wide.values[name].data.flatten(1).norm(dim=1)
                self.values["early_norm"][:, i, self.early[step]] = norm
        slot = self.slots.get(step)
        if slot is None:
            return None
        self.values["loss"][:, slot] = loss
        old = []
        for i, name in enumerate(self.layers):
            w = wide.values[name].data.flatten(1)
            norm = w.norm(dim=1)
            self.values["weight_norm"][:, i, slot] = norm
            self.values["gradient_norm"][:, i, slot] = grads[name].flatten(1).norm(dim=1)
            lr = rates[bool(wide.parameters[name].invariant)].flatten()
            self.values["effective_lr"][:, i, slot] = lr / norm**self.exponent
            old.append((w, norm))
        return slot, old

    def after(self, before, wide) -> None:
        if before is None:
            return
        slot, old = before
        for i, (name, (w, norm)) in enumerate(zip(self.layers, old, strict=True)):
            # From the step itself: the cosine of a small angle would be lost in rounding.
            step = wide.values[name].data.flatten(1) - w
            along = (step * w).sum(1) / norm
            across = (step - (along / norm)[:, None] * w).norm(dim=1)
            self.values["angle"][:, i, slot] = torch.atan2(across, norm + along)

    def arrays(self) -> dict[str, np.ndarray]:
        arrays = {name: values.cpu().double().numpy() for name, values in self.values.items()}
        return {name: np.where(np.isfinite(a), a, np.nan) for name, a in arrays.items()}


# Results ----------------------------------------------------------------------------------------


def _assemble(plan: _Plan, results: list[dict[str, np.ndarray]], seconds: float) -> xr.Dataset:
    lr = plan.grid["lr"]
    dims, sizes, seeds = tuple(str(d) for d in lr.dims), lr.shape, plan.seeds.size
    coords = {name: lr[name] for name in lr.coords}
    for name in plan.grid.keys() - set(dims):
        # Constant, or along a dimension of another name: a coordinate that holds its values.
        values = plan.grid[name]
        same = [d for d in dims if bool((values == values.isel({d: 0})).all())]
        coords[name] = values.isel(dict.fromkeys(same, 0), drop=True)
    coords |= {"seed": plan.seeds, "layer": list(plan.net.layers), "step": plan.measured}
    shapes = {p.name: p.shape for p in plan.net.parameters(plan.data.shape, plan.data.classes)}
    entries = [math.prod(shapes[f"{layer}.weight"]) for layer in plan.net.layers]
    coords |= {"size": ("layer", entries), "early": plan.early}
    runs = xr.Dataset(coords=coords)
    for name, (extra, description) in _VARIABLES.items():
        # parts come seed by seed, cells in order within a seed
        values = np.concatenate([r[name] for r in results])
        values = values.reshape(seeds, *sizes, *values.shape[1:])
        array = xr.DataArray(np.moveaxis(values, 0, len(sizes)), dims=(*dims, "seed", *extra))
        if not plan.seeds.dims:
            array = array.isel(seed=0)
        runs[name] = array.assign_attrs(long_name=description)
    runs.attrs = {
        "net": json.dumps(plan.net.settings),
        "data": plan.data.source,
        "optimizer": repr(plan.optimizer),
        "epochs": plan.epochs,
        "batch_size": plan.batch_size,
        "steps": plan.steps,
        "decay_on": plan.decay_on,
        "precision": plan.precision,
        "device": str(plan.device),
        "threads": plan.threads,
        "torch": str(torch.__version__),  # torch's own type is no plain string
        "seconds": seconds,
    }
    return runs
