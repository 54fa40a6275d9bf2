"""What was fitted on the source's tuning cases and then frozen: temperatures and operating points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medtl.evaluation.results import Settings
from medtl.evaluation.statistics.estimate import decimals, format_number
from medtl.report.parts import NOTHING, Cell, Section, TableBuilder, plain
from medtl.report.view import View

ORDER = 30
WORDS = {
    "no_validation": "no labelled tuning cases",
    "one_class": "tuning cases of one class only",
    "separated": "none: all called right",
    "at_bound": "at its bound",
}
"""Reasons why a setting was not fitted as usual."""


def section(view: View) -> Section | None:
    """One row per model and training seed; with many models, one row per model."""
    results = view.results
    settings = [s for s in results.settings if s.temperature_status != "no_probabilities"]
    if not settings:
        return None
    binary = results.positive is not None and not view.masks
    temperatures = results.classes if view.masks else ("Temperature",)
    columns = ["Model", *([] if view.many else ["Training seed"]), *temperatures, "Fitted on"]
    columns += ["Operating point", "Rule", "Sensitivity there", "Specificity there"] if binary else []
    what = "Temperatures" if view.masks else "Settings"
    seeds = ", mean over training seeds" if view.many else ""
    table = TableBuilder(f"{what} fitted at the source{seeds}", tuple(columns), compact=True)
    groups: dict[tuple[str, str, str | None], list[Settings]] = {}
    for s in settings:
        key = s.model, "" if view.many else s.seed, None if view.masks else s.finding
        groups.setdefault(key, []).append(s)
    for (model, seed, finding), own in groups.items():
        cells = [view.name(model, finding), *([] if view.many else [Cell(seed)])]
        for c in results.classes if view.masks else (None,):
            of = [s for s in own if c in (None, s.finding)]
            reason = WORDS.get(of[0].temperature_status, "") if of else ""
            number = _spread([s.temperature for s in of])
            cells.append(
                Cell(reason, tone="muted") if view.masks and reason and number.value is None else number
            )
        cells.append(Cell(_fitted_on(own)))
        if binary:
            points = [s.operating_point for s in own if s.operating_point is not None]
            number = _spread([p.probability for p in points], 3)
            cells.append(Cell(f"≥ {number.text}", number.value) if points else NOTHING)
            cells.append(Cell("; ".join(dict.fromkeys(_rule(s) for s in own))))
            cells += [_spread([getattr(p, kind) for p in points]) for kind in ("sensitivity", "specificity")]
        table.row(*cells)
    if view.many:
        table.notes.append(
            "In brackets: lowest and highest of the training seeds. Single seeds: results.json."
        )
    return Section(
        "settings", "Settings frozen before testing", text=_text(view, binary), tables=(table.build(),)
    )


def _text(view: View, binary: bool) -> tuple[str, ...]:
    done = {"fitted", "at_bound", "separated"}
    fitted = any(done & {s.temperature_status, s.operating_status} for s in view.results.settings)
    first = (
        "Everything in this table was fitted on tuning cases of the source and then frozen."
        if fitted
        else "The table of predictions holds no tuning cases to fit settings on: the defaults apply."
    )
    if view.masks:
        return (first,)
    if not binary:
        return (first, "The most probable class is called; there is no operating point.")
    text = "A case is called positive when its probability, before recalibration, is at or above the operating point."
    known = " Sensitivity and specificity here come from the cases that the point was chosen on: they are optimistic."
    return first, text + (known if fitted else "")


def _fitted_on(settings: Sequence[Settings]) -> str:
    cases = max(s.temperature_cases for s in settings)
    odd = {WORDS[s.temperature_status] for s in settings if s.temperature_status in WORDS}
    same = len({s.temperature_status for s in settings}) == 1
    return "; ".join(sorted(odd)) if odd and same else f"{cases} cases"


def _rule(s: Settings) -> str:
    if s.operating_point is None or s.operating_status == "fitted":
        return s.operating_point.rule if s.operating_point is not None else ""
    return f"one half: {WORDS.get(s.operating_status, s.operating_status)}"


def _spread(values: Sequence[float | None], places: int | None = None) -> Cell:
    """The mean over training seeds, with the lowest and the highest."""
    known = [v for v in values if v is not None]
    if not known:
        return NOTHING
    if len(known) == 1:
        return plain(known[0]) if places is None else Cell(format_number(known[0], places), known[0])
    digits = places or min(decimals(max(known), None, None), 2)
    mean, low, high = (format_number(float(f(known)), digits) for f in (np.mean, min, max))
    return Cell(f"{mean} ({low} to {high})")
