"""Building blocks of figures: the canvas, a dot with its interval, the legend, and the finished drawing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medtl.report.svg import COLOURS, RULE, drawing, shorten, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from medtl.evaluation.statistics.estimate import Estimate

GAIN, HARM = "#3d7a3a", "#b4531a"
"""The fields of a figure of differences; `GAIN_INK` and `HARM_INK` are for words on them."""
GAIN_INK, HARM_INK = "#2f6a2d", "#8f3f10"


@dataclass(frozen=True)
class Drawing:
    """A figure as text.

    Attributes:
        name: name of its file, without the suffix.
        svg: the document.
        caption: what it shows and how to read it.
    """

    name: str
    svg: str
    caption: str


def new_figure(width: float, height: float) -> Figure:
    """A figure of the given size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def panels(figure: Figure, number: int, columns: int, **shared: Any) -> list[Axes]:
    """The given number of panels, row by row; unused places stay empty."""
    grid = figure.subplots(-(-number // columns), columns, squeeze=False, **shared)
    for ax in grid.flat[number:]:
        ax.set_axis_off()
    engine = figure.get_layout_engine()
    if engine is not None:
        # The last number of one panel must not touch the first of the next.
        engine.set(wspace=0.05)  # type: ignore[call-arg]
    return list(grid.flat[:number])


def finish(figure: Figure, name: str, title: str, caption: str) -> Drawing:
    """The finished drawing.

    Args:
        figure: what was drawn.
        name: of its file, without the suffix.
        title: what it shows, for readers who cannot see it.
        caption: what it shows and how to read it.
    """
    return Drawing(name, to_svg(figure, name, title), caption)


def bar(ax: Axes, y: float, e: Estimate, tint: str, marker: str = "o") -> None:
    """A dot with its interval."""
    if e.value is not None:
        _dot(ax, y, e.value, e.lo, e.hi, tint, marker)


def _dot(
    ax: Axes, y: float, value: float, lo: float | None, hi: float | None, tint: str, marker: str = "o"
) -> None:
    if lo is not None and hi is not None:
        ax.plot([lo, hi], [y, y], color=tint, linewidth=1.6, solid_capstyle="butt")
    ax.plot([value], [y], marker=marker, color=tint, markersize=5.5, linestyle="none")


def legend(figure: Figure, ax: Axes) -> None:
    """The legend of one panel above all of them."""
    handles, labels = ax.get_legend_handles_labels()
    if labels:
        fitting = int(figure.get_figwidth() / (0.6 + 0.068 * max(map(len, labels))))
        columns = max(1, min(4, len(labels), fitting))
        figure.legend(handles, labels, loc="outside upper left", ncols=columns, borderpad=0.6)


def keys(ax: Axes, tints: Iterable[tuple[str, str]]) -> None:
    """Entries of the legend, label and colour, for dots that are drawn one by one."""
    for name, tint in tints:
        ax.plot([], [], "o-", color=tint, label=name, markersize=5)


def name_rows(axes: Sequence[Axes], at: Sequence[float], names: Sequence[str], *, grid: bool = True) -> None:
    """Names the rows of panels that share a vertical axis, which is not drawn."""
    axes[0].set_yticks(at, names)
    axes[0].set_ylim(min(at, default=0) - 0.6, max(at, default=0) + 0.6)
    for ax in axes:
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        if grid:
            ax.grid(axis="x", color=RULE, linewidth=0.5)
            ax.set_axisbelow(True)


def interval_figure(
    name: str,
    rows: Sequence[tuple[str, float, float | None, float | None]],
    *,
    xlabel: str,
    caption: str,
) -> Drawing:
    """A dot with its interval for each row, from top to bottom, for a page of `write_page`.

    Args:
        name: of the file, without suffix; letters, digits and `-`.
        rows: label, value, and the interval's limits or None.
        xlabel: what the values are.
        caption: what the figure shows and how to read it.
    """
    with drawing():
        figure = new_figure(8.4, 0.7 + 0.27 * len(rows))
        ax = figure.subplots()
        for k, (_, value, lo, hi) in enumerate(rows):
            _dot(ax, -k, value, lo, hi, COLOURS[0])
        name_rows([ax], [-k for k in range(len(rows))], [shorten(text) for text, *_ in rows])
        ax.set_xlabel(xlabel)
        return finish(figure, name, xlabel, caption)
