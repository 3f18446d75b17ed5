"""The guards on the chapters, and that each guard sees what it guards against."""

import copy
import re

import nbformat.v4 as new
import pytest
import yaml

import normlib as nl
from normlib.notebook import CheckError
from tests import guards
from tests.conftest import CHAPTERS, ROOT, read

CHECKS = [record for path in CHAPTERS for record in guards.records(read(path))]


@pytest.mark.parametrize("guard", guards.GUARDS, ids=lambda guard: guard.__name__)
@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_is(path, guard):
    assert guard(read(path)) == []


def first(notebook, predicate):
    return next(cell for cell in guards.code(notebook) if predicate(cell))


def has_figure(cell):
    return any("image/png" in o.get("data", {}) for o in cell.outputs)


def has_check(cell):
    return any("normlib" in o.get("metadata", {}) for o in cell.outputs)


def break_order(nb):
    guards.code(nb)[1].execution_count = None


def break_errors(nb):
    guards.code(nb)[1].outputs.append(new.new_output("error", ename="E", evalue="", traceback=[]))


def break_warnings(nb):
    guards.code(nb)[1].outputs.append(new.new_output("stream", name="stderr", text="Warning"))


def break_seed(nb):
    cell = guards.code(nb)[0]
    cell.source = cell.source.replace("torch.manual_seed(0)", "# torch.manual_seed(0)")


def break_tag(nb):
    guards.code(nb)[1].metadata["tags"] = ["nbval-ignore-outputs"]


def break_ignored(nb):
    guards.code(nb)[1].metadata["tags"] = ["nbval-ignore-output"]


def break_comment(nb):
    guards.code(nb)[1].source += "\n# NBVAL_SKIP"


def break_live(nb):
    cell = first(nb, lambda cell: "live" in guards.tags(cell))
    cell.outputs.append(new.new_output("display_data", data={"text/plain": "a slider"}))


def break_two_figures(nb):
    cell = first(nb, has_figure)
    cell.outputs.append(copy.deepcopy(cell.outputs[0]))


def break_output_text(nb):
    first(nb, has_figure).outputs[0].metadata["image/png"]["alt"] = ""


def break_page_text(nb):
    output = first(nb, has_figure).outputs[0]
    output.data["text/html"] = output.data["text/html"].replace(' alt="', ' alt="Not: ', 1)


def break_reading(nb):
    first(nb, has_figure).outputs[0].metadata["unreadable"] = ["'step' has 6 px on a phone"]


def break_html_text(nb):
    cell = first(
        nb, lambda c: any("<img" in o.get("data", {}).get("text/html", "") for o in c.outputs)
    )
    for output in cell.outputs:
        output.data["text/html"] = output.data["text/html"].replace(' alt="', ' data-alt="', 1)


def break_markdown(nb):
    nb.cells[0].source += "\n\n```{note}\nraw in Colab\n```"


def break_role(nb):
    nb.cells[0].source += " {cite:p}`vanlaarhoven2017`"


def break_glue(nb):
    guards.code(nb)[1].source += "\nfrom myst_nb import glue"


def break_alternative(nb):
    record = guards.records(nb)[0]
    record["alternative_values"] = record["values"]


def break_measured(nb):
    record = guards.records(nb)[0]
    record["values"] = record["alternative_values"]


def break_summary(nb):
    guards.records(nb)[0]["high"] += 1


def break_checks(nb):
    for cell in guards.code(nb):
        cell.outputs = [o for o in cell.outputs if "normlib" not in o.get("metadata", {})]


def break_claims(nb):
    guards.records(nb)[0]["id"] = "Z9.unheard_of"


def break_names(nb):
    cell = first(nb, has_check)
    cell.outputs.append(copy.deepcopy(next(o for o in cell.outputs if "normlib" in o.metadata)))


