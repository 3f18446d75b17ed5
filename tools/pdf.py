"""Print a book that was built as one page: python tools/pdf.py FOLDER OUT.pdf

Needs chromium, as the tests of the pages do; CHROMIUM may name it.
"""

import os
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main(folder: Path, target: Path) -> int:
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    page = next(iter(sorted(folder.glob("*.html"))), None)
    if path is None or page is None:
        print("no browser: install chromium" if path is None else f"no page in {folder}")
        return 1
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        tab = browser.new_page(color_scheme="light")
        tab.goto(page.resolve().as_uri(), wait_until="load", timeout=300_000)
        tab.wait_for_function("!window.MathJax || MathJax.startup.promise.then(() => true)")
        tab.pdf(path=target, format="A4", margin=dict.fromkeys(("top", "bottom"), "18mm"))
        browser.close()
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
