"""The pages as a reader meets them: in a browser, on a desk and on a phone, light and dark."""

import html.parser
import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from pypdf import PdfReader

from tools import pdf

from .conftest import HTML

PAGES = pdf.contents()
NOTEBOOKS = [page for page in PAGES if page.startswith("notebooks/")]

# docutils' markup of the bibliography, which we do not write.
KNOWN = {"aria-required-children": ".citation-list"}  # violation: selector


class _Loaded(html.parser.HTMLParser):
    """Addresses that a page loads by itself, and the alternative texts of its images."""

    def __init__(self):
        super().__init__()
        self.addresses, self.alts = [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag in ("script", "img", "iframe", "source"):
            self.addresses.append(attributes.get("src") or "")
        if tag == "link" and attributes.get("rel") in ("stylesheet", "preload", "icon"):
            self.addresses.append(attributes.get("href") or "")
        if tag == "img":
            self.alts.append(attributes.get("alt") or "")


@pytest.mark.parametrize("name", PAGES)
def test_page_exists_without_errors_and_loads_nothing_from_elsewhere(site, name):
    text = (HTML / f"{name}.html").read_text(encoding="utf-8")
    assert len(text) > 5000
    assert "Traceback" not in text
    page = _Loaded()
    page.feed(text)
    outside = [a for a in page.addresses if re.match(r"(https?:)?//", a)]
    assert not outside
    hashed = [alt for alt in page.alts if re.search(r"_images/|[0-9a-f]{32}", alt)]
    assert not hashed


def test_no_style_sheet_loads_from_elsewhere(site):
    for sheet in HTML.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        found = re.findall(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//[^)]*", text)
        assert not found, sheet


# Every page light on a desk and dark on a phone; one page of each kind the other way round too.
KINDS = ("book/intro", "book/claims", "book/api_model", NOTEBOOKS[3])
VIEWS = [(name, *view) for name in PAGES for view in ((1280, "light"), (390, "dark"))]
VIEWS += [(name, *view) for name in KINDS for view in ((1280, "dark"), (390, "light"))]


@pytest.mark.parametrize(("name", "width", "theme"), VIEWS)
def test_page_is_clean_accessible_and_fits(visit, name, width, theme):
    page = visit(name, width, theme)
    page.evaluate("Promise.all(document.getAnimations().map(a => a.finished))")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # What MathJax cannot parse it shows in red or as an error.
    assert page.locator("mjx-merror, mjx-mtext[style*='color: red']").count() == 0
    assert page.locator("mjx-container").count() or "$" not in page.inner_text("article")
    result = Axe().run(page, options={"preload": False, "resultTypes": ["violations"]})
    serious = [
        (violation["id"], node["target"])
        for violation in result.response["violations"]
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
        if KNOWN.get(violation["id"]) not in node["target"]
    ]
    assert not serious
    assert not page.problems


def scrubbers_show_the_chosen_frame(page):
    """Every chapter has one; chosen by mouse or by arrow keys."""
    scrubbers = page.locator("form.nl-pick").all()
    assert scrubbers
    for scrubber in scrubbers:
        radios, frames = scrubber.get_by_role("radio").all(), scrubber.locator("img, svg")
        assert len(radios) == frames.count() >= 2
        for i, radio in enumerate(radios):
            radio.check()
            shown = [frame.is_visible() for frame in frames.all()]
            assert shown == [k == i for k in range(len(radios))]
            assert frames.nth(i).get_attribute("alt") or frames.nth(i).locator("title").count()
        radios[0].check()
        radios[0].focus()
        page.keyboard.press("ArrowRight")
        assert radios[1].is_checked()
        assert frames.nth(1).is_visible()


@pytest.mark.parametrize("name", [PAGES[0], *NOTEBOOKS])
def test_scrubbers_work_without_scripts(visit, name):
    scrubbers_show_the_chosen_frame(visit(name, javascript=False))


# Heights on a page: all, code that is open, and code that is cut off.
HEIGHTS = """() => {
  const height = (list) => [...list].reduce((sum, e) => sum + e.getBoundingClientRect().height, 0);
  const code = [...document.querySelectorAll("div.cell_input")].filter(
    (e) => !e.closest("details:not([open])"));
  const cut = code.filter((e) => [...e.querySelectorAll("pre")].some(
    (pre) => pre.clientWidth && pre.scrollWidth > pre.clientWidth + 1));
  return {open: height(code), all: document.querySelector("article").scrollHeight,
          cut: cut.map((e) => e.innerText.slice(0, 60))};
}"""


def lines_in_words(page):
    """Every number line has a text that says the same."""
    lines = page.evaluate("""() => [...document.querySelectorAll("svg.nl-line")].map(
      (svg) => svg.getAttribute("role") + " " + svg.querySelector("title").textContent)""")
    assert lines
    for line in lines:
        assert re.fullmatch(r"img predicted .+; measured .+; alternative .+", line)


def more_to_read_than_code(page):
    """And no open line of code is cut off at the right."""
    found = page.evaluate(HEIGHTS)
    assert found["open"] <= found["all"] / 4
    assert found["cut"] == []


SOURCES = """() => [...document.querySelectorAll("article .cell_output img")].map((img) => {
  const twin = img.closest("picture")?.querySelector("source");
  return !twin ? "no twin" : twin.srcset === img.src ? "same twin"
    : !img.currentSrc ? "hidden" : img.currentSrc === twin.srcset ? "dark" : "light";
})"""


def figures_are_dark_on_dark_pages_and_light_in_print(page):
    assert set(page.evaluate(SOURCES)) <= {"dark", "hidden"}
    page.evaluate("document.documentElement.dataset.theme = 'light'")  # as the theme's button does
    page.wait_for_function(f"!({SOURCES})().includes('dark')")
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    page.emulate_media(media="print")
    page.wait_for_function(f"!({SOURCES})().includes('dark')")
    assert "light" in page.evaluate(SOURCES)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_chapter_can_be_read_and_used(visit, name):
    assert (HTML / f"{name}.html").stat().st_size <= 1.5e6
    page = visit(name, theme="dark")
    more_to_read_than_code(page)
    lines_in_words(page)
    scrubbers_show_the_chosen_frame(page)
    figures_are_dark_on_dark_pages_and_light_in_print(page)


def test_symbols_of_a_formula_are_explained_beside_it(visit):
    """By pointer and by keyboard, until Escape; and without scripts in the fold."""
    page = visit(NOTEBOOKS[3], 390)
    note = page.locator("#nl-note")
    formula = page.locator("article .math", has=page.locator("mjx-container[display='true']")).first
    for reach in (formula.hover, formula.locator("mjx-container").focus):
        reach()
        note.get_by_text("angle that").wait_for()  # θ
        box = note.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
        page.keyboard.press("Escape")
        assert not note.is_visible()
        page.mouse.move(0, 0)
    page = visit(NOTEBOOKS[3], javascript=False)
    page.get_by_text("Symbols on this page").click()
    assert page.locator(".nl-symbols li", has_text="effective learning rate").is_visible()


def test_links_of_the_claims_page_lead_to_sections(site):
    text = (HTML / "book/claims.html").read_text(encoding="utf-8")
    links = re.findall(r'href="((?:\.\./notebooks/|checks)[^"#]*)#([^"]+)"', text)
    assert len(links) >= 46
    for path, anchor in links:
        target = (HTML / "book" / path).read_text(encoding="utf-8")
        assert f'id="{anchor}"' in target, (path, anchor)


def test_the_claims_page_is_read_in_a_minute(visit):
    """The table ends within a screen and a half and a bit, in fewer than a thousand words."""
    page = visit("book/claims")
    lines_in_words(page)
    table = page.locator("table.nl-claims").first  # the paper's; later claims stand below
    assert table.locator("tbody tr").count() == 23
    box = table.bounding_box()
    assert box["y"] + box["height"] < 1.6 * 900
    paper, later = page.locator("article").first.inner_text().split("What came after the paper")
    assert len(re.findall(r"[^\W\d_]{2,}", paper)) < 1000
    rows = page.locator("table.nl-claims").nth(1).locator("tbody tr").count()
    assert len(re.findall(r"[^\W\d_]{2,}", later)) < 45 * rows


def test_the_book_is_printed_and_the_summary_on_one_page(browser, site, tmp_path):
    pdf.book(browser, site, ["book/summary", "book/faq"]).write(tmp_path / "book.pdf")
    printed = PdfReader(tmp_path / "book.pdf")
    first, second = printed.outline
    assert first.title == "The book on one page"
    assert printed.get_destination_page_number(second) == 1
    assert "was true of torch in 2017" in printed.pages[0].extract_text()
    assert second.title in printed.pages[1].extract_text()


def test_search_finds_the_effective_learning_rate(visit):
    page = visit("search")
    page.goto(page.url + "?q=effective+learning+rate", wait_until="networkidle")
    page.wait_for_selector("#search-results li")
    assert page.locator("#search-results li").count() >= 2
    assert not page.problems


def test_built_by_jupyter_book_1():
    import jupyter_book

    assert jupyter_book.__version__.startswith("1.")
