from __future__ import annotations

import gzip
import struct

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from PIL import Image

from medtl.errors import DataError
from medtl.labelmap import VOID, LabelMap
from medtl.scans.catalog import scan_folder
from medtl.scans.write import write_map, write_mask
from tests.scans.make_scans import write_dicom, write_image, write_nifti, write_series

LABELS = LabelMap({"liver": (10,), "lesion": (3, 4)}, void=(9,))
OBLIQUE = np.array(
    [[0.61, -0.3, 0.9, -40.1], [0.35, 0.72, 0.7, 12.3], [-0.4, 0.21, 2.2, 7.7], [0, 0, 0, 1.0]],
    dtype=np.float64,
)


def rigid(seed: int = 0) -> np.ndarray:
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    matrix = np.eye(4)
    matrix[:3, :3] = q * [0.7, 0.9, 3.1]
    matrix[:3, 3] = [-31.7, 20.1, 9.3]
    return matrix


def scan(folder):
    (item,) = scan_folder(folder).items
    return item


def noise(shape, classes=3, seed=0):
    return np.random.default_rng(seed).integers(0, classes, shape).astype(np.uint8)


def geometry(path):
    """The bytes of the header that say where voxels are: dim, pixdim, codes, quaternion, rows, units."""
    raw = path.read_bytes()
    raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
    return raw[40:56], raw[76:108], raw[123:124], raw[252:328]


@pytest.mark.parametrize("codes", [(1, 0), (2, 1), (0, 1), (4, 4), (0, 0)])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_geometry_of_a_nifti_source_is_kept_bit_by_bit(tmp_path, codes, suffix):
    volume = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    source = write_nifti(
        tmp_path / "s" / f"a{suffix}",
        volume,
        OBLIQUE if codes[1] == 0 else rigid(),
        sform_code=codes[0],
        qform=rigid(),
        qform_code=codes[1],
        scale=(2.5, -7.0) if suffix == ".nii" else None,  # the maker sets bytes of the file as it is
    )
    item = scan(tmp_path / "s")
    mask = noise(item.shape)
    mask[0, 0, 0] = VOID
    path = write_mask(tmp_path / "out" / "a.b", mask, item, LABELS)
    assert path.name == "a.b.nii.gz"
    assert geometry(path) == geometry(source)
    image = nibabel.load(path)
    assert image.get_data_dtype() == np.uint8
    assert (image.dataobj.slope, image.dataobj.inter) == (1, 0)
    values = np.asarray(image.dataobj).transpose()
    np.testing.assert_array_equal(
        values, np.array([0, 10, 3])[np.where(mask == VOID, 0, mask)] + 9 * (mask == VOID)
    )
    np.testing.assert_array_equal(image.affine, nibabel.load(source).affine)


def test_other_units_dimensions_and_texts_of_the_source(tmp_path):
    image = nibabel.Nifti1Image(np.zeros((6, 5, 4, 1), np.int16), None)
    image.set_sform(rigid() / [[1000], [1000], [1000], [1]], code=1)
    image.header.set_xyzt_units("meter", "sec")
    image.header["descrip"] = b"Doe^Jane 1950"
    image.header["cal_max"] = 300
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"Doe^Jane"))
    (tmp_path / "s").mkdir()
    nibabel.save(image, tmp_path / "s" / "a.nii")
    item = scan(tmp_path / "s")
    path = write_mask(tmp_path / "a", noise(item.shape), item, LABELS)
    assert geometry(path) == geometry(tmp_path / "s" / "a.nii")
    found = nibabel.load(path)
    assert found.shape == (6, 5, 4, 1)
    assert found.header.get_xyzt_units() == ("meter", "sec")
    assert float(found.header["cal_max"]) == 0
    assert b"Doe" not in gzip.decompress(path.read_bytes())


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
def test_both_versions_and_byte_orders(tmp_path, kind, order):
    header = kind.header_class(endianness=order)
    image = kind(np.zeros((6, 5, 4), np.int16), rigid(), header)
    (tmp_path / "s").mkdir()
    nibabel.save(image, tmp_path / "s" / "a.nii")
    item = scan(tmp_path / "s")
    mask = noise(item.shape)
    path = write_mask(tmp_path / "a", mask, item, LabelMap({"a": (700,), "b": (-2,)}))
    found = nibabel.load(path)
    assert type(found) is kind
    assert found.header.endianness == order
    np.testing.assert_array_equal(found.affine, nibabel.load(tmp_path / "s" / "a.nii").affine)
    np.testing.assert_array_equal(np.asarray(found.dataobj).transpose(), np.array([0, 700, -2])[mask])
    assert found.get_data_dtype().kind == "i"


def test_a_two_dimensional_nifti(tmp_path):
    (tmp_path / "s").mkdir()
    nibabel.save(nibabel.Nifti1Image(np.zeros((6, 5), np.int16), rigid()), tmp_path / "s" / "a.nii")
    item = scan(tmp_path / "s")
    mask = noise(item.shape)
    found = nibabel.load(write_mask(tmp_path / "a", mask, item, LabelMap({"a": (1,), "b": (2,)})))
    assert found.shape == (6, 5)
    np.testing.assert_array_equal(np.asarray(found.dataobj).transpose(), mask[0])


def series(folder, shear=0.0, seed=3):
    turn = rigid(seed)[:3, :3] / [0.7, 0.9, 3.1]
    volume = np.random.default_rng(seed).integers(0, 99, (6, 5, 4)).astype(np.uint16)
    step = -2.5 * turn[:, 2] + shear * turn[:, 1]
    orientation = (*turn[:, 0], *turn[:, 1])
    write_series(folder, volume, orientation=orientation, first=(5, -60, 12), step=step, spacing=(0.8, 1.3))
    return volume


