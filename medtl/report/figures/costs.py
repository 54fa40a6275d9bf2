"""Quality beside what training and prediction cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medtl.evaluation.context import Cost
from medtl.evaluation.names import split_name
from medtl.evaluation.statistics.estimate import Estimate
from medtl.report.kit import Drawing, finish, legend, new_figure, panels
from medtl.report.svg import COLOURS, MUTED, RULE, shorten
from medtl.report.view import View

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SECTION = "costs"
MARKERS = "osD^vPX*"
AXES = {
    "train_seconds": "Training",
    "predict_seconds_per_case": "Prediction, per case",
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


def draw(view: View) -> Drawing | None:
    """One panel per kind of cost, one dot per model."""
    points = [
        (c, m.estimate) for c in view.results.context.costs if (m := view.headline(c.model)) is not None
    ]
    kinds = [kind for kind in AXES if len({getattr(cost, kind) for cost, _ in points} - {None}) > 1]
    kinds = [k for k in kinds if k != "trained_parameters" or len(kinds) < 3]
    if len(points) < 2 or not kinds:
        return None
    markers = _markers([cost.model for cost, _ in points])
    figure = new_figure(4.15 * len(kinds) + 0.2, 3.5 + 0.12 * min(len(points), 8))
    axes = panels(figure, len(kinds), len(kinds), sharey=True)
    for ax, kind in zip(axes, kinds, strict=True):
        for cost, e in points:
            _point(ax, getattr(cost, kind), e, _tint(view, cost), markers[cost.model])
        _log_axis(ax, NUMBERS if kind == "trained_parameters" else SECONDS)
        ax.set_xlabel(f"{AXES[kind]}, log scale")
        ax.grid(color=RULE, linewidth=0.5)
        ax.set_axisbelow(True)
    axes[0].set_ylabel(view.headline_title)
    _keys(figure, axes[0], view, [cost for cost, _ in points], markers)
    caption = (
        f"Quality in {view.place().lower()} ({view.percent} intervals over patients) beside cost; better is up and to "
        "the left. Times are for the machine of this run."
    )
    return finish(figure, "costs", "Cost beside quality", caption)


def _log_axis(ax: Axes, names: dict[float, str]) -> None:
    """A logarithmic axis with round ticks, at least two of them."""
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    inside = [x for x in names if low <= x <= high]
    if len(inside) < 2:
        below, above = [x for x in names if x < low], [x for x in names if x > high]
        inside = [max(below, default=low), *inside, min(above, default=high)]
        ax.set_xlim(inside[0], inside[-1])
    # At most five, evenly, or they run into each other.
    inside = inside[:: -(-len(inside) // 5)]
    ax.set_xticks(inside, [names.get(x, f"{x:g}") for x in inside])
    ax.set_xticks([], minor=True)


def _tint(view: View, cost: Cost) -> str:
    return view.strategy_colour(cost.model) if view.many else view.colour(cost.model)


def _point(ax: Axes, x: float | None, e: Estimate, tint: str, marker: str) -> None:
    if x is None or x <= 0 or e.value is None:
        return
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


def _keys(figure: Figure, ax: Axes, view: View, costs: list[Cost], markers: dict[str, str]) -> None:
    """Colours for strategies and, where there are several, markers for encoders; with few models for each model."""
    encoders = {split_name(m).encoder: marker for m, marker in markers.items()}
    crowd = view.many and len(encoders) > 1
    entries: dict[str, tuple[str, str]] = {}
    for cost in costs:
        name = split_name(cost.model).strategy if view.many else view.label(cost.model)
        entries[shorten(name)] = _tint(view, cost), "s" if crowd else markers[cost.model]
    for name, (tint, shape) in entries.items():
        ax.plot([], [], shape, color=tint, label=name, markersize=5.5)
    legend(figure, ax)
    if crowd:
        handles = [ax.plot([], [], marker, color=MUTED)[0] for marker in encoders.values()]
        names = [shorten(e or "no encoder named") for e in encoders]
        figure.legend(handles, names, loc="outside lower left", ncols=min(4, len(names)), borderpad=0.6)
