"""Where the cases come from: the section on data, and the counts from the folders to the cases."""

from __future__ import annotations

from medtl.evaluation.names import first_model
from medtl.evaluation.results import Results
from medtl.report.figures.figures import Drawing
from medtl.report.names import role
from medtl.report.parts import Cell, Section, Table, TableBuilder

_DASH = "\N{EN DASH}"


def data_section(results: Results, figures: dict[str, Drawing]) -> Section:
    """Who was tested, and how many."""
    tables = []
    if results.context.flow:
        tables.append(flow_table(results))
    table = TableBuilder(
        "Cases in this evaluation",
        ("Cases for", "Site", "Patients", "Cases", "With reference standard", *results.classes),
    )
    if results.task == "multilabel":
        table.columns = (*table.columns[:5], "Findings present")
    for block in results.blocks:
        if block.model != first_model(results, block.domain) or (
            block.finding is not None and block.finding != results.blocks[0].finding
        ):
            continue
        site = block.site if block.site is not None else "all sites"
        shown: list[str] = []
        if results.task == "multilabel":
            shown = [
                ", ".join(
                    f"{b.finding} {b.class_cases[results.positive or results.classes[-1]]}"
                    for b in results.blocks
                    if (b.model, b.domain, b.split, b.site)
                    == (block.model, block.domain, block.split, block.site)
                )
            ]
        elif block.num_labelled:
            shown = [
                f"{block.class_cases[c]} ({block.class_patients[c]} patients)"
                if block.class_patients[c] != block.class_cases[c]
                else str(block.class_cases[c])
                for c in results.classes
            ]
        else:
            shown = [_DASH] * len(results.classes)
        table.row(role(block), site, block.num_patients, block.num_cases, block.num_labelled, *shown)
    tables.append(table.build())
    text = (
        "External testing: patients of a site that gave no labels to training. Internal testing: patients of "
        "the source site(s) who were not trained on. Tuning cases: patients of the source on whom "
        "temperature and operating point were fitted. A patient belongs to one of these only.",
    )
    return Section("data", "Data and flow", text=text, tables=tuple(tables))


def flow_table(results: Results) -> Table:
    """Counts from the folders to the cases; whatever the run counted, numbers first, reasons last."""
    flow = {site: dict(counts) for site, counts in results.context.flow.items() if isinstance(counts, dict)}
    keys = list(dict.fromkeys(k for counts in flow.values() for k in counts))
    table = TableBuilder(
        "From the folders to the cases", ("Site", *(k.replace("_", " ").capitalize() for k in keys))
    )
    for site, counts in flow.items():
        cells = []
        for key in keys:
            value = counts.get(key)
            if isinstance(value, dict):
                parts = [f"{reason.replace('_', ' ')} {number}" for reason, number in value.items()]
                cells.append(Cell("; ".join(parts) or "none"))
            else:
                cells.append(Cell(_DASH if value is None else str(value)))
        table.row(site, *cells)
    return table.build()
