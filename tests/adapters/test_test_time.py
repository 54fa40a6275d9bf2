"""TENT and consistency: what adapts, what is returned, and that a reset takes all of it back."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from medtl.adapters import Batch, build_adapter
from medtl.adapters.consistency import Consistency, random_affine, soft_dice, warp
from medtl.adapters.contract.parts import entropy, norm_parameters
from medtl.adapters.tent import Tent
from medtl.errors import ConfigError, DataError
from medtl.models import with_features
from tests.adapters.toys import domains, masks, network, segmenter
from tests.adapters.training import build, source_only

METHODS = [("tent", "segmentation"), ("tent", "classification"), ("consistency", "segmentation")]


def scans(task: str, seed: int = 0, num: int = 8, dims: int = 2) -> torch.Tensor:
    return (masks if task == "segmentation" else domains)(num, seed, dims)[1].image


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(module.state_dict())


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(v, b[k]) for k, v in a.items())


def test_values_of_entropy() -> None:
    assert float(entropy(torch.zeros(3, 4))) == pytest.approx(math.log(4), rel=1e-6)
    p = torch.tensor([[0.9, 0.1], [0.5, 0.5]])
    expected = (-(0.9 * math.log(0.9) + 0.1 * math.log(0.1)) + math.log(2)) / 2
    assert float(entropy(p.log())) == pytest.approx(expected, rel=1e-6)
    assert float(entropy(p.log().T[None, :, :, None])) == pytest.approx(expected, rel=1e-6)  # two voxels
    peak = torch.tensor([[1e4, -1e4]], requires_grad=True)
    entropy(peak).backward()  # no epsilon in the logarithm, no NaN without
    assert torch.isfinite(peak.grad).all()


@pytest.mark.parametrize(("name", "task"), METHODS)
class TestEveryTestTimeMethod:
    def test_reset_takes_model_and_optimiser_back_exactly(self, name: str, task: str) -> None:
        adapter = build_adapter(name, source_only(task), steps=2, lr=1e-3)
        start = state(adapter.model)
        patients = [[scans(task, s) for s in pair] for pair in ((0, 1), (2, 3))]

        def visit(images: list[torch.Tensor]) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
            adapter.reset()
            outputs = [adapter.adapt_batch(image).logits for image in images]
            return outputs, state(adapter.model)

        first, weights = visit(patients[0])
        assert not same(weights, start)
        visit(patients[1])
        again, weights_again = visit(patients[0])  # a trace of Adam's moments would show here
        assert same(weights, weights_again)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        adapter.reset()
        assert same(state(adapter.model), start)
        assert not adapter.optimizer.state_dict()["state"]

    def test_returns_what_the_model_said_before(self, name: str, task: str) -> None:
        adapter = build_adapter(name, source_only(task, norm="group"), lr=1e-2)
        image = scans(task)
        with torch.no_grad():
            before = adapter.model.eval()(image).logits
        output = adapter.adapt_batch(image)
        assert not output.logits.requires_grad
        torch.testing.assert_close(output.logits, before)
        with torch.no_grad():
            assert not torch.allclose(adapter.model.eval()(image).logits, before, atol=1e-3)

    def test_statistics_are_the_average_over_the_groups_batches(self, name: str, task: str) -> None:
        adapter = build(name, source_only(task), lr=1e-12)
        images = [scans(task, 0, 8), scans(task, 1, 4)]
        adapter.reset()
        for image in images:
            adapter.adapt_batch(image)
        layers = [m for m in adapter.model.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
        mean = layers[0](torch.cat(images)).mean(dim=(0, 2, 3)).detach()
        torch.testing.assert_close(layers[1].running_mean, mean, rtol=1e-4, atol=1e-5)
        assert layers[1].momentum == 0.1

    def test_a_prediction_does_not_depend_on_its_neighbours(self, name: str, task: str) -> None:
        adapter = build_adapter(name, source_only(task))
        image = scans(task)
        adapter.adapt_batch(image)
        adapter.model.eval()
        with torch.no_grad():
            torch.testing.assert_close(adapter.model(image).logits[:1], adapter.model(image[:1]).logits)

    def test_modes_and_dropout(self, name: str, task: str) -> None:
        adapter = build_adapter(name, source_only(task)).train()
        adapter.adapt_batch(scans(task))
        assert all(m.training for m in adapter.model.modules())

    def test_loaded_weights_are_the_new_start(self, name: str, task: str) -> None:
        adapter = build_adapter(name, source_only(task))
        weights = {k: v + 1 if v.is_floating_point() else v for k, v in state(adapter).items()}
        adapter.load_state_dict(weights)
        adapter.adapt_batch(scans(task))
        adapter.reset()
        assert same(state(adapter.model), {k.removeprefix("model."): v for k, v in weights.items()})

    @pytest.mark.parametrize("options", [{"lr": 0.0}, {"steps": 0}, {"reset": "scan"}])
    def test_refuses(self, name: str, task: str, options: dict[str, object]) -> None:
        with pytest.raises(ConfigError, match="expected"):
            build_adapter(name, source_only(task), **options)

    def test_leaves_the_model_open_for_others(self, name: str, task: str) -> None:
        model = source_only(task)
        build_adapter(name, model).adapt_batch(scans(task))
        assert all(p.requires_grad for p in model.parameters())


class TestTent:
    @pytest.mark.parametrize("dims", [2, 3])
    @pytest.mark.parametrize("norm", ["batch", "instance", "group"])
    def test_norms_alone_learn(self, norm: str, dims: int) -> None:
        model = segmenter(dims, norm=norm)
        before = {k: v.clone() for k, v in model.named_parameters()}
        Tent(model, lr=0.1).adapt_batch(scans("segmentation", dims=dims))
        changed = {k for k, v in model.named_parameters() if not torch.equal(v, before[k])}
        norms = {k for k, v in before.items() if v.ndim == 1 and k.split(".")[-2] == "1"}
        assert changed == norms
        assert len(changed) == 6

    def test_every_kind_of_norm_is_found(self) -> None:
        layers = [
            nn.BatchNorm1d(4), nn.BatchNorm2d(4), nn.BatchNorm3d(4), nn.SyncBatchNorm(4), nn.GroupNorm(2, 4),
            nn.InstanceNorm1d(4, affine=True), nn.InstanceNorm2d(4, affine=True), nn.InstanceNorm3d(4, affine=True),
            nn.LayerNorm(4), nn.RMSNorm(4),
        ]  # fmt: skip
        assert all(norm_parameters(nn.Sequential(nn.Linear(2, 2), layer)) for layer in layers)

    @pytest.mark.parametrize("layer", [nn.Identity(), nn.InstanceNorm2d(4)])
    def test_refuses_a_network_without(self, layer: nn.Module) -> None:
        model = with_features(nn.Sequential(nn.Conv2d(1, 4, 3), layer, nn.Flatten(), nn.Linear(144, 2)))
        with pytest.raises(ConfigError, match="affine=True"):
            Tent(model)

    def test_becomes_surer(self) -> None:
        adapter = Tent(source_only("segmentation"), lr=1e-2, steps=3)
        image = scans("segmentation")
        values = [float(entropy(adapter.adapt_batch(image).logits)) for _ in range(3)]
        assert values[2] < values[1] < values[0]

    def test_one_image_and_batchnorm_is_an_error(self) -> None:
        with pytest.raises(DataError, match="single image"):
            Tent(network()).adapt_batch(scans("classification", num=1))
        Tent(network(norm="group")).adapt_batch(scans("classification", num=1))
        Tent(network(3)).adapt_batch(scans("classification", num=1, dims=3))
        Tent(segmenter()).adapt_batch(scans("segmentation", num=1))


class TestConsistency:
    def test_by_default_the_sources_statistics_stay(self) -> None:
        """The scans of one patient are too few for statistics."""
        adapter = Consistency(source_only("segmentation"))
        before = {k: v.clone() for k, v in adapter.model.named_buffers()}
        image = scans("segmentation", num=1)
        expected = adapter.model.eval()(image).logits.detach()
        torch.testing.assert_close(adapter.adapt_batch(image).logits, expected)
        assert all(torch.equal(v, before[k]) for k, v in adapter.model.named_buffers())

    def test_values_of_soft_dice(self) -> None:
        mask = torch.ones(1, 1, 2, 2)
        p = torch.tensor([[1.0, 0.0], [0.0, 0.0]]).view(1, 1, 2, 2)
        assert float(soft_dice(p, p, mask)) == pytest.approx(1.0)
        assert float(soft_dice(p, p.flip(-1), mask)) == pytest.approx(0.0, abs=1e-4)
        # Agreement that a class is absent is agreement, however small the probabilities.
        assert float(soft_dice(1e-3 * torch.ones_like(p), 1e-3 * torch.ones_like(p), mask)) == pytest.approx(
            1.0
        )
        # 2 * .5 * 1 / (.25 + 1) = .8
        assert float(soft_dice(0.5 * p, p, mask)) == pytest.approx(0.8, rel=1e-4)
        mask[0, 0, 0, 1] = 0  # what only one view saw does not count
        assert float(soft_dice(p, p + p.flip(-1), mask)) == pytest.approx(1.0)

    @pytest.mark.parametrize("shape", [(2, 1, 32, 24), (2, 1, 8, 24, 24)])
    def test_views_come_back_to_their_place(self, shape: tuple[int, ...]) -> None:
        dims = len(shape) - 2
        matrix = random_affine(2, dims, 0.05, torch.Generator().manual_seed(0))
        axes = [torch.linspace(0, 3, n) for n in shape[2:]]
        smooth = sum(
            torch.sin(a).view([-1 if i == j else 1 for j in range(dims)]) for i, a in enumerate(axes)
        )
        image = smooth.expand(shape).contiguous()
        back = torch.linalg.inv(matrix)
        seen = warp(warp(torch.ones(shape), matrix, padding="zeros"), back, padding="zeros") > 0.999
        error = (warp(warp(image, matrix), back) - image).abs()
        assert 0.3 < float(seen.float().mean()) < 1
        assert float(error[seen].max()) < 0.05
        assert float((warp(image, matrix) - image).abs().mean()) > 0.02

    def test_agreement_is_the_loss(self) -> None:
        adapter = Consistency(source_only("segmentation", norm="group"), strength=0.0, intensity=1e-6)
        losses = adapter.losses(scans("segmentation"))
        assert float(losses["loss"].detach()) == pytest.approx(0.0, abs=1e-4)
        assert float(losses["shared"]) == 1.0

    def test_the_background_does_not_count(self) -> None:
        """Class 0 fills the image in both views; where the structures disagree the loss must show it."""
        p = torch.zeros(1, 2, 8, 8)
        p[:, 0] = 1
        q = p.clone()
        q[0, :, 0, 0], p[0, :, 4, 4] = torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0])
        assert float(soft_dice(p[:, 1:], q[:, 1:], torch.ones(1, 1, 8, 8))) < 1e-4
        assert float(soft_dice(p[:, :1], q[:, :1], torch.ones(1, 1, 8, 8))) > 0.9

    def test_views_derive_from_the_step(self) -> None:
        image, model = scans("segmentation"), source_only("segmentation", norm="group")
        values = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            adapter = Consistency(copy.deepcopy(model))
            values.append([float(adapter(None, Batch(image=image))["loss"].detach()) for _ in range(2)])
        assert values[0] == values[1]
        assert values[0][0] != values[0][1]

    @pytest.mark.parametrize(
        ("params", "prefixes"), [("all", ("encoder", "down", "decoder", "head")), ("encoder", ("encoder",))]
    )
    def test_what_adapts(self, params: str, prefixes: tuple[str, ...]) -> None:
        model = source_only("segmentation")
        before = {k: v.clone() for k, v in model.named_parameters()}
        Consistency(model, params=params, lr=1e-2).adapt_batch(scans("segmentation"))
        changed = {k.split(".")[0] for k, v in model.named_parameters() if not torch.equal(v, before[k])}
        assert changed == set(prefixes)

    def test_norms_adapt(self) -> None:
        model = source_only("segmentation")
        before = {k: v.clone() for k, v in model.named_parameters()}
        Consistency(model, params="norms", lr=1e-2).adapt_batch(scans("segmentation"))
        assert {v.ndim for k, v in model.named_parameters() if not torch.equal(v, before[k])} == {1}

    def test_refuses_parts_that_are_not_there(self) -> None:
        model = segmenter()
        del model.encoder
        with pytest.raises(ConfigError, match="params=encoder"):
            Consistency(model, params="encoder")
        with pytest.raises(ConfigError, match="two equal views"):
            Consistency(segmenter(), strength=0.0, intensity=0.0)
