"""How often each class is predicted, and how often it occurs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from medtl.evaluation.metrics.calls import all_patients, confusion
from medtl.evaluation.metrics.metric import ClassificationMetric, Key, Values
from medtl.evaluation.metrics.sample import Cases, Draw, Sample
from medtl.evaluation.statistics.arrays import Floats, divide, sum_by_patient
from medtl.evaluation.statistics.resample import Support


def _calls(sample: Sample) -> Floats:
    """(P, K) weights of each patient's cases, labelled or not, by call."""
    cases = sample.cases
    called = np.eye(len(cases.classes))[sample.called]
    return sum_by_patient(called * cases.weight[:, None], cases.patient, cases.num_patients)


def _shares(name: str, sums: Floats, classes: tuple[str, ...]) -> Values:
    total = sums.sum(axis=1)
    return {Key(name, c): divide(sums[:, k], total) for k, c in enumerate(classes)}


def _predicted(draw: Draw) -> Values:
    return _shares("predicted_share", draw.counts @ draw.sample.prepared(_calls), draw.sample.cases.classes)


def _observed(draw: Draw) -> Values:
    return _shares("observed_share", draw.shared(confusion).sum(axis=2), draw.sample.cases.classes)


def _all_cases(cases: Cases, key: Key) -> Support:
    patients = cases.num_patients
    return Support(len(cases.label), patients, None, patients, patients)


def _one_class(cases: Cases, key: Key) -> Support:
    events = cases.cases_with(cases.classes.index(str(key.cls)))
    return replace(all_patients(cases, key), num_events=events)


METRICS = (
    ClassificationMetric(
        name="predicted_share",
        title="Share called",
        definition="Share of all cases that is called one class.",
        section="shares",
        interval="proportion",
        better="",
        compute=_predicted,
        support=_all_cases,
        needs_reference=False,
        within_class=False,
    ),
    ClassificationMetric(
        name="observed_share",
        title="Share by the reference standard",
        definition="Share of one class among the cases with a reference standard.",
        section="shares",
        interval="proportion",
        better="",
        compute=_observed,
        support=_one_class,
        within_class=False,
    ),
)
