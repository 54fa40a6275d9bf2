"""The contract, over every method that is found: a new file in medtl/adapters is tested here at once."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from torch import Tensor, nn

from medtl.adapters import Adapter, Batch, adapter_class, available, build_adapter, hyper_parameters
from medtl.adapters.base import NEEDS, TASKS
from medtl.adapters.dann import DANN
from medtl.adapters.norm import batch_norms
from tests.adapters.toys import domains, network

METHODS = available()
WITH_TARGET = [m for m in METHODS if "target" in adapter_class(m).needs]


def call(adapter: Adapter, source: Batch, target: Batch, progress: float = 0.5) -> dict[str, Tensor]:
    needs = type(adapter).needs
    return adapter(
        source if "source" in needs else None, target if "target" in needs else None, progress=progress
    )


def gradients(adapter: Adapter, source: Batch, target: Batch, progress: float = 0.5) -> dict[str, Tensor]:
    """Gradients of the model's parameters after one call with a fixed random state."""
    adapter.train()
    adapter.zero_grad()
    torch.manual_seed(7)
    call(adapter, source, target, progress)["loss"].backward()
    return {k: p.grad.clone() for k, p in adapter.model.named_parameters() if p.grad is not None}


def buffers(adapter: Adapter) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in adapter.model.named_buffers()}


def check_acts(adapter: Adapter, source: Batch, target: Batch) -> None:
    """The target changes the encoder's gradient or the statistics that it predicts with."""
    plain = build_adapter("finetune", copy.deepcopy(adapter.model))
    mine, reference = gradients(adapter, source, target), gradients(plain, source, target)
    encoder = [
        k for k in reference if k != f"{adapter.model.layer}.weight" and k != f"{adapter.model.layer}.bias"
    ]
    moved = any(not torch.allclose(mine[k], reference[k], rtol=1e-3, atol=1e-7) for k in encoder)
    stats = any(
        not torch.allclose(v.float(), buffers(plain)[k].float(), rtol=1e-3, atol=1e-6)
        for k, v in buffers(adapter).items()
        if "running" in k
    )
    if "domain_loss" in call(adapter, source, target):
        assert moved, "the target does not reach the encoder's gradient: the method does nothing"
    assert moved or stats, "neither gradient nor statistics depend on the target: the method does nothing"


def train(
    adapter: Adapter, steps: int, num: int = 32, start: int = 0, total: int | None = None
) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam(adapter.param_groups(3e-3))
    return steps_of(adapter, optimizer, start, steps, total or steps, num)


def steps_of(
    adapter: Adapter, optimizer: torch.optim.Optimizer, start: int, stop: int, total: int, num: int = 32
) -> torch.optim.Optimizer:
    adapter.train()
    for step in range(start, stop):
        source, target, _ = domains(num, step)
        torch.manual_seed(step)
        losses = call(adapter, source, target, step / total)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        adapter.on_step_end()
    return optimizer


