"""The claims pages say what the chapters' outputs say, and verdicts follow from numbers."""

import dataclasses
import re

import pytest
import yaml

from tests.conftest import CHAPTERS, ROOT, read
from tools import claims

FOUND = claims.records()
BY_ID = {claim.id: claim for claim in claims.CLAIMS}
DESIGNED = (
    *(f"A{i}" for i in range(1, 5)),
    *(f"D{i}" for i in range(1, 10)),
    *(f"T{i}" for i in range(1, 8)),
    *(f"F{i}" for i in range(1, 4)),
    *(f"E{i}" for i in range(1, 8)),
    *(f"R{i}" for i in range(1, 10)),
    *(f"G{i}" for i in range(1, 7)),
    *(f"P{i}" for i in range(1, 9)),
)
CHAPTERED = [id for id in DESIGNED if BY_ID[id].supports or BY_ID[id].against]


def tampered(victim, **change):
    """The records of the book, one of them changed."""
    return [record | change if record is victim else record for record in FOUND]


PAGES = claims.pages(FOUND)


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_what_the_outputs_say(name):
    page = (ROOT / "book" / f"{name}.md").read_text(encoding="utf-8")
    assert page == PAGES[name], "run make claims"


def test_the_effect_of_a_row_bears_on_its_verdict():
    for claim in claims.CLAIMS:
        bearing = claims.named((*claim.supports, *claim.limits, *claim.against), FOUND)
        assert claim.effect in {record["id"] for record in bearing}, claim.id
        assert len(claim.brief.split()) <= 26, claim.id


def test_the_map_has_the_time_that_each_chapter_states():
    """Within a factor of two: machines differ."""
    seconds = yaml.safe_load((ROOT / "book/times.yml").read_text(encoding="utf-8"))["seconds"]
    words = {"ten seconds": 10, "half a minute": 30, "a minute": 60}
    for path in CHAPTERS:
        text = re.search(r"\*Time:\* (.+?)[;.]", read(path).cells[0].source)[1]
        stated = next(value for name, value in words.items() if name in text)
        assert stated / 2.5 <= seconds[path.stem] <= 2.5 * stated, path.stem


def test_every_claim_has_its_row():
    assert tuple(BY_ID) == DESIGNED
    assert {record["id"].split(".")[0] for record in FOUND} <= set(DESIGNED)


@pytest.mark.parametrize("id", [id for id in CHAPTERED if not BY_ID[id].source])
def test_every_claim_of_the_paper_has_a_live_check_of_its_own(id):
    assert any(r["id"].startswith(f"{id}.") and not r["recorded"] for r in FOUND)


@pytest.mark.parametrize("id", CHAPTERED)
def test_a_measurement_outside_its_band_changes_the_verdict(id):
    claim = BY_ID[id]
    before = claims.verdict(claim, FOUND)
    assert before in (claims.HOLDS, claims.LIMITED, claims.OF_TORCH) or claim.source
    names = (*claim.supports, *claim.limits, *claim.exceptions)
    if before == claims.FAILS:  # what speaks against a claim of a later paper
        names = claim.against
    for victim in claims.named(names, FOUND):
        moved = tampered(victim, values=victim["alternative_values"])
        assert claims.verdict(claim, moved) != before


@pytest.mark.parametrize(
    "field", ["id", "claim", "values", "count", "expected", "tolerance", "alternative_values"]
)
def test_a_value_changed_by_hand_changes_the_page_or_a_verdict(field):
    """Of a check that has them all on the page: one of several seeds, which no claim names."""
    names = {name for claim in claims.CLAIMS for name in (*claim.supports, *claim.limits)}
    victim = next(
        r
        for r in FOUND
        if r["count"] > 1 and not r["each"] and r["expected"] and r["id"] not in names
    )
    old = victim[field]
    if isinstance(old, list):
        new = [value * 1.1 + 1 for value in old]
    else:
        new = old + ".x" if isinstance(old, str) else old * 1.1 + 1
    assert claims.pages(tampered(victim, **{field: new})) != PAGES


GOOD = {"values": [0.9, 1.1, 1.0], "expected": 1.0, "tolerance": 0.3, "below": None, "above": None,
        "each": False, "alternative_values": [2.0, 2.01]}  # fmt: skip
BAD = {"values": [5.0]}


def verdict(one=None, two=None, **names):
    """Of a made-up claim, from two made-up checks."""
    found = [{"id": "A1.one", **GOOD, **(one or {})}, {"id": "A1.two", **GOOD, **(two or {})}]
    names = {"supports": ("A1.one",), "limits": ("A1.two",)} | names
    texts = {field.name: "text" for field in dataclasses.fields(claims.Claim)[1:6]}
    return claims.verdict(claims.Claim("A1", **texts, **names), found)


def test_verdicts_follow_from_what_lies_in_its_band():
    assert verdict() == claims.LIMITED == "holds with a limit"
    assert verdict(limits=()) == claims.HOLDS == "holds"
    assert verdict(two=BAD) == claims.OPEN == "not judged"
    assert verdict(exceptions=("A1.two",)) == claims.OF_TORCH == "was true of torch in 2017"
    assert verdict(exceptions=("A1.*",), two=BAD) == claims.OPEN
    assert verdict(exceptions=("A1.two",), one=BAD) == claims.FAILS
    assert verdict(supports=()) == claims.OPEN


def test_a_claim_can_fail_as_stated():
    assert verdict(one=BAD) == claims.FAILS == "fails as stated"
    assert verdict(one={"values": [0.8, 1.0, 1.4]}) == claims.FAILS
    assert verdict(one={"alternative_values": [1.0]}) == claims.FAILS
    assert verdict(one={"expected": None, "tolerance": None, "below": 0.9}) == claims.FAILS
    assert verdict(one={"each": True, "tolerance": 0.05}) == claims.FAILS
    assert verdict(against=("A1.two",)) == claims.FAILS
    assert verdict(against=("A1.two",), supports=()) == claims.FAILS
    assert verdict(against=("A1.two",), two=BAD, limits=()) == claims.HOLDS


def test_a_name_stands_for_checks_or_is_refused():
    assert [r["id"] for r in claims.named(("A1.t*",), [{"id": "A1.one"}, {"id": "A1.two"}])] == [
        "A1.two"
    ]
    with pytest.raises(ValueError, match=r"no check has the id A1\.three, A2\.\*"):
        verdict(supports=("A1.one", "A1.three", "A2.*"))
