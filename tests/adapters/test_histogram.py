"""Histogram matching: the reference's values, the image's order, and padding that stays out of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.exposure import match_histograms

from medtl.adapters import Batch, build_adapter
from medtl.adapters.histogram import match
from medtl.errors import ConfigError
from tests.adapters.toys import domains, masks, network, segmenter

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(3, 12, 12), (1, 6, 8, 8)])
def test_values_are_the_references_in_the_images_order(shape: tuple[int, ...]) -> None:
    image, other = RNG.random(shape, np.float32) + 0.01, (RNG.random(shape, np.float32) + 0.01) / 3
    matched = match(image, [other])
    assert matched.dtype == np.float32
    for channel in range(shape[0]):
        # As many values, none twice: the matched channel is a permutation of the reference's.
        np.testing.assert_allclose(
            np.sort(matched[channel].ravel()), np.sort(other[channel].ravel()), atol=1e-6
        )
        np.testing.assert_array_equal(
            np.argsort(matched[channel].ravel()), np.argsort(image[channel].ravel())
        )


def test_is_scikit_images_without_padding() -> None:
    image, other = RNG.random((3, 9, 11), np.float32) + 0.01, RNG.random((3, 7, 5), np.float32) + 0.01
    np.testing.assert_allclose(
        match(image, [other]), match_histograms(image, other, channel_axis=0), atol=1e-6
    )


def test_undoes_a_monotone_shift() -> None:
    image = RNG.random((1, 20, 20), np.float32) * 0.8 + 0.1
    shifted = 0.35 * image**2 + 0.5
    np.testing.assert_allclose(match(shifted, [image]), image, atol=1e-5)


def test_padding_is_left_out_and_stays_zero() -> None:
    image = RNG.random((1, 20, 20), np.float32) * 0.5 + 0.2
    inside = image[:, 4:16, 4:16].copy()
    padded = np.zeros_like(image)
    padded[:, 4:16, 4:16] = inside
    reference = np.zeros((1, 20, 20), np.float32)
    reference[:, :5] = RNG.random((1, 5, 20), np.float32) * 0.2 + 0.7  # other padding than the image's
    matched = match(padded, [reference])
    assert (matched[padded == 0] == 0).all()
    np.testing.assert_allclose(
        matched[:, 4:16, 4:16], match_histograms(inside[0], reference[0, :5])[None], atol=1e-6
    )
    naive = match_histograms(padded, reference, channel_axis=0)
    assert np.abs(naive - matched).max() > 0.1  # the shares of padding differ, and would move the values


def test_what_is_beyond_the_scan_takes_no_part_and_changes_with_its_border() -> None:
    image, reference = RNG.random((3, 20, 20), np.float32) * 0.5 + 0.2, RNG.random((3, 20, 20), np.float32)
    outside, other = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
    outside[:8], other[:, 15:] = True, True
    image[:, 8] = image[:, outside] = np.array([0.3, 0.4, 0.5], np.float32)[:, None, None].squeeze(-1)
    reference[:, other] = 0.95
    matched = match(image, [reference], outside, [other])
    for channel in range(3):
        expected = match_histograms(image[channel, 8:], reference[channel, :, :15])
        np.testing.assert_allclose(matched[channel, 8:], expected, atol=1e-6)
        # The margin had the value of the row at the scan's edge, and still has.
        np.testing.assert_allclose(matched[channel, :8], matched[channel, 8, 0], atol=1e-6)
    dark = np.where(outside, 0, image)
    assert (match(dark, [reference], outside, [other])[:, 8:] == matched[:, 8:]).all()


def test_the_batch_says_what_is_beyond_the_scan() -> None:
    adapter, seen = build_adapter("histogram", network()), []
    adapter.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    source, target, _ = domains(6, 0)
    outside = torch.zeros(6, *source.image.shape[2:], dtype=torch.bool)
    outside[:, :3] = True
    source.image[:, :, :3] = 0.5
    for batch, given in ((source, outside), (target, torch.zeros_like(outside))):
        batch.outside = given
    torch.manual_seed(0)
    adapter(source, target, progress=0.0)
    torch.manual_seed(0)
    partner = torch.randint(6, (6,)).tolist()
    for number, image in enumerate(seen[0]):
        expected = match(
            source.image[number].numpy(), [target.image[partner[number]].numpy()], outside[number].numpy()
        )
        np.testing.assert_array_equal(image.numpy(), expected)


def test_few_zeros_are_grey_values() -> None:
    image = RNG.random((1, 20, 20), np.float32)
    image[0, 0, :3] = 0
    other = RNG.random((1, 20, 20), np.float32) * 0.3 + 0.6
    assert match(image, [other]).min() >= 0.6


@pytest.mark.parametrize("empty", ["image", "reference"])
def test_nothing_but_padding_changes_nothing(empty: str) -> None:
    zeros, image = np.zeros((1, 8, 8), np.float32), RNG.random((1, 8, 8), np.float32) + 0.1
    given, reference = (zeros, image) if empty == "image" else (image, zeros)
    np.testing.assert_array_equal(match(given, [reference]), given)


def test_a_batch_is_one_reference() -> None:
    image = RNG.random((1, 8, 8), np.float32) + 0.01
    dark, bright = (
        RNG.random((1, 8, 8), np.float32) * 0.1 + 0.1,
        RNG.random((1, 8, 8), np.float32) * 0.1 + 0.8,
    )
    matched = match(image, [dark, bright])
    assert (matched < 0.25).mean() == pytest.approx(0.5, abs=0.02)
    assert (matched > 0.75).mean() == pytest.approx(0.5, abs=0.02)


def test_masks_and_prediction_are_not_touched() -> None:
    adapter = build_adapter("histogram", segmenter(), match="batch")
    source, target, _ = masks(6, 0)
    seen, image, label = [], source.image.clone(), source.label.clone()
    adapter.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    adapter(source, Batch(image=target.image[:3]), progress=0.0)
    assert len(seen) == 1
    assert torch.equal(source.image, image)
    assert torch.equal(source.label, label)
    torch.testing.assert_close(seen[0].mean(), target.image[:3].mean(), atol=2e-3, rtol=0)


def test_probability_matches_some() -> None:
    adapter = build_adapter("histogram", network(), probability=0.25)
    source, target, _ = domains(200, 0)
    seen = []
    adapter.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    torch.manual_seed(0)
    adapter(source, target, progress=0.0)
    assert 120 < int((seen[0] == source.image).flatten(1).all(1).sum()) < 180


@pytest.mark.parametrize("options", [{"probability": 0.0}, {"match": "site"}])
def test_refuses(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="expected image or batch"):
        build_adapter("histogram", network(), **options)
