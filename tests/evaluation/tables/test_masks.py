from __future__ import annotations

import gzip
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from medtl.evaluation.tables.masks import MaskError, read_label_header, read_label_map

AFFINE = np.array([[-0.7, 0, 0.1, 5], [0, 0, 3, -7], [0.02, 0.9, 0, 11], [0, 0, 0, 1.0]])


def save(path: Path, values: np.ndarray, affine: np.ndarray | None = AFFINE, **header: float) -> Path:
    """Saves (i, j, k) values as they are."""
    image = nibabel.Nifti1Image(values, affine)
    for name, value in header.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


def volume() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4, (5, 6, 7)).astype(np.uint8)


@pytest.mark.parametrize("name", ["m.nii", "m.nii.gz", "M.NII.GZ"])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32, np.float64, ">i2"])
def test_nifti_is_read_as_k_j_i(tmp_path: Path, name: str, kind: object) -> None:
    path = save(tmp_path / name, volume().astype(kind))
    found = read_label_map(path)
    assert found.array.dtype.kind in "ui"
    assert found.array.dtype.isnative
    assert found.array.flags.c_contiguous
    assert np.array_equal(found.array, volume().transpose(2, 1, 0))
    assert found.affine == pytest.approx(AFFINE, abs=1e-6)
    i, j, k = np.linalg.norm(AFFINE[:3, :3], axis=0)
    assert found.spacing == pytest.approx((k, j, i))
    assert read_label_header(path).shape == (7, 6, 5)


def test_nifti_scaling_and_units(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(volume().astype(np.int16), AFFINE / [[1000], [1000], [1000], [1]])
    image.header.set_xyzt_units("meter")
    image.header.set_slope_inter(2, -1)
    nibabel.save(image, tmp_path / "m.nii")
    found = read_label_map(tmp_path / "m.nii")
    # nibabel divides by the slope when it saves, and rounds.
    assert set(np.unique(found.array)) <= set(range(-1, 6))
    assert found.affine == pytest.approx(AFFINE, abs=1e-3)


def test_slices_and_trailing_axes(tmp_path: Path) -> None:
    flat = save(tmp_path / "flat.nii", volume()[:, :, 0])
    assert read_label_map(flat).array.shape == (1, 6, 5)
    one = save(tmp_path / "one.nii", volume()[..., None])
    assert np.array_equal(read_label_map(one).array, volume().transpose(2, 1, 0))


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff", ".bmp"])
def test_images(tmp_path: Path, suffix: str) -> None:
    values = np.random.default_rng(0).integers(0, 256, (6, 9)).astype(np.uint8)
    path = tmp_path / f"m{suffix}"
    Image.fromarray(values).save(path)
    found = read_label_map(path)
    assert np.array_equal(found.array, values[None])
    assert (found.spacing, found.affine) == (None, None)
    assert read_label_header(path).shape == (1, 6, 9)


def test_palettes_are_indices_and_16_bits_are_kept(tmp_path: Path) -> None:
    values = np.array([[0, 1], [2, 1]], dtype=np.uint8)
    image = Image.fromarray(values)
    image.putpalette([0, 0, 0, 250, 10, 30, 7, 8, 200])
    image.save(tmp_path / "p.png")
    assert image.mode == "P"
    assert np.array_equal(read_label_map(tmp_path / "p.png").array, values[None])
    deep = np.array([[0, 1000], [65535, 3]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "d.png")
    assert np.array_equal(read_label_map(tmp_path / "d.png").array, deep[None])
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "b.png")
    assert read_label_map(tmp_path / "b.png").array.tolist() == [[[1, 0]]]


def fault(path: Path) -> str:
    with pytest.raises(MaskError) as error:
        read_label_map(path)
    message = str(error.value)
    assert path.name in message
    assert str(path.parent) not in message
    assert path.name not in error.value.reason
    return message


def test_faults_of_nifti(tmp_path: Path) -> None:
    assert "it does not exist" in fault(tmp_path / "none.nii.gz")
    assert "not integers, for example 0.5" in fault(save(tmp_path / "f.nii", np.full((2, 2, 2), 0.5)))
    assert "not integers, for example nan" in fault(save(tmp_path / "n.nii", np.full((2, 2, 2), np.nan)))
    assert "exceed 32 bits" in fault(save(tmp_path / "big.nii", np.full((2, 2, 2), 1e10)))
    assert "5 x 6 x 7 x 2" in fault(save(tmp_path / "4d.nii", np.zeros((5, 6, 7, 2), dtype=np.uint8)))
    assert "of type complex64" in fault(save(tmp_path / "c.nii", np.zeros((2, 2, 2), dtype=np.complex64)))
    (tmp_path / "text.nii").write_text("no volume" * 100)
    assert "cannot be parsed" in fault(tmp_path / "text.nii")
    (tmp_path / "text.nii.gz").write_text("no volume")
    assert "cannot be parsed" in fault(tmp_path / "text.nii.gz")
    (tmp_path / "short.nii").write_bytes(b"\x5c\x01\x00\x00")
    assert "cannot be parsed" in fault(tmp_path / "short.nii")
    singular = save(tmp_path / "s.nii", volume())
    raw = bytearray(singular.read_bytes())
    raw[280:328] = bytes(48)
    singular.write_bytes(raw)
    assert "singular" in fault(singular)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_truncated_nifti(tmp_path: Path, suffix: str) -> None:
    path = save(
        tmp_path / f"m{suffix}", np.random.default_rng(0).integers(0, 9, (20, 20, 20)).astype(np.uint8)
    )
    path.write_bytes(path.read_bytes()[:3000])
    assert ("its voxels need" if suffix == ".nii" else "ends early or is damaged") in fault(path)


def test_no_more_is_unpacked_than_is_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "m.nii", volume())
    raw = bytearray(path.read_bytes())
    raw[108:112] = struct.pack("<f", 2e9)  # the voxels are said to begin after 2 GB
    bomb = tmp_path / "bomb.nii.gz"
    bomb.write_bytes(gzip.compress(bytes(raw) + bytes(50_000_000)))
    assert "announces 2000000000 bytes before its voxels" in fault(bomb)
    long = tmp_path / "long.nii.gz"
    long.write_bytes(gzip.compress(path.read_bytes() + bytes(50_000_000)))
    assert read_label_map(long).array.shape == (7, 6, 5)
    monkeypatch.setattr("medtl.scans.readers.nifti.MAX_BYTES", 800)
    assert "dimensions 5 x 6 x 7" in fault(path)


