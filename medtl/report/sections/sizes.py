"""Quality by the number of labelled training patients."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from medtl.evaluation.statistics.compare import Compared
from medtl.evaluation.statistics.estimate import format_estimate, join
from medtl.report.parts import NOTHING, Section, TableBuilder
from medtl.report.sections.many_models import compared_cell
from medtl.report.view import PLACES, View, in_text

ORDER = 25


def section(view: View) -> Section | None:
    """Values by the number of patients, with the comparisons."""
    if not view.sizes:
        return None
    tables = [*(sizes_table(view, domain) for domain in PLACES), _same_size(view), _steps(view)]
    text = list(growth(view))
    if view.results.comparisons:
        text.append(
            "All models are tested on the same resampled patients; the limits of differences hold for a whole table at "
            "once (single-step max-t from the patient bootstrap: Westfall and Young 1993; Romano and Wolf 2005). They "
            "cover the choice of tested patients; the choice of training patients shows in the spread over seeds."
        )
    shown = tuple(t.build() for t in tables if t.rows)
    return Section("sizes", "How many labelled patients", text=tuple(text), tables=shown)


def sizes_table(view: View, domain: str) -> TableBuilder:
    """One row per number of labelled patients, one column per group of models."""
    caption = f"{view.headline_title}, {view.place(domain).lower()}"
    table = TableBuilder(caption, ("Labelled training patients", *view.sizes))
    for n in _numbers(view):
        found = [view.headline(by[n], domain) if n in by else None for by in view.sizes.values()]
        if any(found):
            table.row(str(n), *(table.number(m.estimate if m else None) for m in found))
    return table


def _numbers(view: View) -> list[int]:
    return sorted({n for by in view.sizes.values() for n in by})


def _same_size(view: View) -> TableBuilder:
    """Compares every group with one of them at the same number of patients."""
    rows = _compared(view, "same_size")
    others = [g for g, by in view.sizes.items() if any(m in rows for m in by.values())]
    home = next((g for g in view.sizes if g not in others), "")
    about = f"{view.headline_title}, {view.place().lower()}: differences from {home} with as many patients"
    table = TableBuilder(about, ("Labelled training patients", *others))
    for n in _numbers(view):
        cells = [compared_cell(table, rows.get(view.sizes[g].get(n, ""))) for g in others]
        if any(c.value is not None for c in cells):
            table.row(str(n), *cells)
    return table


def _steps(view: View) -> TableBuilder:
    """The gain from each step to more patients."""
    rows, groups = _compared(view, "previous_size"), view.sizes
    caption = f"{view.headline_title}, {view.place().lower()}: what more patients brought"
    table = TableBuilder(caption, ("Labelled training patients", *groups))
    steps = [step for by in groups.values() for step in pairwise(by)] if rows else []
    for before, n in sorted(dict.fromkeys(steps), key=lambda step: (step[1], step[0])):
        stepped = [by.get(n, "") if (before, n) in pairwise(by) else "" for by in groups.values()]
        table.row(f"{before} to {n}", *(compared_cell(table, rows.get(m)) if m else NOTHING for m in stepped))
    return table


def _compared(view: View, kind: str) -> dict[str, Compared]:
    found = view.comparison(kind=kind)
    return {r.model: r for r in found.rows if r.difference is not None} if found is not None else {}


def growth(view: View) -> Iterator[str]:
    """The gain from more labelled patients, and whether the best group depends on their number."""
    value = {
        (group, n): measure.estimate
        for group, by in view.sizes.items()
        for n, model in by.items()
        if (measure := view.headline(model)) is not None
    }
    steps = _compared(view, "previous_size")
    words = {"gain": "more patients still help", "harm": "more patients made it worse"}
    for group, by in view.sizes.items():
        have = [n for n in by if (group, n) in value]
        if len(have) < 2:
            continue
        text = (
            f"{group}: {in_text(view.headline_title)} {format_estimate(value[group, have[0]])} with {have[0]} labelled "
            f"patients, {format_estimate(value[group, have[-1]])} with {have[-1]}."
        )
        last = steps.get(by[have[-1]])
        if last is not None and last.difference is not None:
            reads = words.get(last.verdict, "no clear change")
            change = format_estimate(last.difference, signed=True)
            text += f" The last step, from {have[-2]} to {have[-1]}, brought {change}: {reads}."
        yield text
    best: dict[str, list[int]] = {}
    for n in sorted({n for _, n in value}):
        at = {group: value[group, n].value or 0.0 for group in view.sizes if (group, n) in value}
        if len(at) > 1:
            best.setdefault(max(at, key=lambda group: at[group]), []).append(n)
    if len(best) > 1:
        parts = [f"{group} with {join([str(n) for n in ns])}" for group, ns in best.items()]
        yield f"Highest value: {'; '.join(parts)} labelled patients. The table of differences says how sure that is."
