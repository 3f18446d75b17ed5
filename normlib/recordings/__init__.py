"""Sweeps computed once and shipped with the package, one file each. Knows sweeps and NetCDF.

`definitions` says what each recording is; the files beside it hold what came out, the settings
they were made with, and where each part of them was computed. ``python -m normlib.recordings``
makes what is missing. `tables` keeps what is no sweep.
"""

import contextlib
import functools
import json
import os
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import xarray as xr

from normlib import files
from normlib.data import Dataset, Identity, flip_and_shift, image_folder
from normlib.networks import convnet
from normlib.recordings.definitions import (
    CIFAR10_JPEG,
    DEFINITIONS,
    FULL_SIZE,
    definition,
    linear_end,
)
from normlib.recordings.tables import FOLDER, TABLES, digest, kept, write
from normlib.sweeps import Sweep, fast_precision, store
from normlib.sweeps.parts import Part
from normlib.sweeps.spec import ALGORITHM, Arrays
from normlib.sweeps.training import FINAL

__all__ = [
    "DEFINITIONS",
    "FULL_SIZE",
    "TABLES",
    "Recording",
    "full_size",
    "kept",
    "linear_end",
    "recorded",
]


@attrs.frozen(eq=False)
class Recording:
    """A recorded sweep.

    Attributes
    ----------
    name : str
    spec : Sweep
        What was run.
    runs : xarray.Dataset
        What came out, raw values of every seed.
    provenance : list of dict
        For each part: its seed and cells, versions, device, threads, date and seconds.
    """

    name: str
    spec: Sweep
    runs: xr.Dataset = attrs.field(repr=False)
    provenance: list[dict[str, Any]] = attrs.field(repr=False)

    def rerun(self, **changes: Any) -> xr.Dataset:
        """Compute it now, with some arguments of `nl.Sweep` changed. Chapter 04.

        >>> recorded("nesterov").rerun(seed=range(3))  # doctest: +SKIP
        """
        return with_images(self.spec.replace(**changes)).run()


def recorded(name: str) -> Recording:
    """A sweep that takes minutes, from the file that was shipped.

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
        If the file is missing, damaged, or of other settings than the definition's.

    Notes
    -----
    Chapter 04 shows the first ones.

    >>> recorded("nesterov").runs.test_error.dims
    ('lr', 'weight_decay', 'seed')
    """
    if name not in FULL_SIZE and os.environ.get("NORMLIB_RERUN") == "1":
        return Recording(name, definition(name), with_images(definition(name)).run(), [])
    full = name in FULL_SIZE
    spec = None if full else definition(name)
    make = "make gpu, on a CUDA device" if full else "python -m normlib.recordings"
    path = FOLDER / f"{name}.nc"
    if not path.exists():
        raise RuntimeError(f'recording "{name}" has no file; make it: {make}')
    runs, settings, provenance = _read(path)
    spec = spec or _as_it_was_run(name, settings)
    # A newer version of the algorithm does not make a recording wrong: see `outdated`.
    if not files.agree(settings | {"algorithm": 0}, spec.settings | {"algorithm": 0}):
        raise RuntimeError(
            f'recording "{name}" was made with other settings than its definition has now; '
            f"remove {path.name} and make it again: {make}"
        )
    return Recording(name, spec, runs, provenance)


def outdated() -> list[str]:
    """Names of shipped recordings that another version of the algorithm made."""
    found = []
    for name in DEFINITIONS:
        path = FOLDER / f"{name}.nc"
        if path.exists():
            with xr.open_dataset(path, engine="h5netcdf") as runs:  # its numbers are not read
                if json.loads(runs.attrs["settings"])["algorithm"] != ALGORITHM:
                    found.append(name)
    return found


def record(name: str, parts: Path) -> None:
    """Make or finish a recording, with its parts in a folder while it is made.

    One of `FULL_SIZE` is only put together, of parts that chapter 10 has computed.

    Raises
    ------
    ValueError
        For an unknown name, or if images or parts are missing.
    """
    if name in FULL_SIZE:
        first = next(iter(sorted(parts.glob("seed*.npz"))), None)
        if first is None:
            raise ValueError(f'{parts} holds no parts of "{name}"; they are made by: make gpu')
        spec = _as_it_was_run(name, store.read(first)[1]["settings"])
    else:
        spec = with_images(definition(name))
        spec.run(parts)
    _write(FOLDER / f"{name}.nc", spec, list(store.usable(parts, spec.settings)))


