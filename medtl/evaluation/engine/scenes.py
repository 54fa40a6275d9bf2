"""One case of a table of segmentations: its label maps are read, encoded and measured structure by structure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtl.evaluation.metrics.empty import EmptyPolicy
from medtl.evaluation.metrics.surfaces import Surface, SurfaceDistances
from medtl.evaluation.tables.masks import MaskError, read_label_map
from medtl.labelmap import FILE_NAME, VOID, LabelMap


@dataclass(frozen=True)
class Task:
    """One case: its reference is read once for all models."""

    rows: tuple[int, ...]
    reference: Path | None
    masks: tuple[Path, ...]
    labels: LabelMap
    limits: Mapping[str, float]
    policy: EmptyPolicy


@dataclass(frozen=True)
class Outcome:
    """Values by row of the table; rows and reasons of faults; rows whose reference holds unknown values."""

    values: dict[int, list[dict[str, Any]]]
    faults: tuple[tuple[int, str], ...] = ()
    unknown: tuple[int, ...] = ()


def measure_case(task: Task) -> Outcome:
    """Measures the masks of all models on one case."""
    values: dict[int, list[dict[str, Any]]] = {}
    faults: list[tuple[int, str]] = []
    reference: Scene | None = None
    void: NDArray[np.bool_] | None = None
    unknown: tuple[int, ...] = ()
    if task.reference is not None:
        try:
            image = read_label_map(task.reference)
        except MaskError as error:
            return Outcome({}, ((task.rows[0], f"the reference {error.reason}"),))
        classes, strange = encode(image.array, task.labels)
        unknown = task.rows[:1] if strange else ()
        void = classes == VOID
        classes[void] = 0
        reference = Scene(classes, image.spacing, len(task.labels.structures))
    for row, path in zip(task.rows, task.masks, strict=True):
        try:
            image = read_label_map(path)
        except MaskError as error:
            faults.append((row, f"the mask {error.reason}"))
            continue
        classes, strange = encode(image.array, task.labels)
        if strange:
            shown = ", ".join(f"{value} in {count:,} voxels" for value, count in list(strange.items())[:3])
            faults.append((row, f"the mask holds values that {FILE_NAME} does not name ({shown})"))
            continue
        if void is not None and void.shape != classes.shape:
            faults.append((row, "the mask has changed since the table was checked"))
            continue
        classes[classes == VOID] = 0
        if void is not None:
            classes[void] = 0
        # One voxel size for both: headers that differ in the last digits would tilt the surfaces.
        spacing = image.spacing if reference is None else reference.spacing
        called = Scene(classes, spacing, len(task.labels.structures))
        values[row] = [
            _measure(called, reference, index, name, task)
            for index, name in enumerate(task.labels.structures, 1)
        ]
    return Outcome(values, tuple(faults), unknown)


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

    def part(self, index: int) -> NDArray[np.bool_]:
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


def _measure(called: Scene, reference: Scene | None, index: int, name: str, task: Task) -> dict[str, Any]:
    p = called.size(index)
    out: dict[str, Any] = {
        "structure": name,
        "unit": "px" if called.spacing is None else "mm",
        "tolerance": task.limits[name],
        "volume_predicted": called.volume(p),
        "volume_reference": math.nan,
        "sensitivity": math.nan,
        "precision": math.nan,
    }
    if reference is None:
        return {**out, "status": "no_reference", **task.policy.values("no_reference", math.nan)}
    r = reference.size(index)
    both = reference.common(called, index)
    out["volume_reference"] = reference.volume(r)
    out["sensitivity"] = both / r if r else math.nan
    out["precision"] = both / p if p else math.nan
    if not r or not p:
        status = "both_empty" if not r and not p else "pred_empty" if r else "ref_empty"
        return {**out, "status": status, **task.policy.values(status, reference.diagonal)}
    between = SurfaceDistances.between(called.surface(index), reference.surface(index))
    return {
        **out,
        "status": "ok",
        "dice": 2 * both / (r + p),
        "iou": both / (r + p - both),
        "hd95": between.hd95,
        "hd": between.hd,
        "assd": between.assd,
        "nsd": between.nsd(task.limits[name]),
    }


def encode(stored: NDArray[Any], labels: LabelMap) -> tuple[NDArray[np.uint8], dict[int, int]]:
    """Class indices of stored values, and the values without a name with their numbers of voxels."""
    if stored.dtype == np.uint8:
        classes = labels.encode(np.arange(256, dtype=np.uint8))[stored]
    else:
        classes = labels.encode(stored)
    return classes, labels.unknown(stored[classes == VOID])
