"""A figure as two small pictures, for light pages and for dark ones. Knows matplotlib and PNG."""

import base64
import colorsys
import html
import io

import matplotlib.pyplot as plt
import numpy as np
from attrs import frozen
from matplotlib.artist import Artist
from matplotlib.collections import Collection
from matplotlib.colors import ListedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Annotation, Text
from matplotlib.typing import ColorType
from PIL import Image

DPI = 160
PHONE = 350  # what a phone of 390 px leaves for a figure, in CSS pixels
SMALLEST = 9  # text there, in CSS pixels
GROUND = 0.07  # grey of a dark page
INK = 0.93  # grey of its text

Colour = tuple[float, float, float, float]


@frozen
class Twins:
    """One figure, drawn twice: PNGs for a light and a dark page.

    Attributes
    ----------
    light, dark : str
        In base64; the same for the same figure.
    width : int
        In CSS pixels.
    unreadable : list of str
        What of its text is too small on a phone, or too pale.
    """

    light: str
    dark: str
    width: int
    unreadable: list[str]

    @classmethod
    def of(cls, figure: Figure, colours: int = 256) -> "Twins":
        """Both pictures of a figure, which is closed."""
        light, unreadable = _png(figure, colours), complaints(figure)
        on_maps = _on_maps(figure)
        for artist in figure.findobj():
            if artist not in on_maps:
                _turn(artist)
        dark = _png(figure, colours)
        plt.close(figure)
        return cls(light, dark, round(96 * figure.get_figwidth()), unreadable)

    def html(self, alt: str) -> str:
        """One element: browsers show the dark one where the reader's system is dark."""
        png = "data:image/png;base64,"
        return (
            '<picture><source media="screen and (prefers-color-scheme: dark)" '
            f'srcset="{png}{self.dark}"><img src="{png}{self.light}" '
            f'alt="{html.escape(alt)}" width="{self.width}"></picture>'
        )


def complaints(figure: Figure) -> list[str]:
    """What of a figure's text a reader could not read, on a phone or at all."""
    shrink = min(1.0, PHONE / (96 * figure.get_figwidth()))
    found, on_maps = [], _on_maps(figure)
    for text in figure.findobj(Text):
        if not (text.get_visible() and text.get_text().strip()):
            continue
        size = float(text.get_fontsize()) * 96 / 72 * shrink
        if size < SMALLEST:
            found.append(f"{text.get_text()!r} has {size:.1f} px on a phone, at least {SMALLEST}")
        ratio = contrast(to_rgba(text.get_color()), (1, 1, 1, 1))
        if ratio < 4.5 and text.get_bbox_patch() is None and text not in on_maps:
            found.append(f"{text.get_text()!r} has a contrast of {ratio:.1f}, at least 4.5")
    return sorted(set(found))


def contrast(one: Colour, other: Colour) -> float:
    """Ratio of the luminances of two opaque colours, from 1 to 21, as WCAG defines it."""
    dark, light = sorted(map(_luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


def legible(colour: ColorType, ground: float, ratio: float) -> Colour:
    """The colour, lighter on a dark ground or darker on a light one until its contrast suffices.

    Parameters
    ----------
    colour : matplotlib colour
    ground : float
        Grey of the page, 0 to 1.
    ratio : float
        4.5 for text, 3 for lines.
    """
    red, green, blue, alpha = to_rgba(colour)
    hue, lightness, saturation = colorsys.rgb_to_hls(red, green, blue)
    step = -0.01 if ground > 0.5 else 0.01
    while contrast((red, green, blue, 1), (ground, ground, ground, 1)) < ratio:
        lightness += step
        red, green, blue = colorsys.hls_to_rgb(hue, lightness, saturation)
    return red, green, blue, alpha


def night(colour: ColorType, ratio: float = 3) -> Colour:
    """The colour for a dark page: greys inverted, hues as they are, lighter if they must be."""
    red, green, blue, alpha = to_rgba(colour)
    if max(red, green, blue) - min(red, green, blue) < 0.06:
        grey = GROUND + (INK - GROUND) * (1 - (red + green + blue) / 3)
        return grey, grey, grey, alpha
    return legible(colour, GROUND, ratio)


def _luminance(colour: Colour) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _on_maps(figure: Figure) -> set[Artist]:
    """What stands on the coloured cells of a map, which are the same by day and night."""
    return {
        artist
        for ax in figure.axes
        if any(c.get_array() is not None for c in ax.collections)
        for artist in (*ax.lines, *ax.texts, *ax.patches)
    }


def _turn(artist: Artist) -> None:
    """Give one artist its colours of the night."""
    match artist:
        case Text():
            artist.set_color(night(artist.get_color(), 4.5))
            if (box := artist.get_bbox_patch()) is not None:
                _turn(box)
            if isinstance(artist, Annotation) and artist.arrow_patch is not None:
                _turn(artist.arrow_patch)
        case Line2D():
            face, edge = artist.get_markerfacecolor(), artist.get_markeredgecolor()
            artist.set_color(night(artist.get_color()))
            artist.set_markerfacecolor(night(face))
            artist.set_markeredgecolor(night(edge))
        case Patch():
            artist.set_facecolor(night(artist.get_facecolor()))
            artist.set_edgecolor(night(artist.get_edgecolor()))
        case Collection():
            edges = [night(edge) for edge in np.atleast_2d(artist.get_edgecolor())]
            if artist.get_array() is None:
                faces = np.atleast_2d(artist.get_facecolor())
                artist.set_facecolor([night(face) for face in faces])
            elif artist.get_hatch():
                artist.set_cmap(ListedColormap([(GROUND, GROUND, GROUND)]))
            artist.set_edgecolor(edges)


def _png(figure: Figure, colours: int) -> str:
    raw = io.BytesIO()
    figure.savefig(raw, format="png", dpi=DPI, metadata={"Software": None})
    image = Image.open(raw).convert("RGB").quantize(colours, dither=Image.Dither.NONE)
    small = io.BytesIO()
    image.save(small, format="png", optimize=True)
    return base64.b64encode(small.getvalue()).decode()
