"""Converts drawings to SVG that is safe inside a page: text stays text, and nothing refers to the outside."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, RULE, PAPER = "#1c2430", "#5d6875", "#c9d0d8", "#ffffff"
REFERENCE_COLOUR, BEFORE_COLOUR = "#6b747f", "#c08a2e"
BOUND_COLOUR = "#1c2430"
COLOURS = ("#0b6e8f", "#b4531a", "#5b4b9a", "#3d7a3a", "#a3346d", "#8a6d00")
"""Colours of the models; the reference model is grey, an upper bound black; ochre is before recalibration."""
LONGEST = 28
"""Characters of a name that fit beside a figure."""

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_FONT = "'Helvetica Neue', Helvetica, Arial, 'DejaVu Sans', sans-serif"
_STYLE: dict[Any, Any] = {
    # Identifiers in the file are hashes: with a fixed salt the same results draw the same file.
    "svg.hashsalt": "medtl",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "figure.facecolor": PAPER,
}


@contextmanager
def drawing() -> Iterator[None]:
    """Applies the house style during a drawing and then restores the user's settings."""
    import matplotlib as mpl

    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # The browser has the glyph even where the font that measures the text has not.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def shorten(name: str) -> str:
    """A name that fits beside a figure."""
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"


def to_svg(figure: Figure, name: str, title: str) -> str:
    """The figure as an SVG document.

    Args:
        figure: a matplotlib figure, not bound to any window.
        name: prefix of all identifiers, so that several figures share a page.
        title: what the figure shows, for readers who cannot see it.
    """
    buffer = io.BytesIO()
    metadata: dict[str, Any] = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(buffer, format="svg", metadata=metadata)
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in root.iter():
        for child in list(parent):
            if child.tag.endswith("}metadata"):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for key, value in list(element.attrib.items()):
            del element.attrib[key]
            element.set("href" if key == f"{{{_XLINK}}}href" else key, _attribute(key, value, name))
    root.set("role", "img")
    root.set("aria-label", title)
    root.set("xmlns", _SVG)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def inline(svg: str) -> str:
    """The same drawing for use inside an HTML page, which implies the namespace."""
    return svg.replace(f' xmlns="{_SVG}"', "", 1).strip()


def _attribute(key: str, value: str, name: str) -> str:
    """Identifiers with the figure's prefix; the browser's font in place of the one that measured the text."""
    if key == "id":
        return f"{name}-{value}"
    if value.startswith("#") and key.endswith("href"):
        return f"#{name}-{value[1:]}"
    value = re.sub(r"url\(#([^)]*)\)", rf"url(#{name}-\1)", value)
    if key == "style":
        value = re.sub(r"(font(?:-family)?:[^;']*)'DejaVu Sans'[^;]*", rf"\1{_FONT}", value)
    return value
