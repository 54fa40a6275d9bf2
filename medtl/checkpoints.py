"""Checkpoints: weights as safetensors with a JSON header; the optimiser's state apart, read without unpickling code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from medtl.errors import CheckpointError
from medtl.files import atomic_write


def save_weights(path: Path, state: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Writes tensors and a JSON header to one safetensors file, beside and renamed."""
    # Tensors may share memory (tied weights), which safetensors refuses; contiguous ones are copied when written.
    seen: set[int] = set()
    plain = {}
    for name, tensor in state.items():
        value = tensor.detach().cpu().contiguous()
        memory = value.untyped_storage().data_ptr()
        plain[name] = value.clone() if memory in seen else value
        seen.add(memory)
    atomic_write(path, save(plain, metadata={"medtl": json.dumps(dict(header), sort_keys=True)}))


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
    """Reads the header and all tensors."""
    return _open(path, tensors=True)


def _open(path: Path, *, tensors: bool = False) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise CheckpointError(
            f"There is no checkpoint {path.name}. Expected: the folder of a finished run, which holds "
            "checkpoints/NAME/model.safetensors."
        )
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header: dict[str, Any] = json.loads((file.metadata() or {})["medtl"])
            return header, {k: file.get_tensor(k) for k in file.keys()} if tensors else {}  # noqa: SIM118
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{path.name} is not a checkpoint of medtl, or is cut short ({type(error).__name__}). Train it again, or "
            "delete it to resume from the epoch before."
        ) from error
