"""DANN: values in closed form, directions of gradients, a discriminator that learns."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from medtl.adapters import Batch, build_adapter
from medtl.adapters.contract.adversarial import reversal_strength
from medtl.adapters.dann import DANN
from medtl.models import Output
from tests.adapters.toys import domains, masks, network, segmenter


def test_strength_is_that_of_the_paper() -> None:
    assert reversal_strength(0.0) == 0.0
    assert reversal_strength(0.5) == pytest.approx(2 / (1 + math.exp(-5)) - 1, rel=1e-12)
    assert reversal_strength(1.0) == pytest.approx(0.9999092042625951, rel=1e-12)


def gradient_of(adapter: DANN, features: torch.Tensor, progress: float) -> torch.Tensor:
    """The gradient that features receive where both domains have the same ones."""
    source, target, _ = masks(len(features), 0)
    features = features.clone().requires_grad_()
    given = adapter.model.register_forward_hook(lambda *call: Output(call[-1].logits, features))
    adapter(source, target, progress=progress)["loss"].backward()
    given.remove()
    return features.grad


def test_reversal_is_exact() -> None:
    adapter = DANN(segmenter(), dropout=0.0)
    features = torch.randn(5, 8, requires_grad=True)
    logits = adapter.discriminator(features)
    (0.5 * (functional.softplus(-logits) + functional.softplus(logits)).mean()).backward()
    found = gradient_of(adapter, features.detach(), 0.3)
    torch.testing.assert_close(found, -reversal_strength(0.3) * features.grad)


def test_untrained_loss_is_log_two() -> None:
    adapter = DANN(network())
    torch.nn.init.zeros_(adapter.discriminator[-1].weight)
    torch.nn.init.zeros_(adapter.discriminator[-1].bias)
    source, target, _ = domains(8, 0)
    losses = adapter(source, target, progress=0.2)
    assert float(losses["domain_loss"]) == pytest.approx(math.log(2), rel=1e-6)
    torch.testing.assert_close(losses["loss"], losses["source_loss"] + losses["domain_loss"])


def domain_gradients(progress: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of the domain loss alone: of the encoder's first layer and of the discriminator's."""
    adapter = DANN(network(), dropout=0.0)
    source, target, _ = domains(16, 0)
    adapter.supervised_loss = lambda logits, label: 0.0 * logits.sum()
    domain = adapter(source, target, progress=progress)["loss"]
    first = next(adapter.model.parameters())
    return torch.autograd.grad(domain, [first, adapter.discriminator[0].weight], allow_unused=True)


def test_only_the_encoder_feels_the_schedule() -> None:
    torch.manual_seed(0)
    early, discriminator_early = domain_gradients(0.01)
    torch.manual_seed(0)
    late, discriminator_late = domain_gradients(1.0)
    torch.testing.assert_close(discriminator_early, discriminator_late)
    ratio = reversal_strength(1.0) / reversal_strength(0.01)
    torch.testing.assert_close(late, early * ratio, rtol=1e-2, atol=1e-6)


