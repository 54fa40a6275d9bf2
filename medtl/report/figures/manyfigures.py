"""Figures of many values with their intervals: the ranking of models, and any other for `write_page`."""

from __future__ import annotations

from collections.abc import Sequence

from medtl.evaluation.metrics.registry import MEASURES
from medtl.evaluation.names import split_name
from medtl.evaluation.results import HEADLINES, Results
from medtl.report.figures.figures import Drawing, bar, label, new_figure, percent
from medtl.report.figures.svg import COLOURS, MUTED, RULE, drawing, shorten, to_svg
from medtl.report.names import colour, main_comparison, place_of


def ranked_figure(results: Results) -> Drawing | None:
    """Differences of all models from the reference, the best first, with limits that hold for all at once."""
    first = main_comparison(results)
    if first is None:
        return None
    found = [c for name in HEADLINES if (c := main_comparison(results, name)) is not None]
    models = [row.model for row in first.rows]
    figure = new_figure(8.6, 0.95 + 0.27 * len(models))
    axes = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for ax, comparison in zip(axes, found, strict=True):
        ax.axvline(0, color=MUTED, linewidth=0.9)
        ax.grid(axis="x", color=RULE, linewidth=0.5)
        ax.set_axisbelow(True)
        for row in comparison.rows:
            if row.model not in models:
                continue
            y, tint = -models.index(row.model), colour(results, row.model)
            if row.difference is None:
                ax.plot([0], [y], marker="|", color=tint, markersize=11, linestyle="none", markeredgewidth=2)
            else:
                bar(ax, y, row.difference, tint)
        ax.set(title=MEASURES[comparison.name].title, ylim=(-len(models) + 0.4, 0.6))
        ax.set_xlabel(f"model minus {label(results, results.reference_model or '')}")
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
    axes[0].set_yticks([-k for k in range(len(models))], [label(results, m) for m in models])
    place, title = place_of(results), MEASURES[first.name].title.lower()
    strategies = {split_name(m).strategy for m in models}
    caption = (
        f"Differences from {results.reference_model} in {place.lower()}, sorted by {title}. The "
        f"limits hold at {percent(results)} for all models at once; a line that crosses 0 does not tell better from "
        "worse." + (" One colour a strategy." if len(strategies) <= len(COLOURS) else "")
    )
    return Drawing("ranked", to_svg(figure, "ranked", "All models against the reference"), caption)


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
        ax.grid(axis="x", color=RULE, linewidth=0.5)
        ax.set_axisbelow(True)
        for k, (_, value, lo, hi) in enumerate(rows):
            if lo is not None and hi is not None:
                ax.plot([lo, hi], [-k, -k], color=COLOURS[0], linewidth=1.6, solid_capstyle="butt")
            ax.plot([value], [-k], "o", color=COLOURS[0], markersize=5.5)
        ax.set_yticks([-k for k in range(len(rows))], [shorten(text) for text, *_ in rows])
        ax.set(ylim=(-len(rows) + 0.4, 0.6), xlabel=xlabel)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        return Drawing(name, to_svg(figure, name, xlabel), caption)
