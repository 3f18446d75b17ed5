"""Finished parts of a sweep in a folder. Knows their names and files; no training.

A part is one compressed numpy file, `<label>.<digest>.npz`. The digest in its name is that of its
bytes, so a part that was cut short or damaged is recognised when it is read.
"""

import contextlib
import io
import json
import os
import re
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from normlib import files
from normlib.sweeps.spec import Arrays

About = dict[str, Any]

_NAME = re.compile(r"seed\d+-cells\d+-\d+\.[0-9a-f]{16}\.npz(\.tmp)?")


def write(folder: Path, label: str, arrays: Mapping[str, np.ndarray], about: About) -> Path:
    """Write one part and return its path; nothing is left behind if that fails.

    Parameters
    ----------
    folder : Path
        Made if it is not there.
    label : str
        What the part is, e.g. ``"seed0-cells0-27"``.
    arrays : mapping of str to ndarray
    about : dict
        What JSON can hold: the settings it belongs to, versions, times.

    Raises
    ------
    OSError
        If the folder cannot be written or the disk is full.
    """
    buffer = io.BytesIO()
    contents: dict[str, Any] = {"about": np.array(json.dumps(about)), **arrays}
    np.savez_compressed(buffer, **contents)
    content = buffer.getvalue()
    path = folder / f"{label}.{files.digest(content)}.npz"
    with files.whole(path) as file:
        file.write(content)
    return path


def read(path: Path) -> tuple[Arrays, About]:
    """The arrays of a part and what it says about itself.

    Raises
    ------
    ValueError
        If its bytes are not those that were written.
    """
    content = path.read_bytes()
    if path.name.split(".")[-2] != files.digest(content):
        raise ValueError(f"{path} is damaged or incomplete")
    with np.load(io.BytesIO(content)) as file:
        arrays = {name: file[name] for name in file.files}
    return arrays, json.loads(str(arrays.pop("about")))


def usable(folder: Path, settings: About, tidy: bool = True) -> Iterator[tuple[Arrays, About]]:
    """Every part in a folder that is whole and was made with these settings.

    Other parts are set aside, renamed to end in ``.aside``, with a warning that names them; what a
    killed process left half-written is removed after an hour. Files with other names are not
    touched; without `tidy` nothing is.
    """
    for path in sorted(folder.iterdir()):
        if not _NAME.fullmatch(path.name):
            continue
        if path.suffix == ".tmp":
            with contextlib.suppress(OSError):
                # else its writer may be at work
                if tidy and time.time() - path.stat().st_mtime > 3600:
                    path.unlink()
            continue
        try:
            arrays, about = read(path)
            problem = _difference(about["settings"], settings)
        except (ValueError, KeyError, OSError) as error:
            problem = str(error)
        if problem is None:
            yield arrays, about
        if problem is None or not tidy:
            continue
        with contextlib.suppress(OSError):  # in a folder that cannot be written it stays
            os.replace(path, path.with_name(path.name + ".aside"))
        warnings.warn(f"set aside {path.name}: {problem}", stacklevel=5)


def _difference(made: About, wanted: About) -> str | None:
    """Why a part with settings `made` cannot be used where `wanted` is asked for, if it cannot."""
    version, now = made.get("algorithm"), wanted["algorithm"]
    if version != now:
        return f"made by version {version} of the algorithm, not {now}"
    return None if files.agree(made, wanted) else "belongs to another sweep"
