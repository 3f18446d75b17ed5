"""What only chapters need: checks, figures with alt text, scrubbers. Knows IPython's display."""

import base64
import html
import io
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from PIL import Image

# Okabe and Ito's palette, told apart with every common colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLE = {
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
    """A measurement lies outside its band: the page's claim does not hold here."""


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % t-interval (mean, low, high) of independent values, e.g. one a seed.

    >>> [round(v, 2) for v in interval([1.0, 2.0, 3.0])]
    [2.0, -0.48, 4.48]
    """
    from scipy import stats  # slow to import, and few need it

    values = np.ravel(np.asarray(values, float))
    if len(values) == 0:
        raise ValueError("interval needs at least one value")
    mean = float(values.mean())
    if len(values) == 1:
        return mean, mean, mean
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return mean, mean - half, mean + half


def furthest(values: Sequence[float], target: float = 1.0) -> float:
    """The value furthest from a target: what to check where all of them must be near it.

    >>> furthest([0.9, 1.05, 1.01])
    0.9
    """
    values = np.ravel(np.asarray(values, float))
    return float(values[np.argmax(np.abs(values - target))])


def check(
    id: str,
    claim: str,
    measured: float | Sequence[float],
    expected: float,
    band: float,
    rival: float | tuple[str, float],
    *,
    recorded: bool = False,
) -> None:
    """Test one prediction of the book on what was just measured; raise if it fails.

    Shows a line that is the same on every machine (claim, expectation, number of values, ✓) and
    below it what was measured here; the numbers also go into the output's metadata.

    Parameters
    ----------
    id : str
        The claim's id in `book/claims.md`, e.g. "A2".
    claim : str
        What is tested, in words, with the unit.
    measured : float or sequence of float
        One value, or independent values, one a seed: then their mean's 95 % t-interval must lie
        inside the band, which makes the check a test of equivalence.
    expected, band : float
        The prediction and how far from it the measurement may lie. The band comes from theory or
        from the spread over seeds. Both are part of the line: a prediction that is itself
        measured belongs into a ratio with `expected` 1.
    rival : float or (str, float)
        What another, plausible theory predicts, or its name and what was measured with it. It
        must lie outside the band, or the check could not tell the two apart.
    recorded : bool
        Whether the values come from a recorded sweep instead of one run in the chapter.

    Raises
    ------
    CheckError
        If the measurement (or its interval) is not inside the band.
    ValueError
        If an argument is not finite, or the band does not exclude the rival.

    >>> check("T4", "slope of log norm", 0.251, expected=0.25, band=0.02, rival=0.5)
    ✓ T4: slope of log norm; expected 0.25 ± 0.02, not 0.5 (live, 1 value)
      measured 0.251
    """
    values = np.ravel(np.asarray(measured, float))
    name, rival = rival if isinstance(rival, tuple) else (f"{rival:g}", rival)
    if not (math.isfinite(expected) and math.isfinite(band) and band > 0):
        raise ValueError(f"{id}: expected and band must be finite, band greater than 0")
    if math.isnan(rival) or abs(rival - expected) <= band * (1 + 1e-9):
        raise ValueError(
            f"{id}: the band {expected:g} ± {band:g} does not exclude the rival {rival:g}; "
            "such a check cannot tell them apart"
        )
    if len(values) == 0 or not np.isfinite(values).all():
        raise CheckError(f"{id}: {claim}: measured {measured}, which is not finite")
    mean, low, high = interval(values)
    count = f"{len(values)} value" + "s" * (len(values) > 1)
    line = (
        f"{id}: {claim}; expected {expected:g} ± {band:g}, not {name} "
        f"({'recorded' if recorded else 'live'}, {count})"
    )
    found = f"measured {mean:.3g}"
    if len(values) > 1:
        found += f", 95 % interval {low:.3g} to {high:.3g}"
    if low < expected - band or high > expected + band:
        raise CheckError(f"{line}\n  {found}: outside the band")
    record = {
        "id": id,
        "claim": claim,
        "measured": mean,
        "low": low,
        "high": high,
        "count": len(values),
        "expected": float(expected),
        "band": float(band),
        "rival": float(rival),
        "recorded": recorded,
    }
    _log(record)
    bundle = {
        "text/plain": f"✓ {line}\n  {found}",
        "text/html": f'<p class="nl-check"><strong>✓ {html.escape(line)}</strong><br>'
        f'<span class="nl-measured">{html.escape(found)}</span></p>',
    }
    _display(bundle, normlib=record)


def _log(record: dict) -> None:
    """Keep the record where tests look for it, if they asked."""
    folder = os.environ.get("NORMLIB_CHECKS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with open(Path(folder) / f"{os.getpid()}.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def _display(bundle: dict[str, str], **metadata: dict) -> None:
    """Show a mime bundle where there is a notebook, else print its text."""
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:  # normlib runs without IPython too
        print(bundle["text/plain"])
        return
    if get_ipython() is None:
        print(bundle["text/plain"])
    else:
        display(bundle, raw=True, metadata=metadata)


def style() -> None:
    """Use the book's figure style from here on."""
    plt.rcParams.update(STYLE)


def show(figure: Figure, alt: str) -> None:
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


def heat(
    ax: Axes, values: xr.DataArray, vmin: float | None = None, vmax: float | None = None
) -> QuadMesh:
    """Draw a map over an (lr, weight_decay) grid: λ to the right, η upwards, λ = 0 left out.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
    values : DataArray
        Over lr and weight_decay; cells that are not finite stay grey.
    vmin, vmax : float or None
        Where the colours begin and end.

    Returns
    -------
    matplotlib.collections.QuadMesh
        For ``figure.colorbar``. Chapters 04, 05 and 07.
    """
    values = values.sel(weight_decay=values.weight_decay > 0).transpose("lr", "weight_decay")
    image = ax.pcolormesh(values, cmap="cividis_r", vmin=vmin, vmax=vmax, edgecolor="white", lw=0.5)
    columns, rows = range(0, values.sizes["weight_decay"], 2), range(values.sizes["lr"])
    ax.set_xticks(
        [i + 0.5 for i in columns], [f"{values.weight_decay.values[i]:g}" for i in columns]
    )
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
