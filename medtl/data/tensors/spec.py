"""`Preprocess`: how scans become network inputs, as plain values; needs neither a scan nor torch."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from medtl.errors import ConfigError

CT_WINDOWS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "soft_tissue": (-160.0, 240.0),
        "mediastinum": (-125.0, 225.0),
        "liver": (-45.0, 105.0),
        "lung": (-1350.0, 150.0),
        "bone": (-500.0, 1300.0),
        "brain": (0.0, 80.0),
        "angio": (0.0, 600.0),
    }
)
"""Lower and upper HU of the usual display windows (level -+ half of the width)."""
PLANES: Mapping[str, str] = MappingProxyType({"axial": "LPS", "coronal": "LIP", "sagittal": "PIL"})
"""Directions of rising (i, j, k) as a reader sees the plane; L left, P posterior, I inferior, S superior."""

VERSION = 2
"""Version of the steps that `Preprocess` describes; part of every cache key."""


@dataclass(frozen=True)
class Preprocess:
    """How scans become network inputs.

    Attributes:
        image_size: Height and width of the result, in pixels.
        num_slices: Slices of the result; None for two-dimensional images.
        channels: 1, or 3 for colour (grey is repeated).
        intensity: `percentile` (0.5 to 99.5 of what is not padding), `unit` (8-bit values / 255), the
            name of a CT window, `window:LO,HI` in stored units, or `auto`: the soft-tissue window for CT,
            `unit` for 8-bit images, `percentile` for all else.
        plane: The plane of the slices: `axial`, `coronal` or `sagittal`. Single slices keep their own.
        spacing: For segmentation of volumes: mm along (slices, rows, columns) of the plane. The result then keeps
            its natural size, and `image_size` and `num_slices` are ignored.
    """

    image_size: int = 128
    num_slices: int | None = None
    channels: int = 1
    intensity: str = "auto"
    plane: str = "axial"
    spacing: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        if (
            self.image_size < 8
            or self.channels not in (1, 3)
            or (self.num_slices is not None and self.num_slices < 2)
        ):
            raise ConfigError(
                "Preprocessing needs an image size of 8 or more, 1 or 3 channels, and no or 2 and more "
                f"slices; got image_size={self.image_size}, channels={self.channels}, "
                f"num_slices={self.num_slices}."
            )
        if self.plane not in PLANES:
            raise ConfigError(f"There is no plane {self.plane!r}; give one of {', '.join(PLANES)}.")
        window_of(self.intensity)
        if self.spacing is not None:
            object.__setattr__(self, "spacing", _checked_spacing(self.spacing, self.num_slices))

    @property
    def spatial_dims(self) -> int:
        """2 for images, 3 for volumes."""
        return 2 if self.num_slices is None else 3

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON or YAML."""
        return {**asdict(self), "spacing": None if self.spacing is None else list(self.spacing)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocess:
        """The inverse of `to_dict`.

        Raises:
            ConfigError: Unknown keys or impossible values.
        """
        try:
            return cls(**values)
        except TypeError:
            known = ", ".join(cls.__dataclass_fields__)
            raise ConfigError(f"Preprocessing has the keys {known}; got {', '.join(values)}.") from None

    def key(self) -> str:
        """Digest of everything that determines the result for a given volume."""
        # Unset values are left out of the key, so that cache entries of runs without spacing keep their names.
        values = {k: v for k, v in self.to_dict().items() if k != "spacing" or v is not None}
        text = json.dumps([VERSION, values], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _checked_spacing(spacing: Sequence[float], num_slices: int | None) -> tuple[float, float, float]:
    if num_slices is None:
        raise ConfigError(
            "A spacing is for volumes: set num_slices too, or leave the spacing out for images."
        )
    if len(spacing) != 3 or not all(math.isfinite(s) and s > 0 for s in spacing):
        raise ConfigError(
            f"The spacing is three positive numbers (slices, rows, columns) in mm; got {spacing}."
        )
    return float(spacing[0]), float(spacing[1]), float(spacing[2])


def window_of(intensity: str) -> tuple[float, float] | None:
    """The window that an intensity setting names, or None for `auto`, `percentile` and `unit`.

    Raises:
        ConfigError: There is no such setting.
    """
    if intensity in ("auto", "percentile", "unit"):
        return None
    if intensity in CT_WINDOWS:
        return CT_WINDOWS[intensity]
    match = re.fullmatch(r"window:(-?\d+\.?\d*),(-?\d+\.?\d*)", intensity)
    if match and float(match[1]) < float(match[2]):
        return float(match[1]), float(match[2])
    raise ConfigError(
        f"There is no intensity {intensity!r}; give auto, percentile, unit, window:LOW,HIGH with LOW < "
        f"HIGH, or one of the CT windows {', '.join(CT_WINDOWS)}."
    )
