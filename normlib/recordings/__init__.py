"""Sweeps computed once and shipped with the package. Knows their definitions and their parts.

`DEFINITIONS` says what each recording is; the parts beside this file hold what came out, with the
specification they were made from. `python -m normlib.recordings` makes what is missing.
"""

import contextlib
import functools
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import xarray as xr

from normlib import datasets, images, nets, parts, rules, sweeps

FOLDER = Path(__file__).parent

# 1,000 images a class of a JPEG copy of CIFAR-10, and its whole test set. JPEG loses something:
# these are not the published images.
CIFAR10_JPEG = datasets.Identity(
    source="CIFAR-10, a JPEG copy; the first 1,000 training images of each class",
    sizes=(10000, 10000),
    shape=(3, 32, 32),
    classes=10,
    images=("-0.1911", "-0.2904"),
    labels="085a88a5ff422c6a",
)


def linear_end(step: int, steps: int) -> float:
    """A constant learning rate that falls to 0 in a straight line over the last 30 % of the steps.

    >>> [linear_end(step, 10) for step in (0, 7, 9)]
    [1.0, 1.0, 0.3333333333333333]
    """
    return min(1.0, (steps - step) / (0.3 * steps))


def _grid(optimizer: rules.Optimizer, **changes: object) -> dict[str, object]:
    """What all grids of MNIST-1D share."""
    return {
        "net": nets.convnet(width=25, depth=3, norm="batch"),
        "data": datasets.mnist1d(),
        "optimizer": optimizer,
        "seed": range(5),
        "epochs": 40,
        "batch_size": 100,
        "schedule": linear_end,
        "every": 100,
        "device": "cpu",  # a recording is what it is, wherever it is read
        **changes,
    }


def _nesterov() -> dict[str, object]:
    return _grid(
        rules.nesterov(0.9),
        lr=[0.01, 0.03, 0.1, 0.3, 1, 3],
        weight_decay=[0, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3],
    )


def _adam(optimizer: rules.Optimizer, weight_decay: list[float]) -> dict[str, object]:
    lr = [3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1]
    return _grid(optimizer, lr=lr, weight_decay=weight_decay, epochs=60)


def _unit_norm() -> dict[str, object]:
    return _grid(
        rules.unit_norm(rules.nesterov(0.9)),
        lr=[1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3],
        weight_decay=[0, 1e-3, 0.01, 0.03, 0.1, 0.3, 1, 3, 10],
    )


def _validated(definition: dict[str, object]) -> dict[str, object]:
    """Judged by training images held out instead of the test images."""
    return definition | {"data": datasets.mnist1d().held_out(800)}


def _reported(definition: dict[str, object], lr: float, weight_decay: float) -> dict[str, object]:
    """One cell, with seeds that had no part in choosing it."""
    return definition | {"lr": lr, "weight_decay": weight_decay, "seed": range(5, 45)}


def _both_decays(decay: str) -> dict[str, object]:
    lambdas = [1e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1]
    return _grid(rules.nesterov(0.9), lr=0.1, weight_decay=lambdas, decay=decay, seed=range(10))


def _first_steps(factor: float) -> dict[str, object]:
    """The learning rate of the hidden weights multiplied in the first 100 steps."""

    def schedule(step: int, steps: int) -> float:
        return linear_end(step, steps) * (factor if step < 100 else 1.0)

    return _grid(
        rules.nesterov(0.9),
        lr=0.03,
        lr_other=0.05,
        weight_decay=[0, 0.01],
        schedule=schedule,
        schedule_other=linear_end,
    )


def _cifar10(
    optimizer: rules.Optimizer, lr: list[float], weight_decay: list[float], seeds: int = 3
) -> dict[str, object]:
    """What the grids of CIFAR-10 share; γ, β and the head at a learning rate of their own."""
    return _grid(
        optimizer,
        net=nets.convnet(width=32, depth=3, norm="batch"),
        data=CIFAR10_JPEG,
        lr=lr,
        weight_decay=weight_decay,
        lr_other=0.003 if optimizer.name == "adam" else 0.05,
        seed=range(seeds),
        epochs=10,
    )


_L2 = [0, 1e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1]
_DECOUPLED = [0, 0.03, 0.1, 0.3, 1, 3, 10, 30]

