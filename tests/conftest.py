"""Shared by all tests: where things are, the chapters, and small helpers."""

import os
from pathlib import Path

import nbformat
import pytest

import normlib as nl

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def skip_unless_ci(reason: str) -> None:
    """Skip with a reason on a person's machine; CI must have everything."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def tags(cell: nbformat.NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def committed_checks(path: Path) -> list[dict]:
    """The records that `nl.check` left in a chapter's outputs."""
    outputs = [output for cell in code_cells(path) for output in cell.outputs]
    return [o.metadata["normlib"] for o in outputs if "normlib" in o.get("metadata", {})]


@pytest.fixture(autouse=True)
def doctest_names(doctest_namespace):
    """What every doctest may use."""
    doctest_namespace.update(nl=nl)


@pytest.fixture(scope="session")
def data():
    return nl.mnist1d()
