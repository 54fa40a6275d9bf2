from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medtl.errors import DataError
from medtl.evaluation import fit_temperature
from medtl.evaluation.metrics.calibration import (
    BinnedGap,
    SmoothCurve,
    calibration_intercept,
    calibration_slope,
    equal_mass_edges,
    equal_width_edges,
)
from medtl.evaluation.statistics.arrays import log_softmax, sigmoid
from medtl.evaluation.statistics.resample import patient_counts

PITFALLS_P = np.array([0.22, 0.48, 0.49, 0.96, 0.55, 0.64, 0.78, 0.82, 0.34, 0.87])
PITFALLS_Y = np.array([0, 1, 0, 0, 1, 1, 1, 1, 1, 0], dtype=float)


def gap(p: np.ndarray, y: np.ndarray, edges: np.ndarray, patient: np.ndarray | None = None) -> BinnedGap:
    patient = np.arange(len(p)) if patient is None else patient
    return BinnedGap(p, y, patient, int(patient.max()) + 1, edges)


def once(n: int) -> np.ndarray:
    return np.ones((1, n))


@pytest.mark.parametrize(("bins", "ece", "mce"), [(2, 0.109, 0.1175), (5, 0.315, 0.55), (10, 0.359, 0.96)])
def test_ece_of_the_pitfalls_paper(bins: int, ece: float, mce: float) -> None:
    # Metrics Reloaded, SN 2.24.
    g = gap(PITFALLS_P, PITFALLS_Y, equal_width_edges(bins))
    assert g.error(once(10))[0] == pytest.approx(ece, abs=1e-12)
    assert g.error(once(10), "max")[0] == pytest.approx(mce, abs=1e-12)


def test_values_of_verified_calibration() -> None:
    # Kumar 2019, tests of the package uncertainty-calibration.
    p = np.array([0.5, 0.5, 0.5, 0.6, 0.5, 0.6, 0.6, 0.6, 0.6])
    y = np.array([0, 1, 0, 1, 0, 1, 1, 1, 0], dtype=float)
    g = gap(p, y, equal_width_edges(10))
    assert g.error(once(9))[0] == pytest.approx(4 / 9 * 0.25 + 5 / 9 * 0.2, rel=1e-12)
    assert g.error(once(9), "l2")[0] == pytest.approx(np.sqrt(4 / 9 * 0.0625 + 5 / 9 * 0.04), rel=1e-12)
    assert g.debiased_squared(once(9))[0] == pytest.approx(0, abs=1e-12)


def test_zero_and_one_are_counted() -> None:
    g = gap(np.array([0.0, 1.0]), np.array([1.0, 0.0]), equal_width_edges(10))
    assert g.error(once(2))[0] == pytest.approx(1.0)


@pytest.mark.parametrize("images", [1, 4])
def test_debiased_error_of_calibrated_predictions_is_zero(images: int) -> None:
    # The plain squared error of these is well above 0; images of one patient share their outcome.
    rng = np.random.default_rng(0)
    debiased, plain = [], []
    for _ in range(400):
        p = np.repeat(rng.uniform(0.05, 0.95, 60), images)
        y = (np.repeat(rng.random(60), images) < p).astype(float)
        g = gap(p, y, equal_mass_edges(p), np.repeat(np.arange(60), images))
        debiased.append(g.debiased_squared(once(60))[0])
        plain.append(g.error(once(60), "l2")[0] ** 2)
    standard_error = np.std(debiased) / 20
    assert abs(np.mean(debiased)) < 3 * standard_error
    assert np.mean(plain) > 10 * standard_error


def test_resamples_centre_on_the_debiased_error() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(0.05, 0.95, 300)
    y = (rng.random(300) < p).astype(float)
    g = gap(p, y, equal_mass_edges(p))
    drawn = np.concatenate([g.debiased_squared(c) for c in patient_counts(np.zeros(300, int), 2000, 0)])
    value = g.debiased_squared(once(300))[0]
    assert abs(drawn.mean() - value) < 0.25 * drawn.std()


