"""ROC curves with their bands."""

from __future__ import annotations

from medtl.evaluation.results import Curve
from medtl.report.kit import Drawing, finish, legend, new_figure, panels
from medtl.report.svg import RULE, shorten
from medtl.report.view import View

SECTION = "discrimination"
MOST_PANELS = 6


def draw(view: View) -> Drawing | None:
    """One panel per place and finding; with more than two classes, one per class."""
    multi = view.results.task == "multiclass"
    found: dict[str, list[tuple[str, Curve]]] = {}
    for block in view.blocks(drawn=True):
        for curve in (c for c in block.curves if c.name == "roc"):
            title = view.role(block)
            if multi:
                title = f"{shorten(curve.cls or '')}, {title.lower()}"
            elif block.finding is not None:
                title = f"{shorten(block.finding)}, {title}"
            found.setdefault(title, []).append((block.model, curve))
    most = min(len(view.results.classes), MOST_PANELS) if multi else MOST_PANELS
    shown = list(found.items())[:most]
    if not shown:
        return None
    columns = min(len(shown), 4)
    size = {1: 3.7, 2: 3.5, 3: 3.1, 4: 2.5}[columns]
    figure = new_figure(size * columns, size * -(-len(shown) // columns) * 1.02 + 0.35)
    axes = panels(figure, len(shown), columns)
    for k, (ax, (title, lines)) in enumerate(zip(axes, shown, strict=True)):
        ax.plot([0, 1], [0, 1], color=RULE, linewidth=0.8)
        for model, curve in lines:
            tint = view.colour(model)
            ax.fill_between(curve.x, curve.lo, curve.hi, color=tint, alpha=0.16, linewidth=0)
            ax.plot([0, *curve.x], [0, *curve.y], color=tint, label=view.label(model))
        ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02), aspect="equal", title=title)
        ax.set(xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
        if k + columns >= len(shown):
            ax.set_xlabel("1 \N{MINUS SIGN} specificity")
        if k % columns == 0:
            ax.set_ylabel("Sensitivity")
    legend(figure, axes[0])
    caption = (
        f"ROC curves with their pointwise {view.percent} bands, from resampled patients. With several training seeds: "
        "the mean sensitivity over the seeds at each false-positive rate."
        + (" Each panel sets one class against all others." if multi else "")
        + view.some
    )
    return finish(figure, "roc", "ROC curves", caption)
