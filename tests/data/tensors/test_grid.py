from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import gaussian_filter, zoom
from scipy.spatial.transform import Rotation

from medtl.data.tensors import grid as grid_module
from medtl.data.tensors.grid import Grid
from medtl.data.tensors.preprocess import preprocess
from medtl.data.tensors.spec import PLANES, Preprocess
from medtl.errors import DataError
from medtl.labelmap import VOID
from medtl.scans.items import Volume

SETTINGS = settings(max_examples=40, deadline=None)


def affine_of(turn=None, order=(0, 1, 2), flips=(0, 0, 0), spacing=(1.0, 1.0, 1.0)):
    """Voxel to RAS: axes permuted and reversed, sized, then turned."""
    matrix = np.eye(3)[:, list(order)] * np.where(flips, -1, 1) * np.array(spacing)
    result = np.eye(4)
    result[:3, :3] = (np.eye(3) if turn is None else turn) @ matrix
    result[:3, 3] = 7, -5, 3
    return tuple(map(tuple, result.tolist()))


@st.composite
def scans(draw, smallest=2):
    """Shape and matrix of a scan in any orientation, up to 40 degrees oblique."""
    shape = draw(st.tuples(*[st.integers(smallest, 14)] * 3))
    axis = np.array(draw(st.tuples(*[st.floats(-1, 1)] * 3))) + 1e-3
    angle = np.deg2rad(draw(st.floats(-40, 40)))
    turn = Rotation.from_rotvec(axis / np.linalg.norm(axis) * angle).as_matrix()
    order = draw(st.sampled_from(list(itertools.permutations(range(3)))))
    spacing = draw(st.tuples(*[st.floats(0.5, 5)] * 3))
    return shape, affine_of(turn, order, draw(st.tuples(*[st.booleans()] * 3)), spacing)


def own_spacing(shape, affine, plane="axial"):
    """The specification whose grid has the scan's own voxels."""
    first = Grid.of((shape, affine), Preprocess(16, 8, plane=plane))
    return Preprocess(16, 8, plane=plane, spacing=first.native_spacing)


planes = st.sampled_from(["axial", "coronal", "sagittal"])


@SETTINGS
@given(scans(), planes, st.integers(0, 2**32 - 1))
def test_at_the_scans_own_spacing_the_way_there_and_back_is_exact(scan, plane, seed):
    grid = Grid.of(scan, own_spacing(*scan, plane))
    assert not grid.resampled
    values = torch.from_numpy(np.random.default_rng(seed).random((2, *scan[0]), dtype=np.float32))
    assert torch.equal(grid.to_native(grid.to_network(values)), values)
    mask = np.random.default_rng(seed).choice(np.array([0, 1, 2, VOID], np.uint8), scan[0])
    there = grid.mask_to_network(mask)
    np.testing.assert_array_equal(there, grid.to_network(torch.from_numpy(mask[None].astype(np.float32)))[0])
    shares = torch.from_numpy(np.stack([there == value for value in (0, 1, 2, VOID)]).astype(np.float32))
    np.testing.assert_array_equal(np.array([0, 1, 2, VOID])[grid.argmax_native(shares)], mask)


@SETTINGS
@given(scans(), planes)
def test_voxels_are_turned_towards_the_planes_directions(scan, plane):
    shape, affine = scan
    grid = Grid.of(scan, own_spacing(*scan, plane))
    k, j, i = np.indices(shape)
    places = np.stack([i, j, k], -1) @ np.array(affine)[:3, :3].T + np.array(affine)[:3, 3]
    turned = grid.to_network(torch.from_numpy(np.moveaxis(places, -1, 0).astype(np.float32))).numpy()
    signs = {"L": (0, -1), "P": (1, -1), "I": (2, -1), "S": (2, 1)}
    steps = np.stack([np.diff(turned, axis=axis).mean(axis=(1, 2, 3)) for axis in (3, 2, 1)])  # along i, j, k
    directions = steps / np.linalg.norm(steps, axis=1, keepdims=True)
    ideal = np.zeros((3, 3))
    for row, letter in enumerate(PLANES[plane]):
        axis, sign = signs[letter]
        ideal[row, axis] = sign
    # Of the 48 ways to turn the axes, it is the one that agrees best with the plane.
    score = (directions * ideal).sum()
    for order in itertools.permutations(range(3)):
        for flip in itertools.product((1, -1), repeat=3):
            assert score >= (directions[list(order)] * np.array(flip)[:, None] * ideal).sum() - 1e-3
    np.testing.assert_allclose(grid.native_spacing, np.linalg.norm(steps, axis=1)[::-1], rtol=1e-4)