DEFINITIONS = {
    # The Nesterov grid, the paper's way: one learning rate for every parameter.
    "nesterov": _nesterov,
    # The same, with γ, β and the head at a learning rate of their own.
    "nesterov_other": lambda: _nesterov() | {"lr_other": 0.05},
    # The same on a second data set; ten steps an epoch.
    "digits_other": lambda: (
        _nesterov() | {"data": datasets.digits(), "lr_other": 0.05, "epochs": 100}
    ),
    # The Adam grid, the paper's way and with a learning rate of their own.
    "adam": lambda: _adam(rules.adam(), _L2),
    "adam_other": lambda: _adam(rules.adam(), _L2) | {"lr_other": 0.003},
    "adamw_other": lambda: _adam(rules.adamw(), _DECOUPLED) | {"lr_other": 0.003},
    # The normalized grid, the paper's way and with a learning rate of their own for the rest.
    "unit_norm": _unit_norm,
    "unit_norm_other": lambda: _unit_norm() | {"lr_other": 0.05},
    # To choose the best cell by: the Nesterov grid, and one line of the normalized grid.
    "nesterov_validation": lambda: _validated(_nesterov()),
    "unit_norm_validation": lambda: _validated(_unit_norm()) | {"weight_decay": 0.0},
    # What they chose, with other seeds and the test images: the plane's best cell, the best of
    # its line λ = 0, and the best of the normalized line.
    "nesterov_report": lambda: _reported(_nesterov(), 0.01, 0.1),
    "nesterov_line_report": lambda: _reported(_nesterov(), 0.3, 0.0),
    "unit_norm_report": lambda: _reported(_unit_norm(), 0.1, 0.0),
    # Decay on all weights, and on γ, β and the head's bias too.
    "decay_weights": lambda: _both_decays("weights"),
    "decay_all": lambda: _both_decays("all"),
    # The first 100 steps with another learning rate.
    "first_tenth": lambda: _first_steps(0.1),
    "first_same": lambda: _first_steps(1.0),
    "first_tenfold": lambda: _first_steps(10.0),
    # The three grids on CIFAR-10.
    "cifar10_nesterov": lambda: _cifar10(
        rules.nesterov(0.9),
        lr=[0.01, 0.03, 0.1, 0.3, 1],
        weight_decay=[0, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1],
        seeds=5,
    ),
    "cifar10_adam": lambda: _cifar10(
        rules.adam(),
        lr=[1e-3, 3e-3, 0.01, 0.03, 0.1],
        weight_decay=[0, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3],
    ),
    "cifar10_unit_norm": lambda: _cifar10(
        rules.unit_norm(rules.nesterov(0.9)),
        lr=[1e-3, 3e-3, 0.01, 0.03, 0.1],
        weight_decay=[0, 1e-3, 0.01, 0.03, 0.1, 0.3, 1],
    ),
}


# On the published images, whole, for a CUDA device; `recorded` finds those that somebody ran.
FULL_SIZE = {f"full_{name}": name for name in DEFINITIONS if name.startswith("cifar10_")}


def full_size(
    name: str,
    data: datasets.Dataset | datasets.Identity,
    keep: str | Path | None = None,
    **changes: object,
) -> dict[str, object]:
    """The arguments of `nl.sweep` for a grid of `FULL_SIZE`, on the device that a sweep takes.

    Parameters
    ----------
    name : str
        E.g. ``"full_cifar10_nesterov"``.
    data : Dataset or Identity
        ``nl.cifar10(root)``.
    keep : str, Path or None
        The sweep's folder. If parts are there, they decide the precision: the next device may
        compute fastest with another.
    **changes
        Other arguments of `nl.sweep`.

    Returns
    -------
    dict

    Raises
    ------
    ValueError
        For an unknown name.

    Notes
    -----
    Settings were chosen without having been run. Chapter 10.

    >>> full_size("full_cifar10_adam", nl.mnist1d())["epochs"]
    30
    """
    if name not in FULL_SIZE:
        raise ValueError(f'no grid of full size is named "{name}"; there are {_list(FULL_SIZE)}')
    return DEFINITIONS[FULL_SIZE[name]]() | {
        "net": nets.convnet(width=64, depth=3, norm="batch"),
        "data": data,
        "epochs": 30,
        "augment": images.flip_and_shift(),
        "precision": _precision_of(keep) or sweeps.fast_precision(),
        "device": None,
        "keep": keep,
        **changes,
    }


def _precision_of(folder: str | Path | None) -> str | None:
    """That of the first whole part in a folder."""
    for path in sorted(Path(folder).glob("seed*.npz")) if folder else ():
        with contextlib.suppress(ValueError, KeyError, OSError):
            return files.read(path)[1]["settings"]["precision"]
    return None


@dataclass(frozen=True)
class Recording:
    """A recorded sweep.

    Attributes
    ----------
    name : str
    definition : dict
        The arguments of `nl.sweep` that make it.
    runs : xarray.Dataset
        What came out, raw values of every seed.
    provenance : list of dict
        For each part: versions, device, threads, date and seconds.
    """

    name: str
    definition: dict[str, object]
    runs: xr.Dataset
    provenance: list[dict[str, object]]

    def rerun(self, **changes: object) -> xr.Dataset:
        """Compute it now, with some arguments of `nl.sweep` changed.

        >>> recording = recorded("nesterov")  # doctest: +SKIP
        >>> recording.rerun(seed=range(3))  # doctest: +SKIP
        """
        return sweeps.sweep(**with_images(self.definition | changes))


