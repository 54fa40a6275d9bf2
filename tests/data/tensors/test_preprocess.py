from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from medtl.data.tensors.preprocess import plane_of, preprocess, suggest_preprocess
from medtl.data.tensors.spec import CT_WINDOWS, Preprocess
from medtl.errors import ConfigError, DataError
from medtl.scans.catalog import scan_folder
from medtl.scans.items import Volume, VolumeItem
from medtl.scans.volume import read_volume
from tests.scans.make_scans import write_dicom, write_nifti, write_series

MR = {"kind": "dicom", "modality": "MR", "bits": 12}


def anatomy():
    """An asymmetric smooth volume (k, j, i)."""
    volume = gaussian_filter(np.random.default_rng(0).normal(size=(12, 20, 28)), 1.5)
    return (1000 * (volume - volume.min()) / np.ptp(volume)).astype(np.float32)


AFFINE = np.diag([-1.5, -1.5, 4.0, 1.0])  # (i, j, k) run to L, P, S


def stored_otherwise(array, affine, order, flips):
    """The same anatomy with its axes permuted and reversed, and the matrix that says so."""
    ijk = array.transpose(2, 1, 0)
    matrix = affine.copy()
    for axis, flip in enumerate(flips):
        if flip:
            ijk = np.flip(ijk, axis)
            matrix[:3, 3] += matrix[:3, axis] * (ijk.shape[axis] - 1)
            matrix[:3, axis] *= -1
    ijk = ijk.transpose(order)
    matrix[:, :3] = matrix[:, list(order)]
    return np.ascontiguousarray(ijk.transpose(2, 1, 0)), matrix


@pytest.mark.parametrize(
    ("order", "flips"),
    list(itertools.product(itertools.permutations(range(3)), [(0, 0, 0), (1, 0, 1), (0, 1, 0)])),
)
def test_one_anatomy_gives_one_result_however_it_is_stored(order, flips):
    spec = Preprocess(image_size=32, num_slices=8, intensity="percentile")
    wanted = preprocess(Volume(anatomy(), tuple(map(tuple, AFFINE)), None, MR), spec)
    array, matrix = stored_otherwise(anatomy(), AFFINE, order, flips)
    found = preprocess(Volume(array, tuple(map(tuple, matrix)), None, MR), spec)
    np.testing.assert_allclose(found.astype(float), wanted.astype(float), atol=2e-3)


def test_a_dicom_series_and_its_nifti_agree(tmp_path):
    slices = anatomy().astype(np.int16)
    write_series(tmp_path / "d", slices, spacing=(1.5, 1.5), step=4.0)
    array, matrix = stored_otherwise(slices, AFFINE, (1, 0, 2), (1, 1, 1))
    write_nifti(tmp_path / "n.nii.gz", array, matrix)
    spec = Preprocess(image_size=24, num_slices=6, intensity="percentile")
    one, two = (preprocess(read_volume(item), spec) for item in scan_folder(tmp_path).items)
    np.testing.assert_allclose(one.astype(float), two.astype(float), atol=2e-3)


def test_single_slices_are_turned_the_way_they_are_read(tmp_path):
    picture = np.arange(30, dtype=np.int16).reshape(5, 6)
    write_dicom(tmp_path / "a.dcm", picture, series="1.1")
    turned = picture[::-1, ::-1].copy()
    write_dicom(tmp_path / "b.dcm", turned, series="1.2", orientation=(-1, 0, 0, 0, -1, 0))
    write_dicom(tmp_path / "c.dcm", picture.T.copy(), series="1.3", orientation=(0, 1, 0, 1, 0, 0))
    spec = Preprocess(image_size=12, intensity="percentile")
    a, b, c = (preprocess(read_volume(item), spec) for item in scan_folder(tmp_path).items)
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(a, c)


@pytest.mark.parametrize("border", [0, 51])
def test_pixels_become_square_and_the_margin_has_the_borders_value(border):
    array = np.full((1, 10, 20), border, np.uint8)
    array[:, 2:-2, 6:-6] = 255
    affine = ((-1.0, 0, 0, 0), (0, -4.0, 0, 0), (0, 0, 1.0, 0), (0, 0, 0, 1))  # 40 mm high, 20 mm wide
    result = preprocess(Volume(array, affine, None, {**MR, "bits": 8}), Preprocess(16, intensity="unit"))
    assert result.shape == (1, 16, 16)
    assert (result[0, 6:10, 7:9] == 1).all()
    np.testing.assert_allclose(result[0, :, :4].astype(float), border / 255, atol=1e-3)
    np.testing.assert_allclose(result[0, :, 12:].astype(float), border / 255, atol=1e-3)


def test_padding_takes_no_part_in_the_range_and_ends_at_zero():
    rng = np.random.default_rng(0)
    array = rng.uniform(100, 200, (1, 32, 32)).astype(np.float32)
    mask = np.zeros(array.shape, bool)
    mask[:, :8] = True
    array[mask] = -3024
    spec = Preprocess(32, intensity="percentile")
    result = preprocess(Volume(array, None, mask, MR), spec)[0].astype(float)
    assert (result[:8] == 0).all()
    low, high = np.percentile(array[~mask], (0.5, 99.5))
    expected = np.clip((array[0, 8:] - low) / (high - low), 0, 1)
    np.testing.assert_allclose(result[8:], expected, atol=1e-3)


