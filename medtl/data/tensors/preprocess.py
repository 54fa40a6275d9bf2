"""Deterministic preprocessing: brings every volume to one grid and one range of values."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from monai.transforms.intensity.array import ScaleIntensityRange
from numpy.typing import NDArray

from medtl.data.tensors.grid import Grid, plane_of
from medtl.data.tensors.spec import Preprocess, window_of
from medtl.errors import DataError
from medtl.scans.geometry import voxel_spacing
from medtl.scans.items import Volume, VolumeItem
from medtl.scans.reader import readers

log = logging.getLogger(__name__)

PERCENTILES = (0.5, 99.5)
_MAX_SLICES = 32
_SAMPLE = 1_000_000


def preprocess(volume: Volume, spec: Preprocess) -> NDArray[np.float16]:
    """Brings one volume to the grid and range of `spec`.

    Values are clipped and scaled to [0, 1], where a file's own padding is 0; then the volume is turned to the
    plane's standard orientation and resampled. With `spacing` it keeps its natural size; without it, it gets
    square pixels with its longer side filling the image, is padded to a square with the value of its border
    (`Grid.beyond`), and is resampled through its extent to `num_slices`. Downsampling is low-pass filtered.
    `Grid` is the same way, and the way back.

    Large volumes are processed slab by slab, which needs little memory beyond the volume and the result.

    Returns:
        (C, H, W) or (C, D, H, W) float16.

    Raises:
        DataError: A volume of several slices where an image is expected, or a result that is too large.
    """
    grid = Grid.of((volume.array.shape[:3], volume.affine), spec)
    low, high = _range(volume, spec)
    array = grid.turn(volume.array)
    mask = None if volume.mask is None else grid.turn(volume.mask)
    colour = array.ndim == 4 and spec.channels == 3

    def slab(start: int, stop: int) -> torch.Tensor:
        part = None if mask is None else mask[start:stop]
        return torch.from_numpy(_scaled(array[start:stop], part, low, high, spec.channels))

    values = grid.forward(slab, 3 if colour else 1, torch.float16)
    result: NDArray[np.float16] = values.clamp_(0, 1).numpy()
    margin = np.ones(grid.shape[-2:], dtype=bool)
    margin[grid.inside] = False
    if margin.any():
        result[..., margin] = grid.beyond(result).reshape(-1, *[1] * (result.ndim - 2))
    return np.repeat(result, 3, axis=0) if spec.channels == 3 and not colour else result


def _scaled(
    array: NDArray[Any], mask: NDArray[np.bool_] | None, low: float, high: float, channels: int
) -> NDArray[np.float32]:
    """(k, j, i) or (k, j, i, 3) to (C, k, j, i) float32 in [0, 1], padding 0."""
    if array.ndim == 4:
        values = np.moveaxis(array, -1, 0).astype(np.float32)
        if channels == 1:  # ITU-R BT.601 luminance
            values = np.tensordot(np.array([0.299, 0.587, 0.114], np.float32), values, axes=1)[None]
    else:
        values = array[None].astype(np.float32)
    if high <= low:  # a constant image
        return np.zeros(values.shape, dtype=np.float32)
    scaled: Any = ScaleIntensityRange(low, high, 0.0, 1.0, clip=True)(values)
    result = np.ascontiguousarray(scaled, dtype=np.float32)
    if mask is not None:
        result[:, mask] = 0
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
    """The intensity setting for one volume, chosen from its header."""
    if modality == "CT":
        return "soft_tissue"
    shown = {reader.kind for reader in readers() if reader.display}
    if bits == 8 and kind in shown and modality not in ("MR", "PT", "NM"):
        return "unit"
    return "percentile"


def suggest_preprocess(
    items: Sequence[VolumeItem],
    image_size: int = 128,
    num_slices: int | None = None,
    intensity: str = "auto",
    keep_spacing: bool = False,
) -> Preprocess:
    """Chooses one preprocessing for all items, from their headers.

    Images if every item has one slice, volumes if every item has several. The slices lie in the plane in
    which most of the thick-slice volumes were acquired (axial without one); their number is the median
    along that plane, at most 32. `auto` becomes one setting for all: sites must not differ in it.

    Args:
        items: The scans.
        image_size: Height and width of images.
        num_slices: Slices of volumes; None to choose.
        intensity: As for `Preprocess`.
        keep_spacing: For segmentation: volumes are brought to their median spacing, with square pixels in the
            plane, and keep their size; where the median slice is smaller than `image_size`, pixels are made
            finer, at most twice. Images are resized in any case.

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
    spec = Preprocess(image_size, num_slices, channels, intensity, plane)
    return replace(spec, spacing=_median_spacing(items, spec)) if keep_spacing else spec


MOST_ENLARGED = 2.0
"""By how much the network's pixels may be finer than the scans' own."""


def _median_spacing(items: Sequence[VolumeItem], spec: Preprocess) -> tuple[float, float, float]:
    """Spacing in mm along (slices, rows, columns) of the plane, the last two equal."""
    own = np.array([Grid.of(item, spec).native_spacing for item in items])
    columns = np.stack([own[:, 0], np.sqrt(own[:, 1] * own[:, 2])], axis=1)
    # The lower of two in the middle: a value between two sites' would resample every scan of both.
    thickness, pixel = np.quantile(columns, 0.5, axis=0, method="lower")
    # Encoders learnt structures of tens of pixels: at stride 4 and more, little is left of one of five.
    sides = np.array([Grid.of(item, spec).turned[1:] for item in items]) * own[:, 1:] / pixel
    pixel /= np.clip(spec.image_size / np.median(sides.max(axis=1)), 1, MOST_ENLARGED)
    # Four digits: header noise must not become resampling in one scan and a new cache in the next run.
    return float(f"{thickness:.4g}"), float(f"{pixel:.4g}"), float(f"{pixel:.4g}")


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