def recorded(name: str) -> Recording:
    """A sweep that takes minutes, from the parts that were shipped.

    With the environment variable ``NORMLIB_RERUN=1`` it is computed anew instead.

    Parameters
    ----------
    name : str
        One of ``normlib.recordings.DEFINITIONS``, or of ``FULL_SIZE`` where somebody ran it.

    Returns
    -------
    Recording

    Raises
    ------
    ValueError
        For an unknown name.
    RuntimeError
        If parts are missing, damaged, or of another specification than the definition's.

    Notes
    -----
    Chapter 04 shows the first ones.
    """
    if name not in FULL_SIZE:
        definition = _definition(name)
        if os.environ.get("NORMLIB_RERUN") == "1":
            return Recording(name, definition, sweeps.sweep(**with_images(definition)), [])
    found = []
    for path in sorted((FOLDER / name).glob("*.npz")):
        try:
            found.append(files.read(path))
        except ValueError as error:
            raise RuntimeError(f'recording "{name}": {error}') from None
    make = "make gpu, on a CUDA device" if name in FULL_SIZE else "python -m normlib.recordings"
    if not found:
        raise RuntimeError(f'recording "{name}" has no parts; make it: {make}')
    if name in FULL_SIZE:
        definition, plan = _as_it_was_run(name, found[0][1]["settings"])
    else:
        plan = sweeps.plan(**definition)
    spec = plan.spec
    if any(about["spec"] != spec for _, about in found):
        raise RuntimeError(
            f'recording "{name}" has parts of another specification than its definition has now; '
            f"remove them and make it again: {make}"
        )
    runs = sweeps.assemble(plan, found)
    keys = ("device", "threads", "torch", "numpy", "python", "machine", "date", "seconds")
    provenance = [{key: about[key] for key in keys} for _, about in found]
    runs.attrs["seconds"] = sum(p["seconds"] for p in provenance)
    runs.attrs |= {key: provenance[0][key] for key in ("torch", "device", "threads", "date")}
    return Recording(name, definition, runs, provenance)


def _as_it_was_run(name: str, settings: dict) -> tuple[dict[str, object], sweeps._Plan]:
    """Definition and plan of a grid of full size, on whatever machine they are read.

    Images, device and precision are those of the machine that ran it.
    """
    device = settings["device"]
    definition = full_size(
        name,
        datasets.Identity.of(settings["data"]),
        precision=settings["precision"],
        device=device,
    )
    plan = sweeps.plan(**definition | {"device": "cpu"})  # this machine may lack that device
    return definition, replace(plan, device=torch.device(device))


def _definition(name: str) -> dict[str, object]:
    if name in FULL_SIZE:
        raise ValueError(f'"{name}" is made by chapter 10 on a CUDA device: make gpu')
    if name not in DEFINITIONS:
        known = _list([*DEFINITIONS, *FULL_SIZE])
        raise ValueError(f'no recording is named "{name}"; there are {known}')
    return DEFINITIONS[name]()


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)


def record(name: str) -> None:
    """Make or finish a recording; an interrupted one goes on where it stopped."""
    sweeps.sweep(**with_images(_definition(name)), keep=FOLDER / name)


def with_images(definition: dict[str, object]) -> dict[str, object]:
    """The definition with the images themselves, so that it can be trained.

    Raises
    ------
    ValueError
        If the images are not shipped, and the environment variable ``NORMLIB_CIFAR10`` does not
        name the folder that holds them.
    """
    wanted = definition["data"]
    if not isinstance(wanted, datasets.Identity):
        return definition
    if wanted != CIFAR10_JPEG:
        raise ValueError(f'the images of "{wanted.source}" are not shipped: give data=…')
    folder = os.environ.get("NORMLIB_CIFAR10")
    if not folder:
        raise ValueError(
            f'the images of "{wanted.source}" are not shipped; let the environment variable '
            "NORMLIB_CIFAR10 name the folder that holds them, as train/<class>/ and test/<class>/"
        )
    data = _jpeg_copy(folder)
    if data.identity != wanted:
        raise ValueError(
            f'NORMLIB_CIFAR10: the images in {folder} are not those of "{wanted.source}"'
        )
    return definition | {"data": data}


@functools.lru_cache(maxsize=1)
def _jpeg_copy(folder: str) -> datasets.Dataset:
    return images.image_folder(folder, source="CIFAR-10, a JPEG copy").balanced(1000)
