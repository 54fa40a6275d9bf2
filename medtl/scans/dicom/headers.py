"""The header of one DICOM file: the facts for grouping and geometry, and whether all pixels are there."""

from __future__ import annotations

import contextlib
import io
import math
import re
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID, ImplicitVRLittleEndian
from pydicom.valuerep import PersonName

from medtl.scans.items import MAX_BYTES, Rejection
from medtl.scans.privacy import Owner

_DEFLATED = b"1.2.840.10008.1.2.1.99"
HEAD_BYTES = 1 << 16
"""Most headers fit into this many bytes: parsing them in memory is twice as fast as seeking in the file."""

_TRAILING = 1 << 24
"""Bytes that may follow the pixels within their element: writers pad to blocks."""
_MOST_INFLATED = 1 << 30
"""Bytes of a deflated file once it is inflated, which has to be done in memory."""

_TAGS: list[Any] = [
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"),
    *("PatientID", "PatientName", "Modality", "ImageType", "SeriesNumber", "InstanceNumber"),
    *("Rows", "Columns", "SamplesPerPixel", "NumberOfFrames", "BitsAllocated", "BitsStored"),
    *("PhotometricInterpretation", "ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing"),
    *("SpacingBetweenSlices", "SliceThickness", "EchoTime", "DiffusionBValue", "ConvolutionKernel"),
    *("Manufacturer", "ManufacturerModelName", "MagneticFieldStrength", "ViewPosition", "BodyPartExamined"),
    *(
        "PatientBirthDate",
        "OtherPatientIDs",
        "OtherPatientIDsSequence",
        "OtherPatientNames",
        "PatientBirthName",
    ),
    *("AccessionNumber", "StudyID"),
]
_FACTS = {  # what domains are made of: kept under our own names, never anything that identifies a person
    "manufacturer": "Manufacturer",
    "model": "ManufacturerModelName",
    "kernel": "ConvolutionKernel",
    "field_strength": "MagneticFieldStrength",
    "view": "ViewPosition",
    "body_part": "BodyPartExamined",
    "slice_thickness": "SliceThickness",
    "series_number": "SeriesNumber",
}
SEG_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""SOP classes of Segmentation and of Label Map Segmentation."""
_PARAMETRIC_MAP = "1.2.840.10008.5.1.4.1.1.30"
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_ENHANCED = tuple(
    f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("2.1", "2.2", "4.1", "4.3", "4.4", "128.1", "130")
)
STUDY_ID = 6
"""A StudyID of this many characters or more identifies a study."""
PROJECTION = frozenset(
    {"CR", "DX", "MG", "IO", "PX", "XA", "RF", "US", "ES", "XC", "OP", "OPT", "GM", "SM", "DG"}
)
"""Modalities whose images stand alone: never stacked, and often stored as secondary captures."""
SLICED = frozenset({"CT", "MR", "PT", "NM"})
"""Modalities whose files are slices of a volume."""


@dataclass(frozen=True)
class DicomHeader:
    """The facts in one DICOM file's header; identifiers stay in memory and out of the repr."""

    file: str = field(repr=False)
    sop_instance: str | None = field(repr=False)
    study: str | None = field(repr=False)
    series: str | None = field(repr=False)
    frame_of_reference: str | None = field(repr=False)
    owner: Owner = field(repr=False)
    modality: str | None
    rows: int
    columns: int
    samples: int
    photometric: str
    orientation: tuple[float, ...] | None
    position: tuple[float, ...] | None
    spacing: tuple[float, ...] | None
    slice_step: float | None
    instance: int | None
    splits: tuple[str, ...]
    facts: dict[str, str]
    problem: Rejection | None = None


class _TooLargeError(Exception):
    pass


SUFFIXES = (".dcm", ".dicom", ".ima")


def is_dicom(head: bytes, name: str) -> bool:
    """Whether a file is DICOM, by its first bytes, or without a preamble by its name."""
    if head[128:132] == b"DICM" or name.endswith(SUFFIXES):
        return True
    return PurePosixPath(name).suffix == "" and head[:4] in (b"\x08\0\x05\0", b"\x08\0\0\0")


