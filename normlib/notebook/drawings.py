"""Drawings of vectors in a plane: arrows, angles, circles, with their names. Knows pictures.

The chapters draw with these what a step does to the weights. All places are pairs (x, y) in the
units of the plane; both axes have the same scale and are not shown.

>>> axes = plane((-0.5, 1.5), (-0.5, 1.0))
>>> arrow(axes, (0, 0), (1, 0), "w")
>>> arrow(axes, (1, 0), (1, 0.6), "−η∇L", "C1")
>>> right_angle(axes, (1, 0), (0, 0), (1, 0.6))
>>> plt.close(axes.figure)
"""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.typing import ColorType
from numpy.typing import ArrayLike

from normlib.notebook.pictures import legible

GAP = 9  # points between a name and what it names


def plane(
    x: tuple[float, float], y: tuple[float, float], ax: Axes | None = None, width: float = 5.6
) -> Axes:
    """An empty plane from x[0] to x[1] and y[0] to y[1], of its own figure or on given axes.

    Parameters
    ----------
    x, y : (float, float)
    ax : matplotlib.axes.Axes or None
    width : float
        Of a figure of its own, inches; the height follows.
    """
    if ax is None:
        height = width * (y[1] - y[0]) / (x[1] - x[0])
        ax = plt.figure(figsize=(width, height)).add_subplot()
    ax.set(xlim=x, ylim=y, aspect="equal")
    ax.set_axis_off()
    return ax


def arrow(
    ax: Axes,
    start: ArrayLike,
    end: ArrayLike,
    name: str = "",
    colour: ColorType = "k",
    side: float = 1,
    at: float = 0.5,
    style: str = "-",
) -> None:
    """An arrow with its name beside it.

    Parameters
    ----------
    side : float
        1: the name stands to the left of the arrow as one walks along it, −1: to the right,
        2: twice as far.
    at : float
        Where along the arrow, 0 to 1; 1 stands beside the tip.
    style : str
        Of the line, e.g. ``"--"``.
    """
    (x, y), (u, v) = _place(start), _place(end)
    shape = dict(arrowstyle="-|>", color=colour, lw=2, linestyle=style, shrinkA=0, shrinkB=0)
    ax.annotate("", (u, v), (x, y), arrowprops=shape)
    left = np.array([y - v, u - x]) / np.hypot(u - x, v - y)
    label(ax, (x + at * (u - x), y + at * (v - y)), name, side * left, colour)


def label(
    ax: Axes, at: ArrayLike, name: str, away: ArrayLike = (0, 0), colour: ColorType = "k"
) -> None:
    """A name at a place, moved away from it by some points in a direction."""
    (x, y), (right, up) = _place(at), GAP * _place(away)
    ax.annotate(
        name, (x, y), (right, up), textcoords="offset points", color=legible(colour, 1, 4.5),
        ha="left" if right > 3 else "right" if right < -3 else "center",
        va="bottom" if up > 3 else "top" if up < -3 else "center",
    )  # fmt: skip


def circle(ax: Axes, radius: float, centre: tuple[float, float] = (0, 0), style: str = "-") -> None:
    """A circle, or the part of it that the plane shows."""
    turn = np.linspace(0, 2 * np.pi, 400)
    x, y = centre
    ax.plot(x + radius * np.cos(turn), y + radius * np.sin(turn), color="0.5", lw=1, ls=style)


def angle(
    ax: Axes,
    at: ArrayLike,
    one: ArrayLike,
    other: ArrayLike,
    name: str = "",
    radius: float = 0.3,
) -> None:
    """An arc from the direction of one place to that of another, seen from `at`, with a name."""
    centre = _place(at)
    begin, end = (np.arctan2(*(_place(place) - centre)[::-1]) for place in (one, other))
    end = begin + (end - begin + np.pi) % (2 * np.pi) - np.pi
    turn = np.linspace(begin, end, 61)
    arc = centre + radius * np.array([np.cos(turn), np.sin(turn)]).T
    ax.plot(arc[:, 0], arc[:, 1], color="k", lw=1)
    label(ax, arc[30], name, (arc[30] - centre) / radius)


def right_angle(
    ax: Axes, at: ArrayLike, one: ArrayLike, other: ArrayLike, size: float = 0.08
) -> None:
    """The little square that says that two directions, seen from `at`, are perpendicular."""
    corner = _place(at)
    u, v = (
        size * away / np.linalg.norm(away)
        for away in (_place(one) - corner, _place(other) - corner)
    )
    square = corner + np.array([u, u + v, v])
    ax.plot(square[:, 0], square[:, 1], color="k", lw=1)


def _place(at: ArrayLike) -> np.ndarray:
    """A pair of numbers."""
    return np.asarray(at, float)
