"""Overlap of the masks with the reference."""

from __future__ import annotations

from medtl.report.parts import Section, Table, TableBuilder
from medtl.report.tables import STATUS_NOTE, metric_tables, status_text
from medtl.report.view import MOST_COLUMNS, View

ORDER = 50


def section(view: View) -> Section | None:
    """Dice and related measures."""
    tables = metric_tables(view, "overlap", "Overlap with the reference")
    rules = view.results.segmentation
    if not tables or rules is None:
        return None
    if view.many and len(view.results.classes) <= MOST_COLUMNS:
        tables.append(_masks(view))
    text = f"Means over cases with intervals from resampled patients; medians are descriptive. {rules.empty}"
    return Section("overlap", "Overlap", text=(text,), tables=tuple(tables))


def _masks(view: View) -> Table:
    """The number of masks that hold each structure; with few models, it stands beside the numbers."""
    classes = view.results.classes
    table = TableBuilder(f"Masks that hold a structure, {view.place().lower()}", ("Model", *classes))
    for block in view.blocks(view.domain):
        table.row(view.name(block.model), *(status_text(block, c) for c in classes))
    table.notes.append(STATUS_NOTE)
    return table.build()
