"""Matches a mask's voxels to its scan's by exact permutations and reversals of axes, never by interpolation."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtl.scans.geometry import voxel_spacing
from medtl.scans.items import Affine, MaskItem, VolumeItem

TOLERANCE = 0.1
"""Largest distance between two corners, in voxels of the scan along each axis: headers round, grids do not move."""
RESAMPLE = "Resample the mask to the scan's grid (nearest neighbour), or export it on the scan that is given."


@dataclass(frozen=True)
class Reorder:
    """How to reorder a mask's array to the scan's.

    Attributes:
        axes: for each axis (k, j, i) of the scan, the corresponding axis of the mask's array.
        flips: axes of the scan, in (k, j, i), along which the mask runs backwards.
        assumed: whether only the shapes were compared, because one of the files has no place in the patient.
    """

    axes: tuple[int, int, int] = (0, 1, 2)
    flips: tuple[int, ...] = ()
    assumed: bool = False

    def apply(self, array: NDArray[Any]) -> NDArray[Any]:
        """The mask's array (k, j, i) in the scan's order of axes: a view, no voxel changes its value."""
        return np.flip(array.transpose(self.axes), self.flips) if self.flips else array.transpose(self.axes)


@dataclass(frozen=True)
class Mismatch:
    """Why a mask does not lie on the scan's voxels: the numbers, and what to do."""

    detail: str
    next_step: str = RESAMPLE


def reorder(mask: MaskItem, item: VolumeItem) -> Reorder | Mismatch:
    """Finds the signed permutation of axes by which the mask's grid equals the scan's.

    The grid of a sparse mask, which leaves out empty slices, only has to lie on the scan's voxels: its reader places
    the slices itself.
    """
    if mask.affine is None or item.affine is None:
        if mask.shape == item.shape:
            return Reorder(assumed=(mask.affine is None) != (item.affine is None))
        return Mismatch(f"the mask has {_by(mask.shape)} voxels, the scan {_by(item.shape)}")
    to_scan = np.linalg.inv(np.array(item.affine)) @ np.array(mask.affine)
    if mask.sparse:
        return _on_lattice(mask, item, to_scan)
    # Axes as in the affine's columns: (i, j, k).
    size = np.array(mask.shape[::-1])
    at = np.array(list(product(*((0, int(n) - 1) for n in size))), dtype=np.float64)
    found = at @ to_scan[:3, :3].T + to_scan[:3, 3]
    best: tuple[float, float, tuple[int, ...], tuple[bool, ...]] | None = None
    for order in permutations(range(3)):
        if tuple(int(size[axis]) for axis in order) != item.shape[::-1]:
            continue
        for turned in product((False, True), repeat=3):
            # An axis of one voxel has no direction.
            if any(t and size[axis] == 1 for t, axis in zip(turned, order, strict=True)):
                continue
            wanted = np.stack(
                [
                    size[axis] - 1 - at[:, axis] if t else at[:, axis]
                    for t, axis in zip(turned, order, strict=True)
                ],
                axis=1,
            )
            off = found - wanted
            far = float(np.linalg.norm(off @ np.array(item.affine)[:3, :3].T, axis=1).max())
            if best is None or far < best[1]:
                best = (float(np.abs(off).max()), far, order, turned)
    if best is None:
        return Mismatch(
            f"the mask has {_by(mask.shape)} voxels of {_size(mask.affine)} mm, the scan {_by(item.shape)} of "
            f"{_size(item.affine)} mm"
        )
    voxels, far, order, turned = best
    if voxels > TOLERANCE:
        return Mismatch(
            f"both have {_by(item.shape)} voxels, but corners lie {far:.3g} mm apart (voxels of "
            f"{_size(mask.affine)} mm and {_size(item.affine)} mm)"
        )
    axes = tuple(2 - axis for axis in reversed(order))
    flips = tuple(place for place, t in enumerate(reversed(turned)) if t)
    return Reorder((axes[0], axes[1], axes[2]), flips)


def _on_lattice(mask: MaskItem, item: VolumeItem, to_scan: NDArray[np.float64]) -> Reorder | Mismatch:
    """Whether every voxel of a sparse grid lies on one of the scan's; whether it stays inside is checked on reading."""
    size = mask.shape[::-1]
    at = np.array(list(product(*((0, n - 1) for n in size))), dtype=np.float64)
    found = at @ to_scan[:3, :3].T + to_scan[:3, 3]
    off = float(np.abs(found - np.rint(found)).max())
    if off <= TOLERANCE:
        return Reorder()
    return Mismatch(
        f"its voxels lie {off:.2g} voxels beside the scan's ({_by(mask.shape)} voxels of {_size(mask.affine)} mm, "
        f"the scan {_by(item.shape)} of {_size(item.affine)} mm)"
    )


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape if shape[0] > 1 else shape[1:]))


def _size(affine: Affine | None) -> str:
    return " x ".join(f"{n:.3g}" for n in voxel_spacing(affine)[::-1]) if affine else "unknown"
