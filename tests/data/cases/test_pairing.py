from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medtl.data.cases.pairing import pair_masks
from medtl.labelmap import LabelMap
from medtl.scans.catalog import scan_folder
from medtl.scans.readers.dicom_seg import write_seg
from tests.scans.make_scans import random_image, write_image, write_nifti, write_series

SHAPE = (6, 5)


def image(path: Path, seed: int) -> Path:
    """A scan: colour, so that no mask is taken for it."""
    return write_image(path, random_image(seed, (*SHAPE, 3)))


def mask(path: Path, seed: int = 0) -> Path:
    return write_image(path, np.full(SHAPE, seed % 2, np.uint8))


def pair(folders, sites):
    catalogs = {site.name: scan_folder(site, masks=folders) for site in sites}
    faults, warnings = [], []
    pairs = pair_masks(folders, {site.name: site for site in sites}, catalogs, faults, warnings)
    found = {
        f"{site}/{catalogs[site].items[index].files[0]}": item.files[0]
        for (site, index), item in sorted(pairs.masks.items())
    }
    return found, faults, warnings, pairs


@pytest.mark.parametrize(
    ("scan", "name"),
    [
        ("001.png", "001.png"),
        ("001.png", "001_seg.png"),
        ("001.png", "001-mask.png"),
        ("001.png", "001.label.png"),
        ("001.png", "mask_001.png"),
        ("001.png", "Seg-001.tif"),
        ("patient007_frame01.png", "patient007_frame01_gt.png"),
        ("tumour_001_0000.png", "tumour_001.png"),
        ("img_001.png", "mask_001.png"),
        ("001_image.png", "001_segmentation.png"),
        ("Case_A.png", "case_a_mask.png"),
        ("images/001.png", "001.png"),
        ("imagesTr/tumour_001_0000.png", "labelsTr/tumour_001.png"),
        ("x/scan.png", "x/scan.png"),
        ("x/scan.png", "x/mask.png"),
        ("x/scan.png", "x/segmentation.png"),
        ("x/images/scan.png", "x/masks/scan.png"),
        ("train/images/7.png", "train/7.png"),
        ("x/t1.png", "x/x_seg.png"),
        ("mask.of.zorro.png", "mask.of.zorro.png"),
    ],
)
def test_names_that_belong_together(tmp_path, scan, name):
    image(tmp_path / "a" / scan, 0)
    image(tmp_path / "a" / "other" / "odd.png", 1)
    mask(tmp_path / "m" / name)
    found, faults, warnings, _ = pair([tmp_path / "m"], [tmp_path / "a"])
    assert found == {f"a/{scan}": name}
    assert not faults
    assert not warnings


@pytest.mark.parametrize(
    ("scan", "name"),
    [("001.png", "002.png"), ("1.png", "001.png"), ("001.png", "001_liver.png"), ("001.png", "mask.png")],
)
def test_names_that_do_not(tmp_path, scan, name):
    image(tmp_path / "a" / scan, 0)
    mask(tmp_path / "m" / name)
    found, faults, _, _ = pair([tmp_path / "m"], [tmp_path / "a"])
    assert not found
    (fault,) = faults
    assert "none of the 1 masks of 'm' belongs to a scan" in fault
    assert repr(name) in fault
    assert repr(scan.removesuffix(".png")) in fault


def test_the_path_tells_equal_names_apart(tmp_path):
    for number in range(3):
        image(tmp_path / "a" / "images" / f"p{number}" / "scan.png", number)
        mask(tmp_path / "a" / "masks" / f"p{number}" / "scan_mask.png", number)
    found, faults, warnings, _ = pair([tmp_path / "a" / "masks"], [tmp_path / "a"])
    assert found == {f"a/images/p{n}/scan.png": f"p{n}/scan_mask.png" for n in range(3)}
    assert faults == warnings == []
    mask(tmp_path / "m" / "scan.png")
    _, faults, _, _ = pair([tmp_path / "m"], [tmp_path / "a"])
    assert "1 mask of 'm' could belong to several scans, for example 'scan.png'" in faults[0]


def test_masks_beside_their_scans(tmp_path):
    for number in range(3):
        image(tmp_path / "a" / f"p{number}" / "scan.png", number)
        mask(tmp_path / "a" / f"p{number}" / "scan_seg.png")
    found, faults, warnings, _ = pair([tmp_path / "a"], [tmp_path / "a"])
    assert found == {f"a/p{n}/scan.png": f"p{n}/scan_seg.png" for n in range(3)}
    assert faults == warnings == []


