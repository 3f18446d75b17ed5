"""What only chapters need: checks, figures with alt text, scrubbers. Knows IPython's display."""

import base64
import html
import io
import json
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image

from normlib.analysis import interval

# Okabe and Ito's palette, told apart with every common colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLE: dict[Any, Any] = {
    "axes.prop_cycle": plt.cycler(color=COLOURS),
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.figsize": (5.6, 3.5),
    "figure.constrained_layout.use": True,
    "font.size": 11,
    "grid.alpha": 0.3,
    "image.cmap": "viridis",
    "legend.frameon": False,
    "savefig.dpi": 160,
}


class CheckError(AssertionError):
    """A measurement lies outside its prediction: the page's claim does not hold here."""


@dataclass(frozen=True)
class Prediction:
    """Where values should lie: near an expected number, below a bound, above one, or between.

    Attributes
    ----------
    expected, tolerance, below, above : float or None
        The first two, or one or both of the others.
    each : bool
        Whether every value must lie inside. Otherwise values are independent, one a seed, and the
        95 % t-interval of their mean must: a test of equivalence.

    Raises
    ------
    TypeError, ValueError
        If one of the four is not a finite number, or together they are no prediction.

    >>> Prediction(below=0.9).admits([0.2, 0.3, 0.4])
    True
    >>> Prediction(expected=1, tolerance=0.1, each=True).admits([0.95, 1.2])
    False
    """

    expected: float | None = None
    tolerance: float | None = None
    below: float | None = None
    above: float | None = None
    each: bool = False

    def __post_init__(self) -> None:
        given = {k: v for k, v in asdict(self).items() if k != "each" and v is not None}
        for name, value in given.items():
            if not isinstance(value, Real):
                raise TypeError(f"{name} must be a number, got {value!r}")
            if not math.isfinite(value) or (name == "tolerance" and value <= 0):
                raise ValueError(f"{name} must be finite, a tolerance above 0; got {value}")
            object.__setattr__(self, name, float(value))
        if set(given) not in ({"expected", "tolerance"}, {"below"}, {"above"}, {"below", "above"}):
            raise ValueError(
                "give expected and tolerance, or below, above or both of these; got "
                f"{' and '.join(given) or 'nothing'}"
            )
        if given.get("above", -math.inf) >= given.get("below", math.inf):
            raise ValueError(f"no value lies {self}")

    @classmethod
    def of(cls, record: dict) -> "Prediction":
        """The prediction in the record of a check."""
        return cls(*(record[name] for name in cls.__match_args__))

    def __str__(self) -> str:
        if self.expected is not None:
            return f"{self.expected:g} ± {self.tolerance:g}"
        bounds = {"above": self.above, "below": self.below}
        return " and ".join(f"{name} {v:g}" for name, v in bounds.items() if v is not None)

    def summary(self, values: ArrayLike) -> tuple[float, float, float]:
        """Mean of the values, and what of them must lie inside: their interval, or all of them."""
        values = np.asarray(values, float)
        mean, low, high = interval(values)
        return (mean, float(values.min()), float(values.max())) if self.each else (mean, low, high)

    def admits(self, values: ArrayLike) -> bool:
        """Whether the values lie inside; on the edge is inside, to rounding."""
        _, low, high = self.summary(values)
        return self._edges[0] <= low <= high <= self._edges[1]

    def excludes(self, values: ArrayLike) -> bool:
        """Whether an alternative's values lie outside: one of each, else the whole interval."""
        if self.each:
            return not self.admits(values)
        _, low, high = self.summary(values)
        return high < self._edges[0] or low > self._edges[1]

    def describe(self, values: ArrayLike, words: str = " ({} to {})") -> str:
        """The summary of the values in three digits, e.g. "0.98 (0.91 to 1.07)"."""
        mean, low, high = (f"{number:.3g}" for number in self.summary(values))
        if low == high:
            return mean
        return f"{low} to {high}" if self.each else mean + words.format(low, high)

    @property
    def _edges(self) -> tuple[float, float]:
        if self.expected is not None and self.tolerance is not None:
            wide = self.tolerance * (1 + 1e-9)
            return self.expected - wide, self.expected + wide
        low = -math.inf if self.above is None else self.above - 1e-9 * abs(self.above)
        return low, math.inf if self.below is None else self.below + 1e-9 * abs(self.below)


