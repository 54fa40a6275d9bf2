"""The contract, over every method that is found: a new file in medtl/adapters is tested here at once."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from torch import Tensor, nn

from medtl.adapters import Adapter, Batch, adapter_class, available, hyper_parameters
from medtl.adapters.contract.adapter import NEEDS
from medtl.adapters.dann import DANN
from medtl.errors import ConfigError, DataError
from medtl.models.output import MODEL_TASKS as TASKS_OF_MODELS
from medtl.models.parts import batch_norms, head_of
from tests.adapters.toys import dice, domains, masks, network, segmenter
from tests.adapters.training import TASKS as TOYS
from tests.adapters.training import adapt, begin, build, call, source_only, steps_of, supports, train
from tests.helpers.docstrings import arguments_of

METHODS = available()
WITH_TARGET = [m for m in METHODS if "target" in adapter_class(m).needs]
NORMS = ("batch", "instance", "group")
KINDS = [(task, dims, norm) for task in TOYS for dims in (2, 3) for norm in NORMS]
HARD = {"adabn"}  # methods that act on BatchNorm alone
ACTS = {  # on networks that have not learned yet: weights of full size, labels of which nobody is sure
    "advent": {"adversarial_weight": 1.0},
    "mean_teacher": {"threshold": 0.0},
}
SMALL = {"segmentation": {"size": 8}, "classification": {}}


def made(
    name: str, task: str, dims: int, norm: str = "batch", seed: int = 0, init: int = 0, **hparams: float
) -> Adapter:
    """The method on a toy network; skips what it refuses, which another test checks."""
    if not supports(name, task) or (name in HARD and norm != "batch"):
        pytest.skip(f"{name} refuses {task} with {norm} norm")
    return build(name, TOYS[task][0](dims, seed=init, norm=norm), seed=seed, **hparams)


def batches(task: str, dims: int, num: int = 8, seed: int = 0) -> tuple[Batch, Batch]:
    return TOYS[task][1](num, seed, dims, **SMALL[task])[:2]


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
    others = copy.deepcopy(adapter)
    if "source" in type(adapter).needs:
        others, other = build("finetune", copy.deepcopy(adapter.model)), target
    else:  # without a source: another target has another gradient
        other = Batch(image=target.image.flip(0) ** 2, strong=target.strong, index=target.index)
    mine, reference = gradients(adapter, source, target), gradients(others, source, other)
    head = {id(p) for p in head_of(adapter.model, "test").parameters()}
    names = [k for k, p in adapter.model.named_parameters() if id(p) not in head and k in mine]
    moved = any(not torch.allclose(mine[k], reference[k], rtol=1e-3, atol=1e-7) for k in names)
    stats = any(
        not torch.allclose(v.float(), buffers(others)[k].float(), rtol=1e-3, atol=1e-6)
        for k, v in buffers(adapter).items()
        if "running" in k
    )
    if "domain_loss" in call(adapter, source, target):
        assert moved, "the target does not reach the encoder's gradient: the method does nothing"
    assert moved or stats, "neither gradient nor statistics depend on the target: the method does nothing"


@pytest.mark.parametrize("name", METHODS)
class TestEveryMethod:
    def test_declares_itself(self, name: str) -> None:
        method = adapter_class(name)
        assert method.needs
        assert method.needs <= NEEDS
        assert method.tasks
        assert method.tasks <= TASKS_OF_MODELS
        assert all(p.default is not inspect.Parameter.empty for p in hyper_parameters(method).values())

    def test_documents_its_hyper_parameters(self, name: str) -> None:
        method = adapter_class(name)
        said = arguments_of(inspect.getdoc(method) or "") | arguments_of(inspect.getdoc(Adapter) or "")
        assert sorted(set(hyper_parameters(method)) - said) == []

    @pytest.mark.parametrize(("task", "dims", "norm"), KINDS)
    def test_loss_is_finite_and_the_target_acts(self, name: str, task: str, dims: int, norm: str) -> None:
        adapter = made(name, task, dims, norm, **ACTS.get(name, {}))
        source, target = batches(task, dims)
        begin(adapter, target)
        few = Batch(**{k: getattr(target, k)[:5] for k in ("image", "strong", "index")})
        losses = call(adapter, source, few)
        assert losses["loss"].requires_grad
        assert losses["loss"].dtype == torch.float32
        assert all(v.ndim == 0 and torch.isfinite(v) for v in losses.values())
        assert not any(v.requires_grad for k, v in losses.items() if k != "loss")
        losses["loss"].backward()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in adapter.model.parameters())
        if "target" in type(adapter).needs:
            check_acts(adapter, source, target)

    @pytest.mark.parametrize("task", TOYS)
    def test_many_classes(self, name: str, task: str) -> None:
        if not supports(name, task):
            pytest.skip(f"{name} refuses {task}")
        adapter = build(name, TOYS[task][0](2, num_classes=4))
        source, target = batches(task, 2)
        assert torch.isfinite(call(begin(adapter, target), source, target)["loss"])

    @pytest.mark.parametrize(("task", "dims"), [(t, d) for t in TOYS for d in (2, 3)])
    def test_deterministic_and_resumes_bit_equal(self, name: str, task: str, dims: int) -> None:
        options = {"task": task, "dims": dims, **SMALL[task]}
        whole, again = (made(name, task, dims, seed=1) for _ in range(2))
        train(whole, 6, 6, **options)
        train(again, 6, 6, **options)
        assert all(torch.equal(v, again.state_dict()[k]) for k, v in whole.state_dict().items())
        first = made(name, task, dims, seed=1)
        optimizer = train(first, 3, 6, total=6, **options)
        second = made(name, task, dims, seed=9, init=5)
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        other = torch.optim.Adam(second.param_groups(3e-3))
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        steps_of(second, other, 3, 6, 6, 6, **options)
        assert all(torch.equal(v, second.state_dict()[k]) for k, v in whole.state_dict().items())

    @pytest.mark.parametrize("task", TOYS)
    def test_frozen_parts_stay(self, name: str, task: str) -> None:
        adapter = made(name, task, 2)
        first = next(p for p in adapter.model.parameters())
        first.requires_grad_(False)
        before = first.clone()
        train(adapter, 2, 6, task=task)
        assert torch.equal(first, before)
        assert not any(p is first for g in adapter.param_groups(1.0) for p in g["params"])

    @pytest.mark.parametrize("task", TOYS)
    def test_without_what_it_needs_is_an_error(self, name: str, task: str) -> None:
        adapter = made(name, task, 2)
        source, target = batches(task, 2)
        begin(adapter, target)
        needs = type(adapter).needs
        few = {"labelled_target": source} if "labelled_target" in needs else {}
        if few:
            with pytest.raises(DataError, match="labelled target"):
                adapter(source, target, progress=0.0)
        if "source" in needs:
            with pytest.raises(DataError, match="labels"):
                call(adapter, Batch(image=source.image), target)
            with pytest.raises(DataError, match="source"):
                adapter(None, target, progress=0.0, **few)
        if "target" in needs:
            with pytest.raises(DataError, match="target"):
                adapter(source, None, progress=0.0)
        if "strong_view" in needs:
            with pytest.raises(DataError, match="strong view"):
                call(adapter, source, Batch(image=target.image, index=target.index))

    def test_prediction_does_not_change_the_model(self, name: str) -> None:
        task = "classification" if supports(name, "classification") else "segmentation"
        adapter = made(name, task, 2).eval()
        before = copy.deepcopy(adapter.state_dict())
        adapter.model(batches(task, 2)[0].image)
        assert all(torch.equal(v, before[k]) for k, v in adapter.state_dict().items())

    @pytest.mark.parametrize("task", TOYS)
    @pytest.mark.parametrize("norm", NORMS)
    def test_what_it_cannot_do_it_refuses_with_the_reason(self, name: str, task: str, norm: str) -> None:
        model = TOYS[task][0](2, norm=norm)
        model.task = "binary" if task == "classification" else task
        if not supports(name, task):
            with pytest.raises(
                ConfigError, match=f"does not support the task .*{adapter_class(name).why_not[:20]}"
            ):
                build(name, model)
            del model.task  # a network of the user's own: its logits say it
            source, target = batches(task, 2)
            with pytest.raises(ConfigError, match="does not support the task"):
                call(begin(build(name, model), target), source, target)
        elif name in HARD and norm != "batch":
            with pytest.raises(ConfigError, match="would change nothing"):
                build(name, model)
        else:
            build(name, model)

    def test_computes_in_float32_under_autocast(self, name: str) -> None:
        task = "classification" if supports(name, "classification") else "segmentation"
        adapter, (source, target) = made(name, task, 2), batches(task, 2)
        begin(adapter, target)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = call(adapter, source, target)
        assert losses["loss"].dtype == torch.float32


# Least Dice that each must reach on the other scanner, where the source-only model is at .25.
REACHES = {"dann": 0.8, "mean_teacher": 0.7, "shot": 0.6}
LOSES_AT_MOST = 0.05


@pytest.mark.parametrize("name", WITH_TARGET)
class TestEveryMethodWithTarget:
    def test_norms(self, name: str) -> None:
        if "norm" not in hyper_parameters(adapter_class(name)):
            pytest.skip(f"{name} has no choice of norm")
        task = "classification" if supports(name, "classification") else "segmentation"
        for norm in sorted(adapter_class(name).norms):
            adapter = build(name, TOYS[task][0](), norm=norm)
            before = buffers(adapter)
            train(adapter, 2, 8, task=task)
            changed = any(
                not torch.equal(v, before[k]) for k, v in buffers(adapter).items() if "running" in k
            )
            assert changed == (norm != "frozen"), norm

    def test_wins_back_a_toy_shift(self, name: str) -> None:
        if not supports(name, "classification"):
            pytest.skip(f"{name} refuses classification")

        def accuracy(model: nn.Module) -> float:
            _, target, label = domains(400, 999)
            with torch.no_grad():
                return float((model(target.image).logits.argmax(1) == label).float().mean())

        assert accuracy(source_only("classification", steps=90)) < 0.75
        assert accuracy(adapt(name, "classification", steps=90)) > 0.9

    @pytest.mark.slow
    @pytest.mark.parametrize("dims", [2, 3])
    def test_wins_back_dice(self, name: str, dims: int) -> None:
        size = 16 if dims == 2 else 12
        plain = self.dice(source_only("segmentation", dims, size=size), size)
        adapted = self.dice(adapt(name, "segmentation", dims, size=size), size)
        assert plain < 0.3
        assert adapted >= (REACHES.get(name, 0.9) if dims == 2 else plain + 0.2)

    @pytest.mark.slow
    def test_does_not_lose_without_batchnorm(self, name: str) -> None:
        if name in HARD:
            pytest.skip(f"{name} refuses GroupNorm")
        plain = self.dice(source_only("segmentation", norm="group", size=16), 16)
        adapted = self.dice(adapt(name, "segmentation", norm="group", size=16), 16)
        assert adapted > plain - LOSES_AT_MOST
        if name in ("advent", "dann", "fda", "histogram"):
            assert adapted > plain + 0.3

    @staticmethod
    def dice(model: nn.Module, size: int) -> float:
        """On the other scanner."""
        dims = 3 if size == 12 else 2
        _, target, truth = masks(64, 999, dims, size=size)
        with torch.no_grad():
            return dice(model(target.image).logits, truth)


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
    names = [
        n
        for n in WITH_TARGET
        if "norm" in hyper_parameters(adapter_class(n)) and supports(n, "classification")
    ]
    assert "dann" in names
    for name in names:
        with pytest.raises(ConfigError, match="BatchNorm"):
            build(name, plain, norm="frozen")


def test_smoothing_of_labels_is_not_for_masks() -> None:
    with pytest.raises(ConfigError, match="label_smoothing"):
        build("finetune", segmenter(), label_smoothing=0.1)


def test_a_criterion_of_your_own_is_the_loss() -> None:
    class Constant(nn.Module):
        def forward(self, logits: Tensor, label: Tensor) -> Tensor:
            return 0.0 * logits.sum() + 3.0

    adapter = build("finetune", segmenter(), criterion=Constant())
    source, target, _ = masks(4, 0)
    assert float(call(adapter, source, target)["loss"].detach()) == 3.0
