from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from monai.metrics import (
    compute_average_surface_distance,
    compute_hausdorff_distance,
    compute_surface_dice,
)
from monai.metrics.utils import get_mask_edges
from scipy.ndimage import gaussian_filter

from medtl.evaluation.metrics.surfaces import (
    Surface,
    SurfaceDistances,
    bounding_box,
    surface_distances,
    surface_voxels,
)


def square(size: int, first: int, last: int) -> np.ndarray:
    mask = np.zeros((size, size), dtype=bool)
    mask[first:last, first:last] = True
    return mask


def cross() -> tuple[np.ndarray, np.ndarray]:
    """A square, and the same with a row and a column that reach beyond it."""
    reference = square(11, 3, 8)
    called = reference.copy()
    called[5, 1:10] = called[1:10, 5] = True
    return called, reference


def blobs(seed: int, shape: Sequence[int], threshold: float = 0.02) -> tuple[np.ndarray, np.ndarray]:
    """Two masks that overlap in parts; they touch the image's border."""
    rng = np.random.default_rng(seed)
    common = gaussian_filter(rng.normal(size=shape), 2)
    first, second = (common + 0.5 * gaussian_filter(rng.normal(size=shape), 1.5) for _ in range(2))
    return first > threshold, second > threshold


def test_square_and_cross() -> None:
    found = surface_distances(*cross())
    assert found.hd == 2
    assert found.assd == pytest.approx(4 / 9, abs=1e-12)
    assert found.masd == pytest.approx(0.425, abs=1e-12)
    assert found.nsd(1) == pytest.approx(8 / 9, abs=1e-12)
    assert found.nsd(2) == 1


def test_square_in_and_around_a_square() -> None:
    reference = square(14, 5, 9)
    inner = surface_distances(square(14, 6, 8), reference)
    assert inner.hd == pytest.approx(np.sqrt(2))
    assert (inner.assd, inner.masd, inner.nsd(1)) == pytest.approx((1.103553, 1.069036, 0.75), abs=5e-7)
    outer = surface_distances(square(14, 4, 10), reference)
    assert (outer.assd, outer.masd, outer.nsd(1)) == pytest.approx((1.051777, 1.041421, 0.875), abs=5e-7)


def test_hd95_is_the_larger_directed_percentile() -> None:
    """A square and one missed pixel, as in figure 5c of the pitfalls of metrics (Reinke 2024).

    Three tools, three numbers: 6.788225 in MetricsReloaded and MONAI, 11.313708 where percentiles are weighed by area
    and not interpolated, 2.262742 where both directions are pooled.
    """
    called = square(14, 2, 5)
    reference = called.copy()
    reference[12, 12] = True
    found = surface_distances(called, reference)
    assert found.hd == pytest.approx(11.313708, abs=5e-7)
    assert found.hd95 == pytest.approx(6.788225, abs=5e-7)
    pooled = np.percentile(np.concatenate([found.to_called, found.to_reference]), 95)
    assert pooled == pytest.approx(2.262742, abs=5e-7)


def test_half_spaces_by_voxel_edges() -> None:
    """Surface voxels counted, not weighed by area: .754935 where DeepMind's surface-distance gives .836145."""
    called, reference = np.zeros((2, 100, 100, 100), dtype=bool)
    reference[:50], called[:51] = True, True
    found = surface_distances(called, reference, (2.0, 1.0, 1.0))
    assert found.nsd(1) == pytest.approx(0.754935, abs=5e-7)
    assert found.hd95 == 2
    assert found.hd == 2


