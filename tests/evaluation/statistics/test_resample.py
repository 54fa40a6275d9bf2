from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from medtl.evaluation import auroc
from medtl.evaluation.metrics.discrimination import RankedScores, delong_ci, delong_variance
from medtl.evaluation.statistics.resample import (
    Support,
    estimate,
    expanded_tail,
    patient_counts,
    patient_strata,
    wilson,
)
from tests.helpers.work import calls, peak


def draw(strata: np.ndarray, replicates: int, seed: int, columns: int | None = None) -> np.ndarray:
    return np.concatenate(list(patient_counts(strata, replicates, seed, columns)))


def test_each_stratum_keeps_its_size() -> None:
    strata = np.array([0, 1, 1, 0, 2, 1])
    counts = draw(strata, 200, 3)
    for s in range(3):
        assert np.all(counts[:, strata == s].sum(axis=1) == (strata == s).sum())
    assert counts[:, strata == 1].var() > 0
    assert counts.mean(axis=0) == pytest.approx(np.ones(6), abs=0.25)


def test_counts_do_not_depend_on_the_block_size() -> None:
    strata = np.arange(50) % 2
    assert np.array_equal(draw(strata, 100, 7), draw(strata, 100, 7, columns=100_000))
    assert not np.array_equal(draw(strata, 100, 7), draw(strata, 100, 8))


def test_a_patient_is_drawn_with_the_rarest_of_his_classes() -> None:
    labels = np.array([0, 0, 0, 1, 0, 1, -1, 0, -1])
    patient = np.array([0, 1, 2, 2, 3, 4, 5, 6, 6])
    strata = patient_strata(labels, patient, 7)
    assert strata[2] == strata[4]  # one of the two cases is of the rare class
    assert strata[0] == strata[1] == strata[3] == strata[6]
    assert len({strata[0], strata[4], strata[5]}) == 3  # unlabelled patients are drawn among themselves
    by_site = patient_strata(labels, patient, 7, site=np.array([0, 1, 0, 0, 0, 0, 0, 0, 0]))
    assert by_site[0] != by_site[1]


def test_wilson_values() -> None:
    # Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    assert wilson(81 / 263, 263, 0.95) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15 / 148, 148, 0.95) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20, 0.95) == pytest.approx((0, 0.1611), abs=5e-5)
    assert wilson(1 / 29, 29, 0.95) == pytest.approx((0.0061, 0.1718), abs=5e-5)


def support(n: int = 50, smaller: int = 20) -> Support:
    return Support(n, n, smaller, smaller, float(n))


def test_boundaries_never_collapse() -> None:
    ones = np.ones(500)
    share = estimate(1.0, ones, kind="proportion", level=0.95, support=support())
    assert (share.lo, share.hi, share.status) == (pytest.approx(0.92865, abs=1e-5), 1.0, "boundary")
    area = estimate(1.0, ones, kind="auroc", level=0.95, support=support())
    assert (area.lo, area.hi, area.status) == (pytest.approx(0.025 ** (1 / 20)), 1.0, "separated")
    worst = estimate(0.0, 0 * ones, kind="auroc", level=0.95, support=support())
    assert (worst.lo, worst.hi) == (0.0, pytest.approx(1 - 0.025 ** (1 / 20)))


def test_statuses() -> None:
    rng = np.random.default_rng(0)
    good = rng.normal(0.7, 0.05, 1000)
    kind = {"kind": "percentile", "level": 0.95}
    assert estimate(0.7, good, support=support(), **kind).status == "ok"
    assert estimate(0.7, good, support=support(smaller=9), **kind).status == "few_events"
    holes = np.where(np.arange(1000) < 100, np.nan, good)
    broken = estimate(0.7, holes, support=support(), **kind)
    assert (broken.status, broken.num_degenerate) == ("degenerate", 100)
    nothing = estimate(np.nan, good, support=support(), **kind)
    assert (nothing.value, nothing.lo, nothing.status) == (None, None, "undefined")
    assert estimate(0.7, good, kind="point", level=0.95, support=support()).lo is None