def read_dicom_header(root: Path, file: str) -> DicomHeader | Rejection:
    """Reads the header of one DICOM file and checks that its pixels are all there, without reading them.

    Returns:
        The header, whose `problem` says why the file cannot be used although it is readable; or a
        rejection if it is not readable at all. The rejections' `path` is still the raw path: the
        catalogue makes it safe.
    """
    path = root / file
    try:
        size = path.stat().st_size
        with path.open("rb") as handle:
            dataset, offset = _parse(handle, size)
            if "SOPClassUID" not in dataset and "Rows" not in dataset:
                return Rejection.of(
                    file, "unreadable", "it holds no DICOM header", "Leave it out, or export it again."
                )
            problem = _usable(file, dataset) or _pixels_there(file, handle, dataset, offset, size)
    except OSError as error:
        return Rejection.of(
            file, "unreadable", f"{error.strerror or 'read error'}", "Check the file and its permissions."
        )
    except _TooLargeError:
        why = f"it inflates to more than {_MOST_INFLATED >> 30} GiB"
        return Rejection.of(file, "too_large", why, "Store it without compression.")
    except Exception as error:  # damaged headers raise nearly anything; the text may hold a patient's values
        why = f"its DICOM header cannot be parsed ({type(error).__name__})"
        return Rejection.of(file, "unreadable", why, "Export the file again.")
    return _extract(file, dataset, problem)


def _parse(handle: BinaryIO, size: int) -> tuple[Dataset, int]:
    """The wanted elements, and the offset of the pixel element (or of the end of the file)."""
    start = handle.read(HEAD_BYTES)
    if _DEFLATED in start[:1024]:
        _check_inflated(handle, start)
    head = io.BytesIO(start)
    try:
        dataset = pydicom.dcmread(head, stop_before_pixels=True, specific_tags=_TAGS, force=True)
        offset = head.tell()
        if size <= HEAD_BYTES or offset + 12 <= HEAD_BYTES:
            return dataset, offset
    except Exception:
        if size <= HEAD_BYTES:
            raise
    handle.seek(0)
    dataset = pydicom.dcmread(handle, stop_before_pixels=True, specific_tags=_TAGS, force=True)
    return dataset, handle.tell()


def _check_inflated(handle: BinaryIO, start: bytes) -> None:
    """Inflates a file without keeping it.

    Raises:
        _TooLargeError: it becomes larger than `_MOST_INFLATED`.
    """
    (length,) = struct.unpack("<I", start[140:144])  # of the file meta elements, which are not deflated
    handle.seek(144 + length)
    stream, found, rest = zlib.decompressobj(-zlib.MAX_WBITS), 0, b""
    while (rest or (rest := handle.read(1 << 16))) and not stream.eof:
        found += len(stream.decompress(rest, 1 << 20))
        rest = stream.unconsumed_tail
        if found > _MOST_INFLATED:
            raise _TooLargeError


def _usable(file: str, dataset: Dataset) -> Rejection | None:
    """Refuses objects that are not scans, and kinds of scans that are not supported."""
    sop_class = _text(dataset, "SOPClassUID") or ""
    modality = _text(dataset, "Modality") or ""
    kinds = [part.upper().strip() for part in _strings(dataset, "ImageType")]
    frames = _integer(dataset, "NumberOfFrames") or 1
    if sop_class in SEG_CLASSES:
        return Rejection.of(file, "mask", "a DICOM segmentation", "Give masks apart from the scans.")
    if sop_class == _PARAMETRIC_MAP:
        return Rejection.of(
            file, "derived_map", "a parametric map", "Use the scan that it was computed from."
        )
    if sop_class == "1.2.840.10008.1.3.10":
        return Rejection.of(
            file, "not_a_scan", "a DICOMDIR", "Nothing: the files that it lists are read themselves."
        )
    if not (_integer(dataset, "Rows") and _integer(dataset, "Columns")):
        return Rejection.of(
            file, "no_pixels", "a DICOM object without an image", "Nothing, unless a scan is missing."
        )
    if sop_class == _SECONDARY_CAPTURE and modality not in PROJECTION:
        why = f"a secondary capture of modality {modality or 'unknown'}"
        return Rejection.of(file, "secondary_capture", why, "Export the original scan.")
    if "LOCALIZER" in kinds:
        return Rejection.of(file, "localizer", "a localizer", "Nothing: it is not part of the scan.")
    if "MOSAIC" in kinds:
        return Rejection.of(file, "mosaic", "a Siemens mosaic", "Convert the series to NIfTI with dcm2niix.")
    if frames > 1 or sop_class in _ENHANCED:
        why = f"an enhanced or multi-frame object of {frames} frames"
        return Rejection.of(
            file, "multi_frame", why, "Convert it to NIfTI with dcm2niix, or export single frames."
        )
    return None


