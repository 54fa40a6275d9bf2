"""The figures of a segmentation's report, drawn from the results alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from medtl.evaluation.metrics.registry import MEASURES
from medtl.evaluation.results import Block, CaseValues, Difference, Results
from medtl.report.figures.figures import Drawing, bar, label, legend, new_figure, percent
from medtl.report.figures.svg import BEFORE_COLOUR, MUTED, RULE, shorten, to_svg
from medtl.report.names import colour, role
from medtl.report.sections.segsections import WHOLE, title_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_STRUCTURES = 6
MOST_MODELS = 4
MOST_LINES = 60
"""Cases up to which a line joins a case's values of two models."""
MOST_DOTS = 400
GAIN_FIELD, HARM_FIELD = "#3d7a3a", "#b4531a"


def _domain(results: Results) -> str:
    """Where the figures look: external testing where it has a reference."""
    found = any(b.domain == "target" and b.num_labelled for b in results.blocks)
    return "target" if found else "source"


def _blocks(results: Results) -> list[Block]:
    """The main block of each model."""
    return [b for m in results.models for b in results.main_blocks(m, _domain(results)) if b.num_labelled]


def _values(block: Block, structure: str) -> CaseValues | None:
    return next((c for c in block.cases if c.structure == structure), None)


def _numbers(values: tuple[float | None, ...]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array([np.nan if v is None else v for v in values], dtype=np.float64)


def _apart(figure: Figure) -> None:
    """Space between panels, so that the last number of one does not touch the first of the next."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.set(wspace=0.05)  # type: ignore[call-arg]


def _only_first(results: Results) -> str:
    number = len(results.classes)
    return (
        f" The first {MOST_STRUCTURES} of {number} structures are drawn." if number > MOST_STRUCTURES else ""
    )


def _dice(results: Results) -> Drawing | None:
    blocks = _blocks(results)
    structures = [c for c in results.classes[:MOST_STRUCTURES] if any(_values(b, c) for b in blocks)]
    if not structures:
        return None
    columns = min(len(structures), 3)
    rows = -(-len(structures) // columns)
    figure = new_figure(8.6, 0.4 + rows * (0.55 + 0.52 * len(blocks)))
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for ax in grid.flat[len(structures) :]:
        ax.set_axis_off()
    for ax, structure in zip(grid.flat, structures, strict=False):
        _strips(results, ax, blocks, structure)
        ax.label_outer()
    for k, ax in enumerate(grid.flat[: len(structures)]):
        if k + columns >= len(structures):
            ax.set_xlabel("Dice")
            ax.tick_params(labelbottom=True)
    _apart(figure)
    joined = len(blocks) > 1 and len(blocks[0].cases[0].values["dice"]) <= MOST_LINES
    caption = (
        f"Dice of every case, {role(blocks[0]).lower()}: dots are cases (mean over training seeds), boxes their "
        "quartiles "
        f"and median, diamonds the mean with its {percent(results)} interval."
        + (" Grey lines join the same case." if joined else "")
        + _only_first(results)
    )
    return Drawing("dice", to_svg(figure, "dice", "Dice of every case"), caption)


def _strips(results: Results, ax: Axes, blocks: list[Block], structure: str) -> None:
    rng = np.random.default_rng(0)
    found = [(b, _values(b, structure)) for b in blocks]
    table = [_numbers(v.values["dice"]) if v is not None else np.array([]) for _, v in found]
    number = max(len(v) for v in table)
    jitter = rng.uniform(-0.11, 0.11, number)
    if number <= MOST_LINES:
        for upper, lower, at in zip(table, table[1:], range(len(table)), strict=False):
            if len(upper) != len(lower):
                continue
            for i in np.flatnonzero(np.isfinite(upper) & np.isfinite(lower)):
                ends = [-at - 0.22 + jitter[i], -at - 1.22 + jitter[i]]
                ax.plot([upper[i], lower[i]], ends, color=RULE, linewidth=0.45, zorder=1)
    for k, ((block, _), values) in enumerate(zip(found, table, strict=True)):
        known = np.flatnonzero(np.isfinite(values))
        if len(known) == 0:
            continue
        tint = colour(results, block.model)
        dots = known[:: max(1, len(known) // MOST_DOTS)]
        ax.plot(
            values[dots],
            -k - 0.22 + jitter[dots],
            "o",
            color=tint,
            markersize=2.6,
            alpha=0.55,
            markeredgewidth=0,
        )
        if len(known) >= 5:
            low, middle, high = np.quantile(values[known], [0.25, 0.5, 0.75])
            ax.fill_between([low, high], -k + 0.05, -k + 0.27, color=tint, alpha=0.22, linewidth=0, zorder=2)
            ax.plot([middle, middle], [-k + 0.05, -k + 0.27], color=tint, linewidth=1.6, zorder=3)
        measure = block.get("dice", cls=structure, kind=None)
        if measure is not None:
            bar(ax, -k + 0.16, measure.estimate, tint, "D")
    ax.set_yticks(range(0, -len(blocks), -1), [label(results, b.model) for b in blocks])
    ax.set(xlim=(-0.02, 1.02), ylim=(-len(blocks) + 0.45, 0.5), title=shorten(structure))
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x", color=RULE, linewidth=0.4)
    ax.set_axisbelow(True)


def _forest(results: Results) -> Drawing | None:
    main = {(b.domain, b.split, b.site) for b in _blocks(results)}
    rows = [
        d for d in results.differences if (d.domain, d.split, d.site) in main and d.estimate.value is not None
    ]
    names = [n for n in ("dice", "nsd", "hd95") if any(d.name == n for d in rows)]
    lines = [
        (c, m)
        for c in (*results.classes[:MOST_STRUCTURES], *([None] if len(results.classes) > 1 else []))
        for m in results.models
        if any(d.cls == c and d.model == m and d.name == "dice" for d in rows)
    ]
    if not lines or not names:
        return None
    y, at = 0.0, dict[tuple[str | None, str], float]()
    for k, line in enumerate(lines):
        y -= 1.5 if k and line[0] != lines[k - 1][0] else 1.0 if k else 0.0
        at[line] = y
    figure = new_figure(8.8, 0.95 + 0.25 * (1 - y))
    axes = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for ax, name in zip(axes, names, strict=True):
        own = {(d.cls, d.model): d for d in rows if d.name == name and (d.cls, d.model) in at}
        _differences(results, ax, name, own, at)
    several = len({m for _, m in lines}) > 1
    names_of = [(c or WHOLE) for c, _ in lines]
    ticks = [
        f"{shorten(n)}, {label(results, m)}" if several else shorten(n)
        for n, (_, m) in zip(names_of, lines, strict=True)
    ]
    axes[0].set_yticks([at[line] for line in lines], ticks)
    axes[0].set_ylim(y - 0.7, 0.7)
    _apart(figure)
    caption = (
        f"Paired differences from {results.reference_model}, structure by structure, "
        f"{role(_blocks(results)[0]).lower()}, with "
        f"{percent(results)} intervals, on the same resampled patients. Green: gain; red: harm. An interval that "
        "crosses the line does not tell one from the other." + _only_first(results)
    )
    return Drawing("differences", to_svg(figure, "differences", "Paired differences by structure"), caption)


def _differences(
    results: Results,
    ax: Axes,
    name: str,
    found: dict[tuple[str | None, str], Difference],
    at: dict[tuple[str | None, str], float],
) -> None:
    ends = [
        x for d in found.values() for x in (d.estimate.lo, d.estimate.hi, d.estimate.value) if x is not None
    ]
    extent = 1.12 * max((abs(x) for x in ends), default=0.1) or 0.1
    right = MEASURES[name].better == "higher"
    ax.axvspan(0, extent, color=GAIN_FIELD if right else HARM_FIELD, alpha=0.07, linewidth=0)
    ax.axvspan(-extent, 0, color=HARM_FIELD if right else GAIN_FIELD, alpha=0.07, linewidth=0)
    ax.axvline(0, color=MUTED, linewidth=0.9)
    for key, d in found.items():
        bar(ax, at[key], d.estimate, colour(results, d.model))
    ax.set(xlim=(-extent, extent), xlabel=f"{title_of(results, name)}, difference")
    words = ("harm", "gain") if right else ("gain", "harm")
    tints = {"gain": "#2f6a2d", "harm": "#8f3f10"}
    for word, side in zip(words, ("left", "right"), strict=True):
        ax.set_title(word, loc=side, color=tints[word])  # type: ignore[arg-type]
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)


def _volumes(results: Results) -> Drawing | None:
    blocks = [b for b in _blocks(results) if b.get("volume_bias")][:MOST_MODELS]
    structures = [c for c in results.classes[:3] if any(b.get("volume_bias", cls=c) for b in blocks)]
    if not structures or results.segmentation is None:
        return None
    unit = results.segmentation.volume_unit
    size = {1: 3.4, 2: 3.2, 3: 2.85, 4: 2.25}[len(blocks)]
    figure = new_figure(size * len(blocks), 1.95 * len(structures) + 0.4)
    grid = figure.subplots(len(structures), len(blocks), squeeze=False, sharex="row", sharey="row")
    for axes, structure in zip(grid, structures, strict=True):
        for ax, block in zip(axes, blocks, strict=True):
            _agreement(results, ax, block, structure)
            if structure == structures[0]:
                ax.set_title(label(results, block.model))
        axes[0].set_ylabel(f"{shorten(structure)}\ndifference ({unit})")
    for ax in grid[-1]:
        ax.set_xlabel(f"Mean of both ({unit})")
    what = "area" if unit == "px" else "volume"
    caption = (
        f"Segmented {what} minus the reference's, against the mean of both (Bland and Altman), "
        f"{role(blocks[0]).lower()}. "
        "Solid line: bias; dashed lines: limits of agreement; dots: cases, mean over training seeds."
    )
    if len(results.classes) > 3:
        caption += f" The first 3 of {len(results.classes)} structures are drawn."
    return Drawing("volumes", to_svg(figure, "volumes", "Agreement of volumes"), caption)


def _agreement(results: Results, ax: Axes, block: Block, structure: str) -> None:
    values, tint = _values(block, structure), colour(results, block.model)
    if values is not None:
        reference, called = (_numbers(values.values[f"volume_{k}"]) for k in ("reference", "predicted"))
        step = max(1, len(reference) // MOST_DOTS)
        ax.plot(
            ((reference + called) / 2)[::step],
            (called - reference)[::step],
            "o",
            color=tint,
            markersize=3,
            alpha=0.6,
            markeredgewidth=0,
        )
    ax.axhline(0, color=RULE, linewidth=0.9)
    for name, style in (
        ("volume_bias", "solid"),
        ("volume_lower", (0, (4, 2))),
        ("volume_upper", (0, (4, 2))),
    ):
        measure = block.get(name, cls=structure)
        if measure is not None and measure.estimate.value is not None:
            e = measure.estimate
            ax.axhline(e.value, color=tint, linewidth=1.2, linestyle=style)  # type: ignore[arg-type]
            if e.lo is not None and e.hi is not None:
                ax.axhspan(e.lo, e.hi, color=tint, alpha=0.1, linewidth=0)


def _calibration(results: Results) -> Drawing | None:
    blocks = [b for b in _blocks(results) if b.curves][:MOST_MODELS]
    structures = [c for c in results.classes[:3] if any(k.cls == c for b in blocks for k in b.curves)]
    if not structures:
        return None
    size = {1: 3.4, 2: 3.1, 3: 2.85, 4: 2.25}[len(blocks)]
    figure = new_figure(size * len(blocks), size * len(structures) + 0.55)
    grid = figure.subplots(len(structures), len(blocks), squeeze=False, sharex=True, sharey=True)
    for axes, structure in zip(grid, structures, strict=True):
        for ax, block in zip(axes, blocks, strict=True):
            tint = colour(results, block.model)
            ax.plot([0, 1], [0, 1], color=RULE, linewidth=0.9)
            for stage, style, shade in (("before", (0, (3.5, 2)), BEFORE_COLOUR), ("after", "solid", tint)):
                for c in (k for k in block.curves if (k.cls, k.stage) == (structure, stage)):
                    ax.fill_between(c.x, c.lo, c.hi, color=shade, alpha=0.15, linewidth=0)
                    name = f"{stage} recalibration"
                    ax.plot(c.x, c.y, "o", color=shade, linestyle=style, markersize=3, label=name)
            ax.set(xlim=(0, 1), ylim=(-0.01, 1.01), aspect="equal", xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
            if structure == structures[0]:
                ax.set_title(label(results, block.model))
        axes[0].set_ylabel(f"{shorten(structure)}\nobserved share")
    for ax in grid[-1]:
        ax.set_xlabel("Predicted probability")
    legend(figure, grid[0][0])
    band = results.segmentation.band if results.segmentation is not None else ""
    caption = (
        f"Calibration of voxels, {role(blocks[0]).lower()}: share of voxels that belong to the structure against the "
        f"predicted probability, in ten bins; {band}. Shade: {percent(results)}, from resampled patients; the "
        "diagonal is "
        "ideal. With several training seeds their voxels are pooled."
    )
    return Drawing("calibration", to_svg(figure, "calibration", "Calibration of voxels"), caption)


def _panels(results: Results) -> list[str | None]:
    return list(results.classes) if len(results.classes) <= 3 else [None]


def _sites(results: Results) -> Drawing | None:
    blocks = [b for b in results.blocks if b.site is not None and b.split == "test" and b.num_labelled]
    places = list(dict.fromkeys((b.domain, b.site or "") for b in blocks))
    if len(places) < 2:
        return None
    step = 0.3 * len(results.models) + 0.4
    shown = _panels(results)
    figure = new_figure(8.6, 0.8 + 0.52 * step * len(places))
    axes = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for ax, structure in zip(axes, shown, strict=True):
        for block in blocks:
            top = -places.index((block.domain, block.site or "")) * step
            measure = block.get("dice", cls=structure, kind=None)
            if measure is not None:
                y = top - 0.3 * results.models.index(block.model)
                bar(ax, y, measure.estimate, colour(results, block.model))
        ax.set(xlim=(0, 1.01), ylim=(-len(places) * step + 0.1, 0.4), xlabel="Dice")
        ax.set_title(shorten(structure or WHOLE))
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        ax.grid(axis="x", color=RULE, linewidth=0.4)
    _apart(figure)
    words = {"target": "external", "source": "internal"}
    middle = 0.15 * (len(results.models) - 1)
    axes[0].set_yticks(
        [-k * step - middle for k in range(len(places))], [f"{shorten(s)} ({words[d]})" for d, s in places]
    )
    for model in results.models:
        axes[0].plot([], [], "o-", color=colour(results, model), label=label(results, model), markersize=5)
    legend(figure, axes[0])
    caption = f"Mean Dice by site with {percent(results)} intervals."
    return Drawing("sites", to_svg(figure, "sites", "Dice by site"), caption)


def _seeds(results: Results) -> Drawing | None:
    blocks = [b for b in _blocks(results) if len(b.seeds) > 1]
    if not blocks:
        return None
    shown = _panels(results)
    figure = new_figure(8.6, 0.85 + 0.3 * len(blocks))
    axes = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for ax, structure in zip(axes, shown, strict=True):
        for k, block in enumerate(blocks):
            measure = block.get("dice", cls=structure, kind=None)
            if measure is None or measure.estimate.value is None:
                continue
            values = [v for v in measure.per_seed.values() if v is not None]
            tint = colour(results, block.model)
            ax.plot(values, [-k] * len(values), "o", color=tint, markersize=5.5, alpha=0.7, markeredgewidth=0)
            ax.plot([measure.estimate.value] * 2, [-k - 0.3, -k + 0.3], color=tint, linewidth=1.8)
        ax.set(ylim=(-len(blocks) + 0.4, 0.6), xlabel="Dice", title=shorten(structure or WHOLE))
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        ax.grid(axis="x", color=RULE, linewidth=0.5)
        ax.set_axisbelow(True)
    axes[0].set_yticks(range(0, -len(blocks), -1), [label(results, b.model) for b in blocks])
    caption = (
        f"One dot a training seed, {role(blocks[0]).lower()}; the stroke is the mean that the tables report."
    )
    return Drawing("seeds", to_svg(figure, "seeds", "Training seeds"), caption)


MAKERS: tuple[Callable[[Results], Drawing | None], ...] = (
    _dice,
    _forest,
    _volumes,
    _calibration,
    _sites,
    _seeds,
)
"""What draws each figure."""