def test_a_masks_folder_of_any_name_inside_the_site_holds_no_scans(tmp_path):
    for number in range(3):
        image(tmp_path / "a" / f"{number}.png", number)
        mask(tmp_path / "a" / "contours" / f"{number}.png", number)
    catalog = scan_folder(tmp_path / "a", masks=[tmp_path / "a" / "contours"])
    assert catalog.rejected_by_code() == {"mask": 3}
    found, faults, warnings, _ = pair([tmp_path / "a" / "contours"], [tmp_path / "a"])
    assert len(found) == 3
    assert faults == warnings == []


def two_sites(tmp_path):
    for seed, site in enumerate("ab"):
        for number in range(2):
            image(tmp_path / site / f"00{number}.png", 10 * seed + number)
    return [tmp_path / "a", tmp_path / "b"]


def test_a_folder_inside_a_site_is_for_that_site_alone(tmp_path):
    sites = two_sites(tmp_path)
    for site in "ab":
        mask(tmp_path / site / "masks" / "001.png")
    given = [tmp_path / "b" / "masks", tmp_path / "a" / "masks"]
    found, faults, warnings, pairs = pair(given, sites)
    assert set(found) == {"a/001.png", "b/001.png"}
    assert {item.root.parent.name == site for (site, _), item in pairs.masks.items()} == {True}
    assert faults == warnings == []
    found, _, _, _ = pair(given[:1], sites)
    assert set(found) == {"b/001.png"}


def test_folders_elsewhere_are_for_the_sites_in_order(tmp_path):
    sites = two_sites(tmp_path)
    mask(tmp_path / "one" / "000.png")
    mask(tmp_path / "two" / "001.png")
    found, faults, _, _ = pair([tmp_path / "one", tmp_path / "two"], sites)
    assert set(found) == {"a/000.png", "b/001.png"}
    assert not faults
    # One is inside its site: the other is for the other.
    mask(tmp_path / "a" / "masks" / "001.png")
    found, _, _, _ = pair([tmp_path / "two", tmp_path / "a" / "masks"], sites)
    assert set(found) == {"a/001.png", "b/001.png"}


def test_one_folder_for_all(tmp_path):
    sites = two_sites(tmp_path)
    mask(tmp_path / "m" / "a" / "000.png")
    mask(tmp_path / "m" / "b" / "masks" / "001_seg.png")
    found, faults, _, _ = pair([tmp_path / "m"], sites)
    assert set(found) == {"a/000.png", "b/001.png"}
    assert not faults
    mask(tmp_path / "m" / "000.png")
    _, faults, _, _ = pair([tmp_path / "m"], sites)
    assert "could belong to several scans" in faults[0]


def test_what_is_left_over_is_counted(tmp_path):
    for number in range(4):
        image(tmp_path / "a" / f"{number}.png", number)
        mask(tmp_path / "m" / f"{number}.png", number)
    image(tmp_path / "a" / "copy.png", 0)
    mask(tmp_path / "m" / "copy.png")
    mask(tmp_path / "m" / "ghost.png")
    image(tmp_path / "m" / "3.png", 9)
    image(tmp_path / "m" / "note.png", 9)
    found, faults, warnings, pairs = pair([tmp_path / "m"], [tmp_path / "a"])
    assert len(found) == 3
    assert not faults
    assert warnings == [
        "1 of 5 masks of 'm' belong to no scan and are left out, for example 'ghost.png'.",
        "1 masks of 'm' belong to scans that were left out (1 duplicate).",
        "1 file of 'm' cannot be used as a mask, for example 'note.png': a colour image (RGB). Store the mask as one "
        "channel of integer labels: PNG or TIFF in grey or with a palette, or NIfTI.",
    ]
    (refused,) = pairs.refused.values()
    assert (refused.code, refused.item.name) == ("mask_values", "3")
    assert refused.detail == "mask '3.png': a colour image (RGB)"


def test_two_masks_of_one_scan(tmp_path):
    image(tmp_path / "a" / "x.png", 0)
    mask(tmp_path / "m" / "x.png")
    mask(tmp_path / "m" / "x_seg.png")
    _, (fault,), _, _ = pair([tmp_path / "m"], [tmp_path / "a"])
    assert fault == (
        "1 scan has more than one mask (case 'x' of 'a': 'x.png' and 'x_seg.png'): leave one for each scan, with all "
        "structures"
    )


def test_folders_without_masks(tmp_path):
    image(tmp_path / "a" / "x.png", 0)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "labels.json").write_text("{}")
    assert "'m' holds no mask" in pair([tmp_path / "m"], [tmp_path / "a"])[1][0]
    assert "no masks folder 'no'" in pair([tmp_path / "no"], [tmp_path / "a"])[1][0]
    mask(tmp_path / "m" / "x.png")
    assert "'m' is given twice" in pair([tmp_path / "m", tmp_path / "m"], [tmp_path / "a"])[1][0]


