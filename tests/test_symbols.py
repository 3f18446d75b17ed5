"""One symbol, one meaning: every symbol of a formula is on the notation page, once."""

import re

import nl_symbols as symbols
import pytest

from tests.conftest import CHAPTERS, ROOT, read

PAGE = (ROOT / "book/notation.md").read_text(encoding="utf-8")
TABLE = PAGE[PAGE.index("## Symbols") : PAGE.index("## Which λ?")]


def formulas(text):
    """Between dollars, outside code."""
    text = re.sub(r"^```(?!\{prf).*?^```", "", text, flags=re.S | re.M)
    text = re.sub(r"`[^`\n]*`", "", text)
    return [one or other for one, other in re.findall(r"\$\$(.+?)\$\$|\$([^$\n]+?)\$", text, re.S)]


def used(text):
    """The letters of a text's formulas, and its Greek ones outside."""
    inside = [pair for formula in formulas(text) for pair in symbols.letters(formula)]
    return inside + symbols.greek(re.sub(r"`[^`\n]*`", "", text))


KNOWN = {name for formula in formulas(TABLE) for _, name in symbols.letters(formula)}


def markdown(path):
    return "\n\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")


TEXTS = {path.stem: markdown(path) for path in CHAPTERS} | {
    name: (ROOT / f"book/{name}.md").read_text(encoding="utf-8")
    for name in ("proofs", "practice", "faq", "limits", "intro", "own_rule", "exercises", "summary")
}


@pytest.mark.parametrize("name", TEXTS)
def test_every_symbol_is_on_the_notation_page(name):
    assert {name for _, name in used(TEXTS[name])} - KNOWN == set()


def test_no_symbol_is_on_the_page_twice():
    rows = re.findall(r"^\| (\$.*?) \|", TABLE, re.M)
    assert len(rows) > 30
    first = [
        {re.match(r"\\?(?:hat )?\w+?(?:_\\text\{\w+\})?(?![a-z])", f)[0] for f in formulas(row)}
        for row in rows
    ]
    names = [name for row in first for name in row]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize(
    ("text", "missing"),
    [(r"a rate $\zeta$", {r"\zeta"}), (r"$\dot\eta = 1$", {r"\dot\eta"}), ("a ζ in words", {"ζ"})],
)
def test_an_unknown_symbol_is_seen(text, missing):
    assert {name for _, name in used(text)} - KNOWN == missing


def test_the_fullest_name_finds_the_meaning():
    """A letter with an index finds the row of that index, else its own, else any index's."""
    where = symbols.index([[r"\eta", r"\eta_t"], [r"\eta_\text{eff}"], ["c_k"], [r"\hat w = w/r"]])
    expected = {r"\eta_0": [0], r"\eta_\text{eff}": [1], "c_2": [2], r"\hat w_t": [3], "w": []}
    assert {text: symbols.rows(symbols.letters(text), where) for text in expected} == expected
    assert symbols.rows(symbols.greek("η and ζ"), where) == [0]