def test_faults_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8)).save(tmp_path / "rgb.png")
    assert "a colour image (RGB)" in fault(tmp_path / "rgb.png")
    Image.fromarray(np.zeros((4, 4), dtype=np.uint8)).save(tmp_path / "m.jpg")
    assert "a JPEG image, which changes values" in fault(tmp_path / "m.jpg")
    pages = [Image.fromarray(np.zeros((4, 4), dtype=np.uint8)) for _ in range(2)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    assert "2 pages" in fault(tmp_path / "pages.tif")
    Image.fromarray(np.full((4, 4), 0.5, dtype=np.float32)).save(tmp_path / "f.tif")
    assert "are not integers" in fault(tmp_path / "f.tif")
    (tmp_path / "text.png").write_text("no image")
    assert "cannot be parsed" in fault(tmp_path / "text.png")
    assert "it does not exist" in fault(tmp_path / "none.png")
    noise = np.random.default_rng(0).integers(0, 256, (60, 60)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:1500])
    assert "the end of the image is not there" in fault(tmp_path / "cut.png")
    Image.fromarray(np.zeros((40, 40), dtype=np.uint8)).save(tmp_path / "large.png")
    monkeypatch.setattr("medtl.scans.readers.image.MAX_BYTES", 4000)
    assert "40 x 40 pixels" in fault(tmp_path / "large.png")
    (tmp_path / "m.mat").write_bytes(b"x")
    assert "files .mat are not read here" in fault(tmp_path / "m.mat")


def test_headers_are_compared_in_numbers(tmp_path: Path) -> None:
    first = read_label_header(save(tmp_path / "a.nii", volume()))
    near = AFFINE.copy()
    near[0, 3] += 5e-4
    assert read_label_header(save(tmp_path / "b.nii", volume(), near)).differs(first) == ""
    moved = AFFINE.copy()
    moved[1, 3] += 2.5
    said = read_label_header(save(tmp_path / "c.nii", volume(), moved)).differs(first)
    assert said == "lies elsewhere: its affine differs by up to 2.5 (row 2, column 4: -4.5 against -7)"
    said = read_label_header(save(tmp_path / "d.nii", volume()[1:])).differs(first)
    assert said == "has 7 x 6 x 4 voxels where 7 x 6 x 5 are expected"
    Image.fromarray(np.zeros((6, 5), dtype=np.uint8)).save(tmp_path / "e.png")
    flat = read_label_header(save(tmp_path / "e.nii", volume()[:, :, :1]))
    assert "an image without" in read_label_header(tmp_path / "e.png").differs(flat)
