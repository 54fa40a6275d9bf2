"""Where the frames of a DICOM SEG lie: their geometry, by which they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from medtl.errors import DataError
from medtl.scans.geometry import LPS_TO_RAS, SAME_PLACE, dicom_affine, same_orientation, slice_normal
from medtl.scans.headers import MAX_BYTES
from medtl.scans.items import Affine
from medtl.scans.quiet import quiet_readers

SEG_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""SOP classes of Segmentation and of Label Map Segmentation."""
NEXT_STEP = "Export the segmentation again on the grid of its scan, or convert it to NIfTI."
_TOLERANCE = 0.1
"""How far, in voxels, a frame may lie from the voxels of a grid: positions are often rounded to 0.1 mm."""


@dataclass(frozen=True)
class Frames:
    """Geometry and segment of every frame, in the order of the file; positions in LPS mm."""

    rows: int
    columns: int
    orientation: tuple[float, ...] | None
    spacing: tuple[float, float]
    slice_step: float | None
    positions: NDArray[np.float64] | None
    segments: tuple[int, ...]


def parse_seg(path: Path) -> Dataset:
    """Reads the header of a SEG.

    Raises:
        DataError: it cannot be opened or parsed, or is no SEG.
    """
    try:
        with quiet_readers():
            dataset = pydicom.dcmread(path, stop_before_pixels=True, force=True)
            sop_class = str(dataset.get("SOPClassUID") or "")
    except OSError as error:
        raise DataError(
            f"A DICOM SEG cannot be opened: {error.strerror or 'read error'}. Check the file."
        ) from None
    except Exception as error:
        raise DataError(
            f"The header of a DICOM SEG cannot be parsed ({type(error).__name__}). Export it again."
        ) from None
    if sop_class not in SEG_CLASSES:
        raise DataError("The file is no DICOM segmentation. Expected: a SEG object.")
    return dataset


def read_frames(dataset: Dataset) -> Frames:
    """Geometry of every frame; sizes are checked before anything is allocated by them.

    Raises:
        DataError: a header that lacks what it must have, or a size beyond the limit.
    """
    try:
        with quiet_readers():
            return _parse_frames(dataset)
    except DataError:
        raise
    except Exception as error:  # damaged headers raise nearly anything; the text may hold a patient's values
        raise DataError(
            f"The frames of a DICOM SEG are not described as they must be ({type(error).__name__}). {NEXT_STEP}"
        ) from None


def _parse_frames(dataset: Dataset) -> Frames:
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    count = int(dataset.get("NumberOfFrames") or 1)
    if min(rows, columns, count) < 1 or rows * columns * count > MAX_BYTES:
        raise DataError(
            f"A DICOM SEG of {count} frames of {rows} x {columns} pixels is empty or beyond the size limit. {NEXT_STEP}"
        )
    if "TotalPixelMatrixRows" in dataset:
        raise DataError("A DICOM SEG of a tiled slide is not supported: give the mask as an image.")
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    groups = dataset.get("PerFrameFunctionalGroupsSequence") or [Dataset()] * count
    if len(groups) != count:
        raise DataError(f"A DICOM SEG announces {count} frames and describes {len(groups)}. Export it again.")
    measures = [_group(g, shared, "PixelMeasuresSequence") for g in groups]
    orientations = [
        _values(_group(g, shared, "PlaneOrientationSequence"), "ImageOrientationPatient") for g in groups
    ]
    positions = [_values(_group(g, shared, "PlanePositionSequence"), "ImagePositionPatient") for g in groups]
    spacing = _values(measures[0], "PixelSpacing") or (1.0, 1.0)
    steps = _values(measures[0], "SpacingBetweenSlices") or _values(measures[0], "SliceThickness")
    first = orientations[0]
    placed = first is not None and all(p is not None for p in positions)
    if not placed and len({_segment(g, shared) for g in groups}) < count:
        raise DataError(f"The {count} frames of a DICOM SEG have no position in the patient. {NEXT_STEP}")
    if placed and not all(o is not None and same_orientation(o, first or ()) for o in orientations):
        raise DataError(f"The frames of a DICOM SEG differ in orientation. {NEXT_STEP}")
    if min(spacing) <= 0 or any(_values(m, "PixelSpacing") not in (None, spacing) for m in measures):
        raise DataError(f"The frames of a DICOM SEG differ in pixel spacing. {NEXT_STEP}")
    return Frames(
        rows,
        columns,
        first if placed else None,
        (spacing[0], spacing[1]),
        steps[0] if steps and steps[0] > 0 else None,
        np.array(positions, dtype=np.float64) if placed else None,
        tuple(_segment(g, shared) for g in groups),
    )


def _group(frame: Dataset, shared: Dataset, keyword: str) -> Dataset:
    """A functional group of a frame: its own, else the one that all share."""
    return next((g[keyword][0] for g in (frame, shared) if keyword in g and len(g[keyword].value)), Dataset())