def test_slope_and_intercept_of_calibrated_predictions() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(0, 1.5, 20_000)
    y = (rng.random(20_000) < sigmoid(z)).astype(float)
    patient = np.arange(20_000)
    assert calibration_slope(z, y, patient, once(20_000))[0] == pytest.approx(1, abs=0.05)
    assert calibration_intercept(z, y, patient, once(20_000))[0] == pytest.approx(0, abs=0.05)
    assert calibration_slope(3 * z, y, patient, once(20_000))[0] == pytest.approx(1 / 3, abs=0.02)
    assert calibration_intercept(z + 0.7, y, patient, once(20_000))[0] == pytest.approx(-0.7, abs=0.05)


def test_slope_and_intercept_equal_a_logistic_regression() -> None:
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(3)
    z = rng.normal(0.4, 2, 200)
    y = (rng.random(200) < sigmoid(0.6 * z - 0.3)).astype(float)
    counts = np.concatenate(list(patient_counts(np.zeros(200, int), 3, 0)))
    slopes = calibration_slope(z, y, np.arange(200), counts)
    for drawn, slope in zip(counts, slopes, strict=True):
        fit = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(z[:, None], y, sample_weight=drawn)
        assert slope == pytest.approx(fit.coef_[0, 0], rel=1e-5)
    intercepts = calibration_intercept(z, y, np.arange(200), counts)
    for drawn, a in zip(counts, intercepts, strict=True):
        assert np.sum(drawn * (y - sigmoid(z + a))) == pytest.approx(0, abs=1e-6)


def test_separated_classes_have_no_slope() -> None:
    z = np.linspace(-3, 3, 40)
    assert np.isnan(calibration_slope(z, (z > 0).astype(float), np.arange(40), once(40))[0])
    assert np.isnan(calibration_intercept(z, np.ones(40), np.arange(40), once(40))[0])


@settings(max_examples=30, deadline=None)
@given(st.floats(0.2, 5), st.integers(2, 5), st.integers(0, 1000))
def test_temperature_is_found_and_keeps_the_calls(true: float, classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 1.5, (3000, classes))
    cumulative = np.exp(log_softmax(z)).cumsum(axis=1)
    labels = np.minimum((rng.random((3000, 1)) > cumulative).sum(axis=1), classes - 1)
    found = fit_temperature(true * z + rng.normal(size=(3000, 1)), labels)
    assert found == pytest.approx(true, rel=0.15)
    assert np.array_equal((true * z / found).argmax(axis=1), z.argmax(axis=1))


def test_temperature_is_the_minimum_of_the_likelihood() -> None:
    rng = np.random.default_rng(0)
    z, labels = rng.normal(0, 3, (200, 3)), rng.integers(0, 3, 200)
    labels[:120] = z[:120].argmax(axis=1)

    def loss(t: float) -> float:
        return float(-log_softmax(z / t)[np.arange(200), labels].mean())

    t = fit_temperature(z, labels)
    assert loss(t) < min(loss(t * 1.01), loss(t / 1.01))
    doubled = fit_temperature(np.concatenate([z, z[:50]]), np.concatenate([labels, labels[:50]]))
    weights = np.where(np.arange(200) < 50, 2.0, 1.0)
    assert fit_temperature(z, labels, weights) == pytest.approx(doubled, rel=1e-5)


def test_temperature_needs_two_classes() -> None:
    with pytest.raises(DataError, match=r"at least two classes; got 5 cases of 1 class"):
        fit_temperature(np.zeros((5, 2)), np.zeros(5, dtype=np.int64))


def test_smooth_curve_follows_the_truth_and_keeps_rare_events() -> None:
    rng = np.random.default_rng(0)
    p = rng.beta(1, 9, 4000)
    y = (rng.random(4000) < p**0.8).astype(float)
    curve = SmoothCurve.prepare(p, y, np.arange(4000), 4000)
    assert curve.at(once(4000))[0] == pytest.approx(curve.grid**0.8, abs=0.05)
    flat = SmoothCurve.prepare(np.full(20, 0.3), np.ones(20), np.arange(20), 20)
    assert flat.at(once(20)).tolist() == [[1.0]]
