"""Differences of many models from the reference, the best first, with limits that hold for all of them at once."""

from __future__ import annotations

from medtl.evaluation.names import split_name
from medtl.report.kit import Drawing, bar, finish, name_rows, new_figure, panels
from medtl.report.svg import COLOURS, MUTED, shorten
from medtl.report.view import View, in_text

SECTION = "many_models"
MOST_PANELS = 4


def draw(view: View) -> Drawing | None:
    """One panel per headline metric; with masks, one for the mean and one per structure."""
    first = view.comparison() if view.many else None
    if first is None:
        return None
    found = dict(list(view.rankings(view.whole).items())[:MOST_PANELS])
    models = [row.model for row in first.rows]
    figure = new_figure(8.6, 0.95 + 0.27 * len(models))
    axes = panels(figure, len(found), len(found), sharey=True)
    for ax, (key, comparison) in zip(axes, found.items(), strict=True):
        ax.axvline(0, color=MUTED, linewidth=0.9)
        for row in (r for r in comparison.rows if r.model in models):
            y, tint = -models.index(row.model), view.colour(row.model)
            if row.difference is None:
                ax.plot([0], [y], marker="|", color=tint, markersize=11, linestyle="none", markeredgewidth=2)
            else:
                bar(ax, y, row.difference, tint)
        ax.set_title(shorten(view.part_title(*key)))
    figure.supxlabel(f"model minus {view.label(view.reference)}", fontsize=8.5)
    name_rows(axes, [-k for k in range(len(models))], [view.label(m) for m in models])
    strategies = {split_name(m).strategy for m in models}
    caption = (
        f"Differences from {view.reference} in {view.place().lower()}, sorted by {in_text(view.headline_title)}. The "
        f"limits hold at {view.percent} for all models at once; an interval that crosses 0 does not tell better from "
        "worse." + (" One colour per strategy." if len(strategies) <= len(COLOURS) else "")
    )
    return finish(figure, "ranked", "All models against the reference", caption)
