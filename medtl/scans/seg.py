"""DICOM SEG: masks as DICOM objects, read by geometry and written on the series that they were made from."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import highdicom
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
from medtl.scans.headers import MAX_BYTES
from medtl.scans.items import Affine, VolumeItem
from medtl.scans.quiet import quiet_readers
from medtl.scans.segframes import NEXT_STEP, Frames, onto_grid, own_grid, parse_seg, read_frames

_TISSUE = Code("85756007", "SCT", "Tissue")
_AI = Code("123110", "DCM", "Artificial Intelligence")


@dataclass(frozen=True)
class SegHeader:
    """What a DICOM SEG says before its pixels are read.

    Attributes:
        shape: (k, j, i) of the smallest regular grid that holds every frame. Writers leave empty frames out, so that
            it may have fewer slices than the scan.
        affine: voxel (i, j, k) of that grid to RAS in mm; None for a single frame without a position.
        segments: name of each segment by its number.
        series_uid: SeriesInstanceUID of the scan, as referenced. In memory only.
        frame_of_reference: FrameOfReferenceUID. In memory only.
        kind: `BINARY`, `FRACTIONAL` or `LABELMAP`.
        note: what is doubtful about it, or empty.
    """

    shape: tuple[int, int, int]
    affine: Affine | None
    segments: Mapping[int, str] = field(hash=False)
    series_uid: str | None = field(default=None, repr=False)
    frame_of_reference: str | None = field(default=None, repr=False)
    kind: str = "BINARY"
    note: str = ""


def read_seg_header(path: Path) -> SegHeader:
    """Reads what a SEG holds, without its pixels.

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
    """Reads a SEG as one array of segment numbers, each frame at its place in the patient.

    Args:
        path: the file.
        shape: (k, j, i) of the grid to read onto, with `affine`; by default the grid of `read_seg_header`.
        affine: voxel (i, j, k) of that grid to RAS in mm. None with a shape: the single frame of an image without
            a position.

    Returns:
        (k, j, i) segment numbers, 0 where there is none, and in how many voxels segments overlap (a voxel of three
        counts twice): there the segment of the higher number stands.

    Raises:
        DataError: what `read_seg_header` raises; pixels that cannot be decoded; frames that do not lie on the
            voxels of the grid, or beyond it with something in them.
    """
    dataset = parse_seg(path)
    frames = read_frames(dataset)
    if shape is None:
        shape, affine = own_grid(frames)
    if math.prod(shape) * 4 > MAX_BYTES:
        raise DataError(f"A segmentation onto a grid of {_by(shape)} voxels is beyond the size limit.")
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
            f"{outside} voxels of a DICOM SEG lie beyond the scan of {_by(shape)} voxels. {NEXT_STEP}"
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
    # Frames of bits follow each other without padding; the library loses the end of one that starts within a byte.
    data = np.frombuffer(pydicom.dcmread(path, force=True).PixelData, dtype=np.uint8)
    size = frames.rows * frames.columns
    for start in range(0, size * len(frames.segments), size):
        packed = data[start // 8 : -(-(start + size) // 8)]
        bits = np.unpackbits(packed, bitorder="little")[start % 8 :][:size]
        yield bits.reshape(frames.rows, frames.columns)


def _meeting(
    view: NDArray[np.uint16], values: NDArray[np.uint16], origin: NDArray[np.int64]
) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Where a frame and the grid meet: views of both."""
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
    """Writes a mask as a DICOM SEG (BINARY) that refers to the series it was made from.

    Every frame takes its position from the slice that it was made from, so that oblique, tilted and reversed series
    need no convention. Frames run without a gap from the first slice with a structure to the last: some readers take
    frames for a regular stack, whatever their positions say. An empty mask is written with all its frames, since an
    object without is not valid. Void is written as background: a SEG has no value for it. Each
    segment is coded as tissue (SCT 85756007) and labelled with the structure's name: what a structure is in
    anatomy's terms cannot be told from its name.

    Name, id and study of the patient are those of the source series, as the standard demands of an object in the same
    study. This is the one output of medtl that holds them: it belongs into the archive that the scan came from.

    Args:
        path: the file to write.
        mask: (k, j, i) class indices in the scan's grid.
        item: the DICOM series.
        labels: names of the structures.
        algorithm: name and version of what made the mask, separated by a space.

    Returns:
        `path`.

    Raises:
        DataError: not a DICOM series, a mask of another shape or with classes that have no name, or source files
            that have gone or lack what a SEG must refer to.
    """
    if item.kind != "dicom":
        raise DataError(
            f"Case {item.name!r} is no DICOM series: a SEG must refer to one. Write NIfTI instead."
        )
    if mask.shape != item.shape:
        raise DataError(f"The mask has {_by(mask.shape)} voxels, the scan {item.name!r} {_by(item.shape)}.")
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
    """The slices to write: those from the first to the last that is not empty, and a few more to fill the last byte.

    One bit a voxel: SimpleITK 2.5 misreads the end of pixels that stop within a byte.
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
    """Headers of the source files, in slice order, mended in memory where a SEG of them would be refused or wrong.

    What the standard allows to be empty but de-identification removes is set empty; times of no valid form too. The
    distance of slices is that of their positions: vendors mean other things by it, and some leave their thickness out.

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
    """Distance of slices in mm, along their normal."""
    matrix = np.array(affine)[:3, :3]
    across = np.cross(matrix[:, 0], matrix[:, 1])
    return abs(float(matrix[:, 2] @ across)) / float(np.linalg.norm(across))


def _kind(dataset: Dataset) -> str:
    return str(dataset.get("SegmentationType") or "BINARY").strip().upper()


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
