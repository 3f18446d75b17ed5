"""What every chapter must satisfy: functions from a notebook to a list of complaints."""

import html
import re

import numpy as np

from normlib.notebook import Prediction
from tools.claims import CLAIMS
from tools.claims import of_notebook as records

KNOWN_TAGS = {"hide-input", "live", "nbval-ignore-output"}


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell):
    return cell.metadata.get("tags", [])


def executed_in_order(notebook):
    counts = [cell.execution_count for cell in code(notebook)]
    return [] if counts == list(range(1, len(counts) + 1)) else [f"execution counts {counts}"]


def without_errors(notebook):
    kinds = [output.output_type for cell in code(notebook) for output in cell.outputs]
    return ["an output is an error"] if "error" in kinds else []


def without_warnings(notebook):
    """Standard error would be compared byte by byte, and a reader should not see it."""
    return [
        f"standard error: {output.text[:80]}"
        for cell in code(notebook)
        for output in cell.outputs
        if output.output_type == "stream" and output.name == "stderr"
    ]


def seeded_in_its_first_cell(notebook):
    source = code(notebook)[0].source
    return [] if re.search(r"^torch\.manual_seed\(\d+\)$", source, re.M) else ["no seed"]


def with_known_tags(notebook):
    found = {tag for cell in notebook.cells for tag in tags(cell)}
    return [f"unknown tag {tag}" for tag in sorted(found - KNOWN_TAGS)]


def ignoring_only_live_outputs(notebook):
    return [
        f"only a live cell may be ignored by nbval: {cell.source[:40]!r}"
        for cell in code(notebook)
        if ("nbval-ignore-output" in tags(cell)) != ("live" in tags(cell))
    ]


def without_nbval_comments(notebook):
    return ["use tags, not NBVAL_ comments" for cell in code(notebook) if "NBVAL_" in cell.source]


def live_cells_without_outputs(notebook):
    return [
        "a live cell keeps outputs"
        for cell in code(notebook)
        if "live" in tags(cell) and cell.outputs
    ]


def alt(text):
    """As an attribute."""
    return f' alt="{html.escape(text)}"'


def figures_with_text(notebook):
    """One figure a cell; its alternative text beside the picture and, the same, in the HTML."""
    complaints = []
    for cell in code(notebook):
        figures = [o for o in cell.outputs if "image/png" in o.get("data", {})]
        if len(figures) > 1:
            complaints.append(f"{len(figures)} figures in one cell")
        texts = [o.metadata.get("image/png", {}).get("alt") for o in figures]
        pages = [o.data.get("text/html", "") for o in figures]
        if figures and (not texts[0] or len(texts[0]) < 40 or alt(texts[0]) not in pages[0]):
            complaints.append(f"alternative text: {texts[0]!r}")
    return complaints


def figures_to_be_read(notebook):
    """No text too small for a phone, or too pale."""
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    return [text for output in outputs for text in output.get("metadata", {}).get("unreadable", [])]


def images_in_html_with_text(notebook):
    pages = [o.data["text/html"] for c in code(notebook) for o in c.outputs
             if "text/html" in o.get("data", {})]  # fmt: skip
    images = [image for page in pages for image in re.findall(r"<img[^>]*>", page)]
    return [image[-60:] for image in images if not re.search(r'\salt="[^"]{20,}"', image)]


def plain_markdown(notebook):
    """MyST directives and roles show raw in Colab."""
    complaints = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and re.search(
            r"^(```|:::)\s*\{|\{[a-z:]+\}`", cell.source, re.M
        ):
            complaints.append(f"a MyST directive or role: {cell.source[:60]!r}")
        if cell.cell_type == "code" and "myst_nb" in cell.source:
            complaints.append("imports myst_nb")
    return complaints


def checks_with_alternatives(notebook):
    """Every check admits what it measured and excludes its alternative, by its record."""
    complaints = []
    for record in records(notebook):
        prediction, values = Prediction.of(record), record["values"]
        if not prediction.admits(values):
            complaints.append(f"{record['id']} was not measured inside")
        if not prediction.excludes(record["alternative_values"]):
            complaints.append(f"{record['id']} admits its alternative")
        summary = [record[key] for key in ("measured", "low", "high")]
        if not np.allclose(prediction.summary(values), summary, rtol=1e-9, atol=1e-20):
            complaints.append(f"{record['id']} sums its values up in another way")
    return complaints if records(notebook) else ["no check at all"]


def checks_with_distinct_names(notebook):
    """Ids, and words too: two lines of a page must not say the same."""
    names = [record[key] for record in records(notebook) for key in ("id", "claim")]
    return [f"two checks are called {name}" for name in {n for n in names if names.count(n) > 1}]


def checks_of_known_claims(notebook):
    known = {claim.id for claim in CLAIMS}
    ids = [record["id"] for record in records(notebook)]
    return [f"{id} belongs to no claim" for id in ids if id.split(".")[0] not in known]


GUARDS = (
    executed_in_order,
    without_errors,
    without_warnings,
    seeded_in_its_first_cell,
    with_known_tags,
    ignoring_only_live_outputs,
    without_nbval_comments,
    live_cells_without_outputs,
    figures_with_text,
    figures_to_be_read,
    images_in_html_with_text,
    plain_markdown,
    checks_with_alternatives,
    checks_with_distinct_names,
    checks_of_known_claims,
)
