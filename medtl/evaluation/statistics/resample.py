"""The patient bootstrap: how often each patient is drawn, and intervals from the replicates.

Cases of one patient resemble each other, so patients are drawn, never rows, and never by copying rows: a
replicate is a vector of counts, one a patient. Patients are drawn within their class (patient-level), so that
a rare class is in every replicate, and each metric is computed from the counts by sums, sorts done once, and
matrix products.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit, ndtr, ndtri, stdtrit

from medtl.errors import ConfigError
from medtl.evaluation.statistics.arrays import Bools, Floats, Ints
from medtl.evaluation.statistics.estimate import FEW_EVENTS, Estimate

CHUNK_ELEMENTS = 400_000
"""Elements of one block of counts times rows: it stays in the processor's cache, which is worth a factor of
two."""


def check_resampling(replicates: int, level: float) -> None:
    """Refuses numbers of resamples and levels that give no interval.

    Raises:
        ConfigError: fewer than 100 resamples, or a level below one half or of 1 and more.
    """
    if replicates < 100:
        raise ConfigError(f"At least 100 resamples are needed for an interval; got {replicates}.")
    if not 0.5 <= level < 1:
        raise ConfigError(
            f"The confidence level must lie between 0.5 and 1, for instance 0.95; got {level:g}."
        )


def patient_strata(labels: Ints, patient: Ints, num_patients: int, site: Ints | None = None) -> Ints:
    """The stratum of each patient: the rarest of the patient's own labels, by site.

    Args:
        labels: (n,) class of each case, -1 where there is none.
        patient: (n,) index of each case's patient.
        num_patients: P.
        site: (n,) index of each case's site.

    Returns:
        (P,) stratum of each patient.
    """
    num_classes = int(labels.max(initial=-1)) + 2
    present = np.zeros((num_patients, num_classes), dtype=bool)
    present[patient, labels + 1] = True
    rarity = np.argsort(np.argsort(present.sum(axis=0), kind="stable"), kind="stable")
    # "No label" (column 0) counts only for a patient without any label.
    rank = np.where(present, rarity, num_classes).astype(float)
    rank[:, 0] = np.where(present[:, 0], num_classes - 0.5, num_classes)
    stratum = rank.argmin(axis=1).astype(np.int64)
    if site is not None:
        where = np.zeros(num_patients, dtype=np.int64)
        where[patient] = site
        stratum = stratum + num_classes * where
    return np.asarray(stratum, dtype=np.int64)


def patient_counts(strata: Ints, replicates: int, seed: int, columns: int | None = None) -> Iterator[Floats]:
    """Yields blocks (b, P) of how often each patient is drawn, stratified; `replicates` rows in all.

    Args:
        strata: (P,) stratum of each patient; as many are drawn from a stratum as it holds.
        replicates: number of resamples.
        seed: seed of the draw. The counts do not depend on the size of the blocks.
        columns: number of cases that a block will be spread over (default: P); it sets the size of the
            blocks.
    """
    members = [np.flatnonzero(strata == s) for s in np.unique(strata)]
    streams = [np.random.default_rng([seed, k]) for k in range(len(members))]
    size = max(1, CHUNK_ELEMENTS // max(1, columns or len(strata)))
    for start in range(0, replicates, size):
        b = min(size, replicates - start)
        counts = np.empty((b, len(strata)))
        for who, stream in zip(members, streams, strict=True):
            m = len(who)
            drawn = stream.integers(0, m, size=(b, m)) + np.arange(b)[:, None] * m
            counts[:, who] = np.bincount(drawn.ravel(), minlength=b * m).reshape(b, m)
        yield counts


def wilson(value: float, n: float, level: float) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927); `n` may be an effective number.

    Example:
        >>> tuple(round(x, 4) for x in wilson(1.0, 20, 0.95))
        (0.8389, 1.0)
    """
    z2 = float(ndtri(0.5 + level / 2)) ** 2
    centre = (value + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * (value * (1 - value) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    # At 0 and 1 the limit is exact; rounding would leave 1 - 1e-16.
    return (0.0 if value <= 0 else float(centre - half), 1.0 if value >= 1 else float(centre + half))


def logit_interval(value: float, standard_error: float, level: float) -> tuple[float, float]:
    """Interval of a value in (0, 1) that is symmetric on the logit scale, so that it stays in (0, 1)."""
    half = float(ndtri(0.5 + level / 2)) * standard_error / (value * (1 - value))
    centre = float(logit(value))
    return float(expit(centre - half)), float(expit(centre + half))


def exact_bound(m: int, level: float) -> float:
    """Lower Clopper-Pearson limit of `m` successes in `m` trials.

    Used for an AUROC of 1, whose estimated variance is 0: `m` is the number of patients of the smaller class.
    """
    return float(((1 - level) / 2) ** (1 / max(1, m)))


def expanded_tail(num_patients: int, level: float) -> float:
    """Tail of the bootstrap distribution of a mean at which its interval ends (Hesterberg 2015, section 5.3).

    Plain percentiles are too narrow in small samples: they leave out the factor n / (n - 1) of the variance and use
    the normal where Student's distribution belongs.

    Example:
        >>> round(expanded_tail(10, 0.95), 4), round(expanded_tail(1000, 0.95), 4)
        (0.0086, 0.0248)
    """
    n = max(2, num_patients)
    return float(ndtr(-np.sqrt(n / (n - 1)) * stdtrit(n - 1, 0.5 + level / 2)))


@dataclass(frozen=True)
class Support:
    """The data behind an estimate.

    Attributes:
        n: number of cases.
        num_patients: number of patients.
        num_events: number of cases with the event, or None.
        smaller: patients of the smaller class, for `few_events` and for exact bounds.
        effective: number of patients whose proportion it is; used where the replicates do not vary.
        few: the status of an estimate whose `smaller` is below `FEW_EVENTS`. With `few_patients` (a mean over the
            cases of patients), one patient makes no interval.
    """

    n: int
    num_patients: int
    num_events: int | None
    smaller: int
    effective: float
    few: str = "few_events"


def missing(status: str, level: float, support: Support) -> Estimate:
    """An estimate that could not be computed."""
    n, patients, events = support.n, support.num_patients, support.num_events
    return Estimate(None, None, None, "none", level, n, patients, events, status)


def estimate(value: float, replicates: Floats, *, kind: str, level: float, support: Support) -> Estimate:
    """Makes an `Estimate` from the value on all cases and from its replicates.

    Args:
        value: the value on all cases.
        replicates: (B,) values on the resamples; not finite where a resample gave none.
        kind: `auroc` (bootstrap standard error on the logit scale), `proportion` (Wilson's interval at the
            effective number of patients that the bootstrap variance implies), `percentile`, `mean` (percentiles
            expanded for few patients), or `point` (no interval).
        level: confidence level.
        support: what the value rests on.
    """
    if not np.isfinite(value):
        return missing("undefined", level, support)
    finite: Bools = np.isfinite(replicates)
    kept = replicates[finite]
    num_degenerate = int((~finite).sum())
    status = support.few if support.smaller < FEW_EVENTS else "ok"
    lo: float | None
    hi: float | None
    if support.few == "few_patients" and support.num_patients < 2:
        lo, hi, method, status = None, None, "none", "one_patient"
    elif kind == "point" or len(kept) < 2:
        lo, hi, method, status = None, None, "none", "point_only"
    else:
        variance = float(kept.var(ddof=1))
        if kind == "auroc":
            lo, hi, method, special = _auroc_limits(value, variance, level, support)
        elif kind == "proportion":
            lo, hi, method, special = _proportion_limits(value, variance, level, support)
        else:
            tail = expanded_tail(support.num_patients, level) if kind == "mean" else (1 - level) / 2
            lo, hi = (float(x) for x in np.quantile(kept, [tail, 1 - tail]))
            method = "patient bootstrap, " + ("expanded percentiles" if kind == "mean" else "percentiles")
            special = "fixed" if variance == 0 and status != "few_patients" else ""
        status = special or status
        if num_degenerate > 0.05 * len(replicates):
            status = "degenerate"
    n, patients, events = support.n, support.num_patients, support.num_events
    return Estimate(float(value), lo, hi, method, level, n, patients, events, status, num_degenerate)


def _auroc_limits(
    value: float, variance: float, level: float, support: Support
) -> tuple[float, float, str, str]:
    if 1e-12 < value < 1 - 1e-12 and variance > 0:
        lo, hi = logit_interval(value, float(np.sqrt(variance)), level)
        return lo, hi, "patient bootstrap, logit scale", ""
    bound = exact_bound(support.smaller, level)
    lo, hi = (bound, 1.0) if value > 0.5 else (0.0, 1 - bound)
    return lo, hi, "exact bound of the smaller class", "separated"


def _proportion_limits(
    value: float, variance: float, level: float, support: Support
) -> tuple[float, float, str, str]:
    if 1e-12 < value < 1 - 1e-12 and variance > 1e-18:
        lo, hi = wilson(value, value * (1 - value) / variance, level)
        return lo, hi, "patient bootstrap, Wilson at the effective size", ""
    lo, hi = wilson(min(1.0, max(0.0, value)), max(1.0, support.effective), level)
    at_end = value <= 1e-12 or value >= 1 - 1e-12
    return lo, hi, "Wilson, patients", "boundary" if at_end else ""
