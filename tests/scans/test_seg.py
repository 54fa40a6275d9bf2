from __future__ import annotations

import tempfile
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813

from medtl.errors import DataError
from medtl.labelmap import VOID, LabelMap
from medtl.scans.catalog import scan_folder
from medtl.scans.quiet import quiet_readers
from medtl.scans.readers.dicom_seg import read_seg, read_seg_header, write_seg
from tests.scans.make_scans import write_dicom, write_series

LABELS = LabelMap({"liver": (10,), "lesion": (3,)})
SERIES = {"series": "1.2.3.1", "FrameOfReferenceUID": "1.2.3.9", "StudyID": "7", "SeriesDescription": "t1"}


def rotation(seed: int) -> np.ndarray:
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


def make_series(folder, shape=(6, 9, 7), *, seed=1, step=3.5, shear=0.0, **more):
    """An oblique, anisotropic series whose slices were stored against their positions, and its item."""
    turn = rotation(seed)
    orientation = (*turn[:, 0], *turn[:, 1])
    vector = turn[:, 2] * -step + turn[:, 1] * shear  # against the normal: reversed order
    volume = np.random.default_rng(seed).integers(0, 4000, shape).astype(np.uint16)
    more = {**SERIES, "spacing": (0.8, 1.3), "patient_id": "77", **more}
    write_series(folder, volume, orientation=orientation, first=(-40, 25, 110), step=vector, **more)
    (item,) = scan_folder(folder).items
    return item


def make_mask(shape, seed=0, classes=3):
    """Noise in a box that touches no first or last slice, so that a SEG leaves frames out."""
    mask = np.zeros(shape, np.uint8)
    inner = tuple(slice(1, -1) if n > 2 else slice(None) for n in shape)
    mask[inner] = np.random.default_rng(seed).integers(0, classes, mask[inner].shape)
    return mask


