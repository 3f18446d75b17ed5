"""Shared by all tests: where things are, the chapters, and small helpers."""

import os
from pathlib import Path

import nbformat
import pytest
import torch

import normlib as nl

# Tests run side by side, one core each.
torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def skip_unless_ci(reason: str) -> None:
    """Skip with a reason on a person's machine; CI must have everything."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


@pytest.fixture(autouse=True)
def doctest_names(doctest_namespace):
    """What every doctest may use."""
    doctest_namespace.update(nl=nl)


@pytest.fixture(scope="session")
def data():
    return nl.mnist1d()
