from __future__ import annotations

from dataclasses import replace
from itertools import permutations, product

import highdicom
import numpy as np
import pydicom
import pytest
from PIL import Image

from medtl.errors import DataError
from medtl.labelmap import VOID, LabelMap
from medtl.scans.alignment import Mismatch, Reorder, reorder
from medtl.scans.catalog import scan_folder
from medtl.scans.items import CODES, MASK_CODES
from medtl.scans.masks import MaskCounts, MaskError, read_mask, scan_masks, unknown_limit
from medtl.scans.privacy import Identifiers, Owner
from medtl.scans.readers.dicom_seg import write_seg
from tests.scans.make_scans import random_image, write_dicom, write_image, write_nifti, write_series

ONE = LabelMap({"lesion": (1,)})
TWO = LabelMap({"cell": (128,), "nucleus": (255,)})


def rotation(seed):
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


def affine_of(seed=0, spacing=(0.8, 1.3, 3.0)):
    matrix = np.eye(4)
    matrix[:3, :3] = rotation(seed) * spacing
    matrix[:3, 3] = (-40, 25, 110)
    return matrix


def only(folder):
    (mask,), rejections = scan_masks(folder)
    assert rejections == ()
    return mask


def scan_of(folder, shape=(4, 6, 5), affine=None, seed=1):
    path = write_nifti(
        folder / "c.nii.gz", random_image(seed, shape), affine_of() if affine is None else affine
    )
    (item,) = scan_folder(path).items
    return item


def image_pair(tmp_path, mask, suffix="png"):
    write_image(tmp_path / "scans" / "c.png", random_image(1, (*mask.shape, 3)))
    path = write_image(tmp_path / "masks" / f"c.{suffix}", mask)
    (item,) = scan_folder(tmp_path / "scans").items
    return only(path.parent), item


# --- what a folder holds


def test_what_a_folder_of_masks_holds(tmp_path):
    grey = random_image(0, (6, 5))
    write_nifti(tmp_path / "deep" / "v.nii.gz", random_image(1, (3, 6, 5)), affine_of())
    write_image(tmp_path / "l.png", grey)
    Image.fromarray(grey).convert("P").save(tmp_path / "p.png")
    Image.fromarray(grey > 9).save(tmp_path / "one.bmp")
    write_image(tmp_path / "deep16.tif", grey.astype(np.uint16) * 9)
    write_image(tmp_path / "rgb.png", random_image(2))
    write_image(tmp_path / "lossy.jpg", grey)
    (tmp_path / "m.nrrd").write_bytes(b"NRRD0004")
    (tmp_path / "cut.png").write_bytes((tmp_path / "l.png").read_bytes()[:-20])
    write_dicom(tmp_path / "scan.dcm", grey)
    for name in ("labels.json", "notes.txt", "table.csv", ".hidden.png", "Thumbs.db"):
        (tmp_path / name).write_text("{}")
    masks, rejections = scan_masks(tmp_path)
    assert {m.name: (m.kind, m.path, m.shape, m.affine is None) for m in masks} == {
        "v": ("nifti", "deep/v.nii.gz", (3, 6, 5), False),
        "deep16": ("image", "deep16.tif", (1, 6, 5), True),
        "l": ("image", "l.png", (1, 6, 5), True),
        "one": ("image", "one.bmp", (1, 6, 5), True),
        "p": ("image", "p.png", (1, 6, 5), True),
    }
    assert {r.path: r.code for r in rejections} == {
        "rgb.png": "mask_values",
        "lossy.jpg": "mask_values",
        "m.nrrd": "unsupported_format",
        "cut.png": "truncated",
        "scan.dcm": "mask_unreadable",
    }
    assert all(r.next_step for r in rejections)
    assert set(CODES) >= MASK_CODES


def test_folders_that_are_none(tmp_path):
    with pytest.raises(DataError, match="no masks folder 'nowhere'"):
        scan_masks(tmp_path / "nowhere")
    write_image(tmp_path / "a.png", random_image(0, (4, 4)))
    assert [m.name for m in scan_masks(tmp_path / "a.png")[0]] == ["a"]
    assert scan_masks(tmp_path, skip={(tmp_path / "a.png").resolve()}) == ((), ())


