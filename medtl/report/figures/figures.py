"""The report's figures, drawn from the results alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from medtl.evaluation.metrics.registry import KINDS, MEASURES
from medtl.evaluation.names import many
from medtl.evaluation.results import Block, Curve, Results
from medtl.evaluation.statistics.estimate import Estimate
from medtl.report.figures.svg import BEFORE_COLOUR, INK, MUTED, RULE, drawing, shorten, to_svg
from medtl.report.names import colour, in_view, main_domain, ranked, role

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_PANELS = 6


@dataclass(frozen=True)
class Drawing:
    """A figure as text.

    Attributes:
        name: name of its file, without the suffix.
        svg: the document.
        caption: what it shows and how to read it.
    """

    name: str
    svg: str
    caption: str


def label(results: Results, model: str) -> str:
    """The model's name in every figure; an upper bound says so."""
    return shorten(model) + (" (upper bound)" if model in results.context.target_trained else "")


def draw_all(results: Results) -> dict[str, Drawing]:
    """Every figure that the results have something to show for, by name."""
    makers: tuple[Callable[[Results], Drawing | None], ...] = (
        _roc,
        _forest,
        _reliability,
        _shares,
        _sites,
        _seeds,
    )
    if results.segmentation is not None:
        from medtl.report.figures.segfigures import MAKERS

        makers = MAKERS
    from medtl.report.figures.manyfigures import ranked_figure
    from medtl.report.figures.trainfigures import MAKERS as TRAINING

    if many(results):
        makers = tuple(ranked_figure if make is _forest else make for make in makers)
    with drawing():
        drawn = [make(results) for make in (*makers, *TRAINING)]
    bounds = results.context.target_trained
    said = f" {', '.join(bounds)}: uses target labels, an upper bound and not a candidate." if bounds else ""
    return {d.name: replace(d, caption=d.caption + said) for d in drawn if d is not None}


def _some(results: Results) -> str:
    """Says that a figure shows some of the models."""
    return (
        " Of many models some are drawn: the reference and the best of each strategy."
        if many(results)
        else ""
    )


