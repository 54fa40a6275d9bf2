"""All models against the reference, the best first, with limits that hold for all of them at once."""

from __future__ import annotations

from collections.abc import Iterator

from medtl.evaluation.names import split_name
from medtl.evaluation.statistics.compare import Compared, Comparison
from medtl.evaluation.statistics.estimate import format_number
from medtl.report.parts import DASH, NOTHING, TONES, Cell, Section, Table, TableBuilder
from medtl.report.sections.effect import other_differences
from medtl.report.view import View

ORDER = 20


def section(view: View) -> Section | None:
    """The ranking: table, encoders by strategies, other measures."""
    if not view.many or view.sizes:
        return None
    tables: list[Table] = []
    for finding in (view.whole,) if view.masks else view.parts:
        found = view.rankings(finding)
        if found:
            tables.append(_ranking(view, found, finding))
            tables += _matrix(view, next(iter(found.values())))
        others = other_differences(view, finding)
        tables += [others] if others.rows else []
    if not tables:
        return None
    return Section(
        "many_models", "All models against the reference", text=tuple(_text(view)), tables=tuple(tables)
    )


def _text(view: View) -> Iterator[str]:
    found = [len(c.rows) for c in view.results.comparisons]
    if not found:
        return
    each = ", for each structure and for their mean on its own" if view.masks and len(view.parts) > 1 else ""
    yield (
        f"All models are evaluated on the same resampled patients. With {max(found) - 1} comparisons some would leave "
        f"out 0 by chance alone, so these limits hold at {view.percent} for all of them at once{each} (single-step "
        "max-t from the patient bootstrap: Westfall and Young 1993; Romano and Wolf 2005), and so do the adjusted "
        "p-values. Because the models share patients, this costs less than Bonferroni's or Holm's correction. Values "
        "are means over training seeds; the spread over seeds is not part of the limits."
    )
    yield (
        "The top model was found on the same patients that rank it, so its value is optimistic, the more so the more "
        "models there are. Choosing by this table means choosing by these labels: confirm the choice on other patients."
    )


def _ranking(view: View, found: dict[tuple[str, str | None], Comparison], finding: str | None) -> Table:
    """Each comparison with its p-values; of single structures the differences alone."""
    columns = ["Model"]
    whole = [k == 0 or not view.masks for k in range(len(found))]
    for full, (name, part) in zip(whole, found, strict=True):
        columns += [
            f"{view.part_title(name, part)}, difference",
            *(["Adjusted p", "First in"] if full else []),
        ]
    about = f", {finding}" if finding and not view.masks else ""
    caption = f"Differences from {view.reference}, {view.place().lower()}{about}"
    table = TableBuilder(caption, tuple(columns))
    for row in next(iter(found.values())).rows:
        cells = [view.name(row.model) if row.difference else Cell(view.marked(row.model, bound=True))]
        for full, comparison in zip(whole, found.values(), strict=True):
            own = next((r for r in comparison.rows if r.model == row.model), None)
            cells.append(compared_cell(table, own))
            if full:
                cells += [_p_value(own.p_value), Cell(_share(own.first))] if own else [NOTHING, NOTHING]
        table.row(*cells)
    table.notes.append("First in: share of the resamples in which no other model has a higher value.")
    return table.build()


def compared_cell(table: TableBuilder, row: Compared | None) -> Cell:
    """One difference with limits that hold for all models, in the tone of its verdict."""
    if row is None or row.difference is None:
        return NOTHING
    return table.number(row.difference, signed=True, tone=TONES[row.verdict])


def _share(first: float) -> str:
    return "< 1 %" if first < 0.01 else f"{100 * first:.0f} %"


def _p_value(p: float | None) -> Cell:
    if p is None:
        return NOTHING
    return Cell("< 0.001") if p < 0.001 else Cell(format_number(p, 3 if p < 0.1 else 2))


def _matrix(view: View, comparison: Comparison) -> Iterator[Table]:
    """Encoders by strategies, if the names have both."""
    names = {row.model: split_name(row.model) for row in comparison.rows}
    encoders = list(dict.fromkeys(n.encoder for n in names.values()))
    strategies = list(dict.fromkeys(n.strategy for n in names.values()))
    if "" in encoders or len(encoders) < 2 or len(strategies) < 2:
        return
    found = {(names[r.model].encoder, names[r.model].strategy): r.estimate.value for r in comparison.rows}
    values = [v or 0.0 for v in found.values()]
    low, span = min(values), max(max(values) - min(values), 1e-9)
    caption = f"{view.headline_title}: encoders and strategies"
    table = TableBuilder(caption, ("Encoder", *strategies), compact=True)
    for encoder in encoders:
        row = [found.get((encoder, strategy)) for strategy in strategies]
        shown = [
            Cell(format_number(v, 2), v, heat=(v - low) / span) if v is not None else Cell(DASH) for v in row
        ]
        table.row(encoder, *shown)
    yield table.build()
