"""AdvEnt: maps in closed form, who learns from which loss, and patches that reach the end."""

from __future__ import annotations

import math

import pytest
import torch

from medtl.adapters import Batch, build_adapter
from medtl.adapters.advent import AdvEnt, Discriminator
from medtl.adapters.contract.parts import information_map
from medtl.errors import ConfigError
from tests.adapters.toys import masks, segmenter


@pytest.mark.parametrize("num_classes", [2, 3, 5])
def test_maps_of_even_odds_sum_to_one(num_classes: int) -> None:
    maps = information_map(torch.zeros(2, num_classes, 4, 4))
    assert maps.shape == (2, num_classes, 4, 4)  # a channel a class, not their sum
    torch.testing.assert_close(maps, torch.full_like(maps, 1 / num_classes))


def test_maps_have_the_papers_values() -> None:
    p = torch.tensor([0.7, 0.2, 0.1])
    maps = information_map(p.log().view(1, 3, 1, 1))
    expected = [-q * math.log2(q) / math.log2(3) for q in p.tolist()]
    torch.testing.assert_close(maps.flatten(), torch.tensor(expected))


def test_maps_at_peaks_are_zero_with_a_finite_gradient() -> None:
    logits = torch.tensor([[1000.0, -1000.0]]).view(1, 2, 1, 1).requires_grad_()
    maps = information_map(logits)
    maps.sum().backward()
    assert float(maps.detach().abs().sum()) == 0.0
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize(
    ("shape", "end"),
    [
        ((64, 64), (2, 2)),
        ((96, 96), (3, 3)),
        ((8, 8), (1, 1)),
        ((5, 7), (1, 1)),
        ((32, 32, 32), (1, 1, 1)),
        ((8, 64, 64), (2, 2, 2)),  # rows and columns are halved first
        ((3, 48, 48), (1, 1, 1)),
        ((1, 16, 16), (1, 1, 1)),
    ],
)
def test_patches_of_any_size_reach_the_end(shape: tuple[int, ...], end: tuple[int, ...]) -> None:
    out = Discriminator(len(shape), 3, 4)(torch.rand(2, 3, *shape))
    assert out.shape == (2, 1, *end)
    assert out.grad_fn is not None


def test_slices_are_judged_one_by_one_where_the_model_is_2d() -> None:
    discriminator = Discriminator(2, 2, 4)
    maps = torch.rand(2, 2, 5, 16, 16)
    torch.testing.assert_close(discriminator(maps)[5:], discriminator(maps[1].transpose(0, 1)))
    assert AdvEnt(segmenter(2), width=4).discriminator.dims == 2
    assert AdvEnt(segmenter(3), width=4).discriminator.dims == 3


def test_untrained_loss_is_log_two() -> None:
    adapter = AdvEnt(segmenter(), width=4, adversarial_weight=0.5)
    for parameter in adapter.discriminator.layers[-1].parameters():
        torch.nn.init.zeros_(parameter)
    source, target, _ = masks(4, 0)
    losses = adapter(source, target, progress=0.0)
    assert float(losses["domain_loss"]) == pytest.approx(math.log(2), rel=1e-6)
    assert float(losses["adversarial_loss"]) == pytest.approx(math.log(2), rel=1e-6)
    assert float(losses["loss"].detach()) == pytest.approx(
        float(losses["source_loss"]) + 1.5 * math.log(2), rel=1e-5
    )


def test_discriminator_learns_from_its_own_loss_alone() -> None:
    """Whatever the adversarial weight, its gradient is the same: the model's turn holds it constant."""
    source, target, _ = masks(4, 0)
    found = []
    for weight in (1e-9, 10.0):
        torch.manual_seed(0)
        adapter = AdvEnt(segmenter(), width=4, adversarial_weight=weight)
        adapter(source, target, progress=0.0)["loss"].backward()
        found.append([p.grad.clone() for p in adapter.discriminator.parameters()])
        assert all(p.requires_grad for p in adapter.discriminator.parameters())
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-7)


def gradient_of_model(**options: float) -> torch.Tensor:
    torch.manual_seed(0)
    adapter = AdvEnt(segmenter(), width=4, norm="frozen", **options)
    source, target, _ = masks(4, 0)
    adapter(source, target, progress=0.0)["loss"].backward()
    return torch.cat([p.grad.flatten() for p in adapter.model.parameters()])


def test_the_model_does_not_learn_from_the_discriminators_loss() -> None:
    plain = build_adapter("finetune", segmenter(), norm="frozen")
    source, target, _ = masks(4, 0)
    plain(source, target, progress=0.0)["loss"].backward()
    reference = torch.cat([p.grad.flatten() for p in plain.model.parameters()])
    torch.testing.assert_close(gradient_of_model(adversarial_weight=1e-12), reference, rtol=1e-4, atol=1e-7)


def test_the_model_learns_to_pass_for_the_source() -> None:
    torch.manual_seed(0)
    adapter = AdvEnt(segmenter(), width=4, norm="frozen", adversarial_weight=1.0)
    adapter.supervised_loss = lambda logits, label: 0.0 * logits.sum()
    source, target, _ = masks(8, 0)
    before = adapter(source, target, progress=0.0)
    before["loss"].backward()
    with torch.no_grad():
        for p in adapter.model.parameters():
            p -= 0.01 * p.grad / p.grad.norm().clamp(min=1e-9)
    assert adapter(source, target, progress=0.0)["adversarial_loss"] < before["adversarial_loss"]


def test_discriminator_tells_the_domains_apart() -> None:
    torch.manual_seed(0)
    adapter = AdvEnt(segmenter(), width=8, norm="frozen")
    optimizer = torch.optim.Adam(adapter.discriminator.parameters(), 3e-3)
    for step in range(40):
        source, target, _ = masks(16, step)
        losses = adapter(source, target, progress=0.5)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
    assert losses["domain_accuracy"] > 0.9
    assert losses["domain_loss"] < 0.4


def test_domains_weigh_the_same_whatever_their_batch() -> None:
    adapter = AdvEnt(segmenter(), width=4, norm="frozen").eval()
    source, target, _ = masks(4, 0)
    once = adapter(source, target, progress=0.5)["domain_loss"]
    thrice = adapter(source, Batch(image=target.image.repeat(3, 1, 1, 1)), progress=0.5)["domain_loss"]
    torch.testing.assert_close(once, thrice)


def test_entropy_alone_is_minent() -> None:
    adapter = AdvEnt(segmenter(), adversarial_weight=0.0, entropy_weight=0.1)
    assert adapter.discriminator is None
    assert {g["lr"] for g in adapter.param_groups(1.0)} == {1.0}
    source, target, _ = masks(4, 0)
    losses = adapter(source, target, progress=0.0)
    torch.testing.assert_close(losses["loss"].detach(), losses["source_loss"] + 0.1 * losses["entropy"])
    assert 0 < losses["entropy"] <= 1
    assert "domain_loss" not in losses


def test_learning_rates() -> None:
    adapter = AdvEnt(segmenter(), width=4, head_lr=0.4)
    rates = {id(p): g["lr"] for g in adapter.param_groups(0.1) for p in g["params"]}
    assert {rates[id(p)] for p in adapter.model.parameters()} == {0.1}
    assert [rates[id(p)] for p in adapter.discriminator.parameters()] == pytest.approx([0.04] * 10)


@pytest.mark.parametrize("weights", [(0.0, 0.0), (-1.0, 2.0)])
def test_refuses_what_would_do_nothing(weights: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="would change nothing"):
        AdvEnt(segmenter(), adversarial_weight=weights[0], entropy_weight=weights[1])
