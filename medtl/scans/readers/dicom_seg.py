"""DICOM SEG: masks as DICOM objects, read by their geometry and written for the series that they belong to."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.utils import iter_pixels
from pydicom.sr.coding import Code
from pydicom.valuerep import DA, DS, TM

from medtl import __version__
from medtl.errors import DataError
from medtl.files import atomic_write
from medtl.labelmap import VOID, LabelMap
from medtl.scans.dicom.headers import SEG_CLASSES, SUFFIXES, is_dicom, read_dicom_header
from medtl.scans.geometry import LPS_TO_RAS, SAME_PLACE, dicom_affine, same_orientation, slice_normal
from medtl.scans.items import MAX_BYTES, Affine, MaskItem, Rejection, VolumeItem, times
from medtl.scans.quiet import quiet_readers
from medtl.scans.reader import Found, Reader, Stored, without_suffix

NEXT_STEP = "Export the segmentation again on the grid of its scan, or convert it to NIfTI."
_TOLERANCE = 0.1
"""Largest distance, in voxels, of a frame from a grid's voxels: positions are often rounded to 0.1 mm."""
_TISSUE = Code("85756007", "SCT", "Tissue")
_AI = Code("123110", "DCM", "Artificial Intelligence")


class DicomSeg(Reader):
    """Masks as DICOM SEG. They are written by `write_seg`, on request only: masks are NIfTI by default."""

    kind: ClassVar[str] = "seg"
    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES
    by_content: ClassVar[bool] = True
    scans: ClassVar[bool] = False

    def sniff(self, head: bytes, name: str) -> bool:
        """Accepts any DICOM file: one that is not a SEG is refused as a mask, with the reason."""
        return is_dicom(head, name)

    def mask_items(self, root: Path, files: Sequence[str]) -> Found[MaskItem]:
        """One mask per file."""
        found: Found[MaskItem] = Found()
        for file in files:
            header = read_dicom_header(root, file)
            if isinstance(header, Rejection):
                found.add(header)
                continue
            found.owners[file] = header.owner
            if header.problem is None or header.problem.code != "mask":
                step = "Give masks as NIfTI, PNG or DICOM SEG; convert contours (RTSTRUCT) first."
                why = "a DICOM object that is not a segmentation"
                found.add(Rejection.of(file, "mask_unreadable", why, step))
                continue
            try:
                seg = read_seg_header(root / file)
            except DataError as error:
                step = "Export it again, or convert it to NIfTI."
                found.add(Rejection.of(file, "mask_unreadable", str(error).rstrip("."), step))
                continue
            name = without_suffix(PurePosixPath(file).name)
            place = (seg.shape, seg.affine, seg.series_uid)
            found.add(MaskItem(root, (file,), self.kind, name, file, *place, dict(seg.segments), sparse=True))
        return found

    def stored(self, mask: MaskItem, item: VolumeItem | None) -> Stored:
        """Segment numbers on the scan's grid, or without a scan on the object's own grid."""
        grid = (None, None) if item is None else (item.shape, item.affine)
        array, overlap = read_seg(mask.root / mask.files[0], *grid)
        return Stored(array, overlap=overlap)


@dataclass(frozen=True)
class SegHeader:
    """The facts in a DICOM SEG's header.

    Attributes:
        shape: (k, j, i) of the smallest regular grid that holds every frame. Writers leave out empty frames, so
            it may have fewer slices than the scan.
        affine: voxel (i, j, k) of that grid to RAS in mm; None for a single frame without a position.
        segments: name of each segment by its number.
        series_uid: SeriesInstanceUID of the scan, as referenced. In memory only.
        frame_of_reference: FrameOfReferenceUID. In memory only.
        kind: `BINARY`, `FRACTIONAL` or `LABELMAP`.
        note: doubts about it, or empty.
    """

    shape: tuple[int, int, int]
    affine: Affine | None
    segments: Mapping[int, str] = field(hash=False)
    series_uid: str | None = field(default=None, repr=False)
    frame_of_reference: str | None = field(default=None, repr=False)
    kind: str = "BINARY"
    note: str = ""


