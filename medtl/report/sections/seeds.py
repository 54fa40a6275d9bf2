"""The main metrics of single training seeds."""

from __future__ import annotations

from medtl.report.parts import NOTHING, Cell, Section, TableBuilder, plain
from medtl.report.view import View

ORDER = 95


def section(view: View) -> Section | None:
    """One row per model and seed; with many models, one row per model."""
    if all(len(b.seeds) < 2 for b in view.results.blocks):
        return None
    table = _many(view) if view.many else _few(view)
    text = "Intervals elsewhere cover the choice of patients; they do not include the spread over training seeds."
    return Section("seeds", "Training seeds", text=(text,), tables=(table.build(),))


def _few(view: View) -> TableBuilder:
    columns = view.brief()
    heads = ("Model", "Cases for", "Training seed", *(c.head for c, _ in columns))
    table = TableBuilder("Values of single training seeds", heads, compact=True)
    for block in view.blocks():
        for k, seed in enumerate(block.seeds):
            found = [view.get(block, column, part) for column, part in columns]
            cells = [plain(m.per_seed.get(seed)) if m else NOTHING for m in found]
            name = view.name(block.model, block.finding, again=k > 0)
            table.row(name, view.role(block), seed, *cells)
    return table


def _many(view: View) -> TableBuilder:
    seeds = list(dict.fromkeys(s for b in view.blocks(view.domain) for s in b.seeds))
    caption = f"{view.headline_title} of single training seeds, {view.place().lower()}"
    table = TableBuilder(caption, ("Model", *(f"Seed {s}" for s in seeds)), compact=True)
    for block in view.blocks(view.domain):
        part = view.whole if view.masks else block.finding
        measure = view.headline(block.model, part=part)
        cells: list[Cell] = [plain(measure.per_seed.get(s) if measure else None) for s in seeds]
        table.row(view.name(block.model, block.finding), *cells)
    return table
