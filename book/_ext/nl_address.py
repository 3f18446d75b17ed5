"""What pages with a public address have: a sitemap, and previews of their links.

A Sphinx extension. The address is `html: baseurl` in `_config.yml`; without it nothing is added.
"""

import html
import re
from pathlib import Path
from typing import Any

import numpy as np
from docutils import nodes
from matplotlib.figure import Figure
from sphinx.application import Sphinx

PICTURE = "_static/preview.png"
ALT = "Short weights and long ones take a step at a right angle; the long ones turn less."


def address(app: Sphinx, file: str) -> str:
    return f"{app.config.html_baseurl.rstrip('/')}/{file}"


def add_preview(app: Sphinx, page: str, _: str, context: dict[str, Any], tree: Any) -> None:
    """Title, first sentences and picture for whoever shows a link to a page."""
    if not app.config.html_baseurl or tree is None:
        return
    first = next(iter(tree.findall(nodes.paragraph)), nodes.paragraph()).astext()
    about = {
        "title": html.unescape(re.sub("<.*?>", "", context["title"])),
        "site_name": app.config.html_title,
        "type": "article",
        "url": address(app, app.builder.get_target_uri(page)),
        "description": " ".join(first.split())[:200],
        "image": address(app, PICTURE),
        "image:alt": ALT,
    }
    context["metatags"] += '\n<meta name="twitter:card" content="summary_large_image">' + "".join(
        f'\n<meta property="og:{name}" content="{html.escape(text)}">'
        for name, text in about.items()
    )


def picture(title: str) -> Figure:
    """1200 × 630 pixels, as those who show links want it: the argument of the front page."""
    figure = Figure(figsize=(12, 6.3))
    figure.text(0.06, 0.84, title, fontsize=38)
    for left, length in ((0.02, 1.0), (0.44, 2.0)):
        ax = figure.add_axes((left, 0.04, 0.54, 0.74))
        turn = np.linspace(0, np.arctan2(0.6 / length, length))
        ax.plot([0, length], [0, 0], "#0072B2", lw=6)
        ax.plot([length, length], [0, 0.6 / length], "#D55E00", lw=6)
        ax.plot([0, length], [0, 0.6 / length], "#0072B2", lw=3)
        ax.plot(0.7 * np.cos(turn), 0.7 * np.sin(turn), "0.4", lw=4)
        ax.set(xlim=(-0.2, 2.2), ylim=(-0.3, 1), aspect="equal")
        ax.axis("off")
    return figure


def write_files(app: Sphinx, failure: Exception | None) -> None:
    """The sitemap and the picture."""
    if not app.config.html_baseurl or failure or app.builder.format != "html":
        return
    pages = (address(app, app.builder.get_target_uri(page)) for page in sorted(app.env.all_docs))
    lines = [
        '<?xml version="1.0" encoding="utf-8"?>',
        '<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">',
        *(f"<url><loc>{html.escape(page)}</loc></url>" for page in pages),
        "</urlset>",
    ]
    Path(app.outdir, "sitemap.xml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    picture(app.config.html_title).savefig(Path(app.outdir, PICTURE), dpi=100)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("html-page-context", add_preview)
    app.connect("build-finished", write_files)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
