"""DICOM pixels: converts stored values to modality values (HU for CT), padding to a mask, and polarity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut

from medtl.scans.reader import PixelError, to_float32

Pixels = NDArray[Any]


def read_dicom(path: Path) -> Dataset:
    """Reads one file in full.

    Raises:
        PixelError: It cannot be parsed.
        OSError: It cannot be opened.
    """
    try:
        return pydicom.dcmread(path, force=True)
    except OSError:
        raise
    except Exception as error:  # the library's text can hold header values
        raise PixelError(f"it cannot be parsed ({type(error).__name__})") from None


def stored_pixels(dataset: Dataset) -> Pixels:
    """Decodes the stored values of a single-frame image: (rows, columns) or (rows, columns, 3) as uint8 RGB.

    Raises:
        PixelError: Decoding fails, or the result is not one image of the announced size.
    """
    try:
        pixels = np.asarray(dataset.pixel_array)
        if dataset.get("PhotometricInterpretation") == "PALETTE COLOR":
            pixels = apply_color_lut(pixels, dataset)
    except Exception as error:
        syntax = dataset.file_meta.get("TransferSyntaxUID") if hasattr(dataset, "file_meta") else None
        name = getattr(syntax, "name", "unknown")
        raise PixelError(f"its pixels ({name}) cannot be decoded ({type(error).__name__})") from None
    expected = (dataset.get("Rows"), dataset.get("Columns"))
    if pixels.shape[:2] != expected or pixels.ndim not in (2, 3):
        raise PixelError(f"it decodes to the shape {pixels.shape}, expected {expected}")
    if pixels.ndim == 3 and pixels.dtype != np.uint8:
        # Colour beyond 8 bits is display data without a known calibration: a screen shows the high byte.
        pixels = (pixels >> (8 * (pixels.dtype.itemsize - 1))).astype(np.uint8)
    return pixels


def padding_mask(dataset: Dataset, stored: Pixels) -> NDArray[np.bool_] | None:
    """Pixels that the header declares as padding: PixelPaddingValue, up to PixelPaddingRangeLimit if given.

    Both are compared with stored values, before any rescaling. Some writers give the value with the wrong
    sign: 63536 is -2000 read as unsigned.
    """
    value = _number(dataset, "PixelPaddingValue")
    if value is None or stored.ndim != 2:
        return None
    limit = _number(dataset, "PixelPaddingRangeLimit")
    signed = dataset.get("PixelRepresentation", 0) == 1
    ends = sorted(
        _with_sign(v, signed, stored.dtype.itemsize * 8) for v in (value, value if limit is None else limit)
    )
    mask = (stored >= ends[0]) & (stored <= ends[1])
    return mask if mask.any() else None


def _with_sign(value: float, signed: bool, bits: int) -> float:
    span = float(2**bits)
    if signed and value >= span / 2:
        return value - span
    return value + span if not signed and value < 0 else value


def modality_range(dataset: Dataset) -> tuple[float, float, float, float]:
    """Slope, intercept, and the smallest and largest value that the stored bits allow after rescaling."""
    slope, intercept = _number(dataset, "RescaleSlope"), _number(dataset, "RescaleIntercept")
    slope, intercept = (slope or 1.0), (intercept or 0.0)
    bits = int(dataset.get("BitsStored") or dataset.get("BitsAllocated") or 16)
    signed = dataset.get("PixelRepresentation", 0) == 1
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    ends = sorted((low * slope + intercept, high * slope + intercept))
    return slope, intercept, ends[0], ends[1]


def modality_values(dataset: Dataset, stored: Pixels) -> tuple[Pixels, bool]:
    """Applies the modality transform of this slice and inverts MONOCHROME1.

    Returns:
        Values as uint8 or int16 if that holds every value the header allows exactly, else float32; and whether
        they were inverted. Inversion uses the header's range, which is the same for every image of a device.

    Raises:
        PixelError: The Modality LUT cannot be applied.
    """
    if stored.ndim == 3:
        return stored, False
    slope, intercept, low, high = modality_range(dataset)
    if dataset.get("ModalityLUTSequence"):
        try:
            values = np.asarray(apply_modality_lut(stored, dataset)).astype(np.float32)
        except Exception as error:
            raise PixelError(f"its Modality LUT cannot be applied ({type(error).__name__})") from None
        low, high = float(values.min()), float(values.max())
    elif slope == 1 and intercept == int(intercept) and low >= -32768 and high <= 32767:
        if intercept == 0 and low == 0 and high <= 255:
            values = stored.astype(np.uint8)
        else:
            values = (stored.astype(np.int32) + int(intercept)).astype(np.int16)
    else:
        values = to_float32(stored, slope, intercept)
    if dataset.get("PhotometricInterpretation") != "MONOCHROME1":
        return values, False
    total = low + high
    return (np.asarray(total - values.astype(np.float32)).astype(values.dtype), True)


def _number(dataset: Dataset, keyword: str) -> float | None:
    try:
        value = dataset.get(keyword)
        if isinstance(value, bytes):  # an element of unknown representation
            value = int.from_bytes(value[:2], "little")
        number = float(value)
    except Exception:
        return None
    return number if np.isfinite(number) else None
