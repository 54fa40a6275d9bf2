"""Figures about training: learning curves, cost beside quality, quality by the number of labelled patients."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medtl.evaluation.context import Cost, LearningCurve
from medtl.evaluation.metrics.registry import MEASURES
from medtl.evaluation.names import many, sizes_of, split_name
from medtl.evaluation.results import HEADLINES, Measure, Results
from medtl.evaluation.statistics.estimate import Estimate
from medtl.report.figures.figures import Drawing, legend, new_figure, percent
from medtl.report.figures.svg import COLOURS, MUTED, RULE, shorten, to_svg
from medtl.report.names import colour, main_block, main_domain, role, strategy_colour

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_CURVES = 12
"""Models whose learning curves are drawn."""
MARKERS = "osD^vPX*"
TRAIN_COLOUR, VALIDATION_COLOUR = MUTED, COLOURS[0]
AXES = {
    "train_seconds": "Training",
    "predict_seconds_per_case": "Prediction, a case",
    "trained_parameters": "Trained parameters",
}
SECONDS: dict[float, str] = {
    **{s / 1000: f"{s} ms" for s in (0.1, 0.3, 1, 3, 10, 30, 100, 300)},
    **{s: f"{s} s" for s in (1, 3, 10, 30)},
    **{60 * m: f"{m} min" for m in (1, 3, 10, 30)},
    **{3600 * h: f"{h} h" for h in (1, 3, 10, 30, 100)},
}
NUMBERS = {
    10**k: f"{10 ** (k % 3)}{unit}"
    for k in range(2, 11)
    for unit in ("", " k", " M", " G")[k // 3 : k // 3 + 1]
}


def headline(results: Results, model: str, domain: str, finding: str | None = None) -> Measure | None:
    """The first headline measure of a model; the mean Dice of a segmentation."""
    block = main_block(results, model, domain, finding)
    name = HEADLINES[0] if results.segmentation is None else "dice"
    # The mean over the structures, or the only one.
    places = (
        (None, *results.classes[:1])
        if results.segmentation is not None and len(results.classes) == 1
        else (None,)
    )
    measures = (block.get(name, cls=c, kind=None) for c in places) if block is not None else ()
    found = next((m for m in measures if m is not None), None)
    return found if found is not None and found.estimate.value is not None else None


def headline_title(results: Results) -> str:
    """What `headline` is."""
    return "Mean Dice" if results.segmentation is not None else MEASURES[HEADLINES[0]].title


def learning_figure(results: Results) -> Drawing | None:
    """One panel a model: losses on training and validation, one line a seed."""
    curves: dict[str, list[LearningCurve]] = {}
    for curve in results.context.learning:
        if len(curve.epochs) > 1:
            curves.setdefault(curve.model, []).append(curve)
    shown = list(curves)[:MOST_CURVES]
    if not shown:
        return None
    # Three by three leaves no empty places.
    columns = 3 if len(shown) in (3, 5, 6, 9) else min(4, len(shown))
    rows = -(-len(shown) // columns)
    width = {1: 4.6, 2: 3.7, 3: 2.8, 4: 2.15}[columns]
    figure = new_figure(width * columns, (1.75 if columns > 2 else 2.3) * rows + 0.45)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for ax in grid.flat[len(shown) :]:
        ax.set_axis_off()
    for ax, model in zip(grid.flat, shown, strict=False):
        for number, curve in enumerate(curves[model]):
            _losses(ax, curve, first=number == 0)
        ax.set_title(shorten(model), fontsize=8.5)
        ax.grid(axis="y", color=RULE, linewidth=0.5)
        ax.set_axisbelow(True)
        ax.xaxis.get_major_locator().set_params(integer=True, nbins=5)
    for ax in grid.flat[max(0, len(shown) - columns) : len(shown)]:
        ax.set_xlabel("Epoch")
    for ax in grid[:, 0]:
        ax.set_ylabel("Loss")
    legend(figure, grid.flat[0])
    more = len(curves) - len(shown)
    caption = (
        "Learning curves, one line a training seed. The loss on training cases is the mean over an epoch, with "
        "augmentation and while the weights moved, so that it may lie above or below that on validation without any "
        "overfitting; the table below compares the two on equal terms."
        + (f" {more} more models are in results.json." if more else "")
    )
    return Drawing("learning", to_svg(figure, "learning", "Learning curves"), caption)


def _losses(ax: Axes, curve: LearningCurve, *, first: bool) -> None:
    for values, tint, style, name in (
        (curve.train_loss, TRAIN_COLOUR, (0, (3.5, 1.6)), "training"),
        (curve.validation_loss, VALIDATION_COLOUR, "solid", "validation"),
    ):
        points = [(e, v) for e, v in zip(curve.epochs, values, strict=False) if v is not None]
        if not points:
            continue
        epochs, losses = zip(*points, strict=True)
        ax.plot(
            epochs,
            losses,
            color=tint,
            linestyle=style,
            linewidth=1.3,
            label=name if first else None,
            alpha=0.85,
        )
        epoch = curve.kept_epoch or 0
        if name == "validation" and epoch in epochs:
            kept = "kept epoch" if first else None
            ax.plot(epoch, dict(points)[epoch], "o", color=tint, markersize=4.5, label=kept, linestyle="none")


def costs_figure(results: Results) -> Drawing | None:
    """Quality against what training and prediction cost."""
    domain = main_domain(results)
    points = [
        (cost, found.estimate)
        for cost in results.context.costs
        if (found := headline(results, cost.model, domain)) is not None
    ]
    kinds = [kind for kind in AXES if len({getattr(cost, kind) for cost, _ in points} - {None}) > 1]
    kinds = [k for k in kinds if k != "trained_parameters" or len(kinds) < 3]
    if len(points) < 2 or not kinds:
        return None
    markers = _markers([cost.model for cost, _ in points])
    figure = new_figure(4.15 * len(kinds) + 0.2, 3.5 + 0.12 * min(len(points), 8))
    axes = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for ax, kind in zip(axes, kinds, strict=True):
        for cost, e in points:
            _point(ax, results, cost, e, kind, markers[cost.model])
        _log_axis(ax, NUMBERS if kind == "trained_parameters" else SECONDS)
        ax.set_xlabel(f"{AXES[kind]}, log scale")
        ax.grid(color=RULE, linewidth=0.5)
        ax.set_axisbelow(True)
    axes[0].set_ylabel(headline_title(results))
    _keys(figure, axes[0], results, markers)
    place = "external" if domain == "target" else "internal"
    caption = (
        f"Quality in {place} testing ({percent(results)} intervals over patients) beside cost; better is up and to "
        "the left. Seconds hold for the machine of this run."
    )
    return Drawing("costs", to_svg(figure, "costs", "Cost beside quality"), caption)


def _log_axis(ax: Axes, names: dict[float, str]) -> None:
    """A logarithmic axis with round ticks, at least two of them."""
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    inside = [x for x in names if low <= x <= high]
    if len(inside) < 2:
        inside = [
            max((x for x in names if x < low), default=low),
            *inside,
            min((x for x in names if x > high), default=high),
        ]
        ax.set_xlim(inside[0], inside[-1])
    # At most five, evenly, or they run into each other.
    inside = inside[:: -(-len(inside) // 5)]
    ax.set_xticks(inside, [names.get(x, f"{x:g}") for x in inside])
    ax.set_xticks([], minor=True)


def _tint(results: Results, model: str) -> str:
    return strategy_colour(results, split_name(model).strategy) if many(results) else colour(results, model)


def _point(ax: Axes, results: Results, cost: Cost, e: Estimate, kind: str, marker: str) -> None:
    x = getattr(cost, kind)
    if x is None or x <= 0 or e.value is None:
        return
    tint = _tint(results, cost.model)
    if e.lo is not None and e.hi is not None:
        ax.plot([x, x], [e.lo, e.hi], color=tint, linewidth=1.0, alpha=0.35, solid_capstyle="butt")
    ax.plot([x], [e.value], marker, color=tint, markersize=6.5, markeredgecolor="white")


def _markers(models: list[str]) -> dict[str, str]:
    """A marker for each encoder; with one encoder for each round of the colours of its strategies."""
    names = {m: split_name(m) for m in models}
    encoders = list(dict.fromkeys(n.encoder for n in names.values()))
    strategies = list(dict.fromkeys(n.strategy for n in names.values()))
    at = {
        m: strategies.index(n.strategy) // len(COLOURS) if len(encoders) == 1 else encoders.index(n.encoder)
        for m, n in names.items()
    }
    return {m: MARKERS[k % len(MARKERS)] for m, k in at.items()}


def _keys(figure: Figure, ax: Axes, results: Results, markers: dict[str, str]) -> None:
    """Colours for strategies and, where there are several, markers for encoders; with few models for each model."""
    encoders = {split_name(m).encoder: marker for m, marker in markers.items()}
    crowd = many(results) and len(encoders) > 1
    strategies = {split_name(m).strategy: m for m in markers}
    for model, marker in markers.items():
        name = split_name(model).strategy if many(results) else model
        if not crowd or strategies[name] == model:
            shape = "s" if crowd else marker
            ax.plot([], [], shape, color=_tint(results, model), label=shorten(name), markersize=5.5)
    legend(figure, ax)
    if crowd:
        handles = [ax.plot([], [], marker, color=MUTED)[0] for marker in encoders.values()]
        names = [shorten(e or "no encoder named") for e in encoders]
        figure.legend(handles, names, loc="outside lower left", ncols=min(4, len(names)), borderpad=0.6)


def sizes_figure(results: Results) -> Drawing | None:
    """Quality over the number of labelled patients, one line a group, with its band."""
    groups = sizes_of(results)
    domains = [d for d in ("target", "source") if any(headline(results, m, d) for m in results.models)]
    if not groups or not domains:
        return None
    figure = new_figure(4.15 * len(domains) + 0.2, 3.5)
    axes = figure.subplots(1, len(domains), sharey=True, squeeze=False)[0]
    tints = {g: COLOURS[k % len(COLOURS)] for k, g in enumerate(groups)}
    ticks = sorted({n for by in groups.values() for n in by})
    # Seeds of neighbouring groups would hide each other: each is moved a little to its side.
    aside = {g: 1.0 + 0.03 * (k - (len(groups) - 1) / 2) for k, g in enumerate(groups)}
    for ax, domain in zip(axes, domains, strict=True):
        for group, by in groups.items():
            found = {n: m for n, model in by.items() if (m := headline(results, model, domain))}
            tint, numbers = tints[group], list(found)
            estimates = [m.estimate for m in found.values()]
            lo = [e.value if e.lo is None else e.lo for e in estimates]
            hi = [e.value if e.hi is None else e.hi for e in estimates]
            ax.fill_between(numbers, lo, hi, color=tint, alpha=0.13, linewidth=0)
            ax.plot(
                numbers, [e.value for e in estimates], "-", color=tint, label=shorten(group), linewidth=1.8
            )
            for n, m in found.items():
                dots = [v for v in m.per_seed.values() if v is not None]
                ax.plot([n * aside[group]] * len(dots), dots, "o", color=tint, markersize=3.6, alpha=0.75)
        block = next(b for m in results.models for b in results.main_blocks(m, domain))
        ax.set_title(role(block))
        ax.set_xscale("log")
        ax.set_xticks(ticks, [str(n) for n in ticks])
        ax.set_xticks([], minor=True)
        ax.set_xlabel("Labelled training patients, log scale")
        ax.grid(axis="y", color=RULE, linewidth=0.5)
        ax.set_axisbelow(True)
    axes[0].set_ylabel(headline_title(results))
    legend(figure, axes[0])
    caption = (
        f"{headline_title(results)} over the number of labelled training patients. Line: mean over training seeds; "
        f"band: {percent(results)} interval over the tested patients; dots: single training seeds, which also differ "
        "in the patients drawn for training. Neither alone is the whole uncertainty."
    )
    return Drawing("sizes", to_svg(figure, "sizes", "Quality by number of labelled patients"), caption)


MAKERS = (learning_figure, sizes_figure, costs_figure)
