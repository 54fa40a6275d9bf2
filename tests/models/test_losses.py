"""Losses of segmentation: closed forms, void voxels, absent classes."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from medtl.errors import ConfigError, DataError
from medtl.models import LOSSES, SegmentationLoss, rare_structure_weights

SHAPES = [(2, 3, 6, 5), (2, 3, 4, 6, 5)]


def sample(shape: tuple[int, ...], void: float = 0.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator)
    label = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=generator)
    label[torch.rand(label.shape, generator=generator) < void] = -1
    return logits, label


def test_dice_by_hand() -> None:
    """Even probabilities: a structure of n voxels among 8 has the Dice (2n/3 + 1) / (8/3 + n + 1)."""
    logits = torch.zeros(1, 3, 2, 4)
    label = torch.tensor([[[0, 0, 0, 0], [1, 1, 1, 2]]])
    p = 1 / 3
    dice = [(2 * n * p + 1) / (8 * p + n + 1) for n in (3, 1)]
    assert float(SegmentationLoss("dice")(logits, label)) == pytest.approx(1 - sum(dice) / 2)
    assert float(SegmentationLoss("ce")(logits, label)) == pytest.approx(math.log(3))
    assert float(SegmentationLoss()(logits, label)) == pytest.approx(1 - sum(dice) / 2 + math.log(3))


def test_tversky_by_hand() -> None:
    logits = torch.zeros(1, 2, 2, 2)
    label = torch.tensor([[[1, 0], [0, 0]]])
    expected = 1 - (0.5 + 1) / (0.5 + 0.3 * 1.5 + 0.7 * 0.5 + 1)
    assert float(SegmentationLoss("tversky")(logits, label)) == pytest.approx(expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_focal_equals_its_definition(shape: tuple[int, ...]) -> None:
    """Lin et al. 2017, equation 4, with gamma 2; a mean over voxels and classes as MONAI has it."""
    logits, label = sample(shape)
    log_p = torch.log_softmax(logits, 1).gather(1, label[:, None])
    expected = (-((1 - log_p.exp()) ** 2) * log_p).mean() / shape[1]
    torch.testing.assert_close(SegmentationLoss("focal")(logits, label), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_cross_entropy_is_that_of_torch(shape: tuple[int, ...]) -> None:
    logits, label = sample(shape, void=0.3)
    weight = (0.5, 1.0, 2.0)
    expected = F.cross_entropy(logits, label, torch.tensor(weight), ignore_index=-1)
    torch.testing.assert_close(SegmentationLoss("ce", weight)(logits, label), expected)


@pytest.mark.parametrize("name", LOSSES)
def test_perfect_prediction_costs_nothing_and_errors_cost_more(name: str) -> None:
    _, label = sample((2, 3, 6, 5))
    right = 40.0 * F.one_hot(label, 3).movedim(-1, 1).float()
    loss = SegmentationLoss(name)
    assert float(loss(right, label)) == pytest.approx(0, abs=1e-5)
    wrong = right.clone()
    wrong[0, :, :2] = wrong[0, :, :2].roll(1, 0)
    assert float(loss(right.roll(1, 1), label)) > float(loss(wrong, label)) > 0.01


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", SHAPES)
def test_void_voxels_change_nothing(name: str, shape: tuple[int, ...]) -> None:
    """Neither their logits, however odd, nor their number; and they get no gradient."""
    logits, label = sample(shape, void=0.4)
    void = (label < 0)[:, None].expand_as(logits)
    loss = SegmentationLoss(name)
    odd = torch.where(void, torch.full_like(logits, math.inf), logits).requires_grad_()
    value = loss(odd, label)
    torch.testing.assert_close(value, loss(logits, label))
    value.backward()
    assert odd.grad is not None
    assert not odd.grad[void].any()
    assert odd.grad[~void].any()
    wider = torch.cat([logits, torch.randn_like(logits)], dim=-1)
    padded = torch.cat([label, torch.full_like(label, -1)], dim=-1)
    torch.testing.assert_close(loss(wider, padded), value)


@pytest.mark.parametrize("name", LOSSES)
def test_batch_of_void_alone(name: str) -> None:
    logits, label = sample((2, 3, 4, 4))
    logits.requires_grad_()
    loss = SegmentationLoss(name)(logits, torch.full_like(label, -1))
    assert loss.item() == 0
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("name", LOSSES)
def test_absent_structures(name: str) -> None:
    """A batch of background: finite, lower the less is predicted, and pushed that way by the gradient."""
    label = torch.zeros(1, 8, 8, dtype=torch.int64)
    values = []
    for background in (0.0, 2.0, 8.0, 40.0):
        logits = torch.zeros(1, 3, 8, 8)
        logits[:, 0] = background
        logits.requires_grad_()
        value = SegmentationLoss(name)(logits, label)
        value.backward()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()
        if background < 40:
            assert (logits.grad[:, 0] < 0).all()
        values.append(value.item())
    assert values == sorted(values, reverse=True)
    assert values[-1] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_the_voxels_of_a_batch_are_pooled(name: str) -> None:
    logits, label = sample((2, 3, 4, 6), void=0.2)
    joined = torch.cat(list(logits), dim=-1)[None], torch.cat(list(label), dim=-1)[None]
    torch.testing.assert_close(SegmentationLoss(name)(logits, label), SegmentationLoss(name)(*joined))


def test_float32_under_autocast() -> None:
    logits, label = sample((2, 3, 6, 5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = SegmentationLoss()(logits.bfloat16(), label)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, SegmentationLoss()(logits.bfloat16().float(), label))


@pytest.mark.parametrize(
    ("name", "weights", "text"),
    [
        ("dice_cee", None, "dice_ce"),
        ("dice", (1, 1), "no term|none"),
        ("ce", (1, -1), "at least 0"),
        ("ce", (0, 0), "not all 0"),
    ],
)
def test_refused_settings(name: str, weights: tuple[float, ...] | None, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        SegmentationLoss(name, weights)


def test_refused_batches() -> None:
    logits, label = sample((2, 3, 4, 4))
    with pytest.raises(DataError, match="do not agree"):
        SegmentationLoss()(logits, label[:, :3])
    with pytest.raises(DataError, match="class 3"):
        SegmentationLoss()(logits, label + 1)
    with pytest.raises(ConfigError, match="2 class weights for 3"):
        SegmentationLoss("ce", (1, 1))(logits, label)


def test_weights_are_for_rare_structures() -> None:
    assert rare_structure_weights([900, 50, 50]) is None
    counts = [999_000, 900, 100]
    weights = rare_structure_weights(counts)
    assert weights is not None
    assert weights[1] / weights[0] == pytest.approx(10)  # the cap: sqrt(1110) would be 33
    assert sum(w * n for w, n in zip(weights, counts, strict=True)) == pytest.approx(sum(counts))
    mild = rare_structure_weights([9_990, 8, 2_000])
    assert mild is not None
    assert mild[2] / mild[0] == pytest.approx(math.sqrt(9_990 / 2_000))
    assert rare_structure_weights([1000, 0, 1]) is not None
    assert rare_structure_weights([1000, 0, 100]) is None
    for bad in ([5], [0, 0], [3, -1]):
        with pytest.raises(DataError, match="at least two classes"):
            rare_structure_weights(bad)


def test_balanced_weights_what_can_be_weighted() -> None:
    rare = (1_000_000, 100)
    assert SegmentationLoss.balanced("dice_ce", rare).class_weights == rare_structure_weights(rare)
    assert SegmentationLoss.balanced("tversky", rare).class_weights is None
    assert SegmentationLoss.balanced("dice_ce", (100, 100)).class_weights is None
