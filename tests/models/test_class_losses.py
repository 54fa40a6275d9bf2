"""Losses for rare classes against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from medtl.errors import ConfigError
from medtl.models.losses.classification import (
    IMBALANCE,
    ClassificationLoss,
    calibration_note,
    inverse_frequency_weights,
)

LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.0, 1.0, 0.0], [0.3, 0.2, 0.1]])
LABEL = torch.tensor([0, 1, 2])
COUNTS = (60, 30, 10)


def test_closed_forms() -> None:
    log_p = LOGITS.log_softmax(1)[torch.arange(3), LABEL]
    prior = torch.tensor(COUNTS) / 100
    weights = torch.tensor([100 / 180, 100 / 90, 100 / 30])
    expected = {
        "cross_entropy": -log_p.mean(),
        "class_weights": -(weights * log_p).mean(),
        "focal": -((1 - log_p.exp()) ** 2 * log_p).mean(),
        "logit_adjusted": F.cross_entropy(LOGITS + prior.log(), LABEL),
    }
    for name, value in expected.items():
        torch.testing.assert_close(ClassificationLoss(name, COUNTS)(LOGITS, LABEL), value)
    assert inverse_frequency_weights(COUNTS) == pytest.approx(weights.tolist())


def test_what_is_not_labelled_counts_for_nothing() -> None:
    for name in ("class_weights", "focal", "logit_adjusted"):
        loss = ClassificationLoss(name, COUNTS)
        torch.testing.assert_close(
            loss(LOGITS, torch.tensor([0, -1, 2])), loss(LOGITS[[0, 2]], LABEL[[0, 2]])
        )


def test_of_labels() -> None:
    assert ClassificationLoss.of_labels("none", [0, 1], 2) is None
    drawn = ClassificationLoss.of_labels("balanced_sampling", [0, 1, 1], 2)
    assert drawn is not None
    torch.testing.assert_close(
        drawn(LOGITS[:, :2], torch.tensor([0, 1, 1])), F.cross_entropy(LOGITS[:, :2], torch.tensor([0, 1, 1]))
    )
    loss = ClassificationLoss.of_labels("class_weights", [0, 0, 0, 1], 2)
    assert loss is not None
    assert loss.weights.tolist() == pytest.approx([4 / 6, 2])


def test_every_remedy_says_what_it_does_to_calibration() -> None:
    assert all(bool(calibration_note(name)) == (name != "none") for name in IMBALANCE)
    with pytest.raises(ConfigError, match="no imbalance 'focl'"):
        calibration_note("focl")
