"""Symbols: found in formulas and in text, and looked up in the table of the notation page.

As a Sphinx extension it puts the meanings of a page's symbols at the page's head, folded; a script
(`_static/symbols.js`) shows them beside a formula.
"""

import re
from collections.abc import Iterable

from docutils import nodes
from sphinx.application import Sphinx

NOTATION = "book/notation"
# What formulas are made of beside symbols.
WORDS = r"""
\frac \tfrac \sqrt \log \sum \prod \cdot \cdots \dots \ldots \quad \qquad \langle \rangle \lVert
\rVert \le \ge \ll \gg \to \infty \approx \propto \perp \ne \pm \mp \times \left \right \big \Big
\bigg \tan \cos \sin \max \min \exp \nabla \partial \in \equiv \leftarrow \rightarrow \mapsto \sim
\pi \int \ln \Delta \top \mid \circ \not \over \underbrace \lvert \rvert \neq \iff \implies
\odot \mathbb
"""
TOKEN = re.compile(
    r"\\(?:text|operatorname|mathrm|begin|end)\*?\{[^}]*\}"  # words are no symbols
    r"|(?:(\\(?:hat|dot|bar|tilde))\s*\{?\s*)?(\\[A-Za-z]+|[A-Za-z])\}?"
    r"(?=_(\\text\{\w+\}|\\?\w+|\{[^}]*\})|)"
)
GREEK = r"""
\alpha \beta \gamma \delta \varepsilon \eta \theta \kappa \lambda \mu \nu \xi \rho \sigma \tau \phi
\chi
"""
NAMES = dict(zip("αβγδεηθκλμνξρστφχ", GREEK.split(), strict=True))
HATS = {"\u0302": r"\hat", "\u0303": r"\tilde", "\u0304": r"\bar", "\u0307": r"\dot", "": ""}


def letters(formula: str) -> list[tuple[str, str]]:
    r"""Each letter of a formula with its index and without; a hat belongs to its letter.

    >>> letters(r"\eta_\text{eff} = \eta/\hat r^2")
    [('\\eta_\\text{eff}', '\\eta'), ('\\eta', '\\eta'), ('\\hatr', '\\hatr')]
    """
    found = []
    for hat, letter, index in TOKEN.findall(formula):
        if letter and letter not in WORDS.split():
            name = hat + letter
            found.append((f"{name}_{index}" if index else name, name))
    return found


def greek(text: str) -> list[tuple[str, str]]:
    r"""The same for Greek letters of a text; Δ, Π and Σ are operators, π is a number.

    >>> greek("ηλ and β₁")
    [('\\eta', '\\eta'), ('\\lambda', '\\lambda'), ('\\beta_1', '\\beta')]
    """
    found = []
    for letter, hat, index in re.findall("([α-ωϕϵ])([\u0300-\u036f]?)([₀-₉]?)", text):
        if letter != "π":
            name = HATS.get(hat, hat) + NAMES.get(letter, letter)
            found.append((name + (f"_{ord(index) - ord('₀')}" if index else ""), name))
    return found


def index(cells: Iterable[list[str]]) -> dict[str, int]:
    """In which row a symbol is explained, from the formulas of the first cell of each row.

    Before an equals sign; `c_k` explains c with every index, unless c has a row of its own.
    """
    heads = [
        (letters(part.split("=")[0])[0], row)
        for row, formulas in enumerate(cells)
        for formula in formulas
        for part in formula.split(",")
    ]
    own = {full: row for (full, _), row in heads}
    return {name: row for (_, name), row in reversed(heads)} | own


def rows(used: Iterable[tuple[str, str]], where: dict[str, int]) -> list[int]:
    """The rows that explain these letters, in the table's order."""
    found = {where.get(full, where.get(name)) for full, name in used}
    return sorted(found - {None})


def add_meanings(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Put the rows of the notation page that a page needs after its opening paragraphs."""
    if not page.startswith("notebooks/") and page != "book/proofs":
        return
    table = next(iter(app.env.get_doctree(NOTATION).findall(nodes.tbody)))
    where = index([[one.astext() for one in row[0].findall(nodes.math)] for row in table])
    wanted = set()
    for text in list(doctree.findall(nodes.Text)):
        inside = text.parent
        if isinstance(inside, nodes.math | nodes.math_block):
            found = rows(letters(text), where)
            inside["classes"] += [f"nl-row-{row}" for row in found]  # for the script
        elif isinstance(inside, nodes.literal | nodes.literal_block | nodes.raw):
            continue
        else:
            found = rows(greek(text), where)
        wanted |= set(found)
    meanings = nodes.bullet_list()
    for row in sorted(wanted):
        symbol, _, meaning = table[row].deepcopy()
        words = nodes.paragraph("", "", *symbol[0].children, nodes.Text(": "), *meaning[0].children)
        meanings += nodes.list_item("", words, classes=[f"nl-row-{row}"])
    top = app.builder.get_relative_uri(page, NOTATION)
    start = '<details class="nl-symbols"><summary>Symbols on this page</summary>'
    end = f'<p>All of them: <a href="{top}">notation</a>.</p></details>'
    head = next(doctree.findall(nodes.section))
    opening = nodes.title | nodes.paragraph
    place = next(i for i, child in enumerate(head) if not isinstance(child, opening))
    head[place:place] = [
        nodes.raw("", start, format="html"), meanings, nodes.raw("", end, format="html")
    ]  # fmt: skip


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("doctree-read", lambda app, _: app.env.note_dependency(f"{NOTATION}.md"))
    app.connect("doctree-resolved", add_meanings)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
