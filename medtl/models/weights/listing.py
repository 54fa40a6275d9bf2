"""Available encoders with their sizes."""

from __future__ import annotations

from typing import Any

import timm
import torch

from medtl.errors import ConfigError, near_matches
from medtl.models.weights.hub import weights_here
from medtl.models.weights.load import make_network

MAX_COUNTED = 40
"""Lists of up to this length show parameter counts: building one encoder takes a twentieth of a second."""


def list_encoders(pattern: str | None) -> list[dict[str, Any]]:
    """Lists encoders with ImageNet weights whose name contains `pattern`, or matches it if it has a `*`.

    Returns:
        One row per encoder: name, millions of parameters without the head (not in long lists), input size of the
        weights, licence of the weights if timm knows it, and whether the weights are on this machine.

    Raises:
        ConfigError: nothing matches.
    """
    pattern = pattern or ""
    names = timm.list_pretrained(pattern if "*" in pattern else f"*{pattern}*")
    if not names:
        raise ConfigError(
            f"No encoder matches {pattern!r}. {near_matches(pattern, timm.list_models())[:200]}"
        )
    rows = []
    for name in names:
        config: Any = timm.get_pretrained_cfg(name)
        row = {"encoder": name}
        if len(names) <= MAX_COUNTED:
            row["parameters (M)"] = f"{_parameters(name) / 1e6:.1f}"
        row |= {
            "input": "x".join(map(str, config.input_size)),
            "licence": config.license or "",
            "weights": "here" if weights_here(name) else "hub",
        }
        rows.append(row)
    return rows


def _parameters(name: str) -> int:
    """Counts parameters by shape, without allocating them."""
    with torch.device("meta"):
        return sum(p.numel() for p in make_network(name.partition(".")[0]).parameters())
