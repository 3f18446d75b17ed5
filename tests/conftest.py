"""Shared by all tests: where things are, the chapters, and small helpers."""

import os
from pathlib import Path

import nbformat
import pytest
import torch

import normlib as nl

# Tests run side by side, one core each, and nobody watches.
torch.set_num_threads(1)
os.environ["NORMLIB_PROGRESS"] = "0"
os.environ["NORMLIB_JOBS"] = "1"

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def skip_unless_ci(reason: str) -> None:
    """Skip with a reason on a person's machine; CI must have everything."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def noise(train: int, test: int, source: str = "noise") -> nl.Dataset:
    """Colour images of 8 × 8 pixels with nothing on them, in ten classes."""
    x = torch.randn(train + test, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    y = torch.arange(train + test) % 10
    return nl.Dataset(x[:train], y[:train], x[train:], y[train:], 10, source)


@pytest.fixture(scope="session")
def data():
    return nl.mnist1d()
