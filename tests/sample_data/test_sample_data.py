"""The sample data: what its readers count on, and that the generator beside it makes these very files."""

from __future__ import annotations

import csv
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, MRImageStorage, RLELossless

ROOT = Path(__file__).resolve().parents[2] / "sample_data"
SITES = ("site_a", "site_b")


def labels(site: str) -> list[dict[str, str]]:
    with (ROOT / site / "labels.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def series(site: str, case: str) -> list[pydicom.Dataset]:
    """The slices of a case, in the order in which they lie along the normal of the slab."""
    slices = [pydicom.dcmread(path) for path in sorted((ROOT / site / "scans" / case).iterdir())]
    normal = np.cross(*np.array(slices[0].ImageOrientationPatient, float).reshape(2, 3))
    return sorted(slices, key=lambda s: float(np.array(s.ImagePositionPatient, float) @ normal))


def dicom_grid(slices: list[pydicom.Dataset]) -> tuple[tuple[int, int, int], np.ndarray[Any, Any]]:
    """Shape (i, j, k) and RAS affine of a sorted series, by the DICOM standard's C.7.6.2.1.1."""
    first, last = (np.array(s.ImagePositionPatient, float) for s in (slices[0], slices[-1]))
    row, column = np.array(slices[0].ImageOrientationPatient, float).reshape(2, 3)
    affine = np.eye(4)
    affine[:3, 0] = row * float(slices[0].PixelSpacing[1])
    affine[:3, 1] = column * float(slices[0].PixelSpacing[0])
    affine[:3, 2] = (last - first) / (len(slices) - 1)
    affine[:3, 3] = first
    return (slices[0].Columns, slices[0].Rows, len(slices)), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


@pytest.fixture(scope="module")
def generator() -> Iterator[ModuleType]:
    pytest.importorskip("nilearn", reason="the generator takes its anatomy from nilearn's wheel")
    sys.path.insert(0, str(ROOT))
    try:
        import make_sample_data

        yield make_sample_data
    finally:
        sys.path.remove(str(ROOT))


def test_the_folder_stays_small() -> None:
    skip = {"__pycache__", ".mypy_cache", ".ruff_cache"}
    files = [p for p in ROOT.rglob("*") if p.is_file() and not skip & set(p.relative_to(ROOT).parts)]
    assert sum(p.stat().st_size for p in files) < 12_000_000


@pytest.mark.parametrize("site", SITES)
def test_labels_cover_every_scan_and_are_balanced(site: str) -> None:
    rows = labels(site)
    assert {r["case"] for r in rows} == {p.name.split(".")[0] for p in (ROOT / site / "scans").iterdir()}
    assert {r["case"] for r in rows} == {p.name.split(".")[0] for p in (ROOT / site / "masks").iterdir()}
    assert Counter(r["label"] for r in rows) == {"lesion": 20, "normal": 20}
    assert len({r["case"] for r in rows}) == len({r["patient"] for r in rows}) == 40


def test_no_patient_is_at_both_sites_and_every_id_is_marked_as_simulated() -> None:
    a, b = ({r["patient"] for r in labels(site)} for site in SITES)
    assert not a & b
    assert all(p.startswith("SIM-A-") for p in a)
    assert all(p.startswith("SIM-B-") for p in b)


@pytest.mark.parametrize("site", SITES)
def test_every_scan_reads_and_its_mask_lies_on_its_grid(site: str) -> None:
    kinds: Counter[str] = Counter()
    for row in labels(site):
        path = ROOT / site / "scans" / row["case"]
        mask: Any = nib.load(ROOT / site / "masks" / f"{row['case']}.nii.gz")
        if path.is_dir():
            slices = series(site, row["case"])
            shape, affine = dicom_grid(slices)
            values = np.stack([s.pixel_array for s in slices]).T
            kinds["dicom"] += 1
        else:
            image: Any = nib.load(path.with_name(path.name + ".nii.gz"))
            shape, affine, values = image.shape, image.affine, np.asanyarray(image.dataobj)
            kinds["nifti"] += 1
        assert mask.shape == shape == values.shape
        np.testing.assert_allclose(mask.affine, affine, atol=1e-3)
        marked = np.asanyarray(mask.dataobj) > 0
        assert marked.any() == (row["label"] == "lesion"), row["case"]
        # A head, not an empty or saturated field of view.
        assert 0.3 < (values > np.percentile(values, 99) / 10).mean() < 0.9, row["case"]
        if marked.any():  # brighter than its surroundings, so that the label can be seen
            assert np.median(values[marked]) > 1.2 * np.median(values[values > values.mean()]), row["case"]
    assert kinds == ({"dicom": 40} if site == "site_a" else {"dicom": 12, "nifti": 28})


@pytest.mark.parametrize("site", SITES)
def test_dicom_headers_are_complete_consistent_and_fictitious(site: str) -> None:
    patients = {r["case"]: r["patient"] for r in labels(site)}
    instances: list[str] = []
    syntaxes: Counter[str] = Counter()
    upside_down = 0
    folders = [p for p in (ROOT / site / "scans").iterdir() if p.is_dir()]
    for folder in folders:
        slices = series(site, folder.name)
        instances += [s.SOPInstanceUID for s in slices]
        syntaxes[slices[0].file_meta.TransferSyntaxUID] += 1
        numbers = [int(s.InstanceNumber) for s in slices]
        assert numbers in (list(range(1, len(slices) + 1)), list(range(len(slices), 0, -1)))
        upside_down += numbers[0] != 1
        assert len({(s.SeriesInstanceUID, s.StudyInstanceUID, s.FrameOfReferenceUID) for s in slices}) == 1
        for s in slices:
            assert s.SOPClassUID == s.file_meta.MediaStorageSOPClassUID == MRImageStorage
            assert s.file_meta.MediaStorageSOPInstanceUID == s.SOPInstanceUID
            assert s.SOPInstanceUID.is_valid
            assert s.SOPInstanceUID.startswith("2.25.")
            assert (s.BitsStored, s.PixelRepresentation, s.pixel_array.max() < 4096) == (12, 0, True)
            assert s.PatientID == patients[folder.name]
            assert str(s.PatientName).startswith("Simulated^")
            assert s.PatientBirthDate == ""
            assert "Simulated" in s.PatientComments
    assert len(set(instances)) == len(instances)
    assert set(syntaxes) == {ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless}
    assert syntaxes[RLELossless] == (14 if site == "site_a" else 6)
    assert 0 < upside_down < len(folders)


def test_the_sites_nifti_differ_in_orientation_type_and_geometry_code() -> None:
    images: list[Any] = [nib.load(p) for p in (ROOT / "site_b" / "scans").glob("*.nii.gz")]
    assert {"".join(nib.aff2axcodes(i.affine)) for i in images} == {"RAS", "LPS", "LAS", "RPI"}
    assert {i.get_data_dtype().name for i in images} == {"int16", "float32"}
    assert {i.dataobj.slope for i in images} == {1.0, 0.125}
    assert {int(i.header["sform_code"]) for i in images} == {0, 1}
    assert all(i.header["qform_code"] == 1 for i in images)


def test_predictions_pair_two_models_and_split_by_patient() -> None:
    with (ROOT / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    cases = {m: {r["case"]: r for r in rows if r["model"] == m} for m in ("source_only", "adapted")}
    assert len(rows) == sum(map(len, cases.values()))
    assert cases["source_only"].keys() == cases["adapted"].keys()
    assert {(r["domain"], r["split"], r["site"]) for r in rows} == {
        ("source", "validation", "site_a"),
        ("target", "test", "site_b"),
    }
    patients = {r["patient"]: set[str]() for r in rows}
    for r in rows:
        patients[r["patient"]].add(r["split"])
        assert np.isfinite([float(r["logit_lesion"]), float(r["logit_normal"])]).all()
    assert len(patients) == 120
    assert all(len(splits) == 1 and patient.startswith("SIM-P-") for patient, splits in patients.items())

    def balanced_accuracy(model: str, domain: str) -> float:
        mine = [r for r in cases[model].values() if r["domain"] == domain]
        right = {
            name: [float(r["logit_lesion"]) > 0 for r in mine if r["label"] == name]
            for name in ("lesion", "normal")
        }
        return float(np.mean([np.mean(right["lesion"]), 1 - np.mean(right["normal"])]))

    # The story the table tells: a loss at the target, a good part of it won back.
    assert balanced_accuracy("source_only", "source") > 0.8
    assert balanced_accuracy("source_only", "target") < 0.65
    assert balanced_accuracy("adapted", "target") > 0.75


@pytest.mark.slow
@pytest.mark.parametrize(("site", "number"), [("SITE_A", 4), ("SITE_B", 1)])
def test_the_generator_makes_these_files_again(
    generator: ModuleType, tmp_path: Path, site: str, number: int
) -> None:
    settings = getattr(generator, site)
    person, label = generator.cohort(settings)[number - 1]
    for run in ("first", "second"):
        generator.write_patient(settings, person, label, tmp_path / run)
    files = sorted(p.relative_to(tmp_path / "first") for p in (tmp_path / "first").rglob("*") if p.is_file())
    assert len(files) == (settings.slices + 1 if site == "SITE_A" else 2)
    for file in files:
        first = (tmp_path / "first" / file).read_bytes()
        assert first == (tmp_path / "second" / file).read_bytes(), file
        # Another processor or library version may round a voxel the other way, and nothing more.
        if first != (ROOT / file).read_bytes():
            assert voxel_difference(tmp_path / "first" / file, ROOT / file) <= 1, file


def voxel_difference(left: Path, right: Path) -> float:
    """The largest difference of two files' stored numbers; their headers must agree."""
    if left.suffix == ".dcm":
        a, b = pydicom.dcmread(left), pydicom.dcmread(right)
        values = [s.pixel_array.astype(int) for s in (a, b)]
        for s in (a, b):
            del s.PixelData
        assert a == b
        return float(np.abs(values[0] - values[1]).max())
    images: list[Any] = [nib.load(left), nib.load(right)]
    assert images[0].header == images[1].header
    stored = [np.asarray(i.dataobj.get_unscaled(), np.float64) for i in images]
    return float(np.abs(stored[0] - stored[1]).max())


@pytest.mark.slow
def test_the_label_and_nothing_else_decides_whether_a_patient_has_lesions(generator: ModuleType) -> None:
    site = generator.SITE_A
    sick, well = (generator.simulate(site, 3, lesions=lesions) for lesions in (True, False))
    assert sick.mask.any()
    assert not well.mask.any()
    np.testing.assert_array_equal(sick.grid.affine, well.grid.affine)
    outside = sick.mask == 0
    assert np.corrcoef(sick.signal[outside], well.signal[outside])[0, 1] > 0.9


def test_the_settings_on_disk_are_the_generators(generator: ModuleType) -> None:
    import json
    from dataclasses import asdict

    stored = json.loads((ROOT / "settings.json").read_text(encoding="utf-8"))
    sites = json.loads(json.dumps([asdict(generator.SITE_A), asdict(generator.SITE_B)]))
    assert stored["seed"] == generator.SEED
    assert stored["sites"] == sites


def test_the_templates_notice_stays_with_the_data() -> None:
    notice = " ".join((ROOT / "NOTICE").read_text(encoding="utf-8").split())
    assert "Copyright (C) 1993-2004 Louis Collins, McConnell Brain Imaging Centre" in notice
    assert "provided that the above copyright notice appear in all copies" in notice
