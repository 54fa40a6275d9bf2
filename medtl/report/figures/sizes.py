"""Quality by the number of labelled training patients."""

from __future__ import annotations

import numpy as np

from medtl.evaluation.statistics.arrays import Floats
from medtl.report.kit import Drawing, finish, legend, new_figure, panels
from medtl.report.svg import COLOURS, RULE, shorten
from medtl.report.view import PLACES, View

SECTION = "sizes"


def draw(view: View) -> Drawing | None:
    """One panel per place, one line per group of models, with its band."""
    groups = view.sizes
    domains = [d for d in PLACES if any(view.headline(m, d) for m in view.models)]
    if not groups or not domains:
        return None
    figure = new_figure(4.15 * len(domains) + 0.2, 3.5)
    axes = panels(figure, len(domains), len(domains), sharey=True)
    ticks = sorted({n for by in groups.values() for n in by})
    for ax, domain in zip(axes, domains, strict=True):
        for k, (group, by) in enumerate(groups.items()):
            found = {n: m for n, model in by.items() if (m := view.headline(model, domain))}
            tint, numbers, estimates = (
                COLOURS[k % len(COLOURS)],
                list(found),
                [m.estimate for m in found.values()],
            )
            lo = [e.value if e.lo is None else e.lo for e in estimates]
            hi = [e.value if e.hi is None else e.hi for e in estimates]
            ax.fill_between(numbers, _floats(lo), _floats(hi), color=tint, alpha=0.13, linewidth=0)
            ax.plot(
                numbers,
                _floats([e.value for e in estimates]),
                color=tint,
                label=shorten(group),
                linewidth=1.8,
            )
            # Seeds of neighbouring groups would hide each other: each is moved a little to its side.
            aside = 1.0 + 0.03 * (k - (len(groups) - 1) / 2)
            for n, m in found.items():
                dots = [v for v in m.per_seed.values() if v is not None]
                ax.plot([n * aside] * len(dots), dots, "o", color=tint, markersize=3.6, alpha=0.75)
        ax.set_title(view.place(domain))
        ax.set_xscale("log")
        ax.set_xticks(ticks, [str(n) for n in ticks])
        ax.set_xticks([], minor=True)
        ax.set_xlabel("Labelled training patients, log scale")
        ax.grid(axis="y", color=RULE, linewidth=0.5)
        ax.set_axisbelow(True)
    axes[0].set_ylabel(view.headline_title)
    legend(figure, axes[0])
    caption = (
        f"{view.headline_title} by the number of labelled training patients. Line: mean over training seeds; band: "
        f"{view.percent} interval over the tested patients; dots: single training seeds, which also differ in the "
        "patients drawn for training. Neither alone is the whole uncertainty."
    )
    return finish(figure, "sizes", "Quality by number of labelled patients", caption)


def _floats(values: list[float | None]) -> Floats:
    return np.array(values, dtype=np.float64)
