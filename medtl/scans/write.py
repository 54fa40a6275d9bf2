"""Writes masks and probability maps in the grid of their scan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtl.errors import DataError
from medtl.labelmap import LabelMap
from medtl.scans.items import VolumeItem, times
from medtl.scans.reader import reader_of, readers


def write_mask(path: Path, mask: NDArray[np.uint8], item: VolumeItem, labels: LabelMap) -> Path:
    """Writes a mask with the values of `labels`, voxel for voxel on the scan.

    From a NIfTI scan the header's geometry is copied bit by bit: sform, qform, their codes, units and dimensions.
    From a DICOM series it is NIfTI with the series' matrix. Images without a position in the patient become PNG.

    Args:
        path: the file without its suffix; the folder is made if it is absent.
        mask: (k, j, i) class indices in the scan's grid, 255 for void.
        item: the scan.
        labels: which value stands for which class.

    Returns:
        The path with its suffix, `.nii.gz` or `.png`.

    Raises:
        DataError: a mask of another shape than the scan, a scan that has changed, or values that PNG cannot hold.
    """
    return _write(path, mask, item, labels)


def write_map(path: Path, probability: NDArray[np.float32], item: VolumeItem) -> Path:
    """Writes a map such as a probability, voxel for voxel on the scan.

    Args:
        path: the file without its suffix.
        probability: (k, j, i) in the scan's grid, in [0, 1].
        item: the scan.

    Returns:
        The path with its suffix: `.nii.gz` of float32 with the precision of float16, or `.png` of 16 bits, where
        65535 is 1.

    Raises:
        DataError: a map of another shape than the scan, or a scan that has changed.
    """
    return _write(path, probability, item, None)


def _write(path: Path, array: NDArray[Any], item: VolumeItem, labels: LabelMap | None) -> Path:
    """In the scan's own format where that can be written, else in the first that can hold its geometry."""
    if array.shape != item.shape:
        raise DataError(
            f"The mask has {times(array.shape)} voxels, the scan {item.name!r} {times(item.shape)}."
        )
    writer = next(r for r in (reader_of(item.kind), *readers()) if r.writes(item))
    return writer.write(path, array, item, labels)
