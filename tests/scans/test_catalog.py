from __future__ import annotations

import gzip
import os

import numpy as np
import pydicom
import pytest

from medtl.errors import DataError
from medtl.scans.catalog import scan_folder
from medtl.scans.items import CODES, Rejection
from medtl.scans.volume import read_volume
from tests.scans.make_scans import random_image, write_dicom, write_image, write_nifti, write_series

VOLUME = np.arange(4 * 6 * 8, dtype=np.int16).reshape(4, 6, 8)


def codes(catalog):
    return {rejection.path: rejection.code for rejection in catalog.rejections}


def test_every_file_is_in_an_item_or_a_rejection(tmp_path):
    write_series(tmp_path / "a", VOLUME)
    write_nifti(tmp_path / "b.nii.gz", VOLUME)
    write_image(tmp_path / "c.png", random_image(1))
    write_image(tmp_path / "masks" / "c.png", random_image(2))
    (tmp_path / "labels.csv").write_text("case,label\n")
    (tmp_path / "old.zip").write_bytes(b"PK")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    catalog = scan_folder(tmp_path)
    found = [f for item in catalog.items for f in item.files] + [
        f for r in catalog.rejections for f in r.files
    ]
    on_disk = [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()]
    assert sorted(found) == sorted(on_disk)
    assert catalog.num_files == len(on_disk) == 10
    assert {item.name: item.kind for item in catalog.items} == {"a": "dicom", "b": "nifti", "c": "image"}
    assert codes(catalog) == {
        "masks/c.png": "mask",
        "labels.csv": "not_a_scan",
        "old.zip": "unsupported_format",
        ".DS_Store": "not_a_scan",
    }
    assert all(r.detail and r.next_step for r in catalog.rejections)


def test_headers_tell_shape_modality_and_domain(tmp_path):
    write_series(
        tmp_path / "x",
        VOLUME,
        modality="CT",
        Manufacturer="ACME",
        ConvolutionKernel="B20f",
        patient_id="77-12",
    )
    (item,) = scan_folder(tmp_path).items
    assert (item.shape, item.channels, item.modality, item.patient_id) == ((4, 6, 8), 1, "CT", "77-12")
    assert item.header["manufacturer"] == "ACME"
    assert item.header["kernel"] == "B20f"


def test_names(tmp_path):
    write_dicom(tmp_path / "ct.001.dcm", VOLUME[0], series="1.1")
    write_dicom(tmp_path / "IM7", VOLUME[1], series="1.2")
    write_series(tmp_path / "one", VOLUME, series="1.3")
    write_series(tmp_path / "two", VOLUME, series="1.4", SeriesNumber=4, names=[f"a{k}" for k in range(4)])
    write_series(
        tmp_path / "two", VOLUME + 1, series="1.5", SeriesNumber=5, names=[f"b{k}" for k in range(4)]
    )
    write_image(tmp_path / "p" / "1.png", random_image(1))
    write_image(tmp_path / "q" / "1.png", random_image(2))
    names = sorted(item.name for item in scan_folder(tmp_path).items)
    assert names == ["IM7", "ct.001", "one", "p/1", "q/1", "two_4", "two_5"]


def test_echoes_and_kernels_of_one_series_are_separate_volumes_with_separate_names(tmp_path):
    write_series(tmp_path / "x", VOLUME, EchoTime=10.0)
    write_series(tmp_path / "x", VOLUME + 9, EchoTime=90.0, names=[f"b{k}" for k in range(4)])
    items = scan_folder(tmp_path).items
    assert [item.shape for item in items] == [(4, 6, 8)] * 2
    assert [item.name for item in items] == ["x", "x_2"]


def test_a_series_in_the_scanned_folder_is_named_like_it(tmp_path):
    write_series(tmp_path / "case7", VOLUME)
    (item,) = scan_folder(tmp_path / "case7").items
    assert item.name == "case7"


