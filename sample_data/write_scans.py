"""Write a simulated volume the way scanners and converters do: a DICOM series, or one NIfTI file."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, MRImageStorage, RLELossless

IMPLEMENTATION = UID("2.25.313372270839436542153512917480621437812")
ORIENTED = nib.orientations.axcodes2ornt("LPS")


@dataclass(frozen=True)
class Grid:
    """Where a volume lies: `affine` maps voxel (i, j, k) to RAS mm; i runs to L, j to P, k to S."""

    affine: npt.NDArray[np.float64]
    shape: tuple[int, int, int]  # (k, j, i)


@dataclass(frozen=True)
class Person:
    """A fictitious patient."""

    letter: str
    number: int
    sex: str
    age: int

    @property
    def case(self) -> str:
        """The scan's name, for example a007."""
        return f"{self.letter.lower()}{self.number:03d}"

    @property
    def patient_id(self) -> str:
        """The fictitious identifier, marked as such."""
        return f"SIM-{self.letter}-{self.number:04d}"

    @property
    def age_group(self) -> str:
        """The band of the age, for subgroup tables."""
        return "under 50" if self.age < 50 else "50 and over"


@dataclass(frozen=True)
class Vendor:
    """A simulated scanner, as its headers tell it (TR and TE in ms, field in tesla)."""

    manufacturer: str
    model: str
    field_strength: float
    repetition_time: float
    echo_time: float
    description: str
    slope: float  # RescaleSlope


def uid(*key: object) -> UID:
    """Return the UID of a key under the root 2.25: always the same for the same key."""
    return UID(f"2.25.{int.from_bytes(blake2b(repr(key).encode(), digest_size=16).digest(), 'big')}")


def write_dicom_series(
    folder: Path,
    values: npt.NDArray[np.float32],
    grid: Grid,
    person: Person,
    vendor: Vendor,
    thickness: float,
) -> None:
    """Write `values` (k, j, i) as one classic MR series, one file a slice.

    A third of the series is RLE Lossless and a third Implicit VR; every fourth numbers its slices from the
    top down, and the file names follow the instance numbers, so neither tells where a slice lies.
    """
    folder.mkdir(parents=True, exist_ok=True)
    syntax = (ExplicitVRLittleEndian, RLELossless, ImplicitVRLittleEndian)[person.number % 3]
    reversed_order = person.number % 4 == 2
    stored = np.clip(np.rint(values / vendor.slope), 0, 4095).astype("<u2")
    for k in range(len(stored)):
        number = len(stored) - k if reversed_order else k + 1
        image = header(person, vendor, number)
        add_geometry(image, grid, k, thickness)
        image.Rows, image.Columns = stored.shape[1:]
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
        image.RescaleIntercept, image.RescaleSlope, image.RescaleType = "0", str(vendor.slope), "US"
        middle, width = int(np.median(values[values > 0])), int(np.percentile(values, 99.5))
        image.WindowCenter, image.WindowWidth = str(middle), str(max(width, 1))
        image.PixelData = stored[k].tobytes()
        image.file_meta = file_meta(image, syntax)
        if syntax == RLELossless:
            image.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
        image.save_as(folder / f"IM{number:04d}.dcm", enforce_file_format=True)


