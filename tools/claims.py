"""Write the pages that follow from the chapters' outputs.

book/claims.md is the verdicts in a minute, book/checks.md everything measured; book/verdicts.md
and book/map.md are parts of the front page.

    python tools/claims.py                       write the pages
    python tools/claims.py --check               say whether the pages are what the outputs say
    python tools/claims.py --book _build/fresh   write those of another copy of the book

The claims, and the checks on which a verdict rests, are in book/claims.yml; everything else comes
from the records that `nl.check` left in the chapters' outputs.
"""

import argparse
import functools
import re
import sys
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import jinja2
import nbformat
import yaml
from docutils import nodes

from normlib.notebook import Prediction
from normlib.notebook.numberline import number_line

ROOT = Path(__file__).resolve().parent.parent

VERDICTS = HOLDS, LIMITED, FAILS, OF_TORCH, OPEN = (
    "holds",
    "holds with a limit",
    "fails as stated",
    "was true of torch in 2017",
    "not judged",
)
# Of claims that are not the paper's, but of those who came after it.
LATER = {
    HOLDS: "replicated",
    LIMITED: "replicated with a limit",
    FAILS: "not here",
    OPEN: "not judged",
}
MARKS = dict(zip(VERDICTS, "●◐○◷?", strict=True))
MARKS |= {word: MARKS[verdict] for verdict, word in LATER.items()}


@dataclass(frozen=True)
class Claim:
    """One claim, and the ids of checks that speak for it, bound it or speak against it.

    `brief` says what became of it in a few words; `effect` is the id of the check that shows it,
    and `measure` what was measured there. `source` is the paper of a claim that came later.
    """

    id: str
    words: str
    brief: str
    effect: str
    measure: str
    why: str
    supports: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    exceptions: tuple[str, ...] = ()
    source: str = ""


CLAIMS = tuple(
    Claim(id, **parts)
    for id, parts in yaml.safe_load((ROOT / "book/claims.yml").read_text(encoding="utf-8")).items()
)


def of_notebook(notebook: nbformat.NotebookNode) -> list[dict]:
    """The records that `nl.check` left in the outputs of a chapter."""
    return [record for record, _ in with_sections(notebook)]


def with_sections(notebook: nbformat.NotebookNode) -> list[tuple[dict, str]]:
    """The same, each with the anchor of the section in which it stands."""
    found, anchor = [], ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for heading in re.findall(r"^## (.+)$", cell.source, re.M):
                anchor = nodes.make_id(heading)
        for output in cell.get("outputs", []):
            found += [(record, anchor) for record in output.get("metadata", {}).get("normlib", [])]
    return found


def records(book: Path = ROOT) -> list[dict]:
    """The records of all chapters, each with the names of its chapter and section."""
    return [
        {**record, "chapter": path.stem, "section": section}
        for path in sorted((book / "notebooks").glob("*.ipynb"))
        for record, section in with_sections(nbformat.read(path, as_version=4))
    ]


def inside(record: dict) -> bool:
    """Whether what was measured lies in the band, and the alternative does not."""
    prediction = Prediction.of(record)
    others = record["alternative_values"]
    return prediction.admits(record["values"]) and prediction.excludes(others)


def named(names: tuple[str, ...], found: list[dict]) -> list[dict]:
    """The records with these ids, in which * stands for any text.

    Raises
    ------
    ValueError
        If an id stands for nothing.
    """
    chosen = {name: [r for r in found if fnmatchcase(r["id"], name)] for name in names}
    if missing := [name for name, matches in chosen.items() if not matches]:
        raise ValueError(f"no check has the id {', '.join(missing)}")
    return [record for matches in chosen.values() for record in matches]


def formula(text: str) -> str:
    """Formulas between dollars as HTML; those of the claims need no more than indices."""
    raised = re.sub(r"\^\{(.+?)\}|\^(\w)", r"<sup>\1\2</sup>", text.replace("$", ""))
    return re.sub(r"_\{(.+?)\}|_(\w)", r"<sub>\1\2</sub>", raised)