def _write(path: Path, spec: Sweep, made: list[tuple[Arrays, store.About]]) -> None:
    """One file from all parts of a sweep and what each says about itself."""
    found = {Part(about["seed"], about["first"], about["stop"]): (a, about) for a, about in made}
    parts = list(spec.parts(made[0][1]["chunk_size"], found))
    if missing := [part.label for part in parts if part not in found]:
        raise ValueError(f"parts are missing: {', '.join(missing)}")
    runs = spec.assemble(found[part][0] for part in parts)
    for name in set(runs.data_vars) - set(FINAL):
        narrow = runs[name].astype(np.float32)
        if narrow.equals(runs[name]):  # traces were computed in single precision
            runs[name] = narrow
    about = [
        {key: value for key, value in found[part][1].items() if key != "settings"} for part in parts
    ]
    shared = {key: value for key, value in about[0].items() if all(a[key] == value for a in about)}
    runs.attrs |= {
        "settings": json.dumps(found[parts[0]][1]["settings"]),
        "shared": json.dumps(shared),
        "parts": json.dumps([{k: v for k, v in a.items() if k not in shared} for a in about]),
        "digest": digest(runs),
    }
    write(path, runs)


def _read(path: Path) -> tuple[xr.Dataset, dict[str, Any], list[dict[str, Any]]]:
    """Runs in double precision, settings, and what each part says about itself."""
    try:
        runs = xr.load_dataset(path, engine="h5netcdf")
        whole = runs.attrs.pop("digest") == digest(runs)
    except (OSError, KeyError, ValueError, RuntimeError):
        whole = False
    if not whole:
        raise RuntimeError(f'recording "{path.stem}": {path} is damaged or incomplete')
    settings, shared, parts = (
        json.loads(runs.attrs.pop(key)) for key in ("settings", "shared", "parts")
    )
    provenance = [shared | part for part in parts]
    runs.attrs["seconds"] = sum(part["seconds"] for part in provenance)
    runs.attrs |= {key: provenance[0][key] for key in ("torch", "device", "threads", "date")}
    for name in runs.data_vars:
        runs[name] = runs[name].astype(float)
    return runs, settings, provenance


def _as_it_was_run(name: str, settings: dict[str, Any]) -> Sweep:
    """The spec of a grid of full size, on whatever machine it is read."""
    data = Identity.of(settings["data"])
    return full_size(name, data, precision=settings["precision"])


def full_size(
    name: str,
    data: Dataset | Identity,
    checkpoint_dir: str | Path | None = None,
    **changes: Any,
) -> Sweep:
    """A grid of `FULL_SIZE`, on the device that a sweep takes.

    Parameters
    ----------
    name : str
        E.g. ``"full_cifar10_nesterov"``.
    data : Dataset or Identity
        ``nl.cifar10(root)``.
    checkpoint_dir : str, Path or None
        Where it will be run. If parts are there, they decide the precision: the next device may
        compute fastest with another.
    **changes
        Other arguments of `nl.Sweep`.

    Raises
    ------
    ValueError
        For an unknown name.

    Notes
    -----
    Settings were chosen without having been run. Chapter 10.

    >>> full_size("full_cifar10_adam", nl.mnist1d()).epochs
    30
    """
    if name not in FULL_SIZE:
        known = ", ".join(FULL_SIZE)
        raise ValueError(f'no grid of full size is named "{name}"; there are {known}')
    settings = {
        "net": convnet(width=64, depth=3, norm="batch"),
        "data": data,
        "epochs": 30,
        "augment": flip_and_shift(),
        "precision": _precision_of(checkpoint_dir) or fast_precision(),
        "device": None,
    }
    return DEFINITIONS[FULL_SIZE[name]]().replace(**settings | changes)


def _precision_of(folder: str | Path | None) -> str | None:
    """That of the first whole part in a folder."""
    for path in sorted(Path(folder).glob("seed*.npz")) if folder else ():
        with contextlib.suppress(ValueError, KeyError, OSError):
            return str(store.read(path)[1]["settings"]["precision"])
    return None


def with_images(spec: Sweep) -> Sweep:
    """The spec with the images themselves, so that it can be run.

    Raises
    ------
    ValueError
        If the images are not shipped, and the environment variable ``NORMLIB_CIFAR10`` does not
        name the folder that holds them.
    """
    wanted = spec.data
    if isinstance(wanted, Dataset):
        return spec
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
    return spec.replace(data=data)


@functools.lru_cache(maxsize=1)
def _jpeg_copy(folder: str) -> Dataset:
    return image_folder(folder, source="CIFAR-10, a JPEG copy").balanced(1000)
