"""Tensor names: what other tools call the layers of a timm network, and the inputs that their weights expect."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from medtl.models.weights.torchvision import MEAN, STD, torchvision_names

_FIRST_CHILD = re.compile(r"((?:[A-Za-z_]\w*\.)*)0\.")
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")


def own_names(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], children: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Renames the tensors of a file to the names of a network, with the rule that makes most of them match.

    Rules: the names unchanged; without the prefixes of wrappers (`module.`, `encoder.`, `backbone.`); numbers in place
    of the network's children, as `nn.Sequential(*children)` gives (RadImageNet's files); torchvision's names. For
    ResNet, VGG, DenseNet and Inception-v3 these equal timm's; the old names of torchvision's first DenseNet files
    (`norm.1`) are supported too.

    Args:
        state: tensors of the file by name.
        own: tensors of the network by name.
        children: names of the network's children, in order.
    """
    state = {_OLD_DENSENET.sub(r"\1\2.", key): value for key, value in state.items()}
    return max(_candidates(state, own, children), key=lambda found: len(found.keys() & own.keys()))


def _candidates(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], children: Sequence[str]
) -> Iterator[dict[str, Tensor]]:
    yield dict(state)
    if (translated := torchvision_names(state)) is not None:
        yield translated
    first = next(iter(own))
    for prefix in sorted({k.removesuffix(first) for k in state if k.endswith(f".{first}")}):
        yield {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    for prefix in sorted({found[1] for k in state if (found := _FIRST_CHILD.match(k))}):
        renamed = {}
        for key, value in state.items():
            number, dot, rest = key.removeprefix(prefix).partition(".")
            numbered = key.startswith(prefix) and number.isdecimal() and int(number) < len(children)
            renamed[f"{children[int(number)]}{dot}{rest}" if numbered else key] = value
        yield renamed


def input_statistics(state: Mapping[str, Tensor]) -> tuple[str, tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation, for images in [0, 1], that the weights of a file were trained with; None: timm's.

    torchxrayvision scales images to [-1024, 1024] (its `utils.normalize`; recognised by `op_threshs`, or by a grey
    DenseNet with its 18 findings). RadImageNet scales them to [-1, 1] (its `pytorch_example.ipynb`; recognised by
    numbered children of `backbone`). torchvision's ViT and others expect ImageNet's, which timm's ViT does not.
    Checkpoints of medtl hold their own.

    Returns:
        Whose statistics they are, and mean and standard deviation of each channel (or one value for all).
    """
    ends = {key.rpartition(".")[0].rpartition(".")[2]: tuple(value.shape) for key, value in state.items()}
    grey = ends.get("conv0", ())[1:2] == (1,)
    if grey and (ends.get("classifier", ())[:1] == (18,) or any(k.endswith("op_threshs") for k in state)):
        return "torchxrayvision", (0.5,), (1 / 2048,)
    if any(re.match(r"(module\.)?backbone\.0\.(conv\.|conv0\.)?weight$", k) for k in state):
        return "RadImageNet", (0.5,), (0.5,)
    if torchvision_names(state) is not None:
        return "torchvision", MEAN, STD
    for prefix in (key.removesuffix("mean") for key in state if re.fullmatch(r"([\w.]+\.)?mean", key)):
        if f"{prefix}std" in state and any(key.startswith(f"{prefix}network.") for key in state):
            mean, std = (tuple(state[f"{prefix}{k}"].flatten().tolist()) for k in ("mean", "std"))
            return "the model in that checkpoint", mean, std
    return None