@pytest.mark.parametrize(
    ("intensity", "meta", "value", "expected"),
    [
        ("auto", {"modality": "CT", "kind": "dicom", "bits": 12}, 40, 0.5),
        ("auto", {"modality": None, "kind": "image", "bits": 8}, 51, 0.2),
        ("brain", {"modality": "CT", "kind": "nifti", "bits": 16}, 20, 0.25),
        ("window:-100,100", {"modality": "MR", "kind": "nifti", "bits": 16}, 50, 0.75),
        ("window:-100,100", {"modality": "MR", "kind": "nifti", "bits": 16}, 500, 1.0),
    ],
)
def test_intensity_settings(intensity, meta, value, expected):
    array = np.full((1, 16, 16), value, np.int16)
    result = preprocess(Volume(array, None, None, meta), Preprocess(16, intensity=intensity))
    np.testing.assert_allclose(result.astype(float), expected, atol=1e-3)


def test_extreme_scales_survive_float16():
    array = anatomy()[:1] * 1e6
    result = preprocess(Volume(array, None, None, MR), Preprocess(16, intensity="percentile"))
    assert result.dtype == np.float16
    assert np.isfinite(result).all()
    assert result.max() <= 1


def test_downsampling_is_filtered():
    stripes = np.zeros((1, 64, 64), np.uint8)
    stripes[:, :, ::2] = 255
    result = preprocess(Volume(stripes, None, None, {"bits": 8}), Preprocess(16, intensity="unit"))
    np.testing.assert_allclose(result[0, 2:-2, 2:-2].astype(float), 0.5, atol=0.06)


def test_slices_span_the_volume():
    ramp = np.broadcast_to(np.arange(20, dtype=np.float32)[:, None, None], (20, 8, 8)).copy()
    result = preprocess(Volume(ramp, None, None, MR), Preprocess(8, 5, intensity="window:0,19"))
    profile = result[0, :, 4, 4].astype(float) * 19
    np.testing.assert_allclose(profile, [1.9, 5.5, 9.5, 13.5, 17.1], atol=0.05)


def test_channels():
    colour = np.random.default_rng(0).integers(0, 255, (1, 16, 16, 3), dtype=np.uint8)
    grey = preprocess(Volume(colour, None, None, {}), Preprocess(16, channels=1, intensity="unit"))
    np.testing.assert_allclose(grey[0], colour[0] @ [0.299, 0.587, 0.114] / 255, atol=1e-3)
    repeated = preprocess(
        Volume(colour[..., 0], None, None, {}), Preprocess(16, channels=3, intensity="unit")
    )
    assert repeated.shape == (3, 16, 16)
    np.testing.assert_array_equal(repeated[0], repeated[2])


def test_constant_and_fully_padded_images_are_zero():
    flat = np.full((1, 16, 16), 7, np.int16)
    spec = Preprocess(16, intensity="percentile")
    assert (preprocess(Volume(flat, None, None, MR), spec) == 0).all()
    assert (preprocess(Volume(flat, None, flat > 0, MR), spec) == 0).all()


def item(name, shape=(1, 50, 50), *, kind="image", bits="8", modality=None, channels=1, affine=None):
    return VolumeItem(
        ".", (name,), kind, name, name, shape=shape, channels=channels, affine=affine, modality=modality,
        header={"bits": bits},
    )  # fmt: skip


def thick(axis):
    columns = np.eye(4)[:, [*[a for a in range(3) if a != axis], axis, 3]]
    columns[:3, 2] *= 6
    return tuple(map(tuple, columns))


def test_suggestions(caplog):
    assert suggest_preprocess([item("a", channels=3)], 96) == Preprocess(96, None, 3, "unit")
    ct = [item(n, kind="dicom", modality="CT", bits="12") for n in "ab"]
    assert suggest_preprocess(ct).intensity == "soft_tissue"
    volumes = [item(n, (k, 60, 50), kind="nifti", bits="16") for n, k in (("a", 9), ("b", 12), ("c", 70))]
    assert suggest_preprocess(volumes).num_slices == 12
    assert suggest_preprocess([item("a", (200, 60, 50), kind="nifti")]).num_slices == 32
    assert suggest_preprocess(volumes, num_slices=4, intensity="brain") == Preprocess(128, 4, 1, "brain")
    assert not caplog.records
    assert suggest_preprocess([*ct, item("c", kind="nifti")]).intensity == "percentile"
    assert "several intensity ranges" in caplog.text


def test_the_plane_of_thick_slices_is_kept():
    for axis, plane in ((0, "sagittal"), (1, "coronal"), (2, "axial")):
        assert plane_of(thick(axis)) == plane
        found = suggest_preprocess([item("a", (9, 60, 50), kind="dicom", modality="MR", affine=thick(axis))])
        assert (found.plane, found.num_slices) == (plane, 9)


