"""Parts that several methods use: layers of a model, and quantities computed from its predictions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from medtl.adapters.contract.norm import batch_norms, modes_kept
from medtl.errors import ConfigError

NORMS = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def norm_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Scales and offsets of the normalisation layers of `model`: batch, instance (1D to 3D), group and layer norm."""
    return [p for m in model.modules() if isinstance(m, NORMS) for p in m.parameters(recurse=False)]


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


def per_class(values: Tensor) -> Tensor:
    """(N, K, *S) to (M, K), one row for each case, pixel or voxel."""
    return values.movedim(1, -1).flatten(0, -2)


def entropy(logits: Tensor) -> Tensor:
    """Mean entropy of softmax(logits) over cases, pixels or voxels, in nats; float32, exact at probabilities of 0."""
    log_p = torch.log_softmax(logits.float(), dim=1)
    return -(log_p.exp() * log_p).sum(dim=1).mean()


def information_map(logits: Tensor) -> Tensor:
    """Weighted self-information I_c = -p_c log p_c / log K (Vu et al. 2019, section 3.2): K channels, float32."""
    log_p = torch.log_softmax(logits.float(), dim=1)
    return -log_p.exp() * log_p / math.log(logits.shape[1])


def pseudo_labels(features: Tensor, probabilities: Tensor, threshold: int = 0) -> Tensor:
    """Labels each case by its nearest class centroid (Liang et al. 2020, equations 4 to 6).

    Features get a constant 1 appended and are scaled to unit length. Centroids are means weighted by the probabilities
    in the first round and by the first round's labels in the second; the nearest has the largest cosine.

    Args:
        features: (n, F).
        probabilities: (n, K).
        threshold: a class predicted for this many cases or fewer is not assigned.

    Returns:
        (n,) int64.
    """
    x = F.normalize(F.pad(features.float(), (0, 1), value=1.0), dim=1)
    labels, weights = probabilities.argmax(dim=1), probabilities.float()
    num_classes = probabilities.shape[1]
    kept = (torch.bincount(labels, minlength=num_classes) > threshold).nonzero()[:, 0]
    if len(kept) == 0:
        return labels
    for _ in range(2):
        centroids = F.normalize(weights.T @ x / weights.sum(dim=0)[:, None].clamp(min=1e-8), dim=1)
        labels = kept[(x @ centroids[kept].T).argmax(dim=1)]
        weights = F.one_hot(labels, num_classes).float()
        kept = kept[weights.sum(dim=0)[kept] > 0]
    return labels


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
