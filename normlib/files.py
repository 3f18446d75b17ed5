"""A file is whole or not there; records that can be recognised. Knows files and JSON alone."""

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

ROUNDING = 1e-5  # relative; another processor changes what is computed by less than 1e-6


def fingerprint(value: object) -> str:
    """A short digest of anything that JSON can hold, floats to six digits.

    >>> fingerprint({"b": 1, "a": [0.1]}) == fingerprint({"a": [0.1], "b": 1})
    True
    """

    def rounded(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: rounded(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [rounded(item) for item in value]
        return f"{value:.6g}" if isinstance(value, float) else value

    text = json.dumps(rounded(value), sort_keys=True)
    return digest(text.encode())


def digest(*contents: bytes) -> str:
    """A short digest of some bytes, the same on every machine.

    >>> digest(b"a", b"b") == digest(b"ab")
    True
    """
    total = hashlib.sha256()
    for content in contents:
        total.update(content)
    return total.hexdigest()[:16]


def agree(one: Any, other: Any) -> bool:
    """Whether two records that JSON can hold are the same, floats up to rounding.

    A digest cannot tell: numbers that are nearly equal may round to different digits.

    >>> agree({"lr": [0.1, 1]}, {"lr": [0.1 + 1e-9, 1]}), agree({"lr": 0.1}, {"lr": 0.1001})
    (True, False)
    """
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(agree(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(agree, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=ROUNDING, abs_tol=ROUNDING**2)
    return bool(one == other)


def projection(values: np.ndarray) -> float:
    """One number that depends on every value and its place, to recognise computed values by.

    >>> projection(np.arange(3.0)) == projection(np.array([0.0, 2.0, 1.0]))
    False
    """
    flat = np.ravel(values).astype(float)
    return float(flat @ np.cos(1.1 + 0.73 * np.arange(flat.size))) / max(flat.size, 1) ** 0.5


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
