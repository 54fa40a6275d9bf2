from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import roc_auc_score

from medtl.errors import DataError
from medtl.evaluation import auroc, delong_ci, delong_test
from medtl.evaluation.metrics.discrimination import RankedScores, delong_variance, placements
from medtl.evaluation.statistics.resample import patient_counts


@pytest.fixture(scope="module")
def cancer() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    data = load_breast_cancer()
    return data.data[:, 0], data.data[:, 1], data.target == 0


def test_auroc_of_the_pitfalls_paper() -> None:
    # Metrics Reloaded, "Understanding metric-related pitfalls", SN 2.18.
    scores, y = np.array([0.21, 0.35, 0.63, 0.92, 0.32, 0.79]), np.array([0, 0, 0, 1, 1, 1]) > 0
    assert auroc(scores, y) == pytest.approx(7 / 9, rel=1e-12)


def test_delong_values(cancer: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    radius, texture, y = cancer
    assert delong_variance(radius, y) == pytest.approx((0.93751652, 1.09354204e-4), rel=1e-8)
    assert delong_variance(texture, y) == pytest.approx((0.77582448, 3.89443113e-4), rel=1e-8)
    assert delong_test(radius, texture, y) == pytest.approx((7.308787404733402, 2.695638625e-13), rel=1e-9)
    a, b = placements(radius, y), placements(texture, y)
    covariance = sum(np.cov(p, q)[0, 1] / len(p) for p, q in zip(a, b, strict=True))
    assert covariance == pytest.approx(4.68590651e-6, rel=1e-8)


def test_delong_intervals(cancer: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    radius, _, y = cancer
    assert delong_ci(radius, y)[1:] == pytest.approx((0.9136035, 0.9551358), abs=1e-7)
    assert delong_ci(radius, y, scale="wald")[1:] == pytest.approx((0.9170207, 0.9580124), abs=1e-7)
    with pytest.raises(ValueError, match="'logit' or 'wald'"):
        delong_ci(radius, y, scale="probit")


def test_swapped_models_turn_the_sign(cancer: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    radius, texture, y = cancer
    z, p = delong_test(radius, texture, y)
    assert delong_test(texture, radius, y) == pytest.approx((-z, p), rel=1e-12)
    assert delong_test(radius, radius, y) == (0.0, 1.0)


def test_complete_separation_has_an_honest_bound() -> None:
    value, lo, hi = delong_ci(np.arange(20.0), np.arange(20) >= 12)
    assert (value, hi) == (1.0, 1.0)
    assert lo == pytest.approx(0.025 ** (1 / 8))  # Clopper-Pearson, 8 successes of 8


def test_delong_needs_two_of_each() -> None:
    with pytest.raises(DataError, match="at least two cases of each class; got 1 positive"):
        delong_variance(np.arange(5.0), np.arange(5) == 0)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=2, max_size=60))
def test_auroc_equals_brute_force_under_ties(pairs: list[tuple[int, bool]]) -> None:
    scores, y = np.array([float(s) for s, _ in pairs]), np.array([p for _, p in pairs])
    if y.all() or not y.any():
        assert np.isnan(auroc(scores, y))
        return
    won = scores[y][:, None] - scores[~y][None, :]
    expected = np.mean((won > 0) + 0.5 * (won == 0))
    assert auroc(scores, y) == pytest.approx(expected, abs=1e-12)
    assert auroc(np.exp(scores / 3) * 7 - 1, y) == pytest.approx(expected, abs=1e-12)
    assert auroc(-scores, y) == pytest.approx(1 - expected, abs=1e-12)


def test_counts_are_repeated_rows() -> None:
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(30), 3)
    scores, y = rng.normal(size=90).round(1), rng.random(90) < 0.4
    ranked = RankedScores(scores, y, patient)
    for counts in patient_counts(np.zeros(30, dtype=np.int64), 20, 5):
        for drawn, value in zip(counts.astype(int), ranked.auroc(counts), strict=True):
            rows = np.repeat(np.arange(90), drawn[patient])
            assert value == pytest.approx(roc_auc_score(y[rows], scores[rows]), abs=1e-12)


def test_roc_curve_agrees_with_its_area() -> None:
    rng = np.random.default_rng(0)
    y = rng.random(400) < 0.5
    scores = rng.normal(size=400) + y
    ranked = RankedScores(scores, y, np.arange(400))
    grid = np.linspace(0, 1, 2001)
    curve = ranked.sensitivity_at(np.ones((1, 400)), grid)[0]
    assert np.all(np.diff(curve) >= 0)
    assert curve[-1] == 1
    assert np.trapezoid(curve, grid) == pytest.approx(auroc(scores, y), abs=2e-3)
