"""Checks tell right from wrong; figures carry their text."""

import base64
import configparser
import io
import json
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from IPython.testing.globalipapp import start_ipython
from matplotlib.colors import to_rgba
from PIL import Image

import normlib as nl
from normlib.notebook import CheckError, Prediction
from normlib.notebook.figures import COLOURS
from normlib.notebook.numberline import number_line
from normlib.notebook.pictures import GROUND, contrast, night
from normlib.notebook.scrubbers import _scrubber_css
from tests.conftest import ROOT


def check(measured, expected=None, id="T4.slope", **arguments):
    nl.check(id, "slope", measured, expected, **arguments)


def line(capsys, *arguments, **settings):
    check(*arguments, **settings)
    return capsys.readouterr().out.splitlines()


QUARTER = {"expected": 0.25, "tolerance": 0.02, "alternative": 0.5}


def test_a_check_prints_the_same_line_whatever_was_measured(capsys):
    (first, found), (second, _) = (line(capsys, value, **QUARTER) for value in (0.25, 0.26))
    assert first == second == "✓ T4.slope: slope; expected 0.25 ± 0.02, not 0.5 (live, 1 value)"
    assert found == "  measured 0.25"


@pytest.mark.parametrize(
    ("prediction", "words", "measured"),
    [
        (dict(below=2), "below 2, not other (recorded, 3 values)",
         "measured 1, 95 % interval 0.752 to 1.25, alternative 4 (2.76 to 5.24)"),
        (dict(above=0, below=2), "above 0 and below 2, not other (recorded, 3 values)",
         "measured 1, 95 % interval 0.752 to 1.25, alternative 4 (2.76 to 5.24)"),
        (dict(expected=1, tolerance=0.5, each=True),
         "1 ± 0.5, not other (recorded, each of 3 values)",
         "measured 0.9 to 1.1, alternative 3.5 to 4.5"),
    ],
)  # fmt: skip
def test_a_check_says_what_it_expects_and_what_was_found(capsys, prediction, words, measured):
    alternative = ("other", [3.5, 4.0, 4.5])
    first, found = line(
        capsys, [0.9, 1.0, 1.1], **prediction, alternative=alternative, recorded=True
    )
    assert first == f"✓ T4.slope: slope; expected {words}"
    assert found == f"  {measured}"


@pytest.mark.parametrize("measured", [0.5, 0.28, 0.22, float("nan"), float("inf"), []])
def test_a_check_fails_outside_its_band(measured):
    with pytest.raises(CheckError, match=r"T4\.slope"):
        check(measured, **QUARTER)


@pytest.mark.parametrize("measured", [0.27, 0.23, [0.25, 0.25]])
def test_the_edge_is_inside(measured):
    check(measured, **QUARTER)


def test_the_whole_interval_must_lie_in_the_band():
    check([0.9, 1.0, 1.1], 1, tolerance=0.3, alternative=2.0)
    with pytest.raises(CheckError):
        check([0.9, 1.0, 1.1], 1, tolerance=0.2, alternative=2.0)


@pytest.mark.parametrize(
    ("bounds", "alternative"),
    [(dict(below=1.2), 2.0), (dict(above=0.8), 0.0), (dict(above=0.8, below=3), 0.0)],
)
def test_the_whole_interval_must_lie_within_bounds(bounds, alternative):
    check(1.0, **bounds, alternative=alternative)
    check([0.9, 1.0, 1.1], **bounds, alternative=alternative, each=True)
    with pytest.raises(CheckError, match="outside"):
        check([0.9, 1.0, 1.1], **bounds, alternative=alternative)


def test_each_value_must_lie_inside():
    check([0.9, 1.0, 1.1], 1, tolerance=0.2, alternative=2.0, each=True)
    with pytest.raises(CheckError):
        check([1.0, 1.0, 1.3], 1, tolerance=0.2, alternative=2.0, each=True)


@pytest.mark.parametrize("alternative", [0.26, 0.27, float("nan"), ("named", 0.25)])
def test_a_band_that_admits_the_alternative_is_refused(alternative):
    with pytest.raises(ValueError, match=r"T4\.slope.*alternative"):
        check(0.25, **QUARTER | {"alternative": alternative})


def test_a_measured_alternative_must_lie_outside_with_its_whole_interval():
    check(0.25, **QUARTER | {"alternative": ("named", [0.5, 0.51, 0.52])})
    for values in ([0.3, 0.5, 0.7], [0.0, 0.5, 0.25], []):
        with pytest.raises(ValueError, match=r"alternative|at least one value"):
            check(0.25, **QUARTER | {"alternative": ("named", values)})


def test_one_value_of_an_alternative_outside_is_enough_where_each_counts():
    check(0.25, **QUARTER | {"alternative": ("named", [0.25, 0.5])}, each=True)
    with pytest.raises(ValueError, match="alternative"):
        check(0.25, **QUARTER | {"alternative": ("named", [0.25, 0.26])}, each=True)


@pytest.mark.parametrize("tolerance", [0, -1, float("inf"), float("nan")])
def test_a_tolerance_must_be_one(tolerance):
    with pytest.raises(ValueError, match="tolerance"):
        check(0.25, 0.25, tolerance=tolerance, alternative=1.0)