@pytest.mark.parametrize("syntax", ["explicit", "implicit", "big", "rle"])
def test_truncated_dicom_is_found_without_reading_pixels(tmp_path, syntax, monkeypatch):
    good = write_dicom(tmp_path / "good.dcm", random_image(1, (64, 64)), series="1.1", syntax=syntax)
    bad = write_dicom(tmp_path / "bad.dcm", random_image(2, (64, 64)), series="1.2", syntax=syntax)
    bad.write_bytes(bad.read_bytes()[:-900])
    monkeypatch.setattr(pydicom.dataset.Dataset, "pixel_array", property(lambda self: pytest.fail("decoded")))
    catalog = scan_folder(tmp_path)
    assert [item.name for item in catalog.items] == ["good"]
    (rejection,) = catalog.rejections
    assert (rejection.path, rejection.code) == ("bad.dcm", "truncated")
    assert "bytes" in rejection.detail
    assert good.exists()


def test_dicom_cut_in_its_header_or_empty(tmp_path):
    path = write_dicom(tmp_path / "cut.dcm", VOLUME[0])
    path.write_bytes(path.read_bytes()[:700])
    (tmp_path / "empty.dcm").write_bytes(b"")
    (tmp_path / "noise.dcm").write_bytes(np.random.default_rng(0).bytes(5000))
    found = codes(scan_folder(tmp_path))
    assert found["empty.dcm"] == "truncated"
    assert found["noise.dcm"] == "unreadable"
    assert found["cut.dcm"] in ("truncated", "unreadable", "no_pixels")


@pytest.mark.parametrize("place", [0, 1, 3])
def test_a_series_with_one_truncated_slice_is_incomplete(tmp_path, place):
    paths = write_series(tmp_path / "x", VOLUME)
    write_series(tmp_path / "y", VOLUME + 1, series="1.9")
    paths[place].write_bytes(paths[place].read_bytes()[:-10])
    catalog = scan_folder(tmp_path)
    assert [item.name for item in catalog.items] == ["y"]
    by_code = {r.code: r for r in catalog.rejections}
    assert by_code["truncated"].path == f"x/{place:03d}.dcm"
    rest = by_code["missing_slices" if place == 1 else "incomplete_series"]
    assert "1 of the 4 files of this series cannot be read" in rest.detail
    assert len(rest.files) == 3


def test_suffixes_in_capitals(tmp_path):
    write_nifti(tmp_path / "a.nii.gz", VOLUME).rename(tmp_path / "A.NII.GZ")
    write_image(tmp_path / "b.png", random_image(1)).rename(tmp_path / "B.PNG")
    catalog = scan_folder(tmp_path)
    assert not catalog.rejections
    for item, kind in zip(catalog.items, ("nifti", "image"), strict=True):
        assert (item.name, item.kind) == (item.files[0][0], kind)
        assert read_volume(item).array.shape[:3] == item.shape


def test_truncated_nifti_and_images(tmp_path):
    volume = random_image(1, (30, 30, 30))
    for name in ("a.nii", "b.nii.gz"):
        path = write_nifti(tmp_path / name, volume)
        path.write_bytes(path.read_bytes()[:-500])
    for name in ("c.png", "d.jpg"):
        path = write_image(tmp_path / name, random_image(2, (60, 60, 3)))
        path.write_bytes(path.read_bytes()[:-300])
    assert set(codes(scan_folder(tmp_path)).values()) == {"truncated"}


def test_gzip_of_several_members_is_whole(tmp_path):
    data = write_nifti(tmp_path / "x.nii", VOLUME).read_bytes()
    (tmp_path / "x.nii").unlink()
    (tmp_path / "y.nii.gz").write_bytes(gzip.compress(data[:400]) + gzip.compress(data[400:]))
    (item,) = scan_folder(tmp_path).items
    np.testing.assert_array_equal(read_volume(item).array, VOLUME)


def test_duplicates_keep_one(tmp_path):
    for name in ("a.dcm", "b.dcm"):
        write_dicom(tmp_path / name, VOLUME[0], sop="1.2.9")
    (tmp_path / "c.png").write_bytes(write_image(tmp_path / "b.png", random_image(1)).read_bytes())
    write_image(tmp_path / "d.png", random_image(3))
    catalog = scan_folder(tmp_path)
    assert [item.name for item in catalog.items] == ["a", "b", "d"]
    assert {(r.path, r.code, r.same_as) for r in catalog.rejections} == {
        ("b.dcm", "duplicate", "a.dcm"),
        ("c.png", "duplicate", "b.png"),
    }


