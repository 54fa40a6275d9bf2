"""Calibration curves before and after recalibration: of cases, or of voxels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medtl.evaluation.metrics.registry import KINDS
from medtl.evaluation.results import Block, Curve
from medtl.report.kit import Drawing, finish, legend, new_figure, panels
from medtl.report.svg import BEFORE_COLOUR, RULE, shorten
from medtl.report.view import View

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SECTION = "calibration"
MOST_PANELS = 6
MOST_MODELS, MOST_STRUCTURES = 4, 3


def draw(view: View) -> Drawing | None:
    """One panel per model and place (with masks, per structure and model), with the shares of the predictions below."""
    return _voxels(view) if view.masks else _cases(view)


def _of(block: Block, cls: str | None = None) -> list[Curve]:
    return [c for c in block.curves if c.name == "reliability" and cls in (None, c.cls)]


def _cases(view: View) -> Drawing | None:
    domain = "target" if view.many and view.domain == "target" else ""
    blocks = [b for b in view.blocks(domain, drawn=True) if _of(b)]
    shown = sorted(blocks, key=lambda b: view.drawn.index(b.model))[:MOST_PANELS]
    if not shown:
        return None
    columns = min(len(shown), 4)
    num_rows = -(-len(shown) // columns)
    size = {1: 3.7, 2: 3.3, 3: 3.0, 4: 2.5}[columns]
    figure = new_figure(size * columns, size * 1.36 * num_rows + 0.3)
    grid = figure.subplots(2 * num_rows, columns, squeeze=False, height_ratios=[4.2, 1] * num_rows)
    for ax in grid.flat:
        ax.set_axis_off()
    for k, block in enumerate(shown):
        ax, bars = (grid[2 * (k // columns) + below, k % columns] for below in (0, 1))
        for each in (ax, bars):
            each.set_axis_on()
        _panel(view, ax, block, _of(block), bars)
        title = view.label(block.model) + (f", {shorten(block.finding)}" if block.finding else "")
        ax.set_title(f"{title}\n{view.role(block)}", fontsize=8.5)
        bars.set_xlabel("Predicted probability")
        if k % columns == 0:
            ax.set_ylabel("Observed share" if _of(block)[0].kind == "positive" else "Share called right")
            bars.set_ylabel("Share of\ncases", fontsize=7.5)
    legend(figure, grid[0, 0])
    kind = KINDS[_of(shown[0])[0].kind or "positive"]
    caption = (
        f"Calibration: {kind} (across) against what was observed (up), smoothed by local linear regression, with a "
        f"{view.percent} band from resampled patients; the diagonal is ideal. Dashed: before recalibration; solid: "
        "after dividing the logits by the temperature fitted at the source. Bars: how the predictions are distributed. "
        f"With several training seeds their predictions are pooled.{view.some}"
    )
    return finish(figure, "calibration", "Calibration before and after recalibration", caption)


def _voxels(view: View) -> Drawing | None:
    blocks = [b for b in view.blocks(view.domain, drawn=True) if b.curves][:MOST_MODELS]
    structures = [c for c in view.results.classes[:MOST_STRUCTURES] if any(_of(b, c) for b in blocks)]
    if not structures:
        return None
    columns = len(blocks)
    size = {1: 3.4, 2: 3.1, 3: 2.85, 4: 2.25}[columns]
    figure = new_figure(size * columns, size * len(structures) + 0.55)
    axes = panels(figure, columns * len(structures), columns, sharex=True, sharey=True)
    for k, ax in enumerate(axes):
        structure, block = structures[k // columns], blocks[k % columns]
        _panel(view, ax, block, _of(block, structure), None)
        if k < columns:
            ax.set_title(view.label(block.model))
        if k % columns == 0:
            ax.set_ylabel(f"{shorten(structure)}\nobserved share")
        if k // columns == len(structures) - 1:
            ax.set_xlabel("Predicted probability")
    legend(figure, axes[0])
    band = view.results.segmentation.band if view.results.segmentation is not None else ""
    caption = (
        f"Calibration of voxels, {view.role(blocks[0]).lower()}: share of voxels that belong to the structure against "
        f"the predicted probability, in ten bins; {band}. Shade: {view.percent}, from resampled patients; the diagonal "
        f"is ideal. With several training seeds their voxels are pooled.{view.some}"
    )
    return finish(figure, "calibration", "Calibration of voxels", caption)


def _panel(view: View, ax: Axes, block: Block, curves: list[Curve], bars: Axes | None) -> None:
    ax.plot([0, 1], [0, 1], color=RULE, linewidth=0.9)
    styles = (("before", (0, (3.5, 2)), BEFORE_COLOUR), ("after", "solid", view.colour(block.model)))
    for stage, style, tint in styles:
        for curve in (c for c in curves if c.stage == stage):
            ax.fill_between(curve.x, curve.lo, curve.hi, color=tint, alpha=0.15, linewidth=0)
            dots = "o" if bars is None else ""
            name = f"{stage} recalibration"
            ax.plot(curve.x, curve.y, marker=dots, color=tint, linestyle=style, markersize=3, label=name)
            if bars is not None:
                steps = [i / 10 for i in range(11)]
                bars.stairs(curve.histogram, steps, color=tint, linestyle=style, linewidth=1.1)
    ax.set(xlim=(0, 1), ylim=(-0.01, 1.01), aspect="equal", xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
    if bars is not None:
        bars.set(xlim=(0, 1), xticks=[0, 0.5, 1], yticks=[])
        bars.spines["left"].set_visible(False)
