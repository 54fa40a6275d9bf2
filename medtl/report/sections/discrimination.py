"""How well the scores separate the classes."""

from __future__ import annotations

from medtl.report.parts import Section
from medtl.report.tables import metric_tables
from medtl.report.view import View

ORDER = 40


def section(view: View) -> Section | None:
    """AUROC; with more than two classes, of each class against the rest."""
    tables = metric_tables(view, "discrimination", "Discrimination")
    return Section("discrimination", "Discrimination", tables=tuple(tables)) if tables else None