def test_a_mask_has_a_fingerprint_of_its_own(tmp_path):
    write_image(tmp_path / "a.png", random_image(0, (4, 4)))
    first = only(tmp_path).fingerprint
    write_image(tmp_path / "a.png", random_image(0, (4, 5)))
    assert only(tmp_path).fingerprint != first


def test_a_seg_is_known_by_its_header(tmp_path):
    volume = random_image(0, (4, 6, 5)).astype(np.uint16)
    write_series(
        tmp_path / "scan", volume, series="1.2.77.1", FrameOfReferenceUID="1.2.9", patient_id="MRN55123"
    )
    (item,) = scan_folder(tmp_path / "scan").items
    array = (volume > 90).astype(np.uint8)
    write_seg(tmp_path / "masks" / "MRN55123.dcm", array, item, LabelMap({"tumour": (4,)}))
    mask = only(tmp_path / "masks")
    assert (mask.kind, mask.series_uid, dict(mask.segments)) == ("seg", "1.2.77.1", {1: "tumour"})
    assert "MRN55123" not in repr(mask)


def test_names_and_paths_show_nobody(tmp_path):
    identifiers = Identifiers()
    identifiers.add(Owner("MRN55123", "Roe^Mary"))
    for name in (
        "MRN55123_seg.png",
        "roe-mary.png",
        "visit/Mary/x.png",
        "visit/rgb_MRN55123.png",
        "plain.png",
    ):
        write_image(tmp_path / name, random_image(0, (4, 4, 3) if "rgb" in name else (4, 4)))
    masks, rejections = scan_masks(tmp_path, identifiers=identifiers)
    shown = repr(masks) + repr(rejections)
    assert not any(word in shown for word in ("MRN55123", "roe", "Mary", "mary"))
    assert "plain" in shown
    assert "rgb" not in shown  # the word is part of a file name that holds an id
    assert {m.files[0] for m in masks} >= {"MRN55123_seg.png"}


# --- geometry


@pytest.mark.parametrize("seed", range(3))
def test_every_order_of_axes_of_the_same_voxels_is_found_and_undone(tmp_path, seed):
    shape = (4, 6, 5)
    affine = affine_of(seed)
    item = scan_of(tmp_path / "s", shape, affine)
    truth = np.random.default_rng(seed).integers(0, 2, shape).astype(np.uint8)
    for order in permutations(range(3)):
        for turned in product((False, True), repeat=3):
            # Axes here are (i, j, k), as the affine's columns; voxel m of the mask is voxel R m + t of the scan.
            matrix = np.zeros((4, 4))
            matrix[3, 3] = 1
            for column, (axis, flip) in enumerate(zip(order, turned, strict=True)):
                matrix[axis, column] = -1 if flip else 1
                matrix[axis, 3] += shape[::-1][axis] - 1 if flip else 0
            array = truth.T.transpose(order)
            array = np.flip(array, [a for a, flip in enumerate(turned) if flip])
            write_nifti(tmp_path / "m" / "c.nii.gz", np.ascontiguousarray(array.T), affine @ matrix)
            np.testing.assert_array_equal(read_mask(only(tmp_path / "m"), item, ONE).array, truth)


def test_equal_axes_need_nothing(tmp_path):
    item = scan_of(tmp_path / "s", (5, 5, 5))
    write_nifti(tmp_path / "m" / "c.nii", random_image(2, (5, 5, 5)), affine_of())
    assert reorder(only(tmp_path / "m"), item) == Reorder()


@pytest.mark.parametrize(("voxels", "fits"), [(0.05, True), (0.2, False), (1.0, False), (-3.0, False)])
def test_a_grid_beside_the_scans_is_refused_with_the_distance(tmp_path, voxels, fits):
    item = scan_of(tmp_path / "s", (4, 6, 5))
    affine = affine_of()
    affine[:3, 3] += affine[:3, 2] * voxels  # along the slices, 3 mm apart
    write_nifti(tmp_path / "m" / "c.nii", random_image(2, (4, 6, 5)), affine)
    found = reorder(only(tmp_path / "m"), item)
    assert isinstance(found, Reorder) == fits
    if isinstance(found, Mismatch):
        assert f"both have 4 x 6 x 5 voxels, but corners lie {abs(3 * voxels):.3g} mm apart" in found.detail
        assert "Resample the mask to the scan's grid" in found.next_step


