"""Agreement of the segmented volumes with the reference's."""

from __future__ import annotations

from medtl.report.parts import Section
from medtl.report.tables import metric_tables
from medtl.report.view import View

ORDER = 60


def section(view: View) -> Section | None:
    """Bias, limits of agreement, and absolute error."""
    rules = view.results.segmentation
    if rules is None or not any(b.get("volume_bias") for b in view.results.blocks):
        return None
    what, one = ("Areas", "an area") if rules.unit == "px" else ("Volumes", "a volume")
    tables = metric_tables(view, "volumes", what)
    text = (
        "Bias is the mean of segmented minus reference; 95 % of the cases are expected between the limits of "
        f"agreement. An empty mask is {one} of 0 and counts.",
    )
    return Section("volumes", what, text=text, tables=tuple(tables)) if tables else None