def said(claim: Claim, found: list[dict]) -> str:
    """The verdict in the words for the paper's claims, or in those for later ones."""
    return LATER[verdict(claim, found)] if claim.source else verdict(claim, found)


def tally(verdicts: dict[str, str], claims: list[Claim]) -> str:
    """How many of the claims have each verdict, in words."""
    given = [verdicts[claim.id] for claim in claims]
    return ", ".join(
        f"{given.count(name)} {name if given.count(name) == 1 else name.replace('holds', 'hold')}"
        for name in MARKS
        if name in given
    )


def verdict(claim: Claim, found: list[dict]) -> str:
    """What follows for a claim from the numbers in the records."""
    support, limit, against, exceptions = (
        [inside(record) for record in named(names, found)]
        for names in (claim.supports, claim.limits, claim.against, claim.exceptions)
    )
    if not support and not against:
        return OPEN
    if not all(support) or (against and all(against)):
        return FAILS
    if not all(limit + exceptions):  # a limit that was not found is no reason to say "holds"
        return OPEN
    if exceptions:
        return OF_TORCH
    return LIMITED if limit else HOLDS


@functools.cache
def chapters(book: Path) -> list[dict]:
    """What the front page's map says of each chapter: from its first cell, and its seconds."""
    seconds = times()["seconds"]
    found = []
    for path in sorted((book / "notebooks").glob("*.ipynb")):
        first = nbformat.read(path, as_version=4).cells[0].source
        title, question, needs = (
            re.search(pattern, first, re.M)[1]
            for pattern in (
                r"^# (.+)$",
                r"^\*\*Question\.\*\* (.+)$",
                r"\*You need:\* (.+?)\.(?: |$)",
            )
        )
        needs = needs.replace("](", "](../notebooks/")
        about = {"title": title, "question": question, "needs": needs}
        found.append({"name": path.stem, "seconds": seconds.get(path.stem, "?"), **about})
    return found


def times() -> dict:
    """What `make times` wrote."""
    return yaml.safe_load((ROOT / "book/times.yml").read_text(encoding="utf-8"))


def pages(found: list[dict], book: Path = ROOT) -> dict[str, str]:
    """The pages as Markdown, by name."""
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters["cell"] = lambda text: text.replace("|", "&#124;")
    environment.filters["prediction"] = Prediction.of
    environment.filters["line"] = lambda record: number_line(
        Prediction.of(record), record["values"], record["alternative_values"]
    )
    environment.filters["formula"] = formula
    verdicts = {claim.id: said(claim, found) for claim in CLAIMS}
    paper, later = ([c for c in CLAIMS if bool(c.source) is of] for of in (False, True))
    effects = {claim.id: named((claim.effect,), found)[0] for claim in CLAIMS}
    shared = {"claims": CLAIMS, "found": found, "verdicts": verdicts, "paper": paper}
    shared |= {"later": later, "tally": tally(verdicts, paper)}
    shared["later_tally"] = tally(verdicts, later)
    return {
        name: environment.from_string(
            (ROOT / f"tools/{name}.md.jinja").read_text(encoding="utf-8")
        ).render(
            **shared, effects=effects, marks=MARKS, chapters=chapters(book), date=times()["date"]
        )
        for name in ("claims", "checks", "verdicts", "map")
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, do not write")
    parser.add_argument("--book", type=Path, default=ROOT, help="the folder of the book")
    arguments = parser.parse_args()
    stale = []
    for name, wanted in pages(records(arguments.book), arguments.book).items():
        target = arguments.book / "book" / f"{name}.md"
        if not (target.exists() and target.read_text(encoding="utf-8") == wanted):
            stale.append(target.name)
            if not arguments.check:
                target.write_text(wanted, encoding="utf-8")
    if arguments.check:
        print(f"not current: {', '.join(stale)}; run make claims" if stale else "current")
    return bool(arguments.check and stale)


if __name__ == "__main__":
    sys.exit(main())
