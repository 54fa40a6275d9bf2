"""Paired differences from the reference model, for few models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medtl.evaluation.metrics.registry import MEASURES
from medtl.evaluation.results import Difference
from medtl.report.kit import (
    GAIN,
    GAIN_INK,
    HARM,
    HARM_INK,
    Drawing,
    bar,
    finish,
    name_rows,
    new_figure,
    panels,
)
from medtl.report.svg import MUTED, shorten
from medtl.report.view import WHOLE, View

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SECTION = "effect"
MOST_PANELS = 3
MOST_STRUCTURES = 6

Row = tuple[str | None, str, str]
"""What a row is about: a structure, finding or None; a model; and a metric where the metrics share one panel."""


def draw(view: View) -> Drawing | None:
    """Classes: one row per metric and model. Masks: one panel per metric, one row per structure and model."""
    if view.many or not view.reference:
        return None
    found = list(view.differences(view.domain))
    if not view.masks:
        found = [d for d in found if d.better == "higher"]
    parts = (*view.parts[:MOST_STRUCTURES], *([None] if len(view.parts) > MOST_STRUCTURES else []))
    found = [d for d in found if view.part_of(d) in parts]
    names = list(dict.fromkeys(d.name for d in found))
    if not names:
        return None
    if view.masks:
        names = [
            n for n in names if MEASURES[n].section in ("overlap", "surfaces") and MEASURES[n].main
        ] or names
        names = names[:MOST_PANELS]
        shown = {name: {_row(view, d): d for d in found if d.name == name} for name in names}
        every = {
            row: None for p in parts for m in view.models for row in [(p, m, "")] if row in shown[names[0]]
        }
    else:
        shown = {"": {_row(view, d): d for d in found}}
        every = dict.fromkeys(shown[""])
    at, y = dict[Row, float](), 0.0
    for k, row in enumerate(every):
        y -= 0.0 if k == 0 else 1.5 if view.masks and row[0] != list(every)[k - 1][0] else 1.0
        at[row] = y
    several = len({model for _, model, _ in every}) > 1
    figure = new_figure(8.6, (0.95 if view.masks else 0.7) + 0.26 * (1 - y))
    axes = panels(figure, len(shown), len(shown), sharey=True)
    for ax, (name, own) in zip(axes, shown.items(), strict=True):
        _panel(view, ax, {row: d for row, d in own.items() if row in at}, at)
        model = "model" if several else view.label(next(iter(every))[1])
        place = view.place(view.domain).lower()
        what = (
            f"{view.title(name)}, difference" if name else f"{model} minus {shorten(view.reference)}, {place}"
        )
        ax.set_xlabel(what)
    name_rows(axes, list(at.values()), [_text(view, row, several) for row in every], grid=False)
    caption = (
        f"Paired differences from {view.reference} in {view.place().lower()} with {view.percent} intervals, on the "
        "same resampled patients. Green: gain; red: harm. An interval that crosses the line shows neither."
    )
    return finish(figure, "differences", "Paired differences", caption + _left_out(view))


def _row(view: View, d: Difference) -> Row:
    return view.part_of(d), d.model, "" if view.masks else d.name


def _text(view: View, row: Row, several: bool) -> str:
    part, model, name = row
    first = MEASURES[name].title if name else shorten(part or WHOLE)
    model = f", {view.label(model)}" if several else ""
    return first + model + (f", {shorten(part)}" if name and part else "")


def _left_out(view: View) -> str:
    number = len(view.results.classes)
    return (
        f" The first {MOST_STRUCTURES} of {number} structures are drawn." if number > MOST_STRUCTURES else ""
    )


def _panel(view: View, ax: Axes, found: dict[Row, Difference], at: dict[Row, float]) -> None:
    ends = [
        x for d in found.values() for x in (d.estimate.lo, d.estimate.hi, d.estimate.value) if x is not None
    ]
    extent = 1.12 * max((abs(x) for x in ends), default=0.1) or 0.1
    right = all(d.better == "higher" for d in found.values())
    sides = (("harm", HARM, HARM_INK), ("gain", GAIN, GAIN_INK))
    for side, (word, field, ink) in zip(("left", "right"), sides if right else sides[::-1], strict=True):
        ax.axvspan(*((-extent, 0) if side == "left" else (0, extent)), color=field, alpha=0.07, linewidth=0)
        ax.set_title(word, loc=side, color=ink)  # type: ignore[arg-type]
    ax.axvline(0, color=MUTED, linewidth=0.9)
    for row, d in found.items():
        bar(ax, at[row], d.estimate, view.colour(d.model))
    ax.set_xlim(-extent, extent)
