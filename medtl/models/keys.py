"""Names of tensors: what other tools call the layers of a timm network."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from torch import Tensor

_SEQUENTIAL = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
"""A ResNet's children by their number, as `nn.Sequential(*children)` calls them (RadImageNet's files do)."""


def own_names(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the tensors of a file to the names of a network, in the way that makes most of them match.

    Tried are: the names as they are; without the prefix that wrappers put before them (`module.`, `encoder.`,
    `backbone.`); a ResNet's numbered children. Names of timm and torchvision are the same for ResNet, VGG, DenseNet and
    Inception-v3.

    Args:
        state: tensors of the file by name.
        own: tensors of the network by name.
    """
    return max(_candidates(state, own), key=lambda found: len(found.keys() & own.keys()))


def _candidates(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    yield dict(state)
    first = next(iter(own))
    for prefix in sorted({k.removesuffix(first) for k in state if k.endswith(f".{first}")}):
        yield {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    if "layer1.0.conv1.weight" in own:
        for prefix in sorted({m[1] for k in state if (m := re.match(r"((?:\w+\.)*?)0\.weight$", k))}):
            renamed = {}
            for key, value in state.items():
                number, dot, rest = key.removeprefix(prefix).partition(".")
                named = key.startswith(prefix) and number in _SEQUENTIAL
                renamed[f"{_SEQUENTIAL[number]}{dot}{rest}" if named else key] = value
            yield renamed
