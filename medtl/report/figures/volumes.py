"""Agreement of segmented volumes with the reference's (Bland and Altman 1986)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from medtl.evaluation.results import Block
from medtl.report.kit import Drawing, finish, new_figure, panels
from medtl.report.svg import RULE, shorten
from medtl.report.view import View

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SECTION = "volumes"
MOST_MODELS, MOST_STRUCTURES = 4, 3
MOST_DOTS = 400
DASHED = (0, (4, 2))


def draw(view: View) -> Drawing | None:
    """One row of panels per structure, one panel per model."""
    blocks = [b for b in view.blocks(view.domain, drawn=True) if b.get("volume_bias")][:MOST_MODELS]
    classes = view.results.classes
    structures = [c for c in classes[:MOST_STRUCTURES] if any(b.get("volume_bias", cls=c) for b in blocks)]
    if not structures or view.results.segmentation is None:
        return None
    unit, columns = view.results.segmentation.volume_unit, len(blocks)
    size = {1: 3.4, 2: 3.2, 3: 2.85, 4: 2.25}[columns]
    figure = new_figure(size * columns, 1.95 * len(structures) + 0.4)
    axes = panels(figure, columns * len(structures), columns, sharex="row", sharey="row")
    for k, ax in enumerate(axes):
        block, structure = blocks[k % columns], structures[k // columns]
        _panel(view, ax, block, structure)
        if k < columns:
            ax.set_title(view.label(block.model))
        if k % columns == 0:
            ax.set_ylabel(f"{shorten(structure)}\ndifference ({unit})")
        if k // columns == len(structures) - 1:
            ax.set_xlabel(f"Mean of both ({unit})")
    what = "area" if unit == "px" else "volume"
    left_out = len(classes) > MOST_STRUCTURES
    caption = (
        f"Segmented {what} minus the reference's, against the mean of both (Bland and Altman), "
        f"{view.role(blocks[0]).lower()}. Solid line: bias; dashed lines: limits of agreement; dots: cases, mean over "
        "training seeds."
        + (f" The first {MOST_STRUCTURES} of {len(classes)} structures are drawn." if left_out else "")
        + view.some
    )
    return finish(figure, "volumes", f"Agreement of {what}s", caption)


def _panel(view: View, ax: Axes, block: Block, structure: str) -> None:
    values, tint = (
        next((c.values for c in block.cases if c.structure == structure), None),
        view.colour(block.model),
    )
    if values is not None:
        reference, called = (
            np.array([np.nan if v is None else v for v in values[f"volume_{who}"]], dtype=np.float64)
            for who in ("reference", "predicted")
        )
        some = slice(None, None, max(1, len(reference) // MOST_DOTS))
        mean, gap = ((reference + called) / 2)[some], (called - reference)[some]
        ax.plot(mean, gap, "o", color=tint, markersize=3, alpha=0.6, markeredgewidth=0)
    ax.axhline(0, color=RULE, linewidth=0.9)
    for name, style in (("volume_bias", "solid"), ("volume_lower", DASHED), ("volume_upper", DASHED)):
        measure = block.get(name, cls=structure)
        if measure is not None and measure.estimate.value is not None:
            e = measure.estimate
            ax.axhline(e.value, color=tint, linewidth=1.2, linestyle=style)  # type: ignore[arg-type]
            if e.lo is not None and e.hi is not None:
                ax.axhspan(e.lo, e.hi, color=tint, alpha=0.1, linewidth=0)
