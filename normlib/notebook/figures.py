"""The book's figures: their style, their text, maps of grids. Knows pictures and xarray."""

import html
from typing import Any

import matplotlib.pyplot as plt
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from normlib.notebook.display import show
from normlib.notebook.pictures import Twins

# Okabe and Ito's palette, told apart with every common colour blindness; the three light ones
# darker than theirs, so that a line of theirs can be seen on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#BF6496", "#B27B00", "#3A93C8", "#000000")
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
}


def style() -> None:
    """Use the book's figure style from here on."""
    plt.rcParams.update(STYLE)


def show_figure(figure: Figure, alt: str, caption: str = "") -> None:
    """Show one figure, its caption and the text that a reader who cannot see it gets; close it.

    On a dark page it is dark. What would be too small or too pale to read is noted in the
    output's metadata, where a test of the chapters finds it.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    alt : str
        What the figure shows, in one or two sentences.
    caption : str
        What it says, in one sentence.

    Raises
    ------
    ValueError
        If there is no alternative text.
    """
    if not alt.strip():
        raise ValueError("alt must say what the figure shows")
    twins = Twins.of(figure)
    below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    bundle = {
        "text/plain": f"Figure: {alt}",
        "text/html": f'<figure class="nl-figure">{twins.html(alt)}{below}</figure>',
        "image/png": twins.light,  # where HTML is not shown
    }
    about = {"alt": alt, "width": twins.width}
    show(bundle, unreadable=twins.unreadable, **{"image/png": about})


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
