"""AUROC, ROC curves and DeLong's variance, all in O(n log n) and in float64.

A higher score always means the positive class: an AUROC below one half is reported as such, never turned
round.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.special import ndtr, ndtri

from medtl.errors import DataError
from medtl.evaluation.metrics.metric import ClassificationMetric, Key, Values
from medtl.evaluation.metrics.sample import Cases, Draw, Sample
from medtl.evaluation.statistics.arrays import Bools, Floats, Ints, log_odds
from medtl.evaluation.statistics.resample import Support, exact_bound, logit_interval


class RankedScores:
    """Scores sorted once, so that the AUROC of thousands of patient resamples costs sums only.

    Args:
        scores: (n,) higher means positive.
        positive: (n,) whether the case has the event.
        patient: (n,) index of each case's patient.
        weight: (n,) weight of each case (default 1).
    """

    def __init__(self, scores: Floats, positive: Bools, patient: Ints, weight: Floats | None = None) -> None:
        order = np.argsort(scores, kind="stable")
        ranked = scores[order]
        self._patient = patient[order]
        own = np.ones(len(scores)) if weight is None else weight[order]
        self._positive = own * positive[order]
        self._negative = own * ~positive[order]
        changes = np.flatnonzero(np.diff(ranked) != 0) + 1
        self._starts = np.concatenate([[0], changes]).astype(np.int64)
        self._tied = len(self._starts) < len(ranked)

    def _groups(self, counts: Floats) -> tuple[Floats, Floats]:
        """Weights of positives and negatives in each group of tied scores, from low to high: (b, G) each."""
        drawn = counts[:, self._patient]
        positive, negative = drawn * self._positive, drawn * self._negative
        if self._tied:
            positive = np.add.reduceat(positive, self._starts, axis=1)
            negative = np.add.reduceat(negative, self._starts, axis=1)
        return positive, negative

    def auroc(self, counts: Floats) -> Floats:
        """Chance that a positive case scores higher than a negative one, ties counting one half.

        Args:
            counts: (b, P) how often each patient is drawn.

        Returns:
            (b,) AUROC; nan where a class is absent.
        """
        positive, negative = self._groups(counts)
        below = np.cumsum(negative, axis=1)
        pairs = positive.sum(axis=1) * below[:, -1]
        below -= 0.5 * negative
        won = np.einsum("ij,ij->i", positive, below)
        return np.asarray(np.divide(won, pairs, out=np.full(len(counts), np.nan), where=pairs > 0))

    def sensitivity_at(self, counts: Floats, false_positive_rate: Floats) -> Floats:
        """ROC curves (b, G): sensitivity at each false positive rate (G,); nan where a class is absent."""
        positive, negative = self._groups(counts)
        out = np.full((len(counts), len(false_positive_rate)), np.nan)
        for k, (p, q) in enumerate(zip(positive[:, ::-1], negative[:, ::-1], strict=True)):
            if p.sum() > 0 and q.sum() > 0:
                x = np.concatenate([[0.0], np.cumsum(q)]) / q.sum()
                y = np.concatenate([[0.0], np.cumsum(p)]) / p.sum()
                out[k] = np.interp(false_positive_rate, x, y)
        return out


def auroc(scores: Floats, positive: Bools) -> float:
    """AUROC of scores (n,), ties counting one half; nan where a class is absent.

    Args:
        scores: (n,), higher means more probably positive.
        positive: (n,) whether a case is positive.

    Example:
        >>> round(auroc(np.array([.21, .35, .63, .92, .32, .79]), np.array([0, 0, 0, 1, 1, 1]) > 0), 6)
        0.777778
    """
    n = len(scores)
    return float(RankedScores(scores, positive, np.arange(n)).auroc(np.ones((1, n)))[0])


def placements(scores: Floats, positive: Bools) -> tuple[Floats, Floats]:
    """Share of the other class that each case is on the right side of, ties counting one half.

    From three vectors of midranks (Sun and Xu 2014), O(n log n).

    Returns:
        (m,) of the positives and (n - m,) of the negatives; the mean of either is the AUROC.
    """
    from scipy.stats import rankdata

    scores = np.asarray(scores, dtype=np.float64)
    m, k = int(positive.sum()), int((~positive).sum())
    if m < 2 or k < 2:
        raise DataError(
            f"DeLong's variance needs at least two cases of each class; got {m} positive and {k} negative. "
            "Report the AUROC without it."
        )
    pooled = rankdata(scores)
    first = (pooled[positive] - rankdata(scores[positive])) / k
    second = 1.0 - (pooled[~positive] - rankdata(scores[~positive])) / m
    return first, second


def delong_variance(scores: Floats, positive: Bools) -> tuple[float, float]:
    """AUROC and its variance (DeLong 1988), for independent cases."""
    first, second = placements(scores, positive)
    variance = first.var(ddof=1) / len(first) + second.var(ddof=1) / len(second)
    return float(first.mean()), float(variance)


def delong_ci(
    scores: Floats, positive: Bools, level: float = 0.95, *, scale: str = "logit"
) -> tuple[float, float, float]:
    """AUROC with DeLong's interval, for one case a patient; the patient bootstrap needs no such condition.

    Args:
        scores: (n,) higher means positive.
        positive: (n,) whether the case has the event.
        level: confidence level.
        scale: `logit` (stays within 0 and 1, the better coverage near 1) or `wald`. At complete separation
            DeLong's variance is 0 and the exact bound of the smaller class stands instead.

    Returns:
        The AUROC and the limits of its interval.
    """
    if scale not in ("logit", "wald"):
        raise ValueError(f"scale of a DeLong interval: expected 'logit' or 'wald', got {scale!r}.")
    value, variance = delong_variance(scores, positive)
    if scale == "wald":
        half = float(ndtri(0.5 + level / 2) * np.sqrt(variance))
        return value, value - half, value + half
    if variance == 0 or value in (0.0, 1.0):
        bound = exact_bound(int(min(positive.sum(), (~positive).sum())), level)
        return (value, bound, 1.0) if value > 0.5 else (value, 0.0, 1 - bound)
    lo, hi = logit_interval(value, float(np.sqrt(variance)), level)
    return value, lo, hi


def delong_test(first: Floats, second: Floats, positive: Bools) -> tuple[float, float]:
    """Paired test of two AUROCs on the same independent cases (DeLong 1988).

    Args:
        first: (n,) scores of one model.
        second: (n,) scores of the other.
        positive: (n,) whether a case is positive.

    Returns:
        z (its sign is that of the first minus the second) and the two-sided p.
    """
    a, b = placements(first, positive), placements(second, positive)
    variance = 0.0
    for x, y in zip(a, b, strict=True):
        c = np.cov(x, y)
        variance += (c[0, 0] + c[1, 1] - 2 * c[0, 1]) / len(x)
    difference = float(a[0].mean() - b[0].mean())
    if variance <= 0:
        return 0.0 if difference == 0 else float(np.copysign(np.inf, difference)), float(difference == 0)
    z = difference / float(np.sqrt(variance))
    return z, float(2 * ndtr(-abs(z)))


def ranked(sample: Sample) -> dict[int, RankedScores]:
    """The sorted scores of each class against all others: of the positive class alone where there are two."""
    cases = sample.cases
    return {
        c: RankedScores(log_odds(sample.scores, c), sample.label == c, sample.patient, sample.weight)
        for c in range(len(cases.classes))
        if 0 < (sample.label == c).sum() < len(sample.label) and cases.positive in (None, c)
    }


def _each(draw: Draw) -> dict[int, Floats]:
    return {c: scores.auroc(draw.counts) for c, scores in draw.sample.prepared(ranked).items()}


def _auroc(draw: Draw) -> Values:
    each = list(draw.shared(_each).values())
    return np.asarray(np.mean(each, axis=0)) if each else np.full(len(draw.counts), np.nan)


def _class_auroc(draw: Draw) -> Values:
    cases = draw.sample.cases
    if cases.positive is not None:
        return {}
    return {Key("class_auroc", cases.classes[c]): values for c, values in draw.shared(_each).items()}


def _against_the_rest(cases: Cases, key: Key) -> Support:
    column = cases.classes.index(str(key.cls))
    rest = len(np.unique(cases.patient[cases.labelled & (cases.label != column)]))
    smaller = min(cases.patients_with(column), rest)
    return replace(cases.support(), num_events=cases.cases_with(column), smaller=smaller)


METRICS = (
    ClassificationMetric(
        name="auroc",
        title="AUROC",
        definition=(
            "Chance that a case with the class scores higher than a case without it; ties count one "
            "half. With more than two classes: the mean over the classes, each against all others."
        ),
        section="discrimination",
        interval="auroc",
        better="higher",
        paired=True,
        headline=2,
        main=True,
        compute=_auroc,
        over_classes=True,
    ),
    ClassificationMetric(
        name="class_auroc",
        title="AUROC, one class against the rest",
        definition="AUROC of one class against all others.",
        section="discrimination",
        interval="auroc",
        better="higher",
        compute=_class_auroc,
        support=_against_the_rest,
    ),
)