def read_seg_header(path: Path) -> SegHeader:
    """Reads a SEG without its pixels.

    Raises:
        DataError: not a DICOM SEG, a size beyond the limit, or frames that do not lie on one regular grid.
    """
    dataset = parse_seg(path)
    frames = read_frames(dataset)
    shape, affine = own_grid(frames)
    kind = _kind(dataset)
    note = (
        "fractional segments: half of the maximum and more counts as inside" if kind == "FRACTIONAL" else ""
    )
    padding = dataset.get("PixelPaddingValue")
    segments = {
        int(s.SegmentNumber): str(s.get("SegmentLabel") or f"segment {s.SegmentNumber}").strip()
        for s in dataset.get("SegmentSequence") or ()
    }
    if kind == "LABELMAP":
        segments.pop(0 if padding is None else int(padding), None)
    references = dataset.get("ReferencedSeriesSequence") or ()
    uids = {str(r.SeriesInstanceUID) for r in references if r.get("SeriesInstanceUID")}
    return SegHeader(
        shape,
        affine,
        segments,
        uids.pop() if len(uids) == 1 else None,
        str(dataset.get("FrameOfReferenceUID") or "") or None,
        kind,
        note,
    )


def read_seg(
    path: Path, shape: tuple[int, int, int] | None = None, affine: Affine | None = None
) -> tuple[NDArray[np.uint16], int]:
    """Reads a SEG as one array of segment numbers, with each frame at its place in the patient.

    Args:
        path: the file.
        shape: (k, j, i) of the grid to read onto, with `affine`; by default the grid of `read_seg_header`.
        affine: voxel (i, j, k) of that grid to RAS in mm. None with a shape: the single frame of an image without
            a position.

    Returns:
        (k, j, i) segment numbers, 0 for none, and the number of voxels in which segments overlap (a voxel of three
        segments counts twice): there the segment with the highest number wins.

    Raises:
        DataError: as `read_seg_header`; pixels that cannot be decoded; frames that do not lie on the voxels of the
            grid, or segments outside it.
    """
    dataset = parse_seg(path)
    frames = read_frames(dataset)
    if shape is None:
        shape, affine = own_grid(frames)
    if math.prod(shape) * 4 > MAX_BYTES:
        raise DataError(f"A segmentation onto a grid of {times(shape)} voxels is beyond the size limit.")
    result = np.zeros(shape, dtype=np.uint16)
    view, origins = onto_grid(result, frames, affine)
    overlap = outside = done = 0
    try:
        with quiet_readers():
            for values, origin in zip(_pixels(path, dataset, frames), origins, strict=True):
                done += 1
                target, inside = _meeting(view, values, origin)
                outside += int(np.count_nonzero(values)) - int(np.count_nonzero(inside))
                overlap += int(np.count_nonzero((target != 0) & (inside != 0) & (target != inside)))
                np.maximum(target, inside, out=target)
    except Exception as error:  # decoders raise nearly anything; their text can hold header values
        raise DataError(
            f"Frame {done + 1} of {len(origins)} of a DICOM SEG cannot be decoded ({type(error).__name__}). "
            "Export it again."
        ) from None
    if outside:
        raise DataError(
            f"{outside} voxels of a DICOM SEG lie beyond the scan of {times(shape)} voxels. {NEXT_STEP}"
        )
    return result, overlap


