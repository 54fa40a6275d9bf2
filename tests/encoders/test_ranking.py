"""Scores of frozen features: against direct computation, and their order on features of known quality."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from sklearn.covariance import ledoit_wolf
from sklearn.neighbors import KNeighborsClassifier

from medtl.encoders.ranking import Candidate, h_score, knn_score, leep, logme, random_halves, rank_candidates
from medtl.errors import ConfigError, DataError

RNG = np.random.default_rng(0)


def data(n: int = 60, width: int = 20, signal: float = 1.5, classes: int = 3, seed: int = 0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    centres = rng.normal(size=(classes, width))
    return signal * centres[labels] + rng.normal(size=(n, width)), labels


class TestLogME:
    @pytest.mark.parametrize("width", [4, 90])
    def test_is_the_maximum_of_the_evidence(self, width: int) -> None:
        x, labels = data(n=30, width=width, signal=0.6, classes=2)
        y = (labels == 1).astype(float)

        def negative(logs: np.ndarray) -> float:  # y ~ N(0, FF'/alpha + I/beta): no part of our derivation
            alpha, beta = np.exp(logs)
            return -multivariate_normal.logpdf(y, cov=x @ x.T / alpha + np.eye(len(x)) / beta)

        best = -minimize(
            negative, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-10}
        ).fun
        one = (labels == 0).astype(float)
        y = one
        other = -minimize(
            negative, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-10}
        ).fun
        assert logme(x, labels) == pytest.approx((best + other) / 2 / len(x), abs=1e-6)

    def test_agrees_with_the_published_iteration(self) -> None:
        x, labels = data()
        u, s, _ = np.linalg.svd(x, full_matrices=False)
        n, width = x.shape
        evidences = []
        for k in range(3):
            y = (labels == k).astype(float)
            alpha = beta = 1.0
            for _ in range(500):
                gamma = (beta * s**2 / (alpha + beta * s**2)).sum()
                m = beta * s * (u.T @ y) / (alpha + beta * s**2)
                residual = ((y - u @ (s * m)) ** 2).sum()
                alpha, beta = gamma / (m @ m), (n - gamma) / residual
            m = beta * s * (u.T @ y) / (alpha + beta * s**2)
            residual = ((y - u @ (s * m)) ** 2).sum()
            evidences.append(
                width / 2 * np.log(alpha)
                + n / 2 * np.log(beta / (2 * np.pi))
                - beta / 2 * residual
                - alpha / 2 * m @ m
                - 0.5 * np.log(alpha + beta * s**2).sum()
            )
        assert logme(x, labels) == pytest.approx(np.mean(evidences) / n, abs=1e-7)

    def test_ignores_scale_and_rotation(self) -> None:
        x, labels = data()
        turn = np.linalg.qr(RNG.normal(size=(20, 20)))[0]
        assert logme(1e3 * x @ turn, labels) == pytest.approx(logme(x, labels), abs=1e-6)

    def test_features_that_say_everything_or_nothing_stay_finite(self) -> None:
        labels = np.arange(40) % 2
        perfect = np.stack([labels, 1 - labels], axis=1).astype(float)
        assert np.isfinite(logme(perfect, labels))
        noise = RNG.normal(size=(40, 8))
        assert logme(perfect, labels) > logme(noise, labels)


class TestHScore:
    @pytest.mark.parametrize("width", [8, 150])
    def test_is_the_trace_of_its_definition(self, width: int) -> None:
        x, labels = data(width=width)
        covariance, a = ledoit_wolf(x)
        means = np.stack([x[labels == k].mean(axis=0) for k in labels])
        between = np.cov(means.T, bias=True)
        assert h_score(x, labels) == pytest.approx(
            (1 - a) * np.trace(np.linalg.solve(covariance, between)), rel=1e-8
        )

    def test_has_its_bounds(self) -> None:
        x, labels = data(n=3000, signal=30.0)
        assert 1.9 < h_score(x, labels) < 2


class TestKnn:
    def test_one_case_a_patient_agrees_with_scikit_learn(self) -> None:
        x, labels = data(n=40, signal=0.7, classes=2)
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        called = []
        for i in range(40):
            rest = np.arange(40) != i
            called.append(KNeighborsClassifier(5).fit(unit[rest], labels[rest]).predict(unit[i : i + 1])[0])
        called = np.array(called)
        balanced = np.mean([(called[labels == k] == k).mean() for k in (0, 1)])
        assert knn_score(x, labels, np.arange(40)) == pytest.approx(balanced)

    def test_a_patient_is_not_recognised_by_an_own_scan(self) -> None:
        patients = np.repeat(np.arange(60), 2)
        labels = np.repeat(np.arange(60) % 2, 2)
        x = np.repeat(RNG.normal(size=(60, 30)), 2, axis=0)  # two equal scans each, no signal
        assert knn_score(x, labels, np.arange(120), neighbours=1) == 1.0
        assert knn_score(x, labels, patients, neighbours=1) < 0.7


class TestLeep:
    def test_closed_form(self) -> None:
        theta = np.array([[0.8, 0.2], [0.6, 0.4], [0.1, 0.9]])
        labels = np.array([0, 0, 1])
        given0 = np.array([1.4 / 1.5, 0.6 / 1.5])
        expected = np.mean(np.log([theta[0] @ given0, theta[1] @ given0, theta[2] @ (1 - given0)]))
        assert leep(theta, labels) == pytest.approx(expected)

    def test_a_head_that_knows_the_classes_reaches_zero(self) -> None:
        labels = np.arange(10) % 2
        assert leep(np.eye(2)[labels], labels) == pytest.approx(0)

    def test_logits_are_an_error(self) -> None:
        with pytest.raises(DataError, match="softmax"):
            leep(RNG.normal(size=(10, 4)), np.arange(10) % 2)


class TestRanking:
    @pytest.mark.parametrize("score", ["logme", "h_score", "knn"])
    def test_order_follows_the_signal(self, score: str) -> None:
        candidates = {f"signal {s}": Candidate(data(signal=s)[0]) for s in (0.0, 0.4, 1.5)}
        found = rank_candidates(candidates, data()[1], np.arange(60), score=score, replicates=20)
        assert [row.name for row in found.rows] == ["signal 1.5", "signal 0.4", "signal 0.0"]
        assert found.rows[0].first > 0.9
        assert sum(row.first for row in found.rows) == pytest.approx(1)
        assert found.stability is not None
        assert found.stability > 0.6
        own = found.rows[0].scores[score]
        assert own.lo < own.value <= own.hi

    def test_equal_candidates_share_the_first_place(self) -> None:
        x, labels = data()
        found = rank_candidates({"a": Candidate(x), "b": Candidate(x)}, labels, np.arange(60), replicates=10)
        assert [row.first for row in found.rows] == [0.5, 0.5]

    def test_interval_covers_what_other_patients_give(self) -> None:
        scores = [logme(*data(n=80, width=10, signal=0.5, classes=2, seed=0)) for _ in range(1)]
        rng = np.random.default_rng(1)
        centres = rng.normal(size=(2, 10))
        labels = np.arange(80) % 2
        draws = [0.5 * centres[labels] + rng.normal(size=(80, 10)) for _ in range(30)]
        scores = [logme(x, labels) for x in draws]
        estimates = [
            rank_candidates({"a": Candidate(x)}, labels, np.arange(80), replicates=40).rows[0].scores["logme"]
            for x in draws[:15]
        ]
        covered = np.mean([e.lo <= np.mean(scores) <= e.hi for e in estimates])
        assert covered >= 0.8

    def test_leep_is_ranked_only_with_heads(self) -> None:
        x, labels = data()
        probs = np.full((60, 4), 0.25)
        both = {"a": Candidate(x, probs), "b": Candidate(x)}
        assert "leep" in rank_candidates(both, labels, np.arange(60), replicates=2).rows[0].scores
        with pytest.raises(ConfigError, match="needs a head"):
            rank_candidates(both, labels, np.arange(60), score="leep")

    def test_halves_hold_whole_patients_of_every_class(self) -> None:
        patients = np.repeat(np.arange(11), 3)
        labels = np.repeat(np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2]), 3)
        halves = list(random_halves(labels, patients, 20, 0))
        assert len(halves) == 20
        for rows in halves:
            kept = np.unique(patients[rows])
            assert len(rows) == 3 * len(kept)
            assert sorted(np.bincount(labels[rows]) // 3) == [2, 2, 3]

    def test_of_patients_with_several_classes_every_class_has_two(self) -> None:
        """Patients of class 2 all belong to the rarer classes 0 or 1, whose halves may hold one of them or none."""
        people = {0: [0, 1, 2, 3], 1: [4, 5, 6, 7], 2: [0, 1, 4, 5, 6]}
        labels = np.concatenate([np.full(len(p), k) for k, p in people.items()])
        patients = np.concatenate(list(people.values()))
        halves = list(random_halves(labels, patients, 100, 0))
        assert len(halves) == 100
        for rows in halves:
            counts = [len(np.unique(patients[rows][labels[rows] == k])) for k in range(3)]
            assert min(counts) >= 2


class TestBadInput:
    @pytest.mark.parametrize(
        ("features", "labels", "says"),
        [
            (RNG.normal(size=(10, 4)), np.zeros(10, dtype=int), "10 cases of 1 classes"),
            (RNG.normal(size=(3, 4)), np.arange(3), "3 cases of 3 classes"),
            (np.full((10, 4), 3.0), np.arange(10) % 2, "same in all cases"),
            (np.full((10, 4), np.nan), np.arange(10) % 2, "not finite"),
            (RNG.normal(size=(10, 4)), np.arange(9) % 2, "Expected features"),
        ],
    )
    def test_is_clear(self, features: np.ndarray, labels: np.ndarray, says: str) -> None:
        for score in (logme, h_score):
            with pytest.raises(DataError, match=says):
                score(features, labels)

    def test_one_patient_in_a_class(self) -> None:
        x, labels = data(n=10, classes=2)
        patients = np.where(labels == 1, 99, np.arange(10))
        with pytest.raises(DataError, match="one patient only"):
            knn_score(x, labels, patients)
        with pytest.raises(DataError, match="one patient only"):
            rank_candidates({"a": Candidate(x)}, labels, patients)

    def test_the_candidate_is_named(self) -> None:
        x, labels = data(n=10, classes=2)
        with pytest.raises(DataError, match="flat: The features are the same"):
            rank_candidates({"good": Candidate(x), "flat": Candidate(0 * x)}, labels, np.arange(10))

    def test_an_unknown_score(self) -> None:
        with pytest.raises(ConfigError, match="logme, h_score, knn, leep"):
            rank_candidates({}, np.zeros(2), np.zeros(2), score="nce")