def _pixels_there(file: str, handle: BinaryIO, dataset: Dataset, offset: int, size: int) -> Rejection | None:
    """Checks the pixel element against the dimensions and the file's size."""
    rows, columns = _integer(dataset, "Rows") or 0, _integer(dataset, "Columns") or 0
    samples = _integer(dataset, "SamplesPerPixel") or 1
    bits = _integer(dataset, "BitsAllocated") or 0
    if bits not in (1, 8, 16, 32) or samples not in (1, 3):
        why = f"{bits} bits allocated and {samples} samples a pixel"
        return Rejection.of(file, "bad_pixels", why, "Convert it to 8 or 16 bits, grey or RGB.")
    if rows * columns * samples * 4 > MAX_BYTES:
        return Rejection.of(file, "too_large", f"{rows} x {columns} pixels", "Crop or tile the image.")
    syntax = dataset.file_meta.get("TransferSyntaxUID") if hasattr(dataset, "file_meta") else None
    syntax = UID(syntax) if syntax else ImplicitVRLittleEndian
    if syntax.is_deflated:
        return None  # inflating the whole file to parse it was the check
    handle.seek(offset)
    element = handle.read(12)
    implicit, little = dataset.original_encoding
    order = "<" if little else ">"
    if len(element) < 12 or struct.unpack(order + "HH", element[:4]) not in (
        (0x7FE0, n) for n in (8, 9, 0x10)
    ):
        why = f"it ends after {size:,} bytes, before the pixel data"
        return Rejection.of(file, "truncated", why, "Copy or export the file again.")
    length = struct.unpack(order + "I", element[4:8] if implicit else element[8:12])[0]
    start = offset + (8 if implicit else 12)
    if syntax.is_compressed:
        if not _decodable(syntax):
            step = "pip install 'medtl[codecs]', or decompress the files (gdcmconv --raw)."
            return Rejection.of(file, "no_decoder", f"compressed as {syntax.name}", step)
        end = _encapsulated_end(handle, start, order)
        if end <= size:
            return None
        why = f"its compressed pixels need {end:,} bytes, the file has {size:,}"
        return Rejection.of(file, "truncated", why, "Copy or export the file again.")
    expected = math.ceil(rows * columns * samples * bits / 8)
    if _text(dataset, "PhotometricInterpretation") == "YBR_FULL_422":
        expected = expected // 3 * 2
    if length < expected or start + expected > size:
        found = min(length, size - start)
        why = (
            f"{rows} x {columns} x {samples} pixels of {bits} bits are {expected:,} bytes, it holds {found:,}"
        )
        return Rejection.of(file, "truncated", why, "Copy or export the file again.")
    if length > expected + _TRAILING:
        why = f"{rows} x {columns} x {samples} pixels of {bits} bits are {expected:,} bytes, it holds {length:,}"
        return Rejection.of(file, "bad_pixels", why, "Export the file again.")
    return None


def _decodable(syntax: UID) -> bool:
    try:
        return bool(get_decoder(syntax).is_available)
    except NotImplementedError:
        return False


def _encapsulated_end(handle: BinaryIO, start: int, order: str) -> int:
    """The offset at which the fragments end, from their lengths alone."""
    handle.seek(start)
    position = start
    while len(head := handle.read(8)) == 8:
        group, element, length = struct.unpack(order + "HHI", head)
        position += 8
        if (group, element) != (0xFFFE, 0xE000):  # the delimiter, or whatever ends the fragments
            return position
        position += length
        handle.seek(position)
    # Some writers leave the delimiter out; the fragments themselves must be there, and at least one
    # beside the table.
    return position if position > start + 8 else position + 1


