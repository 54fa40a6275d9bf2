"""Label maps from files: NIfTI volumes and PNG, TIFF or BMP images, with their geometry.

The evaluation reads masks that any tool wrote. A header is read and judged before any voxel is; a file can
announce at most `MAX_VOXELS`, and no more than it announces is ever decompressed.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtl.errors import DataError
from medtl.evaluation.statistics.arrays import Floats

NIFTI_SUFFIXES = (".nii", ".nii.gz")
IMAGE_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
MAX_VOXELS = 1 << 30
"""Voxels of one label map: a whole-body CT of 512 x 512 x 2000 has half as many."""
MAX_HEADER = 16 << 20
"""Bytes before the voxels of a NIfTI file, its extensions included."""
AFFINE_TOLERANCE = 1e-3
"""Two affines are the same when no entry differs by more than this (mm, and mm a voxel)."""

_FORMATS = ("PNG", "TIFF", "BMP")
_UNIT_MM = {1: 1e3, 2: 1.0, 3: 1e-3}  # NIfTI codes of metre, millimetre, micrometre
_GREY = ("1", "L", "P", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")


class MaskError(DataError):
    """A label map that cannot be used; `reason` says why, without the file's name."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"The label map {path.name!r} {reason}.")
        self.reason = reason


@dataclass(frozen=True)
class LabelHeader:
    """What the header of a label map says.

    Attributes:
        shape: (k, j, i); an image is (1, rows, columns).
        affine: (4, 4) voxel (i, j, k) to RAS mm, or None for images.
    """

    shape: tuple[int, int, int]
    affine: Floats | None = field(repr=False)

    @property
    def spacing(self) -> tuple[float, float, float] | None:
        """Voxel size in mm along (k, j, i); None for images."""
        if self.affine is None:
            return None
        i, j, k = (float(x) for x in np.linalg.norm(self.affine[:3, :3], axis=0))
        return (k, j, i)

    def differs(self, other: LabelHeader) -> str:
        """Says in numbers why two label maps do not lie on one grid; empty when they do."""
        if self.shape != other.shape:
            return f"has {_by(self.shape)} voxels where {_by(other.shape)} are expected"
        if (self.affine is None) != (other.affine is None):
            kinds = ("an image without", "a volume with")
            return f"is {kinds[self.affine is not None]} a position in mm, the other is not"
        if self.affine is None or other.affine is None:
            return ""
        gap = np.abs(self.affine - other.affine)
        if gap.max() <= AFFINE_TOLERANCE:
            return ""
        row, column = np.unravel_index(int(gap.argmax()), gap.shape)
        return (
            f"lies elsewhere: its affine differs by up to {gap.max():.4g} (row {row + 1}, column {column + 1}: "
            f"{self.affine[row, column]:.5g} against {other.affine[row, column]:.5g})"
        )


@dataclass(frozen=True)
class LabelImage:
    """Voxels of a label map and where they lie.

    Attributes:
        array: (k, j, i) stored values, an integer type.
        spacing: mm along (k, j, i), or None for images.
        affine: (4, 4) voxel (i, j, k) to RAS mm, or None for images.
    """

    array: NDArray[Any] = field(repr=False)
    spacing: tuple[float, float, float] | None
    affine: Floats | None = field(repr=False)


def is_nifti(path: Path) -> bool:
    """Whether the name ends as that of a NIfTI file."""
    return path.name.lower().endswith(NIFTI_SUFFIXES)


def read_label_header(path: Path) -> LabelHeader:
    """Reads shape and geometry, not the voxels.

    Raises:
        MaskError: no such file, not a label map, or larger than is accepted.
    """
    return _nifti_header(path)[1] if is_nifti(path) else _image(path, pixels=False)[0]


def read_label_map(path: Path) -> LabelImage:
    """Reads a label map as integers; voxels of a palette image are its indices.

    Raises:
        MaskError: what `read_label_header` raises, colours, values that are not whole numbers, or a damaged
            file.
    """
    if is_nifti(path):
        image, header = _nifti_header(path)
        try:
            unscaled = image.dataobj.slope in (None, 1.0) and image.dataobj.inter in (None, 0.0)
            raw = image.dataobj.get_unscaled() if unscaled else np.asarray(image.dataobj)
            voxels = np.asarray(raw).reshape(header.shape[::-1]).T
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise MaskError(path, f"is damaged or ends early ({type(error).__name__})") from None
    else:
        header, voxels = _image(path, pixels=True)
    return LabelImage(_integers(voxels, path), header.spacing, header.affine)


