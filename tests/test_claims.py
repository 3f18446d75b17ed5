"""The claims page says what the chapters' outputs say, and its verdicts follow from numbers."""

import itertools
from dataclasses import replace

import pytest

from tests.conftest import ROOT
from tools import claims

FOUND = claims.records()
BY_ID = {claim.id: claim for claim in claims.CLAIMS}
DESIGNED = (
    *(f"A{i}" for i in range(1, 5)),
    *(f"D{i}" for i in range(1, 10)),
    *(f"T{i}" for i in range(1, 8)),
    *(f"F{i}" for i in range(1, 4)),
)
CHAPTERED = [id for id in DESIGNED if BY_ID[id].supports]


def test_the_page_is_what_the_outputs_say():
    page = (ROOT / "book" / "claims.md").read_text(encoding="utf-8")
    assert page == claims.page(FOUND), "run make claims"


def test_every_claim_has_its_row():
    assert tuple(BY_ID) == DESIGNED
    assert {record["id"] for record in FOUND} <= set(DESIGNED)


@pytest.mark.parametrize("id", CHAPTERED)
def test_every_claim_of_words_and_theory_has_a_live_check_of_its_own(id):
    assert any(record["id"] == id and not record["recorded"] for record in FOUND)


@pytest.mark.parametrize("id", CHAPTERED)
def test_a_measurement_outside_its_band_changes_the_verdict(id):
    claim = BY_ID[id]
    before = claims.verdict(claim, FOUND)
    assert before in (claims.HOLDS, claims.LIMITED, claims.DATED)
    names = itertools.chain(claim.supports, claim.limits, claim.since)
    for name in names:
        (victim, *_) = claims.named(claim, (name,), FOUND)
        moved = victim["expected"] + 2 * victim["tolerance"]
        tampered = [
            record | {"measured": moved, "low": moved, "high": moved}
            if record is victim
            else record
            for record in FOUND
        ]
        assert claims.verdict(claim, tampered) != before
        assert claims.page(tampered) != claims.page(FOUND)


@pytest.mark.parametrize(
    "field", ["measured", "low", "high", "expected", "tolerance", "alternative", "count"]
)
def test_a_value_changed_by_hand_changes_the_page_or_a_verdict(field):
    """Of a check that has them all on the page: one of several seeds."""
    index = next(i for i, record in enumerate(FOUND) if record["count"] > 1)
    tampered = list(FOUND)
    tampered[index] = FOUND[index] | {field: FOUND[index][field] * 1.1 + 1}
    assert claims.page(tampered) != claims.page(FOUND)


def test_verdicts_follow_from_what_lies_in_its_band():
    claim = claims.Claim("A1", "words", ("one",), "why", limits=("two",))
    good = {
        "measured": 1.0,
        "low": 0.9,
        "high": 1.1,
        "expected": 1.0,
        "tolerance": 0.2,
        "alternative": 2.0,
    }
    one, two = good | {"claim": "one"}, good | {"claim": "two"}
    bad = {"measured": 5.0, "low": 5.0, "high": 5.0}
    assert claims.verdict(claim, [one, two]) == claims.LIMITED
    assert claims.verdict(claim, [one, two | bad]) == claims.HOLDS
    assert claims.verdict(claim, [one | bad, two]) == claims.FAILS
    assert claims.verdict(claim, [one | {"alternative": 1.0}, two]) == claims.FAILS
    assert claims.verdict(claim, [one | {"high": 1.3}, two]) == claims.FAILS
    assert claims.verdict(replace(claim, against=("two",)), [one, two]) == claims.FAILS
    assert claims.verdict(replace(claim, since=("two",)), [one, two]) == claims.DATED
    assert claims.verdict(replace(claim, supports=()), [two]) == claims.OPEN
    with pytest.raises(ValueError, match="no check begins"):
        claims.verdict(claim, [two])
