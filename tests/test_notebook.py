"""Checks tell right from wrong; figures carry their text."""

import json

import matplotlib.pyplot as plt
import pytest
import xarray as xr
from IPython.testing.globalipapp import start_ipython

import normlib as nl
from normlib import book


def test_a_check_prints_the_same_line_whatever_was_measured(capsys):
    lines = []
    for measured in (0.25, 0.26):
        nl.check("T4", "slope", measured, expected=0.25, tolerance=0.02, alternative=0.5)
        line, found = capsys.readouterr().out.splitlines()
        lines.append(line)
        assert f"measured {measured}" in found
    assert lines[0] == lines[1]
    assert lines[0].startswith("✓ T4: slope; expected 0.25 ± 0.02, not 0.5 (live, 1 value)")


@pytest.mark.parametrize("measured", [0.5, 0.28, 0.22, float("nan"), float("inf"), []])
def test_a_check_fails_outside_its_band(measured):
    with pytest.raises(book.CheckError, match="T4"):
        nl.check("T4", "slope", measured, expected=0.25, tolerance=0.02, alternative=0.5)


def test_the_whole_interval_must_lie_in_the_band():
    nl.check("X", "mean", [0.9, 1.0, 1.1], expected=1, tolerance=0.3, alternative=2.0)
    with pytest.raises(book.CheckError):
        nl.check("X", "mean", [0.9, 1.0, 1.1], expected=1, tolerance=0.2, alternative=2.0)


@pytest.mark.parametrize("alternative", [0.26, 0.27, float("nan"), ("named", 0.25)])
def test_a_band_that_admits_the_rival_is_refused(rival):
    with pytest.raises(ValueError, match="alternative"):
        nl.check("T4", "slope", 0.25, expected=0.25, tolerance=0.02, alternative=rival)


@pytest.mark.parametrize("tolerance", [0, -1, float("inf"), float("nan")])
def test_a_band_must_be_a_band(band):
    with pytest.raises(ValueError, match="tolerance"):
        nl.check("T4", "slope", 0.25, expected=0.25, tolerance=band, alternative=1.0)


def test_records_go_where_tests_ask_for_them(tmp_path, monkeypatch):
    monkeypatch.setenv("NORMLIB_CHECKS", str(tmp_path / "checks"))
    nl.check(
        "X", "mean", [0.9, 1.0, 1.1], expected=1, tolerance=0.3, alternative=2.0, recorded=True
    )
    (file,) = (tmp_path / "checks").iterdir()
    record = json.loads(file.read_text(encoding="utf-8"))
    assert record["measured"] == pytest.approx(1.0)
    assert (record["count"], record["recorded"], record["alternative"]) == (3, True, 2.0)
    assert record["low"] == pytest.approx(1 - 4.303 * 0.1 / 3**0.5, abs=1e-3)


def test_interval_is_students():
    scipy_stats = pytest.importorskip("scipy.stats")
    values = [1.0, 2.0, 4.0, 3.0, 2.5]
    low, high = scipy_stats.t.interval(0.95, 4, 2.5, scipy_stats.sem(values))
    assert nl.interval(values) == pytest.approx((2.5, low, high), rel=1e-3)


@pytest.fixture
def shown(monkeypatch):
    """What a cell displays, as (bundle, metadata)."""
    start_ipython()
    found = []
    monkeypatch.setattr(
        "IPython.display.display",
        lambda bundle, raw, metadata: found.append((bundle, metadata)),
    )
    return found


def test_values_go_into_the_outputs_metadata(shown):
    nl.check("T4", "slope", 0.251, expected=0.25, tolerance=0.02, alternative=0.5)
    bundle, metadata = shown[0]
    assert metadata["normlib"]["measured"] == 0.251
    assert "0.251" in bundle["text/html"]


def test_a_figure_carries_its_text_and_is_closed(shown):
    figure, axes = plt.subplots()
    axes.plot([1, 2])
    nl.show_figure(figure, "A rising line.")
    bundle, metadata = shown[0]
    assert metadata["image/png"]["alt"] == "A rising line."
    assert bundle["image/png"].startswith("iVBOR")
    assert not plt.get_fignums()
    with pytest.raises(ValueError, match="alt"):
        nl.show_figure(plt.figure(), " ")
    plt.close("all")


def draw(value):
    figure, axes = plt.subplots(figsize=(2, 1))
    axes.plot([0, value])
    return figure


def test_a_scrubber_is_the_same_bytes_twice_and_shows_one_frame(shown):
    for _ in range(2):
        nl.scrubber([1, 2, 3], draw, "height", alt="A line up to {}.", start=1)
    page = shown[0][0]["text/html"]
    assert page == shown[1][0]["text/html"]
    assert page.count("<img") == 3
    assert page.count(" checked>") == 1
    assert 'alt="A line up to 3."' in page
    assert "<script" not in page


@pytest.mark.parametrize("wrong", [dict(values=[1]), dict(alt="no place"), dict(labels=["one"])])
def test_a_wrong_scrubber_is_refused(wrong):
    arguments = dict(values=[1, 2], draw=draw, name="height", alt="{}") | wrong
    with pytest.raises(ValueError, match=r"scrubber|alt"):
        nl.scrubber(**arguments)


def test_a_heat_map_leaves_out_no_decay_and_labels_the_rest():
    rates = {"lr": [0.1, 1.0], "weight_decay": [0.0, 0.01, 0.1]}
    values = xr.DataArray([[9.0, 1, 2], [9, 3, 4]], dims=("lr", "weight_decay"), coords=rates)
    figure, axes = plt.subplots()
    image = nl.heatmap(axes, values.transpose())
    assert image.get_array().tolist() == [[1, 2], [3, 4]]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["0.1", "1"]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["0.01"]
    plt.close(figure)


def test_furthest_is_the_value_with_the_largest_distance():
    assert nl.furthest([[0.9, 1.05], [1.2, 1.0]]) == 1.2
    assert nl.furthest([0.3, 0.6], target=0.5) == 0.3