def test_a_truncated_copy_does_not_displace_the_whole_file(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", VOLUME[0], sop="1.2.9")
    (tmp_path / "b.dcm").write_bytes(path.read_bytes())
    path.write_bytes(path.read_bytes()[:-20])
    catalog = scan_folder(tmp_path)
    assert [item.name for item in catalog.items] == ["b"]
    assert codes(catalog) == {"a.dcm": "truncated"}


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"sop_class": "SC"}, "secondary_capture"),
        ({"sop_class": "SEG"}, "mask"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]}, "mosaic"),
        ({"NumberOfFrames": 2}, "multi_frame"),
        ({"orientation": (1, 0, 0, 0.5, 0.5, 0)}, "bad_affine"),
        ({"BitsAllocated": 12}, "bad_pixels"),
    ],
)
def test_objects_that_are_no_volume(tmp_path, more, code):
    write_dicom(tmp_path / "x.dcm", VOLUME[0], **more)
    (rejection,) = scan_folder(tmp_path).rejections
    assert rejection.code == code


def test_reports_and_unknown_codecs(tmp_path):
    write_dicom(tmp_path / "sr.dcm", None, sop_class="SR")
    path = write_dicom(tmp_path / "x.dcm", VOLUME[0])
    dataset = pydicom.dcmread(path)
    dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8abcd"])
    dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"  # MPEG-2
    dataset.save_as(path)
    found = codes(scan_folder(tmp_path))
    assert found == {"sr.dcm": "no_pixels", "x.dcm": "no_decoder"}


def test_converted_radiographs_are_images_although_secondary_captures(tmp_path):
    for name in ("a.dcm", "b.dcm"):
        write_dicom(
            tmp_path / name, VOLUME[0], modality="CR", sop_class="SC", position=None, orientation=None
        )
    items = scan_folder(tmp_path).items
    assert [(item.name, item.shape, item.affine) for item in items] == [
        ("a", (1, 6, 8), None),
        ("b", (1, 6, 8), None),
    ]


def test_mixed_orientation_missing_slices_and_no_geometry(tmp_path):
    write_series(tmp_path / "mixed", VOLUME, series="1.1")
    write_dicom(tmp_path / "mixed" / "x.dcm", VOLUME[0] + 7, series="1.1", orientation=(0, 1, 0, 0, 0, -1))
    write_series(tmp_path / "gap", VOLUME, series="1.2", skip=[1])
    write_series(tmp_path / "lost", VOLUME, series="1.3")
    write_dicom(tmp_path / "lost" / "x.dcm", VOLUME[0] + 3, series="1.3", position=None)
    catalog = scan_folder(tmp_path)
    assert catalog.items == ()
    assert codes(catalog) == {"mixed": "mixed_orientation", "gap": "missing_slices", "lost": "no_geometry"}


def test_nifti_of_several_times_or_without_a_sane_matrix(tmp_path):
    write_nifti(tmp_path / "t.nii", np.zeros((2, 4, 5, 6), np.int16))
    write_nifti(tmp_path / "s.nii", VOLUME, np.diag([0.0, 1, 1, 1]))
    write_nifti(tmp_path / "ok.nii", np.ones((1, 4, 5, 6), np.int16))
    catalog = scan_folder(tmp_path)
    assert codes(catalog) == {"t.nii": "four_d", "s.nii": "bad_affine"}
    assert catalog.items[0].shape == (4, 5, 6)


def test_identifiers_stay_out_of_names_paths_reprs_and_rejections(tmp_path):
    folder = tmp_path / "Doe_Jane" / "MRN-448812"
    write_series(folder / "t1", VOLUME, patient_id="MRN448812", patient_name="Doe^Jane")
    write_dicom(folder / "MRN448812_x.dcm", VOLUME[0], series="1.7", patient_id="MRN448812", sop_class="SC")
    (folder / "report_mrn_448812.pdf").write_bytes(b"x")
    (folder / "broken.png").write_bytes(b"x")
    catalog = scan_folder(tmp_path)
    text = repr(catalog).lower()
    assert len(catalog.items) == 1
    assert len(catalog.rejections) == 3
    for secret in ("doe", "jane", "448812", str(tmp_path).lower()):
        assert secret not in text
    (item,) = catalog.items
    assert item.name == "t1"
    assert item.path.endswith("/t1")


