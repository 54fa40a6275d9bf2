"""Features on disk, case by case, so that every run finds what earlier runs have encoded."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from medtl.files import atomic_write

logger = logging.getLogger(__name__)


class FeatureStore:
    """Features of one encoder, depth and view, in files of some hundred cases with their keys in the header.

    Files are never changed in place, so several processes can share a folder: at worst two of them compute the same
    features. Keys are digests; no identifier is stored.

    Args:
        folder: folder of the files; created with the first one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def read(self, keys: Sequence[str]) -> dict[str, Tensor]:
        """The stored features by key; (F,) or (D, F).

        A damaged file is deleted with a warning, and its features count as missing.
        """
        wanted = set(keys)
        found: dict[str, Tensor] = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            if not wanted - found.keys():
                break
            held = _keys(path)
            if held is not None and not wanted & set(held):
                continue
            features = None if held is None else _features(path, len(held))
            if held is None or features is None:
                logger.warning("Kept features are damaged and are computed again: %s", path.name)
                path.unlink(missing_ok=True)
                continue
            found.update((k, row) for k, row in zip(held, features, strict=True) if k in wanted)
        return found

    def add(self, keys: Sequence[str], features: Tensor) -> None:
        """Stores (n, F) or (n, D, F) features under n keys, in one file."""
        tensor = features.contiguous()
        listed = json.dumps(list(keys))
        check = {"keys": listed, "sha256": _digest(tensor)}
        name = hashlib.sha256(listed.encode()).hexdigest()[:32]
        atomic_write(
            self.folder / f"{name}.safetensors", save({"features": tensor}, metadata=check), private=True
        )


def _keys(path: Path) -> list[str] | None:
    """The keys in a file's header; None if it cannot be read."""
    with contextlib.suppress(SafetensorError, ValueError, KeyError, OSError), safe_open(path, "pt") as file:
        keys = json.loads((file.metadata() or {})["keys"])
        if isinstance(keys, list):
            return keys
    return None


def _features(path: Path, num: int) -> Tensor | None:
    with contextlib.suppress(SafetensorError, KeyError, OSError), safe_open(path, "pt") as file:
        features: Tensor = file.get_tensor("features")
        if len(features) == num and file.metadata()["sha256"] == _digest(features):
            return features
    return None


def _digest(tensor: Tensor) -> str:
    assert tensor.dtype == torch.float32
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
