from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from monai.transforms.spatial.array import RandFlip

from medtl.data.tensors.augment import RandSmooth, augmentation, drawn, geometric_transforms
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
    blur = RandSmooth(prob=1.0, sigma_x=(1.2, 1.3), sigma_y=(1.2, 1.3)).set_random_state(0)
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


@pytest.mark.parametrize(
    ("outside", "how"), [(torch.zeros(3, 1, 1).double(), {}), (None, {"mode": "nearest"})]
)
@pytest.mark.parametrize("size", [(32, 40), (33, 64), (1, 5)])
def testgeometric_transforms_is_that_of_monai_bit_for_bit(size, outside, how):
    planes = torch.rand(3, size[0] + 6, size[1] + 6, generator=torch.Generator().manual_seed(0))
    acted = 0
    for transform in geometric_transforms(*size, more=1.6, flip=True):
        for seed in range(30):
            transform.set_random_state(seed)
            if drawn(transform, planes):
                more = {} if isinstance(transform, RandFlip) else {"padding_mode": "zeros", **how}
                expected = transform(planes, randomize=False, **more)
                assert torch.equal(transform.move(planes, outside), expected.as_tensor())
                acted += 1
    assert acted > 30


def smooth_case(dims, size=48, seed=0):
    """A smooth image and the label that is a function of it: darker than .45, brighter than .55, or between."""
    from scipy.ndimage import gaussian_filter

    field = gaussian_filter(np.random.default_rng(seed).normal(size=(size, size + 8)), 5)
    field = (field - field.min()) / np.ptp(field)
    image = np.broadcast_to(field, (1, *([3] if dims == 3 else []), *field.shape)).astype(np.float32)
    return image, torch.from_numpy(classes_of(image[0]))


def classes_of(values):
    return np.digitize(np.asarray(values), (0.45, 0.55)).astype(np.int64)


@pytest.mark.parametrize("name", ["standard", "strong"])
@pytest.mark.parametrize("dims", [2, 3])
def test_label_and_image_move_together(name, dims):
    image, label = smooth_case(dims)
    change = augmentation(name, dims, 1)
    change.values = []
    moved = 0
    for seed in range(30):
        plain = change(image, seed)
        found, marks = change(image, seed, torch.stack([label, torch.ones_like(label)]))
        assert torch.equal(plain, found)
        found_label, known = marks[0], marks[1] == 1
        assert found_label.dtype == torch.int64
        assert found_label.shape == label.shape
        assert (found_label[~known] == 0).all()
        # Nearest label against interpolated image: they differ only where the image is within a step of a limit.
        assert (classes_of(found[0])[known] == found_label[known].numpy()).mean() > 0.94
        assert known.float().mean() > 0.6
        moved += not torch.equal(found_label, label)
    assert moved > 15


@pytest.mark.parametrize("axis", [0, 1])
def test_labels_come_from_the_nearest_pixel(axis):
    label = torch.from_numpy(np.indices((40, 48))[axis])
    change = augmentation("strong", 2, 1)
    for seed in range(30):
        marks = torch.stack([label, torch.ones_like(label)])
        image, (found, inside) = change.move(
            (label[None] / 64).numpy().astype(np.float32), seed, marks, (40, 48), torch.zeros(1)
        )
        # At the very border, the image fades into what is beyond.
        inside = torch.nn.functional.avg_pool2d(inside[None].float(), 3, 1, 1)[0] > 0.99
        assert float((64 * image[0] - found)[inside].abs().max()) <= 0.5 + 1e-3


def test_beyond_the_border_there_is_background():
    """What a rotation or a shift brings in has the border's value in the image and 0 in the label."""
    change = augmentation("strong", 2, 3)
    image, label = np.full((3, 32, 32), 0.5, np.float32), torch.ones(32, 32, dtype=torch.int64)
    image[:, 8:24, 8:24], label[:4, :4] = 1, -1
    outside = 0
    for seed in range(40):
        given, found = change.move(image, seed, label, (32, 32), np.array([0, 0.2, 0.9]))
        assert set(found.unique().tolist()) <= {-1, 0, 1}
        deep = torch.nn.functional.max_pool2d(found.abs()[None].float(), 3, 1, 1)[0] == 0
        torch.testing.assert_close(given[:, deep].T, torch.tensor([[0, 0.2, 0.9]]).expand(int(deep.sum()), 3))
        outside += int(deep.any())
        # By default it is the median of the image's border: nothing shows where the image ends.
        own, _ = change.move(image, seed, None, (32, 32))
        assert float(own.min()) == 0.5
    assert outside > 10
    # With the margin that `reach` asks for, nothing from beyond comes into the patch.
    margin = int(np.ceil(change.reach * 32))
    size = 32 + 2 * margin
    for seed in range(60):
        moved, found = change.move(
            np.ones((1, size, size), np.float32), seed, torch.ones(size, size, dtype=torch.int64), (32, 32)
        )
        assert moved.shape == (1, 32, 32)
        assert (found == 1).all()


def test_a_margin_changes_nothing_but_the_border():
    field, _ = smooth_case(2, 64)
    for name in ("none", "standard"):
        change = augmentation(name, 2, 1)
        for seed in range(20):
            small, _ = change.move(field[:, 12:-12, 12:-12], seed, None, (40, 48))
            large, _ = change.move(field, seed, None, (40, 48))
            assert small.shape == large.shape
            torch.testing.assert_close(small[:, 12:-12, 12:-12], large[:, 12:-12, 12:-12], atol=1e-4, rtol=0)


def test_grey_values_leave_their_argument_alone():
    image = torch.from_numpy(np.array(IMAGES[3, 1], np.float32))
    before = image.clone()
    change = augmentation("strong", 3, 1)
    results = {change.recolour(image, seed).numpy().tobytes() for seed in range(10)}
    assert torch.equal(image, before)
    assert len(results) == 10


def test_sides_are_not_swapped_where_they_have_names():
    image = np.tile(np.linspace(0, 1, 40, dtype=np.float32), (1, 32, 1))

    def swaps(flip):
        change = augmentation("standard", 2, 1, flip)
        moved = [change.move(image, seed, None, (32, 40))[0] for seed in range(20)]
        return sum(float(m[0, :, :20].mean()) > float(m[0, :, 20:].mean()) for m in moved)

    assert swaps(True) > 3
    assert swaps(False) == 0
