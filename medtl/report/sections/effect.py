"""Paired differences from the reference model, for few models."""

from __future__ import annotations

from medtl.evaluation.metrics.registry import MEASURES
from medtl.evaluation.results import Difference
from medtl.report.parts import TONES, Cell, Section, Table, TableBuilder
from medtl.report.view import PLACES, WHOLE, View

ORDER = 65


def section(view: View) -> Section | None:
    """The effect of adaptation, or of whatever distinguishes the models."""
    if view.many or not view.reference:
        return None
    tables = [_structures(view, d) for d in PLACES] if view.masks else [_cases(view)]
    shown = tuple(t.build() for t in tables if t.rows)
    if not shown:
        return None
    words, both = ("gain", "harm"), ""
    if view.masks:
        words = ("gain (green)", "harm (red, bold)")
        both = "; a method can gain on one structure and harm another"
    text = (
        f"Both models are evaluated on the same resampled patients. A difference reads as {' or '.join(words)} when "
        f"its interval leaves out 0{both}. The intervals are not adjusted for the number of comparisons.",
    )
    title = "Effect of the adaptation" if view.reference == "source_only" else "Paired comparison"
    return Section("effect", title, text=text, tables=shown)


def _cases(view: View) -> TableBuilder:
    table = TableBuilder(
        f"Paired differences from {view.reference}",
        ("Measure", "Model", "Cases for", "Difference", "Better is", "Reads as"),
    )
    for d in (d for domain in PLACES for d in view.differences(domain)):
        block = view.block(d.model, d.domain, d.finding)
        title = MEASURES[d.name].title + (f", {d.stage} recalibration" if d.stage else "")
        number = table.number(d.estimate, signed=True, tone=TONES[d.verdict])
        place = view.role(block) if block is not None else ""
        reads = Cell(d.verdict, tone=TONES[d.verdict])
        table.row(title, view.name(d.model, d.finding), place, number, d.better, reads)
    return table


def _structures(view: View, domain: str) -> TableBuilder:
    """Structures and models down, measures across; the verdict in words is that of the first headline."""
    rows = [d for d in view.differences(domain) if MEASURES[d.name].main]
    first = view.headlines[0]
    names = list(dict.fromkeys(d.name for d in rows))
    several = any(len(d.per_seed) > 1 for d in rows)
    title = MEASURES[first].title
    heads = [difference_head(view, n) for n in names]
    last = ["Seeds alike"] if several else []
    caption = f"Paired differences from {view.reference}, {view.place(domain).lower()}"
    table = TableBuilder(caption, ("Structure", "Model", f"{title} reads as", *heads, *last))
    for part in view.parts:
        found = {(d.model, d.name): d for d in rows if d.cls == part}
        for k, model in enumerate(m for m in view.models if (m, first) in found):
            main = found[model, first]
            cells: list[Cell | str] = [difference_cell(table, found.get((model, n))) for n in names]
            cells += [_alike(main)] if several else []
            reads = Cell(main.verdict, tone=TONES[main.verdict])
            table.row(Cell(part or WHOLE, tone="again" if k else ""), view.name(model), reads, *cells)
    if several:
        table.notes.append(
            f"Seeds alike: training seeds whose difference in {title} has the same sign as the mean."
        )
    return table


def difference_head(view: View, name: str) -> str:
    """The column head of differences of a metric."""
    stages = {d.stage for d in view.results.differences if d.name == name}
    lower = ", lower is better" if MEASURES[name].better == "lower" else ""
    return view.title(name) + (", recalibrated" if "after" in stages else "") + lower


def difference_cell(table: TableBuilder, d: Difference | None) -> Cell:
    """One difference with its interval, in the tone of its verdict."""
    return table.number(d.estimate if d else None, signed=True, tone=TONES[d.verdict] if d else "")


def other_differences(view: View, part: str | None) -> Table:
    """Differences of many models in measures without a simultaneous comparison; each has its own limits."""
    compared = {name for name, about in view.rankings(part) if about == part}
    rows = [d for d in view.differences(view.domain) if view.part_of(d) == part and d.name not in compared]
    names = list(dict.fromkeys(d.name for d in rows))
    heads = [difference_head(view, n) for n in names]
    other = " in other measures" if compared else ""
    table = TableBuilder(f"Differences{other}, not adjusted for the number of comparisons", ("Model", *heads))
    found = {(d.model, d.name): d for d in rows}
    for model in view.models:
        own = [found.get((model, n)) for n in names]
        if any(own):
            table.row(view.name(model), *(difference_cell(table, d) for d in own))
    return table.build()


def _alike(d: Difference) -> str:
    known = [v for v in d.per_seed.values() if v is not None]
    same = sum((v > 0) == ((d.estimate.value or 0.0) > 0) for v in known)
    return f"{same} of {len(known)}"
