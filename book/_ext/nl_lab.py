"""Pages on which a training can be started get the script for it; others do not load it."""

from typing import Any

from sphinx.application import Sphinx


def add(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    if 'class="nl-small"' in context.get("body", ""):
        app.add_js_file("lab/small.js", loading_method="defer")
        app.add_css_file("lab/lab.css")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("html-page-context", add)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
