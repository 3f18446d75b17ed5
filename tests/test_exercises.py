"""Every exercise of a chapter has a solution, and the code in the book's pages runs."""

import re

import nbformat
import pytest

from tests.conftest import CHAPTERS, ROOT


def code(page):
    return re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)


PAGE = (ROOT / "book" / "exercises.md").read_text(encoding="utf-8")
BLOCKS = code(PAGE)


def asked(path):
    """How many exercises a chapter asks."""
    notebook = nbformat.read(path, as_version=4)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    part = re.search(r"^## Exercises\n(.*?)(?:^\*\*Next|\Z)", text, re.M | re.S)
    return len(re.findall(r"^\d+\. ", part[1], re.M)) if part else 0


@pytest.mark.parametrize(
    "path", [p for p in CHAPTERS if not p.name.startswith("00")], ids=lambda path: path.stem
)
def test_every_exercise_of_a_chapter_has_a_solution(path):
    number = int(path.name[:2])
    count = asked(path)
    assert count >= 4
    for i in range(1, count + 1):
        assert f":label: ex-{number}-{i}\n" in PAGE
        assert re.search(rf"^`+\{{solution\}} ex-{number}-{i}$", PAGE, re.M)
    assert f":label: ex-{number}-{count + 1}\n" not in PAGE


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.strip().split("\n")[-1][:40])
def test_code_of_a_solution_runs(block):
    exec(compile(block, "solution", "exec"), {})


def test_solutions_check_what_they_say():
    assert len(BLOCKS) >= 8
    assert all("assert" in block for block in BLOCKS)


def test_code_of_the_page_on_own_rules_runs():
    """Its blocks belong together."""
    blocks = code((ROOT / "book" / "own_rule.md").read_text(encoding="utf-8"))
    assert sum("assert" in block for block in blocks) >= 3
    exec(compile("\n".join(blocks), "own_rule.md", "exec"), {})
