"""How chapters are run for the book: no deadlock on widgets, nothing half written."""

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbclient.output_widget import OutputWidget

from tools import notebooks


@pytest.fixture
def notebook(tmp_path):
    """Write a notebook of the given cells; the path."""

    def write(*sources):
        path = tmp_path / "chapter.ipynb"
        cells = [nbformat.v4.new_code_cell(source) for source in sources]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
        return path

    return write


def test_widgets_get_no_answer(notebook, monkeypatch):
    """An answer goes over the socket on which nbclient waits, and can make it wait for ever."""
    answers = []
    monkeypatch.setattr(OutputWidget, "send", lambda self, data: answers.append(data))
    path = notebook("import ipywidgets", "ipywidgets.interact(lambda x: print(x), x=3);", "6 * 7")
    notebooks.execute(path)
    assert answers == []
    assert nbformat.read(path, as_version=4).cells[2].outputs[0].data["text/plain"] == "42"


def test_two_runs_write_the_same_bytes(notebook):
    path = notebook("import normlib as nl", "nl.sgd()")
    notebooks.execute(path)
    first = path.read_bytes()
    notebooks.execute(path)
    assert path.read_bytes() == first
    assert b"outputs" in first


def test_pieces_of_one_stream_are_one_output(notebook):
    """Where a kernel splits what is printed is chance."""
    source = "import sys\nfor i in range(3): print(i, flush=True)\nprint('x', file=sys.stderr)"
    path = notebook(source)
    notebooks.execute(path)
    outputs = nbformat.read(path, as_version=4).cells[0].outputs
    assert [(o.name, o.text) for o in outputs] == [("stdout", "0\n1\n2\n"), ("stderr", "x\n")]
    split = [nbformat.v4.new_output("stream", name=n, text=t) for n, t in
             (("stdout", "a"), ("stdout", "b"), ("stderr", "c"), ("stdout", "d"))]  # fmt: skip
    assert [output.text for output in notebooks.merged(split)] == ["ab", "c", "d"]


def test_a_failure_leaves_the_file_as_it_was(notebook):
    path = notebook("print('done')", "1 / 0")
    before = path.read_bytes()
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        notebooks.execute(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
