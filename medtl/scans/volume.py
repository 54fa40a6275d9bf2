"""`read_volume`: the voxels of an item and their place in the patient. One reader for all of medtl."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from medtl.errors import DataError
from medtl.scans.geometry import as_affine
from medtl.scans.headers import MAX_BYTES
from medtl.scans.items import Affine, VolumeItem
from medtl.scans.pixels import PixelError, modality_values, padding_mask, read_dicom, stored_pixels
from medtl.scans.plain import nifti_affine
from medtl.scans.quiet import quiet_readers


@dataclass(frozen=True)
class Volume:
    """Voxels and geometry.

    Attributes:
        array: (k, j, i), or (k, j, i, 3) for colour; float32, int16 or uint8. CT in HU.
        affine: 4 x 4, voxel (i, j, k) to RAS in mm; None for images without a position in the patient.
        mask: (k, j, i) bool, True where a voxel is padding and not a measurement; None if there is none.
        meta: `kind`, `modality`, `bits`, `inverted` (MONOCHROME1 was turned around), `units` (`HU`,
            `unknown`).
    """

    array: NDArray[Any] = field(repr=False)
    affine: Affine | None
    mask: NDArray[np.bool_] | None = field(default=None, repr=False)
    meta: Mapping[str, Any] = field(default_factory=dict)


def read_volume(item: VolumeItem) -> Volume:
    """Reads the voxels of an item.

    Raises:
        DataError: A file is gone, damaged, of another size than its header said, or cannot be decoded;
            the text names the case and, for series, which file of how many.
    """
    j, i = item.shape[1:]
    if item.shape[0] * j * i * item.channels * 4 > MAX_BYTES:
        raise DataError(
            f"The volume of case {item.name!r} has {item.shape[0]} x {j} x {i} voxels, more than the limit "
            f"of {MAX_BYTES >> 30} GiB for one volume: crop or resample it."
        )
    reader = {"dicom": _read_dicom_series, "nifti": _read_nifti, "image": _read_image}[item.kind]
    try:
        with quiet_readers():
            return reader(item)
    except PixelError as error:
        raise DataError(_message(item, str(error))) from None
    except OSError as error:
        raise DataError(_message(item, error.strerror or f"it is damaged ({type(error).__name__})")) from None
    except (MemoryError, DataError):
        raise
    except Exception as error:  # decoders raise nearly anything; their text can hold paths and header values
        raise DataError(_message(item, f"it cannot be decoded ({type(error).__name__})")) from None


def _message(item: VolumeItem, why: str) -> str:
    what = f"{item.kind} of {len(item.files)} files" if len(item.files) > 1 else item.kind
    return (
        f"Case {item.name!r} ({what}) cannot be read: {why}. The file may have changed since the folder "
        "was scanned: export or copy it again, or leave it out."
    )


def _read_dicom_series(item: VolumeItem) -> Volume:
    slices, masks, inverted = [], [], []
    for number, file in enumerate(item.files, start=1):
        try:
            dataset = read_dicom(item.root / file)
            if (dataset.get("Rows"), dataset.get("Columns")) != item.shape[1:]:
                raise PixelError("its size is not the one found when the folder was scanned")
            stored = stored_pixels(dataset)
            if (stored.ndim == 3) != (item.channels == 3):
                raise PixelError("grey and colour are mixed up between header and pixels")
            masks.append(padding_mask(dataset, stored))
            values, turned = modality_values(dataset, stored)
        except PixelError as error:
            where = f"file {number} of {len(item.files)}: " if len(item.files) > 1 else ""
            raise PixelError(where + str(error)) from None
        slices.append(values)
        inverted.append(turned)
    if len({bool(turned) for turned in inverted}) > 1:
        raise PixelError("its slices differ in photometric interpretation")
    # Slopes may differ from slice to slice, and with them the types: int16 and float32 together
    # become float32.
    array = np.stack(slices) if len(slices) > 1 else slices[0][None]
    if array.dtype not in (np.uint8, np.int16, np.float32):
        array = array.astype(np.float32)
    mask = None
    if any(m is not None for m in masks):
        empty = np.zeros(item.shape[1:], dtype=np.bool_)
        mask = np.stack([empty if m is None else m for m in masks])
    units = "HU" if item.modality == "CT" else "unknown"
    meta = {**_meta(item), "inverted": inverted[0], "units": units}
    return Volume(array, item.affine, mask, meta)


def _meta(item: VolumeItem) -> dict[str, Any]:
    bits = int(item.header.get("bits", "0"))
    return {"kind": item.kind, "modality": item.modality, "bits": bits, "inverted": False, "units": "unknown"}


def _read_nifti(item: VolumeItem) -> Volume:
    image: Any = nibabel.load(item.root / item.files[0])
    if as_affine(nifti_affine(image.header)[0]) != item.affine:
        raise PixelError("its geometry is not the one found when the folder was scanned")
    slope, inter = image.dataobj.slope, image.dataobj.inter
    raw: Any = np.asarray(image.dataobj.get_unscaled())
    # One conversion in the file's own order, then views: get_fdata would make a float64 copy four
    # times as large.
    raw = raw.reshape(raw.shape[:3] + (1,) * (3 - raw.ndim)).transpose(2, 1, 0)
    if raw.shape != item.shape:
        raise PixelError(f"it holds {raw.shape} voxels, its header said {item.shape}")
    scaled = not (slope in (0, 1) and inter == 0) and bool(np.isfinite(slope) and np.isfinite(inter))
    exact = np.can_cast(raw.dtype, np.int16) or raw.dtype == np.uint8
    if not scaled and exact:
        array = raw if raw.dtype == np.uint8 else raw.astype(np.int16)
        return Volume(array, item.affine, None, _meta(item))
    array = raw.astype(np.float32)
    if scaled:
        array *= np.float32(slope)
        array += np.float32(inter)
    missing = ~np.isfinite(array)
    if not missing.any():
        return Volume(array, item.affine, None, _meta(item))
    array[missing] = 0
    return Volume(array, item.affine, missing, _meta(item))


def _read_image(item: VolumeItem) -> Volume:
    with Image.open(item.root / item.files[0]) as opened:
        image = ImageOps.exif_transpose(opened) if opened.format == "JPEG" else opened
        if item.channels == 3:
            array = np.asarray(image.convert("RGB"))
        elif image.mode in ("1", "P", "LA"):
            array = np.asarray(image.convert("L"))
        else:
            array = np.asarray(image)
    if array.shape[:2] != item.shape[1:]:
        raise PixelError(f"it has {array.shape[:2]} pixels, its header said {item.shape[1:]}")
    if array.dtype != np.uint8:
        array = array.astype(np.float32)
    return Volume(array[None], None, None, _meta(item))
