"""AdaBN: statistics of all cases together, weights as in fine-tuning, refusal where it would do nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medtl.adapters import Batch, build_adapter
from medtl.adapters.contract import norm
from medtl.adapters.contract.norm import modes_kept, reestimate_statistics
from medtl.errors import ConfigError
from medtl.models import with_features
from tests.adapters.toys import domains, masks, network, segmenter
from tests.adapters.training import train


@pytest.mark.usefixtures("way")
def test_statistics_are_those_of_all_cases_together() -> None:
    """Pooled: where cases of a kind lie together, the mean of batch variances would be too small."""
    model = network().train()
    batches = [Batch(image=domains(16, s)[1].image + s) for s in range(3)]
    seen = reestimate_statistics(model, batches)
    inputs = torch.cat([b.image for b in batches])
    assert seen == 48
    model.eval()
    for place in (0, 3):  # what the second layer sees depends on the first one's statistics
        made, norm = model.module[: place + 1](inputs), model.module[place + 1]
        var, mean = torch.var_mean(made, dim=(0, 2, 3))
        torch.testing.assert_close(norm.running_mean, mean, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(norm.running_var, var, rtol=1e-3, atol=1e-4)
        apart = torch.stack([model.module[: place + 1](b.image).var(dim=(0, 2, 3)) for b in batches]).mean(0)
        assert (apart < 0.9 * var).any()
    assert model.module[1].momentum == 0.1


@pytest.mark.parametrize("sizes", [[12], [4, 4, 4], [5, 6, 1], [1] * 12])
def test_any_batch_size_and_order_give_the_same(sizes: list[int]) -> None:
    images, models = domains(12, 3)[1].image, []
    for part in (images.split(sizes), images.flip(0).split(12)):
        model = network()
        assert reestimate_statistics(model, [Batch(image=image) for image in part]) == 12
        models.append(model.state_dict())
    for key, value in models[0].items():
        if "num_batches" not in key:
            torch.testing.assert_close(value, models[1][key], rtol=1e-4, atol=1e-5)


@pytest.fixture(params=["one pass", "a pass a layer"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Either way of setting the layers, whatever the number of cases."""
    if request.param != "one pass":
        monkeypatch.setattr(norm, "AT_ONCE", 0)
    return str(request.param)


