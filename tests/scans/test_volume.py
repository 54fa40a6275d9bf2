from __future__ import annotations

import logging
import threading
import warnings

import numpy as np
import pydicom
import pytest
from PIL import Image

from medtl.errors import DataError
from medtl.scans import volume as volume_module
from medtl.scans.catalog import scan_folder
from medtl.scans.quiet import quiet_readers
from medtl.scans.volume import read_volume
from tests.scans.make_scans import random_image, write_dicom, write_image, write_nifti, write_series

SLICES = np.arange(3 * 4 * 5, dtype=np.uint16).reshape(3, 4, 5)


def read(folder):
    (item,) = scan_folder(folder).items
    return read_volume(item)


def test_ct_becomes_hounsfield_units_as_int16(tmp_path):
    write_series(tmp_path, SLICES, modality="CT", slope=1, intercept=-1024, bits_stored=12)
    volume = read(tmp_path)
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array, SLICES.astype(int) - 1024)
    assert volume.meta["units"] == "HU"
    assert volume.mask is None


def test_each_slice_has_its_own_rescale(tmp_path):
    write_series(tmp_path, SLICES, slope=[1.0, 2.0, 0.5], intercept=[0.0, 10.0, -3.25])
    volume = read(tmp_path)
    expected = SLICES * np.array([1, 2, 0.5])[:, None, None] + np.array([0, 10, -3.25])[:, None, None]
    assert volume.array.dtype == np.float32
    np.testing.assert_allclose(volume.array, expected)


def test_types_hold_every_value_the_header_allows(tmp_path):
    write_dicom(tmp_path / "a" / "x.dcm", random_image(1, (4, 5)))
    write_dicom(tmp_path / "b" / "x.dcm", np.full((4, 5), 65535, np.uint16))
    write_dicom(tmp_path / "c" / "x.dcm", np.full((4, 5), -32768, np.int16))
    assert read(tmp_path / "a").array.dtype == np.uint8
    wide = read(tmp_path / "b").array
    assert (wide.dtype, wide.max()) == (np.float32, 65535)
    assert read(tmp_path / "c").array.min() == -32768


def test_monochrome1_is_inverted_once_and_recorded(tmp_path):
    stored = np.array([[0, 1], [4000, 4095]], np.uint16)
    for name, photometric in (("a", "MONOCHROME1"), ("b", "MONOCHROME2")):
        write_dicom(tmp_path / name / "x.dcm", stored, photometric=photometric, bits_stored=12, modality="CR")
    inverted, plain = read(tmp_path / "a"), read(tmp_path / "b")
    np.testing.assert_array_equal(inverted.array[0], 4095 - stored.astype(int))
    np.testing.assert_array_equal(plain.array[0], stored)
    assert inverted.meta["inverted"] is True
    assert plain.meta["inverted"] is False


@pytest.mark.parametrize(("value", "vr"), [(-2000, "SS"), (63536, "US")])
def test_padding_is_masked_before_rescaling_whatever_sign_it_was_written_with(tmp_path, value, vr):
    stored = np.array([[-2000, 5], [7, -2000]], np.int16)
    write_dicom(tmp_path / "x.dcm", stored, padding=(value, vr), modality="CT", slope=2, intercept=-1024)
    volume = read(tmp_path)
    np.testing.assert_array_equal(volume.mask[0], stored == -2000)
    assert volume.array[0, 0, 1] == 5 * 2 - 1024


def test_padding_range_and_slices_without_padding(tmp_path):
    slices = np.array([[[0, 3], [9, 9]], [[9, 9], [9, 9]]], np.uint16)
    write_series(tmp_path, slices, padding=(0, "US"), PixelPaddingRangeLimit=3)
    np.testing.assert_array_equal(read(tmp_path).mask, slices <= 3)


