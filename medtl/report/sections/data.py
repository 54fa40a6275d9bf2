"""The origin and number of the cases."""

from __future__ import annotations

from medtl.evaluation.results import Block
from medtl.report.parts import DASH, Cell, Section, Table, TableBuilder
from medtl.report.view import View

ORDER = 10


def section(view: View) -> Section:
    """The tested patients and their number."""
    results = view.results
    first = next((b.finding for b in results.blocks), None)
    heads = [f"{c} in the reference" if view.masks else c for c in results.classes]
    if results.task == "multilabel":
        heads = ["Findings present"]
    table = TableBuilder(
        "Cases in this evaluation",
        ("Cases for", "Site", "Patients", "Cases", "With reference standard", *heads),
    )
    # All models that were taken to a place have the same cases there; no model need have been taken to all places.
    places = {(b.domain, b.split, b.site): b for b in reversed(results.blocks) if b.finding == first}
    for block in results.blocks:
        if block is places.get((block.domain, block.split, block.site)):
            site = block.site if block.site is not None else "all sites"
            sizes = (block.num_patients, block.num_cases, block.num_labelled)
            table.row(view.role(block), site, *sizes, *_counts(view, block))
    tables = [_flow(view), table.build()] if results.context.flow else [table.build()]
    given, chosen = ("labels", "temperature and operating point were fitted")
    if view.masks:
        given, chosen = ("masks", "the end of training and the temperatures were chosen")
    text = (
        f"External testing: patients of a site that gave no {given} to training. Internal testing: patients of the "
        f"source site(s) who were not trained on. Tuning cases: patients of the source on whom {chosen}. Each patient "
        "belongs to one of these groups only.",
    )
    return Section("data", "Data and flow", text=text, tables=tuple(tables))


def _counts(view: View, block: Block) -> list[str]:
    results = view.results
    if results.task == "multilabel":
        place = (block.model, block.domain, block.split, block.site)
        found = [b for b in results.blocks if (b.model, b.domain, b.split, b.site) == place]
        present = results.positive or results.classes[-1]
        return [", ".join(f"{b.finding} {b.class_cases[present]}" for b in found)]
    if not block.num_labelled:
        return [DASH] * len(results.classes)
    return [
        f"{block.class_cases[c]} ({block.class_patients[c]} patients)"
        if block.class_patients[c] != block.class_cases[c]
        else str(block.class_cases[c])
        for c in results.classes
    ]


def _flow(view: View) -> Table:
    """Counts from the folders to the cases as the run recorded them, numbers first, reasons last."""
    flow = {site: counts for site, counts in view.results.context.flow.items() if isinstance(counts, dict)}
    keys = list(dict.fromkeys(k for counts in flow.values() for k in counts))
    heads = (k.replace("_", " ").capitalize() for k in keys)
    table = TableBuilder("From the folders to the cases", ("Site", *heads))
    for site, counts in flow.items():
        cells = []
        for value in (counts.get(key) for key in keys):
            if isinstance(value, dict):
                parts = [f"{reason.replace('_', ' ')} {number}" for reason, number in value.items()]
                cells.append(Cell("; ".join(parts) or "none"))
            else:
                cells.append(Cell(DASH if value is None else str(value)))
        table.row(site, *cells)
    return table.build()
