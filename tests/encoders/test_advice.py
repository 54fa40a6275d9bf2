"""The advice: the textbook's table, for labels and for masks, with strategies that the task can be trained with."""

from __future__ import annotations

import pytest

import medtl
from medtl.encoders.advice import FEW_PATIENTS, MANY_PATIENTS, Advice, advise
from medtl.encoders.distance import Distance
from medtl.evaluation.statistics.estimate import Estimate

NUMBER = Estimate(0.97, 0.9, 0.99, "", 0.95, 100, 100, 50, "ok")
FAR = Distance(NUMBER, NUMBER)
PATIENTS = (FEW_PATIENTS - 1, FEW_PATIENTS, MANY_PATIENTS)


@pytest.mark.parametrize(
    ("patients", "skill", "labels", "masks"),
    [
        (FEW_PATIENTS - 1, 0.8, "probe", "head"),
        (FEW_PATIENTS - 1, 0.2, "last:1", "last:1"),
        (FEW_PATIENTS, 0.8, "lp_ft", "gradual"),
        (FEW_PATIENTS, 0.2, "gradual", "gradual"),
        (MANY_PATIENTS, 0.8, "full", "full"),
        (MANY_PATIENTS, 0.2, "full", "full"),
    ],
)
def test_the_textbooks_table(patients: int, skill: float, labels: str, masks: str) -> None:
    for task, strategy in (("labels", labels), ("masks", masks)):
        advice = advise(patients, skill, task=task)
        assert advice.strategy == strategy
        assert "conventions" in advice.reasons[-1]


def test_every_advice_can_be_followed() -> None:
    """What is advised can be built for the task: a decoder has no probe."""
    models = {
        "labels": medtl.build_classifier("test_resnet", 2, weights="random"),
        "masks": medtl.build_segmenter("test_resnet", 2, weights="random"),
    }
    for task, model in models.items():
        given = [(n, s, d) for n in PATIENTS for s in (0.2, 0.8) for d in (None, FAR)]
        for strategy in {advise(n, s, d, task=task).strategy for n, s, d in given}:
            medtl.build_strategy(strategy, model)


@pytest.mark.parametrize(("task", "strategy"), [("labels", "lp_ft"), ("masks", "gradual")])
def test_a_far_target_is_said_and_keeps_the_features(task: str, strategy: str) -> None:
    advice = advise(MANY_PATIENTS, 0.8, FAR, task=task)
    assert advice.strategy == strategy
    assert any("AUC of 0.97" in reason for reason in advice.reasons)


def test_a_better_earlier_depth_counts_as_far() -> None:
    found = advise(5, 0.8, depth="stage3")
    assert isinstance(found, Advice)
    assert found.strategy == "last:1"
    assert "stage3" in found.reasons[1]
