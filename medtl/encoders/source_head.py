"""The head that an encoder was trained with, and its predictions for scans, which LEEP needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medtl.models.encoder import Encoder
from medtl.models.weights.hub import PACKAGED_ENCODER, cached_file, packaged_file
from medtl.models.weights.load import read_state
from medtl.models.weights.torchvision import torchvision_names


@torch.no_grad()
def source_probabilities(head: nn.Module, features: Tensor) -> NDArray[np.float32]:
    """The head's probabilities for each case; for a volume, of the mean over its slices.

    Args:
        head: as returned by `source_head`.
        features: (N, F), or (N, D, F) of volumes.

    Returns:
        (N, Z) probabilities of the head's own classes.
    """
    probs: Tensor = head(features).softmax(dim=-1)
    return np.asarray((probs.mean(1) if probs.ndim == 3 else probs).numpy(), dtype=np.float32)


def source_head(encoder: Encoder, weights: str) -> nn.Module | None:
    """The linear head that the weights were trained with, or None if it is not known.

    It is unknown for random weights, for files without one, and for networks with more layers before their head.

    Args:
        encoder: built with `weights`.
        weights: as in `build_encoder`.
    """
    if weights == "random":
        return None
    layer = timm.get_pretrained_cfg(encoder.name)
    key = layer.classifier if layer is not None else None
    state = _state(encoder.name, weights) if isinstance(key, str) else {}
    weight, bias = (_ending(state, f"{key}.{part}") for part in ("weight", "bias"))
    if weight is None or bias is None or weight.ndim != 2 or weight.shape[1] != encoder.num_features:
        return None
    head = nn.Linear(weight.shape[1], weight.shape[0])
    head.load_state_dict({"weight": weight, "bias": bias})
    return head.eval()


def _state(name: str, weights: str) -> dict[str, Tensor]:
    if weights != "imagenet":
        state = read_state(Path(weights))
        return torchvision_names(state) or state
    packaged = packaged_file()
    if name == PACKAGED_ENCODER and packaged is not None:
        return dict(zip(timm.create_model(name).state_dict(), read_state(packaged).values(), strict=True))
    cached = cached_file(getattr(timm.get_pretrained_cfg(name), "hf_hub_id", None))
    options: dict[str, Any] = {"pretrained_cfg_overlay": {"file": cached}} if cached else {}
    return dict(timm.create_model(name, pretrained=True, **options).state_dict())


def _ending(state: dict[str, Tensor], key: str) -> Tensor | None:
    """The tensor of that name, with any prefix."""
    return next((v for k, v in state.items() if k == key or k.endswith(f".{key}")), None)