def test_a_file_named_like_its_patient_gets_a_stable_hash(tmp_path):
    write_dicom(tmp_path / "PAT1234.dcm", VOLUME[0], patient_id="PAT1234")
    write_dicom(tmp_path / "ct_001.dcm", VOLUME[1], series="1.8", patient_id="Q9876")
    first, second = scan_folder(tmp_path), scan_folder(tmp_path)
    names = [item.name for item in first.items]
    assert names == [item.name for item in second.items]
    assert "ct_001" in names
    assert not any("1234" in name for name in names)


def test_fingerprint_follows_the_files(tmp_path):
    path = write_image(tmp_path / "a" / "x.png", random_image(1))
    other = tmp_path / "b" / "x.png"
    other.parent.mkdir()
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    (item,), (twin,) = scan_folder(tmp_path / "a").items, scan_folder(tmp_path / "b").items
    before = item.fingerprint
    assert before == item.fingerprint
    assert before != twin.fingerprint
    os.utime(path, ns=(1, 1))
    assert item.fingerprint != before


def test_folder_faults(tmp_path):
    with pytest.raises(DataError, match="no folder 'nowhere'") as caught:
        scan_folder(tmp_path / "nowhere")
    assert str(tmp_path) not in str(caught.value)
    (tmp_path / "x.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="unpack"):
        scan_folder(tmp_path / "x.zip")
    (tmp_path / "none").mkdir()
    assert scan_folder(tmp_path / "none").num_files == 0


def test_one_file_and_links(tmp_path):
    write_image(tmp_path / "real" / "x.png", random_image(1))
    assert scan_folder(tmp_path / "real" / "x.png").items[0].name == "x"
    (tmp_path / "real" / "loop").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "gone.png").symlink_to(tmp_path / "nothing.png")
    catalog = scan_folder(tmp_path / "real")
    assert [item.name for item in catalog.items] == ["x"]
    assert codes(catalog) == {"gone.png": "unreadable"}


def test_damaged_files_never_crash_a_scan(tmp_path):
    """Bytes changed and files cut at random: an item or a rejection, and items read or raise DataError."""
    sources = [
        write_dicom(tmp_path / "s" / "a.dcm", random_image(1, (12, 12)), padding=(0, "US")),
        write_dicom(tmp_path / "s" / "b.dcm", VOLUME[0], syntax="rle", modality="CT", intercept=-1024),
        write_nifti(tmp_path / "s" / "c.nii", VOLUME),
        write_nifti(tmp_path / "s" / "d.nii.gz", VOLUME),
        *(write_image(tmp_path / "s" / f"e{s}", random_image(2)) for s in (".png", ".jpg", ".tif", ".bmp")),
    ]
    rng = np.random.default_rng(0)
    outcomes = set()
    for number in range(400):
        source = sources[number % len(sources)]
        data = bytearray(source.read_bytes())
        if rng.random() < 0.3:
            del data[int(rng.integers(len(data))) :]
        for place in rng.integers(0, max(1, len(data)), 4 if data else 0):
            data[place] = int(rng.integers(256))
        path = tmp_path / "t" / source.name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        catalog = scan_folder(path)
        assert catalog.num_files == 1
        outcomes |= {rejection.code for rejection in catalog.rejections}
        for item in catalog.items:
            try:
                read_volume(item)
                outcomes.add("read")
            except DataError:
                outcomes.add("refused")
    assert {"read", "refused", "truncated", "unreadable"} <= outcomes


def test_nifti_units_and_unknown_unit_codes(tmp_path):
    path = write_nifti(tmp_path / "m.nii", VOLUME, np.diag([0.001, 0.001, 0.002, 1]))
    data = bytearray(path.read_bytes())
    data[123] = 1  # metres
    path.write_bytes(data)
    data[123] = 0x97  # codes that the standard does not define
    (tmp_path / "u.nii").write_bytes(data)
    items = scan_folder(tmp_path).items
    assert items[0].affine[2][2] == pytest.approx(2)
    assert items[1].affine[2][2] == pytest.approx(0.002)


def test_codes_are_closed():
    with pytest.raises(ValueError, match="no rejection code"):
        Rejection("x", "because", "", "")
    assert all(text.endswith(".") for text in CODES.values())