def test_encoder_climbs_and_discriminator_descends(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    adapter = DANN(network(), dropout=0.0, weight=1.0).double()
    monkeypatch.setattr(adapter, "supervised_loss", lambda logits, label: 0.0 * logits.sum())
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    source, target, _ = domains(64, 0)
    source, target = (
        Batch(image=source.image.double(), label=source.label),
        Batch(image=target.image.double()),
    )

    def domain_loss() -> torch.Tensor:
        with torch.no_grad():
            return adapter(source, target, progress=1.0)["domain_loss"]

    adapter.train()
    before = domain_loss()
    adapter(source, target, progress=1.0)["loss"].backward()
    grads = {p: p.grad.clone() for p in adapter.parameters() if p.grad is not None}
    for parameters, sign in ((adapter.discriminator.parameters(), -1), (adapter.model.parameters(), 1)):
        moved = list(parameters)
        kept = [p.detach().clone() for p in moved]
        with torch.no_grad():
            for p in moved:
                if p in grads:
                    p -= 1e-3 * grads[p]
        assert (domain_loss() - before) * sign > 0
        with torch.no_grad():
            for p, value in zip(moved, kept, strict=True):
                p.copy_(value)


def test_discriminator_learns_to_tell_fixed_features() -> None:
    torch.manual_seed(0)
    adapter = DANN(network(), norm="frozen")
    optimizer = torch.optim.Adam(adapter.discriminator.parameters(), 3e-3)
    for step in range(150):
        source, target, _ = domains(64, step)
        losses = adapter(source, target, progress=0.5)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
    assert losses["domain_accuracy"] > 0.9
    assert losses["domain_loss"] < 0.3


def test_domains_weigh_the_same_whatever_their_batch() -> None:
    adapter = DANN(network(), norm="frozen", dropout=0.0).eval()
    source, target, _ = domains(8, 0)
    once = adapter(source, target, progress=0.5)["domain_loss"]
    thrice = adapter(source, Batch(image=target.image.repeat(3, 1, 1, 1)), progress=0.5)["domain_loss"]
    torch.testing.assert_close(once, thrice)


def test_discriminator_is_float32_under_autocast() -> None:
    adapter = build_adapter("dann", network())
    source, target, _ = domains(8, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = adapter(source, target, progress=0.5)
    assert losses["loss"].dtype == torch.float32


def test_joint_and_separate_differ_in_training() -> None:
    source, target, _ = domains(16, 0)
    features = {}
    for norm in ("joint", "separate"):
        adapter = build_adapter("dann", network(), norm=norm).train()
        features[norm] = adapter.forward_domains(source, target)[0].features
    assert not torch.allclose(features["joint"], features["separate"], atol=1e-3)


def test_domain_specific_keeps_two_sets_of_statistics() -> None:
    adapter = build_adapter("dann", network(), norm="domain_specific").train()
    source, target, _ = domains(64, 0)
    for _ in range(60):
        adapter.forward_domains(source, target)
    mean_of_target = adapter.model.module[0](target.image).mean(dim=(0, 2, 3))
    torch.testing.assert_close(adapter.model.module[1].running_mean, mean_of_target, rtol=1e-2, atol=1e-2)
    mean_of_source = adapter.model.module[0](source.image).mean(dim=(0, 2, 3))
    torch.testing.assert_close(adapter.source_statistics.running_mean_0, mean_of_source, rtol=1e-2, atol=1e-2)


def test_each_location_of_a_map_is_a_sample() -> None:
    """The loss of maps is that of their locations as cases, whatever the batch's size."""
    adapter = DANN(segmenter(), norm="frozen", dropout=0.0).eval()
    source, target, _ = masks(4, 0)
    losses = adapter(source, target, progress=0.5)
    maps = [adapter.model(batch.image).features for batch in (source, target)]
    assert maps[0].shape == (4, 8, 16, 16)
    rows = [
        torch.stack([m[n, :, i, j] for n in range(4) for i in range(16) for j in range(16)]) for m in maps
    ]
    logits = [adapter.discriminator(r).squeeze(1) for r in rows]
    expected = 0.5 * (
        torch.nn.functional.softplus(-logits[0]).mean() + torch.nn.functional.softplus(logits[1]).mean()
    )
    torch.testing.assert_close(losses["domain_loss"], expected.detach())
    thrice = adapter(source, Batch(image=target.image.repeat(3, 1, 1, 1)), progress=0.5)["domain_loss"]
    torch.testing.assert_close(losses["domain_loss"], thrice)


def test_reversed_gradient_is_a_mean_over_locations() -> None:
    """Maps of constant features get, summed over locations, what one vector would get."""
    adapter = DANN(segmenter(), dropout=0.0)
    vector = torch.randn(2, 8)
    one = gradient_of(adapter, vector, 0.5)
    maps = gradient_of(adapter, vector[..., None, None].expand(2, 8, 5, 6), 0.5)
    torch.testing.assert_close(maps.flatten(2).sum(2), one)


def test_locations_are_drawn_where_there_are_many() -> None:
    adapter = DANN(segmenter(3), locations=50).train()
    sizes = []
    adapter.discriminator.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape)))
    source, target, _ = masks(4, 0, 3)
    adapter(source, target, progress=0.5)
    assert sizes == [(50, 8), (50, 8)]
