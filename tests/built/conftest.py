"""The built pages, served on this machine, and a browser that reaches nothing else."""

import contextlib

import pytest

from tests.conftest import ROOT, skip_unless_ci
from tools.browser import installed, launch, serve

HTML = ROOT / "_build" / "html"


@pytest.fixture(scope="session")
def site():
    if not (HTML / "index.html").exists():
        skip_unless_ci("the pages are not built: run make html")
    with serve(HTML) as address:
        yield address


@pytest.fixture(scope="session")
def browser():
    if (path := installed()) is None:
        skip_unless_ci("no browser: install chromium, or set CHROMIUM to its path")
    with launch(path) as browser:
        yield browser


@pytest.fixture
def visit(browser, site):
    """visit(page, width=…, theme=…, javascript=…) -> an open page that lists its `.problems`."""
    with contextlib.ExitStack() as stack:

        def visit(name, width=1280, theme="light", javascript=True):
            context = browser.new_context(
                viewport={"width": width, "height": 900},
                color_scheme=theme,
                reduced_motion="reduce",
                java_script_enabled=javascript,
            )
            stack.callback(context.close)
            page = context.new_page()
            page.problems = problems = []
            page.on("console", lambda m: m.type == "error" and problems.append(m.text))
            page.on("pageerror", lambda e: problems.append(str(e)))
            page.on("response", lambda r: r.status >= 400 and problems.append(r.url))
            page.on(
                "request",
                lambda r: r.url.startswith((site, "data:", "blob:")) or problems.append(r.url),
            )
            page.goto(f"{site}/{name}.html")
            if javascript:
                page.evaluate("window.MathJax?.startup.promise")
                page.wait_for_function(f"document.documentElement.dataset.theme === '{theme}'")
            return page

        yield visit