@SETTINGS
@given(scans(smallest=4), st.tuples(*[st.floats(0.5, 4)] * 3), st.floats(-3, 3))
def test_a_linear_ramp_keeps_its_place_in_the_patient(scan, spacing, slope):
    """Away from the border, linear functions of place pass unchanged through any resampling, both ways."""
    shape = scan[0]
    grid = Grid.of(scan, Preprocess(16, 8, spacing=spacing))
    k, j, i = np.indices(shape)
    ramp = torch.from_numpy((i + slope * j - 0.5 * k).astype(np.float32))[None]
    there = grid.to_network(ramp)
    axes = [
        (np.arange(m) + 0.5) * n / m - 0.5 for m, n in zip(grid.size, grid.turned, strict=True)
    ]  # index in the turned scan of each voxel of the network
    turned = np.stack(np.meshgrid(*axes, indexing="ij"))
    native = np.empty_like(turned)
    for axis, source in enumerate(grid.order):
        index = turned[axis]
        native[source] = shape[source] - 1 - index if axis in grid.flips else index
    expected = native[2] + slope * native[1] - 0.5 * native[0]
    reach = [int(np.ceil(max(1, m / n))) for m, n in zip(grid.size, grid.turned, strict=True)]
    inside = tuple(slice(r, m - r) for r, m in zip(reach, grid.size, strict=True))
    # A low-pass filter of a few taps has its centre of mass some hundredths of a voxel off the middle.
    shrinks = any(m < n for m, n in zip(grid.size, grid.turned, strict=True))
    atol = 0.1 * (1.5 + abs(slope)) if shrinks else 1e-3
    np.testing.assert_allclose(there[0].numpy()[inside], expected[inside], atol=atol)


def test_the_way_back_inverts_the_padding_of_images():
    shape = (1, 10, 20)
    for affine in (None, affine_of(flips=(1, 0, 0), spacing=(1.0, 4.0, 1.0)), affine_of(order=(1, 0, 2))):
        grid = Grid.of((shape, affine), Preprocess(16))
        assert grid.shape == (16, 16)
        ones = torch.ones(1, *shape)
        there = grid.to_network(ones)
        top, left = grid.offset
        inside = there[0, top : top + grid.size[1], left : left + grid.size[2]]
        torch.testing.assert_close(inside, torch.ones_like(inside))
        torch.testing.assert_close(there.sum(), inside.sum())
        torch.testing.assert_close(grid.to_native(there), ones)
        mask = grid.mask_to_network(np.ones(shape, np.uint8))
        np.testing.assert_array_equal(mask, np.where(there[0] > 0, 1, 0))


def blobs(seed, shape, structures=2):
    """Smooth structures of uneven size, some voxels thick and more."""
    fields = np.random.default_rng(seed).normal(size=(structures, *shape))
    smooth = np.stack([gaussian_filter(field, 6) for field in fields])
    smooth /= smooth.std(axis=(1, 2, 3), keepdims=True)
    return np.where(smooth.max(0) > 0.7, 1 + smooth.argmax(0), 0).astype(np.uint8)


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def there_and_back(grid, small):
    return grid.argmax_native(np.stack([small == index for index in range(3)]).astype(np.float16))


@pytest.mark.parametrize(
    "spacing", [(2.0, 1.0, 1.0), (1.0, 0.8, 0.8), (2.0, 1.4, 1.4), (0.7, 0.7, 0.7), (1.5, 1.5, 1.5)]
)
def test_masks_survive_the_way_there_and_back(spacing):
    shape = (40, 60, 70)
    mask = blobs(0, shape)
    turn = Rotation.from_euler("xyz", (20, -10, 30), degrees=True).as_matrix()
    grid = Grid.of((shape, affine_of(turn, (2, 0, 1), (1, 0, 1))), Preprocess(16, 8, spacing=spacing))
    there = grid.mask_to_network(mask)
    back = there_and_back(grid, there)
    for index in (1, 2):
        assert dice(back == index, mask == index) > 0.95
        np.testing.assert_allclose((there == index).mean(), (mask == index).mean(), rtol=0.02)