def interval(
    scores: np.ndarray, y: np.ndarray, patient: np.ndarray, replicates: int = 400
) -> tuple[float, float]:
    num = int(patient.max()) + 1
    strata = patient_strata(y.astype(np.int64), patient, num)
    ranked = RankedScores(scores, y, patient)
    drawn = np.concatenate([ranked.auroc(c) for c in patient_counts(strata, replicates, 1, len(y))])
    smaller = int(min(len(np.unique(patient[y])), len(np.unique(patient[~y]))))
    e = estimate(auroc(scores, y), drawn, kind="auroc", level=0.95, support=support(len(y), smaller))
    assert e.lo is not None
    assert e.hi is not None
    return e.lo, e.hi


def test_duplicated_rows_leave_the_interval() -> None:
    rng = np.random.default_rng(0)
    y = rng.random(80) < 0.4
    scores, patient = rng.normal(size=80) + 1.2 * y, np.arange(80)
    once = interval(scores, y, patient)
    assert interval(np.tile(scores, 3), np.tile(y, 3), np.tile(patient, 3)) == pytest.approx(once, abs=1e-12)


def test_bootstrap_agrees_with_delong_where_patients_are_rows() -> None:
    rng = np.random.default_rng(0)
    y = rng.random(300) < 0.4
    scores = rng.normal(size=300) + 1.2 * y
    assert interval(scores, y, np.arange(300), 4000) == pytest.approx(delong_ci(scores, y)[1:], abs=4e-3)
    assert delong_variance(scores, y)[1] > 0


@pytest.mark.parametrize(("n", "replicates"), [(2000, 2000), (1000, 4000)])
def test_work_grows_no_faster_than_cases_and_resamples(n: int, replicates: int) -> None:
    """Resamples are worked through in blocks: twice as many cost twice the calls at most, and no more memory."""

    def draws(n: int, replicates: int) -> Callable[[], object]:
        rng = np.random.default_rng(0)
        y = rng.random(n) < 0.4
        scores = rng.normal(size=n) + y
        return lambda: interval(scores, y, np.arange(n), replicates)

    once, twice = draws(1000, 2000), draws(n, replicates)
    once()
    assert calls(twice) <= 2 * calls(once)
    assert peak(twice) < 1.2 * peak(once)


def coverage(num_images: int, shift: float, patients: int, trials: int, by_patient: bool) -> float:
    """Share of intervals that hold the true AUROC; images of a patient share 80 % of their variance."""
    from scipy.special import ndtr

    rng = np.random.default_rng(11)
    true, hits = float(ndtr(shift / np.sqrt(2))), 0
    for _ in range(trials):
        y = np.repeat(np.arange(patients) % 3 == 0, num_images)
        common = np.repeat(rng.normal(size=patients), num_images)
        scores = np.sqrt(0.8) * common + np.sqrt(0.2) * rng.normal(size=len(y)) + shift * y
        unit = np.repeat(np.arange(patients), num_images) if by_patient else np.arange(len(y))
        lo, hi = interval(scores, y, unit, 200)
        hits += lo <= true <= hi
    return hits / trials


def test_coverage_is_nominal_by_patients_and_not_by_images() -> None:
    assert 0.91 <= coverage(5, 1.2, 80, 250, by_patient=True) <= 0.985
    assert coverage(5, 1.2, 80, 250, by_patient=False) < 0.8


def test_coverage_near_one() -> None:
    # A true AUROC of .99 with 15 positive patients, where a symmetric interval covers about .90.
    assert coverage(1, 3.29, 45, 250, by_patient=True) >= 0.93


def test_intervals_of_means_are_expanded_for_few_patients() -> None:
    # Hesterberg 2015: at n = 5 and 95 %, Phi(-sqrt(5/4) * t(.975; 4)) = Phi(-3.1042) = 0.00095.
    assert expanded_tail(5, 0.95) == pytest.approx(0.000954, abs=5e-6)
    assert expanded_tail(100_000, 0.95) == pytest.approx(0.025, abs=1e-5)
    replicates = np.random.default_rng(0).normal(size=2000)
    few = estimate(0.0, replicates, kind="mean", level=0.95, support=Support(8, 8, None, 8, 8.0))
    many = estimate(0.0, replicates, kind="mean", level=0.95, support=Support(800, 800, None, 800, 800.0))
    assert few.lo < many.lo < many.hi < few.hi