def check(
    id: str,
    claim: str,
    measured: ArrayLike,
    expected: float | None = None,
    *,
    tolerance: float | None = None,
    below: float | None = None,
    above: float | None = None,
    alternative: float | tuple[str, ArrayLike],
    each: bool = False,
    recorded: bool = False,
) -> None:
    """Test one prediction of the book on what was just measured; raise if it fails.

    Shows a line that is the same on every machine (claim, prediction, number of values, ✓) and
    below it what was measured here; the numbers also go into the output's metadata.

    Parameters
    ----------
    id, claim : str
        The claim's id in `book/claims.md`, a dot and a name, once in the book: "T4.exponent". Then
        what is tested, in words, with the unit.
    measured : float or sequence of float
        One value, or several.
    expected, tolerance, below, above, each
        What `Prediction` takes; from theory, or from the spread over seeds. All are part of the
        line: a prediction that is itself measured belongs into a ratio with `expected` 1.
    alternative : float or (str, float or sequence of float)
        What another, plausible theory predicts, or its name and what was measured with it. The
        prediction must exclude it, or the check could not tell the two apart.
    recorded : bool
        Whether the values come from a recorded sweep instead of one run in the chapter.

    Raises
    ------
    CheckError
        If what was measured is not finite or not inside.
    TypeError, ValueError
        If an argument is not what it should be, or the prediction admits the alternative.

    >>> check("T4.slope", "slope of log norm", 0.251, 0.25, tolerance=0.02, alternative=0.5)
    ✓ T4.slope: slope of log norm; expected 0.25 ± 0.02, not 0.5 (live, 1 value)
      measured 0.251
    """
    if not (isinstance(id, str) and isinstance(claim, str)):
        raise TypeError(f"id and claim must be text, got {id!r} and {claim!r}")
    if not re.fullmatch(r"[A-Z]\d+(\.[a-z0-9_-]+)+", id):
        raise ValueError(f"id must be a claim's, a dot and a name, as T4.exponent; got {id!r}")
    prediction = Prediction(expected, tolerance, below, above, each)
    values = _numbers("measured", measured)
    name, others = _named(alternative)
    if np.isnan(others).any() or not prediction.excludes(others):
        raise ValueError(
            f"{id}: {prediction} does not exclude the alternative {prediction.describe(others)}; "
            "such a check cannot tell the two apart"
        )
    if len(values) == 0 or not np.isfinite(values).all():
        raise CheckError(f"{id}: {claim}: measured {values}, which is not finite")
    many = len(values) > 1
    count = f"{'each of ' * (each and many)}{len(values)} value{'s' * many}"
    line = (
        f"{id}: {claim}; expected {prediction}, not {name or f'{others[0]:g}'} "
        f"({'recorded' if recorded else 'live'}, {count})"
    )
    found = "measured " + prediction.describe(values, ", 95 % interval {} to {}")
    if name is not None:
        found += f", alternative {prediction.describe(others)}"
    if not prediction.admits(values):
        raise CheckError(f"{line}\n  {found}: outside")
    record = {"id": id, "claim": claim, "recorded": recorded, **asdict(prediction)}
    record |= {"values": values.tolist(), "count": len(values)}
    record |= zip(("measured", "low", "high"), prediction.summary(values), strict=True)
    record |= {"alternative_name": name, "alternative_values": others.tolist()}
    names = ("alternative", "alternative_low", "alternative_high")
    record |= zip(names, prediction.summary(others), strict=True)
    _log(record)
    bundle = {
        "text/plain": f"✓ {line}\n  {found}",
        "text/html": f'<p class="nl-check"><strong>✓ {html.escape(line)}</strong><br>'
        f'<span class="nl-measured">{html.escape(found)}</span></p>',
    }
    _display(bundle, normlib=record)


def _numbers(name: str, values: ArrayLike) -> np.ndarray:
    """Values as a flat array of float."""
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must be a number or several, got {values!r}")
    return array.astype(float).ravel()


def _named(alternative: float | tuple[str, ArrayLike]) -> tuple[str | None, np.ndarray]:
    """An alternative's name, None for a bare number, and its values."""
    match alternative:
        case Real():
            return None, _numbers("alternative", alternative)
        case (str(name), values):
            return name, _numbers("alternative", values)
    raise TypeError(f"alternative must be a number or (name, values), got {alternative!r}")


