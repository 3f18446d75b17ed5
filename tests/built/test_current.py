"""What the run of nbval has just measured agrees with what is committed."""

import json

import pytest

from tests import guards
from tests.conftest import CHAPTERS, ROOT, read, skip_unless_ci

CHECKS = ROOT / "_build" / "checks"


def disagreements(committed, fresh):
    """Checks whose new value is farther from the committed one than their band."""
    key = lambda record: (record["id"], record["claim"])  # noqa: E731
    measured = {key(record): record for record in fresh}
    found = []
    for record in committed:
        new = measured.get(key(record))
        if new is None:
            found.append(f"{key(record)} was not measured")
        elif abs(new["measured"] - record["measured"]) > record["tolerance"]:
            found.append(f"{key(record)}: {record['measured']} committed, {new['measured']} now")
    return found


@pytest.fixture(scope="module")
def fresh():
    files = sorted(CHECKS.glob("*.jsonl"))
    if not files:
        skip_unless_ci("nothing was measured: run make nbval first")
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_fresh_run_measures_what_is_committed(fresh, path):
    assert disagreements(guards.records(read(path)), fresh) == []


def test_a_value_outside_the_band_and_a_missing_one_are_seen():
    (record, *_) = guards.records(read(CHAPTERS[0]))
    moved = record | {"measured": record["measured"] + 1.01 * record["tolerance"]}
    assert disagreements([record], [record]) == []
    assert disagreements([record], [moved])
    assert disagreements([record], [])
