"""What the run of nbval has just measured agrees with what is committed."""

import json

import pytest

from normlib.notebook import Prediction
from tests import guards
from tests.conftest import CHAPTERS, ROOT, read, skip_unless_ci

CHECKS = ROOT / "_build" / "checks"


def agree(committed, new):
    """Within the tolerance: the mean, or the extremes where each counts. Else inside, both."""
    prediction = Prediction.of(committed)
    if prediction.tolerance is None:
        return prediction.admits(committed["values"]) and prediction.admits(new["values"])
    keys = ("low", "high") if prediction.each else ("measured",)
    return all(abs(new[key] - committed[key]) <= prediction.tolerance for key in keys)


def disagreements(committed, fresh):
    """Checks of which a new run says something else."""
    measured = {record["id"]: record for record in fresh}
    found = []
    for record in committed:
        new = measured.get(record["id"])
        if new is None:
            found.append(f"{record['id']} was not measured")
        elif not agree(record, new):
            found.append(f"{record['id']}: {record['values']} committed, {new['values']} now")
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


ALL = [record for path in CHAPTERS for record in guards.records(read(path))]


def test_a_mean_that_moved_is_seen():
    record = next(r for r in ALL if r["tolerance"] is not None and not r["each"])
    for share, count in ((0.99, 0), (1.01, 1)):
        moved = record["measured"] + share * record["tolerance"]
        assert len(disagreements([record], [record | {"measured": moved}])) == count


@pytest.mark.parametrize("end", ["low", "high"])
def test_an_extreme_value_that_moved_is_seen(end):
    record = next(r for r in ALL if r["tolerance"] is not None and r["each"])
    for share, count in ((0.99, 0), (1.01, 1)):
        moved = record[end] + share * record["tolerance"]
        assert len(disagreements([record], [record | {end: moved}])) == count


def test_a_value_beyond_its_bound_is_seen():
    record = next(r for r in ALL if r["tolerance"] is None)
    beyond = record | {"values": record["alternative_values"]}
    assert disagreements([record], [record]) == []
    assert len(disagreements([record], [beyond])) == 1
    assert len(disagreements([beyond], [record])) == 1


def test_a_check_that_was_not_measured_is_seen():
    assert disagreements(ALL[:1], ALL[1:]) == [f"{ALL[0]['id']} was not measured"]