@pytest.mark.parametrize("syntax", ["implicit", "big", "rle"])
def test_transfer_syntaxes_agree(tmp_path, syntax):
    pixels = np.random.default_rng(0).integers(-900, 900, (3, 9, 7)).astype(np.int16)
    write_series(tmp_path / "a", pixels)
    write_series(tmp_path / "b", pixels, syntax=syntax)
    np.testing.assert_array_equal(read(tmp_path / "a").array, read(tmp_path / "b").array)


def test_rle_needs_no_plugin(tmp_path, monkeypatch):
    write_dicom(tmp_path / "x.dcm", SLICES[0], syntax="rle")
    decoder = pydicom.pixels.decoders.base.get_decoder(pydicom.uid.RLELossless)
    monkeypatch.setattr(decoder, "_available", {"pydicom": decoder._available["pydicom"]})
    np.testing.assert_array_equal(read(tmp_path).array[0], SLICES[0])


def test_bits_above_the_stored_ones_are_dropped(tmp_path):
    write_dicom(tmp_path / "x.dcm", SLICES[0] | 0xF000, bits_stored=12)
    np.testing.assert_array_equal(read(tmp_path).array[0], SLICES[0])


def test_colour_dicom_and_palette(tmp_path):
    picture = random_image(3, (6, 4, 3))
    write_dicom(tmp_path / "a" / "x.dcm", picture, modality="CR", position=None, orientation=None)
    np.testing.assert_array_equal(read(tmp_path / "a").array[0], picture)
    table = {f"{c}PaletteColorLookupTableDescriptor": [256, 0, 8] for c in ("Red", "Green", "Blue")}
    ramp = np.arange(256, dtype=np.uint8)
    data = {
        f"{c}PaletteColorLookupTableData": t.tobytes()
        for c, t in zip(("Red", "Green", "Blue"), (ramp, ramp[::-1], ramp // 2), strict=True)
    }
    index = random_image(4, (6, 4))
    write_dicom(
        tmp_path / "b" / "x.dcm",
        index,
        modality="CR",
        photometric="PALETTE COLOR",
        position=None,
        **table,
        **data,
    )
    expected = np.stack([index, 255 - index, index // 2], axis=-1)
    np.testing.assert_array_equal(read(tmp_path / "b").array[0], expected)


def test_modality_lut(tmp_path):
    lut = pydicom.Dataset()
    lut.LUTDescriptor, lut.ModalityLUTType = [4, 0, 16], "US"
    lut.LUTData = [10, 20, 40, 80]
    lut["LUTDescriptor"].VR = lut["LUTData"].VR = "US"
    write_dicom(tmp_path / "x.dcm", np.array([[0, 1], [2, 3]], np.uint8), ModalityLUTSequence=[lut])
    np.testing.assert_array_equal(read(tmp_path).array[0], [[10, 20], [40, 80]])


def test_a_single_slice_takes_its_step_from_the_header(tmp_path):
    write_dicom(tmp_path / "x.dcm", SLICES[0], thickness=4.0, spacing=(0.5, 0.25))
    affine = np.array(read(tmp_path).affine)
    np.testing.assert_allclose(affine, np.diag([-0.25, -0.5, 4.0, 1.0]))


def test_nifti_prefers_sform_then_qform_then_says_that_it_guesses(tmp_path):
    sform, qform = np.diag([2.0, 2, 2, 1]), np.diag([3.0, 3, 3, 1])
    cases = {"s": (1, 1), "q": (0, 1), "n": (0, 0)}
    for name, (s_code, q_code) in cases.items():
        write_nifti(
            tmp_path / f"{name}.nii",
            SLICES.astype(np.int16) + len(name) + s_code + 2 * q_code,
            sform,
            sform_code=s_code,
            qform=qform,
            qform_code=q_code,
        )
    items = {item.name: item for item in scan_folder(tmp_path).items}
    assert abs(items["s"].affine[0][0]) == 2
    assert "differ" in items["s"].header["geometry"]
    assert abs(items["q"].affine[0][0]) == 3
    assert "geometry" not in items["q"].header
    assert "orientation unknown" in items["n"].header["geometry"]


def test_nifti_values_keep_small_types_and_scale_as_float32(tmp_path):
    write_nifti(tmp_path / "a" / "x.nii.gz", SLICES.astype(np.int16))
    write_nifti(tmp_path / "b" / "x.nii", SLICES.astype(np.int16), scale=(0.5, -3.0))
    write_nifti(tmp_path / "c" / "x.nii", SLICES.astype(np.float64) * 1e6)
    assert read(tmp_path / "a").array.dtype == np.int16
    np.testing.assert_array_equal(read(tmp_path / "a").array, SLICES)
    scaled = read(tmp_path / "b").array
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, SLICES * 0.5 - 3)
    assert read(tmp_path / "c").array.dtype == np.float32


def test_nifti_voxels_that_are_not_finite_are_padding(tmp_path):
    values = SLICES.astype(np.float32)
    values[0, 0, 0], values[2, 3, 4] = np.nan, np.inf
    write_nifti(tmp_path / "x.nii", values)
    volume = read(tmp_path)
    assert volume.mask.sum() == 2
    assert volume.mask[0, 0, 0]
    assert np.isfinite(volume.array).all()


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_colour_and_grey_images_without_loss(tmp_path, suffix):
    colour, grey = random_image(5), random_image(6, (7, 9))
    write_image(tmp_path / "c" / f"x{suffix}", colour)
    write_image(tmp_path / "g" / f"x{suffix}", grey)
    np.testing.assert_array_equal(read(tmp_path / "c").array[0], colour)
    np.testing.assert_array_equal(read(tmp_path / "g").array[0], grey)
    assert read(tmp_path / "c").affine is None


def test_sixteen_bit_palette_transparent_and_turned_images(tmp_path):
    deep = np.array([[0, 40000], [65535, 7]], np.uint16)
    write_image(tmp_path / "a" / "x.png", deep)
    np.testing.assert_array_equal(read(tmp_path / "a").array[0], deep)
    with_alpha = random_image(7, (5, 6, 4))
    write_image(tmp_path / "b" / "x.png", with_alpha)
    np.testing.assert_array_equal(read(tmp_path / "b").array[0], with_alpha[..., :3])
    image = Image.fromarray(random_image(8, (20, 30)))
    exif = image.getexif()
    exif[0x0112] = 6
    (tmp_path / "c").mkdir()
    image.save(tmp_path / "c" / "x.jpg", exif=exif)
    assert read(tmp_path / "c").array.shape == (1, 30, 20)
    palette = Image.fromarray(random_image(9, (8, 8, 3))).quantize(8)
    (tmp_path / "d").mkdir()
    palette.save(tmp_path / "d" / "x.png")
    np.testing.assert_array_equal(read(tmp_path / "d").array[0], np.asarray(palette.convert("RGB")))


def test_files_that_changed_since_the_scan_are_data_errors_that_name_the_case(tmp_path):
    paths = write_series(tmp_path / "secret_name", SLICES, patient_id="MRN4711", patient_name="Doe^Jane")
    write_nifti(tmp_path / "n.nii.gz", SLICES.astype(np.int16))
    picture = write_image(tmp_path / "p.png", random_image(1, (40, 40, 3)))
    items = {item.kind: item for item in scan_folder(tmp_path).items}
    paths[1].write_bytes(paths[1].read_bytes()[:-7])
    (tmp_path / "n.nii.gz").write_bytes((tmp_path / "n.nii.gz").read_bytes()[:60])
    picture.write_bytes(picture.read_bytes()[:900])
    for kind, item in items.items():
        with pytest.raises(DataError) as caught:
            read_volume(item)
        text = str(caught.value)
        assert item.name in text
        assert str(tmp_path) not in text
        assert "4711" not in text
        assert caught.value.__cause__ is None
        if kind == "dicom":
            assert "file 2 of 3" in text
    paths[0].unlink()
    with pytest.raises(DataError, match="No such file"):
        read_volume(items["dicom"])


def test_size_limit_is_checked_before_reading(tmp_path, monkeypatch):
    write_series(tmp_path, SLICES)
    (item,) = scan_folder(tmp_path).items
    monkeypatch.setattr(volume_module, "MAX_BYTES", 100)
    monkeypatch.setattr("pydicom.dcmread", lambda *args, **more: pytest.fail("read"))
    with pytest.raises(DataError, match="3 x 4 x 5 voxels"):
        read_volume(item)


def test_quiet_restores_filters_and_levels_from_threads():
    before, level = list(warnings.filters), logging.getLogger("pydicom").level
    started, leave = threading.Event(), threading.Event()

    def other():
        with quiet_readers():
            started.set()
            leave.wait(5)

    thread = threading.Thread(target=other)
    with quiet_readers():
        thread.start()
        assert started.wait(5)
        warnings.warn("a header value", UserWarning, stacklevel=1)
    warnings.warn("still quiet: the other thread is inside", UserWarning, stacklevel=1)
    leave.set()
    thread.join(5)
    assert list(warnings.filters) == before
    assert logging.getLogger("pydicom").level == level
    with pytest.raises(UserWarning, match="loud"):
        warnings.warn("loud again", UserWarning, stacklevel=1)


def test_nan_becomes_the_lowest_value_and_padding_in_every_format(tmp_path):
    image = np.arange(100, 120, dtype=np.float32).reshape(4, 5)
    image[1, 1] = np.nan
    write_image(tmp_path / "t" / "x.tif", image)
    write_nifti(tmp_path / "n" / "x.nii.gz", image[None])
    for name in ("t", "n"):
        volume = read(tmp_path / name)
        assert volume.array[0, 1, 1] == 100
        assert np.argwhere(volume.mask).tolist() == [[0, 1, 1]]
        assert volume.meta["missing"] == 1
        assert volume.array.dtype == np.float32


@pytest.mark.parametrize("slope", [1e38, 1e39, 1e300])
def test_values_that_overflow_are_refused_with_the_reason(tmp_path, slope):
    write_series(tmp_path / "d", SLICES, slope=slope)
    with pytest.raises(
        volume_module.ScanError, match=r"'d' \(dicom\) cannot be used: .*(32-bit|no numbers)"
    ) as caught:
        read(tmp_path / "d")
    assert caught.value.code == "not_finite"


@pytest.mark.parametrize("kind", ["double", "slope"])
def test_nifti_that_overflows_is_refused(tmp_path, kind):
    values = SLICES.astype(np.float64) * (1e300 if kind == "double" else 1)
    write_nifti(tmp_path / "x.nii", values, scale=(3e37, 0) if kind == "slope" else None)
    with pytest.raises(volume_module.ScanError, match="32-bit"):
        read(tmp_path)


def test_a_scan_of_nearly_no_numbers_is_refused_and_one_of_mostly_background_is_not(tmp_path):
    values = np.full((1, 20, 20), np.nan, np.float32)
    values[0, :2] = 5
    write_nifti(tmp_path / "a" / "x.nii", values)
    assert read(tmp_path / "a").mask.sum() == 360
    values[0, 1:] = np.nan
    values[0, 0, 10:] = np.nan
    write_nifti(tmp_path / "b" / "x.nii", values)
    with pytest.raises(DataError, match=r"97.5 % of its values are no numbers \(NaN\)"):
        read(tmp_path / "b")


def test_a_volume_beyond_the_free_memory_is_refused_before_reading(tmp_path, monkeypatch):
    write_series(tmp_path, SLICES)
    (item,) = scan_folder(tmp_path).items
    monkeypatch.setattr(volume_module, "_SMALL", 10)
    monkeypatch.setattr(volume_module, "free_memory", lambda: 100.0)
    with pytest.raises(DataError, match=r"3 x 4 x 5 voxels, which need .* GiB are free"):
        read_volume(item)
    monkeypatch.undo()
    assert volume_module.free_memory() > 1 << 20
