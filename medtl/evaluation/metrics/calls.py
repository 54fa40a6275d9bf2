"""Correct predictions: accuracy, sensitivity and specificity, predictive values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from medtl.evaluation.metrics.metric import ClassificationMetric, Key, Values
from medtl.evaluation.metrics.operating import ppv_npv
from medtl.evaluation.metrics.sample import Cases, Draw, Sample
from medtl.evaluation.statistics.arrays import Floats, divide, sum_by_patient
from medtl.evaluation.statistics.estimate import Estimate
from medtl.evaluation.statistics.resample import Support


def _cells(sample: Sample) -> Floats:
    """(P, K K) weights of each patient's labelled cases, by class and call."""
    k = len(sample.cases.classes)
    cells = np.eye(k * k)[sample.label * k + sample.called[sample.cases.labelled]]
    return sum_by_patient(cells * sample.weight[:, None], sample.patient, sample.cases.num_patients)


def confusion(draw: Draw) -> Floats:
    """(b, K, K) weights of the cases: rows = reference standard, columns = called."""
    k = len(draw.sample.cases.classes)
    return np.asarray((draw.counts @ draw.sample.prepared(_cells)).reshape(-1, k, k))


def recalls(draw: Draw) -> Floats:
    """(b, K) share of each class that is predicted correctly; nan if a resample has no case of it."""
    cells = draw.shared(confusion)
    return divide(np.diagonal(cells, axis1=1, axis2=2), cells.sum(axis=2))


def _balanced_accuracy(draw: Draw) -> Values:
    present = draw.sample.cases.present
    if len(present) < 2:
        return np.full(len(draw.counts), np.nan)
    return np.asarray(draw.shared(recalls)[:, present].mean(axis=1))


def _accuracy(draw: Draw) -> Values:
    cells = draw.shared(confusion)
    right = np.diagonal(cells, axis1=1, axis2=2).sum(axis=1)
    return divide(right, cells.sum(axis=2).sum(axis=1))


def _of_one_class(draw: Draw, events: bool) -> Values:
    """The share called right of the cases with the event, or of those without."""
    positive = draw.sample.cases.positive
    return {} if positive is None else draw.shared(recalls)[:, positive if events else 1 - positive]


def _recall(draw: Draw) -> Values:
    cases = draw.sample.cases
    if cases.positive is not None:
        return {}
    return {Key("recall", cases.classes[c]): draw.shared(recalls)[:, c] for c in cases.present}


def _predictive(draw: Draw, which: int) -> Values:
    positive, prevalence = draw.sample.cases.positive, draw.sample.prevalence
    if positive is None or prevalence is None:
        return {}
    found = draw.shared(recalls)
    return ppv_npv(found[:, positive], found[:, 1 - positive], prevalence)[which]


def _bayes(which: int, found: Callable[[str], Estimate], prevalence: float) -> tuple[float, float, str]:
    """Limits by Bayes' rule from those of sensitivity and specificity."""
    sensitivity, specificity = found("sensitivity"), found("specificity")
    lowest = ppv_npv(sensitivity.lo or 0.0, specificity.lo or 0.0, prevalence)
    highest = ppv_npv(_upper(sensitivity), _upper(specificity), prevalence)
    return float(lowest[which]), float(highest[which]), "limits of sensitivity and specificity"


def _upper(found: Estimate) -> float:
    return 1.0 if found.hi is None else found.hi


def all_patients(cases: Cases, key: Key) -> Support:
    """The support of a share of all labelled cases, which does not depend on rare classes."""
    found = cases.support()
    return replace(found, smaller=found.num_patients)


def _mean_of_classes(cases: Cases, key: Key) -> Support:
    """A mean of shares varies as one share of so many patients: the classes' harmonic mean, times their number."""
    each = cases.patients_by_class()
    effective = len(each) ** 2 / sum(1 / k for k in each) if min(each) else 0.0
    return replace(cases.support(), effective=effective)


def _own_class(cases: Cases, key: Key) -> Support:
    if key.cls is not None:
        return cases.support_of(cases.classes.index(key.cls))
    assert cases.positive is not None
    return cases.support_of(cases.positive if key.name == "sensitivity" else 1 - cases.positive)


METRICS = (
    ClassificationMetric(
        name="balanced_accuracy",
        title="Balanced accuracy",
        definition=(
            "Mean over the classes of the share of their cases that is called right. With two classes "
            "it is the mean of sensitivity and specificity at the operating point."
        ),
        section="calls",
        interval="proportion",
        better="higher",
        paired=True,
        headline=1,
        main=True,
        compute=_balanced_accuracy,
        support=_mean_of_classes,
        over_classes=True,
    ),
    ClassificationMetric(
        name="accuracy",
        title="Accuracy",
        definition=("Share of all cases that is called right; it depends on how frequent each class is."),
        section="calls",
        interval="proportion",
        better="higher",
        paired=True,
        compute=_accuracy,
        support=all_patients,
    ),
    ClassificationMetric(
        name="sensitivity",
        title="Sensitivity",
        definition="Share of the positive cases at or above the frozen operating point.",
        section="calls",
        interval="proportion",
        better="higher",
        paired=True,
        main=True,
        compute=partial(_of_one_class, events=True),
        support=_own_class,
    ),
    ClassificationMetric(
        name="specificity",
        title="Specificity",
        definition="Share of the negative cases below the frozen operating point.",
        section="calls",
        interval="proportion",
        better="higher",
        paired=True,
        main=True,
        compute=partial(_of_one_class, events=False),
        support=_own_class,
    ),
    ClassificationMetric(
        name="recall",
        title="Recall",
        definition="Share of the cases of one class that is called that class.",
        section="calls",
        interval="proportion",
        better="higher",
        compute=_recall,
        support=_own_class,
    ),
    ClassificationMetric(
        name="ppv",
        title="PPV",
        definition=(
            "Chance that a case called positive is positive, at the stated prevalence (Bayes' rule), "
            "not at the share in this sample."
        ),
        section="calls",
        interval="percentile",
        better="higher",
        compute=partial(_predictive, which=0),
        limits=partial(_bayes, 0),
    ),
    ClassificationMetric(
        name="npv",
        title="NPV",
        definition="Chance that a case called negative is negative, at the stated prevalence.",
        section="calls",
        interval="percentile",
        better="higher",
        compute=partial(_predictive, which=1),
        limits=partial(_bayes, 1),
    ),
)