def _pixels(path: Path, dataset: Dataset, frames: Frames) -> Iterator[NDArray[np.uint16]]:
    """Segment numbers of each frame."""
    kind = _kind(dataset)
    padding = int(dataset.get("PixelPaddingValue") or 0)
    threshold = max(1, (int(dataset.get("MaximumFractionalValue") or 1) + 1) // 2)
    for pixels, segment in zip(_decoded(path, dataset, frames), frames.segments, strict=True):
        if kind == "LABELMAP":
            yield np.where(pixels == padding, 0, pixels).astype(np.uint16)
        else:
            yield (pixels >= threshold).astype(np.uint16) * np.uint16(segment)


def _decoded(path: Path, dataset: Dataset, frames: Frames) -> Iterator[NDArray[Any]]:
    """Stored values of each frame, one frame in memory at a time."""
    if dataset.BitsAllocated != 1 or dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        yield from iter_pixels(path, raw=True)
        return
    # One-bit frames follow each other without padding; the library loses the end of one that starts within a byte.
    data = np.frombuffer(pydicom.dcmread(path, force=True).PixelData, dtype=np.uint8)
    size = frames.rows * frames.columns
    for start in range(0, size * len(frames.segments), size):
        packed = data[start // 8 : -(-(start + size) // 8)]
        bits = np.unpackbits(packed, bitorder="little")[start % 8 :][:size]
        yield bits.reshape(frames.rows, frames.columns)


def _meeting(
    view: NDArray[np.uint16], values: NDArray[np.uint16], origin: NDArray[np.int64]
) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """The intersection of a frame and the grid: views of both."""
    k, row, column = (int(v) for v in origin)
    if not 0 <= k < len(view):
        return view[0, :0, :0], values[:0, :0]
    ends = (max(0, view.shape[1] - row), max(0, view.shape[2] - column))
    inside = values[max(0, -row) : ends[0], max(0, -column) : ends[1]]
    row, column = max(0, row), max(0, column)
    return view[k, row : row + inside.shape[0], column : column + inside.shape[1]], inside


def write_seg(
    path: Path,
    mask: NDArray[np.uint8],
    item: VolumeItem,
    labels: LabelMap,
    *,
    algorithm: str = f"medtl {__version__}",
) -> Path:
    """Writes a mask as a DICOM SEG (BINARY) that refers to its source series.

    Every frame takes its position from its source slice, so that oblique, tilted and reversed series need no
    convention. Frames run without a gap from the first slice with a structure to the last, because some readers treat
    frames as a regular stack and ignore their positions. An empty mask is written with all its frames, because an
    object without frames is not valid. Void is written as background: a SEG has no value for it. Each segment is coded
    as tissue (SCT 85756007) and labelled with the structure's name, because the name does not determine the anatomy.

    Name, id and study of the patient are those of the source series, as the standard requires of an object in the same
    study. This is the only output of medtl that holds them: it belongs in the archive that the scan came from.

    Args:
        path: the file to write.
        mask: (k, j, i) class indices in the scan's grid.
        item: the DICOM series.
        labels: names of the structures.
        algorithm: name and version of the software that made the mask, separated by a space.

    Returns:
        `path`.

    Raises:
        DataError: the item is not a DICOM series, the mask has another shape or unnamed classes, or source files are
            gone or lack what a SEG must refer to.
    """
    import highdicom  # slow to import, and nothing else needs it

    if item.kind != "dicom":
        raise DataError(
            f"Case {item.name!r} is not a DICOM series: a SEG must refer to one. Write NIfTI instead."
        )
    if mask.shape != item.shape:
        raise DataError(
            f"The mask has {times(mask.shape)} voxels, the scan {item.name!r} {times(item.shape)}."
        )
    values = np.where(mask == VOID, 0, mask).astype(np.uint8)
    if int(values.max(initial=0)) >= len(labels.classes):
        raise DataError(
            f"The mask holds class {int(values.max())}; there are {len(labels.classes)} classes with a name."
        )
    name, _, version = algorithm.partition(" ")
    identification = highdicom.AlgorithmIdentificationSequence(
        name=name, family=_AI, version=version or __version__
    )
    descriptions = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=structure.replace("\\", "/")[:64],
            segmented_property_category=_TISSUE,
            segmented_property_type=_TISSUE,
            algorithm_type="AUTOMATIC",
            algorithm_identification=identification,
        )
        for number, structure in enumerate(labels.structures, start=1)
    ]
    try:
        with quiet_readers():
            part = _extent(values, len(labels.structures))
            sources = _sources(item)[part]
            segmentation = highdicom.seg.Segmentation(
                source_images=sources,
                pixel_array=values[part],
                segmentation_type="BINARY",
                segment_descriptions=descriptions,
                series_instance_uid=highdicom.UID(),
                series_number=1000 + abs(int(sources[0].get("SeriesNumber") or 0)) % 100_000,
                sop_instance_uid=highdicom.UID(),
                instance_number=1,
                manufacturer="medtl",
                manufacturer_model_name=name[:64],
                software_versions=__version__,
                device_serial_number="none",
                content_label="SEGMENTATION",
                content_description="Automatic segmentation",
                series_description="Automatic segmentation",
                omit_empty_frames=False,
            )
            buffer = io.BytesIO()
            segmentation.save_as(buffer, enforce_file_format=True)
    except OSError as error:
        raise DataError(
            f"The files of case {item.name!r} cannot be read: {error.strerror or 'read error'}."
        ) from None
    except (ValueError, TypeError, AttributeError, KeyError) as error:  # the text may hold header values
        raise DataError(
            f"No SEG can be written for case {item.name!r}: its series lacks something that a SEG must refer to "
            f"({type(error).__name__}). Write NIfTI instead."
        ) from None
    atomic_write(path, buffer.getvalue())
    return path


