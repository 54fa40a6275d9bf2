"""The distance of two sites in an encoder's features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtl.errors import DataError
from medtl.evaluation.metrics.discrimination import RankedScores
from medtl.evaluation.statistics.estimate import Estimate
from medtl.evaluation.statistics.resample import Support, estimate, patient_counts, patient_strata

FOLDS = 5


@dataclass(frozen=True)
class Distance:
    """How well a classifier separates two sites by their features.

    Attributes:
        auc: 0.5 is chance, 1 complete separation.
        a_distance: 2 (1 - 2 error), the error averaged over the sites: 0 is alike, 2 is apart.
    """

    auc: Estimate
    a_distance: Estimate


def domain_distance(
    source: NDArray[Any],
    target: NDArray[Any],
    source_patients: Sequence[Any] | NDArray[Any],
    target_patients: Sequence[Any] | NDArray[Any],
    *,
    replicates: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Distance:
    """Measures the distance of two sites by a logistic regression, evaluated on patients it has not seen.

    The labels of the task are not used. The proxy A-distance is that of Ben-David et al. 2007, section 4, with the
    error averaged over the sites, so that unequal numbers of cases do not count as distance.

    Args:
        source: (n, F) features.
        target: (m, F) features.
        source_patients: (n,) patient of each case.
        target_patients: (m,) likewise; a patient of both sites has the same name in both.
        replicates: number of patient resamples.
        seed: seed of folds and resamples.
        level: level of the intervals.

    Raises:
        DataError: other shapes, values that are not finite, or fewer than two patients at a site.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x = [np.asarray(part, dtype=np.float64) for part in (source, target)]
    if any(part.ndim != 2 for part in x) or x[0].shape[1] != x[1].shape[1]:
        raise DataError(
            f"Expected features (n, F) and (m, F) of the sites, got {x[0].shape} and {x[1].shape}."
        )
    people = [len(set(source_patients)), len(set(target_patients))]
    if min(people) < 2:
        raise DataError(
            f"Source and target have {people[0]} and {people[1]} patients, expected at least 2 each: the distance is "
            "judged on patients that the classifier has not seen."
        )
    features = np.concatenate(x)
    if not np.isfinite(features).all():
        raise DataError("Some features are not finite: the encoder's weights or the scans are damaged.")
    label = np.repeat([0, 1], [len(part) for part in x])
    patient = np.unique([*source_patients, *target_patients], return_inverse=True)[1].astype(np.int64)
    folds = StratifiedGroupKFold(min(FOLDS, *people), shuffle=True, random_state=seed)
    score = np.zeros(len(label))
    for train, test in folds.split(features, label, patient):
        if len(np.unique(label[train])) < 2:
            raise DataError("One fold holds all patients of a site: too few patients to measure a distance.")
        model = make_pipeline(
            StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=1000)
        )
        score[test] = model.fit(features[train], label[train]).decision_function(features[test])

    num = int(patient.max()) + 1
    ranked = RankedScores(score, label == 1, patient)
    right = np.zeros((num, 2, 2))  # patient, site, (cases called right, cases)
    np.add.at(right, (patient, label), np.stack([(score > 0) == (label == 1), np.ones(len(label))], axis=1))

    def accuracy(counts: NDArray[np.float64]) -> NDArray[np.float64]:
        hits, cases = np.moveaxis(np.tensordot(counts, right, axes=1), 2, 0)
        return np.asarray((hits / np.maximum(cases, 1)).mean(axis=1))

    once = np.ones((1, num))
    blocks = list(patient_counts(patient_strata(label, patient, num), replicates, seed, len(label)))
    support = Support(len(label), num, len(x[1]), min(people), num)
    auc = estimate(
        float(ranked.auroc(once)[0]),
        np.concatenate([ranked.auroc(b) for b in blocks]),
        kind="auroc",
        level=level,
        support=support,
    )
    share = estimate(
        float(accuracy(once)[0]),
        np.concatenate([accuracy(b) for b in blocks]),
        kind="proportion",
        level=level,
        support=support,
    )
    lo, value, hi = (
        None if share_part is None else max(0.0, 2 * (2 * share_part - 1))
        for share_part in (share.lo, share.value, share.hi)
    )
    status = "separated" if share.status == "boundary" else share.status
    return Distance(auc, replace(share, value=value, lo=lo, hi=hi, status=status))