def _log(record: dict) -> None:
    """Keep the record where tests look for it, if they asked."""
    if folder := os.environ.get("NORMLIB_CHECKS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        with open(Path(folder) / f"{os.getpid()}.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def _display(bundle: dict[str, str], **metadata: dict) -> None:
    """Show a mime bundle where there is a notebook, else print its text."""
    if "IPython" in sys.modules:  # as it is in every notebook
        from IPython import display, get_ipython

        if get_ipython() is not None:
            display.display(bundle, raw=True, metadata=metadata)
            return
    print(bundle["text/plain"])


def style() -> None:
    """Use the book's figure style from here on."""
    plt.rcParams.update(STYLE)


def show_figure(figure: Figure, alt: str) -> None:
    """Show one figure with the text that a reader who cannot see it gets, and close it.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    alt : str
        What the figure shows, in one or two sentences.
    """
    if not alt.strip():
        raise ValueError("alt must say what the figure shows")
    png = _png(figure)
    data = {"image/png": base64.b64encode(png).decode(), "text/plain": f"Figure: {alt}"}
    width = round(figure.get_figwidth() * 96)  # no height: on a phone it must shrink with it
    _display(data, **{"image/png": {"alt": alt, "width": width}})


def heatmap(
    ax: Axes,
    values: xr.DataArray,
    vmin: float | None = None,
    vmax: float | None = None,
    dead: xr.DataArray | None = None,
) -> QuadMesh:
    """Draw a map over an (lr, weight_decay) grid: λ to the right, η upwards, λ = 0 left out.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
    values : DataArray
        Over lr and weight_decay; cells that are not finite stay grey.
    vmin, vmax : float or None
        Where the colours begin and end.
    dead : DataArray of bool or None
        Cells that are hatched instead of coloured, a region of its own; see `nl.dead`.

    Returns
    -------
    matplotlib.collections.QuadMesh
        For ``figure.colorbar``. Chapters 04, 05 and 07.
    """
    decayed = values.weight_decay > 0
    if dead is not None:
        hatched = dead.where(dead).sel(weight_decay=decayed).transpose("lr", "weight_decay")
        ax.pcolor(hatched, cmap="Greys", clim=(1, 2), hatch="////", edgecolor="0.3", lw=0)
        values = values.where(~dead)
    values = values.sel(weight_decay=decayed).transpose("lr", "weight_decay")
    image = ax.pcolormesh(values, cmap="cividis_r", vmin=vmin, vmax=vmax, edgecolor="white", lw=0.5)
    columns, rows = range(0, values.sizes["weight_decay"], 2), range(values.sizes["lr"])
    decays = [f"{values.weight_decay.values[i]:g}" for i in columns]
    ax.set_xticks([i + 0.5 for i in columns], decays)
    ax.set_yticks([i + 0.5 for i in rows], [f"{values.lr.values[i]:g}" for i in rows])
    ax.set_xlabel("weight decay λ")
    ax.set_facecolor("0.8")
    ax.grid(False)
    return image


def scrubber(
    values: Sequence[float],
    draw: Callable[[float], Figure],
    name: str,
    alt: str,
    labels: Sequence[str] | None = None,
    start: int = 0,
) -> None:
    """Show one precomputed figure for each value, chosen by radio buttons without any script.

    Works in a page without a kernel, without a network and without JavaScript; arrow keys move.

    Parameters
    ----------
    values : sequence
        At most nine; more would not fit a phone.
    draw : callable
        value -> figure. All figures should share their axes.
    name : str
        What the values are, shown before the buttons.
    alt : str
        Text for a reader who cannot see the frame; ``{}`` stands for the value's label.
    labels : sequence of str or None
        One a value; None: the value in short.
    start : int
        Which value is shown first.
    """
    labels = [f"{v:g}" for v in values] if labels is None else list(labels)
    if not 2 <= len(values) <= 9 or len(labels) != len(values):
        raise ValueError(f"a scrubber takes 2 to 9 values with a label each, got {len(values)}")
    if not 0 <= start < len(values):
        raise ValueError(f"a scrubber's start must be the position of a value, got {start}")
    if "{}" not in alt:
        raise ValueError("alt must contain {} for the value's label")
    radios, frames = [], []
    for i, (value, label) in enumerate(zip(values, labels, strict=True)):
        checked = " checked" * (i == start)
        # Lab takes the arrow keys away from inputs unless told not to.
        radios.append(
            '<label><input data-lm-suppress-shortcuts="true" type="radio" name="frame" '
            f'autocomplete="off"{checked}> {html.escape(label)}</label>'
        )
        source = base64.b64encode(_png(draw(value), colours=64)).decode()
        text = html.escape(alt.format(label))
        frames.append(f'<img src="data:image/png;base64,{source}" alt="{text}">')
    # A form of its own for each scrubber keeps groups of the same name apart.
    page = (
        f'<style>{_scrubber_css(len(values))}</style><form method="dialog" class="nl-pick">'
        f"<figure><fieldset><legend>{html.escape(name)}</legend>{' '.join(radios)}</fieldset>"
        f"<div>{''.join(frames)}</div></figure></form>"
    )
    _display({"text/html": page, "text/plain": f"Scrubber: {name}"})


def _scrubber_css(count: int) -> str:
    chosen = ",".join(
        f".nl-pick:has(label:nth-of-type({k}) input:checked) img:nth-of-type({k})"
        for k in range(1, count + 1)
    )
    return (
        "@supports selector(:has(*)){.nl-pick img{display:none}" + chosen + "{display:block}}"
        ".nl-pick figure{margin:0}"
        ".nl-pick fieldset{border:0;margin:0;padding:0;min-width:0;display:flex;flex-wrap:wrap;"
        "gap:.25em 1em}.nl-pick legend{float:left;padding:0;width:auto;font-size:1em;"
        "margin:0 1em 0 0}.nl-pick img{max-width:100%;width:35em;height:auto;background:#fff}"
    )


def _png(figure: Figure, colours: int = 256) -> bytes:
    """The figure as a small PNG with a palette, the same bytes for the same figure."""
    raw = io.BytesIO()
    figure.savefig(raw, format="png", dpi=STYLE["savefig.dpi"], metadata={"Software": None})
    plt.close(figure)
    image = Image.open(raw).convert("RGB").quantize(colours, dither=Image.Dither.NONE)
    small = io.BytesIO()
    image.save(small, format="png", optimize=True)
    return small.getvalue()
