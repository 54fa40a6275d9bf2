"""Learning curves: losses on training and on validation, epoch by epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medtl.evaluation.context import LearningCurve
from medtl.report.kit import Drawing, finish, legend, new_figure, panels
from medtl.report.svg import COLOURS, MUTED, RULE, shorten
from medtl.report.view import View

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SECTION = "learning"
MOST_CURVES = 12
"""Models whose learning curves are drawn."""


def draw(view: View) -> Drawing | None:
    """One panel per model, one line per seed."""
    from matplotlib.ticker import MaxNLocator

    curves: dict[str, list[LearningCurve]] = {}
    for curve in view.results.context.learning:
        if len(curve.epochs) > 1:
            curves.setdefault(curve.model, []).append(curve)
    shown = list(curves)[:MOST_CURVES]
    if not shown:
        return None
    # Three by three leaves no empty places.
    columns = 3 if len(shown) in (3, 5, 6, 9) else min(4, len(shown))
    width = {1: 4.6, 2: 3.7, 3: 2.8, 4: 2.15}[columns]
    height = (1.75 if columns > 2 else 2.3) * -(-len(shown) // columns)
    figure = new_figure(width * columns, height + 0.45)
    axes = panels(figure, len(shown), columns, sharey=True)
    for k, (ax, model) in enumerate(zip(axes, shown, strict=True)):
        for number, curve in enumerate(curves[model]):
            _losses(ax, curve, first=number == 0)
        ax.set_title(shorten(model), fontsize=8.5)
        ax.grid(axis="y", color=RULE, linewidth=0.5)
        ax.set_axisbelow(True)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        if k + columns >= len(shown):
            ax.set_xlabel("Epoch")
        if k % columns == 0:
            ax.set_ylabel("Loss")
    legend(figure, axes[0])
    more = len(curves) - len(shown)
    caption = (
        "Learning curves, one line per training seed. The loss on training cases is the mean over an epoch, with "
        "augmentation and while the weights were still moving, so it may lie above or below the loss on validation "
        "without any overfitting; the table below compares the two on equal terms."
        + (f" {more} more models are in results.json." if more else "")
    )
    return finish(figure, "learning", "Learning curves", caption)


def _losses(ax: Axes, curve: LearningCurve, *, first: bool) -> None:
    for values, tint, style, name in (
        (curve.train_loss, MUTED, (0, (3.5, 1.6)), "training"),
        (curve.validation_loss, COLOURS[0], "solid", "validation"),
    ):
        points = {e: v for e, v in zip(curve.epochs, values, strict=False) if v is not None}
        label = name if first and points else None
        ax.plot(list(points), list(points.values()), color=tint, ls=style, lw=1.3, label=label, alpha=0.85)
        epoch = curve.kept_epoch
        if name == "validation" and epoch in points:
            kept = "kept epoch" if first else None
            ax.plot(epoch, points[epoch], "o", color=tint, markersize=4.5, label=kept, linestyle="none")
