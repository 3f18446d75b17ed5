"""The built pages, served on this machine, and a browser that reaches nothing else."""

import contextlib
import functools
import http.server
import os
import shutil
import threading

import pytest
from playwright.sync_api import sync_playwright

from tests.conftest import ROOT, skip_unless_ci

HTML = ROOT / "_build" / "html"


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="session")
def site():
    if not (HTML / "index.html").exists():
        skip_unless_ci("the pages are not built: run make html")
    handler = functools.partial(_Quiet, directory=HTML)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def browser():
    names = ("chromium", "chromium-browser", "google-chrome")
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if path is None:
        skip_unless_ci("no browser: install chromium, or set CHROMIUM to its path")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path,
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
            ],
        )
        yield browser
        browser.close()


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