def on_series(path, item):
    """The SEG's segments on the scan's own grid by SimpleITK alone: (k, j, i) class numbers and the series."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(item.root / f) for f in item.files])
    series = reader.Execute()
    dataset = pydicom.dcmread(path)
    frames = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    result = np.zeros(series.GetSize()[::-1], np.uint8)
    for pixels, group in zip(frames, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        position = [float(v) for v in group.PlanePositionSequence[0].ImagePositionPatient]
        index = series.TransformPhysicalPointToContinuousIndex(position)
        np.testing.assert_allclose(index, np.rint(index), atol=1e-3)
        assert (round(index[0]), round(index[1])) == (0, 0)
        shared = dataset.SharedFunctionalGroupsSequence[0]  # there if there is one segment
        identified = group if "SegmentIdentificationSequence" in group else shared
        number = identified.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        result[round(index[2])][pixels > 0] = number
    return result, series


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_mask_of_an_oblique_anisotropic_reversed_series_overlays_in_simpleitk_and_highdicom(tmp_path, seed):
    item = make_series(tmp_path / "scan", seed=seed)
    mask = make_mask(item.shape, seed)
    path = write_seg(tmp_path / "mask.dcm", mask, item, LABELS)

    found, series = on_series(path, item)
    np.testing.assert_array_equal(found, mask)
    # The same voxel is at the same place for SimpleITK as it is for medtl.
    place = np.array(item.affine) @ [4, 2, 3, 1] * [-1, -1, 1, 1]
    np.testing.assert_allclose(series.TransformIndexToPhysicalPoint((4, 2, 3)), place[:3], atol=1e-4)

    segmentation = highdicom.seg.segread(path)
    sources = [pydicom.dcmread(item.root / f) for f in item.files]
    by_slice = segmentation.get_pixels_by_source_instance(
        [s.SOPInstanceUID for s in sources],
        combine_segments=True,
        assert_missing_frames_are_empty=True,
        ignore_spatial_locations=True,
    )
    np.testing.assert_array_equal(by_slice, mask)
    volume = segmentation.get_volume(combine_segments=True)
    matched = volume.match_geometry(highdicom.get_volume_from_series(sources).get_geometry())
    scan = highdicom.get_volume_from_series(sources)
    order = [
        int(np.argmin([np.abs(scan.array[k] - s.pixel_array).sum() for k in range(len(sources))]))
        for s in sources
    ]
    np.testing.assert_array_equal(matched.array[order], mask)


def test_resampled_onto_the_series_by_simpleitk_nothing_moves(tmp_path):
    # It stacks what frames it finds, so none may be left out in between; and 63 bits a frame fill no byte.
    item = make_series(tmp_path / "scan", (16, 9, 7), seed=4)
    mask = make_mask(item.shape, 4, classes=2)
    mask[4:7] = mask[11] = 0
    mask[7, 8, 6] = 1
    path = write_seg(tmp_path / "mask.dcm", mask, item, LabelMap({"liver": (1,)}))
    _, series = on_series(path, item)
    moved = sitk.Resample(sitk.ReadImage(str(path)), series, sitk.Transform(), sitk.sitkNearestNeighbor)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(moved) > 0, mask > 0)


@pytest.mark.parametrize("shear", [0.0, 1.2])
def test_own_reader_by_itself_and_onto_the_scan(tmp_path, shear):
    item = make_series(tmp_path / "scan", seed=5, shear=shear)
    mask = make_mask(item.shape, 5)
    path = write_seg(tmp_path / "mask.dcm", mask, item, LABELS)

    header = read_seg_header(path)
    assert header.segments == {1: "liver", 2: "lesion"}
    assert (header.series_uid, header.frame_of_reference) == ("1.2.3.1", "1.2.3.9")
    assert header.shape == (4, 9, 7)
    shift = np.linalg.inv(np.array(item.affine)) @ np.array(header.affine)
    expected = np.eye(4)
    expected[2, 3] = 1  # the first slice is empty and left out
    np.testing.assert_allclose(shift, expected, atol=1e-4)

    alone, overlap = read_seg(path)
    np.testing.assert_array_equal(alone, mask[1:-1])
    assert overlap == 0
    placed, _ = read_seg(path, item.shape, item.affine)
    np.testing.assert_array_equal(placed, mask)
    assert "1.2.3.1" not in repr(header)


@pytest.mark.parametrize("seed", range(6))
def test_onto_a_grid_of_other_axes(tmp_path, seed):
    """A scan stored as NIfTI has other axes than the SEG made on its DICOM: permuted and mirrored."""
    item = make_series(tmp_path / "scan", seed=6)
    mask = make_mask(item.shape, 6)
    path = write_seg(tmp_path / "mask.dcm", mask, item, LABELS)
    rng = np.random.default_rng(seed)
    order, signs = rng.permutation(3), rng.choice([-1, 1], 3)
    change = np.eye(4)
    change[:3, :3] = np.eye(3)[:, order] * signs  # new voxel axis n runs along old axis order[n]
    sizes = np.array(item.shape[::-1])
    change[:3, 3] = [sizes[a] - 1 if (change[a, :3] < 0).any() else 0 for a in range(3)]
    affine = tuple(map(tuple, np.array(item.affine) @ change))
    new = (
        mask.transpose(2, 1, 0)
        .transpose(order)[tuple(slice(None, None, s) for s in signs)]
        .transpose(2, 1, 0)
    )
    placed, _ = read_seg(path, new.shape, affine)
    np.testing.assert_array_equal(placed, new)


def test_attributes_that_the_standard_wants(tmp_path):
    item = make_series(tmp_path / "scan", patient_name="Doe^J", AccessionNumber="A1")
    mask = make_mask(item.shape)
    mask[2, 0, 0] = VOID
    path = write_seg(tmp_path / "mask.dcm", mask, item, LABELS, algorithm="dann 1.2")
    dataset = pydicom.dcmread(path)
    assert (dataset.PatientID, str(dataset.PatientName), dataset.AccessionNumber) == ("77", "Doe^J", "A1")
    assert (dataset.StudyInstanceUID, dataset.FrameOfReferenceUID) == ("1.2.3", "1.2.3.9")
    assert dataset.SeriesInstanceUID != "1.2.3.1"
    assert dataset.SegmentationType == "BINARY"
    first = dataset.SegmentSequence[0]
    assert (first.SegmentLabel, first.SegmentAlgorithmType) == ("liver", "AUTOMATIC")
    identified = first.SegmentationAlgorithmIdentificationSequence[0]
    assert (identified.AlgorithmName, identified.AlgorithmVersion) == ("dann", "1.2")
    assert first.SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator == "SCT"
    assert dataset.NumberOfFrames == 8  # two structures on the four slices that hold something
    placed, _ = read_seg(path, item.shape, item.affine)
    np.testing.assert_array_equal(placed, np.where(mask == VOID, 0, mask))
    (reference,) = dataset.ReferencedSeriesSequence
    assert reference.SeriesInstanceUID == "1.2.3.1"


def test_one_slice_of_several_and_a_single_image(tmp_path):
    item = make_series(tmp_path / "scan")
    mask = np.zeros(item.shape, np.uint8)
    mask[4, 2, 3] = 2
    path = write_seg(tmp_path / "mask.dcm", mask, item, LABELS)
    assert read_seg_header(path).shape == (4, 9, 7)  # 2 x 63 bits a slice: four slices fill bytes
    np.testing.assert_array_equal(read_seg(path, item.shape, item.affine)[0], mask)

    write_dicom(
        tmp_path / "cr" / "a.dcm", np.ones((5, 4), np.uint16), modality="CR", position=None, orientation=None
    )
    (image,) = scan_folder(tmp_path / "cr").items
    mask = np.zeros((1, 5, 4), np.uint8)
    mask[0, 1, 2], mask[0, 3, 3] = 1, 2
    path = write_seg(tmp_path / "cr.dcm", mask, image, LABELS)
    assert read_seg_header(path).affine is None
    np.testing.assert_array_equal(read_seg(path)[0], mask)


def test_what_exports_get_wrong_does_not_reach_the_object(tmp_path):
    """A time of the old form, no thickness, and a distance of slices that is not that of their positions."""
    wrong = {"StudyTime": "11:20:00", "StudyDate": "2020.01.02", "PatientSex": "U", "thickness": None}
    with pytest.warns(UserWarning, match="Invalid value"):
        item = make_series(tmp_path / "scan", SpacingBetweenSlices=99, **wrong)
    mask = make_mask(item.shape)
    path = write_seg(tmp_path / "mask.dcm", mask, item, LABELS)
    measures = pydicom.dcmread(path).SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert float(measures.SpacingBetweenSlices) == pytest.approx(3.5, abs=1e-4)
    assert float(measures.SliceThickness) == pytest.approx(3.5, abs=1e-4)
    assert highdicom.seg.segread(path).get_volume(combine_segments=True).spacing[0] == pytest.approx(
        3.5, abs=1e-4
    )


@pytest.mark.parametrize("keyword", ["FrameOfReferenceUID", "PixelSpacing"])
def test_a_series_to_which_no_object_can_refer(tmp_path, keyword):
    item = make_series(tmp_path / "scan")
    for file in item.files:
        altered(item.root / file, lambda dataset: delattr(dataset, keyword))
    with pytest.raises(DataError, match=f"its series has no {keyword}"):
        write_seg(tmp_path / "mask.dcm", make_mask(item.shape), item, LABELS)


def test_an_empty_mask_is_an_object_that_readers_accept(tmp_path, caplog):
    item = make_series(tmp_path / "scan")
    path = write_seg(tmp_path / "mask.dcm", np.zeros(item.shape, np.uint8), item, LABELS)
    array, overlap = read_seg(path)
    assert array.shape == item.shape
    assert not array.any()
    assert overlap == 0
    assert not highdicom.seg.segread(path).get_volume(combine_segments=True).array.any()
    assert not caplog.records


def foreign(path, item, array, kind="BINARY", **more):
    """A SEG as another program would write it with highdicom."""
    described = [
        highdicom.seg.SegmentDescription(
            number,
            f"s{number}",
            pydicom.sr.coding.Code("85756007", "SCT", "Tissue"),
            pydicom.sr.coding.Code("85756007", "SCT", "Tissue"),
            "MANUAL",
        )
        for number in range(1, more.pop("segments", array.shape[-1]) + 1)
    ]
    sources = [pydicom.dcmread(item.root / f) for f in item.files]
    for source in sources:
        source.PatientBirthDate = source.PatientSex = source.AccessionNumber = ""
        source.StudyDate = source.StudyTime = None
    segmentation = highdicom.seg.Segmentation(
        sources, array, kind, described, highdicom.UID(), 2, highdicom.UID(), 1, "x", "y", "1", "z", **more
    )
    segmentation.save_as(path)
    return segmentation


def test_overlapping_segments_are_counted(tmp_path):
    item = make_series(tmp_path / "scan")
    array = np.zeros((*item.shape, 2), np.uint8)
    array[2, 1:5, 1:5, 0] = array[2, 3:7, 3:7, 1] = 1
    foreign(tmp_path / "a.dcm", item, array)
    found, overlap = read_seg(tmp_path / "a.dcm")
    assert overlap == 4
    np.testing.assert_array_equal(found[0], np.where(array[2, ..., 1], 2, array[2, ..., 0]))


def test_fractional_segments_count_from_half(tmp_path):
    item = make_series(tmp_path / "scan")
    array = np.random.default_rng(0).random((*item.shape, 1))
    foreign(tmp_path / "a.dcm", item, array, "FRACTIONAL", max_fractional_value=200)
    header = read_seg_header(tmp_path / "a.dcm")
    assert "half" in header.note
    np.testing.assert_array_equal(
        read_seg(tmp_path / "a.dcm", item.shape, item.affine)[0], np.rint(array[..., 0] * 200) >= 100
    )


@pytest.mark.parametrize("segments", [2, 300])
def test_label_map_segmentation(tmp_path, segments):
    item = make_series(tmp_path / "scan")
    array = make_mask(item.shape).astype(np.uint16)
    array[array == 2] = segments
    foreign(tmp_path / "a.dcm", item, array, "LABELMAP", segments=segments)
    header = read_seg_header(tmp_path / "a.dcm")
    assert (header.kind, len(header.segments), 0 in header.segments) == ("LABELMAP", segments, False)
    found, overlap = read_seg(tmp_path / "a.dcm", item.shape, item.affine)
    np.testing.assert_array_equal(found, array)
    assert overlap == 0


def test_grids_that_do_not_fit_are_refused_with_numbers(tmp_path):
    item = make_series(tmp_path / "scan")
    path = write_seg(tmp_path / "mask.dcm", make_mask(item.shape), item, LABELS)
    wider = np.array(item.affine)
    wider[:3, 0] *= 1.1
    with pytest.raises(DataError, match=r"a row is 1 and a column 0\.909 voxels"):
        read_seg(path, item.shape, tuple(map(tuple, wider)))
    shifted = np.array(item.affine)
    shifted[:3, 3] += 0.4 * shifted[:3, 1]
    with pytest.raises(DataError, match=r"up to 0\.4 voxels off"):
        read_seg(path, item.shape, tuple(map(tuple, shifted)))
    with pytest.raises(DataError, match="lie beyond the scan of 3 x 9 x 7"):
        read_seg(path, (3, 9, 7), item.affine)
    with pytest.raises(DataError, match="Only one of a DICOM SEG and its scan"):
        read_seg(path, (1, 9, 7), None)


def altered(path, change):
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(path)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: setattr(d, "Rows", 60000) or setattr(d, "NumberOfFrames", 60000), "size limit"),
        (lambda d: setattr(d, "NumberOfFrames", 3), "announces 3 frames and describes 8"),
        (lambda d: setattr(d, "PixelData", d.PixelData[:20]), "cannot be decoded"),
        (lambda d: setattr(d, "SOPClassUID", "1.2.840.10008.5.1.4.1.1.4"), "not a DICOM segmentation"),
        (lambda d: delattr(d, "Rows"), "not described as they must be"),
        (lambda d: setattr(d, "TotalPixelMatrixRows", 4), "tiled"),
        (
            lambda d: [delattr(g, "PlanePositionSequence") for g in d.PerFrameFunctionalGroupsSequence],
            "no position",
        ),
        (
            lambda d: setattr(
                d.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0],
                "ImagePositionPatient",
                [0, 0, 1e9],
            ),
            "size limit|not on a regular grid",
        ),
    ],
)
def test_damaged_and_hostile_files(tmp_path, change, message):
    item = make_series(tmp_path / "scan", patient_name="Doe^J")
    path = altered(write_seg(tmp_path / "m.dcm", make_mask(item.shape), item, LABELS), change)
    with pytest.raises(DataError, match=message) as caught:
        read_seg(path)
    assert "Doe" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(DataError, match="cannot be opened"):
        read_seg_header(tmp_path / "none.dcm")
    (tmp_path / "text.dcm").write_text("not DICOM at all" * 50)
    with pytest.raises(DataError, match=r"not a DICOM segmentation|cannot be parsed"):
        read_seg_header(tmp_path / "text.dcm")


def test_what_cannot_be_written(tmp_path):
    item = make_series(tmp_path / "scan")
    with pytest.raises(DataError, match="The mask has 2 x 2 x 2 voxels, the scan 'scan' 6 x 9 x 7"):
        write_seg(tmp_path / "m.dcm", np.zeros((2, 2, 2), np.uint8), item, LABELS)
    with pytest.raises(DataError, match="holds class 7; there are 3"):
        write_seg(tmp_path / "m.dcm", np.full(item.shape, 7, np.uint8), item, LABELS)
    (item.root / item.files[2]).unlink()
    with pytest.raises(DataError, match="cannot be read"):
        write_seg(tmp_path / "m.dcm", make_mask(item.shape), item, LABELS)
    assert not (tmp_path / "m.dcm").exists()


@pytest.mark.realdata
def test_slices_of_two_vendors(realdata):
    """Published CT slices: the object is read back by highdicom and by medtl, voxel for voxel."""
    for vendor in ("ge", "siemens"):
        for number, item in enumerate(scan_folder(realdata / "ct_contrast" / vendor).items):
            mask = np.random.default_rng(number).integers(0, 3, item.shape).astype(np.uint8)
            with tempfile.TemporaryDirectory() as folder:
                path = write_seg(Path(folder) / "a.dcm", mask, item, LABELS)
                np.testing.assert_array_equal(read_seg(path, item.shape, item.affine)[0], mask)
                with quiet_readers():
                    uids = [str(pydicom.dcmread(item.root / f).SOPInstanceUID) for f in item.files]
                    found = highdicom.seg.segread(path).get_pixels_by_source_instance(
                        uids, combine_segments=True
                    )
                np.testing.assert_array_equal(found, mask)
