"""Drives an adapter as `medtl.fit` does, on toys: every hook, and all randomness from the step's number."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from medtl.adapters import Adapter, Batch, TestTimeAdapter, adapter_class, build_adapter
from tests.adapters.toys import domains, masks, network, segmenter, shift

EPOCH = 3
SMALL = {
    "advent": {"width": 4},
    "dann": {"locations": 256, "weight": 0.3},
    "fda": {"beta": 0.1},
    "consistency": {"statistics": "target"},
}
"""Hyper-parameters for toys: small discriminators, and weak ones, since each of the few voxels counts; a block of
frequencies that is more than the mean of 16 pixels; statistics of a group of many images."""

TASKS: dict[str, tuple[Callable[..., nn.Module], Callable[..., tuple[Batch, Batch, Tensor]]]] = {
    "classification": (network, domains),
    "segmentation": (segmenter, masks),
}


def build(name: str, model: nn.Module, *, seed: int = 0, **hparams: object) -> Adapter:
    """Method `name` of a size that fits toys."""
    return build_adapter(name, model, seed=seed, **{**SMALL.get(name, {}), **hparams})


def supports(name: str, task: str) -> bool:
    return ("segmentation" if task == "segmentation" else "binary") in adapter_class(name).tasks


def call(adapter: Adapter, source: Batch, target: Batch, progress: float = 0.5) -> dict[str, Tensor]:
    """One call with what the adapter needs; the labelled target is the source's batch, seen by the other scanner."""
    needs = type(adapter).needs
    streams = (
        {"labelled_target": Batch(shift(source.image), source.label)} if "labelled_target" in needs else {}
    )
    return adapter(
        source if "source" in needs else None,
        target if "target" in needs else None,
        progress=progress,
        **streams,
    )


def begin(adapter: Adapter, *targets: Batch) -> Adapter:
    """The start of an epoch over these target batches."""
    adapter.on_epoch_start({"target": targets})
    return adapter


def steps_of(
    adapter: Adapter,
    optimizer: torch.optim.Optimizer,
    start: int,
    stop: int,
    total: int,
    num: int = 32,
    task: str = "classification",
    dims: int = 2,
    **options: int,
) -> torch.optim.Optimizer:
    make = TASKS[task][1]
    adapter.train()
    for step in range(start, stop):
        if step % EPOCH == 0 and type(adapter).on_epoch_start is not Adapter.on_epoch_start:
            places = range(EPOCH)
            begin(adapter, *(make(num, step + k, dims, start=k * num, **options)[1] for k in places))
        source, target, _ = make(num, step, dims, start=step % EPOCH * num, **options)
        torch.manual_seed(step)
        losses = call(adapter, source, target, step / total)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        adapter.end_step()
    return optimizer


def train(
    adapter: Adapter, steps: int, num: int = 32, start: int = 0, total: int | None = None, **options: object
) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam(adapter.param_groups(3e-3))
    return steps_of(adapter, optimizer, start, steps, total or steps, num, **options)


@functools.cache
def _source_only(task: str, dims: int, norm: str, steps: int, size: int | None) -> nn.Module:
    adapter = build("finetune", TASKS[task][0](dims, norm=norm))
    train(adapter, steps, 16, task=task, dims=dims, **({} if size is None else {"size": size}))
    return adapter.model.eval()


def source_only(
    task: str, dims: int = 2, norm: str = "batch", steps: int = 100, size: int | None = None
) -> nn.Module:
    """A copy of a model trained on the source's toys alone."""
    return copy.deepcopy(_source_only(task, dims, norm, steps, size))


def adapt(
    name: str, task: str, dims: int = 2, norm: str = "batch", steps: int = 100, size: int | None = None
) -> nn.Module:
    """The model of a method after its whole course: trained, or, at test time, adapted to a group."""
    method, (network_of, make) = adapter_class(name), TASKS[task]
    options = {} if size is None else {"size": size}
    fresh = method.starts_from == "imagenet"
    model = network_of(dims, norm=norm) if fresh else source_only(task, dims, norm, steps, size)
    adapter = build(name, model)
    if issubclass(method, TestTimeAdapter):
        adapter.reset()
        for seed in range(8):
            adapter.adapt_batch(make(16, seed, dims, **options)[1].image)
    elif not method.phases:
        adapter.finish({"target": [make(16, s, dims, **options)[1] for s in range(1000, 1008)]})
    else:
        train(adapter, steps, 16, task=task, dims=dims, **options)
        if norm == "batch" and name != "finetune":
            adapter.statistics = "target"
        adapter.finish({"target": [make(16, s, dims, **options)[1] for s in range(1000, 1008)]})
    return adapter.predictor.eval()
