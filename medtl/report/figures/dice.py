"""Dice of every case, structure by structure."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from medtl.evaluation.results import Block
from medtl.evaluation.statistics.arrays import Floats
from medtl.report.kit import Drawing, bar, finish, name_rows, new_figure, panels
from medtl.report.svg import RULE, shorten
from medtl.report.view import View

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SECTION = "overlap"
MOST_STRUCTURES = 6
MOST_LINES = 60
"""Cases up to which a line joins a case's values of two models."""
MOST_DOTS = 400


def draw(view: View) -> Drawing | None:
    """One panel per structure, one strip of cases per model."""
    blocks = [b for b in view.blocks(view.domain, drawn=True) if b.cases]
    classes = view.results.classes
    structures = [
        c for c in classes[:MOST_STRUCTURES] if any(v.structure == c for b in blocks for v in b.cases)
    ]
    if not structures:
        return None
    columns = min(len(structures), 3)
    figure = new_figure(8.6, 0.4 + -(-len(structures) // columns) * (0.55 + 0.52 * len(blocks)))
    axes = panels(figure, len(structures), columns, sharex=True, sharey=True)
    for k, (ax, structure) in enumerate(zip(axes, structures, strict=True)):
        _strips(view, ax, blocks, structure)
        ax.label_outer()
        if k + columns >= len(structures):
            ax.set_xlabel("Dice")
            ax.tick_params(labelbottom=True)
    joined = len(blocks) > 1 and len(blocks[0].cases[0].values["dice"]) <= MOST_LINES
    caption = (
        f"Dice of every case, {view.role(blocks[0]).lower()}. Dots: cases (mean over training seeds); boxes: quartiles "
        f"and median; diamonds: the mean with its {view.percent} interval."
        + (" Grey lines join the same case." if joined else "")
        + (
            f" The first {MOST_STRUCTURES} of {len(classes)} structures are drawn."
            if len(classes) > MOST_STRUCTURES
            else ""
        )
        + view.some
    )
    return finish(figure, "dice", "Dice of every case", caption)


def _dice(block: Block, structure: str) -> Floats:
    found = next((c.values["dice"] for c in block.cases if c.structure == structure), ())
    return np.array([np.nan if v is None else v for v in found], dtype=np.float64)


def _strips(view: View, ax: Axes, blocks: list[Block], structure: str) -> None:
    table = [_dice(block, structure) for block in blocks]
    number = max(len(v) for v in table)
    jitter = np.random.default_rng(0).uniform(-0.11, 0.11, number)
    if number <= MOST_LINES:
        for at, (upper, lower) in enumerate(pairwise(table)):
            if len(upper) != len(lower):
                continue
            for i in np.flatnonzero(np.isfinite(upper) & np.isfinite(lower)):
                ends = [-at - 0.22 + jitter[i], -at - 1.22 + jitter[i]]
                ax.plot([upper[i], lower[i]], ends, color=RULE, linewidth=0.45, zorder=1)
    for k, (block, values) in enumerate(zip(blocks, table, strict=True)):
        known, tint = np.flatnonzero(np.isfinite(values)), view.colour(block.model)
        if len(known) == 0:
            continue
        dots = known[:: max(1, len(known) // MOST_DOTS)]
        places = -k - 0.22 + jitter[dots]
        ax.plot(values[dots], places, "o", color=tint, markersize=2.6, alpha=0.55, markeredgewidth=0)
        if len(known) >= 5:
            low, middle, high = np.quantile(values[known], [0.25, 0.5, 0.75])
            ax.fill_between([low, high], -k + 0.05, -k + 0.27, color=tint, alpha=0.22, linewidth=0, zorder=2)
            ax.plot([middle, middle], [-k + 0.05, -k + 0.27], color=tint, linewidth=1.6, zorder=3)
        measure = block.get("dice", cls=structure, kind=None)
        if measure is not None:
            bar(ax, -k + 0.16, measure.estimate, tint, "D")
    ax.set(xlim=(-0.02, 1.02), title=shorten(structure))
    name_rows([ax], [-k for k in range(len(blocks))], [view.label(b.model) for b in blocks])
