from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from medtl.scans.catalog import scan_folder
from medtl.scans.geometry import Irregular, Stack, dicom_affine, slice_normal, stack_slices, voxel_spacing
from medtl.scans.volume import read_volume
from tests.scans.make_scans import AXIAL, write_series


def positions(steps):
    return [(0.0, 0.0, float(z)) for z in steps]


@settings(max_examples=60, deadline=None)
@given(
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    spacing=st.tuples(*[st.floats(0.2, 6)] * 3),
    first=st.tuples(*[st.floats(-300, 300)] * 3),
    count=st.integers(2, 9),
    order=st.randoms(use_true_random=False),
)
def test_affine_puts_every_voxel_where_dicom_says(angles, spacing, first, count, order):
    rotation = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    orientation = (*rotation[:, 0], *rotation[:, 1])
    dy, dx, dz = spacing
    places = [np.array(first) + k * dz * rotation[:, 2] for k in range(count)]
    shuffled = list(range(count))
    order.shuffle(shuffled)
    stack = stack_slices(orientation, [places[k] for k in shuffled])
    assert isinstance(stack, Stack)
    assert [shuffled[n] for n in stack.order] == list(range(count))
    affine = np.array(dicom_affine(orientation, (dy, dx), stack.first, stack.step))
    voxel = np.array([5, 3, count - 1, 1])
    lps = (
        np.array(first)
        + 5 * dx * rotation[:, 0]
        + 3 * dy * rotation[:, 1]
        + (count - 1) * dz * rotation[:, 2]
    )
    np.testing.assert_allclose((affine @ voxel)[:3], lps * (-1, -1, 1), atol=1e-6)
    np.testing.assert_allclose(voxel_spacing(affine), (dx, dy, dz), rtol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_files_on_disk_keep_each_voxel_in_its_place(tmp_path, seed):
    rng = np.random.default_rng(seed)
    rotation = Rotation.random(rng=rng).as_matrix()
    volume = np.arange(4 * 3 * 5, dtype=np.int16).reshape(4, 3, 5)
    first, (dy, dx, dz) = rng.uniform(-100, 100, 3), (0.7, 1.9, 3.3)
    names = [f"{n}.dcm" for n in rng.permutation(4)]
    orientation = (*rotation[:, 0], *rotation[:, 1])
    write_series(
        tmp_path, volume, first=first, orientation=orientation, step=dz, spacing=(dy, dx), names=names
    )
    (item,) = scan_folder(tmp_path).items
    read = read_volume(item)
    for value in (0, 17, 33, 59):
        k, j, i = np.argwhere(volume == value)[0]
        lps = first + i * dx * rotation[:, 0] + j * dy * rotation[:, 1] + k * dz * rotation[:, 2]
        found = np.argwhere(read.array == value)[0][::-1]
        ras = (np.array(read.affine) @ np.array([*found, 1]))[:3]
        np.testing.assert_allclose(ras, lps * (-1, -1, 1), atol=1e-3)


def test_order_follows_the_normal_and_not_z_or_the_instance_number(tmp_path):
    sagittal = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)  # its normal points to -x
    volume = np.stack([np.full((3, 4), k, np.int16) for k in range(5)])
    write_series(tmp_path, volume, orientation=sagittal, step=2.0)
    (item,) = scan_folder(tmp_path).items
    read = read_volume(item)
    assert read.array[:, 0, 0].tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(np.array(read.affine)[:3, 2], (2, 0, 0), atol=1e-9)


def test_gantry_tilt_is_kept_as_shear():
    stack = stack_slices(AXIAL, [(0, 0.5 * k, 2.0 * k) for k in range(6)])
    assert isinstance(stack, Stack)
    np.testing.assert_allclose(stack.step, (0, 0.5, 2))


@pytest.mark.parametrize(
    ("steps", "code", "text"),
    [
        ([0, 5, 10, 20, 25], "missing_slices", "1 slices of step 5 mm are missing, after slice 3"),
        ([0, 5, 20, 25, 30], "missing_slices", "2 slices"),
        ([0, 1, 3, 4.4, 9], "irregular_spacing", "from 1 to 4.6 mm"),
        ([0, 0, 5, 5], "four_d", "4 slices lie at 2 places, 2 at each"),
        ([0, 0, 5, 10], "four_d", "unevenly"),
    ],
)
def test_uneven_series_are_refused_with_the_numbers(steps, code, text):
    found = stack_slices(AXIAL, positions(steps))
    assert isinstance(found, Irregular)
    assert found.code == code
    assert text in found.detail


def test_rounded_positions_are_regular():
    found = stack_slices(AXIAL, positions(np.round(np.arange(40) * 0.625, 1)))
    assert isinstance(found, Stack)
    assert found.step[2] == pytest.approx(0.625, abs=2e-3)


def test_one_slice_lost_near_the_end_of_a_long_series_is_noticed():
    steps = [*range(300), 301, 302]
    assert isinstance(stack_slices(AXIAL, positions(steps)), Irregular)


def test_a_bent_series_is_irregular():
    found = stack_slices(AXIAL, [(0, 0, 0), (0, 4, 5), (0, 0, 10)])
    assert isinstance(found, Irregular)
    assert found.code == "irregular_spacing"


def test_directions_that_are_not_orthonormal_are_refused():
    with pytest.raises(ValueError, match="right angles"):
        slice_normal((1, 0, 0, 0.5, 0.5, 0))
