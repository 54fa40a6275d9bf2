"""Distances between the surfaces of two masks, and measures based on them.

A surface voxel belongs to the mask and has a face neighbour that does not; beyond the image there is none of
the mask. This is what MONAI's metrics take (erosion with the cross of face neighbours). Tools that place the
surface between voxels and weigh it by area (DeepMind's surface-distance) give other numbers on the same
masks: on two half-spaces that differ by a slice, a surface Dice of .836 where this definition gives .755.

The two vectors of distances are computed once; every measure is a short sum over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medtl.evaluation.metrics.metric import MaskMetric
from medtl.evaluation.statistics.arrays import Bools, Floats

if TYPE_CHECKING:
    from medtl.evaluation.metrics.pair import MaskPair

LEAF_SIZE = 32
"""Points per leaf of the search tree: larger leaves are faster to build, which pays off for a single query."""
SLACK = 1e-6
"""Relative slack when a distance is compared with a tolerance: spacings come from 32-bit headers, and 2 mm
must be within 2 mm."""


def bounding_box(mask: Bools) -> tuple[slice, ...] | None:
    """The smallest box that holds the mask, one slice an axis; None for an empty mask."""
    from scipy.ndimage import find_objects

    found = find_objects(mask.view(np.uint8), 1)
    return tuple(found[0]) if found and found[0] is not None else None


def surface_voxels(mask: Bools, shape: Sequence[int] | None = None) -> NDArray[np.intp]:
    """Indices (n, d) of the surface voxels, in C order.

    An axis along which the image has a single voxel has no surface across it: a slice is judged as an image (all of
    its voxels would be surface otherwise).

    Args:
        mask: (k, j, i) or (j, i).
        shape: of the whole image, when `mask` is a box cut from it that holds all of the structure.
    """
    box = bounding_box(mask)
    if box is None:
        return np.zeros((0, mask.ndim), dtype=np.intp)
    # A margin of one: what lies beyond the box, or beyond the image, is not of the mask.
    padded = np.pad(mask[box], 1)
    flat = padded.ravel()
    inside = np.flatnonzero(flat)
    across = [axis for axis, length in enumerate(shape or mask.shape) if length > 1]
    whole = np.full(len(inside), bool(across))
    for axis in across:
        step = padded.strides[axis]  # of booleans: bytes are elements
        whole &= flat[inside - step]
        whole &= flat[inside + step]
    found = np.stack(np.unravel_index(inside[~whole], padded.shape), axis=1)
    return np.asarray(found + (np.array([cut.start for cut in box]) - 1))


@dataclass(frozen=True)
class Surface:
    """The surface of a mask as points; its search tree is built on first use.

    Attributes:
        points: (n, d) positions in the unit of the spacing.
    """

    points: Floats = field(repr=False)

    @classmethod
    def of(
        cls,
        mask: Bools,
        spacing: Sequence[float] | None = None,
        *,
        box: Sequence[slice] | None = None,
        shape: Sequence[int] | None = None,
    ) -> Surface:
        """The surface of a mask.

        Args:
            mask: (k, j, i) or (j, i).
            spacing: size of a voxel along each axis; None counts in voxels.
            box: where `mask` was cut from the whole image, when it was; it holds all of the structure.
            shape: of the whole image, with `box`.
        """
        points = surface_voxels(mask, shape).astype(np.float64)
        if box is not None:
            points += [cut.start for cut in box]
        if spacing is not None:
            points *= np.asarray(spacing, dtype=np.float64)
        return cls(points)

    @cached_property
    def tree(self) -> Any:
        """k-d tree of the points."""
        from scipy.spatial import cKDTree

        return cKDTree(self.points, leafsize=LEAF_SIZE, compact_nodes=False, balanced_tree=False)

    def __len__(self) -> int:
        return len(self.points)


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances between two surfaces that are not empty.

    Attributes:
        to_reference: (n,) from each surface voxel of the called mask to the nearest of the reference.
        to_called: (m,) the other way.
    """

    to_reference: Floats = field(repr=False)
    to_called: Floats = field(repr=False)

    @classmethod
    def between(cls, called: Surface, reference: Surface) -> SurfaceDistances:
        """Measures both directions.

        Raises:
            ValueError: a surface without points; what that counts is for `EmptyPolicy` to say.
        """
        if not len(called) or not len(reference):
            raise ValueError("There is no distance to an empty surface.")
        return cls(reference.tree.query(called.points)[0], called.tree.query(reference.points)[0])

    @property
    def hd(self) -> float:
        """Hausdorff distance: the largest of all distances."""
        return float(max(self.to_reference.max(), self.to_called.max()))

    def percentile(self, q: float) -> float:
        """The larger of the two directed percentiles, with linear interpolation; `percentile(95)` is HD95.

        MONAI and MetricsReloaded define HD95 so. Pooling the directions, or weighing by area, gives other
        numbers.
        """
        return float(max(np.percentile(self.to_reference, q), np.percentile(self.to_called, q)))

    @property
    def hd95(self) -> float:
        """`percentile(95)`."""
        return self.percentile(95.0)

    @property
    def assd(self) -> float:
        """Average symmetric surface distance: the mean over the points of both surfaces, pooled."""
        total = self.to_reference.sum() + self.to_called.sum()
        return float(total / (len(self.to_reference) + len(self.to_called)))

    @property
    def masd(self) -> float:
        """Mean average surface distance: the mean of the two directed means."""
        return float((self.to_reference.mean() + self.to_called.mean()) / 2)

    def nsd(self, tolerance: float) -> float:
        """Normalised surface distance (surface Dice): the share of both surfaces within `tolerance`.

        Nikolov 2021, with surface voxels counted rather than weighed by area.
        """
        limit = tolerance * (1 + SLACK)
        near = np.count_nonzero(self.to_reference <= limit) + np.count_nonzero(self.to_called <= limit)
        return float(near / (len(self.to_reference) + len(self.to_called)))


