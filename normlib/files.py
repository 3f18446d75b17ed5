"""Finished work in files that are whole or not there. Knows files and digests; no training.

A part is one compressed numpy file, `<label>.<digest>.npz`. It is written under a temporary name
and moved into place when it is complete, and the digest in its name is that of its bytes, so a
part that was cut short or damaged is recognised when it is read.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

_NAME = re.compile(r"seed\d+-cells\d+-\d+\.[0-9a-f]{16}\.npz(\.tmp)?")


def fingerprint(value: object) -> str:
    """A short digest of anything that JSON can hold, the same on every machine.

    >>> fingerprint({"b": 1, "a": [0.1]}) == fingerprint({"a": [0.1], "b": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write(folder: Path, label: str, arrays: Mapping[str, np.ndarray], about: Mapping) -> Path:
    """Write one part and return its path; nothing is left behind if that fails.

    Parameters
    ----------
    folder : Path
        Made if it is not there.
    label : str
        What the part is, e.g. ``"seed0-cells0-27"``.
    arrays : mapping of str to ndarray
    about : mapping
        What JSON can hold: the specification it belongs to, versions, times.

    Raises
    ------
    OSError
        If the folder cannot be written or the disk is full.
    """
    buffer = io.BytesIO()
    np.savez_compressed(buffer, about=np.array(json.dumps(about)), **arrays)
    content = buffer.getvalue()
    path = folder / f"{label}.{hashlib.sha256(content).hexdigest()[:16]}.npz"
    with whole(path) as file:
        file.write(content)
    return path


@contextlib.contextmanager
def whole(path: Path, unfinished: str = ".tmp") -> Iterator[BinaryIO]:
    """A file to write to that becomes `path` when all is written, and is removed otherwise.

    Parameters
    ----------
    path : Path
        Its folder is made if it is not there.
    unfinished : str
        What follows the name until then. Two processes that may write one file at a time need
        names of their own.

    Raises
    ------
    OSError
        If the folder cannot be written or the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + unfinished)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:  # a reader's Ctrl-C too
        temporary.unlink(missing_ok=True)
        raise


def read(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """The arrays of a part and what it says about itself.

    Raises
    ------
    ValueError
        If its bytes are not those that were written.
    """
    content = Path(path).read_bytes()
    if path.name.split(".")[-2] != hashlib.sha256(content).hexdigest()[:16]:
        raise ValueError(f"{path} is damaged or incomplete")
    with np.load(io.BytesIO(content)) as file:
        arrays = {name: file[name] for name in file.files}
    return arrays, json.loads(str(arrays.pop("about")))


def usable(
    folder: Path, spec: str, tidy: bool = True
) -> Iterator[tuple[dict[str, np.ndarray], dict]]:
    """Every part in a folder that is whole and belongs to the specification `spec`.

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
            problem = None if about["spec"] == spec else "belongs to another sweep"
        except (ValueError, KeyError, OSError) as error:
            problem = str(error)
        if problem is None:
            yield arrays, about
        if problem is None or not tidy:
            continue
        with contextlib.suppress(OSError):  # in a folder that cannot be written it stays
            os.replace(path, path.with_name(path.name + ".aside"))
        warnings.warn(f"set aside {path.name}: {problem}", stacklevel=5)