def file_meta(image: Dataset, syntax: UID) -> FileMetaDataset:
    """Return the file's meta information; written out, because pydicom would put its own version in."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, image.SOPInstanceUID
    # `compress` needs the native syntax first and sets its own.
    meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax == RLELossless else syntax
    meta.ImplementationClassUID, meta.ImplementationVersionName = IMPLEMENTATION, "MEDTL_SAMPLE_1"
    return meta


def header(person: Person, vendor: Vendor, number: int) -> Dataset:
    """Return the header of instance `number`, without geometry and pixels."""
    key = (person.letter, person.number)
    date = f"2021{1 + person.number % 12:02d}{1 + person.number % 28:02d}"
    image = Dataset()
    image.SpecificCharacterSet = "ISO_IR 100"
    image.ImageType = ["ORIGINAL", "PRIMARY", "M", "NONE"]
    image.SOPClassUID, image.SOPInstanceUID = MRImageStorage, uid(*key, "image", number)
    image.StudyDate = image.SeriesDate = image.AcquisitionDate = image.ContentDate = date
    image.StudyTime, image.SeriesTime, image.ContentTime = "101500", "102000", "102000"
    image.AccessionNumber, image.Modality = f"SIM{person.letter}{person.number:06d}", "MR"
    image.Manufacturer, image.ManufacturerModelName = vendor.manufacturer, vendor.model
    image.InstitutionName, image.StationName = f"Simulated Hospital {person.letter}", f"SIM{person.letter}1"
    image.ReferringPhysicianName = ""
    image.StudyDescription, image.SeriesDescription = "SIMULATED HEAD", vendor.description
    image.PatientName, image.PatientID = f"Simulated^{person.letter}{person.number:04d}", person.patient_id
    image.PatientBirthDate, image.PatientSex, image.PatientAge = "", person.sex, f"{person.age:03d}Y"
    image.PatientComments = "Simulated: no such patient exists."
    image.BodyPartExamined = "HEAD"
    image.ScanningSequence, image.SequenceVariant, image.ScanOptions = "SE", "SK", ""
    image.MRAcquisitionType = "2D"
    image.RepetitionTime, image.EchoTime = str(vendor.repetition_time), str(vendor.echo_time)
    image.EchoTrainLength, image.NumberOfAverages, image.FlipAngle = "16", "1", "90"
    image.MagneticFieldStrength, image.ImagedNucleus = str(vendor.field_strength), "1H"
    image.SoftwareVersions, image.ProtocolName, image.PatientPosition = "sim 1.0", vendor.description, "HFS"
    image.StudyInstanceUID, image.SeriesInstanceUID = uid(*key, "study"), uid(*key, "series")
    image.FrameOfReferenceUID, image.PositionReferenceIndicator = uid(*key, "frame"), ""
    image.StudyID, image.SeriesNumber, image.InstanceNumber = "1", "3", str(number)
    image.AcquisitionNumber = "1"
    return image


def add_geometry(image: Dataset, grid: Grid, k: int, thickness: float) -> None:
    """Write slice `k` of `grid` into the header: DICOM's world is LPS, the grid's is RAS."""
    flip = np.array([-1.0, -1.0, 1.0])
    columns = grid.affine[:3, :3] * flip[:, None]
    lengths = np.sqrt((columns**2).sum(0))
    unit = columns / lengths
    position = (grid.affine[:3, 3] + k * grid.affine[:3, 2]) * flip
    image.PixelSpacing = [number(lengths[1]), number(lengths[0])]
    image.SliceThickness, image.SpacingBetweenSlices = number(thickness), number(lengths[2])
    image.ImageOrientationPatient = [number(v) for v in (*unit[:, 0], *unit[:, 1])]
    image.ImagePositionPatient = [number(v) for v in position]
    image.SliceLocation = number(float(position @ np.cross(unit[:, 0], unit[:, 1])))


def number(value: float) -> str:
    """Return a decimal string of at most 16 characters, without a negative zero."""
    return f"{round(float(value), 6) + 0.0:.6f}".rstrip("0").rstrip(".")


def write_nifti(path: Path, values: npt.NDArray[Any], grid: Grid, axes: str, kind: str) -> None:
    """Write `values` (k, j, i) with the voxel axes turned to `axes`.

    Args:
        path: Where to; the folder is made.
        values: The volume.
        grid: Its place, with axes LPS.
        axes: The three letters of the file's axes, each the direction in which the index grows.
        kind: `uint8` (masks), `int16` (rounded), `scaled` (int16 with scl_slope and scl_inter) or `float32`
            (rounded to sixteenths, as a converter leaves values that were integers with a scale).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    turn = nib.orientations.ornt_transform(ORIENTED, nib.orientations.axcodes2ornt(axes))
    array = values.transpose(2, 1, 0)
    affine = grid.affine @ nib.orientations.inv_ornt_aff(turn, array.shape)
    array = nib.orientations.apply_orientation(array, turn)
    slope, offset = (0.125, -16.0) if kind == "scaled" else (1.0, 0.0)
    if kind == "float32":
        array = (np.rint(array * 16) / 16).astype(np.float32)
    else:
        array = np.rint((array - offset) / slope).astype("uint8" if kind == "uint8" else "int16")
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = b"simulated"
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=0 if kind == "int16" else 1)  # some converters fill in the qform alone
    if kind == "scaled":
        image.header.set_slope_inter(slope, offset)
    nib.save(image, path)
