from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from medtl.errors import ConfigError, DataError
from medtl.evaluation import OperatingPoint, ppv_npv

SCORES = np.array([-2.0, -1.0, 0.0, 0.5, 1.0, 2.0, 3.0])
LABELS = np.array([0, 0, 1, 0, 1, 1, 1]) > 0


def test_rules() -> None:
    youden = OperatingPoint.on_validation(SCORES, LABELS, rule="youden", positive="lesion")
    assert (youden.threshold, youden.sensitivity, youden.specificity) == (0.75, 0.75, 1.0)
    assert youden.probability == pytest.approx(1 / (1 + np.exp(-0.75)))
    sens = OperatingPoint.on_validation(SCORES, LABELS, rule="sens>=0.95")
    assert (sens.threshold, sens.sensitivity, sens.specificity) == (-0.5, 1.0, pytest.approx(2 / 3))
    spec = OperatingPoint.on_validation(SCORES, LABELS, rule="spec >= .6")
    assert (spec.threshold, spec.sensitivity) == (-0.5, 1.0)
    assert (youden.num_cases, youden.num_events) == (7, 4)


def test_of_equally_good_thresholds_the_more_sensitive_one_is_taken() -> None:
    point = OperatingPoint.on_validation(np.array([0.0, 1.0, 2.0, 3.0]), np.array([0, 1, 0, 1]) > 0)
    assert (point.threshold, point.sensitivity, point.specificity) == (0.5, 1.0, 0.5)


def test_a_case_at_the_threshold_is_positive() -> None:
    point = dataclasses.replace(OperatingPoint.default("x"), threshold=0.5)
    assert point.apply(np.array([0.4, 0.5, 0.6])).tolist() == [False, True, True]


def test_neighbours_in_float64_stay_apart() -> None:
    low = 1.0
    high = np.nextafter(low, 2)
    point = OperatingPoint.on_validation(np.array([low, high]), np.array([False, True]))
    assert point.apply(np.array([low, high])).tolist() == [False, True]


def test_it_is_frozen_and_refuses_to_be_fitted_again() -> None:
    point = OperatingPoint.on_validation(SCORES, LABELS)
    with pytest.raises(DataError, match=r"frozen: it was fitted by the rule 'youden' on 7 validation"):
        point.fit(SCORES, LABELS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        point.threshold = 0.0  # type: ignore[misc]


def test_the_fingerprint_depends_on_the_data_not_on_their_order() -> None:
    first = OperatingPoint.on_validation(SCORES, LABELS)
    assert OperatingPoint.on_validation(SCORES[::-1], LABELS[::-1]).data_hash == first.data_hash
    assert OperatingPoint.on_validation(SCORES + 1e-9, LABELS).data_hash != first.data_hash


@pytest.mark.parametrize("rule", ["sens", "sens>=95", "spec>0.9", "f1", "sens>=1.5"])
def test_unknown_rules(rule: str) -> None:
    with pytest.raises(ConfigError, match=r"expected 'youden', 'sens>=x' or 'spec>=x'"):
        OperatingPoint.on_validation(SCORES, LABELS, rule=rule)


def test_one_class_only() -> None:
    with pytest.raises(DataError, match=r"needs both classes.*got 0 of 7"):
        OperatingPoint.on_validation(SCORES, LABELS & False)


def test_predictive_values_depend_on_prevalence() -> None:
    # Metrics Reloaded, SN 2.9: sensitivity .9, specificity .8 at prevalences of one half and of nine tenths.
    assert ppv_npv(0.9, 0.8, 0.5) == pytest.approx((0.45 / 0.55, 0.4 / 0.45))
    ppv, npv = ppv_npv(0.9, 0.8, 0.9)
    assert (round(float(ppv), 2), round(float(npv), 2)) == (0.98, 0.47)
    assert np.isnan(ppv_npv(0.0, 1.0, 0.3)[0])