# MONAI warns about an argument that it passes to itself.
@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
@pytest.mark.parametrize("shape", [(40, 31), (18, 24, 21)])
@pytest.mark.parametrize("seed", range(6))
def test_agrees_with_monai(shape: tuple[int, ...], seed: int) -> None:
    called, reference = blobs(seed, shape)
    spacing = tuple(np.random.default_rng(seed).uniform(0.4, 3.0, len(shape)))
    edges = get_mask_edges(called, reference, crop=False)
    for mask, expected in zip((called, reference), edges, strict=True):
        assert np.array_equal(surface_voxels(mask), np.argwhere(expected))
    found = surface_distances(called, reference, spacing)
    pair = {"y_pred": torch.tensor(called[None, None]), "y": torch.tensor(reference[None, None])}
    same = {"include_background": True, "spacing": [spacing]}
    for q, own in ((95, found.hd95), (None, found.hd)):
        assert own == pytest.approx(float(compute_hausdorff_distance(**pair, **same, percentile=q)), rel=1e-5)
    expected = float(compute_average_surface_distance(**pair, **same, symmetric=True))
    assert found.assd == pytest.approx(expected, rel=1e-5)
    for tolerance in (0.7, 1.3, 2.9):
        expected = float(compute_surface_dice(**pair, **same, class_thresholds=[tolerance]))
        assert found.nsd(tolerance) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_symmetry_scale_and_shift(seed: int) -> None:
    a, b = blobs(seed, (12, 15, 13), 0.05)
    one, two = surface_distances(a, b, (2.0, 1.0, 0.5)), surface_distances(b, a, (2.0, 1.0, 0.5))
    for name in ("hd", "hd95", "assd", "masd"):
        assert getattr(one, name) == pytest.approx(getattr(two, name))
        larger = surface_distances(a, b, (6.0, 3.0, 1.5))
        assert getattr(larger, name) == pytest.approx(3 * getattr(one, name))
    assert one.nsd(1.0) == pytest.approx(two.nsd(1.0))
    turned = surface_distances(a.transpose(2, 0, 1), b.transpose(2, 0, 1), (0.5, 2.0, 1.0))
    assert turned.assd == pytest.approx(one.assd)
    padded = [np.pad(mask, ((3, 1), (0, 5), (2, 2))) for mask in (a, b)]
    assert surface_distances(*padded, (2.0, 1.0, 0.5)).hd95 == pytest.approx(one.hd95)


def test_a_structure_ends_at_the_border_of_the_image() -> None:
    full = np.ones((5, 6, 7), dtype=bool)
    assert len(surface_voxels(full)) == 5 * 6 * 7 - 3 * 4 * 5


def test_one_slice_is_judged_as_an_image() -> None:
    called, reference = cross()
    flat = surface_distances(called, reference, (0.7, 0.7))
    volume = surface_distances(called[None], reference[None], (5.0, 0.7, 0.7))
    assert volume.hd95 == flat.hd95
    assert volume.assd == pytest.approx(flat.assd)
    assert len(volume.to_called) == 16


def test_a_box_of_the_image_gives_the_same_surface() -> None:
    mask = blobs(3, (20, 20, 20), 0.3)[0]
    box = bounding_box(mask)
    assert box is not None
    part = Surface.of(mask[box], (1.0, 2.0, 3.0), box=box, shape=mask.shape)
    assert np.array_equal(part.points, Surface.of(mask, (1.0, 2.0, 3.0)).points)
    one_slice = np.zeros((5, 9, 9), dtype=bool)
    one_slice[2, 2:7, 2:7] = True
    box = bounding_box(one_slice)
    assert box == (slice(2, 3), slice(2, 7), slice(2, 7))
    # The image goes on above and below: every voxel of the slice is surface.
    assert len(Surface.of(one_slice[box], box=box, shape=one_slice.shape)) == 25


def test_tolerance_has_slack_for_rounded_spacings() -> None:
    called, reference = np.zeros((2, 30, 3, 3), dtype=bool)
    reference[2, 1, 1], called[5, 1, 1] = True, True
    spacing = tuple(float(np.float32(x)) for x in (0.7, 1, 1))
    found = surface_distances(called, reference, spacing)
    assert found.hd != 2.1
    assert found.nsd(2.1) == 1
    assert found.nsd(2.09) == 0


def test_empty_and_unequal_masks_are_refused() -> None:
    mask = square(5, 1, 3)
    assert len(surface_voxels(np.zeros((4, 4), dtype=bool))) == 0
    assert bounding_box(np.zeros((4, 4, 0), dtype=bool)) is None
    with pytest.raises(ValueError, match="empty surface"):
        surface_distances(mask, np.zeros_like(mask))
    with pytest.raises(ValueError, match="shapes"):
        surface_distances(mask, square(6, 1, 3))


def test_one_voxel_image() -> None:
    mask = np.ones((1, 1, 1), dtype=bool)
    assert surface_distances(mask, mask).hd == 0


def test_monai_drops_what_is_missed_and_we_refuse() -> None:
    """The reason why a status exists: MONAI's percentile of a missed structure is nan and leaves the mean."""
    reference, nothing = square(9, 2, 6), np.zeros((9, 9), dtype=bool)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lost = compute_hausdorff_distance(
            torch.tensor(nothing[None, None]), torch.tensor(reference[None, None]), True, percentile=95
        )
    assert not torch.isfinite(lost).any()
    with pytest.raises(ValueError, match="empty"):
        SurfaceDistances.between(Surface.of(nothing), Surface.of(reference))
