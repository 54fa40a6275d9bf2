"""The engine's part for classification: every metric of a model's predictions on a group of cases."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np

from medtl.errors import ConfigError
from medtl.evaluation.engine.freeze import choose_positive, freeze
from medtl.evaluation.engine.groups import (
    CURVE_REPLICATES,
    Columns,
    Group,
    Measured,
    Resampling,
    Run,
    Runs,
    Task,
    band,
    groups,
    means,
    points,
    resample,
)
from medtl.evaluation.metrics.calibration import SmoothCurve, prepared_stages
from medtl.evaluation.metrics.calls import confusion
from medtl.evaluation.metrics.discrimination import ranked
from medtl.evaluation.metrics.metric import ClassificationMetric, Key
from medtl.evaluation.metrics.operating import check_rule
from medtl.evaluation.metrics.registry import MEASURES
from medtl.evaluation.metrics.sample import Cases, Draw, Sample
from medtl.evaluation.results import Block, Curve
from medtl.evaluation.statistics.arrays import Floats
from medtl.evaluation.statistics.estimate import Estimate
from medtl.evaluation.statistics.resample import estimate, patient_counts, patient_strata
from medtl.evaluation.tables.predictions import PredictionTable

ROC_GRID = tuple(float(x) for x in np.round(np.linspace(0, 1, 51), 2))


class Classified(Task):
    """The predictions of a table, with what was frozen on the source.

    Args:
        table: the predictions.
        resampling: of the patients.
        positive: as in `evaluate`; rule and prevalence likewise.

    Raises:
        ConfigError: an option that the table does not allow.
    """

    kind = "classification"

    def __init__(
        self,
        table: PredictionTable,
        resampling: Resampling,
        *,
        positive: str | None,
        rule: str,
        prevalence: float | None,
    ) -> None:
        self.table, self.resampling = table, resampling
        self.column, self.positive_reason = choose_positive(table, positive)
        rule = _check_options(table, rule, prevalence)
        self.name, self.classes, self.models = table.task, table.classes, table.models
        if self.column is not None:
            self.rule, self.positive = rule, table.classes[self.column]
        self.prevalence, self.num_clipped = prevalence, table.num_clipped
        # Where every patient is called like its case, nobody told which cases belong together.
        self.patients_known = not bool(np.all(table.case == table.patient))
        self._frozen = {
            Run(m, s, f): freeze(table, m, s, f, rule=rule, positive=self.column)
            for m in table.models
            for s in table.seeds(m)
            for f in table.findings
        }
        self.settings = tuple(self._frozen.values())

    def groups(self) -> Iterator[Group]:
        """For each finding: its groups of cases."""
        t = self.table
        rows = Columns(t.case, t.patient, t.domain, t.split, t.site, t.weight, t.model, t.seed, t.finding)
        return groups(rows, t.findings)

    def measure(self, group: Group, model: str) -> Runs:
        """Every number of one model on one group."""
        cases = self._cases(group)
        samples = {}
        for seed in group.seeds(model):
            run = Run(model, seed, group.finding)
            frozen = self._frozen[run]
            samples[seed] = Sample(
                cases,
                self.table.logits[group.rows[run]],
                frozen.operating_point,
                frozen.temperature,
                self.prevalence,
            )
        labelled = bool(cases.labelled.any())
        metrics = [m for m in MEASURES.values() if isinstance(m, ClassificationMetric)]
        metrics = [m for m in metrics if labelled or not m.needs_reference]
        within = [m for m in metrics if m.within_class]
        across = [m for m in metrics if not m.within_class]
        once = np.ones((1, group.num_patients))
        per_seed = {
            seed: {key: float(v[0]) for key, v in _values(metrics, sample, once).items()}
            for seed, sample in samples.items()
        }
        replicates: dict[Key, Floats] = {}
        for chosen, counts in ((within, self._counts(group, cases)), (across, self._counts(group, None))):
            if chosen:
                replicates |= resample(
                    {seed: partial(_values, chosen, sample) for seed, sample in samples.items()}, counts
                )
        value = means(per_seed, replicates)
        support = {key: _metric(key).support(cases, key) for key in replicates}
        status = {} if len(cases.present) == len(cases.classes) else _class_missing(cases, replicates)

        def of(name: str) -> Estimate:
            key = Key(name)
            kind = _metric(key).interval
            level = self.resampling.level
            return estimate(value[key], replicates[key], kind=kind, level=level, support=support[key])

        limits = {
            key: bound(of, self.prevalence)
            for key in replicates
            if (bound := _metric(key).limits) is not None and self.prevalence is not None
        }
        return Runs(
            value,
            replicates,
            per_seed,
            support,
            self._block(group, model, cases, samples),
            status=status,
            limits=limits,
        )

    def _cases(self, group: Group) -> Cases:
        first = next(iter(group.rows.values()))
        return Cases(
            label=self.table.label[first],
            patient=group.patient,
            num_patients=group.num_patients,
            weight=group.weight,
            classes=self.classes,
            positive=self.column,
        )

    def _counts(self, group: Group, cases: Cases | None, replicates: int | None = None) -> Iterator[Floats]:
        """Resamples of the patients within class and site; without `cases`, whatever their class."""
        draw = group.draw_seed(self.resampling.seed, group.finding)
        if cases is None:
            # Within a class the shares would hardly vary: here patients are drawn whatever their class.
            strata, draw = np.zeros(group.num_patients, dtype=np.int64), draw + 1
        else:
            strata = patient_strata(cases.label, cases.patient, cases.num_patients, group.site_index)
        return patient_counts(strata, replicates or self.resampling.replicates, draw, len(group.case))

    def _block(self, group: Group, model: str, cases: Cases, samples: Mapping[str, Sample]) -> Block:
        counted = None
        if len(cases.present):
            once = np.ones((1, cases.num_patients))
            mean = np.mean([Draw(s, once).shared(confusion)[0] for s in samples.values()], axis=0)
            counted = tuple(tuple(float(x) for x in row) for row in mean)
        curves: tuple[Curve, ...] = ()
        if group.whole and len(cases.present) > 1:
            number = min(CURVE_REPLICATES, self.resampling.replicates)
            drawn = partial(self._counts, group, cases, number)
            curves = tuple(_curves(cases, list(samples.values()), drawn, self.resampling.level))
        return group.block(
            model,
            num_labelled=int(cases.labelled.sum()),
            class_cases={name: cases.cases_with(c) for c, name in enumerate(cases.classes)},
            class_patients={name: cases.patients_with(c) for c, name in enumerate(cases.classes)},
            curves=curves,
            confusion=counted,
        )


def _check_options(table: PredictionTable, rule: str, prevalence: float | None) -> str:
    rule = check_rule(rule)
    if table.task == "multiclass" and (rule != "youden" or prevalence is not None):
        raise ConfigError(
            "An operating point and a prevalence are for tasks with two classes; this table has "
            f"{len(table.classes)} ({', '.join(table.classes)}), and the most probable class is called. "
            "Leave both out."
        )
    if prevalence is not None and not 0 < prevalence < 1:
        raise ConfigError(
            f"The prevalence must lie between 0 and 1, for instance 0.1; got {prevalence:g}. A percentage is "
            "divided by 100."
        )
    return rule


def _metric(key: Key) -> ClassificationMetric:
    found = MEASURES[key.name]
    assert isinstance(found, ClassificationMetric)
    return found


def _values(metrics: list[ClassificationMetric], sample: Sample, counts: Floats) -> Measured:
    draw = Draw(sample, counts)
    out: Measured = {}
    for metric in metrics:
        found = metric.compute(draw)
        out |= found if isinstance(found, dict) else {Key(metric.name): found}
    return out


def _class_missing(cases: Cases, replicates: Mapping[Key, Floats]) -> dict[Key, str]:
    """The status of means over the classes where a class has no case."""
    status = "one_class" if len(cases.present) < 2 else "class_missing"
    return {key: status for key in replicates if _metric(key).over_classes}


def _curves(
    cases: Cases, samples: list[Sample], counts: Callable[[], Iterator[Floats]], level: float
) -> Iterator[Curve]:
    """ROC curves (mean over seeds at each false positive rate) and reliability curves (seeds pooled)."""
    once = np.ones((1, cases.num_patients))
    grid = np.array(ROC_GRID)
    each = [sample.prepared(ranked) for sample in samples]
    for c in each[0]:

        def roc(drawn: Floats, c: int = c) -> Floats:
            return np.asarray(np.mean([own[c].sensitivity_at(drawn, grid) for own in each], axis=0))

        mean = roc(once)[0]
        lo, hi = band(mean, np.concatenate([roc(drawn) for drawn in counts()]), level)
        yield Curve("roc", ROC_GRID, points(mean), lo, hi, cls=cases.classes[c])
    for stage in ("before", "after"):
        if not all(stage in sample.stages for sample in samples):
            continue
        stages = [sample.prepared(prepared_stages)[stage] for sample in samples]
        predicted = np.concatenate([found.predicted for found in stages])
        observed = np.concatenate([found.observed for found in stages])
        patient = np.concatenate([sample.patient for sample in samples])
        weight = np.concatenate([sample.weight for sample in samples])
        smooth = SmoothCurve.prepare(predicted, observed, patient, cases.num_patients, weight=weight)
        curve = smooth.at(once)[0]
        lo, hi = band(curve, np.concatenate([smooth.at(drawn) for drawn in counts()]), level)
        bars = np.histogram(predicted, bins=10, range=(0, 1))[0] / len(predicted)
        yield Curve(
            "reliability",
            points(smooth.grid),
            points(curve),
            lo,
            hi,
            stage=stage,
            kind=stages[0].main,
            histogram=points(bars),
        )
