"""Heads beside the linear one, and how any head is described in a weights file and built again."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medtl.errors import CheckpointError, ConfigError
from medtl.models.neighbours import NeighbourHead

MOST_WIDTH = 1 << 20
"""A described layer is at most this wide: a weights file may come from anywhere."""
MOST_LAYERS = 64
MOST_VALUES = 1 << 28
"""A described head holds at most this many values: 1 GB."""


class CosineHead(nn.Module):
    """Cosine similarity with one weight vector a class, divided by a temperature (Saito et al. 2019, section 3.1).

    Args:
        in_features: F.
        out_features: K.
        temperature: divides the similarities; 0.05 in the paper.

    Raises:
        ConfigError: a temperature that is not positive.
    """

    def __init__(self, in_features: int, out_features: int, temperature: float = 0.05) -> None:
        super().__init__()
        if not temperature > 0:
            raise ConfigError(
                f"The temperature of a cosine head is {temperature}; expected a number above 0."
            )
        self.in_features, self.out_features, self.temperature = in_features, out_features, temperature
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        nn.init.normal_(self.weight, std=0.01)

    def forward(self, features: Tensor) -> Tensor:
        """Maps (B, F) to (B, K)."""
        return F.linear(F.normalize(features, dim=1), F.normalize(self.weight, dim=1)) / self.temperature


LAYERS: Mapping[str, type[nn.Module]] = {
    kind.__name__: kind
    for kind in (
        *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d),
        *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm),
        *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
        *(nn.ReLU, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.ELU, nn.Tanh, nn.Sigmoid, nn.Identity, nn.Flatten),
        *(nn.Dropout, nn.Dropout2d, nn.Dropout3d),
        *(CosineHead, NeighbourHead),
    )
}
"""The layers that a description may name."""


def describe_head(head: nn.Module) -> dict[str, Any] | None:
    """The layers of a head with their arguments, as JSON values; None if it has one that `LAYERS` lacks.

    Args:
        head: a layer, or `nn.Sequential` of layers.
    """
    if type(head) is nn.Sequential:
        parts = [describe_head(layer) for layer in head]
        return None if any(part is None for part in parts) else {"Sequential": parts}
    name = type(head).__name__
    if LAYERS.get(name) is not type(head):
        return None
    arguments = {}
    for key in inspect.signature(type(head)).parameters:
        if key in ("device", "dtype", "inplace") or not hasattr(head, key):
            continue
        value = getattr(head, key)
        arguments[key] = value is not None if key == "bias" else value
    try:
        return {name: json.loads(json.dumps(arguments))}
    except (TypeError, ValueError):
        return None


def build_head(described: Any) -> nn.Module:
    """Builds a head from its description, which is data from a file: nothing but known layers of sane sizes.

    Args:
        described: as `describe_head` returns it.

    Raises:
        CheckpointError: it is not a description, or one of a head that is too large.
    """
    with torch.device("meta"):  # takes no memory
        layers = _build(described)
    values = sum(each.numel() for each in (*layers.parameters(), *layers.buffers()))
    if values > MOST_VALUES:
        raise CheckpointError(
            f"The head in the weights' header cannot be built (it would hold {values:,} values)."
        )
    return _build(described)


def _build(described: Any, _depth: int = 0) -> nn.Module:
    reason = "it is no description"
    if isinstance(described, Mapping) and len(described) == 1 and _depth < 4:
        ((name, arguments),) = described.items()
        if name == "Sequential" and isinstance(arguments, list) and len(arguments) <= MOST_LAYERS:
            return nn.Sequential(*(_build(part, _depth + 1) for part in arguments))
        reason = f"layer {str(name)[:40]!r} is unknown"
        if name in LAYERS and isinstance(arguments, Mapping):
            sizes = [
                v for value in arguments.values() for v in (value if isinstance(value, list) else [value])
            ]
            if all(abs(v) <= MOST_WIDTH for v in sizes if isinstance(v, int | float)):
                try:
                    return LAYERS[name](**{str(k): _tupled(v) for k, v in arguments.items()})
                except (TypeError, ValueError, RuntimeError, ConfigError) as error:
                    reason = f"layer {name}: {type(error).__name__}"
            else:
                reason = f"layer {name} is too wide"
    raise CheckpointError(f"The head in the weights' header cannot be built ({reason}).")


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
