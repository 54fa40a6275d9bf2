"""Masks and probability maps as files in the grid of the scan that they were made from."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medtl.errors import DataError
from medtl.files import atomic_write
from medtl.labelmap import LabelMap
from medtl.scans.items import Affine, VolumeItem
from medtl.scans.quiet import quiet_readers

_LEVEL = 1
"""Of gzip: masks shrink a hundredfold at any level, and this one is five times as fast as the usual."""
_SLAB = 1 << 24
_SAME_PLACE = 0.05
"""How far, in voxels, a qform may put a corner from where the affine puts it."""
_TEXTS = ("descrip", "aux_file", "db_name", "intent_name")


def write_mask(path: Path, mask: NDArray[np.uint8], item: VolumeItem, labels: LabelMap) -> Path:
    """Writes a mask with the values of `labels`, voxel for voxel on the scan.

    From a NIfTI scan the header's geometry is copied bit by bit: sform, qform, their codes, units and dimensions.
    From a DICOM series it is NIfTI with the series' matrix. Images without a position in the patient become PNG.

    Args:
        path: the file without its suffix; the folder is made if it is absent.
        mask: (k, j, i) class indices in the scan's grid, 255 for void.
        item: the scan.
        labels: which value stands for which class.

    Returns:
        The path with its suffix, `.nii.gz` or `.png`.

    Raises:
        DataError: a mask of another shape than the scan, a scan that has changed, or values that PNG cannot hold.
    """
    _check(mask, item)
    kind = labels.decode(np.zeros(0, dtype=np.uint8)).dtype
    if item.affine is not None:
        return _write_nifti(path, mask, item, kind, labels)
    values = labels.decode(mask[0])
    if values.dtype != np.uint8 and (values.min(initial=0) < 0 or values.max(initial=0) > 65535):
        raise DataError(
            f"The values of the masks run from {min(labels.values)} to {max(labels.values)}; a PNG holds 0 to 65535. "
            "Give the structures other values in labels.json."
        )
    return _write_png(path, values.astype(np.uint8 if values.dtype == np.uint8 else np.uint16))


def write_map(path: Path, probability: NDArray[np.float32], item: VolumeItem) -> Path:
    """Writes a map such as a probability, voxel for voxel on the scan.

    Args:
        path: the file without its suffix.
        probability: (k, j, i) in the scan's grid, in [0, 1].
        item: the scan.

    Returns:
        The path with its suffix: `.nii.gz` of float32 with the precision of float16, or `.png` of 16 bits, where
        65535 is 1.

    Raises:
        DataError: a map of another shape than the scan, or a scan that has changed.
    """
    _check(probability, item)
    if item.affine is not None:
        return _write_nifti(path, probability, item, np.dtype(np.float32), None)
    return _write_png(path, np.rint(probability[0].clip(0, 1) * 65535).astype(np.uint16))


def _check(array: NDArray[Any], item: VolumeItem) -> None:
    if array.shape != item.shape:
        raise DataError(f"The mask has {_by(array.shape)} voxels, the scan {item.name!r} {_by(item.shape)}.")


def _write_png(path: Path, values: NDArray[Any]) -> Path:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format="PNG")
    target = path.with_name(path.name + ".png")
    atomic_write(target, buffer.getvalue())
    return target


def _write_nifti(
    path: Path, array: NDArray[Any], item: VolumeItem, kind: np.dtype[Any], labels: LabelMap | None
) -> Path:
    """The header, then the voxels slab by slab: nothing as large as the volume is made but the compressed file."""
    header = _source_header(item) if item.kind == "nifti" else _new_header(item.affine or (), item.shape)
    header.set_data_dtype(kind)
    header["vox_offset"] = int(header["sizeof_hdr"]) + 4
    header["magic"] = b"n+1" if header["sizeof_hdr"] == 348 else header["magic"].item()[:1] + b"+2"
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["cal_min"], header["cal_max"] = 0, 0
    if labels is not None:
        header["intent_code"] = 0
    for name in _TEXTS:  # programs keep names and histories in them
        if name in header:
            header[name] = b""
    order = header.endianness
    buffer = io.BytesIO()
    # No time and no name in the stream: the same mask is the same file.
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
            f"Case {item.name!r} has {_by(shape)} voxels now, {_by(item.shape[::-1])} when the folder was scanned. "
            "Scan it again."
        )
    return header


def _new_header(affine: Affine, shape: tuple[int, int, int]) -> Any:
    """A NIfTI header for a series: the matrix as sform, and as qform where rotation and spacing can express it."""
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


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
