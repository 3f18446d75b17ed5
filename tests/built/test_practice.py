"""The page that a practitioner keeps: its calculator's formulas are those of normlib."""

import itertools

import pytest

import normlib as nl
from tests.conftest import ROOT

SCRIPT = (ROOT / "book" / "_static" / "calculator.js").read_text(encoding="utf-8")
FORMULAS = """([source, cases]) => {
  const balance = new Function(`${source}; return nlBalance;`)();
  return cases.map(([rule, one]) => balance(rule, one));
}"""
RULES = {
    "adamw": lambda beta, beta2: nl.theory.adamw((beta, 0.999)),
    "muon": lambda beta, beta2: nl.theory.muon((64, 64), momentum=beta),
    "sgd": lambda beta, beta2: nl.theory.sgd(beta),
    "nesterov": lambda beta, beta2: nl.theory.sgd(beta, nesterov=True),
    "lion": lambda beta, beta2: nl.theory.lion((beta, beta2)),
    "adam": lambda beta, beta2: nl.theory.adam((beta, 0.999)),
}
GRID = list(
    itertools.product(RULES, (1e-3, 0.1), (1e-4, 0.3), (0.0, 0.9, 0.95), (0.5, 0.99), (0.2, 7.0))
)


def test_the_calculator_has_the_formulas_of_the_theory(browser):
    cases = [
        (rule, {"lr": lr, "decay": decay, "beta": beta, "beta2": beta2, "G": g, "d": 4096})
        for rule, lr, decay, beta, beta2, g in GRID
    ]
    page = browser.new_page()
    found = page.evaluate(FORMULAS, [SCRIPT, cases])
    page.close()
    assert len(found) == len(GRID) > 100
    for (rule, lr, decay, beta, beta2, g), one in zip(GRID, found, strict=True):
        known = RULES[rule](beta, beta2)
        expected = {
            "angle": known.angle(lr, decay, g, 4096),
            "timescale": known.timescale(lr, decay, g, 4096),
            "relaxation": known.relaxation_time(lr, decay, g, 4096),
        }
        assert one == pytest.approx(expected, rel=1e-12), rule


def test_the_calculator_answers_and_keeps_its_settings_in_the_address(visit):
    page = visit("book/practice", 320)
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    said = page.locator("#nl-calculated")
    assert "0.00324 rad" in said.text_content()
    assert "10,000 steps" in said.text_content()  # 1/(ηλ), what stands there without a script too
    page.get_by_label("optimizer").select_option("Lion")
    page.get_by_label("weight decay λ").fill("0.2")
    text = said.text_content()
    assert "5,000 steps" in text
    assert "λ 0.1 keeps ηλ" in text
    other = visit("book/practice")
    other.goto(page.url)
    other.reload()
    other.wait_for_function("!document.getElementById('nl-calculator').hidden")
    assert other.locator("#nl-calculated").text_content() == text
    page.get_by_label("learning rate η").fill("-1")
    assert said.text_content().startswith("learning rate η:")
    assert not page.problems


def test_without_a_script_an_example_stands_there(visit):
    page = visit("book/practice", javascript=False)
    assert not page.locator("#nl-calculator").is_visible()
    assert "s√(2ηλ) = 0.00324 rad" in page.locator("#nl-calculated").text_content()
    assert nl.theory.adamw().angle(1e-3, 0.1) == pytest.approx(0.00324, abs=5e-6)
