"""Print the built pages into one file, in the order of the table of contents, with bookmarks.

python -m tools.pdf    writes _build/normlib.pdf; needs the built pages and chromium
"""

import io
import sys
from collections.abc import Iterable
from pathlib import Path

import yaml
from playwright.sync_api import Browser
from pypdf import PdfWriter

from tools.browser import installed, launch, serve

ROOT = Path(__file__).resolve().parent.parent
HTML, TARGET = ROOT / "_build" / "html", ROOT / "_build" / "normlib.pdf"
MARGIN = dict.fromkeys(("top", "right", "bottom", "left"), "14mm")


def contents() -> list[str]:
    """The pages of the book."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    return [toc["root"], *(page["file"] for part in toc["parts"] for page in part["chapters"])]


def book(browser: Browser, site: str, names: Iterable[str]) -> PdfWriter:
    """The pages on A4, one after another."""
    whole, page = PdfWriter(), browser.new_page()
    for name in names:
        page.goto(f"{site}/{name}.html")
        page.evaluate("window.MathJax?.startup.promise")
        printed = page.pdf(format="A4", margin=MARGIN)
        title = page.locator("#jb-print-docs-body h1").text_content()
        whole.append(io.BytesIO(printed), outline_item=title)
    page.close()
    return whole


if __name__ == "__main__":
    if not (HTML / "index.html").exists() or not (path := installed()):
        sys.exit("make pdf: needs the built pages (make html) and chromium")
    with serve(HTML) as site, launch(path) as browser:
        book(browser, site, contents()).write(TARGET)
