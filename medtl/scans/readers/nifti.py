"""NIfTI: `.nii` and `.nii.gz`, one volume per file. Everything with a place in the patient is written as NIfTI."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from pathlib import Path
from typing import Any, ClassVar

import nibabel
import numpy as np
from numpy.typing import NDArray

from medtl.errors import DataError
from medtl.files import atomic_write
from medtl.labelmap import LabelMap
from medtl.scans.geometry import as_affine
from medtl.scans.items import MAX_BYTES, UNPLACED, Affine, MaskItem, Rejection, Volume, VolumeItem, times
from medtl.scans.quiet import quiet_readers
from medtl.scans.reader import AGAIN, FileReader, PixelError, Stored, to_float32

MAX_HEADER = 16 << 20
"""Bytes before the voxels of a compressed file, its extensions included: nibabel reads as many as are announced."""
_UNIT_MM = {1: 1e3, 2: 1.0, 3: 1e-3}  # NIfTI codes of metre, millimetre, micrometre
_DEFLATE_MOST = 1032
"""How much smaller than its content a gzip stream can be at most."""
_LEVEL = 1
"""gzip level: masks shrink a hundredfold at any level, and this one is five times as fast as the default."""
_SLAB = 1 << 24
_SAME_PLACE = 0.05
"""Largest distance, in voxels, between a corner by the qform and by the affine."""
_TEXTS = ("descrip", "aux_file", "db_name", "intent_name")


class Nifti(FileReader):
    """NIfTI-1 and NIfTI-2 in one file."""

    kind: ClassVar[str] = "nifti"
    title: ClassVar[str] = "NIfTI"
    suffixes: ClassVar[tuple[str, ...]] = (".nii", ".nii.gz")

    def header(self, root: Path, file: str, name: str) -> VolumeItem | Rejection:
        """Reads one header and checks that the file holds the voxels it announces."""
        try:
            before = _announced(root / file)
            if before > MAX_HEADER:
                why = f"it announces {before:.0f} bytes before its voxels; at most {MAX_HEADER} are read"
                return Rejection.of(file, "unreadable", why, AGAIN)
            image: Any = nibabel.load(root / file)
        except OSError as error:
            return Rejection.of(file, "unreadable", error.strerror or "it cannot be opened", AGAIN)
        header, shape = image.header, tuple(int(n) for n in image.shape)
        dtype, (affine, note) = header.get_data_dtype(), nifti_affine(header)
        dims = shape + (1,) * (3 - len(shape))
        if any(n > 1 for n in dims[3:]):
            what = f"it has the dimensions {times(shape)}"
            return Rejection.of(file, "four_d", what, "Split it and give one volume.")
        i, j, k = dims[:3]
        if min(i, j, k) < 1 or dtype.kind not in "uif":
            what = f"dimensions {times(shape)} of type {dtype}"
            return Rejection.of(file, "bad_pixels", what, "Convert it to numbers.")
        if i * j * k * 4 > MAX_BYTES:
            what = f"dimensions {times(shape)}"
            return Rejection.of(file, "too_large", what, "Crop or resample the volume.")
        missing = _missing_bytes(root / file, int(header["vox_offset"]), i * j * k * dtype.itemsize)
        if missing:
            return Rejection.of(file, "truncated", missing, AGAIN)
        if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
            what = "its sform or qform is singular or not finite"
            return Rejection.of(file, "bad_affine", what, "Repair the header.")
        facts = {"bits": str(8 * dtype.itemsize), **({"geometry": note} if note else {})}
        return VolumeItem(
            root, (file,), self.kind, name, file, shape=(k, j, i), affine=as_affine(affine), header=facts
        )

    def read(self, item: VolumeItem) -> Volume:
        """Values after slope and intercept; NaN where the stored value is not finite."""
        raw, slope, inter = self._unscaled(item.root / item.files[0], item.affine)
        if raw.shape != item.shape:
            raise PixelError(f"it holds {raw.shape} voxels, its header said {item.shape}")
        scaled = not (slope in (0, 1) and inter == 0) and bool(np.isfinite(slope) and np.isfinite(inter))
        exact = np.can_cast(raw.dtype, np.int16) or raw.dtype == np.uint8
        if not scaled and exact:
            return Volume.of(item, raw if raw.dtype == np.uint8 else raw.astype(np.int16))
        return Volume.of(item, to_float32(raw, slope, inter) if scaled else to_float32(raw))

    def stored(self, mask: MaskItem, item: VolumeItem | None) -> Stored:
        """Stored numbers with their slope and intercept."""
        raw, slope, inter = self._unscaled(mask.root / mask.files[0], mask.affine)
        scaled = bool(np.isfinite(slope) and np.isfinite(inter)) and slope != 0
        return Stored(raw, (float(slope), float(inter)) if scaled else (1.0, 0.0))

    def _unscaled(self, path: Path, affine: Affine | None) -> tuple[NDArray[Any], Any, Any]:
        """(k, j, i) stored numbers, slope and intercept; views of the file's own order.

        get_fdata would make a float64 copy four times as large.
        """
        image: Any = nibabel.load(path)
        if affine is not None and as_affine(nifti_affine(image.header)[0]) != affine:
            raise PixelError("its geometry is not the one found when the folder was scanned")
        raw: NDArray[Any] = np.asarray(image.dataobj.get_unscaled())
        raw = raw.reshape(raw.shape[:3] + (1,) * (3 - raw.ndim)).transpose(2, 1, 0)
        return raw, image.dataobj.slope, image.dataobj.inter

    def writes(self, item: VolumeItem) -> bool:
        """Whether the scan has a place in the patient."""
        return item.affine is not None

    def write(self, path: Path, array: NDArray[Any], item: VolumeItem, labels: LabelMap | None) -> Path:
        """Writes the header, then the voxels slab by slab, without a copy of the volume in memory.

        The geometry of a NIfTI scan's header is copied bit by bit: sform, qform, their codes, units and dimensions. For
        other formats, the scan's matrix is used.
        """
        header = (
            _source_header(item) if item.kind == self.kind else _new_header(item.affine or (), item.shape)
        )
        kind = np.dtype(np.float32) if labels is None else labels.decode(np.zeros(0, dtype=np.uint8)).dtype
        header.set_data_dtype(kind)
        header["vox_offset"] = int(header["sizeof_hdr"]) + 4
        header["magic"] = b"n+1" if header["sizeof_hdr"] == 348 else header["magic"].item()[:1] + b"+2"
        header["scl_slope"], header["scl_inter"] = 1, 0
        header["cal_min"], header["cal_max"] = 0, 0
        if labels is not None:
            header["intent_code"] = 0
        for name in _TEXTS:  # programs store names and histories in them
            if name in header:
                header[name] = b""
        order = header.endianness
        buffer = io.BytesIO()
        # No time and no name in the stream: equal masks give equal files.
        with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=_LEVEL, mtime=0, filename="") as stream:
            stream.write(header.binaryblock + b"\0\0\0\0")
            step = max(1, _SLAB // max(1, array[0].size))
            for start in range(0, len(array), step):
                part = array[start : start + step]
                values = labels.decode(part) if labels is not None else part.astype(np.float16)
                stream.write(np.ascontiguousarray(values, dtype=kind.newbyteorder(order)).data)
        target = path.with_name(path.name + ".nii.gz")
        atomic_write(target, buffer.getvalue())
        return target


def nifti_affine(header: Any) -> tuple[NDArray[np.float64], str]:
    """The voxel-to-RAS matrix in mm: sform if its code is set, else qform, else a flagged fallback.

    Returns:
        The matrix, and a note on doubts about it, or an empty one.
    """
    sform, sform_code = header.get_sform(coded=True)
    try:
        qform, qform_code = header.get_qform(coded=True)
    except ValueError:  # a quaternion longer than 1
        qform, qform_code = None, 0
    note = ""
    if sform_code:
        matrix = sform
        if qform_code and qform is not None and not np.allclose(sform, qform, atol=1e-3):
            note = "sform and qform differ: sform used"
    elif qform_code and qform is not None:
        matrix = qform
    else:
        matrix, note = header.get_base_affine(), f"neither sform nor qform: {UNPLACED}"
    scale = _UNIT_MM.get(int(header["xyzt_units"]) & 7, 1.0)  # the lower bits are the unit of space
    matrix = np.array(matrix, dtype=np.float64)
    matrix[:3] *= scale
    return matrix, note


def _announced(path: Path) -> float:
    """Bytes before the voxels of a compressed file, by its header; 0 for other files."""
    if path.suffix.lower() != ".gz":
        return 0.0
    with path.open("rb") as file:
        packed = file.read(1 << 16)
    try:
        start = zlib.decompressobj(wbits=31).decompress(packed, 176)
    except zlib.error:
        return 0.0
    for order in "<>":
        if len(start) == 176 and (size := struct.unpack(f"{order}i", start[:4])[0]) in (348, 540):
            place = start[108:112] if size == 348 else start[168:]
            return float(struct.unpack(f"{order}{'f' if size == 348 else 'q'}", place)[0])
    return 0.0


def _missing_bytes(path: Path, offset: int, voxels: int) -> str:
    """Describes missing voxels; empty if none are missing."""
    size = path.stat().st_size
    if path.suffix.lower() != ".gz":
        found = size - offset
        return f"its voxels need {voxels:,} bytes, it holds {max(found, 0):,}" if found < voxels else ""
    with path.open("rb") as file:
        file.seek(-4, 2)
        (length,) = struct.unpack("<I", file.read(4))
    if length == (offset + voxels) % 2**32 and size * _DEFLATE_MOST >= offset + voxels:
        return ""
    # The last four bytes are the length only of a file of one member: count before calling it truncated, but no further
    # than the voxels, whatever follows them.
    found = 0
    if size * _DEFLATE_MOST < offset + voxels:
        return f"its voxels need {voxels:,} bytes, and {size:,} compressed bytes cannot hold as many"
    try:
        with gzip.open(path) as stream:
            while found < offset + voxels and (block := stream.read(1 << 20)):
                found += len(block)
    except (EOFError, OSError, zlib.error):
        return f"its compressed stream ends early or is damaged after {found:,} bytes"
    return (
        ""
        if found >= offset + voxels
        else f"its voxels need {voxels:,} bytes, it holds {max(found - offset, 0):,}"
    )


def _source_header(item: VolumeItem) -> Any:
    try:
        with quiet_readers():
            image: Any = nibabel.load(item.root / item.files[0])
            header = image.header.copy()
            shape = tuple(int(n) for n in header.get_data_shape())
    except Exception as error:  # readers raise nearly anything; their text can hold paths
        raise DataError(
            f"The header of case {item.name!r} cannot be read any more ({type(error).__name__}): its mask needs it. "
            "Scan the folder again."
        ) from None
    if (shape + (1,) * (3 - len(shape)))[2::-1] != item.shape:
        raise DataError(
            f"Case {item.name!r} has {times(shape)} voxels now, {times(item.shape[::-1])} when the folder was "
            "scanned. Scan it again."
        )
    return header


def _new_header(affine: Affine, shape: tuple[int, int, int]) -> Any:
    """A header for a scan of another format: its matrix as sform, and as qform if that can express it."""
    make: Any = nibabel.Nifti1Header
    header = make()
    header.set_data_shape(shape[::-1])
    header.set_xyzt_units("mm")
    matrix = np.array(affine)
    header.set_sform(matrix, code=1)
    header.set_qform(matrix, code=1, strip_shears=True)
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape[::-1]])).reshape(3, -1)
    away = (header.get_qform() - matrix)[:3] @ np.vstack([corners, np.ones(8)])
    if np.linalg.norm(away, axis=0).max() > _SAME_PLACE * np.linalg.norm(matrix[:3, :3], axis=0).min():
        header.set_qform(matrix, code=0, strip_shears=True)  # sheared, as a tilted gantry leaves it
    return header