def _text(dataset: Dataset, keyword: str) -> str | None:
    try:
        value = dataset.get(keyword)
    except Exception:
        return None
    if value is None or (isinstance(value, (list, tuple)) and not value):
        return None
    return str(value).strip("\0 ") or None


def _strings(dataset: Dataset, keyword: str) -> list[str]:
    try:
        value = dataset.get(keyword)
    except Exception:
        return []
    if value is None:
        return []
    return [str(value)] if isinstance(value, str | PersonName) else [str(part) for part in value]


def _numbers(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    try:
        value = dataset.get(keyword)
        numbers = tuple(float(v) for v in (value if count > 1 else [value]))
    except Exception:
        return None
    return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else None


def _integer(dataset: Dataset, keyword: str) -> int | None:
    number = _numbers(dataset, keyword, 1)
    return None if number is None else int(number[0])


def _owner(dataset: Dataset) -> Owner:
    """Whom the header names, by every element that names people in the same words."""
    names = [
        n for key in ("PatientName", "OtherPatientNames", "PatientBirthName") for n in _strings(dataset, key)
    ]
    names += [as_utf8 for name in names if (as_utf8 := _utf8(name)) != name]
    ids = [*_strings(dataset, "OtherPatientIDs"), *_strings(dataset, "AccessionNumber")]
    # Scanners number studies from 1: a short StudyID tells nothing.
    ids += [i for i in _strings(dataset, "StudyID") if len(i) >= STUDY_ID and any(map(str.isdigit, i))]
    with contextlib.suppress(Exception):  # a damaged sequence
        ids += [_text(other, "PatientID") or "" for other in dataset.get("OtherPatientIDsSequence") or ()]
    return Owner(
        patient_id=_text(dataset, "PatientID"),
        patient_name="\\".join(names) or None,
        series=_text(dataset, "SeriesInstanceUID"),
        more_ids=tuple(dict.fromkeys(i.strip("\0 ") for i in ids if i)),
        birth_date=_text(dataset, "PatientBirthDate"),
    )


def _utf8(name: str) -> str:
    """A name whose bytes are UTF-8 and whose header does not say so."""
    try:
        return name.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return name


def _extract(file: str, dataset: Dataset, problem: Rejection | None) -> DicomHeader:
    kinds = [part.upper().strip() for part in _strings(dataset, "ImageType")]
    part = next(
        (kind for kind in kinds[2:] if re.fullmatch("M|P|R|I|MAGNITUDE|PHASE|REAL|IMAGINARY", kind)), ""
    )
    step = _numbers(dataset, "SpacingBetweenSlices", 1) or _numbers(dataset, "SliceThickness", 1)
    spacing = _numbers(dataset, "PixelSpacing", 2)
    facts = {name: text for name, keyword in _FACTS.items() if (text := _text(dataset, keyword))}
    facts["bits"] = str(_integer(dataset, "BitsStored") or _integer(dataset, "BitsAllocated") or 0)
    return DicomHeader(
        file=file,
        sop_instance=_text(dataset, "SOPInstanceUID"),
        study=_text(dataset, "StudyInstanceUID"),
        series=_text(dataset, "SeriesInstanceUID"),
        frame_of_reference=_text(dataset, "FrameOfReferenceUID"),
        owner=_owner(dataset),
        modality=_text(dataset, "Modality"),
        rows=_integer(dataset, "Rows") or 0,
        columns=_integer(dataset, "Columns") or 0,
        samples=_integer(dataset, "SamplesPerPixel") or 1,
        photometric=_text(dataset, "PhotometricInterpretation") or "",
        orientation=_numbers(dataset, "ImageOrientationPatient", 6),
        position=_numbers(dataset, "ImagePositionPatient", 3),
        spacing=spacing if spacing and min(spacing) > 0 else None,
        slice_step=step[0] if step and step[0] > 0 else None,
        instance=_integer(dataset, "InstanceNumber"),
        splits=(
            part,
            *(_text(dataset, key) or "" for key in ("EchoTime", "DiffusionBValue", "ConvolutionKernel")),
        ),
        facts=facts,
        problem=problem,
    )
