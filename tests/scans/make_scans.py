"""Small scans for the tests: DICOM series with any geometry, NIfTI and images."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SOP_CLASS = {
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "MR": "1.2.840.10008.5.1.4.1.1.4",
    "CR": "1.2.840.10008.5.1.4.1.1.1",
    "SC": "1.2.840.10008.5.1.4.1.1.7",
    "SEG": "1.2.840.10008.5.1.4.1.1.66.4",
    "SR": "1.2.840.10008.5.1.4.1.1.88.11",
}
SYNTAX = {
    "explicit": ExplicitVRLittleEndian,
    "implicit": ImplicitVRLittleEndian,
    "big": ExplicitVRBigEndian,
    "rle": RLELossless,
}


def write_dicom(
    path: Path,
    pixels: NDArray[Any] | None,
    *,
    position: Sequence[float] | None = (0.0, 0.0, 0.0),
    orientation: Sequence[float] | None = AXIAL,
    spacing: Sequence[float] | None = (1.0, 1.0),
    thickness: float | None = 5.0,
    modality: str = "MR",
    sop_class: str | None = None,
    series: str = "1.2.3.1",
    study: str = "1.2.3",
    sop: str | None = None,
    patient_id: str = "",
    patient_name: str = "",
    slope: float | None = None,
    intercept: float | None = None,
    photometric: str = "MONOCHROME2",
    padding: tuple[int, str] | None = None,
    bits_stored: int | None = None,
    syntax: str = "explicit",
    instance: int = 1,
    **more: Any,
) -> Path:
    """Writes one DICOM file; `more` sets further elements by keyword."""
    dataset = Dataset()
    dataset.SOPClassUID = SOP_CLASS[sop_class or modality]
    dataset.SOPInstanceUID = sop or pydicom.uid.generate_uid(entropy_srcs=[str(path), str(instance)])
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
    dataset.PatientID, dataset.PatientName = patient_id, patient_name
    dataset.Modality, dataset.InstanceNumber, dataset.SeriesNumber = modality, instance, 1
    if position is not None:
        dataset.ImagePositionPatient = [round(float(v), 6) for v in position]
    if orientation is not None:
        dataset.ImageOrientationPatient = [round(float(v), 8) for v in orientation]
    if spacing is not None:
        dataset.PixelSpacing = [float(v) for v in spacing]
    if thickness is not None:
        dataset.SliceThickness = thickness
    if slope is not None:
        dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept or 0
    elif intercept is not None:
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, intercept
    if pixels is not None:
        dataset.Rows, dataset.Columns = pixels.shape[:2]
        dataset.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
        dataset.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else photometric
        if pixels.ndim == 3:
            dataset.PlanarConfiguration = 0
        dataset.BitsAllocated = 8 * pixels.dtype.itemsize
        dataset.BitsStored = bits_stored or dataset.BitsAllocated
        dataset.HighBit = dataset.BitsStored - 1
        dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
        order = ">" if syntax == "big" else "<"
        data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
        dataset.PixelData = data + b"\0" * (len(data) % 2)
        dataset["PixelData"].VR = "OW" if pixels.dtype.itemsize > 1 else "OB"
    if padding is not None:
        dataset.add_new("PixelPaddingValue", padding[1], padding[0])
    for keyword, value in more.items():
        setattr(dataset, keyword, value)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = SYNTAX["explicit" if syntax == "rle" else syntax]
    dataset.file_meta = meta
    if syntax == "rle":
        # The plugin is named: what is tested is that nothing beside pydicom is needed.
        dataset.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    return path


def write_series(
    folder: Path,
    volume: NDArray[Any],
    *,
    first: Sequence[float] = (0.0, 0.0, 0.0),
    orientation: Sequence[float] = AXIAL,
    step: Sequence[float] | float = 5.0,
    skip: Sequence[int] = (),
    names: Sequence[str] | None = None,
    **more: Any,
) -> list[Path]:
    """Writes (k, j, i) as one file a slice, slice k at first + k * step (a number: along the normal).

    Instance numbers run against the positions, as some scanners do.
    """
    normal = np.cross(orientation[:3], orientation[3:])
    vector = normal * step if isinstance(step, float) else np.array(step)
    paths = []
    per_slice = {key: value for key, value in more.items() if isinstance(value, list)}
    common = {key: value for key, value in more.items() if not isinstance(value, list)}
    for k, pixels in enumerate(volume):
        if k in skip:
            continue
        name = names[k] if names else f"{k:03d}.dcm"
        own = {key: value[k] for key, value in per_slice.items()}
        position = np.array(first) + k * vector
        number = len(volume) - k
        paths.append(
            write_dicom(
                folder / name,
                pixels,
                position=position,
                orientation=orientation,
                instance=number,
                **common,
                **own,
            )
        )
    return paths


def write_nifti(
    path: Path,
    volume: NDArray[Any],
    affine: NDArray[Any] | None = None,
    *,
    sform_code: int = 1,
    qform: NDArray[Any] | None = None,
    qform_code: int = 0,
    scale: tuple[float, float] | None = None,
) -> Path:
    """Writes (k, j, i), or (t, k, j, i), as NIfTI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(volume.transpose(), None)
    image.header.set_data_dtype(volume.dtype)
    image.set_sform(np.eye(4) if affine is None else affine, code=sform_code)
    image.set_qform(np.eye(4) if qform is None else qform, code=qform_code)
    nibabel.save(image, path)
    if (
        scale is not None
    ):  # nibabel would choose its own: write scl_slope and scl_inter where the header has them
        data = bytearray(path.read_bytes())
        data[112:120] = struct.pack("<2f", *scale)
        path.write_bytes(data)
    return path


def write_image(path: Path, array: NDArray[Any], **more: Any) -> Path:
    """Writes an array as PNG, JPEG, TIFF or BMP by the path's suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **more)
    return path


def random_image(seed: int, shape: Sequence[int] = (24, 20, 3)) -> NDArray[np.uint8]:
    """Noise that differs for every seed, so that no two test images are duplicates."""
    return np.random.default_rng(seed).integers(0, 256, tuple(shape), dtype=np.uint8)


def write_site(
    folder: Path, labels: Sequence[str | None], *, first_seed: int = 0, patients: Sequence[str] | None = None
) -> tuple[Path, Path]:
    """A site of PNG images c000.png, ... and its labels CSV beside the folder.

    Returns:
        The folder and the CSV.
    """
    rows = ["case,label" + (",patient" if patients else "")]
    for number, label in enumerate(labels):
        name = f"{folder.name}{number:03d}"
        write_image(folder / f"{name}.png", random_image(first_seed + number, (8, 8, 3)))
        if label is not None:
            rows.append(f"{name},{label}" + (f",{patients[number]}" if patients else ""))
    table = folder.parent / f"{folder.name}.csv"
    table.write_text("\n".join(rows) + "\n")
    return folder, table