def test_another_resolution_is_refused_with_both(tmp_path):
    item = scan_of(tmp_path / "s", (4, 6, 5))
    write_nifti(tmp_path / "m" / "c.nii", random_image(2, (12, 6, 5)), affine_of(spacing=(0.8, 1.3, 1.0)))
    found = reorder(only(tmp_path / "m"), item)
    assert found.detail == (
        "the mask has 12 x 6 x 5 voxels of 1 x 1.3 x 0.8 mm, the scan 4 x 6 x 5 of 3 x 1.3 x 0.8 mm"
    )
    with pytest.raises(MaskError, match="The mask of case 'c' cannot be used: the mask has 12") as caught:
        read_mask(only(tmp_path / "m"), item, ONE)
    rejection = caught.value.rejection(item)
    assert (rejection.code, rejection.item, rejection.path) == ("mask_geometry", item, item.path)


def test_rotation_in_place_is_found_out(tmp_path):
    # Same centre, same shape, another direction: only corners tell.
    affine, other = affine_of(0), affine_of(4)
    centre = np.array([2, 2.5, 1.5, 1])
    other[:3, 3] += (affine @ centre)[:3] - (other @ centre)[:3]
    item = scan_of(tmp_path / "s", (4, 6, 5), affine)
    write_nifti(tmp_path / "m" / "c.nii", random_image(2, (4, 6, 5)), other)
    assert isinstance(reorder(only(tmp_path / "m"), item), Mismatch)


def test_without_a_place_the_shapes_decide(tmp_path):
    item = scan_of(tmp_path / "s", (4, 6, 5))
    write_nifti(tmp_path / "m" / "c.nii", random_image(2, (4, 6, 5)), sform_code=0)
    mask = only(tmp_path / "m")
    assert mask.affine is None
    assert reorder(mask, item) == Reorder(assumed=True)
    assert reorder(mask, replace(item, affine=None)) == Reorder()
    found = reorder(mask, replace(item, shape=(4, 5, 6)))
    assert isinstance(found, Mismatch)
    assert found.detail == "the mask has 4 x 6 x 5 voxels, the scan 4 x 5 x 6"


def test_an_axis_of_one_voxel_has_no_direction(tmp_path):
    # A single slice: writers fill in any thickness, and either direction, for it.
    affine, other = affine_of(), affine_of()
    other[:3, 2] *= -7
    item = scan_of(tmp_path / "s", (1, 6, 5), affine)
    write_nifti(tmp_path / "m" / "c.nii", random_image(2, (1, 6, 5)), other)
    assert reorder(only(tmp_path / "m"), item) == Reorder()


# --- values


def test_values_of_every_grey_format(tmp_path):
    truth = np.random.default_rng(0).integers(0, 3, (7, 9)).astype(np.uint8)
    stored = np.array([0, 128, 255], np.uint8)[truth]
    for kind, suffix in (
        (np.uint8, "png"),
        (np.uint8, "bmp"),
        (np.uint16, "png"),
        (np.int32, "tif"),
        (np.float32, "tif"),
    ):
        mask, item = image_pair(tmp_path / f"{suffix}{kind.__name__}", stored.astype(kind), suffix)
        np.testing.assert_array_equal(read_mask(mask, item, TWO).array[0], truth)


def test_a_palette_holds_indices_and_one_bit_holds_0_and_1(tmp_path):
    truth = np.random.default_rng(0).integers(0, 3, (7, 9)).astype(np.uint8)
    image = Image.new("P", truth.shape[::-1])
    image.putdata(truth.ravel().tolist())
    image.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
    write_image(tmp_path / "s" / "c.png", random_image(1, (7, 9, 3)))
    (tmp_path / "m").mkdir()
    image.save(tmp_path / "m" / "c.png")
    (item,) = scan_folder(tmp_path / "s").items
    labels = LabelMap({"a": (1,), "b": (2,)})
    np.testing.assert_array_equal(read_mask(only(tmp_path / "m"), item, labels).array[0], truth)
    Image.fromarray(truth > 0).save(tmp_path / "m" / "c.png")
    np.testing.assert_array_equal(read_mask(only(tmp_path / "m"), item, ONE).array[0], truth > 0)


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int32, np.float32, np.float64])
def test_integers_in_any_type(tmp_path, kind):
    item = scan_of(tmp_path / "s")
    truth = np.random.default_rng(0).integers(0, 2, item.shape)
    write_nifti(tmp_path / "m" / "c.nii.gz", truth.astype(kind), affine_of())
    found = read_mask(only(tmp_path / "m"), item, ONE)
    assert found.array.dtype == np.uint8
    np.testing.assert_array_equal(found.array, truth)


