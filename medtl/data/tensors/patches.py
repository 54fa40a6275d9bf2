"""Patches: their size, their place, and how they are read from a memory map without the rest of the volume."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medtl.data.tensors.grid import Grid
from medtl.data.tensors.spec import Preprocess
from medtl.errors import ConfigError, DataError
from medtl.scans.items import VolumeItem

THIN = 8
"""Slices per patch for networks that see slices, or slices and their neighbours."""


def suggest_patch(
    items: Sequence[VolumeItem], spec: Preprocess, image_size: int, *, depth: Literal["thin", "cube"] = "thin"
) -> tuple[int, ...]:
    """Chooses the size of patches from the headers of the scans.

    Args:
        items: the scans.
        spec: their preprocessing.
        image_size: largest height and width.
        depth: `cube` for 3D networks: about as thick as wide in mm, at most `image_size` slices; `thin`: 8
            slices. Never more slices than the largest scan has.

    Returns:
        (H, W) for images: all of it. (D, H, W) for volumes, no larger than the median scan with each side rounded
        up to a multiple of 8, as nnU-Net has it (Isensee et al. 2021): patches for the largest scan would be
        padding for most.

    Raises:
        ConfigError: an unknown `depth`.
        DataError: no scans.
    """
    if depth not in ("thin", "cube"):
        raise ConfigError(f"A patch is 'thin' or a 'cube', not {depth!r}.")
    if spec.num_slices is None:
        return spec.image_size, spec.image_size
    if not items:
        raise DataError("There are no scans to choose a patch size for: every file was left out.")
    grids = [Grid.of(item, spec) for item in items]
    shapes = np.array([grid.shape for grid in grids])
    slices, rows, columns = (8 * math.ceil(n / 8) for n in np.median(shapes, axis=0))
    slices = min(slices, int(shapes[:, 0].max()))
    most = max(8, image_size // 8 * 8)
    height, width = min(rows, most), min(columns, most)
    if depth == "thin":
        return min(THIN, slices), height, width
    thickness, _, pixel = np.median([grid.spacing for grid in grids], axis=0)
    wanted = 8 * max(1, round(min(height, width) * pixel / thickness / 8))
    return min(wanted, image_size, slices), height, width


def place(
    shape: Sequence[int],
    patch: Sequence[int],
    generator: np.random.Generator,
    points: Mapping[int, NDArray[np.int32]] | None = None,
    foreground: float = 0.0,
) -> tuple[int, ...]:
    """Draws where a patch starts.

    Args:
        shape: of the volume.
        patch: of the patch; where it is larger, the volume lies in its middle.
        generator: of random numbers; as many are drawn whatever the outcome.
        points: voxels of each structure that the case has.
        foreground: share of the patches whose middle is a voxel of a structure, each structure equally often;
            at the border they are moved inside.

    Returns:
        The first voxel along each axis; negative where the patch is larger than the volume.
    """
    chance, which, one = generator.random(3)
    spread = generator.random(len(shape))
    room = np.array(shape) - np.array(patch)
    start = np.floor(spread * (room + 1)).astype(int)
    if points and chance < foreground:
        voxels = points[sorted(points)[int(which * len(points))]]
        start = np.asarray(voxels[int(one * len(voxels))]) - np.array(patch) // 2
    middle = centred(shape, patch)
    return tuple(int(s) for s in np.where(room < 0, middle, np.clip(start, 0, np.maximum(room, 0))))


def centred(shape: Sequence[int], patch: Sequence[int]) -> tuple[int, ...]:
    """First voxel of a window with a scan in its middle, where the window is larger; 0 where it is not.

    Training and prediction both use it, so that a small scan has the same surroundings in both.
    """
    # Floor division: a volume that is an odd number of voxels smaller lies half a voxel off the middle.
    return tuple(min(0, (size - length) // 2) for size, length in zip(shape, patch, strict=True))


def cut(
    array: NDArray[Any],
    start: Sequence[int],
    patch: Sequence[int],
    margin: Sequence[int] | None = None,
    *,
    outside: ArrayLike,
) -> NDArray[Any]:
    """Copies a patch, with a margin round it, out of an array that may be a memory map.

    Args:
        array: (..., *volume).
        start: first voxel of the patch; negative where the patch is larger than the volume.
        patch: its size.
        margin: voxels more on both sides along each axis: real ones as far as the volume goes.
        outside: value beyond the volume: one, or one for each channel of an array (C, *volume).

    Returns:
        (..., *patch + 2 * margin), with the type of `array`.
    """
    lead = array.ndim - len(patch)
    more = margin or (0,) * len(patch)
    low = [first - extra for first, extra in zip(start, more, strict=True)]
    sides = [length + 2 * extra for length, extra in zip(patch, more, strict=True)]
    window, place = [slice(None)] * lead, [slice(None)] * lead
    for first, side, end in zip(low, sides, array.shape[lead:], strict=True):
        window.append(slice(max(first, 0), min(first + side, end)))
        place.append(slice(max(-first, 0), min(first + side, end) - first))
    part = np.array(array[tuple(window)])
    if part.shape[lead:] == tuple(sides):
        return part
    result = np.empty((*array.shape[:lead], *sides), dtype=array.dtype)
    result[...] = np.reshape(outside, (*np.shape(outside), *[1] * len(patch)))
    result[tuple(place)] = part
    return result