def surface_distances(
    called: Bools, reference: Bools, spacing: Sequence[float] | None = None
) -> SurfaceDistances:
    """Distances between the surfaces of two masks of one shape, in the unit of `spacing`.

    Raises:
        ValueError: masks of different shapes, or an empty one.

    Example:
        >>> a, b = np.zeros((2, 9, 9), dtype=bool)
        >>> a[2:5, 2:5], b[2:5, 4:7] = True, True
        >>> surface_distances(a, b, (1.0, 0.5)).hd
        1.0
    """
    if called.shape != reference.shape:
        raise ValueError(f"The masks have the shapes {called.shape} and {reference.shape}.")
    return SurfaceDistances.between(Surface.of(called, spacing), Surface.of(reference, spacing))


def _nsd(pair: MaskPair) -> float:
    return pair.distances.nsd(pair.tolerance)


METRICS = (
    MaskMetric(
        name="nsd",
        title="NSD",
        definition=(
            "Surface Dice: share of both surfaces that lies within the tolerance of the other surface "
            "(Nikolov 2021). Mean over cases."
        ),
        section="surfaces",
        interval="mean",
        better="higher",
        unit="tolerance",
        paired=True,
        main=True,
        from_masks=_nsd,
    ),
    MaskMetric(
        name="hd95",
        title="HD95",
        definition=(
            "The larger of the two directed 95th percentiles of the distances from one surface to the "
            "other. Mean over cases."
        ),
        section="surfaces",
        interval="mean",
        better="lower",
        unit="distance",
        paired=True,
        main=True,
        from_masks=attrgetter("distances.hd95"),
        empty="distance",
    ),
    MaskMetric(
        name="assd",
        title="ASSD",
        definition=(
            "Mean distance between the surfaces, the points of both taken together. Mean over cases."
        ),
        section="surfaces",
        interval="mean",
        better="lower",
        unit="distance",
        paired=True,
        from_masks=attrgetter("distances.assd"),
        empty="distance",
    ),
)
