"""One symbol, one meaning: every symbol of a formula is on the notation page, once."""

import re

import pytest

from tests.conftest import CHAPTERS, ROOT, read

# What formulas are made of beside symbols.
WORDS = """
frac tfrac sqrt log sum prod cdot cdots dots ldots quad qquad langle rangle lVert rVert le ge ll gg
to infty approx propto perp ne pm mp times left right big Big bigg tan cos sin max min exp nabla
partial in equiv leftarrow rightarrow mapsto sim pi top mid circ not over underbrace lvert rvert neq
iff implies bar tilde hat dot odot mathbb
"""
PAGE = (ROOT / "book/notation.md").read_text(encoding="utf-8")
TABLE = PAGE[PAGE.index("## Symbols") : PAGE.index("## Which λ?")]


def formulas(text):
    """Between dollars, outside code."""
    text = re.sub(r"^```(?!\{prf).*?^```", "", text, flags=re.S | re.M)
    text = re.sub(r"`[^`\n]*`", "", text)
    return [one or other for one, other in re.findall(r"\$\$(.+?)\$\$|\$([^$\n]+?)\$", text, re.S)]


def symbols(formula):
    """Letters and names of letters, with a hat or a dot if they wear one."""
    formula = re.sub(r"\\(?:text|operatorname|mathrm|begin|end)\*?\{[^}]*\}", "", formula)
    found = re.findall(r"\\(?:hat|dot)\s*\{?\s*\\?[A-Za-z]+\}?|\\[A-Za-z]+|[A-Za-z]", formula)
    return {re.sub(r"[{}\s]", "", s.replace(r"\hat", r"\hat ")) for s in found} - {
        f"\\{word}" for word in WORDS.split()
    }


def greek(text):
    """Greek letters of a text, with what stands above them; Δ, Π and Σ are operators."""
    text = re.sub(r"`[^`\n]*`", "", text)
    return set(re.findall(r"[α-ωϕϵ][\u0300-\u036f]*|[A-Z][\u0300-\u036f]+", text)) - {"π"}


KNOWN = {symbol for formula in formulas(TABLE) for symbol in symbols(formula)}
GREEK = r"""
\alpha \beta \gamma \delta \varepsilon \eta \theta \kappa \lambda \mu \nu \xi \rho \sigma \phi \chi
"""
NAMES = dict(zip("αβγδεηθκλμνξρσφχ", GREEK.split(), strict=True))


def markdown(path):
    return "\n\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")


TEXTS = {path.stem: markdown(path) for path in CHAPTERS} | {
    name: (ROOT / f"book/{name}.md").read_text(encoding="utf-8")
    for name in ("proofs", "practice", "faq", "limits", "intro", "own_rule", "exercises")
}


@pytest.mark.parametrize("name", TEXTS)
def test_every_symbol_is_on_the_notation_page(name):
    found = {symbol for formula in formulas(TEXTS[name]) for symbol in symbols(formula)}
    assert found - KNOWN == set()
    letters = {NAMES.get(letter, letter) for letter in greek(TEXTS[name])}
    assert letters - KNOWN == set()


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
    found = {symbol for formula in formulas(text) for symbol in symbols(formula)}
    assert (found | {NAMES.get(letter, letter) for letter in greek(text)}) - KNOWN == missing
