"""A check as one line of numbers: band, measurement, alternative. Knows predictions and SVG."""

import html
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from normlib.notebook.predictions import Prediction

LEFT, RIGHT, HEIGHT = 6, 294, 20
ZERO = 1e-17  # what is drawn for less, where the line is logarithmic
FAR = 12  # an alternative is drawn at the edge if it lies further off, in units of the tolerance


def number_line(prediction: Prediction, measured: ArrayLike, alternative: ArrayLike) -> str:
    """One line of SVG: the band in grey, the measurement as a dot, the alternative as a ring.

    Both have their interval, or their smallest and largest value. Where zero is predicted and the
    alternative is far, the line is logarithmic. Colours are the text's.

    Parameters
    ----------
    prediction : Prediction
    measured, alternative : float or sequence of float

    Returns
    -------
    str
    """
    found, other = prediction.summary(measured), prediction.summary(alternative)
    low, high = prediction.edges
    if prediction.expected == 0 and max(np.abs(other)) > 30 * high:
        low, found, other = 0.0, _magnitude(found), _magnitude(other)
        to = _scale(np.log10(ZERO), np.log10(max(other[2], 1.0)), lambda v: np.log10(max(v, ZERO)))
    else:
        near = _near(prediction, found, other)
        pad = 0.05 * np.ptp(near) or 1.0
        to = _scale(min(near) - pad, max(near) + pad, lambda v: v)
    band = to(low), to(high)
    words = (
        f"predicted {prediction}; measured {prediction.describe(measured)}; "
        f"alternative {prediction.describe(alternative)}"
    )
    return (
        f'<svg class="nl-line" viewBox="0 0 300 {HEIGHT}" width="300" height="{HEIGHT}" '
        f'role="img" stroke="currentColor"><title>{html.escape(words)}</title>'
        f'<path d="M{LEFT} 10H{RIGHT}" stroke-opacity=".4"/>'
        f'<rect x="{band[0]:.1f}" y="3" width="{max(band[1] - band[0], 2):.1f}" height="14" '
        'fill="currentColor" fill-opacity=".25" stroke="none"/>'
        f'<path d="M{to(other[1]):.1f} 10H{to(other[2]):.1f}" stroke-width="2"/>'
        f'<circle cx="{to(other[0]):.1f}" cy="10" r="4.5" fill="none" stroke-width="1.5"/>'
        f'<path d="M{to(found[1]):.1f} 10H{to(found[2]):.1f}" stroke-width="3"/>'
        f'<circle cx="{to(found[0]):.1f}" cy="10" r="3.5" fill="currentColor"/></svg>'
    )


def _scale(
    start: float, end: float, transform: Callable[[float], float]
) -> Callable[[float], float]:
    """From a value to a place on the line; what lies beyond an end is drawn there."""

    def place(value: float) -> float:
        share = (transform(value) - start) / (end - start) if math.isfinite(value) else value
        return float(LEFT + (RIGHT - LEFT) * np.clip(share, 0, 1))

    return place


def _magnitude(values: tuple[float, float, float]) -> tuple[float, float, float]:
    """Mean, smallest and largest absolute value."""
    size = np.abs(values)
    return float(size[0]), float(size.min()), float(size.max())


def _near(prediction: Prediction, *summaries: tuple[float, float, float]) -> list[float]:
    """What the line should show: the band's edges, and all values that are not far."""
    edges = [edge for edge in prediction.edges if math.isfinite(edge)]
    values = [value for summary in summaries for value in summary]
    if prediction.expected is not None and prediction.tolerance is not None:
        reach = FAR * prediction.tolerance
        values = np.clip(values, prediction.expected - reach, prediction.expected + reach).tolist()
    return [*edges, *values]