def test_geometry_is_compared_and_shape_alone_is_said(tmp_path):
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    moved = affine.copy()
    moved[2, 3] = 9
    for number in range(3):
        write_nifti(tmp_path / "a" / f"v{number}.nii", random_image(number, (3, 6, 5)), affine)
        write_nifti(
            tmp_path / "m" / f"v{number}.nii", np.ones((3, 6, 5), np.uint8), moved if number == 1 else affine
        )
    write_nifti(tmp_path / "m" / "v2.nii", np.ones((3, 6, 5), np.uint8), sform_code=0)
    found, faults, (warning,), pairs = pair([tmp_path / "m"], [tmp_path / "a"])
    assert set(found) == {"a/v0.nii", "a/v2.nii"}
    assert not faults
    (refused,) = pairs.refused.values()
    assert (refused.code, refused.detail[:40]) == (
        "mask_geometry",
        "mask 'v1.nii': both have 3 x 6 x 5 voxel",
    )
    assert "corners lie 9 mm apart" in refused.detail
    assert "1 mask lies on scans by shape alone" in warning
    assert "case 'v2'" in warning


def test_series_by_folder_and_by_what_a_seg_refers_to_and_ids_stay_hidden(tmp_path):
    for number in range(3):
        folder = tmp_path / "a" / f"MRN5512{number}"
        more = {"series": f"1.2.{number}", "patient_id": f"MRN5512{number}", "FrameOfReferenceUID": "1.2.9"}
        write_series(folder, random_image(number, (3, 6, 5)).astype(np.uint16), study=f"1.7.{number}", **more)
    items = {item.patient_id: item for item in scan_folder(tmp_path / "a").items}
    voxels = np.ones((3, 6, 5), np.uint8)
    write_seg(tmp_path / "m" / "export77.dcm", voxels, items["MRN55120"], LabelMap({"x": (1,)}))
    write_nifti(tmp_path / "m" / "xMRN55121_mask.nii", voxels, np.array(items["MRN55121"].affine))
    write_nifti(tmp_path / "m" / "MRN55121_mask.nii", voxels, np.array(items["MRN55121"].affine))
    write_nifti(tmp_path / "m" / "MRN55122" / "seg.nii", voxels, np.array(items["MRN55122"].affine))
    found, faults, warnings, pairs = pair([tmp_path / "m"], [tmp_path / "a"])
    assert found == {
        "a/MRN55120/000.dcm": "export77.dcm",
        "a/MRN55121/000.dcm": "MRN55121_mask.nii",
        "a/MRN55122/000.dcm": "MRN55122/seg.nii",
    }
    assert not faults
    assert len(warnings) == 1
    assert "MRN5512" not in repr(pairs)


def test_names_tell_volumes_of_one_series_apart(tmp_path):
    # Two echoes under one SeriesInstanceUID are two volumes on one grid.
    common = {"series": "1.2.3", "patient_id": "1", "FrameOfReferenceUID": "1.2.9", "StudyID": ""}
    volume = random_image(0, (3, 6, 5)).astype(np.uint16)
    for echo in (10, 20):
        write_series(tmp_path / "a" / f"e{echo}", volume + echo, EchoTime=echo, **common)
    items = scan_folder(tmp_path / "a").items
    assert len(items) == 2
    for item in items:
        write_seg(
            tmp_path / "m" / f"{item.name}.dcm", np.ones(item.shape, np.uint8), item, LabelMap({"x": (1,)})
        )
    found, faults, warnings, _ = pair([tmp_path / "m"], [tmp_path / "a"])
    assert found == {"a/e10/000.dcm": "e10.dcm", "a/e20/000.dcm": "e20.dcm"}
    assert faults == warnings == []


def test_the_place_in_the_patient_tells_equal_names_apart(tmp_path):
    for number, site in enumerate("ab"):
        affine = np.diag([1.0, 1.0, 3.0, 1.0])
        affine[0, 3] = 50 * number
        write_nifti(tmp_path / site / "scan.nii", random_image(number, (3, 6, 5)), affine)
        write_nifti(tmp_path / "m" / f"x{number}" / "scan.nii", np.ones((3, 6, 5), np.uint8), affine)
    found, faults, _, _ = pair([tmp_path / "m"], [tmp_path / "a", tmp_path / "b"])
    assert found == {"a/scan.nii": "x0/scan.nii", "b/scan.nii": "x1/scan.nii"}
    assert not faults
