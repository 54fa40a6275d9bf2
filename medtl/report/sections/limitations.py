"""What a reader must keep in mind."""

from __future__ import annotations

from medtl.report.parts import Section
from medtl.report.view import View

ORDER = 110


def section(view: View) -> Section:
    """Caveats that apply to these results, then the run's own notes."""
    items = (*view.results.limitations, *view.results.context.notes)
    return Section("limitations", "Limitations", items=items or ("None were found by the automatic checks.",))
