"""What a metric is: its name, its words for the report, and how it is computed.

A metric stands in one file of this folder, in the module's `METRICS`, and nowhere else: `registry` finds it there.
"""

from __future__ import annotations

from dataclasses import dataclass

from medtl.errors import ConfigError, near_matches

TASKS = ("classification", "segmentation")
SECTIONS = ("discrimination", "calls", "overlap", "surfaces", "volumes", "calibration", "shares")
"""Sections of the page whose tables list metrics, in the order of the report."""
INTERVALS = ("auroc", "proportion", "mean", "percentile", "point")
KINDS = {
    "positive": "probability of the positive class",
    "top_label": "probability of the most probable class",
    "classwise": "mean over the classes",
}
"""What a calibration error is about."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric.

    Attributes:
        name: its key in `MEASURES` and in results.json.
        task: `classification` or `segmentation`.
        title: as it stands in tables.
        definition: what it is, for the report.
        section: the section of the page whose tables list it, one of `SECTIONS`.
        interval: one of `INTERVALS`; see `medtl.evaluation.statistics.resample.estimate`.
        better: `higher`, `lower`, or "" where neither is.
        unit: "" (none), `distance` (that of `SegmentationRules.unit`), `volume` (that of `volume_unit`), or a unit by
            its own name.
        paired: whether differences between models are reported.
        headline: 1 for the metric that models are ranked by first, 2 for the next, 0 for all others.
        main: whether it stands where there is room for few, as in the tables of sites and of training seeds.
    """

    name: str
    task: str
    title: str
    definition: str
    section: str
    interval: str
    better: str
    unit: str = ""
    paired: bool = False
    headline: int = 0
    main: bool = False

    def __post_init__(self) -> None:
        for what, known in (
            ("task", TASKS),
            ("section", SECTIONS),
            ("interval", INTERVALS),
            ("better", ("higher", "lower", "")),
        ):
            value = getattr(self, what)
            if value not in known:
                hint = near_matches(value, known)
                raise ConfigError(f"The metric {self.name!r} has the {what} {value!r}. {hint}")