def _nifti_header(path: Path) -> tuple[Any, LabelHeader]:
    import nibabel

    _check_start(path)
    try:
        image: Any = nibabel.load(path)
        header, shape = image.header, tuple(int(n) for n in image.shape)
        dtype = header.get_data_dtype()
        affine = np.array(image.affine, dtype=np.float64)
    except Exception as error:
        raise MaskError(path, f"has a NIfTI header that cannot be parsed ({type(error).__name__})") from None
    affine[:3] *= _UNIT_MM.get(int(header["xyzt_units"]) & 7, 1.0)
    i, j, k = (*shape, 1, 1, 1)[:3]
    if any(n > 1 for n in shape[3:]):
        raise MaskError(path, f"has the dimensions {_by(shape)}; expected one volume")
    if dtype.kind not in "uif":
        raise MaskError(path, f"holds {dtype} voxels; expected numbers")
    _check_size(path, (k, j, i))
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise MaskError(path, "has an affine that is singular or not finite")
    return image, LabelHeader((k, j, i), affine)


def _check_start(path: Path) -> None:
    """Looks at the first bytes: nibabel would read all that a header announces before the voxels."""
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            start = file.read(176)
    except FileNotFoundError:
        raise MaskError(path, "does not exist") from None
    except (OSError, EOFError, zlib.error) as error:
        raise MaskError(path, f"cannot be opened ({type(error).__name__})") from None
    for order in "<>":
        if len(start) == 176 and struct.unpack(f"{order}i", start[:4])[0] in (348, 540):
            first = struct.unpack(f"{order}i", start[:4])[0] == 348
            offset = (
                struct.unpack(f"{order}f", start[108:112])
                if first
                else struct.unpack(f"{order}q", start[168:])
            )
            if 0 <= offset[0] <= MAX_HEADER:
                return
            raise MaskError(path, f"announces {offset[0]:.0f} bytes before its voxels; at most {MAX_HEADER}")
    raise MaskError(path, "is not a NIfTI file")


def _image(path: Path, *, pixels: bool) -> tuple[LabelHeader, NDArray[Any]]:
    from PIL import Image

    if not path.name.lower().endswith(IMAGE_SUFFIXES):
        accepted = ", ".join((*NIFTI_SUFFIXES, *IMAGE_SUFFIXES))
        raise MaskError(path, f"is of a kind that is not read here (JPEG alters labels); expected {accepted}")
    try:
        with Image.open(path, formats=_FORMATS) as image:
            (width, height), mode = image.size, image.mode
            if mode not in _GREY:
                raise MaskError(path, f"is a colour image (mode {mode}); expected one number a pixel")
            if int(getattr(image, "n_frames", 1)) > 1:
                raise MaskError(path, "has several pages; give a volume as NIfTI")
            shape = (1, height, width)
            _check_size(path, shape)
            voxels = np.asarray(image)[None] if pixels else np.zeros((0, 0, 0), dtype=np.uint8)
    except FileNotFoundError:
        raise MaskError(path, "does not exist") from None
    except MaskError:
        raise
    except Image.DecompressionBombError:
        raise MaskError(path, "has more pixels than the image library accepts") from None
    except Exception as error:
        raise MaskError(path, f"cannot be read as an image ({type(error).__name__})") from None
    return LabelHeader(shape, None), voxels


def _integers(voxels: NDArray[Any], path: Path) -> NDArray[Any]:
    """Stored values as C-ordered integers; booleans as 0 and 1."""
    if voxels.dtype.kind in "ui":
        return np.ascontiguousarray(voxels, dtype=voxels.dtype.newbyteorder("="))
    if voxels.dtype.kind == "b":
        return np.ascontiguousarray(voxels, dtype=np.uint8)
    whole = np.empty(voxels.shape, dtype=np.int32)
    for part, out in zip(voxels, whole, strict=True):  # by slices: a float volume is large enough already
        low, high = float(part.min()), float(part.max())
        if not (np.isfinite(low) and np.isfinite(high)) or max(-low, high) >= 2**31:
            raise MaskError(path, "holds values that are not finite or beyond 32 bits; expected labels")
        np.rint(part, out=out, casting="unsafe")
        fraction = part != out
        if fraction.any():
            raise MaskError(
                path, f"holds fractions, for instance {float(part[fraction][0]):.6g}; expected labels"
            )
    return whole


def _check_size(path: Path, shape: tuple[int, ...]) -> None:
    if min(shape) < 1:
        raise MaskError(path, f"has the dimensions {_by(shape)}")
    if int(np.prod(shape, dtype=object)) > MAX_VOXELS:
        raise MaskError(path, f"has {_by(shape)} voxels; at most {MAX_VOXELS:,} are read")


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
