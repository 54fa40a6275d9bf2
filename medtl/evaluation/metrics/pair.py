"""The input of mask metrics: one structure of a case, in a model's mask and in the reference."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from medtl.evaluation.metrics.surfaces import Surface, SurfaceDistances
from medtl.evaluation.statistics.arrays import Bools


class Scene:
    """The structures of one label map: where each is, its size, and its surface when it is asked.

    Args:
        classes: (k, j, i) class indices, without void.
        spacing: mm along (k, j, i), or None.
        num_structures: structures are the classes 1 to `num_structures`.
    """

    def __init__(
        self, classes: NDArray[np.uint8], spacing: tuple[float, ...] | None, num_structures: int
    ) -> None:
        from scipy.ndimage import find_objects

        self.classes, self.spacing = classes, spacing
        self._boxes = find_objects(classes, num_structures)
        self._surfaces: dict[int, Surface] = {}

    def part(self, index: int) -> Bools:
        """The structure within its own box; empty for a structure that is not there."""
        box = self._boxes[index - 1]
        return np.asarray(self.classes[box] == index if box else np.zeros((0, 0, 0), dtype=bool))

    def size(self, index: int) -> int:
        """Voxels of the structure."""
        return int(np.count_nonzero(self.part(index)))

    def common(self, other: Scene, index: int) -> int:
        """Voxels of the structure in both."""
        box = self._boxes[index - 1]
        if not box:
            return 0
        return int(np.count_nonzero(self.part(index) & (other.classes[box] == index)))

    def surface(self, index: int) -> Surface:
        """The structure's surface."""
        if index not in self._surfaces:
            self._surfaces[index] = Surface.of(
                self.part(index), self.spacing, box=self._boxes[index - 1], shape=self.classes.shape
            )
        return self._surfaces[index]

    @property
    def diagonal(self) -> float:
        """Length of the image's diagonal in mm, or in pixels."""
        return float(np.linalg.norm(np.multiply(self.classes.shape, self.spacing or (0.0, 1.0, 1.0))))

    def volume(self, voxels: int) -> float:
        """ml, or pixels without a voxel size."""
        return float(voxels) if self.spacing is None else voxels * math.prod(self.spacing) / 1000


@dataclass(frozen=True)
class MaskPair:
    """One structure of one case, as a model drew it and as the reference has it.

    What is asked is computed once, however many metrics ask. Void voxels of the reference are background in both.

    Attributes:
        scenes: the label maps of the model and of the reference.
        index: class of the structure.
        tolerance: of the surface Dice, in mm (pixels without a voxel size).
    """

    scenes: tuple[Scene, Scene]
    index: int
    tolerance: float

    @property
    def called(self) -> Bools:
        """(k, j, i) the model's mask."""
        return np.asarray(self.scenes[0].classes == self.index)

    @property
    def reference(self) -> Bools:
        """(k, j, i) the reference."""
        return np.asarray(self.scenes[1].classes == self.index)

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """Voxel size in mm along (k, j, i), or None for images."""
        return self.scenes[1].spacing

    @cached_property
    def num_called(self) -> int:
        """Voxels of the model's mask."""
        return self.scenes[0].size(self.index)

    @cached_property
    def num_reference(self) -> int:
        """Voxels of the reference."""
        return self.scenes[1].size(self.index)

    @cached_property
    def num_common(self) -> int:
        """Voxels of both."""
        return self.scenes[1].common(self.scenes[0], self.index)

    @cached_property
    def distances(self) -> SurfaceDistances:
        """Distances between the two surfaces; neither mask may be empty."""
        return SurfaceDistances.between(*(scene.surface(self.index) for scene in self.scenes))

    @property
    def status(self) -> str:
        """`ok`, `both_empty`, `ref_empty` or `pred_empty`, as in `medtl.evaluation.metrics.empty.MASK_STATUSES`."""
        if self.num_called and self.num_reference:
            return "ok"
        return "pred_empty" if self.num_reference else "ref_empty" if self.num_called else "both_empty"

    @property
    def diagonal(self) -> float:
        """The largest distance that could occur in the image."""
        return self.scenes[1].diagonal

    def volume(self, voxels: int) -> float:
        """ml, or pixels without a voxel size."""
        return self.scenes[1].volume(voxels)