@pytest.mark.parametrize(
    "prediction",
    [
        {},
        {"expected": 1},
        {"tolerance": 1},
        {"expected": 1, "tolerance": 1, "below": 3},
        {"expected": 1, "above": 0},
        {"above": 1, "below": 1},
        {"below": float("inf")},
    ],
    ids=str,
)
def test_what_is_no_prediction_is_refused(prediction):
    with pytest.raises(ValueError, match=r"give expected|no value|finite"):
        check(0.25, **prediction, alternative=9.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"expected": "1"},
        {"tolerance": [0.1]},
        {"measured": "0.25"},
        {"measured": [None]},
        {"alternative": "none"},
        {"alternative": [0.5, 0.6]},
        {"alternative": ("named",)},
        {"alternative": (0.5, "named")},
        {"id": 4},
    ],
    ids=str,
)
def test_a_wrong_type_is_refused(wrong):
    with pytest.raises(TypeError, match=r"must be"):
        check(**{"measured": 0.25, **QUARTER, **wrong})


@pytest.mark.parametrize("id", ["T4", "T4.", "t4.slope", "T4.Slope", "T4 slope", "slope"])
def test_an_id_is_a_claim_and_a_name(id):
    with pytest.raises(ValueError, match="id must be"):
        check(0.25, id=id, **QUARTER)


def test_records_go_where_tests_ask_for_them(tmp_path, monkeypatch):
    monkeypatch.setenv("NORMLIB_CHECKS", str(tmp_path / "checks"))
    other = ("other", [2.0, 2.1])
    check([0.9, 1.0, 1.1], 1, tolerance=0.3, alternative=other, recorded=True, each=False)
    check([0.9, 1.0, 1.1], below=3, alternative=4, each=True)
    (file,) = (tmp_path / "checks").iterdir()
    seeds, each = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    assert seeds["measured"] == pytest.approx(1.0)
    assert (seeds["count"], seeds["recorded"], seeds["each"]) == (3, True, False)
    assert (seeds["expected"], seeds["tolerance"], seeds["below"]) == (1, 0.3, None)
    assert seeds["low"] == pytest.approx(1 - 4.303 * 0.1 / 3**0.5, abs=1e-3)
    assert (seeds["alternative_name"], seeds["alternative"]) == ("other", 2.05)
    assert seeds["alternative_high"] == pytest.approx(2.05 + 12.706 * 0.05, abs=1e-3)
    assert (each["low"], each["high"], each["expected"], each["below"]) == (0.9, 1.1, None, 3)
    assert (each["alternative_name"], each["alternative_values"]) == (None, [4])
    for record in (seeds, each):
        assert Prediction.of(record).admits(record["values"])
        assert Prediction.of(record).excludes(record["alternative_values"])


def test_interval_is_students():
    """t = 2.776 for four degrees of freedom; the sum of squares about the mean is 5."""
    mean, low, high = nl.interval([1.0, 2.0, 4.0, 3.0, 2.5])
    half = 2.776 * (5 / 4 / 5) ** 0.5
    assert (mean, low, high) == pytest.approx((2.5, 2.5 - half, 2.5 + half), abs=1e-3)
    assert nl.interval([3.0]) == (3.0, 3.0, 3.0)
    with pytest.raises(ValueError, match="at least one"):
        nl.interval([])


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
    check(0.251, **QUARTER)
    bundle, metadata = shown[0]
    assert metadata["normlib"][0]["measured"] == 0.251
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


def test_the_front_picture_has_the_style_of_a_scrubber():
    page = (ROOT / "book/_static/front.html").read_text(encoding="utf-8")
    assert page.startswith(f"<style>{_scrubber_css(page.count('<svg'), 'svg')}</style>")


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


def test_a_heat_map_hatches_what_is_dead():
    rates = {"lr": [0.1, 1.0], "weight_decay": [0.0, 0.01, 0.1]}
    values = xr.DataArray([[9.0, 1, 2], [9, 3, 4]], dims=("lr", "weight_decay"), coords=rates)
    figure, axes = plt.subplots()
    image = nl.heatmap(axes, values, dead=(values == 4).transpose())
    assert image.get_array().filled(0).tolist() == [[1, 2], [3, 0]]
    (region,) = (c for c in axes.collections if c.get_hatch())
    assert region.get_array().filled(0).tolist() == [[0, 0], [0, 1]]
    nl.heatmap(axes, values, dead=values < 0)
    figure.canvas.draw()
    plt.close(figure)


def test_a_figure_has_a_dark_twin(shown):
    figure, axes = plt.subplots(figsize=(2, 1))
    axes.plot([1, 2], "k")
    nl.show_figure(figure, "A rising line.", caption="It rises <slowly>.")
    page = shown[0][0]["text/html"]
    dark, light = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(found))).convert("L"))
        for found in re.findall(r"base64,([A-Za-z0-9+/=]+)", page)
    )
    assert light.shape == dark.shape
    assert np.median(light) == 255
    assert np.median(dark) == round(255 * GROUND)
    assert light.min() < 10
    assert dark.max() > 230
    assert 'media="screen and (prefers-color-scheme: dark)"' in page
    assert "<figcaption>It rises &lt;slowly&gt;.</figcaption>" in page