def test_slices_are_counted_along_the_common_plane():
    isotropic = item("b", (60, 50, 40), kind="nifti", affine=tuple(map(tuple, np.eye(4)[:, [1, 2, 0, 3]])))
    first = item("a", (9, 60, 50), kind="nifti", affine=thick(2))
    assert (
        suggest_preprocess([first, isotropic, isotropic], 64).num_slices == 32
    )  # 50 slices along z, at most 32


def test_suggestion_faults():
    with pytest.raises(DataError, match=r"2 items have one slice .* 1 have several"):
        suggest_preprocess([item("a"), item("b"), item("c", (9, 5, 5))])
    with pytest.raises(DataError, match="no scans"):
        suggest_preprocess([])
    with pytest.raises(DataError, match="volume of 3 slices"):
        preprocess(Volume(np.zeros((3, 8, 8)), None, None, {}), Preprocess(8))


def test_settings_are_checked_and_have_a_key():
    spec = Preprocess(64, 8, 1, "lung")
    assert Preprocess.from_dict(spec.to_dict()) == spec
    changed = [Preprocess(65, 8, 1, "lung"), Preprocess(64, 9, 1, "lung"), Preprocess(64, 8, 3, "lung")]
    changed += [Preprocess(64, 8, 1, "bone"), Preprocess(64, 8, 1, "lung", "coronal")]
    assert len({spec.key(), *(s.key() for s in changed)}) == 6
    for wrong in (
        {"image_size": 4},
        {"channels": 2},
        {"num_slices": 1},
        {"intensity": "window:5,1"},
        {"intensity": "lungs"},
        {"plane": "oblique"},
    ):
        with pytest.raises(ConfigError):
            Preprocess(**wrong)
    with pytest.raises(ConfigError, match="image_size"):
        Preprocess.from_dict({"size": 4})
    assert all(low < high for low, high in CT_WINDOWS.values())


def spaced(name, shape, spacing):
    """An axial scan with spacing (k, j, i)."""
    affine = np.diag([-spacing[2], -spacing[1], spacing[0], 1.0])
    return item(name, shape, kind="nifti", bits="16", affine=tuple(map(tuple, affine)))


def test_segmentation_keeps_the_median_spacing():
    scans = [spaced("a", (9, 60, 50), (5, 0.8, 0.8)), spaced("b", (12, 60, 50), (3, 1.0, 1.0))]
    scans.append(spaced("c", (20, 60, 50), (2, 0.7, 0.9)))
    found = suggest_preprocess(scans, 48, keep_spacing=True)
    assert (found.num_slices, found.plane, found.spacing) == (12, "axial", (3.0, 0.8, 0.8))
    # Of two values that are equally common, one of them and not one between.
    assert suggest_preprocess(scans[:2], 48, keep_spacing=True).spacing == (3.0, 0.8, 0.8)
    assert suggest_preprocess([item("a"), item("b")], 96, keep_spacing=True) == Preprocess(
        96, intensity="unit"
    )


def test_small_slices_are_enlarged_to_the_image_size_but_at_most_twice():
    scans = [spaced("a", (30, 60, 50), (1, 1.0, 1.0)), spaced("b", (30, 60, 40), (1, 1.0, 1.0))]
    assert suggest_preprocess(scans, 60, keep_spacing=True).spacing == (1.0, 1.0, 1.0)
    assert suggest_preprocess(scans, 96, keep_spacing=True).spacing == (1.0, 0.625, 0.625)
    assert suggest_preprocess(scans, 512, keep_spacing=True).spacing == (1.0, 0.5, 0.5)


def test_a_spacing_gives_each_volume_its_own_size():
    spec = Preprocess(16, 8, intensity="percentile", spacing=(2.0, 3.0, 3.0))
    array, matrix = stored_otherwise(anatomy(), AFFINE, (1, 2, 0), (0, 1, 1))
    found = preprocess(Volume(array, tuple(map(tuple, matrix)), None, MR), spec)
    assert found.shape == (1, 24, 10, 14)
    wanted = preprocess(Volume(anatomy(), tuple(map(tuple, AFFINE)), None, MR), spec)
    np.testing.assert_allclose(found.astype(float), wanted.astype(float), atol=2e-3)


def test_a_spacing_is_part_of_the_key_only_where_it_is_set():
    spec = Preprocess(64, 8, 1, "lung")
    assert spec.key() == "dcbe0ea90acb3333"
    spaced = Preprocess(64, 8, 1, "lung", spacing=[3, 1, 1])
    assert spaced.key() != spec.key()
    assert Preprocess.from_dict(spaced.to_dict()) == spaced
    assert hash(Preprocess.from_dict(spaced.to_dict())) == hash(spaced)
    for wrong in ({"spacing": (1, 1)}, {"spacing": (1, 1, 0)}, {"spacing": (1, 1, float("nan"))}):
        with pytest.raises(ConfigError, match="three positive numbers"):
            Preprocess(64, 8, **wrong)
    with pytest.raises(ConfigError, match="for volumes"):
        Preprocess(64, spacing=(1, 1, 1))
