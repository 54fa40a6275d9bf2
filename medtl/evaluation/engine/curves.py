"""ROC and reliability curves with their bands."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from medtl.evaluation.engine.groups import Group, Plan, Replicates, strata_of
from medtl.evaluation.engine.sample import Cases
from medtl.evaluation.metrics.calibration import SmoothCurve
from medtl.evaluation.results import Curve
from medtl.evaluation.statistics.arrays import Floats, Ints, seed_from
from medtl.evaluation.statistics.resample import patient_counts

CURVE_REPLICATES = 500
"""Resamples for the bands of curves: a band needs fewer than a reported limit."""
ROC_GRID = tuple(float(x) for x in np.round(np.linspace(0, 1, 51), 2))


def make_curves(plan: Plan, group: Group, cases: Cases, run: Replicates, rows: Ints) -> Iterator[Curve]:
    """ROC curves (mean over seeds at each false positive rate) and reliability curves (seeds pooled)."""
    strata = strata_of(plan, cases, rows)
    draw = seed_from(plan.seed, group.domain, group.split, group.site, group.finding)

    def counts() -> Iterator[Floats]:
        return patient_counts(strata, min(CURVE_REPLICATES, plan.replicates), draw, len(cases.label))

    once = np.ones((1, cases.num_patients))
    samples = list(run.samples.values())
    grid = np.array(ROC_GRID)
    for c in samples[0].ranked:
        mean = np.mean([s.ranked[c].sensitivity_at(once, grid)[0] for s in samples], axis=0)
        drawn = np.concatenate(
            [np.mean([s.ranked[c].sensitivity_at(w, grid) for s in samples], axis=0) for w in counts()]
        )
        lo, hi = _band(mean, drawn, plan.level)
        yield Curve("roc", ROC_GRID, _floats(mean), lo, hi, cls=cases.classes[c])
    for stage in ("before", "after"):
        if not all(stage in s.stages for s in samples):
            continue
        pairs = [s.reliability_pair(stage) for s in samples]
        predicted, observed = (np.concatenate([p[i] for p in pairs]) for i in (1, 2))
        patient, weight = (np.concatenate([s.labelled_rows[i] for s in samples]) for i in (0, 1))
        smooth = SmoothCurve.prepare(predicted, observed, patient, cases.num_patients, weight=weight)
        drawn = np.concatenate([smooth.at(w) for w in counts()])
        curve = smooth.at(once)[0]
        lo, hi = _band(curve, drawn, plan.level)
        bars = np.histogram(predicted, bins=10, range=(0, 1))[0] / len(predicted)
        yield Curve(
            "reliability",
            _floats(smooth.grid),
            _floats(curve),
            lo,
            hi,
            stage=stage,
            kind=pairs[0][0],
            histogram=_floats(bars),
        )


def _band(curve: Floats, drawn: Floats, level: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Percentiles at each point; the curve itself stands in where a resample has no value."""
    lo, hi = np.quantile(
        np.where(np.isfinite(drawn), drawn, curve), [(1 - level) / 2, (1 + level) / 2], axis=0
    )
    return _floats(lo), _floats(hi)


def _floats(values: Floats) -> tuple[float, ...]:
    return tuple(float(v) for v in np.round(values, 6))