def new_figure(width: float, height: float) -> Figure:
    """A figure of so many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def percent(results: Results) -> str:
    """The confidence level, for captions."""
    return f"{100 * results.level:g} %"


def _curves(block: Block, name: str, **where: str | None) -> list[Curve]:
    return [c for c in block.curves if c.name == name and all(getattr(c, k) == v for k, v in where.items())]


def _roc(results: Results) -> Drawing | None:
    panels: dict[str, list[tuple[str, Curve]]] = {}
    for domain in ("target", "source"):
        for model in in_view(results):
            for block in results.main_blocks(model, domain):
                for curve in _curves(block, "roc"):
                    title = (
                        role(block) if block.finding is None else f"{shorten(block.finding)}, {role(block)}"
                    )
                    if results.task == "multiclass":
                        title = f"{shorten(curve.cls or '')}, {role(block).lower()}"
                    panels.setdefault(title, []).append((model, curve))
    shown = list(panels.items())[:MOST_PANELS]
    if results.task == "multiclass":
        shown = list(panels.items())[: min(len(results.classes), MOST_PANELS)]
    if not shown:
        return None
    columns = min(len(shown), 4)
    rows = -(-len(shown) // columns)
    size = {1: 3.7, 2: 3.5, 3: 3.1, 4: 2.5}[columns]
    figure = new_figure(size * columns, size * rows * 1.02 + 0.35)
    grid = figure.subplots(rows, columns, squeeze=False)
    for ax in grid.flat[len(shown) :]:
        ax.set_axis_off()
    for ax, (title, lines) in zip(grid.flat, shown, strict=False):
        ax.plot([0, 1], [0, 1], color=RULE, linewidth=0.8)
        for model, curve in lines:
            tint = colour(results, model)
            ax.fill_between(curve.x, curve.lo, curve.hi, color=tint, alpha=0.16, linewidth=0)
            ax.plot([0, *curve.x], [0, *curve.y], color=tint, label=label(results, model))
        ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02), aspect="equal", title=title)
        ax.set(xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
    for ax in grid[-1]:
        ax.set_xlabel("1 \N{MINUS SIGN} specificity")
    for ax in grid[:, 0]:
        ax.set_ylabel("Sensitivity")
    legend(figure, grid.flat[0])
    caption = (
        f"ROC curves; band: {percent(results)}, point by point, from resampled patients. With several "
        "training seeds the mean sensitivity over the seeds at each false positive rate."
    )
    if results.task == "multiclass":
        caption += " Each panel sets one class against all others."
    caption += _some(results)
    return Drawing("roc", to_svg(figure, "roc", "ROC curves"), caption)


def legend(figure: Figure, ax: Axes) -> None:
    """The legend of one panel above all of them."""
    handles, labels = ax.get_legend_handles_labels()
    if labels:
        fitting = int(figure.get_figwidth() / (0.6 + 0.068 * max(map(len, labels))))
        columns = max(1, min(4, len(labels), fitting))
        figure.legend(handles, labels, loc="outside upper left", ncols=columns, borderpad=0.6)


def bar(ax: Axes, y: float, e: Estimate, tint: str, marker: str = "o") -> None:
    """A dot with its interval."""
    if e.value is None:
        return
    if e.lo is not None and e.hi is not None:
        ax.plot([e.lo, e.hi], [y, y], color=tint, linewidth=1.6, solid_capstyle="butt")
    ax.plot([e.value], [y], marker=marker, color=tint, markersize=5.5, linestyle="none")


def _forest(results: Results) -> Drawing | None:
    main = {(b.domain, b.split, b.site) for m in results.models for b in results.main_blocks(m, "target")}
    rows = [
        d
        for d in results.differences
        if (d.domain, d.split, d.site) in main and d.better == "higher" and d.estimate.value is not None
    ]
    if not rows:
        return None
    figure = new_figure(8.4, 0.7 + 0.27 * len(rows))
    ax = figure.subplots()
    extent = max(max(abs(d.estimate.lo or 0), abs(d.estimate.hi or 0)) for d in rows) * 1.12 or 0.1
    ax.axvspan(-extent, 0, color="#b4531a", alpha=0.06, linewidth=0)
    ax.axvspan(0, extent, color="#3d7a3a", alpha=0.07, linewidth=0)
    ax.axvline(0, color=MUTED, linewidth=0.9)
    for k, d in enumerate(rows):
        bar(ax, -k, d.estimate, colour(results, d.model))
    several = len({d.model for d in rows}) > 1
    labels = [
        MEASURES[d.name].title
        + (f", {label(results, d.model)}" if several else "")
        + (f", {shorten(d.finding)}" if d.finding else "")
        for d in rows
    ]
    ax.set_yticks([-k for k in range(len(rows))], labels)
    ax.set(xlim=(-extent, extent), ylim=(-len(rows) + 0.4, 0.6))
    ax.set_title("harm", loc="left", color="#8f3f10")
    ax.set_title("gain", loc="right", color="#2f6a2d")
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    reference = shorten(results.reference_model or "")
    model = "model" if several else label(results, rows[0].model)
    ax.set_xlabel(f"{model} minus {reference}, external testing")
    caption = (
        f"Paired differences from {results.reference_model} in external testing with {percent(results)} "
        "intervals, on the same resampled patients. An interval that crosses the line does not tell gain "
        "from harm."
    )
    return Drawing("differences", to_svg(figure, "differences", "Paired differences"), caption)


def _reliability(results: Results) -> Drawing | None:
    columns: list[tuple[str, Block]] = []
    for model in in_view(results):
        for domain in (
            ("target",) if many(results) and main_domain(results) == "target" else ("target", "source")
        ):
            for block in results.main_blocks(model, domain):
                if _curves(block, "reliability"):
                    columns.append((model, block))
    columns = columns[:MOST_PANELS]
    if not columns:
        return None
    per_row = min(len(columns), 4)
    num_rows = -(-len(columns) // per_row)
    size = {1: 3.7, 2: 3.3, 3: 3.0, 4: 2.5}[per_row]
    figure = new_figure(size * per_row, (size * 1.36) * num_rows + 0.3)
    ratios = [4.2, 1] * num_rows
    grid = figure.subplots(2 * num_rows, per_row, squeeze=False, height_ratios=ratios)
    first: Axes | None = None
    for k in range(per_row * num_rows):
        ax, bars = grid[2 * (k // per_row), k % per_row], grid[2 * (k // per_row) + 1, k % per_row]
        if k >= len(columns):
            ax.set_axis_off()
            bars.set_axis_off()
            continue
        first = first or ax
        model, block = columns[k]
        _calibration_panel(results, ax, bars, model, block)
        if k % per_row == 0:
            kind = _curves(block, "reliability")[0].kind
            ax.set_ylabel("Observed share" if kind == "positive" else "Share called right")
            bars.set_ylabel("Share of\ncases", fontsize=7.5)
    if first is not None:
        legend(figure, first)
    kind = KINDS[_curves(columns[0][1], "reliability")[0].kind or "positive"]
    caption = (
        f"Calibration: {kind} (across) against what was observed (up), smoothed by local linear regression, "
        f"with a {percent(results)} band from resampled patients; the diagonal is ideal. Dashed: before "
        "recalibration; solid: after dividing the logits by the temperature fitted at the source. Bars: "
        "where the predictions lie. With several training seeds their predictions are pooled."
        + _some(results)
    )
    return Drawing("calibration", to_svg(figure, "calibration", "Calibration before and after"), caption)


def _calibration_panel(results: Results, ax: Axes, bars: Axes, model: str, block: Block) -> None:
    tint = colour(results, model)
    ax.plot([0, 1], [0, 1], color=RULE, linewidth=0.9)
    for stage, style, shade in (("before", (0, (3.5, 2)), BEFORE_COLOUR), ("after", "solid", tint)):
        for curve in _curves(block, "reliability", stage=stage):
            ax.fill_between(curve.x, curve.lo, curve.hi, color=shade, alpha=0.15, linewidth=0)
            ax.plot(curve.x, curve.y, color=shade, linestyle=style, label=f"{stage} recalibration")
            steps = [i / 10 for i in range(11)]
            bars.stairs(curve.histogram, steps, color=shade, linestyle=style, linewidth=1.1)
    title = label(results, model) + (f", {shorten(block.finding)}" if block.finding else "")
    ax.set(xlim=(0, 1), ylim=(-0.01, 1.01), aspect="equal", xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
    ax.set_title(f"{title}\n{role(block)}", fontsize=8.5)
    bars.set(xlim=(0, 1), xticks=[0, 0.5, 1], yticks=[])
    bars.spines["left"].set_visible(False)
    bars.set_xlabel("Predicted probability")


def _shares(results: Results) -> Drawing | None:
    models = in_view(results)
    main = [(m, b) for m in models for b in results.main_blocks(m, "target")]
    if not main:
        main = [(m, b) for m in models for b in results.main_blocks(m, "source")]
    findings = list(dict.fromkeys(b.finding for _, b in main))
    lines = [
        (f, c)
        for f in findings
        for c in results.classes
        if results.task == "multiclass" or c == results.positive
    ]
    if not lines:
        return None
    step = 0.3 * len(models) + 0.45
    figure = new_figure(8.4, 0.75 + 0.55 * step * len(lines))
    ax = figure.subplots()
    for k, (finding, cls) in enumerate(lines):
        top = -k * step
        for j, (model, block) in enumerate([x for x in main if x[1].finding == finding]):
            called = block.get("predicted_share", cls=cls)
            if called is not None:
                bar(ax, top - 0.3 * j, called.estimate, colour(results, model))
            truth = block.get("observed_share", cls=cls)
            if j == 0 and truth is not None and truth.estimate.value is not None:
                x = truth.estimate.value
                ends = [top + 0.18, top - 0.3 * len(models) + 0.12]
                name = "reference standard" if k == 0 else None
                ax.plot([x, x], ends, color=INK, linewidth=2.2, label=name)
    for model in models:
        ax.plot(
            [],
            [],
            "o-",
            color=colour(results, model),
            label=f"called by {label(results, model)}",
            markersize=5,
        )
    names = [shorten(cls) + (f", {shorten(f)}" if f else "") for f, cls in lines]
    middle = 0.15 * (len(models) - 1)
    ax.set_yticks([-k * step - middle for k in range(len(lines))], names)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set(xlim=(0, 1), ylim=(-len(lines) * step + 0.1, 0.45), xlabel="Share of cases")
    legend(figure, ax)
    caption = (
        f"Share of the cases that each model calls a class ({percent(results)} intervals), and the share by "
        "the reference standard where there is one. Large gaps point to a shift that the model did not "
        "follow." + _some(results)
    )
    return Drawing("shares", to_svg(figure, "shares", "Shares of the classes"), caption)


def _sites(results: Results) -> Drawing | None:
    blocks = [b for b in results.blocks if b.site is not None and b.split == "test" and b.num_labelled]
    places = list(dict.fromkeys((b.domain, b.site, b.finding) for b in blocks))
    sites = {(d, s) for d, s, _ in places}
    if len(sites) < 2 or (many(results) and len(sites) == len({d for d, _ in sites})):
        return None
    names, models = ("auroc", "balanced_accuracy"), in_view(results)
    step = 0.3 * len(models) + 0.4
    figure = new_figure(8.4, 0.8 + 0.52 * step * len(places))
    axes = figure.subplots(1, 2, sharey=True)
    for ax, name in zip(axes, names, strict=True):
        for k, place in enumerate(places):
            for j, model in enumerate(models):
                block = next(
                    (b for b in blocks if (b.domain, b.site, b.finding) == place and b.model == model), None
                )
                measure = block.get(name) if block else None
                if measure is not None:
                    bar(ax, -k * step - 0.3 * j, measure.estimate, colour(results, model))
        ax.set(title=MEASURES[name].title, xlim=(0, 1.01), ylim=(-len(places) * step + 0.1, 0.4))
        ax.axvline(0.5 if name == "auroc" else 1 / len(results.classes), color=RULE, linewidth=0.9)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
    words = {"target": "external", "source": "internal"}
    labels = [f"{shorten(s or '')} ({words[d]})" + (f", {shorten(f)}" if f else "") for d, s, f in places]
    middle = 0.15 * (len(models) - 1)
    axes[0].set_yticks([-k * step - middle for k in range(len(places))], labels)
    for model in models:
        axes[0].plot([], [], "o-", color=colour(results, model), label=label(results, model), markersize=5)
    legend(figure, axes[0])
    caption = f"Results by site with {percent(results)} intervals; the thin line is chance." + _some(results)
    return Drawing("sites", to_svg(figure, "sites", "Results by site"), caption)


def _seeds(results: Results) -> Drawing | None:
    models = ranked(results) if many(results) else results.models
    main = [(m, b) for m in models for b in results.main_blocks(m, "target") if b.num_labelled]
    main = [(m, b) for m, b in main if len(b.seeds) > 1]
    if not main:
        return None
    figure = new_figure(8.4, 0.8 + 0.3 * len(main))
    axes = figure.subplots(1, 2, sharey=True)
    for ax, name in zip(axes, ("auroc", "balanced_accuracy"), strict=True):
        for k, (model, block) in enumerate(main):
            measure = block.get(name)
            if measure is None:
                continue
            values = [v for v in measure.per_seed.values() if v is not None]
            tint = colour(results, model)
            ax.plot(
                values, [-k] * len(values), "o", color=tint, markersize=5.5, alpha=0.75, markeredgewidth=0
            )
            if measure.estimate.value is not None:
                ax.plot([measure.estimate.value] * 2, [-k - 0.3, -k + 0.3], color=tint, linewidth=1.8)
        ax.set(title=MEASURES[name].title, ylim=(-len(main) + 0.4, 0.6))
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        ax.grid(axis="x", color=RULE, linewidth=0.5)
        ax.set_axisbelow(True)
    names = [label(results, m) + (f", {shorten(b.finding)}" if b.finding else "") for m, b in main]
    axes[0].set_yticks([-k for k in range(len(main))], names)
    caption = "One dot a training seed, in external testing; the stroke is the mean that the tables report."
    return Drawing("seeds", to_svg(figure, "seeds", "Training seeds"), caption)