@pytest.mark.parametrize("spacing", [(1.5, 1.5, 1.5), (1.7, 1.3, 1.3), (2.0, 2.0, 2.0)])
def test_masks_shrink_better_than_with_nearest_neighbours(spacing):
    shape = (40, 60, 60)
    ours, theirs = [], []
    for seed in range(4):
        mask = np.random.default_rng(seed).integers(0, 3, 5 * 8 * 8).astype(np.uint8).reshape(5, 8, 8)
        mask = zoom(mask, 5, order=0, grid_mode=True, mode="nearest")[: shape[0], :38, :38]  # edges at fives
        grid = Grid.of((mask.shape, affine_of()), Preprocess(16, 8, spacing=spacing))
        index = [
            ((np.arange(m) + 0.5) * n / m).astype(int) for m, n in zip(grid.size, grid.turned, strict=True)
        ]
        nearest = grid.turn(mask)[np.ix_(*index)]
        for found, small in ((ours, grid.mask_to_network(mask)), (theirs, nearest)):
            found.append(np.mean([dice(there_and_back(grid, small) == c, mask == c) for c in (1, 2)]))
    assert np.mean(ours) >= np.mean(theirs)


@given(st.integers(1, 40), st.integers(1, 40))
@SETTINGS
def test_shares_are_what_a_voxel_covers(size, new_size):
    weights = grid_module.resampling_weights(size, new_size, True).numpy()
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-5)
    if new_size < size:
        for row, found in enumerate(weights):
            low, high = row * size / new_size, (row + 1) * size / new_size
            covered = [max(0, min(high, n + 1) - max(low, n)) / (high - low) for n in range(size)]
            np.testing.assert_allclose(found, covered, atol=1e-5)


def test_equal_shares_favour_no_class():
    """Voxels of one fall into halves: no class gains or loses volume by its number."""
    mask = blobs(2, (40, 60, 60))
    grid = Grid.of((mask.shape, affine_of()), Preprocess(16, 8, spacing=(2.0, 1.0, 1.0)))
    there = grid.mask_to_network(mask)
    for index in range(3):
        np.testing.assert_allclose((there == index).mean(), (mask == index).mean(), rtol=0.04)


def test_void_wins_with_more_than_half_of_the_voxel():
    # Pairs of columns become one; the middle of a pair is its second.
    row = np.array([VOID, 1, VOID, VOID, 1, 1, 0, 1, 1, 0, 1, VOID], np.uint8)
    mask = np.broadcast_to(row, (4, 12, 12)).copy()
    grid = Grid.of((mask.shape, affine_of(flips=(1, 1, 0))), Preprocess(16, 8, spacing=(1.0, 1.0, 2.0)))
    assert grid.flips == ()
    np.testing.assert_array_equal(grid.mask_to_network(mask)[0, 0], [1, VOID, 1, 1, 0, 1])
    assert (grid.mask_to_network(np.full_like(mask, VOID)) == VOID).all()


@pytest.mark.parametrize("affine", [affine_of(order=(2, 0, 1), flips=(1, 0, 1), spacing=(0.9, 1.3, 2.1))])
def test_slabs_make_no_difference(monkeypatch, affine):
    shape = (21, 33, 27)
    spec = Preprocess(16, 8, intensity="percentile", spacing=(1.7, 0.9, 0.9))
    rng = np.random.default_rng(0)
    volume = Volume(rng.integers(0, 1000, shape).astype(np.int16), affine, rng.random(shape) < 0.1, {})
    grid = Grid.of((shape, affine), spec)
    values = torch.from_numpy(rng.random((3, *grid.shape), dtype=np.float32))
    mask = blobs(1, shape)
    mask[:, :5] = VOID

    def everything():
        native = grid.to_native(values)
        return preprocess(volume, spec), grid.mask_to_network(mask), native, grid.argmax_native(values)

    whole = everything()
    monkeypatch.setattr(grid_module, "_SLAB", 1)
    single = everything()
    np.testing.assert_allclose(whole[0].astype(float), single[0].astype(float), atol=1e-3)
    assert (whole[1] == single[1]).mean() > 0.999
    np.testing.assert_allclose(whole[2], single[2], atol=1e-5)
    assert (whole[3] == single[3]).mean() > 0.999
    np.testing.assert_array_equal(whole[3], whole[2].argmax(0))


@SETTINGS
@given(arrays(np.float32, (3, 4, 5, 6), elements=st.sampled_from([0.0, 0.25, 0.5])))
def test_the_first_of_equal_classes_wins(values):
    np.testing.assert_array_equal(
        grid_module.first_argmax(torch.from_numpy(values)), values.argmax(0).astype(np.uint8)
    )


