"""Checks on published scans; none of them ships with the project."""

from __future__ import annotations

import contextlib

import nibabel
import numpy as np
import pytest

from medtl.data.cases.collect import collect_cases
from medtl.errors import DataError
from medtl.scans.catalog import scan_folder
from medtl.scans.masks import read_mask, unknown_limit
from medtl.scans.volume import read_volume

pytestmark = pytest.mark.realdata


def test_two_labs_of_blood_cells(realdata):
    lab_a, lab_b = realdata / "wbc" / "lab_a", realdata / "wbc" / "lab_b"
    with pytest.raises(DataError, match="'basophil' 1: leave it out with --classes eosinophil"):
        collect_cases(source=[lab_a], labels=lab_a / "labels.csv")
    table = collect_cases(
        source=[lab_a],
        labels=lab_a / "labels.csv",
        target=lab_b,
        target_labels=lab_b / "labels.csv",
        classes=["eosinophil", "lymphocyte", "monocyte", "neutrophil"],
    )
    flow = table.flow()
    assert flow["lab_a"]["rejected"] == {"duplicate": 1, "mask": 300, "not_a_scan": 1}
    assert (flow["lab_a"]["cases"], flow["lab_b"]["cases"]) == (298, 100)


def test_ct_slices_of_two_vendors(realdata):
    folder = realdata / "ct_contrast"
    table = collect_cases(
        source=[folder / "siemens"],
        labels=folder / "siemens.csv",
        target=folder / "ge",
        target_labels=folder / "ge.csv",
    )
    assert [len({c.patient for c in table.select(domain=d)}) for d in ("source", "target")] == [16, 11]
    assert table.flow()["siemens"]["rejected"] == {"duplicate": 3}
    text = repr(table)
    assert "TCGA" not in text
    padded = [case.case for case in table.select(domain="target") if read_volume(case.item).mask is not None]
    assert len(padded) == 5


def test_hippocampus_volumes_keep_the_matrix_that_nibabel_reads(realdata):
    folder = realdata / "hippocampus" / "group_b"
    items = scan_folder(folder).items
    assert len(items) == 40
    for item in items[:10]:
        reference = nibabel.load(folder / item.files[0])
        np.testing.assert_array_equal(np.array(item.affine), reference.affine)
        np.testing.assert_allclose(
            read_volume(item).array.transpose(2, 1, 0), reference.get_fdata(), rtol=1e-6
        )


@pytest.mark.parametrize(
    "series", ["ge/anatomical/001", "ge/anatomical/001_implicit", "siemens/anatomical/001"]
)
def test_classic_series_equal_their_references(realdata, series):
    (item,) = scan_folder(realdata / "dicom_pairs" / series).items
    volume = read_volume(item)
    reference = realdata / "dicom_pairs" / f"{series}_ground_truth.nii.gz"
    wanted = nibabel.as_closest_canonical(nibabel.load(reference))
    mine = nibabel.Nifti1Image(volume.array.transpose(2, 1, 0), np.array(volume.affine))
    found = nibabel.as_closest_canonical(mine)
    np.testing.assert_allclose(found.affine, wanted.affine, atol=1e-3)
    np.testing.assert_array_equal(np.asarray(found.dataobj), np.asarray(wanted.dataobj))


def test_4d_series_and_mosaics_are_refused_with_their_reason(realdata):
    for series, code in (("ge/dti/001", "four_d"), ("ge/fmri/001", "four_d"), ("siemens/fmri/001", "mosaic")):
        catalog = scan_folder(realdata / "dicom_pairs" / series)
        assert catalog.items == ()
        assert {r.code for r in catalog.rejections} == {code}


def test_odd_files_are_items_or_rejections_and_never_crash(realdata):
    folder = realdata / "dicom_files" / "odd"
    assert scan_folder(folder).num_files == 66
    read = 0
    for path in sorted(folder.iterdir()):
        catalog = scan_folder(path)
        assert len(catalog.items) + len(catalog.rejections) == 1
        for item in catalog.items:
            with contextlib.suppress(DataError):  # anything else fails the test
                read_volume(item)
                read += 1
    assert read >= 10


def masked(realdata, name, sites, **more):
    folders = [realdata / name / site for site in sites]
    return collect_cases(source=folders, masks=[folder / "masks" for folder in folders], **more)


def test_masks_of_two_labs_of_blood_cells(realdata):
    target = realdata / "wbc" / "lab_b"
    structures = ["cytoplasm=128", "nucleus=255"]
    given = {"target": target, "target_masks": target / "masks", "structures": structures}
    table = masked(realdata, "wbc", ["lab_a"], **given)
    assert [len(table.select(domain=d)) for d in ("source", "target")] == [299, 100]
    assert all(case.mask for case in table.cases)
    assert "1 masks of 'lab_a/masks' belong to scans that were left out (1 duplicate)." in table.warnings
    strange = {}
    for case in table.cases:
        found = read_mask(case.mask_item, case.item, table.labels, limit=unknown_limit(case.domain))
        strange[case.case] = sum(found.unknown.values())
    # As the data set's notes list them.
    listed = {"lab_b/034": 97, "lab_b/035": 3, "lab_b/047": 179, "lab_b/050": 22, "lab_b/076": 3}
    assert {name: count for name, count in strange.items() if count} == listed


def test_masks_of_hippocampi(realdata):
    table = masked(realdata, "hippocampus", ["group_a", "group_b"], structures=["anterior=1", "posterior=2"])
    cases = table.select()
    assert len(cases) == 80
    for case in cases[::8]:
        found = read_mask(case.mask_item, case.item, table.labels)
        image = nibabel.load(case.mask_item.root / case.mask_item.files[0])
        np.testing.assert_array_equal(found.array, np.asarray(image.dataobj).T)
        assert min(found.counts(table.labels).voxels) > 0