def _values(group: Dataset, keyword: str) -> tuple[float, ...] | None:
    value: Any = group.get(keyword)
    if value is None or value == "":
        return None
    numbers = tuple(
        float(v) for v in (value if isinstance(value, Sequence | pydicom.multival.MultiValue) else [value])
    )
    if not np.isfinite(numbers).all():
        raise ValueError(keyword)
    return numbers


def _segment(frame: Dataset, shared: Dataset) -> int:
    number = _group(frame, shared, "SegmentIdentificationSequence").get("ReferencedSegmentNumber")
    return 0 if number is None else int(number if isinstance(number, int) else number[0])


def own_grid(frames: Frames) -> tuple[tuple[int, int, int], Affine | None]:
    """The smallest regular grid that holds every frame, slices along the normal."""
    if frames.orientation is None or frames.positions is None:
        return (1, frames.rows, frames.columns), None
    try:
        normal = slice_normal(frames.orientation)
    except ValueError as error:
        raise DataError(f"The orientation of a DICOM SEG is wrong: {error}. {NEXT_STEP}") from None
    along = frames.positions @ normal
    order = np.argsort(along, kind="stable")
    places = along[order]
    gaps = np.diff(places)
    gaps = gaps[gaps >= SAME_PLACE]
    first, last = frames.positions[order[0]], frames.positions[order[-1]]
    if not len(gaps):
        affine = dicom_affine(frames.orientation, frames.spacing, first, frames.slice_step or 1.0)
        return (1, frames.rows, frames.columns), affine
    candidates = [s for s in (frames.slice_step, float(gaps.min())) if s]
    step = next((s for s in candidates if np.abs(gaps / s - np.rint(gaps / s)).max() <= _TOLERANCE), None)
    if step is None or gaps.min() / step < 0.5:
        raise DataError(
            f"The slices of a DICOM SEG are {gaps.min():.3g} to {gaps.max():.3g} mm apart and lie on no regular grid. "
            f"{NEXT_STEP}"
        )
    slices = int(np.rint(gaps / step).sum()) + 1
    if slices * frames.rows * frames.columns * 4 > MAX_BYTES:
        raise DataError(
            f"A DICOM SEG spans {slices} slices of {frames.rows} x {frames.columns} pixels, beyond the size limit."
        )
    vector = (last - first) / (slices - 1)
    return (slices, frames.rows, frames.columns), dicom_affine(
        frames.orientation, frames.spacing, first, vector
    )


def onto_grid(
    values: NDArray[Any], frames: Frames, affine: Affine | None
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Lays frames onto a grid.

    Args:
        values: (k, j, i) array of the grid.
        frames: their geometry.
        affine: voxel (i, j, k) of the grid to RAS in mm.

    Returns:
        A view of `values` turned so that its axes are slices, rows and columns of the frames; and (frames, 3), the
        place in it of the first pixel of each.

    Raises:
        DataError: the frames do not lie on the voxels of the grid.
    """
    if affine is None or frames.orientation is None or frames.positions is None:
        if affine is not None or frames.positions is not None:
            raise DataError(
                "Of a DICOM SEG and its scan only one has a position in the patient: they cannot be paired."
            )
        return values, np.zeros((len(frames.segments), 3), dtype=np.int64)
    inverse = np.linalg.inv(np.array(affine))
    turn = LPS_TO_RAS[:3, :3]
    row = turn @ np.array(frames.orientation[3:]) * frames.spacing[0]
    column = turn @ np.array(frames.orientation[:3]) * frames.spacing[1]
    exact = (inverse[:3, :3] @ np.stack([row, column], axis=1))[::-1]  # (k, j, i) x (next row, next column)
    steps = np.rint(exact).astype(np.int64)
    places = (frames.positions @ turn.T @ inverse[:3, :3].T + inverse[:3, 3])[:, ::-1]
    origins = np.rint(places).astype(np.int64)
    far = np.abs(exact - steps) @ np.array([frames.rows - 1, frames.columns - 1])
    worst = float((np.abs(places - origins) + far).max())
    if not (np.abs(steps).sum(axis=0) == 1).all() or (steps.prod(axis=1) != 0).any() or worst > _TOLERANCE:
        lengths = np.linalg.norm(exact, axis=0)
        raise DataError(
            "The frames of a DICOM SEG do not lie on the voxels of its scan: a row is "
            f"{lengths[0]:.3g} and a column {lengths[1]:.3g} voxels, and they are up to {worst:.3g} voxels off. "
            f"{NEXT_STEP}"
        )
    rows, columns = (int(axis) for axis in np.abs(steps).argmax(axis=0))
    axes = (3 - rows - columns, rows, columns)
    signs = (1, int(steps[rows, 0]), int(steps[columns, 1]))
    view = values.transpose(axes)
    turned = np.stack(
        [
            origins[:, axis] if sign > 0 else size - 1 - origins[:, axis]
            for axis, sign, size in zip(axes, signs, view.shape, strict=True)
        ],
        axis=1,
    )
    return view[:: signs[0], :: signs[1], :: signs[2]], turned
