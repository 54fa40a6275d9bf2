"""The main results as rows of text, for a terminal."""

from __future__ import annotations

from medtl.evaluation.metrics.registry import MEASURES
from medtl.evaluation.results import Block, Results
from medtl.evaluation.statistics.estimate import format_estimate
from medtl.report.parts import BOUND
from medtl.report.view import PLACES, View


def summary_rows(results: Results) -> list[dict[str, str]]:
    """One row per model, place and finding or structure; external testing first.

    Args:
        results: of one evaluation.
    """
    view = View(results)
    rows = []
    for block in view.blocks(labelled=False):
        name = block.model + (f" ({BOUND})" if block.model in view.bounds else "")
        place = PLACES[block.domain].lower()
        if block.split == "validation":
            place = f"{block.domain} validation"
        lead = {"model": name, "tested on": place}
        if view.masks:
            rows += [lead | _structure(view, block, structure) for structure in results.classes]
        else:
            finding = {"finding": block.finding} if block.finding is not None else {}
            rows.append(lead | {"cases": str(block.num_labelled)} | finding | _numbers(view, block))
    return rows


def _numbers(view: View, block: Block, structure: str | None = None) -> dict[str, str]:
    found = {}
    for column, part in view.brief():
        measure = view.get(block, column, structure) if part in (None, structure) else None
        if measure is not None and measure.estimate.value is not None:
            title = view.title(column.name) if view.masks else column.name.replace("_", " ")
            found[title] = format_estimate(measure.estimate)
    return found


def _structure(view: View, block: Block, structure: str) -> dict[str, str]:
    first = view.headlines[0] if view.headlines else ""
    measure = block.get(first, cls=structure, kind=None)
    row = {"structure": structure, "cases": str(measure.estimate.n if measure is not None else 0)}
    row |= _numbers(view, block, structure)
    for d in view.differences(block.domain, blank=True):
        if (d.model, d.name, d.cls) == (block.model, first, structure):
            row[f"{MEASURES[first].title} against {d.reference}"] = d.verdict
    return row
