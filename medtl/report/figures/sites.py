"""The headline metrics by site."""

from __future__ import annotations

from medtl.report.kit import Drawing, bar, finish, keys, legend, name_rows, new_figure, panels
from medtl.report.svg import RULE, shorten
from medtl.report.view import SIDES, View

SECTION = "sites"


def draw(view: View) -> Drawing | None:
    """One group of rows per site (and finding), one row per model."""
    blocks, models, shown = view.sites(), view.drawn, view.panels()
    places = list(dict.fromkeys((b.domain, b.site or "", b.finding) for b in blocks))
    if not places or not shown:
        return None
    chance = {"auroc": 0.5, "balanced_accuracy": 1 / len(view.results.classes)}
    step = 0.3 * len(models) + 0.4
    figure = new_figure(8.6, 0.8 + 0.52 * step * len(places))
    axes = panels(figure, len(shown), len(shown), sharey=True)
    for ax, (name, cls, title) in zip(axes, shown, strict=True):
        for block in blocks:
            y = -places.index((block.domain, block.site or "", block.finding)) * step
            measure = block.get(name, cls=cls, kind=None)
            if measure is not None:
                bar(ax, y - 0.3 * models.index(block.model), measure.estimate, view.colour(block.model))
        if name in chance:
            ax.axvline(chance[name], color=RULE, linewidth=0.9)
        ax.set(title=title, xlim=(0, 1.01))
    middle = 0.15 * (len(models) - 1)
    names = [f"{shorten(s)} ({SIDES[d]})" + (f", {shorten(f)}" if f else "") for d, s, f in places]
    name_rows(axes, [-k * step - middle for k in range(len(places))], names, grid=view.masks)
    axes[0].set_ylim(-len(places) * step + 0.1, 0.4)
    keys(axes[0], [(view.label(m), view.colour(m)) for m in models])
    legend(figure, axes[0])
    line = "; the thin line is chance" if any(name in chance for name, *_ in shown) else ""
    caption = f"Results by site with {view.percent} intervals{line}.{view.some}"
    return finish(figure, "sites", "Results by site", caption)
