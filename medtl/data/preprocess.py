"""Deterministic preprocessing: every volume to one grid and one range of values, before anything random."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.croppad.array import SpatialPad
from monai.transforms.intensity.array import ScaleIntensityRange
from monai.transforms.spatial.array import Orientation
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from medtl.data.geometry import voxel_spacing
from medtl.data.items import Affine, VolumeItem
from medtl.data.volume import Volume
from medtl.errors import ConfigError, DataError

log = logging.getLogger(__name__)

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

PERCENTILES = (0.5, 99.5)
VERSION = 1
_MAX_SLICES = 32
_SAMPLE = 1_000_000


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
        plane: In which plane slices lie: `axial`, `coronal` or `sagittal`. Single slices keep their own.
    """

    image_size: int = 128
    num_slices: int | None = None
    channels: int = 1
    intensity: str = "auto"
    plane: str = "axial"

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

    @property
    def spatial_dims(self) -> int:
        """2 for images, 3 for volumes."""
        return 2 if self.num_slices is None else 3

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON or YAML."""
        return asdict(self)

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
        text = json.dumps([VERSION, self.to_dict()], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


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


def preprocess(volume: Volume, spec: Preprocess) -> NDArray[np.float16]:
    """Brings one volume to the grid and range of `spec`.

    Values are clipped and scaled to [0, 1] with padding at 0; then the volume is turned to the plane's
    standard orientation, resampled to square pixels with its longer side filling the image, padded to a
    square, and resampled through its extent to `num_slices`. Downsampling is low-pass filtered.

    Returns:
        (C, H, W) or (C, D, H, W) float16.

    Raises:
        DataError: A volume of several slices where images are wanted.
    """
    if spec.num_slices is None and volume.array.shape[0] > 1:
        raise DataError(
            f"Images of one slice were expected, got a volume of {volume.array.shape[0]} slices: set "
            f"num_slices."
        )
    values = torch.from_numpy(_scaled(volume, spec))  # (C, k, j, i)
    spacing = (1.0, 1.0, 1.0)
    if volume.affine is not None:
        values, spacing = _oriented(values, volume.affine, _axcodes(volume.affine, values.shape[1:], spec))
    channels, slices = values.shape[:2]
    # In the plane, slices are like channels: one two-dimensional call for all of them.
    flat = values.reshape(channels * slices, *values.shape[2:])
    height, width = flat.shape[1] * spacing[1], flat.shape[2] * spacing[2]
    pixel = max(height, width) / spec.image_size
    size = (max(1, round(height / pixel)), max(1, round(width / pixel)))
    flat = _resize(flat, size)
    flat = SpatialPad((spec.image_size, spec.image_size))(flat)
    side = spec.image_size
    result = torch.as_tensor(flat).reshape(channels, slices, side * side)
    if spec.num_slices is not None and slices != spec.num_slices:
        result = _resize(result, (spec.num_slices, side * side))
    shape = (channels, side, side) if spec.num_slices is None else (channels, spec.num_slices, side, side)
    array = result.reshape(shape).clamp(0, 1).to(torch.float16).numpy()
    return np.repeat(array, 3, axis=0) if spec.channels == 3 and channels == 1 else array


def _resize(values: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if tuple(values.shape[1:]) == size:
        return values
    # Not MONAI's Resize: its low-pass filter takes in zeros from beyond the edge, which darkens border pixels
    # and the first and last slices by a tenth; the weights of this one sum to 1 everywhere.
    return interpolate(values[None], size, mode="bilinear", align_corners=False, antialias=True)[0]


def _axcodes(affine: Affine, shape: Sequence[int], spec: Preprocess) -> str:
    """Single slices keep their own plane; volumes are turned to the common one."""
    return PLANES[spec.plane if spec.num_slices is not None or shape[0] > 1 else plane_of(affine)]


def _oriented(
    values: torch.Tensor, affine: Affine, axcodes: str
) -> tuple[torch.Tensor, tuple[float, float, float]]:
    """(C, k, j, i) turned so that (i, j, k) point along `axcodes`; and its spacing in mm along (k, j, i)."""
    image = MetaTensor(values.permute(0, 3, 2, 1), affine=torch.tensor(affine, dtype=torch.float64))
    labels = (("L", "R"), ("P", "A"), ("I", "S"))
    turned: Any = Orientation(axcodes=axcodes, labels=labels)(image)
    i, j, k = voxel_spacing(tuple(map(tuple, turned.affine.tolist())))
    return turned.as_tensor().permute(0, 3, 2, 1), (k, j, i)


def _scaled(volume: Volume, spec: Preprocess) -> NDArray[np.float32]:
    """(C, k, j, i) float32 in [0, 1], padding 0."""
    array = volume.array
    if array.ndim == 4:
        values = np.moveaxis(array, -1, 0).astype(np.float32)
        if spec.channels == 1:  # ITU-R BT.601 luminance
            values = np.tensordot(np.array([0.299, 0.587, 0.114], np.float32), values, axes=1)[None]
    else:
        values = array[None].astype(np.float32)
    low, high = _range(volume, spec)
    if high <= low:  # a constant image
        return np.zeros_like(values)
    scaled: Any = ScaleIntensityRange(low, high, 0.0, 1.0, clip=True)(values)
    result = np.ascontiguousarray(scaled, dtype=np.float32)
    if volume.mask is not None:
        result[:, volume.mask] = 0
    return result


def _range(volume: Volume, spec: Preprocess) -> tuple[float, float]:
    intensity = spec.intensity
    if intensity == "auto":
        intensity = auto_intensity(
            volume.meta.get("kind"), volume.meta.get("modality"), volume.meta.get("bits")
        )
    window = window_of(intensity)
    if window:
        return window
    if intensity == "unit":
        return 0.0, 255.0
    kept = volume.array if volume.mask is None else volume.array[~volume.mask]
    if kept.size == 0:
        return 0.0, 0.0
    # A regular sample fixes the percentiles of large volumes to well under a grey level.
    sample = kept.reshape(-1)[:: max(1, kept.size // _SAMPLE)]
    low, high = np.percentile(sample, PERCENTILES)
    return float(low), float(high)


def auto_intensity(kind: str | None, modality: str | None, bits: int | None) -> str:
    """The intensity setting that suits one volume by its header."""
    if modality == "CT":
        return "soft_tissue"
    if bits == 8 and (kind == "image" or (kind == "dicom" and modality not in ("MR", "PT", "NM"))):
        return "unit"
    return "percentile"


def plane_of(affine: Affine) -> str:
    """The plane in which a slice (i, j) lies, by the largest component of its normal."""
    matrix = np.array(affine)[:3, :3]
    normal = np.abs(np.cross(matrix[:, 0], matrix[:, 1]))
    return ("sagittal", "coronal", "axial")[int(normal.argmax())]


def suggest_preprocess(
    items: Sequence[VolumeItem], image_size: int = 128, num_slices: int | None = None, intensity: str = "auto"
) -> Preprocess:
    """Chooses one preprocessing for all items, from their headers.

    Images if every item has one slice, volumes if every item has several. The slices lie in the plane in
    which most of the thick-slice volumes were acquired (axial without one); their number is the median
    along that plane, at most 32. `auto` becomes one setting for all: sites must not differ in it.

    Raises:
        DataError: No items, or single slices and volumes mixed.
    """
    if not items:
        raise DataError("There are no scans to choose a preprocessing for: every file was left out.")
    single = [item for item in items if item.shape[0] == 1]
    if 0 < len(single) < len(items):
        several = next(item for item in items if item.shape[0] > 1)
        raise DataError(
            f"Single images and volumes are mixed: {len(single)} items have one slice (such as "
            f"{single[0].name!r}), {len(items) - len(single)} have several (such as {several.name!r}). "
            "Give folders of one kind: medtl inspect lists what is in each."
        )
    if intensity == "auto":
        intensity = _common_intensity(items)
    channels = 3 if any(item.channels == 3 for item in items) else 1
    if single:
        return Preprocess(image_size, None, channels, intensity)
    thick = Counter(plane_of(i.affine) for i in items if i.affine is not None and _is_thick(i))
    if len(thick) > 1:
        log.warning(
            "Volumes were acquired in several planes (%s): all are turned to the commonest.", dict(thick)
        )
    plane = thick.most_common(1)[0][0] if thick else "axial"
    if num_slices is None:
        num_slices = int(np.clip(np.median([_slices_along(item, plane) for item in items]), 2, _MAX_SLICES))
    return Preprocess(image_size, num_slices, channels, intensity, plane)


def _common_intensity(items: Sequence[VolumeItem]) -> str:
    found = Counter(auto_intensity(i.kind, i.modality, int(i.header.get("bits", "0"))) for i in items)
    if len(found) == 1:
        return next(iter(found))
    log.warning("Scans call for several intensity ranges (%s): percentiles are used for all.", dict(found))
    return "percentile"


def _is_thick(item: VolumeItem) -> bool:
    i, j, k = voxel_spacing(item.affine or ())
    return k > 1.5 * max(i, j)


def _slices_along(item: VolumeItem, plane: str) -> int:
    """How many slices the item has once turned to `plane`."""
    if item.affine is None:
        return item.shape[0]
    matrix = np.abs(np.array(item.affine)[:3, :3])
    world = {"sagittal": 0, "coronal": 1, "axial": 2}[plane]
    matrix = matrix / np.linalg.norm(matrix, axis=0)
    return item.shape[::-1][int(matrix[world].argmax())]
