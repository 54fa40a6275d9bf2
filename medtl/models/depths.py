"""Features of every depth of a frozen encoder, case by case, and what its own head says of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from medtl.data.batch import collate
from medtl.data.dataset import CaseDataset
from medtl.models import weights as sources
from medtl.models.encoder import Encoder

Floats = NDArray[np.float32]


@torch.no_grad()
def encode_depths(
    encoder: Encoder,
    data: CaseDataset,
    *,
    batch_size: int = 32,
    head: nn.Module | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, Floats], Floats | None]:
    """Features of each case at each depth, without augmentation; of a volume the mean over its slices.

    Args:
        encoder: is put into eval mode.
        data: cases; labels are not looked at.
        batch_size: cases of a step.
        head: makes logits of the encoder's own classes from the last features.
        progress: called with (done, all) cases.

    Returns:
        (n, F) by name of the depth, the last one last; and (n, Z) probabilities of the head's classes, or None.
    """
    encoder.eval()
    found: dict[str, list[Floats]] = {}
    probs: list[Floats] = []
    done = 0
    for batch in DataLoader(data.plain(), batch_size=batch_size, collate_fn=collate):
        image: Tensor = batch.image
        slices = image if image.ndim == 4 else image.transpose(1, 2).flatten(0, 1)
        depths = encoder.features_at(slices)
        for name, features in depths.items():
            found.setdefault(name, []).append(_by_case(features, len(image)))
        if head is not None:
            last = list(depths.values())[-1]
            probs.append(_by_case(head(last).softmax(dim=1), len(image)))
        done += len(image)
        if progress is not None:
            progress(done, len(data))
    joined = {name: np.concatenate(parts) for name, parts in found.items()}
    return joined, np.concatenate(probs) if probs else None


def source_head(encoder: Encoder, weights: str) -> nn.Module | None:
    """The linear head that the weights were trained with, or None where it is not known.

    That is so for random weights, for files that hold none, and for networks with more layers before their head.

    Args:
        encoder: made with `weights`.
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
        return sources.read_state(Path(weights))
    packaged = sources._packaged_file()
    if name == sources.PACKAGED_ENCODER and packaged is not None:
        return dict(
            zip(timm.create_model(name).state_dict(), sources.read_state(packaged).values(), strict=True)
        )
    cached = sources._cached_file(getattr(timm.get_pretrained_cfg(name), "hf_hub_id", None))
    options: dict[str, Any] = {"pretrained_cfg_overlay": {"file": cached}} if cached else {}
    state: dict[str, Tensor] = timm.create_model(name, pretrained=True, **options).state_dict()
    return state


def _ending(state: dict[str, Tensor], key: str) -> Tensor | None:
    """The tensor of that name, behind any prefix."""
    return next((v for k, v in state.items() if k == key or k.endswith(f".{key}")), None)


def _by_case(values: Tensor, num_cases: int) -> Floats:
    mean = values.float().reshape(num_cases, -1, values.shape[1]).mean(dim=1)
    return np.asarray(mean.cpu().numpy())
