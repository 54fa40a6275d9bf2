"""Distances between the surfaces of mask and reference."""

from __future__ import annotations

from medtl.report.parts import Section
from medtl.report.tables import metric_tables
from medtl.report.view import View

ORDER = 55


def section(view: View) -> Section | None:
    """Surface Dice and distances."""
    tables = metric_tables(view, "surfaces", "Distances between surfaces")
    rules = view.results.segmentation
    if not tables or rules is None:
        return None
    widths = ", ".join(f"{c} {t:g} {rules.unit}" for c, t in rules.tolerance.items())
    text = f"Tolerance of the surface Dice (NSD): {widths}. HD95 is the larger of the two directed 95th percentiles."
    return Section("surfaces", "Surfaces", text=(text,), tables=tuple(tables))