def test_preprocessing_and_grid_agree():
    shape, affine = (9, 20, 26), affine_of(order=(1, 2, 0), flips=(0, 1, 0), spacing=(1.0, 2.0, 3.0))
    array = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    for spec in (
        Preprocess(24, 6, intensity="unit", plane="coronal"),
        Preprocess(24, 6, intensity="unit", spacing=(2.0, 1.5, 1.5)),
    ):
        grid = Grid.of((shape, affine), spec)
        found = preprocess(Volume(array, affine, None, {}), spec)
        assert found.shape == (1, *grid.shape)
        expected = grid.to_network(torch.from_numpy(array[None].astype(np.float32) / 255))
        inside = (..., *grid.inside)
        np.testing.assert_allclose(found.astype(float)[inside], expected.numpy()[inside], atol=1e-3)


def test_what_lies_beyond_the_scan():
    """The margin: the median of the scan's border, channel by channel, and the label of the background."""
    picture = np.zeros((1, 6, 16, 3), np.uint8)
    picture[..., :] = 200, 160, 220  # a bright ground
    picture[0, :2, 3:7] = 10, 20, 30  # something that meets the border
    mask = np.zeros((1, 6, 16), np.uint8)
    mask[0, :2, 3:7], mask[0, 5, :9] = 1, VOID
    grid = Grid.of(((1, 6, 16), None), Preprocess(16, channels=3, intensity="unit"))
    found = preprocess(Volume(picture, None, None, {"kind": "image", "bits": 8}), Preprocess(16, channels=3))
    assert grid.inside == (slice(5, 11), slice(0, 16))
    np.testing.assert_allclose(found[:, 5:11], np.moveaxis(picture[0], -1, 0) / 255, atol=1e-3)
    margin = np.ones((16, 16), bool)
    margin[grid.inside] = False
    ground = np.array([200, 160, 220])[:, None] / 255
    np.testing.assert_allclose(found[:, margin], np.broadcast_to(ground, (3, 160)), atol=1e-3)
    np.testing.assert_array_equal(grid.beyond(found), found[:, 0, 0])
    there = grid.mask_to_network(mask)
    assert (there[margin] == 0).all()
    np.testing.assert_array_equal(there[grid.inside], mask[0])  # its own void stays


@pytest.mark.parametrize("shape", [(4, 20, 12), (5, 9, 30)])
def test_volumes_in_a_square_have_the_same_margin(shape):
    array = np.random.default_rng(0).integers(0, 200, shape).astype(np.uint8)
    array[:, :, :2] = 90
    array[:, :, -2:] = 90
    array[:, :2] = 90
    spec = Preprocess(24, 4, intensity="unit")
    grid = Grid.of((shape, affine_of(flips=(1, 1, 0))), spec)
    found = preprocess(Volume(array, affine_of(flips=(1, 1, 0)), None, {}), spec)
    margin = np.ones((24, 24), bool)
    margin[grid.inside] = False
    np.testing.assert_allclose(found[:, :, margin].astype(float), 90 / 255, atol=2e-3)


def test_an_image_keeps_its_own_plane_however_oblique_it_is():
    turn = Rotation.from_euler("xyz", (46, 44, 10), degrees=True).as_matrix()
    for order in itertools.permutations(range(3)):
        grid = Grid.of(((1, 12, 9), affine_of(turn, order)), Preprocess(16))
        assert grid.order[0] == 0
        assert grid.to_native(torch.rand(2, 16, 16)).shape == (2, 1, 12, 9)


def test_faults():
    with pytest.raises(DataError, match="volume of 3 slices"):
        Grid.of(((3, 8, 8), None), Preprocess(16))
    with pytest.raises(DataError, match="choose a larger spacing"):
        Grid.of(((600, 512, 512), affine_of()), Preprocess(16, 8, spacing=(0.1, 0.1, 0.1)))
    grid = Grid.of(((4, 8, 8), affine_of()), Preprocess(16, 8, spacing=(1.0, 1.0, 1.0)))
    with pytest.raises(ValueError, match="Expected"):
        grid.to_native(torch.zeros(2, 4, 8, 9))


@pytest.mark.slow
def test_a_large_ct_stays_within_its_memory():
    import resource

    shape, affine = (600, 512, 512), affine_of(flips=(1, 1, 0), spacing=(0.8, 0.8, 1.0))
    array = np.empty(shape, np.int16)
    for k in range(shape[0]):
        array[k] = np.random.default_rng(k).integers(-1000, 1000, shape[1:])
    spec = Preprocess(128, 32, intensity="soft_tissue", spacing=(1.0, 0.8, 0.8))
    result = preprocess(Volume(array, affine, None, {}), spec)
    assert result.shape == (1, *shape)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20 < 3.5
