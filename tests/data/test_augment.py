from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from medtl.data.augment import _RandSmooth, augmentation
from medtl.errors import ConfigError

IMAGES = {
    (2, 3): np.random.default_rng(0).random((3, 32, 40)).astype(np.float16),
    (2, 1): np.random.default_rng(1).random((1, 32, 40)).astype(np.float16),
    (3, 1): np.random.default_rng(2).random((1, 6, 32, 32)).astype(np.float16),
    (3, 3): np.random.default_rng(3).random((3, 6, 32, 32)).astype(np.float16),
}


@pytest.mark.parametrize("name", ["none", "standard", "strong"])
@pytest.mark.parametrize(("dims", "channels"), [(2, 3), (2, 1), (3, 1)])
def test_same_seed_same_image_in_any_order(name, dims, channels):
    image = IMAGES[dims, channels]
    forwards, backwards = (augmentation(name, dims, channels) for _ in range(2))
    seeds = [5, 2**62 + 1, 0, 3, 2**33]
    one = {seed: forwards(image, seed) for seed in seeds}
    torch.manual_seed(99)
    np.random.seed(99)
    two = {seed: backwards(image, seed) for seed in reversed(seeds)}
    assert all(torch.equal(one[seed], two[seed]) for seed in seeds)
    different = {one[seed].numpy().tobytes() for seed in seeds}
    assert len(different) == (1 if name == "none" else len(seeds))


@pytest.mark.parametrize("name", ["standard", "strong"])
@pytest.mark.parametrize(("dims", "channels"), list(IMAGES))
def test_shape_type_and_range_are_kept(name, dims, channels):
    image = IMAGES[dims, channels]
    before = image.copy()
    change = augmentation(name, dims, channels)
    for seed in range(40):
        result = change(image, seed)
        assert type(result) is torch.Tensor
        assert result.dtype == torch.float32
        assert result.shape == image.shape
        assert 0 <= float(result.min()) <= float(result.max()) <= 1
    np.testing.assert_array_equal(image, before)


def test_all_slices_of_a_volume_move_together():
    slices = np.repeat(IMAGES[2, 1][:, None], 6, axis=1)
    change = augmentation("standard", 3, 1)
    change.values = []  # noise differs between slices and should
    for seed in range(20):
        result = change(slices, seed)
        assert torch.equal(result[:, :1].expand_as(result), result)


def test_standard_leaves_colour_alone_and_strong_does_not():
    flat = np.broadcast_to(np.array([0.6, 0.4, 0.5], np.float32)[:, None, None], (3, 16, 16)).copy()

    def order_changes(name):
        change = augmentation(name, 2, 3)
        means = torch.stack([change(flat, seed).mean(dim=(1, 2)) for seed in range(60)])
        return int((means.argmax(1) != 0).sum() + (means.argmin(1) != 1).sum())

    assert order_changes("standard") == 0
    assert order_changes("strong") > 0


def test_blur_keeps_a_flat_image_flat():
    blur = _RandSmooth(prob=1.0, sigma_x=(1.2, 1.3), sigma_y=(1.2, 1.3)).set_random_state(0)
    np.testing.assert_allclose(blur(torch.ones(2, 16, 16)), 1, atol=1e-4)


@pytest.mark.parametrize("name", ["none", "strong"])
def test_it_travels_to_worker_processes(name):
    change = augmentation(name, 2, 3)
    assert torch.equal(pickle.loads(pickle.dumps(change))(IMAGES[2, 3], 4), change(IMAGES[2, 3], 4))


def test_faults():
    with pytest.raises(ConfigError, match="meant 'strong'"):
        augmentation("stron", 2, 3)
    with pytest.raises(ConfigError, match="2 or 3 dimensions"):
        augmentation("standard", 4, 1)
