"""The parts of any network: its normalisation layers, encoder, head and classes, and its modes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from medtl.errors import ConfigError

NORMS = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The layers of `model` that keep running batch statistics (1D, 2D and 3D)."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def is_norm(module: nn.Module) -> bool:
    """Whether a layer normalises: batch, instance (1D to 3D), group, layer or RMS norm, of torch or of timm."""
    return isinstance(module, NORMS) or type(module).__name__.startswith(("LayerNorm", "RmsNorm"))


def norm_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Scales and offsets of the normalisation layers of `model`, see `is_norm`."""
    return [p for m in model.modules() if is_norm(m) for p in m.parameters(recurse=False)]


def head_of(model: nn.Module, method: str) -> nn.Module:
    """The module that maps the last features to logits.

    Raises:
        ConfigError: the model does not name its head.
    """
    head = getattr(model, "head", None)
    if not isinstance(head, nn.Module):
        raise ConfigError(
            f"{method} keeps the model's head unchanged, but {type(model).__name__} does not say which module is its "
            "head. Wrap the network without naming a layer, with_features(module), or give it an attribute head."
        )
    return head


def encoder_of(model: nn.Module) -> nn.Module | None:
    """The pretrained part of `model`: its `encoder`, or that of its `body`; None if it has neither."""
    for owner in (model, getattr(model, "body", None)):
        if isinstance(encoder := getattr(owner, "encoder", None), nn.Module):
            return encoder
    return None


def classes_of(model: nn.Module, method: str) -> int:
    """K, the number of logits: `num_classes` if the model has it, else the width of its last weighted layer.

    Raises:
        ConfigError: the model has no such layer.
    """
    if isinstance(count := getattr(model, "num_classes", None), int):
        return count
    weighted = [m for m in model.modules() if isinstance(m, nn.Linear | _ConvNd)]
    if not weighted:
        raise ConfigError(f"{method} needs to know the number of classes: give the model num_classes=K.")
    last = weighted[-1]
    return int(last.out_features if isinstance(last, nn.Linear) else last.out_channels)


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Restores the train or eval mode of every module on exit."""
    modes = {m: m.training for m in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Within it, the whole model is in eval mode; all modes are restored on exit."""
    with modes_kept(model):
        model.eval()
        yield


@contextmanager
def normalised_by_batch(model: nn.Module, momentum: float = 0.0) -> Iterator[None]:
    """Within it, BatchNorm uses the statistics of the batch; everything else (dropout) is in eval mode.

    Args:
        model: any model; without BatchNorm, the whole model is simply in eval mode.
        momentum: the batch's share in the running statistics; 0 leaves them unchanged.
    """
    layers = batch_norms(model)
    momenta = [layer.momentum for layer in layers]
    counts = [None if m.num_batches_tracked is None else m.num_batches_tracked.clone() for m in layers]
    with modes_kept(model):
        model.eval()
        for layer in layers:
            layer.train()
            layer.momentum = momentum
        try:
            yield
        finally:
            for layer, value, count in zip(layers, momenta, counts, strict=True):
                layer.momentum = value
                if momentum == 0.0 and count is not None and layer.num_batches_tracked is not None:
                    layer.num_batches_tracked.copy_(count)
