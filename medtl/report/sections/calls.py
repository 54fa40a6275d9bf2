"""Predicted classes, at the frozen operating point or by the most probable class."""

from __future__ import annotations

from medtl.evaluation.results import Block
from medtl.evaluation.statistics.estimate import format_number
from medtl.report.parts import BOUND_NOTE, Cell, Section, Table, TableBuilder
from medtl.report.tables import metric_tables
from medtl.report.view import View

ORDER = 45


def section(view: View) -> Section | None:
    """Sensitivity, specificity and related measures, and the confusion matrices."""
    positive, prevalence = view.results.positive, view.results.prevalence
    title = "Calls at the frozen operating point" if positive else "Calls of the most probable class"
    tables = metric_tables(view, "calls", title)
    if not tables:
        return None
    text: tuple[str, ...] = ()
    if prevalence is not None:
        text = (
            f"PPV and NPV hold at a stated prevalence of {100 * prevalence:g} %, not at the share in this sample.",
        )
    elif positive is not None:
        text = (
            "No prevalence was stated, so PPV and NPV are not given: those of the sample would not be those of a "
            "clinic.",
        )
    drawn = [b for b in view.blocks(drawn=True) if b.confusion]
    drawn = [b for b in drawn if b.domain == "target"] or drawn
    return Section(
        "calls",
        "Calls, sensitivity and specificity" if positive else "Calls and recalls",
        text=text,
        tables=(*tables, *(_confusion(view, b) for b in drawn)),
    )


def _confusion(view: View, block: Block) -> Table:
    model = view.name(block.model, block.finding)
    tag = f" ({model.tag})" if model.tag else ""
    seeds = ", mean over training seeds" if len(block.seeds) > 1 else ""
    what = "cases by reference standard (rows) and call (columns)"
    caption = f"{model.text}{tag}, {view.role(block).lower()}: {what}{seeds}"
    table = TableBuilder(caption, ("", *view.results.classes), compact=True)
    for name, row in zip(view.results.classes, block.confusion or (), strict=True):
        total = sum(row) or 1.0
        whole = all(float(v).is_integer() for v in row)
        table.row(name, *(Cell(format_number(v, 0 if whole else 1), v, heat=v / total) for v in row))
    if model.tag:
        table.notes.append(BOUND_NOTE)
    return table.build()
