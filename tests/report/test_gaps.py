from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from medtl.evaluation import LearningCurve, PredictionTable, Results, RunContext, evaluate
from medtl.evaluation.statistics.resample import wilson
from medtl.report.overfitting import LARGE_GAP, Gap, gaps, in_short, sentences
from medtl.report.view import View

Maker = Callable[..., pd.DataFrame]


def curve(
    model: str, train: float | None, validation: float | None, seed: str = "0", **more: Any
) -> LearningCurve:
    given: dict[str, Any] = {"kept_epoch": 2, "validation_loss": (0.9, 0.6, 0.7), "validation_patients": 60}
    given |= {"train_accuracy": train, "validation_accuracy": validation}
    return LearningCurve(model, seed, (1, 2, 3), (1.0, 0.6, 0.5), **(given | more))


@pytest.fixture(scope="module")
def evaluated(binary: Maker) -> Callable[..., Results]:
    results = {
        n: evaluate(PredictionTable.from_frame(binary(seeds=("0",), validation=n)), replicates=200)
        for n in (0, 60)
    }

    def with_curves(*curves: LearningCurve, validation: int = 60) -> Results:
        from dataclasses import replace

        return replace(results[validation], context=RunContext(learning=curves))

    return with_curves


def found(results: Results) -> Gap:
    (gap,) = gaps(View(results))
    return gap


def test_large_needs_points_and_more_than_noise(evaluated: Callable[..., Results]) -> None:
    assert found(evaluated(curve("dann", 0.99, 0.70))).reads == "large"
    assert found(evaluated(curve("dann", 0.70 + LARGE_GAP - 0.01, 0.70))).reads == "small"
    assert found(evaluated(curve("dann", 0.70, 0.80))).reads == "small"
    # Ten validation patients: an interval of 0.4 to 0.9 explains a gap of 0.15.
    few = curve("nobody", 0.85, 0.70, validation_patients=10)
    assert found(evaluated(few)).reads == "within the noise"
    assert found(evaluated(curve("nobody", 0.85, 0.70, validation_patients=400))).reads == "large"


def test_the_interval_is_that_of_the_table_and_else_wilsons(evaluated: Callable[..., Results]) -> None:
    results = evaluated(curve("dann", 0.99, 0.70))
    block = results.block("dann", "source", "validation")
    assert block is not None
    e = block.get("balanced_accuracy").estimate  # type: ignore[union-attr]
    gap = found(results)
    assert gap.hi == pytest.approx(min(1, 0.70 + e.hi - e.value))  # type: ignore[operator]
    assert gap.lo == pytest.approx(0.70 - (e.value - e.lo))  # type: ignore[operator]
    without = found(evaluated(curve("dann", 0.99, 0.70), validation=0))
    assert (without.lo, without.hi) == wilson(0.70, 60, 0.95)
    unknown = found(evaluated(curve("dann", 0.99, 0.70, validation_patients=0), validation=0))
    assert (unknown.lo, unknown.hi, unknown.reads) == (None, None, "large")


def test_means_over_seeds(evaluated: Callable[..., Results]) -> None:
    gap = found(
        evaluated(curve("dann", 1.0, 0.6), curve("dann", 0.9, 0.8, seed="1"), curve("dann", None, None, "2"))
    )
    assert (gap.train, gap.validation, gap.size) == pytest.approx((0.95, 0.7, 0.25))
    assert gap.kept == ((2, 3), (2, 3), (2, 3))


def test_plain_words(evaluated: Callable[..., Results]) -> None:
    results = evaluated(
        curve("source_only", 0.72, 0.70),
        curve("dann", 0.99, 0.70),
        curve("nobody", 0.85, 0.70, validation_patients=10),
        curve("slow", None, None, kept_epoch=3, validation_loss=(0.9, 0.7, 0.6)),
    )
    text = " ".join(sentences(View(results), gaps(View(results))))
    assert (
        "Large gap between training and validation (balanced accuracy): dann 0.99 on its training cases"
        in text
    )
    for advice in (
        "early stopping",
        "weight decay",
        "augmentation",
        "fewer trained layers",
        "more labelled patients",
    ):
        assert advice in text
    assert "The gap of nobody is 0.10 or more, but lies within the interval" in text
    assert "slow: the loss on validation was lowest in the last epoch" in text
    assert next(in_short(View(results))).startswith("Large gap between training and validation: dann;")
    calm = evaluated(curve("dann", 0.72, 0.70))
    assert "No gap between training and validation is large" in " ".join(
        sentences(View(calm), gaps(View(calm)))
    )
    assert list(in_short(View(calm))) == []


def test_many_large_gaps_are_counted(evaluated: Callable[..., Results]) -> None:
    results = evaluated(*(curve(f"m{k}", 1.0, 0.6 + k / 100) for k in range(9)))
    text = next(sentences(View(results), gaps(View(results))))
    assert "m0 1.00" in text
    assert "m8" not in text
    assert "and 6 more" in text
    assert next(in_short(View(results))).endswith("m0, m1, m2 and 6 more; see the learning curves.")