def test_slope_and_intercept_count(tmp_path):
    item = scan_of(tmp_path / "s")
    truth = np.random.default_rng(0).integers(0, 2, item.shape).astype(np.uint8)
    write_nifti(tmp_path / "m" / "c.nii", truth * 255, affine_of(), scale=(1 / 255, 0.0))
    np.testing.assert_array_equal(read_mask(only(tmp_path / "m"), item, ONE).array, truth)
    write_nifti(tmp_path / "m" / "c.nii", truth, affine_of(), scale=(2.0, 3.0))
    labels = LabelMap({"lesion": (5,)}, background=(3,))
    np.testing.assert_array_equal(read_mask(only(tmp_path / "m"), item, labels).array, truth)


@pytest.mark.parametrize("value", [0.5, 1.02, np.nan, np.inf])
def test_fractions_are_no_labels(tmp_path, value):
    item = scan_of(tmp_path / "s")
    array = np.zeros(item.shape, np.float32)
    array[1, 2, 3] = value
    write_nifti(tmp_path / "m" / "c.nii", array, affine_of())
    with pytest.raises(MaskError, match="1 of its 120 voxels are not integers, for example") as caught:
        read_mask(only(tmp_path / "m"), item, ONE)
    assert caught.value.code == "mask_values"


def test_up_to_one_in_a_hundred_unknown_voxels_become_void(tmp_path):
    stored = np.zeros((30, 30), np.uint8)
    stored[:10, :20] = 128
    stored[0, :2] = 7
    mask, item = image_pair(tmp_path / "a", stored)
    found = read_mask(mask, item, TWO)
    assert found.unknown == {7: 2}
    assert (found.array == VOID).sum() == 2
    assert found.counts(TWO) == MaskCounts((700, 198, 0), void=2, unknown={7: 2})
    stored[0, 2] = 9
    mask, item = image_pair(tmp_path / "b", stored)
    with pytest.raises(MaskError) as caught:
        read_mask(mask, item, TWO)
    assert caught.value.code == "unknown_label"
    assert (
        "the values 7, 9 (1.5 % of the voxels beyond the background) are not in the label map, which is "
        in str(caught.value)
    )
    assert "background 0, cell 128, nucleus 255" in str(caught.value)
    # The target decides nothing: its unknown values are void, however many.
    assert read_mask(mask, item, TWO, limit=unknown_limit("target")).unknown == {7: 2, 9: 1}
    assert unknown_limit("source") == 0.01


def test_void_and_counts_survive_a_round_trip(tmp_path):
    stored = np.array([[0, 1, 9], [9, 4, 4]], np.uint8)
    mask, item = image_pair(tmp_path, stored)
    labels = LabelMap({"a": (1,), "b": (4, 5)}, void=(9,))
    found = read_mask(mask, item, labels)
    np.testing.assert_array_equal(found.array[0], [[0, 1, VOID], [VOID, 2, 2]])
    counts = found.counts(labels)
    assert counts == MaskCounts((1, 1, 2), void=2)
    assert MaskCounts.from_dict(counts.to_dict()) == counts
    strange = MaskCounts((5, 1), 3, {-1: 2, 7: 1}, 4)
    assert MaskCounts.from_dict(strange.to_dict()) == strange


