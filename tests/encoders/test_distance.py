"""Distance of two sites, and the advice that follows from it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from medtl.encoders.distance import domain_distance
from medtl.errors import DataError


def sites(shift: float, n: int = 150, width: int = 5):
    rng = np.random.default_rng(1)
    source, target = rng.normal(size=(n, width)), rng.normal(size=(n, width))
    target[:, 0] += shift
    return source, target, np.arange(n), np.arange(n) + n


def test_alike_sites_have_no_distance() -> None:
    found = domain_distance(*sites(0.0))
    assert found.auc.lo is not None
    assert found.auc.lo < 0.5  # chance, or below: what is held out leans the other way than what is left
    assert found.auc.hi < 0.6
    assert found.a_distance.value == 0


def test_a_known_shift_has_its_known_distance() -> None:
    found = domain_distance(*sites(1.5, n=600))
    assert found.auc.value == pytest.approx(norm.cdf(1.5 / np.sqrt(2)), abs=0.03)
    error = norm.cdf(-1.5 / 2)
    assert found.a_distance.value == pytest.approx(2 * (1 - 2 * error), abs=0.1)
    assert found.a_distance.lo < found.a_distance.value < found.a_distance.hi


def test_separated_sites() -> None:
    found = domain_distance(*sites(50.0))
    assert (found.auc.value, found.auc.hi, found.a_distance.value) == (1.0, 1.0, 2.0)
    assert found.auc.lo < 1


def test_patients_are_not_recognised() -> None:
    rng = np.random.default_rng(0)
    person = np.repeat(np.arange(20), 10)
    looks = np.repeat(rng.normal(size=(40, 30)), 10, axis=0) + 0.01 * rng.normal(size=(400, 30))
    found = domain_distance(looks[:200], looks[200:], person, person + 20)
    assert found.auc.num_patients == 40
    assert found.auc.lo < 0.5 < found.auc.hi


def test_unequal_sites_do_not_count_as_distance() -> None:
    source, target, a, b = sites(0.0, n=400)
    found = domain_distance(source, target[:40], a, b[:40])
    assert found.a_distance.value < 0.5


@pytest.mark.parametrize(
    ("target", "patients", "says"),
    [
        (np.zeros((4, 3)), np.arange(4), "Expected features"),
        (np.zeros((4, 5)), np.zeros(4), "150 and 1 patients"),
        (np.full((4, 5), np.inf), np.arange(4), "not finite"),
    ],
)
def test_bad_input_is_clear(target: np.ndarray, patients: np.ndarray, says: str) -> None:
    source, _, who, _ = sites(0.0)
    with pytest.raises(DataError, match=says):
        domain_distance(source, target, who, patients + 1000)
