"""One figure for each value, chosen without any script. Knows pictures and HTML."""

import html
from collections.abc import Callable, Sequence

from matplotlib.figure import Figure

from normlib.notebook.display import show
from normlib.notebook.pictures import Twins


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
    radios, twins, frames = [], [], []
    for i, (value, label) in enumerate(zip(values, labels, strict=True)):
        checked = " checked" * (i == start)
        # Lab takes the arrow keys away from inputs unless told not to.
        radios.append(
            '<label><input data-lm-suppress-shortcuts="true" type="radio" name="frame" '
            f'autocomplete="off"{checked}> {html.escape(label)}</label>'
        )
        twins.append(Twins.of(draw(value), colours=64))
        frames.append(twins[-1].html(alt.format(label)))
    # A form of its own for each scrubber keeps groups of the same name apart.
    page = (
        f'<style>{_scrubber_css(len(values))}</style><form method="dialog" class="nl-pick">'
        f"<figure><fieldset><legend>{html.escape(name)}</legend>{' '.join(radios)}</fieldset>"
        f"<div>{''.join(frames)}</div></figure></form>"
    )
    unreadable = sorted({fault for one in twins for fault in one.unreadable})
    show({"text/html": page, "text/plain": f"Scrubber: {name}"}, unreadable=unreadable)


def _scrubber_css(count: int, frame: str = "picture") -> str:
    chosen = ",".join(
        f".nl-pick:has(label:nth-of-type({k}) input:checked) {frame}:nth-of-type({k})"
        for k in range(1, count + 1)
    )
    return (
        f"@supports selector(:has(*)){{.nl-pick {frame}{{display:none}}{chosen}{{display:block}}}}"
        ".nl-pick figure{margin:0}"
        ".nl-pick fieldset{border:0;margin:0;padding:0;min-width:0;display:flex;flex-wrap:wrap;"
        "gap:.25em 1em}.nl-pick legend{float:left;padding:0;width:auto;font-size:1em;"
        "margin:0 1em 0 0}.nl-pick img{max-width:100%;height:auto}"
    )
