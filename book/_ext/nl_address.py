"""What pages with a public address have: a sitemap, and previews of their links.

A Sphinx extension. The address is `html: baseurl` in `_config.yml`; without it nothing is added.
"""

import html
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from docutils import nodes
from sphinx.application import Sphinx

PICTURE = "_static/preview.png"


def address(app: Sphinx, page: str) -> str:
    """Where a page is."""
    return app.config.html_baseurl.rstrip("/") + f"/{app.builder.get_target_uri(page)}"


def add_preview(app: Sphinx, page: str, _: str, context: dict[str, Any], tree: Any) -> None:
    """Title, first sentence and picture for whoever shows a link to a page."""
    if not app.config.html_baseurl or tree is None:
        return
    words = next(iter(tree.findall(nodes.paragraph)), nodes.paragraph()).astext()
    about = {
        "title": context["title"],
        "type": "article",
        "url": address(app, page),
        "site_name": app.config.html_title,
        "description": " ".join(words.split())[:200],
        "image": app.config.html_baseurl.rstrip("/") + f"/{PICTURE}",
        "image:alt": "Two weights of different length take the same step; the long one turns less.",
    }
    context["metatags"] = (
        context.get("metatags", "")
        + "".join(
            f'\n<meta property="og:{name}" content="{html.escape(text)}">'
            for name, text in about.items()
        )
        + '\n<meta name="twitter:card" content="summary_large_image">'
    )


def write_sitemap(app: Sphinx, failure: Exception | None) -> None:
    """All pages of the table of contents, for search engines."""
    if app.config.html_baseurl and not failure and app.builder.format == "html":
        pages = (
            f"<url><loc>{escape(address(app, page))}</loc></url>\n"
            for page in sorted(app.env.found_docs)
        )
        text = (
            '<?xml version="1.0" encoding="utf-8"?>\n'
            '<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n'
            + "".join(pages)
            + "</urlset>\n"
        )
        Path(app.outdir, "sitemap.xml").write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("html-page-context", add_preview)
    app.connect("build-finished", write_sitemap)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
