"""Calibration: temperature, named errors, slope and intercept, and a smooth curve with replicates.

Two confusions are kept out by names. The error of the positive class's probability (`positive`), of the
winning class's (`top_label`) and the mean over the classes (`classwise`) are different numbers on the same
data. And a binned error is biased upwards, more the fewer the cases: perfectly calibrated predictions of 100
cases show about .10.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from medtl.errors import DataError
from medtl.evaluation.metrics.metric import ClassificationMetric, Key, Values
from medtl.evaluation.metrics.sample import Draw, Sample
from medtl.evaluation.statistics.arrays import Floats, Ints, divide, log_odds, log_softmax, sum_by_patient

BINS = 10
MAX_LOG_TEMPERATURE = float(np.log(100.0))
NEWTON_STEPS = 12


def fit_temperature(logits: Floats, labels: Ints, weights: Floats | None = None) -> float:
    """The temperature T that minimises the negative log likelihood of softmax(logits / T) (Guo 2017).

    The likelihood is convex in 1 / T: a bounded scalar search over log(1 / T) finds it, T within 0.01 and
    100.

    Args:
        logits: (n, K).
        labels: (n,) class of each case.
        weights: (n,) weight of each case (default 1).

    Raises:
        DataError: no case, or one class only.
    """
    from scipy.optimize import minimize_scalar

    if len(labels) == 0 or len(np.unique(labels)) < 2:
        raise DataError(
            f"A temperature needs labelled cases of at least two classes; got {len(labels)} cases of "
            f"{len(np.unique(labels))} class(es). Keep the model's own probabilities, or hold out more "
            "patients."
        )
    own = np.ones(len(labels)) if weights is None else weights
    rows = np.arange(len(labels))
    centred = logits - logits.mean(axis=1, keepdims=True)

    def loss(log_inverse: float) -> float:
        return float(-(own * log_softmax(centred * np.exp(log_inverse))[rows, labels]).sum() / own.sum())

    bounds = (-MAX_LOG_TEMPERATURE, MAX_LOG_TEMPERATURE)
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-8})
    return float(np.exp(-found.x))


def equal_width_edges(bins: int = BINS) -> Floats:
    """Inner edges of `bins` equal bins of [0, 1]; a bin is (lower, upper], and 0 belongs to the first."""
    return np.linspace(0, 1, bins + 1)[1:-1]


def equal_mass_edges(predicted: Floats, bins: int = BINS) -> Floats:
    """Inner edges that put about as many cases in each bin; ties make fewer bins, never empty ones."""
    edges = np.unique(np.quantile(predicted, np.linspace(0, 1, bins + 1)[1:-1], method="inverted_cdf"))
    return np.asarray(edges[edges < predicted.max()])


class BinnedGap:
    """Observed minus predicted in fixed bins, for the sample and for any resample of patients.

    Args:
        predicted: (n,) probabilities.
        observed: (n,) 0 or 1.
        patient: (n,) index of each case's patient.
        num_patients: P.
        edges: inner edges of the bins.
        weight: (n,) weight of each case (default 1).
    """

    def __init__(
        self,
        predicted: Floats,
        observed: Floats,
        patient: Ints,
        num_patients: int,
        edges: Floats,
        weight: Floats | None = None,
    ) -> None:
        own = np.ones(len(predicted)) if weight is None else weight
        inside = np.eye(len(edges) + 1)[np.searchsorted(edges, predicted, side="left")]
        self._mass = sum_by_patient(inside * own[:, None], patient, num_patients)
        self._gap = sum_by_patient(inside * (own * (observed - predicted))[:, None], patient, num_patients)
        self._predicted = sum_by_patient(inside * (own * predicted)[:, None], patient, num_patients)

    def error(self, counts: Floats, norm: str = "l1") -> Floats:
        """Expected calibration error (b,), biased upwards; name its kind, bins and norm wherever it is shown.

        Args:
            counts: (b, P) how often each patient is drawn.
            norm: `l1` (mean over cases of their bin's absolute gap), `l2` (root mean square) or `max`.
        """
        mass, gap = counts @ self._mass, np.abs(counts @ self._gap)
        total = mass.sum(axis=1)
        if norm == "l1":
            return np.asarray(gap.sum(axis=1) / total)
        each = np.divide(gap, mass, out=np.zeros_like(gap), where=mass > 0)
        if norm == "l2":
            return np.asarray(np.sqrt((each**2 * mass).sum(axis=1) / total))
        return np.asarray(each.max(axis=1))

    def debiased_squared(self, counts: Floats) -> Floats:
        """Squared calibration error (b,) without the bias of a bin's sampling noise; it can come out below 0.

        Kumar 2019 subtracts ybar (1 - ybar) / (n - 1) in each bin. Here the noise is the variance of the
        bin's mean gap over patients, which is the same number for one case a patient and equal predictions in
        a bin, stays right when patients have several cases, and in a resample accounts for patients drawn
        twice.
        """
        mass, gap = counts @ self._mass, counts @ self._gap
        total = mass.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.where(mass > 0, gap / mass, 0.0)
            twice = counts**2
            spread = twice @ self._gap**2 - 2 * mean * (twice @ (self._gap * self._mass))
            squares = twice @ self._mass**2
            noise = (spread + mean**2 * squares) / mass**2
            effective = mass**2 / squares
            p = np.clip(counts @ self._predicted / mass, 0, 1)
            # One patient alone in a bin shows no variance: that of calibrated predictions stands in.
            lone = p * (1 - p) * squares / mass**2
            noise = np.where(effective >= 2, noise * effective / (effective - 1), lone)
        return np.asarray((np.where(mass > 0, mean**2 - noise, 0.0) * mass).sum(axis=1) / total)


def calibration_slope(
    score: Floats, observed: Floats, patient: Ints, counts: Floats, weight: Floats | None = None
) -> Floats:
    """Slope (b,) of a logistic regression of the event on the log odds; 1 is ideal, below 1 is overconfident.

    Args:
        score: (n,) predicted log odds.
        observed: (n,) 0 or 1.
        patient: (n,) index of each case's patient.
        counts: (b, P) how often each patient is drawn.
        weight: (n,) weight of each case (default 1).

    Returns:
        (b,) slope; nan where the fit does not converge (a class absent, or complete separation).
    """
    scale = max(float(np.std(score)), 1e-12)
    x = score / scale
    own = np.ones(len(score)) if weight is None else weight
    w = counts[:, patient] * own
    a, b = np.zeros(len(counts)), np.zeros(len(counts))
    step = np.full(len(counts), np.inf)
    for _ in range(NEWTON_STEPS):
        p = 1 / (1 + np.exp(-np.clip(a[:, None] + b[:, None] * x, -500, 500)))
        residual, curvature = w * (observed - p), w * p * (1 - p)
        g0, g1 = residual.sum(axis=1), residual @ x
        h00, h01, h11 = curvature.sum(axis=1), curvature @ x, curvature @ x**2
        determinant = h00 * h11 - h01**2
        with np.errstate(invalid="ignore", divide="ignore"):
            da = (h11 * g0 - h01 * g1) / determinant
            db = (h00 * g1 - h01 * g0) / determinant
        da, db = np.clip(da, -4, 4), np.clip(db, -4, 4)
        a, b = a + da, b + db
        step = np.abs(da) + np.abs(db)
        if np.all(~np.isfinite(step) | (step < 1e-8)):
            break
    return np.asarray(np.where(step < 1e-4, b / scale, np.nan))


def calibration_intercept(
    score: Floats, observed: Floats, patient: Ints, counts: Floats, weight: Floats | None = None
) -> Floats:
    """Calibration in the large (b,): the intercept with the slope held at 1; 0 is ideal.

    Below 0 the predictions are too high. A fit of its own (Van Calster 2016), not the intercept that comes
    with `calibration_slope`. Arguments as there.
    """
    own = np.ones(len(score)) if weight is None else weight
    w = counts[:, patient] * own
    total, events = w.sum(axis=1), w @ observed
    inside = (events > 0) & (events < total)
    a = np.zeros(len(counts))
    step = np.full(len(counts), np.inf)
    for _ in range(2 * NEWTON_STEPS):
        p = 1 / (1 + np.exp(-np.clip(a[:, None] + score, -500, 500)))
        gradient, curvature = events - (w * p).sum(axis=1), (w * p * (1 - p)).sum(axis=1)
        step = np.clip(gradient / np.maximum(curvature, 1e-300), -3, 3)
        a = a + step
        if np.all(~inside | (np.abs(step) < 1e-8)):
            break
    return np.asarray(np.where(inside & (np.abs(step) < 1e-4), a, np.nan))


@dataclass(frozen=True)
class SmoothCurve:
    """Local linear regression of the event on the predicted probability, prepared for many resamples.

    The kernel is Epanechnikov's on the probability, its width so that the nearest `span` of the cases are
    inside. No robustness iterations: they take rare events for outliers and flatten the curve to 0.

    Attributes:
        grid: (G,) probabilities at which the curve is drawn.
        moments: (P, 5 G) sums by patient of the kernel times 1, d, d^2, y and d y.
    """

    grid: Floats
    moments: Floats

    @classmethod
    def prepare(
        cls,
        predicted: Floats,
        observed: Floats,
        patient: Ints,
        num_patients: int,
        *,
        points: int = 41,
        span: float = 0.6,
        weight: Floats | None = None,
    ) -> SmoothCurve:
        """Builds the moments; the grid covers the central 96 % of the predictions.

        Shapes as in `BinnedGap`; the predictions of several training seeds may be pooled.
        """
        own = np.ones(len(predicted)) if weight is None else weight
        lo, hi = np.quantile(predicted, [0.02, 0.98])
        grid = np.linspace(lo, hi, points) if hi > lo else np.array([lo])
        sums = np.zeros((num_patients, 5 * len(grid)))
        nearest = max(1, int(np.ceil(span * len(predicted)))) - 1
        for g, x in enumerate(grid):
            d = predicted - x
            width = max(float(np.partition(np.abs(d), nearest)[nearest]) * 1.0001, 0.05)
            k = own * np.maximum(0.0, 1 - (d / width) ** 2)
            columns = np.stack([k, k * d, k * d**2, k * observed, k * d * observed], axis=1)
            sums[:, 5 * g : 5 * g + 5] = sum_by_patient(columns, patient, num_patients)
        return cls(grid, sums)

    def at(self, counts: Floats) -> Floats:
        """The curve of each resample, (b, G), within 0 and 1."""
        s0, s1, s2, t0, t1 = np.moveaxis((counts @ self.moments).reshape(len(counts), -1, 5), 2, 0)
        determinant = s0 * s2 - s1**2
        with np.errstate(invalid="ignore", divide="ignore"):
            linear = (s2 * t0 - s1 * t1) / determinant
            constant = t0 / s0
        return np.asarray(np.clip(np.where(determinant > 1e-9 * s0**2, linear, constant), 0, 1))


@dataclass(frozen=True)
class Prepared:
    """The inputs of calibration metrics from a sample, before or after recalibration.

    Attributes:
        main: the kind of calibration error that is plotted.
        predicted: (m,) probabilities that it is about; observed: (m,) 0 or 1.
        sums: (P, 3) weights, and weights times squared error and log loss.
        binned: gaps in bins of equal width, by kind; one for each class where it is a mean over them.
        debiased: gaps of the main kind in bins of about equal numbers.
        odds: (m,) log odds of the positive class (binary), else None.
    """

    main: str
    predicted: Floats
    observed: Floats
    sums: Floats
    binned: dict[str, tuple[BinnedGap, ...]]
    debiased: BinnedGap
    odds: Floats | None


def prepared_stages(sample: Sample) -> dict[str, Prepared]:
    """`Prepared` for each stage of a sample."""
    return {stage: _prepare(sample, logits) for stage, logits in sample.stages.items()}


def _prepare(sample: Sample, logits: Floats) -> Prepared:
    cases, patient, p, own = sample.cases, sample.patient, sample.cases.num_patients, sample.weight
    logp = log_softmax(logits)
    probability = np.exp(logp)
    truth = np.eye(len(cases.classes))[sample.label]
    square = ((probability - truth) ** 2).sum(axis=1) * (1.0 if cases.positive is None else 0.5)
    nll = -logp[np.arange(len(sample.label)), sample.label]
    top = probability.argmax(axis=1)
    events = {"top_label": [(probability.max(axis=1), (top == sample.label).astype(float))]}
    if cases.positive is None:
        main = "top_label"
        events["classwise"] = [(probability[:, c], truth[:, c]) for c in range(len(cases.classes))]
    else:
        main = "positive"
        events["positive"] = [(probability[:, cases.positive], truth[:, cases.positive])]
    predicted, observed = events[main][0]
    width, mass = equal_width_edges(), equal_mass_edges(predicted)
    return Prepared(
        main=main,
        predicted=predicted,
        observed=observed,
        sums=sum_by_patient(np.stack([own, own * square, own * nll], axis=1), patient, p),
        binned={
            kind: tuple(BinnedGap(q, y, patient, p, width, own) for q, y in pairs)
            for kind, pairs in events.items()
        },
        debiased=BinnedGap(predicted, observed, patient, p, mass, own),
        odds=None if cases.positive is None else log_odds(logits, cases.positive),
    )


def _means(draw: Draw) -> dict[str, Floats]:
    """By stage, the mean squared error and the mean log loss (b, 2)."""
    sums = {stage: draw.counts @ found.sums for stage, found in draw.sample.prepared(prepared_stages).items()}
    return {stage: divide(s[:, 1:], np.repeat(s[:, :1], 2, axis=1)) for stage, s in sums.items()}


def _mean(draw: Draw, name: str, column: int) -> Values:
    return {Key(name, stage=stage): means[:, column] for stage, means in draw.shared(_means).items()}


def _debiased(draw: Draw) -> Values:
    return {
        Key("debiased_squared_error", stage=stage, kind=found.main): found.debiased.debiased_squared(
            draw.counts
        )
        for stage, found in draw.sample.prepared(prepared_stages).items()
    }


def _ece(draw: Draw) -> Values:
    return {
        Key("ece", stage=stage, kind=kind): np.mean([gap.error(draw.counts) for gap in gaps], axis=0)
        for stage, found in draw.sample.prepared(prepared_stages).items()
        for kind, gaps in found.binned.items()
    }


def _slope(draw: Draw) -> Values:
    sample = draw.sample
    before = sample.prepared(prepared_stages)["before"]
    if before.odds is None:
        return {}
    slope = calibration_slope(before.odds, before.observed, sample.patient, draw.counts, sample.weight)
    out = {Key("calibration_slope", stage="before"): slope}
    if sample.temperature is not None:
        # Dividing the log odds by T multiplies the slope by T, exactly.
        out[Key("calibration_slope", stage="after")] = slope * sample.temperature
    return out


def _intercept(draw: Draw) -> Values:
    sample = draw.sample
    return {
        Key("calibration_intercept", stage=stage): calibration_intercept(
            found.odds, found.observed, sample.patient, draw.counts, sample.weight
        )
        for stage, found in sample.prepared(prepared_stages).items()
        if found.odds is not None
    }


METRICS = (
    ClassificationMetric(
        name="brier",
        title="Brier score",
        definition=(
            "Mean squared distance between the probabilities and the reference standard: of the "
            "positive class with two classes (0 to 1), summed over the classes with more (0 to 2)."
        ),
        section="calibration",
        interval="percentile",
        better="lower",
        paired=True,
        compute=partial(_mean, name="brier", column=0),
    ),
    ClassificationMetric(
        name="nll",
        title="Log loss",
        definition="Mean negative natural logarithm of the probability of the right class.",
        section="calibration",
        interval="percentile",
        better="lower",
        paired=True,
        main=True,
        compute=partial(_mean, name="nll", column=1),
    ),
    ClassificationMetric(
        name="debiased_squared_error",
        title="Squared calibration error, debiased",
        definition=(
            "Mean squared gap between predicted and observed in 10 bins of about equal numbers, less "
            "the part that sampling alone would cause (Kumar 2019, with the variance taken over "
            "patients). Calibrated predictions give 0 on average at any number of cases; values "
            "slightly below 0 are chance."
        ),
        section="calibration",
        interval="percentile",
        better="lower",
        paired=True,
        compute=_debiased,
    ),
    ClassificationMetric(
        name="ece",
        title="Expected calibration error (L1, 10 equal-width bins)",
        definition=(
            "Mean absolute gap between predicted and observed in 10 bins of equal width. Biased "
            "upwards on few cases, therefore without an interval; the debiased error is the one to "
            "compare."
        ),
        section="calibration",
        interval="point",
        better="lower",
        compute=_ece,
    ),
    ClassificationMetric(
        name="calibration_slope",
        title="Calibration slope",
        definition=(
            "Slope of a logistic regression of the reference standard on the predicted log odds. 1 is "
            "ideal; below 1 the predictions are too extreme."
        ),
        section="calibration",
        interval="percentile",
        better="",
        compute=_slope,
    ),
    ClassificationMetric(
        name="calibration_intercept",
        title="Calibration in the large",
        definition=(
            "Intercept of the same regression with the slope held at 1. 0 is ideal; below 0 the "
            "predictions are too high."
        ),
        section="calibration",
        interval="percentile",
        better="",
        compute=_intercept,
    ),
)
