"""Geometry of slices in the patient: order, regularity, and the matrix from voxels to RAS millimetres.

DICOM positions are LPS (x to the left, y to the back, z to the head); every matrix that leaves this
module is RAS. The rules are those of DICOM PS3.3 C.7.6.2.1.1, equation C.7.6.2.1-1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medtl.scans.items import Affine

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SAME_DIRECTION = 1e-3
"""Direction cosines that differ by at most this count as equal; headers round to about 1e-5."""
SAME_PLACE = 1e-2
"""Slice positions closer than this, in mm, count as one."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Stack:
    """Slices along the normal: `order` indexes the input, `step` leads to the next slice, in LPS mm."""

    order: tuple[int, ...]
    first: Array
    step: Array


@dataclass(frozen=True)
class Irregular:
    """Why positions do not form a stack: a rejection code and the numbers."""

    code: str
    detail: str


def slice_normal(orientation: Sequence[float]) -> Array:
    """Unit normal of an image plane from ImageOrientationPatient: row direction x column direction.

    Raises:
        ValueError: The two directions are not of unit length and at right angles.
    """
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    normal = np.cross(row, column)
    length = float(np.linalg.norm(normal))
    if abs(length - 1) > 0.05 or abs(float(row @ column)) > 0.05:
        raise ValueError("the direction cosines are not two unit vectors at right angles")
    return np.asarray(normal / length, dtype=np.float64)


def stack_slices(orientation: Sequence[float], positions: Sequence[Sequence[float]]) -> Stack | Irregular:
    """Orders parallel slices along their normal and checks that they are evenly spaced.

    The order comes from the positions alone: instance numbers may be absent or reversed, and the z
    coordinate is wrong for sagittal and coronal planes. A constant shift within the plane (a tilted
    gantry) is kept as shear.

    Args:
        orientation: ImageOrientationPatient, common to all.
        positions: ImagePositionPatient of each slice, at least two.
    """
    points = np.array(positions, dtype=np.float64)
    normal = slice_normal(orientation)
    along = points @ normal
    order = np.argsort(along, kind="stable")
    points, along = points[order], along[order]
    gaps = np.diff(along)
    if (gaps < SAME_PLACE).any():
        places = 1 + int((gaps >= SAME_PLACE).sum())
        each = len(points) / places
        detail = f"{len(points)} slices lie at {places} places"
        return Irregular("four_d", detail + (f", {each:g} at each" if each == int(each) else ", unevenly"))
    step = (points[-1] - points[0]) / (len(points) - 1)
    height = float(along[-1] - along[0]) / (len(points) - 1)
    # Positions are often rounded to 0.1 mm; a quarter of a step is never rounding.
    allowed = max(0.05 * height, min(0.1, 0.25 * height))
    line = points[0] + np.arange(len(points))[:, None] * step
    if float(np.abs(points - line).max()) <= allowed:
        return Stack(tuple(int(i) for i in order), points[0], step)
    usual = float(np.sort(gaps)[(len(gaps) - 1) // 2])  # the lower median: it is one of the gaps
    multiples = gaps / usual
    missing = int(np.rint(multiples).sum()) - len(gaps)
    straight = np.abs(points - points[0] - np.outer(along - along[0], step / height)).max() <= max(
        allowed, 0.1
    )
    if straight and missing > 0 and np.abs(multiples - np.rint(multiples)).max() <= 0.1:
        where = ", ".join(str(int(i) + 1) for i in np.flatnonzero(np.rint(multiples) > 1)[:5])
        return Irregular(
            "missing_slices", f"{missing} slices of step {usual:.3g} mm are missing, after slice {where}"
        )
    return Irregular("irregular_spacing", f"the steps run from {gaps.min():.3g} to {gaps.max():.3g} mm")


def dicom_affine(
    orientation: Sequence[float],
    spacing: Sequence[float],
    first: Sequence[float] | Array,
    step: Array | float,
) -> Affine:
    """Matrix from voxel (i, j, k) to RAS mm; i counts columns, j rows, k slices.

    Args:
        orientation: ImageOrientationPatient: direction of rising column index, then of rising row index.
        spacing: PixelSpacing: distance of rows, then of columns (dy, dx).
        first: ImagePositionPatient of the first slice.
        step: Vector to the next slice in LPS mm, or its length along the normal for a single slice.
    """
    matrix = np.eye(4)
    matrix[:3, 0] = np.array(orientation[:3]) * spacing[1]
    matrix[:3, 1] = np.array(orientation[3:]) * spacing[0]
    matrix[:3, 2] = step if isinstance(step, np.ndarray) else slice_normal(orientation) * step
    matrix[:3, 3] = first
    return as_affine(LPS_TO_RAS @ matrix)


def as_affine(matrix: Array) -> Affine:
    """The matrix as nested tuples, which a frozen dataclass can hold and compare."""
    return tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in matrix)


def same_orientation(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether two ImageOrientationPatient agree up to rounding."""
    return max(abs(x - y) for x, y in zip(a, b, strict=True)) <= SAME_DIRECTION


def voxel_spacing(affine: Affine) -> tuple[float, float, float]:
    """Voxel size in mm along (i, j, k)."""
    lengths = np.linalg.norm(np.array(affine)[:3, :3], axis=0)
    return float(lengths[0]), float(lengths[1]), float(lengths[2])
