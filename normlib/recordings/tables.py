"""What a chapter's own code gave, computed once and shipped. Knows files and NetCDF."""

import datetime
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import xarray as xr

from normlib import files

FOLDER = Path(__file__).parent
TABLES = (
    "rules_of_decay",
    "rotation",
    "rotation_everywhere",
    "rotation_falling",
    "replayed",
    "fine_tuned",
    "decoders",
    "decoders_on_prose",
)


def kept(
    name: str,
    settings: Mapping[str, Any],
    make: Callable[[], xr.Dataset],
    folder: Path | None = None,
) -> xr.Dataset:
    """What `make` gives, from the file that was shipped; where there is none it is made and kept.

    For trainings that are no `nl.Sweep`. With the environment variable ``NORMLIB_RERUN=1`` they
    are computed anew, and nothing is written.

    Parameters
    ----------
    name : str
        One of ``TABLES``.
    settings : mapping
        All that the result depends on beside the code, as JSON can hold it.
    make : callable
        The training.
    folder : Path, optional
        Where the file is; by default in the package.

    Returns
    -------
    Dataset
        Its attributes say with which torch, how many threads, when and in how many seconds it was
        made.

    Raises
    ------
    RuntimeError
        If the file is damaged or was made with other settings.

    Notes
    -----
    Chapter 09. That the code is still what it was, the chapter must show: it computes a little of
    the recording again.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for value in (1.0, 2.0):
    ...         found = kept("one", {}, lambda: xr.Dataset({"x": value}), Path(folder))
    ...         print(float(found.x))
    1.0
    1.0
    """
    path = (folder or FOLDER) / f"{name}.nc"
    rerun = os.environ.get("NORMLIB_RERUN") == "1"
    if path.exists() and not rerun:
        return _read(path, settings)
    start = time.perf_counter()
    made = make()
    made.attrs |= {
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "date": str(datetime.date.today()),
        "seconds": round(time.perf_counter() - start),
    }
    if not rerun:
        about = {"settings": json.dumps(settings), "digest": digest(made)}
        write(path, made.assign_attrs(about))
    return made


def _read(path: Path, settings: Mapping[str, Any]) -> xr.Dataset:
    try:
        found = xr.load_dataset(path, engine="h5netcdf")
        whole = found.attrs.pop("digest") == digest(found)
    except (OSError, KeyError, ValueError, RuntimeError):
        whole = False
    if not whole:
        raise RuntimeError(f'recording "{path.stem}": {path} is damaged or incomplete')
    if not files.agree(json.loads(found.attrs.pop("settings")), json.loads(json.dumps(settings))):
        raise RuntimeError(
            f'recording "{path.stem}" was made with other settings; remove {path.name} and run '
            "its chapter again"
        )
    return found


def digest(runs: xr.Dataset) -> str:
    """Of all numbers: the bytes of a NetCDF file differ between versions of its library."""
    names = sorted(map(str, runs.data_vars))
    return files.digest(*(runs[n].values.astype(runs[n].dtype.newbyteorder("<")).tobytes()
                          for n in names))  # fmt: skip


def write(path: Path, runs: xr.Dataset) -> None:
    """One file, whole or not there."""
    encoding = {name: {"zlib": True, "complevel": 9, "shuffle": True}
                for name, values in runs.data_vars.items() if values.ndim}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, files.whole(path) as file:
        runs.to_netcdf(Path(folder) / path.name, engine="h5netcdf", encoding=encoding)
        file.write((Path(folder) / path.name).read_bytes())
