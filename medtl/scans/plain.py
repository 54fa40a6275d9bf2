"""Headers of NIfTI files and of plain images (PNG, JPEG, TIFF, BMP)."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medtl.scans.geometry import as_affine
from medtl.scans.headers import MAX_BYTES
from medtl.scans.items import Rejection, VolumeItem

NIFTI_SUFFIXES = (".nii", ".nii.gz")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
_GREY = ("1", "L", "LA", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_UNIT_MM = {1: 1e3, 2: 1.0, 3: 1e-3}  # NIfTI codes of metre, millimetre, micrometre
_AGAIN = "Copy or export the file again."


def _reject(file: str, code: str, detail: str, next_step: str) -> Rejection:
    return Rejection(path=file, code=code, detail=detail, next_step=next_step, files=(file,))


def read_nifti_header(root: Path, file: str, name: str) -> VolumeItem | Rejection:
    """Reads one NIfTI header and checks that the file holds the voxels it announces."""
    try:
        image: Any = nibabel.load(root / file)
        header, shape = image.header, tuple(int(n) for n in image.shape)
        dtype, (affine, note) = header.get_data_dtype(), nifti_affine(header)
    except OSError as error:
        return _reject(file, "unreadable", error.strerror or "it cannot be opened", _AGAIN)
    except Exception as error:
        return _reject(
            file, "unreadable", f"its NIfTI header cannot be parsed ({type(error).__name__})", _AGAIN
        )
    dims = shape + (1,) * (3 - len(shape))
    if any(n > 1 for n in dims[3:]):
        return _reject(file, "four_d", f"it has the dimensions {_by(shape)}", "Split it and give one volume.")
    i, j, k = dims[:3]
    if min(i, j, k) < 1 or dtype.kind not in "uif":
        return _reject(
            file, "bad_pixels", f"dimensions {_by(shape)} of type {dtype}", "Convert it to numbers."
        )
    if i * j * k * 4 > MAX_BYTES:
        return _reject(file, "too_large", f"dimensions {_by(shape)}", "Crop or resample the volume.")
    missing = _missing_bytes(root / file, int(header["vox_offset"]), i * j * k * dtype.itemsize)
    if missing:
        return _reject(file, "truncated", missing, _AGAIN)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        return _reject(
            file, "bad_affine", "its sform or qform is singular or not finite", "Repair the header."
        )
    facts = {"bits": str(8 * dtype.itemsize), **({"geometry": note} if note else {})}
    return VolumeItem(
        root, (file,), "nifti", name, file, shape=(k, j, i), affine=as_affine(affine), header=facts
    )


def nifti_affine(header: Any) -> tuple[NDArray[np.float64], str]:
    """The voxel-to-RAS matrix in mm: sform if its code is set, else qform, else a flagged fallback.

    Returns:
        The matrix, and a note: empty, or what is doubtful about it.
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
        matrix, note = header.get_base_affine(), "neither sform nor qform: orientation unknown"
    scale = _UNIT_MM.get(int(header["xyzt_units"]) & 7, 1.0)  # the lower bits are the unit of space
    matrix = np.array(matrix, dtype=np.float64)
    matrix[:3] *= scale
    return matrix, note


def _missing_bytes(path: Path, offset: int, voxels: int) -> str:
    """Says what is missing of the voxels, or nothing."""
    size = path.stat().st_size
    if path.suffix != ".gz":
        found = size - offset
        return f"its voxels need {voxels:,} bytes, it holds {max(found, 0):,}" if found < voxels else ""
    with path.open("rb") as file:
        file.seek(-4, 2)
        (length,) = struct.unpack("<I", file.read(4))
    if length == (offset + voxels) % 2**32:
        return ""
    # The last four bytes are the length only of a file of one member: count in full before calling it
    # truncated.
    found = 0
    try:
        with gzip.open(path) as stream:
            while block := stream.read(1 << 20):
                found += len(block)
    except (EOFError, OSError, zlib.error):
        return f"its compressed stream ends early or is damaged after {found:,} bytes"
    return (
        ""
        if found >= offset + voxels
        else f"its voxels need {voxels:,} bytes, it holds {max(found - offset, 0):,}"
    )


def read_image_header(root: Path, file: str, name: str) -> VolumeItem | Rejection:
    """Reads the header of a PNG, JPEG, TIFF or BMP image."""
    try:
        with Image.open(root / file, formats=_FORMATS) as image:
            width, height = oriented_size(image)
            mode, frames = image.mode, int(getattr(image, "n_frames", 1))
            channels = 1 if mode in _GREY or (mode == "P" and _grey_palette(image)) else 3
            kind = image.format or ""
    except Image.DecompressionBombError:
        return _reject(
            file, "too_large", "more pixels than the image library accepts", "Crop or tile the image."
        )
    except OSError as error:
        detail = error.strerror or "its image header cannot be parsed"
        return _reject(file, "unreadable", detail, _AGAIN)
    except Exception as error:
        return _reject(
            file, "unreadable", f"its image header cannot be parsed ({type(error).__name__})", _AGAIN
        )
    if frames > 1 and kind == "TIFF":
        return _reject(
            file, "multi_frame", f"{frames} pages", "Split it into images, or give the volume as NIfTI."
        )
    if width * height * channels * 4 > MAX_BYTES:
        return _reject(file, "too_large", f"{height} x {width} pixels", "Crop or tile the image.")
    if not _ends_well(root / file, kind):
        return _reject(file, "truncated", "the end of the image is not there", _AGAIN)
    facts = {"bits": "16" if mode.startswith("I;16") else "32" if mode in ("I", "F") else "8", "mode": mode}
    return VolumeItem(
        root, (file,), "image", name, file, shape=(1, height, width), channels=channels, header=facts
    )


def oriented_size(image: Image.Image) -> tuple[int, int]:
    """Width and height after the EXIF orientation of a JPEG, which swaps them for values of 5 and more.

    Pillow turns TIFF by itself; asking a PNG would decode it, and cameras do not write PNG.
    """
    width, height = image.size
    if image.format != "JPEG":
        return width, height
    turned = image.getexif().get(0x0112, 1)
    return (height, width) if isinstance(turned, int) and turned >= 5 else (width, height)


def _grey_palette(image: Image.Image) -> bool:
    colours = np.array(image.getpalette() or [0, 0, 0], dtype=np.uint8).reshape(-1, 3)
    return bool((colours == colours[:, :1]).all())


def _ends_well(path: Path, kind: str) -> bool:
    """Whether the end marker is there; formats without one are found out when they are decoded."""
    marker = {"PNG": b"IEND\xaeB`\x82", "JPEG": b"\xff\xd9"}.get(kind)
    if marker is None:
        return True
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 1024))
        # Anything may follow the marker: look at the whole file before calling it truncated.
        if marker in file.read():
            return True
        file.seek(0)
        return kind == "PNG" and marker in file.read()


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