def test_mask_of_a_series_overlays_it_in_simpleitk(tmp_path):
    volume = series(tmp_path / "s")
    item = scan(tmp_path / "s")
    found = sitk.ReadImage(str(write_mask(tmp_path / "a", volume.astype(np.uint8)[::-1], item, identity(99))))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(item.root / f) for f in item.files])
    source = reader.Execute()
    # The makers store slices against their positions; NIfTI has them in the order of the item.
    for index in [(0, 0, 0), (3, 2, 5), (1, 4, 2)]:
        place = source.TransformIndexToPhysicalPoint(index)
        assert found[found.TransformPhysicalPointToIndex(place)] == source[index]
    header = nibabel.load(tmp_path / "a.nii.gz").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 1)
    np.testing.assert_allclose(header.get_sform(), np.array(item.affine), atol=1e-5)
    np.testing.assert_allclose(header.get_qform(), np.array(item.affine), atol=1e-3)


def identity(count):
    return LabelMap({f"s{n}": (n,) for n in range(1, count + 1)})


def test_a_sheared_series_has_no_qform(tmp_path):
    series(tmp_path / "s", shear=0.9)
    item = scan(tmp_path / "s")
    header = nibabel.load(write_mask(tmp_path / "a", noise(item.shape), item, LABELS)).header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 0)
    np.testing.assert_allclose(header.get_sform(), np.array(item.affine), atol=1e-5)


def test_images_become_png_with_the_values_as_given(tmp_path):
    write_image(tmp_path / "s" / "a.jpg", np.full((5, 7, 3), 90, np.uint8))
    item = scan(tmp_path / "s")
    mask = noise(item.shape)
    path = write_mask(tmp_path / "out" / "a", mask, item, LABELS)
    with Image.open(path) as image:
        assert (path.suffix, image.mode) == (".png", "L")
        np.testing.assert_array_equal(np.asarray(image), np.array([0, 10, 3])[mask[0]])
    with Image.open(write_mask(tmp_path / "b", mask, item, LabelMap({"a": (300,), "b": (65535,)}))) as image:
        assert image.mode.startswith("I;16")
        np.testing.assert_array_equal(np.asarray(image), np.array([0, 300, 65535])[mask[0]])
    with pytest.raises(DataError, match="a PNG holds 0 to 65535"):
        write_mask(tmp_path / "c", mask, item, LabelMap({"a": (-1,), "b": (2,)}))


def test_a_radiograph_without_a_position_becomes_png(tmp_path):
    write_dicom(
        tmp_path / "s" / "a.dcm", np.ones((5, 4), np.uint16), modality="CR", position=None, orientation=None
    )
    item = scan(tmp_path / "s")
    assert write_mask(tmp_path / "a", noise(item.shape), item, LABELS).suffix == ".png"


def test_maps(tmp_path):
    write_nifti(tmp_path / "s" / "a.nii.gz", np.zeros((4, 5, 6), np.int16), OBLIQUE)
    item = scan(tmp_path / "s")
    values = np.random.default_rng(0).random(item.shape, dtype=np.float32)
    path = write_map(tmp_path / "p", values, item)
    assert geometry(path)[2:] == geometry(tmp_path / "s" / "a.nii.gz")[2:]
    image = nibabel.load(path)
    assert image.get_data_dtype() == np.float32
    np.testing.assert_array_equal(
        np.asarray(image.dataobj).transpose(), values.astype(np.float16).astype(np.float32)
    )

    write_image(tmp_path / "i" / "a.png", np.zeros((5, 7), np.uint8))
    item = scan(tmp_path / "i")
    with Image.open(write_map(tmp_path / "q", values[:1, :, :1].repeat(7, 2), item)) as image:
        np.testing.assert_allclose(np.asarray(image) / 65535, values[0, :, :1].repeat(7, 1), atol=1e-5)


def test_the_same_mask_is_the_same_file(tmp_path):
    write_nifti(tmp_path / "s" / "a.nii.gz", np.zeros((4, 5, 6), np.int16), OBLIQUE)
    item = scan(tmp_path / "s")
    first = write_mask(tmp_path / "a", noise(item.shape), item, LABELS).read_bytes()
    assert first == write_mask(tmp_path / "b", noise(item.shape), item, LABELS).read_bytes()
    assert struct.unpack("<I", first[4:8]) == (0,)


def test_what_does_not_fit(tmp_path):
    source = write_nifti(tmp_path / "s" / "a.nii.gz", np.zeros((4, 5, 6), np.int16), OBLIQUE)
    item = scan(tmp_path / "s")
    with pytest.raises(DataError, match="The mask has 2 x 5 x 6 voxels, the scan 'a' 4 x 5 x 6"):
        write_mask(tmp_path / "a", noise((2, 5, 6)), item, LABELS)
    write_nifti(source, np.zeros((3, 5, 6), np.int16), OBLIQUE)
    with pytest.raises(DataError, match="6 x 5 x 3 voxels now, 6 x 5 x 4 when"):
        write_mask(tmp_path / "a", noise(item.shape), item, LABELS)
    source.unlink()
    with pytest.raises(DataError, match="cannot be read any more") as caught:
        write_mask(tmp_path / "a", noise(item.shape), item, LABELS)
    assert str(tmp_path) not in str(caught.value)