@pytest.mark.parametrize("colour", COLOURS)
def test_every_colour_can_be_seen_on_both_grounds(colour):
    assert contrast(to_rgba(colour), (1, 1, 1, 1)) >= 3
    assert contrast(night(colour), (GROUND, GROUND, GROUND, 1)) >= 3


def test_text_keeps_its_contrast_at_night():
    for grey in np.linspace(0, 1, 11):
        day = contrast((grey, grey, grey, 1), (1, 1, 1, 1))
        ground = (GROUND, GROUND, GROUND, 1)
        if day >= 4.5:
            assert contrast(night((grey, grey, grey)), ground) >= 4.5


@pytest.mark.parametrize(
    ("width", "size", "colour", "fault"),
    [(5.6, 11, "k", None), (5.6, 8, "k", "px on a phone"), (9.6, 11, "k", "px on a phone"),
     (5.6, 11, "0.6", "contrast")],
)  # fmt: skip
def test_text_that_nobody_could_read_is_noted(shown, width, size, colour, fault):
    nl.style()
    figure, axes = plt.subplots(figsize=(width, 3))
    axes.set_axis_off()
    axes.text(0.5, 0.5, "words", fontsize=size, color=colour)
    nl.show_figure(figure, "Only words.")
    (unreadable,) = (metadata["unreadable"] for _, metadata in shown)
    assert (fault in unreadable[0]) if fault else unreadable == []
    plt.rcdefaults()


def places(svg):
    """Of the band, the alternative and the measurement on a number line, as intervals."""
    band = re.search(r'<rect x="([\d.]+)" y="\d+" width="([\d.]+)"', svg)
    ring, dot = re.findall(r'd="M([\d.]+) 10H([\d.]+)" stroke-width', svg)
    start, width = map(float, band.groups())
    return (start, start + width), tuple(map(float, ring)), tuple(map(float, dot))


@pytest.mark.parametrize(
    ("prediction", "measured", "alternative"),
    [
        (dict(expected=0.25, tolerance=0.02), [0.25, 0.251, 0.249], [0.5]),
        (dict(expected=0, tolerance=1e-10), [1e-15], [198.0]),
        (dict(expected=0, tolerance=1e-10), [0.0], [-3.0]),
        (dict(expected=0, tolerance=1), [-0.1, 0.2, 0.1], [-3, -4, -5]),
        (dict(expected=1, tolerance=0.001), [1.0], [1e6]),
        (dict(below=2), [1, 1.1, 1.2], [4]),
        (dict(above=0, below=2), [1, 1.1, 1.2], [-4]),
    ],
)
def test_a_number_line_shows_the_measurement_in_the_band_and_the_alternative_outside(
    prediction, measured, alternative
):
    svg = number_line(Prediction(**prediction), measured, alternative)
    band, ring, dot = places(svg)
    assert band[0] <= dot[0] <= dot[1] <= band[1]
    assert ring[1] < band[0] or ring[0] > band[1]
    assert 0 <= min(*band, *ring) <= max(*band, *ring) <= 300
    assert re.search(r"<title>predicted .*; measured .*; alternative .*</title>", svg)


def test_evidence_shows_the_first_check_and_folds_the_others(shown):
    with nl.evidence():
        check(0.25, **QUARTER)
        check(0.26, id="T4.other", **QUARTER)
    ((bundle, metadata),) = shown
    first, rest = bundle["text/html"].split("<details>")
    assert "T4.slope" in first
    assert "<summary>1 more check</summary>" in rest
    assert "T4.other" in rest
    assert [record["id"] for record in metadata["normlib"]] == ["T4.slope", "T4.other"]
    assert bundle["text/plain"].count("✓") == 2


def test_evidence_shows_what_came_before_a_failure(shown):
    def block():
        with nl.evidence():
            check(0.25, **QUARTER)
            check(0.5, **QUARTER)

    with pytest.raises(CheckError):
        block()
    assert len(shown[0][1]["normlib"]) == 1
    check(0.25, **QUARTER)
    assert len(shown) == 2


def test_what_differs_between_machines_is_where_nbval_looks_away(shown):
    """Pages of two measurements are the same once the sanitizer has been over them."""
    sanitizer = configparser.RawConfigParser()
    sanitizer.read(ROOT / "tests/nbval.cfg", encoding="utf-8")

    def clean(text):
        for part in sanitizer.sections():
            text = re.sub(sanitizer[part]["regex"], sanitizer[part].get("replace", ""), text)
        return text

    for value, other in ((0.25, 0.5), (0.26, 0.51)):
        with nl.evidence():
            check(value, **QUARTER | {"alternative": ("other", other)})
            check(value, id="T4.other", **QUARTER)
    (one, _), (two, _) = shown
    for kind in ("text/plain", "text/html"):
        assert one[kind] != two[kind]
        assert clean(one[kind]) == clean(two[kind])