@pytest.mark.parametrize("name", METHODS)
class TestEveryMethod:
    def test_declares_itself(self, name: str) -> None:
        method = adapter_class(name)
        assert method.needs
        assert method.needs <= NEEDS
        assert method.tasks
        assert method.tasks <= TASKS
        assert inspect.getdoc(method)
        lines = inspect.getsource(inspect.getmodule(method)).count("\n")
        assert lines <= 150
        assert all(p.default is not inspect.Parameter.empty for p in hyper_parameters(method).values())

    @pytest.mark.parametrize("dims", [2, 3])
    @pytest.mark.parametrize("num_classes", [2, 4])
    def test_loss_is_finite_with_unequal_batches(self, name: str, dims: int, num_classes: int) -> None:
        adapter = build_adapter(name, network(dims, num_classes))
        source, target, _ = domains(9, 0, dims)
        losses = call(adapter, source, Batch(image=target.image[:4]))
        assert losses["loss"].requires_grad
        assert losses["loss"].dtype == torch.float32
        assert all(v.ndim == 0 and torch.isfinite(v) for v in losses.values())
        losses["loss"].backward()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in adapter.model.parameters())

    def test_deterministic(self, name: str) -> None:
        ends = []
        for _ in range(2):
            adapter = build_adapter(name, network(), seed=3)
            train(adapter, 3)
            ends.append(adapter.state_dict())
        assert all(torch.equal(v, ends[1][k]) for k, v in ends[0].items())

    def test_resumes_bit_equal(self, name: str) -> None:
        whole = build_adapter(name, network(), seed=1)
        train(whole, 6)
        first = build_adapter(name, network(), seed=1)
        optimizer = train(first, 3, total=6)
        second = build_adapter(name, network(seed=5), seed=9)
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        other = torch.optim.Adam(second.param_groups(3e-3))
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        steps_of(second, other, 3, 6, 6)
        assert all(torch.equal(v, second.state_dict()[k]) for k, v in whole.state_dict().items())

    def test_frozen_parts_stay(self, name: str) -> None:
        model = network()
        adapter = build_adapter(name, model)
        first = next(p for p in model.parameters())
        first.requires_grad_(False)
        before = first.clone()
        train(adapter, 2)
        assert torch.equal(first, before)
        assert not any(p is first for g in adapter.param_groups(1.0) for p in g["params"])

    def test_without_labels_is_an_error(self, name: str) -> None:
        adapter = build_adapter(name, network())
        source, target, _ = domains(4, 0)
        if "source" in type(adapter).needs:
            with pytest.raises(Exception, match="labels"):
                call(adapter, Batch(image=source.image), target)
            with pytest.raises(Exception, match="source"):
                adapter(None, target, progress=0.0)

    def test_prediction_does_not_change_the_model(self, name: str) -> None:
        adapter = build_adapter(name, network()).eval()
        source, _, _ = domains(4, 0)
        before = copy.deepcopy(adapter.state_dict())
        adapter.model(source.image)
        assert all(torch.equal(v, before[k]) for k, v in adapter.state_dict().items())


@pytest.mark.parametrize("name", WITH_TARGET)
class TestEveryMethodWithTarget:
    def test_acts(self, name: str) -> None:
        source, target, _ = domains(16, 0)
        check_acts(build_adapter(name, network()), source, target)

    def test_norms(self, name: str) -> None:
        if "norm" not in hyper_parameters(adapter_class(name)):
            return
        for norm in sorted(adapter_class(name).norms):
            adapter = build_adapter(name, network(), norm=norm)
            before = buffers(adapter)
            train(adapter, 2)
            changed = any(
                not torch.equal(v, before[k]) for k, v in buffers(adapter).items() if "running" in k
            )
            assert changed == (norm != "frozen"), norm

    def test_wins_back_a_toy_shift(self, name: str) -> None:
        def accuracy(method: str) -> float:
            adapter = build_adapter(method, network(), seed=0)
            train(adapter, 60)
            if method != "finetune":
                adapter.statistics = "target"
                adapter.on_fit_end({"target": [domains(64, s)[1] for s in range(100, 104)]})
            adapter.eval()
            _, target, label = domains(400, 999)
            with torch.no_grad():
                return float((adapter.model(target.image).logits.argmax(1) == label).float().mean())

        assert accuracy("finetune") < 0.75
        assert accuracy(name) > 0.9


class TestConstantDiscriminator:
    """A discriminator that ends in a softmax over one logit is constant: the contract has to notice."""

    def test_fails_the_contract(self) -> None:
        adapter = DANN(network())
        adapter.discriminator.append(nn.Softmax(dim=1))
        source, target, _ = domains(16, 0)
        with pytest.raises(AssertionError, match="does nothing"):
            check_acts(adapter, source, target)


def test_frozen_norm_needs_batchnorm() -> None:
    plain = network()
    for layer in batch_norms(plain):
        layer.track_running_stats = False
        layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    for name in WITH_TARGET:
        options = {"norm": "frozen"} if "norm" in hyper_parameters(adapter_class(name)) else {}
        with pytest.raises(Exception, match="BatchNorm"):
            build_adapter(name, plain, **options)
