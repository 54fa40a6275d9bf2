"""Reads label maps from any tool's files, with their geometry, through the readers of `medtl.scans`.

A header is read and judged before any voxel is, so that a file cannot announce more than the readers accept.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtl.evaluation.statistics.arrays import Floats
from medtl.scans.items import MaskItem, Rejection, VolumeItem, times
from medtl.scans.masks import MaskError, stored_values
from medtl.scans.quiet import quiet_readers
from medtl.scans.reader import INDICES, file_reader

__all__ = ["LabelHeader", "LabelImage", "MaskError", "read_label_header", "read_label_map"]

AFFINE_TOLERANCE = 1e-3
"""Two affines agree if no entry differs by more than this (mm, and mm per voxel)."""


@dataclass(frozen=True)
class LabelHeader:
    """The header of a label map.

    Attributes:
        shape: (k, j, i); an image is (1, rows, columns).
        affine: (4, 4) voxel (i, j, k) to RAS mm, or None for images.
    """

    shape: tuple[int, int, int]
    affine: Floats | None = field(repr=False)

    @property
    def spacing(self) -> tuple[float, float, float] | None:
        """Voxel size in mm along (k, j, i); None for images."""
        if self.affine is None:
            return None
        i, j, k = (float(x) for x in np.linalg.norm(self.affine[:3, :3], axis=0))
        return (k, j, i)

    def differs(self, other: LabelHeader) -> str:
        """Describes how the grids of two label maps differ; empty if they agree."""
        if self.shape != other.shape:
            return f"has {times(self.shape)} voxels where {times(other.shape)} are expected"
        if (self.affine is None) != (other.affine is None):
            kinds = ("an image without", "a volume with")
            return f"is {kinds[self.affine is not None]} a position in mm, the other is not"
        if self.affine is None or other.affine is None:
            return ""
        gap = np.abs(self.affine - other.affine)
        if gap.max() <= AFFINE_TOLERANCE:
            return ""
        row, column = np.unravel_index(int(gap.argmax()), gap.shape)
        return (
            f"lies elsewhere: its affine differs by up to {gap.max():.4g} (row {row + 1}, column {column + 1}: "
            f"{self.affine[row, column]:.5g} against {other.affine[row, column]:.5g})"
        )


@dataclass(frozen=True)
class LabelImage:
    """The voxels of a label map and their geometry.

    Attributes:
        array: (k, j, i) stored values, an integer type.
        spacing: mm along (k, j, i), or None for images.
        affine: (4, 4) voxel (i, j, k) to RAS mm, or None for images.
    """

    array: NDArray[Any] = field(repr=False)
    spacing: tuple[float, float, float] | None
    affine: Floats | None = field(repr=False)


def read_label_header(path: Path) -> LabelHeader:
    """Reads shape and geometry, not the voxels.

    Raises:
        MaskError: no such file, not a label map, larger than is accepted, or without all of its voxels.
    """
    return _header(_look(path))


def read_label_map(path: Path) -> LabelImage:
    """Reads a label map as integers; voxels of a palette image are its indices.

    Raises:
        MaskError: what `read_label_header` raises, values that are not whole numbers, or a damaged file.
    """
    found = _look(path)
    mask = MaskItem(path.parent, (path.name,), found.kind, found.name, path.name, found.shape, found.affine)
    voxels = stored_values(mask, None, _called(path))
    header = _header(found)
    native = np.ascontiguousarray(voxels, dtype=voxels.dtype.newbyteorder("="))
    return LabelImage(native, header.spacing, header.affine)


def _called(path: Path) -> str:
    return f"The label map {path.name!r}"


def _look(path: Path) -> VolumeItem:
    reader = file_reader(path)
    if reader is None or not reader.masks:
        raise MaskError(
            _called(path), "unsupported_format", f"files {path.suffix} are not read here", INDICES
        )
    if not path.is_file():
        raise MaskError(_called(path), "unreadable", "it does not exist", "Check its path.")
    with quiet_readers():
        found = reader.look(path.parent, path.name)
    if isinstance(found, Rejection):
        raise MaskError(_called(path), found.code, found.detail, found.next_step)
    if why := reader.no_mask(found):
        raise MaskError(_called(path), "mask_values", why, INDICES)
    return found


def _header(found: VolumeItem) -> LabelHeader:
    return LabelHeader(found.shape, None if found.affine is None else np.array(found.affine))
