"""The headline metrics of single training seeds."""

from __future__ import annotations

from medtl.report.kit import Drawing, finish, name_rows, new_figure, panels
from medtl.report.svg import shorten
from medtl.report.view import View

SECTION = "seeds"


def draw(view: View) -> Drawing | None:
    """One row per model (and finding), one dot per seed."""
    blocks = [b for b in view.blocks(view.domain) if len(b.seeds) > 1]
    shown = view.panels()
    if not blocks or not shown:
        return None
    figure = new_figure(8.6, 0.8 + 0.3 * len(blocks))
    axes = panels(figure, len(shown), len(shown), sharey=True)
    for ax, (name, cls, title) in zip(axes, shown, strict=True):
        for k, block in enumerate(blocks):
            measure = block.get(name, cls=cls, kind=None)
            if measure is None or measure.estimate.value is None:
                continue
            values = [v for v in measure.per_seed.values() if v is not None]
            tint = view.colour(block.model)
            ax.plot(values, [-k] * len(values), "o", color=tint, markersize=5.5, alpha=0.7, markeredgewidth=0)
            ax.plot([measure.estimate.value] * 2, [-k - 0.3, -k + 0.3], color=tint, linewidth=1.8)
        ax.set_title(title)
    names = [view.label(b.model) + (f", {shorten(b.finding)}" if b.finding else "") for b in blocks]
    name_rows(axes, [-k for k in range(len(blocks))], names)
    caption = (
        f"One dot per training seed, {view.place().lower()}; the stroke is the mean over the seeds, which the tables "
        "report."
    )
    return finish(figure, "seeds", "Training seeds", caption)
