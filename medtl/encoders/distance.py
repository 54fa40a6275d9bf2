"""The distance of two sites in an encoder's features, and the fine-tuning strategy that it and the data suggest.

The advice follows the textbook's table: few or many patients, a near or a far task. The thresholds are conventions,
defined below.
"""

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

FEW_PATIENTS = 25
"""Fewer patients than this in the rarest class: a convention for "small"."""
MANY_PATIENTS = 100
"""This many patients or more in the rarest class: a convention for "large"."""
NEAR_SKILL = 0.5
"""A task is "near" if nearest neighbours on frozen features get half way from chance to perfect: a convention."""
FAR_AUC = 0.8
"""Sites are "far apart" if a classifier separates them with this AUC: a convention."""
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


@dataclass(frozen=True)
class Advice:
    """The strategy to try first.

    Attributes:
        strategy: a name that `medtl list strategies` knows.
        reasons: sentences.
    """

    strategy: str
    reasons: tuple[str, ...]


def skill(balanced_accuracy: float, num_classes: int) -> float:
    """Rescales a balanced accuracy to 0 for chance and 1 for perfect.

    Example:
        >>> skill(0.75, 2)
        0.5
    """
    chance = 1 / num_classes
    return (balanced_accuracy - chance) / (1 - chance)


def advise(
    patients_per_class: int, task_skill: float, distance: Distance | None = None, *, depth: str | None = None
) -> Advice:
    """The textbook's table of strategies by size of the data and distance of the task.

    Few and near: a probe. Few and far: keep the early layers and train the last stage. Many: all layers. In between:
    a probe first, then all layers. If the target is far, a probe precedes full fine-tuning, which could otherwise
    distort features that still hold there (Kumar et al. 2022).

    Args:
        patients_per_class: labelled patients of the rarest class.
        task_skill: `skill` of the nearest neighbours on frozen features: how near the pretraining is to the task.
        distance: of source and target, if there is a target.
        depth: the earlier depth whose features are clearly better than the last, if there is one.
    """
    near = task_skill >= NEAR_SKILL and depth is None
    reasons = [
        f"The rarest class has {patients_per_class} labelled patients: "
        + (
            f"few (fewer than {FEW_PATIENTS})."
            if patients_per_class < FEW_PATIENTS
            else f"many ({MANY_PATIENTS} or more)."
            if patients_per_class >= MANY_PATIENTS
            else f"neither few (fewer than {FEW_PATIENTS}) nor many ({MANY_PATIENTS} or more)."
        ),
        f"On frozen features, nearest neighbours get {100 * max(0.0, task_skill):.0f} % of the way from chance to "
        f"perfect ({100 * NEAR_SKILL:.0f} % and more counts as near): the task lies "
        + ("near what the encoder has learnt." if near else "far from what the encoder has learnt."),
    ]
    if depth is not None:
        reasons[-1] = (
            f"Features from {depth} suit the task better than the last ones: it lies far from the pretraining."
        )
    if patients_per_class < FEW_PATIENTS:
        strategy = "probe" if near else "last:1"
        reasons.append(
            "Few cases on good features: a linear probe overfits least."
            if near
            else "Few cases on features that fit badly: keep the early, general layers and train the last stage with "
            "the head."
        )
    elif patients_per_class < MANY_PATIENTS:
        strategy = "lp_ft" if near else "gradual"
        reasons.append(
            "Enough cases to fine-tune with care: first the head, then all layers."
            if near
            else "Enough cases to fine-tune with care: unfreeze the layers from the last to the first."
        )
    else:
        strategy = "full"
        reasons.append(
            "Many cases: all layers can be trained" + ("." if near else ", for longer than on a near task.")
        )
    far = distance is not None and distance.auc.value is not None and distance.auc.value >= FAR_AUC
    if far and distance is not None and distance.auc.value is not None:
        reasons.append(
            f"A classifier separates source and target with an AUC of {distance.auc.value:.2f} ({FAR_AUC:g} and more "
            "counts as far): expect losses at the target, test there, and try `medtl run adapt`."
        )
        if strategy == "full":
            strategy = "lp_ft"
            reasons.append(
                "Full fine-tuning can distort features that still hold at the target; a probe first keeps more of them."
            )
    reasons.append(
        "The thresholds are conventions, not findings: compare with `medtl run compare` before you rely on it."
    )
    return Advice(strategy, tuple(reasons))
