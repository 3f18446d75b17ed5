"""Write book/claims.md: every claim, what the chapters measured, and the verdict that follows.

    python tools/claims.py                       write the page
    python tools/claims.py --check               say whether the page is what the outputs say
    python tools/claims.py --book _build/fresh   write that of another copy of the book

The claims, and the checks on which a verdict rests, are in book/claims.yml; everything else comes
from the records that `nl.check` left in the chapters' outputs.
"""

import argparse
import sys
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import jinja2
import nbformat
import yaml

from normlib.notebook import Prediction

ROOT = Path(__file__).resolve().parent.parent

VERDICTS = HOLDS, LIMITED, FAILS, OF_TORCH, OPEN = (
    "holds",
    "holds with a limit",
    "fails as stated",
    "was true of torch in 2017",
    "not tested yet",
)


@dataclass(frozen=True)
class Claim:
    """One claim, and the ids of checks that speak for it, bound it or speak against it."""

    id: str
    words: str
    why: str
    supports: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    exceptions: tuple[str, ...] = ()


CLAIMS = tuple(
    Claim(id, **parts)
    for id, parts in yaml.safe_load((ROOT / "book/claims.yml").read_text(encoding="utf-8")).items()
)


def of_notebook(notebook: nbformat.NotebookNode) -> list[dict]:
    """The records that `nl.check` left in the outputs of a chapter."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [o.metadata["normlib"] for o in outputs if "normlib" in o.get("metadata", {})]


def records(book: Path = ROOT) -> list[dict]:
    """The records of all chapters, each with the name of its chapter."""
    return [
        {**record, "chapter": path.stem}
        for path in sorted((book / "notebooks").glob("*.ipynb"))
        for record in of_notebook(nbformat.read(path, as_version=4))
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
    if exceptions and all(exceptions):
        return OF_TORCH
    return LIMITED if limit and all(limit) else HOLDS


def page(found: list[dict]) -> str:
    """The page, as Markdown."""
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters["cell"] = lambda text: text.replace("|", "&#124;")
    environment.filters["prediction"] = Prediction.of
    template = (ROOT / "tools/claims.md.jinja").read_text(encoding="utf-8")
    verdicts = {claim.id: verdict(claim, found) for claim in CLAIMS}
    counts = {name: list(verdicts.values()).count(name) for name in VERDICTS}
    tally = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    return environment.from_string(template).render(
        claims=CLAIMS, found=found, verdicts=verdicts, tally=tally
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, do not write")
    parser.add_argument("--book", type=Path, default=ROOT, help="the folder of the book")
    arguments = parser.parse_args()
    target, wanted = arguments.book / "book" / "claims.md", page(records(arguments.book))
    if arguments.check:
        same = target.exists() and target.read_text(encoding="utf-8") == wanted
        print("the page is current" if same else "the page is not current: run make claims")
        return 0 if same else 1
    target.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
