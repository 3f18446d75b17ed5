"""An audit as a picture. Knows matplotlib and the audit's table."""

import math
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = {
    "invariant": "#0072B2",
    "joint": "#56B4E9",
    "inverse": "#E69F00",
    "not invariant": "#D55E00",
    "no effect": "#BBBBBB",
    "undecided": "#666666",
}
ROWS = 60  # more would not be read


def audit_figure(table: pd.DataFrame, title: str) -> "Figure":
    """One bar a row of an audit's table, as long as it has entries, coloured by verdict."""
    import matplotlib.pyplot as plt

    rows = table if len(table) <= ROWS else table.loc[_largest(table)]
    sizes = [math.prod(shape) for shape in rows["shape"]]
    figure, axes = plt.subplots(figsize=(7, 1 + 0.16 * len(rows)), layout="constrained")
    places = range(len(rows))
    axes.barh(places, sizes, color=[COLOURS[verdict] for verdict in rows.verdict])
    axes.set(xscale="log", xlabel="entries", ylim=(len(rows) - 0.5, -0.5))
    axes.set_yticks(places, rows.index, fontsize=6)
    for verdict in dict.fromkeys(rows.verdict):
        axes.barh(0, 0, color=COLOURS[verdict], label=verdict)
    shown = "" if len(rows) == len(table) else f", the {ROWS} largest of {len(table)} tensors"
    axes.set_title(f"{title}{shown}", fontsize=9)
    axes.legend(fontsize=7, loc="lower left", bbox_to_anchor=(0, 1.04), ncols=3, frameon=False)
    return figure


def _largest(table: pd.DataFrame) -> list[str]:
    sizes = table["shape"].map(math.prod)
    kept = set(sizes.nlargest(ROWS).index)
    return [name for name in table.index if name in kept]
