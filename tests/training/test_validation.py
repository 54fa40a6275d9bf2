"""Figures of source validation, gathered batch by batch, equal those of all batches at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from medtl.training.validation import Validation


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    return F.cross_entropy(logits, label, ignore_index=-1)


def test_balanced_accuracy_is_the_mean_recall() -> None:
    validation = Validation(cross_entropy)
    logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
    label = torch.tensor([0, 0, 1, 1])
    validation.add(logits[:3], label[:3])
    validation.add(logits[3:], label[3:])
    figures = validation.compute()
    assert figures["validation_balanced_accuracy"] == pytest.approx(0.75)
    assert figures["validation_loss"] == pytest.approx(float(cross_entropy(logits, label)))


def test_dice_pools_voxels_of_all_batches_and_leaves_void_out() -> None:
    label = torch.tensor([[[0, 1, 1, -1]], [[0, 0, 1, 2]]])
    called = torch.tensor([[[0, 1, 0, 1]], [[1, 0, 1, 0]]])
    logits = 4.0 * F.one_hot(called, 3).movedim(-1, 1).float()
    validation = Validation(cross_entropy)
    validation.add(logits[:1], label[:1])
    validation.add(logits[1:], label[1:])
    # class 1: called 3 of which 2 are right, 3 in the reference; class 2: missed
    assert validation.compute()["validation_dice"] == pytest.approx((2 * 2 / 6 + 0) / 2)


def test_structures_that_do_not_occur_are_not_averaged() -> None:
    validation = Validation(cross_entropy)
    label = torch.tensor([[[0, 1]]])
    validation.add(4.0 * F.one_hot(label, 5).movedim(-1, 1).float(), label)
    assert validation.compute()["validation_dice"] == 1.0


def test_nothing_added_is_nothing_said() -> None:
    assert Validation(cross_entropy).compute() == {}