BREAKS = {
    guards.executed_in_order: [break_order],
    guards.without_errors: [break_errors],
    guards.without_warnings: [break_warnings],
    guards.seeded_in_its_first_cell: [break_seed],
    guards.with_known_tags: [break_tag],
    guards.ignoring_only_live_outputs: [break_ignored],
    guards.without_nbval_comments: [break_comment],
    guards.live_cells_without_outputs: [break_live],
    guards.figures_with_text: [break_two_figures, break_output_text, break_page_text],
    guards.figures_to_be_read: [break_reading],
    guards.images_in_html_with_text: [break_html_text],
    guards.plain_markdown: [break_markdown, break_role, break_glue],
    guards.checks_with_alternatives: [
        break_alternative,
        break_measured,
        break_summary,
        break_checks,
    ],
    guards.checks_with_distinct_names: [break_names],
    guards.checks_of_known_claims: [break_claims],
}


@pytest.mark.parametrize(
    ("guard", "damage"),
    [(guard, damage) for guard, damages in BREAKS.items() for damage in damages],
    ids=lambda function: function.__name__,
)
def test_guard_sees_the_damage(guard, damage):
    notebook = read(ROOT / "notebooks" / "00_quickstart.ipynb")
    assert guard(notebook) == []
    damage(notebook)
    assert guard(notebook)


def test_every_guard_was_seen_to_fail():
    assert set(BREAKS) == set(guards.GUARDS)


def test_ignored_cells_are_counted():
    ignored = {
        path.stem: sum("nbval-ignore-output" in guards.tags(c) for c in guards.code(read(path)))
        for path in CHAPTERS
    }
    assert {name: count for name, count in ignored.items() if count} == {"00_quickstart": 1}


def test_every_chapter_is_in_the_table_of_contents():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    listed = {chapter["file"] for part in toc["parts"] for chapter in part["chapters"]}
    assert {f"notebooks/{path.stem}" for path in CHAPTERS} <= listed
    assert all((ROOT / f"{f}.md").exists() or (ROOT / f"{f}.ipynb").exists() for f in listed)


@pytest.mark.parametrize("record", CHECKS, ids=lambda record: record["id"])
def test_check_fails_for_its_alternative(record):
    prediction = {k: record[k] for k in ("expected", "tolerance", "below", "above", "each")}
    alternative = record["alternative_name"], record["alternative_values"]
    if alternative[0] is None:
        alternative = record["alternative"]
    with pytest.raises(CheckError, match=r"measured .*: outside$"):
        nl.check(
            record["id"], record["claim"], record["alternative_values"],
            alternative=alternative, **prediction,
        )  # fmt: skip


def test_ids_of_checks_are_unique_in_the_book():
    ids = [record["id"] for record in CHECKS]
    assert len(ids) > 100
    assert sorted(ids) == sorted(set(ids))


@pytest.mark.parametrize("page", ["practice", "faq"])
def test_a_page_names_checks_that_its_chapters_have(page):
    """As in "[chapter 04](../notebooks/04_….ipynb), F1"."""
    text = (ROOT / "book" / f"{page}.md").read_text(encoding="utf-8")
    link = r"\[chapter (\d\d)\]\(\.\./notebooks/(\S+?)\.ipynb\)"
    named = re.findall(link + r", ([A-Z]\d(?:(?:, | and )[A-Z]\d)*)", text)
    assert len(named) >= 10
    found = {
        path.stem: {r["id"].split(".")[0] for r in guards.records(read(path))} for path in CHAPTERS
    }
    for number, stem, ids in named:
        assert stem.startswith(number)
        if stem in found:  # else the build of the pages says that it is missing
            assert set(re.findall(r"[A-Z]\d", ids)) <= found[stem], stem


def test_the_set_up_cell_is_the_same_in_every_chapter():
    """Up to the imports, which each chapter chooses."""
    starts = {guards.code(read(path))[0].source.split("import matplotlib")[0] for path in CHAPTERS}
    assert len(starts) == 1