def test_a_mask_that_is_damaged_or_gone(tmp_path):
    mask, item = image_pair(tmp_path, random_image(0, (40, 40)))
    path = mask.root / mask.files[0]
    data = bytearray(path.read_bytes())
    data[60:400] = bytes(340)
    path.write_bytes(data)
    with pytest.raises(MaskError, match="cannot be used") as caught:
        read_mask(mask, item, TWO)
    assert caught.value.code == "mask_unreadable"
    path.unlink()
    with pytest.raises(MaskError, match="No such file") as caught:
        read_mask(mask, item, TWO)
    assert str(tmp_path) not in str(caught.value)


# --- DICOM SEG


def series(tmp_path, shape=(6, 7, 8)):
    volume = random_image(0, shape).astype(np.uint16)
    turn = rotation(2)
    write_series(
        tmp_path / "scan",
        volume,
        orientation=(*turn[:, 0], *turn[:, 1]),
        step=2.5,
        FrameOfReferenceUID="1.2.9",
        StudyID="",
    )
    (item,) = scan_folder(tmp_path / "scan").items
    return item


def test_a_seg_without_its_empty_slices_lies_on_the_scan(tmp_path):
    item = series(tmp_path)
    truth = np.zeros(item.shape, np.uint8)
    truth[2:4, 1:5, 2:6] = np.random.default_rng(0).integers(0, 3, (2, 4, 4))
    written = LabelMap({"liver": (1,), "tumour": (2,)})
    write_seg(tmp_path / "m" / "a.dcm", truth, item, written)
    mask = only(tmp_path / "m")
    assert mask.shape[0] < item.shape[0]
    np.testing.assert_array_equal(read_mask(mask, item, written).array, truth)
    # Labels count, not numbers: another file may number the same structures the other way round.
    turned = LabelMap({"Tumour": (1,), "Liver": (2,)})
    np.testing.assert_array_equal(read_mask(mask, item, turned).array, np.array([0, 2, 1], np.uint8)[truth])
    # Without a common name the numbers are values.
    numbers = LabelMap({"x": (2,), "y": (1,)})
    np.testing.assert_array_equal(read_mask(mask, item, numbers).array, np.array([0, 2, 1], np.uint8)[truth])
    with pytest.raises(MaskError, match="the values 2"):
        read_mask(mask, item, LabelMap({"liver": (5,)}))


def test_a_seg_of_another_grid_is_refused(tmp_path):
    item = series(tmp_path)
    write_seg(tmp_path / "m" / "a.dcm", np.ones(item.shape, np.uint8), item, ONE)
    matrix = np.array(item.affine)
    matrix[:3, 3] += matrix[:3, 0] * 0.4
    moved = replace(item, affine=tuple(tuple(row) for row in matrix.tolist()))
    found = reorder(only(tmp_path / "m"), moved)
    assert isinstance(found, Mismatch)
    assert "its voxels lie 0.4 voxels beside the scan's" in found.detail
    shorter = replace(item, shape=(4, 7, 8))
    with pytest.raises(MaskError, match="beyond the scan") as caught:
        read_mask(only(tmp_path / "m"), shorter, ONE)
    assert caught.value.code == "mask_unreadable"


def test_overlapping_segments_are_counted(tmp_path):
    item = series(tmp_path)
    sources = [pydicom.dcmread(item.root / f) for f in item.files]
    for source, keyword in product(
        sources, ("PatientBirthDate", "PatientSex", "AccessionNumber", "StudyDate", "StudyTime")
    ):
        setattr(source, keyword, "")
    array = np.zeros((*item.shape, 2), bool)
    array[2, 2:5, 2:5, 0] = True
    array[2, 4:7, 4:7, 1] = True
    kind = highdicom.seg.SegmentDescription
    code = pydicom.sr.coding.Code("85756007", "SCT", "Tissue")
    descriptions = [kind(n, label, code, code, "MANUAL") for n, label in ((1, "liver"), (2, "tumour"))]
    seg = highdicom.seg.Segmentation(
        sources, array, "BINARY", descriptions, "1.2.3.77", 1, "1.2.3.78", 1, "m", "m", "1", "1"
    )
    (tmp_path / "m").mkdir()
    seg.save_as(tmp_path / "m" / "a.dcm")
    found = read_mask(only(tmp_path / "m"), item, LabelMap({"liver": (1,), "tumour": (2,)}))
    assert found.overlap == 1
    assert (found.array == 1).sum() == 8
    assert (found.array == 2).sum() == 9