def deep() -> nn.Module:
    """16 BatchNorm layers one after the other, each with statistics of other images."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for step in range(16):
        layers += [
            nn.Conv2d(8 if step else 1, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8, momentum=None),
            nn.SiLU(),
        ]
    body = nn.Sequential(*layers)
    body.train()(torch.rand(32, 1, 12, 12))
    return with_features(nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)))


@pytest.mark.parametrize("sizes", [[24], [8, 8, 8], [10, 13, 1]])
@pytest.mark.usefixtures("way")
def test_each_layer_of_a_deep_network_gets_the_statistics_of_what_arrives_at_it(sizes: list[int]) -> None:
    """Errors of early layers grow from layer to layer: all must be exact, from a start that is far off."""
    image = 0.4 * torch.rand(24, 1, 12, 12) + 0.5
    model = deep()
    assert reestimate_statistics(model, [Batch(part) for part in image.split(sizes)]) == 24
    arrives = image
    with torch.no_grad():
        for layer in model.eval().module[0]:
            if isinstance(layer, nn.BatchNorm2d):
                var, mean = torch.var_mean(arrives, dim=(0, 2, 3))
                torch.testing.assert_close(layer.running_mean, mean, rtol=1e-3, atol=1e-4)
                torch.testing.assert_close(layer.running_var, var, rtol=1e-3, atol=1e-6)
            arrives = layer(arrives)


@pytest.mark.usefixtures("way")
def test_batches_that_can_be_passed_once_are_enough() -> None:
    image, models = 0.4 * torch.rand(24, 1, 12, 12) + 0.5, [deep(), deep()]
    batches = [Batch(part) for part in image.split(8)]
    assert reestimate_statistics(models[0], batches) == 24
    assert reestimate_statistics(models[1], iter(batches)) == 24
    for one, other in zip(models[0].buffers(), models[1].buffers(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dims", [2, 3])
def test_what_lies_beyond_the_scan_does_not_count(dims: int) -> None:
    """A margin of any value leaves the statistics as they are without it."""
    image = domains(6, 0, dims)[1].image
    wide = torch.nn.functional.pad(image, (0, 8), value=0.9)
    outside = torch.nn.functional.pad(torch.zeros_like(image[:, 0], dtype=torch.bool), (0, 8), value=True)
    model = with_features(
        nn.Sequential(
            *(
                (nn.Conv2d if dims == 2 else nn.Conv3d)(1, 4, 1),
                (nn.BatchNorm2d if dims == 2 else nn.BatchNorm3d)(4),
            ),
            *(
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(1) if dims == 2 else nn.AdaptiveAvgPool3d(1),
                nn.Flatten(),
                nn.Linear(4, 2),
            ),
        )
    )
    found = []
    for batch in (Batch(image), Batch(wide, outside=outside), Batch(wide)):
        reestimate_statistics(model, [batch])
        found.append(model.module[1].running_mean.clone())
    torch.testing.assert_close(found[0], found[1])
    assert not torch.allclose(found[0], found[2])


@pytest.mark.usefixtures("way")
def test_batches_without_axes_count_by_their_size() -> None:
    model = with_features(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)))
    images = torch.randn(13, 1, 2, 2)
    seen = reestimate_statistics(model, [Batch(image=part) for part in images.split([8, 4, 1])])
    assert seen == 13
    activations = model.module[1](images.flatten(1))
    torch.testing.assert_close(model.module[2].running_mean, activations.mean(0))
    torch.testing.assert_close(model.module[2].running_var, activations.var(0))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("sizes", [[1, 1, 1, 1], [2, 1, 1], [1, 3], [1]])
def test_volumes_may_come_one_by_one(sizes: list[int]) -> None:
    model = segmenter(3)
    images = masks(sum(sizes), 0, 3)[1].image
    seen = reestimate_statistics(model, [Batch(image=part) for part in images.split(sizes)])
    assert seen == sum(sizes)
    mean = model.encoder[0](images).mean(dim=(0, 2, 3, 4))
    torch.testing.assert_close(model.encoder[1].running_mean, mean)


def test_scans_of_other_sizes_may_come_one_by_one() -> None:
    model = segmenter()
    sizes = [8, 12, 12, 16]
    seen = reestimate_statistics(model, [Batch(image=torch.rand(1, 1, n, n)) for n in sizes])
    assert seen == 4


@pytest.mark.usefixtures("way")
def test_no_batches_leave_statistics_alone() -> None:
    model = network()
    before = model.module[1].running_var.clone()
    assert reestimate_statistics(model, []) == 0
    assert torch.equal(model.module[1].running_var, before)


def test_weights_are_those_of_fine_tuning() -> None:
    plain, adapted = build_adapter("finetune", network()), build_adapter("adabn", network())
    train(plain, 5)
    train(adapted, 5)
    for mine, theirs in zip(adapted.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert not torch.allclose(
        adapted.model.module[1].running_mean, plain.model.module[1].running_mean, atol=1e-2
    )


def test_running_statistics_follow_the_target_in_a_bare_loop() -> None:
    adapter = build_adapter("adabn", network()).train()
    source, target, _ = domains(64, 0)
    for _ in range(60):
        adapter(source, target, progress=0.0)
    mean = adapter.model.module[0](target.image).mean(dim=(0, 2, 3))
    torch.testing.assert_close(adapter.model.module[1].running_mean, mean, rtol=1e-2, atol=1e-2)


def test_source_keeps_its_own_statistics() -> None:
    """On the source, the adapted model is the fine-tuned one: validation and temperature belong to that."""
    plain, adapted = build_adapter("finetune", network()), build_adapter("adabn", network())
    train(plain, 5)
    train(adapted, 5)
    adapted.on_fit_end({"target": [domains(64, 100)[1]]})
    source, target, _ = domains(16, 50)
    plain.eval()
    adapted.eval()
    with adapted.on_source():
        torch.testing.assert_close(adapted.model(source.image).logits, plain.model(source.image).logits)
    assert not torch.allclose(adapted.model(target.image).logits, plain.model(target.image).logits, atol=1e-2)


def test_target_statistics_of_dann_leave_the_sources_predictions_alone() -> None:
    adapter = build_adapter("dann", network(), statistics="target")
    train(adapter, 5)
    source, _, _ = domains(16, 50)
    before = adapter.eval().model(source.image).logits
    adapter.on_fit_end({"target": [domains(64, 100)[1]]})
    with adapter.on_source():
        torch.testing.assert_close(adapter.model(source.image).logits, before)
    assert not torch.allclose(adapter.model(source.image).logits, before, atol=1e-2)


def test_refuses_a_network_without_batchnorm() -> None:
    plain = with_features(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
    )
    with pytest.raises(ConfigError, match="would change nothing"):
        build_adapter("adabn", plain)


def test_modes_are_restored_when_something_fails() -> None:
    model = network().train()
    model.module[1].eval()

    def fail() -> None:
        with modes_kept(model):
            model.eval()
            model(torch.zeros(1, 5, 2, 2))

    with pytest.raises(RuntimeError):
        fail()
    assert model.training
    assert not model.module[1].training
