"""The main metrics site by site."""

from __future__ import annotations

from medtl.report.parts import Cell, Section, TableBuilder
from medtl.report.tables import number_cells
from medtl.report.view import SIDES, View

ORDER = 90


def section(view: View) -> Section | None:
    """One row per site and model."""
    blocks = view.sites()
    if not blocks:
        return None
    columns = view.brief()
    heads = ("Site", "Model", "Patients", "Cases", *(c.head for c, _ in columns))
    table = TableBuilder("Results by site", heads)
    last = ""
    for block in blocks:
        place = f"{block.site} ({SIDES[block.domain]})"
        cells = [
            cell for column, part in columns for cell in number_cells(table, view, block, [column], part)
        ]
        lead = (Cell(place, tone="again" if place == last else ""), view.name(block.model, block.finding))
        table.row(*lead, block.num_patients, block.num_labelled, *cells)
        last = place
    text = ("With few sites their spread is shown, not estimated.",)
    if not view.masks:
        text = ("Settings are the same at every site. With few sites their spread is shown, not estimated.",)
    return Section("sites", "Sites", text=text, tables=(table.build(),))
