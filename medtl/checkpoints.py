"""Checkpoints: weights as safetensors with a JSON header; the optimiser's state apart, read without unpickling code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from medtl.errors import CheckpointError
from medtl.files import atomic_write

LARGEST = 1e15
"""No weight of a trained network is larger; a file that holds one is damaged."""


def save_weights(path: Path, state: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Writes tensors and a JSON header to one safetensors file, beside and renamed."""
    atomic_write(path, weights_bytes(state, header))


def weights_bytes(state: Mapping[str, Tensor], header: Mapping[str, Any]) -> bytes:
    """The content of the file that `save_weights` writes."""
    # Tensors may share memory (tied weights), which safetensors refuses; contiguous ones are copied when written.
    seen: set[int] = set()
    plain = {}
    for name, tensor in state.items():
        value = tensor.detach().cpu().contiguous()
        memory = value.untyped_storage().data_ptr()
        plain[name] = value.clone() if memory in seen else value
        seen.add(memory)
    return bytes(save(plain, metadata={"medtl": json.dumps(dict(header), sort_keys=True)}))


def restore_weights(model: nn.Module, folder: Path) -> None:
    """Loads the weights that `fit` left in `folder` into a model of the same architecture.

    Args:
        model: receives the weights.
        folder: the folder that `fit` wrote to.

    Raises:
        CheckpointError: there are no such weights, or they belong to another architecture.
    """
    _, weights = load_weights(folder / "model.safetensors")
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"The weights in {folder.name} are of another architecture.") from error


def read_header(path: Path) -> dict[str, Any]:
    """Reads the JSON header alone.

    Raises:
        CheckpointError: no such file, cut short, or not written by medtl.
    """
    return _open(path)[0]


def load_weights(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Reads the header and all tensors.

    Raises:
        CheckpointError: as `read_header`, or values that no training leaves: not finite, or beyond `LARGEST`.
    """
    header, tensors = _open(path, tensors=True)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel():
            low, high = (float(v) for v in torch.aminmax(tensor.float()))
            if not (low >= -LARGEST and high <= LARGEST):
                raise CheckpointError(
                    f"{path.name} is damaged: {name} holds values that are no weights ({low:.3g} to {high:.3g}). "
                    "Train it again, or restore it from a copy of the run."
                )
    return header, tensors


def refuse_empty(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Refuses the weights of a network that are all zero.

    Raises:
        CheckpointError: they are.
    """
    learnt = [w for w in weights.values() if w.is_floating_point() and w.ndim > 1]
    if learnt and not any(bool(w.any()) for w in learnt):
        raise CheckpointError(f"{path.name} is damaged: all its weights are zero. Train it again.")


def _open(path: Path, *, tensors: bool = False) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise CheckpointError(
            f"There is no checkpoint {path.name}. Expected: the folder of a finished run, which holds "
            "checkpoints/NAME/model.safetensors."
        )
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header: dict[str, Any] = json.loads((file.metadata() or {})["medtl"])
            if not isinstance(header, dict):
                raise KeyError("medtl")
            return header, {k: file.get_tensor(k) for k in file.keys()} if tensors else {}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path.name} is not a checkpoint of medtl, or is cut short ({type(error).__name__}). Train it again, or "
            "delete it to resume from the epoch before."
        ) from error
