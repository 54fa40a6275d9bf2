from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medtl.data.tensors.patches import centred, cut, place, suggest_patch
from medtl.data.tensors.preprocess import suggest_preprocess
from medtl.data.tensors.spec import Preprocess
from medtl.errors import ConfigError, DataError
from medtl.scans.items import VolumeItem


def scan(shape, spacing=(1.0, 1.0, 1.0)):
    affine = np.diag([-spacing[2], -spacing[1], spacing[0], 1.0])
    return VolumeItem(".", ("a",), "nifti", "a", "a", shape=shape, affine=tuple(map(tuple, affine)))


def suggested(scans, size, **options):
    return suggest_patch(scans, suggest_preprocess(scans, size, keep_spacing=True), size, **options)


def test_images_are_taken_whole():
    images = [VolumeItem(".", ("a",), "image", "a", "a", shape=(1, n, 300)) for n in (20, 400)]
    assert suggested(images, 96) == (96, 96)
    assert suggested(images, 96, depth="cube") == (96, 96)


def test_patches_of_volumes():
    small = [scan((n, 50, 35)) for n in (30, 36, 47)]
    # Isotropic and small: the median scan, each side up to a multiple of 8.
    assert suggested(small, 48, depth="cube") == (40, 48, 40)
    assert suggested(small, 48) == (8, 48, 40)
    # Pixels made finer by 96 / 50: the slices fill the image size.
    assert suggested(small, 96, depth="cube") == (40, 96, 72)
    assert suggested(small, 96) == (8, 96, 72)
    ct = [scan((120, 512, 512), (3.0, 0.75, 0.75))]
    assert suggested(ct, 128) == (8, 128, 128)
    assert suggested(ct, 128, depth="cube") == (32, 128, 128)  # 96 mm thick and wide
    assert suggested([scan((120, 512, 512), (1.0, 2.0, 2.0))], 64, depth="cube") == (64, 64, 64)
    assert suggested([scan((5, 300, 300), (6.0, 1.0, 1.0))], 128) == (5, 128, 128)
    assert suggested([scan((5, 300, 300), (6.0, 1.0, 1.0))], 100, depth="cube") == (5, 96, 96)


def test_suggestion_faults():
    with pytest.raises(ConfigError, match="thin"):
        suggest_patch([scan((5, 9, 9))], Preprocess(16, 8), 16, depth="thick")
    with pytest.raises(DataError, match="no scans"):
        suggest_patch([], Preprocess(16, 8), 16)


sides = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=2, max_size=3)


@settings(max_examples=60, deadline=None)
@given(sides, st.integers(0, 99), st.booleans())
def test_patches_lie_inside_where_they_fit(sides, seed, structure):
    shape, patch = zip(*sides, strict=True)
    rng = np.random.default_rng(seed)
    voxel = np.array([[rng.integers(n) for n in shape]], np.int32)
    start = place(shape, patch, rng, {1: voxel} if structure else None, 1.0)
    for first, size, length, at in zip(start, shape, patch, voxel[0], strict=True):
        if length <= size:
            assert 0 <= first <= size - length
        else:
            assert first == -((length - size + 1) // 2)
        if structure:
            assert first <= at < first + length


def test_where_patches_lie():
    rng = np.random.default_rng(0)
    points = {1: np.full((5, 2), 20, np.int32), 3: np.full((900, 2), 60, np.int32)}
    starts = np.array([place((100, 100), (9, 9), rng, points, 0.5) for _ in range(4000)])
    on_one, on_three = ((starts == n - 4).all(1).mean() for n in (20, 60))
    # A quarter each, however many voxels a structure has; the other half lies anywhere.
    assert abs(on_one - 0.25) < 0.03
    assert abs(on_three - 0.25) < 0.03
    anywhere = np.array([place((100,), (10,), rng) for _ in range(9000)])[:, 0]
    counts = np.bincount(anywhere, minlength=91)
    assert len(counts) == 91
    assert counts.min() > 50


def test_all_draws_take_as_many_numbers():
    points = {1: np.zeros((5, 2), np.int32)}
    after = []
    for given_points, share in ((None, 0.5), (points, 0.0), (points, 1.0)):
        rng = np.random.default_rng(3)
        place((30, 40), (8, 8), rng, given_points, share)
        after.append(rng.random())
    assert len(set(after)) == 1


@settings(max_examples=60, deadline=None)
@given(sides, st.integers(0, 99), st.integers(0, 5))
def test_cut_is_a_window_with_one_value_a_channel_around_the_volume(sides, seed, margin):
    shape, patch = zip(*sides, strict=True)
    rng = np.random.default_rng(seed)
    array = rng.integers(1, 200, (2, *shape)).astype(np.uint8)
    start = place(shape, patch, rng)
    margins = [margin if length < size else 0 for size, length in sides]
    outside = np.array([255, 201], np.uint8)
    found = cut(array, start, patch, margins, outside=outside)
    grids = np.ix_(
        *(
            np.arange(first - more, first + length + more)
            for first, length, more in zip(start, patch, margins, strict=True)
        )
    )
    inside = np.broadcast_arrays(
        *((index >= 0) & (index < size) for index, size in zip(grids, shape, strict=True))
    )
    nearest = tuple(np.clip(index, 0, size - 1) for index, size in zip(grids, shape, strict=True))
    around = outside.reshape(-1, *[1] * len(shape))
    expected = np.where(np.logical_and.reduce(inside), array[(slice(None), *nearest)], around)
    np.testing.assert_array_equal(found, expected)
    assert found.flags.writeable
    assert not np.shares_memory(found, array)
    np.testing.assert_array_equal(cut(array[0], start, patch, margins, outside=255), expected[0])


def test_where_a_small_volume_lies():
    assert centred((8, 5, 4, 9), (8, 8, 8, 8)) == (0, -2, -2, 0)
    assert centred((7,), (8,)) == (-1,)
