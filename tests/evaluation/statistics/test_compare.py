from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from scipy.special import ndtr, ndtri
from scipy.stats import norm

from medtl.evaluation import Comparison, Estimate
from medtl.evaluation.statistics.compare import compare

RNG = np.random.default_rng(0)
WHERE = ("target", "test", None, None)


def estimate(value: float) -> Estimate:
    return Estimate(value, value - 0.1, value + 0.1, "", 0.95, 50, 40, 20, "ok")


def against_first(replicates: Mapping[str, Any], **options: Any) -> Comparison:
    first = next(iter(replicates))
    estimates = {m: estimate(float(np.nanmean(r))) for m, r in replicates.items()}
    given = {"level": 0.95, "better": "higher", "where": WHERE, "name": "auroc"} | options
    found = compare(estimates, replicates, {m: first for m in replicates if m != first}, **given)
    assert found is not None
    return found


def test_one_pair_is_the_plain_interval() -> None:
    found = against_first({"a": np.full(40000, 0.5), "b": RNG.normal(0.6, 0.05, 40000)})
    best = found.rows[0]
    assert best.model == "b"
    assert best.reference == "a"
    assert best.difference is not None
    assert found.critical == pytest.approx(1.96, abs=0.03)
    assert best.difference.lo == pytest.approx(0.1 - 1.96 * 0.05, abs=0.003)
    assert best.p_value == pytest.approx(2 * ndtr(-2), abs=0.004)
    assert best.verdict == "gain"


def test_models_that_move_together_cost_nothing() -> None:
    moved = RNG.normal(0, 0.05, 40000)
    found = against_first({"a": np.full(40000, 0.5)} | {f"m{k}": 0.5 + 0.01 * k + moved for k in range(8)})
    assert found.critical == pytest.approx(1.96, abs=0.03)


@pytest.mark.parametrize("k", [3, 11])
def test_independent_models_need_sidak(k: int) -> None:
    found = against_first(
        {"a": np.full(40000, 0.5)} | {f"m{i}": RNG.normal(0.5, 0.05, 40000) for i in range(k)}
    )
    assert found.critical == pytest.approx(ndtri(0.5 + 0.95 ** (1 / k) / 2), abs=0.03)


@pytest.mark.parametrize(("k", "dunnett"), [(2, 2.21), (8, 2.65)])
def test_equal_models_against_one_need_dunnett(k: int, dunnett: float) -> None:
    # Dunnett 1964, table for infinite degrees of freedom: every comparison shares the reference's error.
    grid = np.linspace(-8, 8, 4001)
    inside = (ndtr(grid + np.sqrt(2) * dunnett) - ndtr(grid - np.sqrt(2) * dunnett)) ** k
    assert np.trapezoid(norm.pdf(grid) * inside, grid) == pytest.approx(0.95, abs=0.001)
    found = against_first({f"m{i}": RNG.normal(0.5, 0.05, 40000) for i in range(k + 1)})
    assert found.critical == pytest.approx(dunnett, abs=0.03)


def test_false_alarms_over_all_comparisons_are_rare() -> None:
    rng, alarms, num, patients, models = np.random.default_rng(1), 0, 300, 80, 7
    for _ in range(num):
        shared = rng.normal(size=(patients, 1))
        right = (shared + rng.normal(size=(patients, models)) > -0.6).astype(float)
        drawn = rng.multinomial(patients, np.full(patients, 1 / patients), 400) @ right / patients
        estimates = {f"m{i}": estimate(right[:, i].mean()) for i in range(models)}
        found = compare(
            estimates,
            {f"m{i}": drawn[:, i] for i in range(models)},
            {f"m{i}": "m0" for i in range(1, models)},
            level=0.95,
            better="higher",
            where=WHERE,
            name="accuracy",
        )
        assert found is not None
        alarms += any(r.verdict in ("gain", "harm") for r in found.rows)
    # About 5 %; six separate intervals would give one in five.
    assert alarms / num < 0.085


def test_ranks_and_shares_of_first_places() -> None:
    replicates = {"a": RNG.normal(0.5, 0.05, 2000), "b": RNG.normal(0.52, 0.05, 2000)}
    replicates["twin"] = replicates["b"].copy()
    found = against_first(replicates)
    assert [r.rank for r in found.rows] == [1, 2, 3]
    assert sum(r.first for r in found.rows) == pytest.approx(1)
    first = {r.model: r.first for r in found.rows}
    assert first["b"] == first["twin"]
    lower = against_first(replicates, better="lower", name="nll")
    assert lower.rows[0].model == "a"


def test_twins_differ_by_nothing() -> None:
    a = RNG.normal(0.5, 0.05, 500)
    row = next(r for r in against_first({"a": a, "b": a.copy()}).rows if r.model == "b")
    assert row.difference is not None
    assert (row.difference.value, row.difference.lo, row.difference.hi, row.difference.status) == (
        0,
        0,
        0,
        "fixed",
    )
    assert (row.p_value, row.verdict) == (1.0, "no clear difference")


def test_p_value_and_limits_agree() -> None:
    replicates = {f"m{i}": RNG.normal(0.5 + 0.02 * i, 0.04, 3000) for i in range(9)}
    rows = [row for row in against_first(replicates).rows if row.p_value is not None]
    clear = [row.p_value < 0.05 for row in rows if abs(row.p_value - 0.05) > 0.01]
    said = [row.verdict != "no clear difference" for row in rows if abs(row.p_value - 0.05) > 0.01]
    assert clear == said
    assert set(clear) == {True, False}


def test_nothing_to_compare() -> None:
    a = RNG.normal(0.5, 0.05, 100)
    options: dict[str, Any] = {"level": 0.95, "better": "higher", "where": WHERE, "name": "auroc"}
    assert compare({"a": estimate(0.5)}, {"a": a}, {"a": "gone"}, **options) is None
    assert (
        compare({"a": estimate(0.5), "b": estimate(0.5)}, {"a": a, "b": a * np.nan}, {"b": "a"}, **options)
        is None
    )
