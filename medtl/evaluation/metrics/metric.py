"""The contract of a metric: its name, its wording in the report, and its computation.

A metric is defined in one file of this folder, in the module's `METRICS`, and nowhere else: `registry` finds it there,
and the engine, results.json and the tables of the page take it from the registry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from medtl.errors import ConfigError, near_matches
from medtl.evaluation.statistics.arrays import Floats
from medtl.evaluation.statistics.estimate import Estimate
from medtl.evaluation.statistics.resample import Support

if TYPE_CHECKING:
    from medtl.evaluation.metrics.pair import MaskPair
    from medtl.evaluation.metrics.sample import Cases, Draw
    from medtl.evaluation.metrics.voxels import VoxelStage

TASKS = ("classification", "segmentation")
SECTIONS = ("discrimination", "calls", "overlap", "surfaces", "volumes", "calibration", "shares")
"""Sections of the page whose tables list metrics, in the order of the report."""
INTERVALS = ("auroc", "proportion", "mean", "percentile", "point")
EMPTY_RULES = ("share", "distance", "defined")
KINDS = {
    "positive": "probability of the positive class",
    "top_label": "probability of the most probable class",
    "classwise": "mean over the classes",
}
"""What a calibration error refers to."""


@dataclass(frozen=True)
class Key:
    """Name of one number; fields as in `medtl.evaluation.results.Measure`."""

    name: str
    cls: str | None = None
    stage: str | None = None
    kind: str | None = None


Values = Floats | dict[Key, Floats]
"""One value per resample, (b,); or several by their key, where a metric has one for each class or stage."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric; the part that all tasks share.

    Attributes:
        name: its key in `MEASURES` and in results.json.
        title: as it stands in tables.
        definition: what it is, for the report.
        section: the section of the page whose tables list it, one of `SECTIONS`.
        interval: one of `INTERVALS`; see `medtl.evaluation.statistics.resample.estimate`.
        better: `higher`, `lower`, or "" where neither is.
        unit: "" (none), `distance` (that of `SegmentationRules.unit`), `volume` (that of `volume_unit`), `tolerance`
            (a share that depends on `SegmentationRules.tolerance`), or a unit by its own name.
        paired: whether differences between models are reported.
        headline: 1 for the metric that models are ranked by first, 2 for the next, 0 for all others.
        main: whether it stands where there is room for few, as in the tables of sites and of training seeds.
        task: `classification` or `segmentation`.
    """

    name: str
    title: str
    definition: str
    section: str
    interval: str
    better: str
    unit: str = ""
    paired: bool = False
    headline: int = 0
    main: bool = False
    task: str = field(default="", init=False)

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


def every_class(cases: Cases, key: Key) -> Support:
    """The support of most metrics of a classification: all labelled cases, few where a class has few patients."""
    return cases.support()


@dataclass(frozen=True, kw_only=True)
class ClassificationMetric(Metric):
    """A metric of classifications.

    Attributes:
        compute: its values on resamples of the patients.
        support: what one of its numbers rests on.
        over_classes: whether it is a mean over the classes: it needs two, and its status says if one is absent.
        needs_reference: whether it needs cases with a reference standard.
        within_class: whether patients are drawn within their class. False where the shares of the classes are the
            question, which would then hardly vary.
        limits: its limits where all resamples give one value, and how they were had, from the estimates of other
            metrics (by name) and the stated prevalence; None for those of the resamples.
    """

    compute: Callable[[Draw], Values]
    support: Callable[[Cases, Key], Support] = every_class
    over_classes: bool = False
    needs_reference: bool = True
    within_class: bool = True
    limits: Callable[[Callable[[str], Estimate], float], tuple[float, float, str]] | None = None
    task: str = field(default="classification", init=False)


def mean_over_cases(mean: Floats, deviation: Floats) -> Floats:
    """Summarises the cases by their mean, as most mask metrics do."""
    return mean


@dataclass(frozen=True, kw_only=True)
class MaskMetric(Metric):
    """A metric of segmentations: a number for each case and structure, and a summary over the cases.

    It comes from the two masks of a case (`from_masks`), which are then measured once and kept in a column of
    `measure_cases`, or from such columns (`from_columns`); exactly one of the two is given.

    Attributes:
        from_masks: the value of a case.
        from_columns: the values (n,) of the cases, from their columns (n,) by name.
        column: name of the column of `from_masks` (default: that of the metric).
        empty: where a structure is in one mask alone or in neither, `EmptyPolicy` gives a `share` or a `distance`;
            `defined` asks `from_masks` there as well.
        over_cases: the number that sums up the cases, from their mean (b,) and standard deviation (b,).
        over_structures: whether the mean over the structures is reported. Volumes of different organs have none.
        median: whether the median over cases is given beside it, as a description.
    """

    from_masks: Callable[[MaskPair], float] | None = None
    from_columns: Callable[[Mapping[str, Floats]], Floats] | None = None
    column: str = ""
    empty: str = "share"
    over_cases: Callable[[Floats, Floats], Floats] = mean_over_cases
    over_structures: bool = True
    median: bool = False
    task: str = field(default="segmentation", init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.from_masks is None) == (self.from_columns is None):
            raise ConfigError(
                f"The metric {self.name!r} is computed from masks or from columns: give one of the two."
            )
        if self.empty not in EMPTY_RULES:
            hint = near_matches(self.empty, EMPTY_RULES)
            raise ConfigError(f"The metric {self.name!r} has the rule {self.empty!r} for empty masks. {hint}")
        if not self.column:
            object.__setattr__(self, "column", self.name)


@dataclass(frozen=True, kw_only=True)
class VoxelMetric(Metric):
    """A metric of voxel probabilities, from the histograms beside a table of segmentations.

    Attributes:
        from_voxels: its values (b,) on resamples (b, P) of the patients, before or after the temperature.
    """

    from_voxels: Callable[[VoxelStage, Floats], Floats]
    task: str = field(default="segmentation", init=False)