def _extent(values: NDArray[np.uint8], num_segments: int) -> slice:
    """The slices to write: from the first to the last that is not empty, and a few more to fill the last byte.

    With one bit per voxel, SimpleITK 2.5 misreads the end of pixels that stop within a byte.
    """
    held = np.flatnonzero(values.any(axis=(1, 2)))
    first, stop = (int(held[0]), int(held[-1]) + 1) if len(held) else (0, len(values))
    bits = num_segments * values.shape[1] * values.shape[2]
    whole = 8 // math.gcd(8, bits)
    length = whole * math.ceil((stop - first) / whole)
    if length <= len(values):
        stop = min(first + length, len(values))
        first = stop - length
    return slice(first, stop)


def _sources(item: VolumeItem) -> list[Dataset]:
    """Headers of the source files, in slice order, repaired in memory if a SEG of them would be refused or wrong.

    Elements that may be empty but were removed by de-identification are set empty, and so are invalid times. The
    slice spacing is taken from the positions: vendors use the element for other things, and some omit the thickness.

    Raises:
        DataError: a file lacks what a SEG must refer to.
    """
    headers: list[Dataset] = [
        pydicom.dcmread(item.root / file, stop_before_pixels=True, force=True) for file in item.files
    ]
    step = None if item.affine is None else _slice_step(item.affine)
    for header in headers:
        for keyword in ("FrameOfReferenceUID", "PixelSpacing") if step is not None else ():
            if not header.get(keyword):
                raise DataError(
                    f"No SEG can be written for case {item.name!r}: its series has no {keyword}, to which a SEG must "
                    "refer. Write NIfTI instead."
                )
        for keyword in ("PatientID", "PatientName", "PatientBirthDate", "AccessionNumber", "StudyID"):
            if keyword not in header:
                setattr(header, keyword, "")
        for keyword, kind in (("StudyDate", DA), ("StudyTime", TM)):
            try:
                setattr(header, keyword, kind(header.get(keyword) or None))
            except ValueError:
                setattr(header, keyword, None)
        if header.get("PatientSex") not in ("M", "F", "O"):
            header.PatientSex = ""
        if step is not None:
            header.SliceThickness = header.get("SliceThickness") or DS(step, auto_format=True)
            header.SpacingBetweenSlices = DS(step, auto_format=True)
    return headers


def _slice_step(affine: Affine) -> float:
    """Distance between slices in mm, along their normal."""
    matrix = np.array(affine)[:3, :3]
    across = np.cross(matrix[:, 0], matrix[:, 1])
    return abs(float(matrix[:, 2] @ across)) / float(np.linalg.norm(across))


def _kind(dataset: Dataset) -> str:
    return str(dataset.get("SegmentationType") or "BINARY").strip().upper()


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
        DataError: it cannot be opened or parsed, or is not a SEG.
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
        raise DataError("The file is not a DICOM segmentation. Expected: a SEG object.")
    return dataset


def read_frames(dataset: Dataset) -> Frames:
    """Geometry of every frame; sizes are checked before memory is allocated for them.

    Raises:
        DataError: a header lacks required elements, or a size exceeds the limit.
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
    """A functional group of a frame: its own, else the shared one."""
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
            f"The slices of a DICOM SEG are {gaps.min():.3g} to {gaps.max():.3g} mm apart and not on a "
            f"regular grid. {NEXT_STEP}"
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
    """Places frames on a grid.

    Args:
        values: (k, j, i) array of the grid.
        frames: their geometry.
        affine: voxel (i, j, k) of the grid to RAS in mm.

    Returns:
        A view of `values` with the frames' slices, rows and columns as axes; and (frames, 3), the position in it of
        each frame's first pixel.

    Raises:
        DataError: the frames do not lie on the voxels of the grid.
    """
    if affine is None or frames.orientation is None or frames.positions is None:
        if affine is not None or frames.positions is not None:
            raise DataError(
                "Only one of a DICOM SEG and its scan has a position in the patient: they cannot be paired."
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
