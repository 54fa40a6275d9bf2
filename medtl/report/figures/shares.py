"""Class shares: predicted by each model, and by the reference standard."""

from __future__ import annotations

from medtl.report.kit import Drawing, bar, finish, keys, legend, name_rows, new_figure
from medtl.report.svg import INK, shorten
from medtl.report.view import View

SECTION = "shares"


def draw(view: View) -> Drawing | None:
    """One group of rows per class (and finding), one row per model."""
    results, models = view.results, view.drawn
    blocks = view.blocks("target", labelled=False, drawn=True)
    blocks = blocks or view.blocks("source", labelled=False, drawn=True)
    classes = results.classes if results.task == "multiclass" else (results.positive,)
    lines = [(f, c) for f in dict.fromkeys(b.finding for b in blocks) for c in classes if c is not None]
    if not lines or view.masks:
        return None
    step = 0.3 * len(models) + 0.45
    figure = new_figure(8.4, 0.75 + 0.55 * step * len(lines))
    ax = figure.subplots()
    for k, (finding, cls) in enumerate(lines):
        top = -k * step
        for j, block in enumerate([b for b in blocks if b.finding == finding]):
            called, truth = (block.get(f"{who}_share", cls=cls) for who in ("predicted", "observed"))
            if called is not None:
                bar(ax, top - 0.3 * j, called.estimate, view.colour(block.model))
            if j == 0 and truth is not None and truth.estimate.value is not None:
                ends = [top + 0.18, top - 0.3 * len(models) + 0.12]
                name = "reference standard" if k == 0 else None
                ax.plot([truth.estimate.value] * 2, ends, color=INK, linewidth=2.2, label=name)
    keys(ax, [(f"called by {view.label(m)}", view.colour(m)) for m in models])
    middle = 0.15 * (len(models) - 1)
    names = [shorten(cls) + (f", {shorten(f)}" if f else "") for f, cls in lines]
    name_rows([ax], [-k * step - middle for k in range(len(lines))], names, grid=False)
    ax.set(xlim=(0, 1), ylim=(-len(lines) * step + 0.1, 0.45), xlabel="Share of cases")
    legend(figure, ax)
    caption = (
        f"Share of the cases that each model calls a class ({view.percent} intervals), and the share by the reference "
        f"standard where there is one. A large gap points to a shift that the model did not follow.{view.some}"
    )
    return finish(figure, "shares", "Shares of the classes", caption)
