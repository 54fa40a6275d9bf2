"""Tables of metrics: the registry says which of them a section lists, the task says how the rows run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from medtl.evaluation.metrics.registry import MEASURES
from medtl.evaluation.results import Block
from medtl.report.parts import DASH, Cell, Table, TableBuilder
from medtl.report.view import MOST_COLUMNS, PLACES, WHOLE, Column, View

STATUS_WORDS = {
    "ok": "in both",
    "pred_empty": "missed",
    "ref_empty": "false",
    "both_empty": "in neither",
    "no_reference": "no reference",
}
STATUS_NOTE = (
    "Masks: cases times training seeds. In both: the structure is in the reference and in the mask. Missed: in the "
    "reference alone. False: in the mask alone. In neither: left out of all means."
)
STAGES = ("before", "after")
MOST_ACROSS = 4
"""Columns up to which many models have one table for all places, instead of one each."""


def metric_tables(view: View, section: str, caption: str) -> list[Table]:
    """The tables of a section: one column for each of its metrics, and a row for each model.

    With few models there is one table, masks have one for each place, and rows for each structure. With many models
    rows do not multiply: there is a table for each place, stage, or structure instead.
    """
    columns = view.columns(section)
    if not columns or not view.blocks():
        return []
    if view.masks:
        tables = (
            _many_structures(view, columns, caption) if view.many else _structures(view, columns, caption)
        )
    else:
        tables = _many_cases(view, columns, caption) if view.many else _cases(view, columns, caption)
    return [t.build() for t in tables if t.rows]


def stages_of(view: View, columns: Sequence[Column]) -> tuple[str | None, ...]:
    """The stages of recalibration with numbers, or only None if stages make no difference."""
    names = {c.name for c in columns}
    found = {m.stage for b in view.results.blocks for m in b.measures if m.name in names}
    return tuple(s for s in STAGES if s in found) or (None,)


def number_cells(
    table: TableBuilder,
    view: View,
    block: Block | None,
    columns: Sequence[Column],
    part: str | None = None,
    stages: Sequence[str | None] = (None,),
) -> list[Cell]:
    """The cells of one row."""
    found = [view.get(block, column, part, stage) for column in columns for stage in stages]
    return [table.number(measure.estimate if measure else None) for measure in found]


def status_text(block: Block, structure: str) -> str:
    """`240: 228 in both, 12 missed`."""
    counts = block.statuses.get(structure, {})
    shown = [f"{n} {STATUS_WORDS[status]}" for status, n in counts.items() if n]
    return f"{sum(counts.values())}: {', '.join(shown)}" if shown else DASH


def _cases(view: View, columns: list[Column], caption: str) -> Iterator[TableBuilder]:
    stages = stages_of(view, columns)
    staged = stages != (None,)
    caption += f" {' and '.join(str(s) for s in stages)} recalibration" if staged else ""
    heads = ("Model", "Cases for", *(["Recalibration"] if staged else []), *(c.head for c in columns))
    table = TableBuilder(caption, heads)
    for block in view.blocks():
        for stage in stages:
            cells = number_cells(table, view, block, columns, stages=(stage,))
            if any(cell.value is not None for cell in cells):
                lead = [stage] if stage is not None else []
                table.row(view.name(block.model, block.finding), view.role(block), *lead, *cells)
    yield table


def _many_cases(view: View, columns: list[Column], caption: str) -> Iterator[TableBuilder]:
    domains = [d for d in PLACES if view.blocks(d)]
    stages = stages_of(view, columns)
    models = [(m, f) for m in view.models for f in view.parts]
    if stages != (None,):
        for stage in stages:
            heads = ("Model", *(c.head for c in columns))
            table = TableBuilder(f"{caption} {stage} recalibration, {view.place().lower()}", heads)
            for model, finding in models:
                cells = number_cells(
                    table, view, view.block(model, finding=finding), columns, stages=(stage,)
                )
                table.row(view.name(model, finding), *cells)
            yield table
        return
    together = len(columns) * len(domains) <= MOST_ACROSS
    for group in [domains] if together else [[d] for d in domains]:
        place = "" if together else f", {view.place(group[0]).lower()}"
        heads = tuple(
            f"{c.head}, {view.place(d).lower()}" if together else c.head for d in group for c in columns
        )
        table = TableBuilder(caption + place, ("Model", *heads))
        for model, finding in models:
            blocks = [view.block(model, d, finding) for d in group]
            cells = [cell for b in blocks for cell in number_cells(table, view, b, columns)]
            table.row(view.name(model, finding), *cells)
        yield table


def _structures(view: View, columns: list[Column], caption: str) -> Iterator[TableBuilder]:
    stages = stages_of(view, columns)
    staged = stages != (None,)
    caption += f" {' and '.join(str(s) for s in stages)} recalibration" if staged else ""
    heads = [c.head + (f", {s}" if s else "") for c in columns for s in stages]
    roles: dict[str, list[Block]] = {}
    for block in view.blocks():
        roles.setdefault(view.role(block), []).append(block)
    for role, blocks in roles.items():
        lead, last = ("Structure", "Model"), () if staged else ("Masks",)
        table = TableBuilder(f"{caption}, {role.lower()}", (*lead, *heads, *last))
        if not staged:
            table.notes.append(STATUS_NOTE)
        for part in view.parts:
            again = False
            for block in blocks:
                cells = number_cells(table, view, block, columns, part, stages)
                if part is None and all(cell.value is None for cell in cells):
                    continue
                masks = () if staged else (status_text(block, part) if part is not None else "",)
                first = Cell(part or WHOLE, tone="again" if again else "")
                table.row(first, view.name(block.model), *cells, *masks)
                again = True
        yield table


def _many_structures(view: View, columns: list[Column], caption: str) -> Iterator[TableBuilder]:
    stages = stages_of(view, columns)
    blocks = {m: view.block(m) for m in view.models}
    place = view.place().lower()
    meant = any(view.get(b, c, view.whole, s) for b in blocks.values() for c in columns for s in stages)
    for part in (view.whole,) if meant else view.results.classes[:MOST_COLUMNS]:
        about = "" if len(view.parts) == 1 else ", mean over the structures" if part is None else f", {part}"
        shown = [c for c in columns if any(view.get(b, c, part, s) for b in blocks.values() for s in stages)]
        heads = [c.head + (f", {s}" if s else "") for c in shown for s in stages]
        table = TableBuilder(f"{caption}{about}, {place}", ("Model", *heads))
        for model, block in blocks.items():
            table.row(view.name(model), *number_cells(table, view, block, shown, part, stages))
        yield table
    if not meant or len(view.parts) == 1 or len(view.results.classes) > MOST_COLUMNS:
        return
    for column in (c for c in columns if MEASURES[c.name].main and c.kind is None):
        heads = [c + (f", {s}" if s else "") for c in view.results.classes for s in stages]
        compact = len(heads) < MOST_ACROSS
        table = TableBuilder(f"{column.head} of each structure, {place}", ("Model", *heads), compact=compact)
        for model, block in blocks.items():
            cells = [number_cells(table, view, block, [column], c, stages) for c in view.results.classes]
            table.row(view.name(model), *(cell for own in cells for cell in own))
        yield table
