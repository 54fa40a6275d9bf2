"""Data sets of segmentation: samples, their randomness, and what becomes of masks that cannot be used."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from medtl.data.cases.collect import collect_cases
from medtl.data.cohort import Cohort
from medtl.data.tensors import cache as cache_module
from medtl.data.tensors.augment import augmentation
from medtl.data.tensors.batch import collate
from medtl.data.tensors.dataset import CaseDataset, Draw
from medtl.data.tensors.preprocess import suggest_preprocess
from medtl.data.tensors.spec import Preprocess
from medtl.errors import ConfigError, DataError
from medtl.models.losses.segmentation import SegmentationLoss
from tests.scans.make_scans import write_image, write_nifti

STRUCTURES = ["large=1", "small=2"]


def write_site(folder, count, *, shape=(10, 24, 28), first=0, patients=False):
    """Volumes whose values say what a voxel is: below 100 background, from 300 large, from 500 small."""
    rng = np.random.default_rng(first)
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    for number in range(first, first + count):
        mask = np.zeros(shape, np.uint8)
        mask[:, 8:18, 6:18] = 1
        mask[4:6, 20:22, 22 : 24 + number % 3] = 2
        volume = rng.integers(0, 100, shape) + np.array([0, 300, 500])[mask]
        write_nifti(folder / f"{folder.name}{number}.nii", volume.astype(np.int16), affine)
        write_nifti(folder / "masks" / f"{folder.name}{number}.nii", mask, affine)
    return folder


@pytest.fixture
def cohort(tmp_path):
    source, target = write_site(tmp_path / "a", 8), write_site(tmp_path / "b", 5, first=100)
    table = collect_cases(
        source=[source],
        masks=[source / "masks"],
        target=target,
        target_masks=target / "masks",
        structures=STRUCTURES,
    )
    spec = suggest_preprocess(table.items(), 16, intensity="window:0,700", keep_spacing=True)
    return Cohort.prepare(table, spec, tmp_path / "cache")


PATCH = (6, 16, 16)


def build(cohort, **options):
    cases = options.pop("cases", cohort.select("source", "train"))
    options = {"classes": cohort.table.classes, "with_labels": True, "patch": PATCH, **options}
    return CaseDataset(cases, cohort.cache, **options)


def same(one, two):
    return torch.equal(one.image, two.image) and torch.equal(one.label, two.label)


def structure_of(image):
    """Class of each voxel, from its grey value in [0, 1]."""
    return torch.bucketize(image[0].contiguous(), torch.tensor([0.3, 0.64]))


def test_samples_are_patches_with_their_labels(cohort):
    data = cohort.dataset("source", "train", with_labels=True, patch=PATCH)
    assert data.segmentation
    assert data.labels is None
    batch = next(iter(DataLoader(data, batch_size=4, collate_fn=collate)))
    assert batch.image.shape == (4, 1, *PATCH)
    assert batch.image.dtype == torch.float32
    assert batch.label.shape == (4, *PATCH)
    assert batch.label.dtype == torch.int64
    for image, label in zip(batch.image, batch.label, strict=True):
        assert torch.equal(structure_of(image), label)
    whole = cohort.dataset("source", "train", with_labels=True)[0]
    assert whole.image.shape == (1, 10, 24, 28)
    assert whole.label.shape == (10, 24, 28)
    target = cohort.dataset("target", "test", patch=PATCH, strong=True)[0]
    assert target.label is None
    assert target.image.shape == target.strong.shape == (1, *PATCH)


def test_a_volume_smaller_than_the_patch_lies_in_its_middle(cohort):
    data = build(cohort, patch=(13, 32, 16), strong=True)
    sample = data[0]
    assert sample.image.shape == (1, 13, 32, 16)
    known = torch.zeros(13, 32, 16, dtype=torch.bool)
    known[2:12, 4:28] = True  # 3 slices more: 2 before, 1 behind
    assert torch.equal(sample.outside, ~known)
    assert torch.equal(structure_of(sample.image)[known], sample.label[known])
    # Nothing is there to segment, and the image shows what it shows at the scan's border.
    assert (sample.label[~known] == 0).all()
    array = cohort.cache.get(data.cases[0].item).astype(np.float32)
    border = [array[..., 0, :], array[..., -1, :], array[..., 0], array[..., -1]]
    value = float(np.median(np.concatenate([side.ravel() for side in border])))
    assert 0.02 < value < 0.12
    torch.testing.assert_close(
        sample.image[0, ~known], torch.full((int((~known).sum()),), value), atol=1e-3, rtol=0
    )
    moved = build(cohort, patch=(13, 32, 16), augment="strong")[0]
    assert (moved.label[:2] == 0).all()
    assert moved.outside[:2].all()


def test_half_of_the_patches_are_centred_on_a_structure(cohort):
    def share(foreground, with_labels=True):
        data = build(cohort, patch=(3, 5, 5), foreground=foreground, with_labels=with_labels)
        found = [data[Draw(case, repeat)] for case in range(len(data)) for repeat in range(60)]
        centres = torch.stack([structure_of(f.image)[1, 2, 2] for f in found])
        return (centres == 1).float().mean(), (centres == 2).float().mean()

    large, small = share(1.0)
    assert abs(large - 0.5) < 0.08
    assert abs(small - 0.5) < 0.08
    large, small = share(0.5)
    assert abs(small - 0.25) < 0.08
    assert share(0.0)[1] < 0.05
    assert share(1.0, with_labels=False)[1] < 0.05


def test_an_item_depends_on_seed_stream_epoch_place_and_repeat_alone(cohort):
    one, two = (build(cohort, augment="standard", strong=True) for _ in range(2))
    one.set_epoch(2)
    two.set_epoch(1)
    for index in range(len(two)):
        two[index]
    two.set_epoch(2)
    forwards = [one[n] for n in range(len(one))]
    backwards = [two[n] for n in reversed(range(len(two)))][::-1]
    for a, b in zip(forwards, backwards, strict=True):
        assert same(a, b)
        assert torch.equal(a.strong, b.strong)
    for options in ({"seed": 1}, {"stream": "other"}):
        other = build(cohort, augment="standard", **options)
        other.set_epoch(2)
        assert not same(other[0], forwards[0])
    assert not same(one[Draw(0, 1)], forwards[0])
    one.set_epoch(3)
    assert not same(one[0], forwards[0])


@pytest.fixture
def geometry_only(monkeypatch):
    """Augmentation moves voxels and leaves their values."""

    def without_values(*args, **options):
        made = augmentation(*args, **options)
        made.values = []
        return made

    with monkeypatch.context() as patch:
        patch.setattr("medtl.data.tensors.dataset.augmentation", without_values)
        yield patch


def test_the_strong_view_has_the_same_voxels(cohort, geometry_only):
    weak, strong = (build(cohort, augment="strong", strong=s) for s in (False, True))
    geometry_only.undo()
    for epoch in range(10):
        weak.set_epoch(epoch)
        strong.set_epoch(epoch)
        sample = strong[0]
        assert torch.equal(sample.image, sample.strong)
        assert same(sample, weak[0])
    strong = build(cohort, augment="none", strong=True)
    plain = build(cohort, augment="none")
    assert torch.equal(strong[0].image, plain[0].image)
    assert not torch.equal(strong[0].strong, strong[0].image)


def test_without_augmentation_epochs_repeat(cohort):
    data = build(cohort)
    before = [data[n] for n in range(len(data))]
    data.set_epoch(5)
    assert all(same(a, data[n]) for n, a in enumerate(before))
    assert not same(data[Draw(0, 1)], before[0])


def test_augmented_patches_take_their_border_from_the_volume(cohort, geometry_only):
    data = build(cohort, augment="standard", patch=(10, 8, 8), foreground=0.0)
    outside = []
    for epoch in range(60):
        data.set_epoch(epoch)
        sample = data[0]
        known = ~sample.outside
        assert (sample.label[~known] == 0).all()
        assert (structure_of(sample.image)[~known] == 0).all()
        outside.append(float((~known).float().mean()))
        agree = structure_of(sample.image)[known] == sample.label[known]
        assert agree.float().mean() > 0.75  # edges are interpolated
    assert np.mean(outside) < 0.02


def test_worker_processes_give_the_same_batches(cohort):
    data = build(cohort, augment="standard", strong=True)
    plain = list(DataLoader(data, batch_size=3, collate_fn=collate))
    workers = list(DataLoader(data, batch_size=3, collate_fn=collate, num_workers=2))
    assert all(same(a, b) and torch.equal(a.strong, b.strong) for a, b in zip(plain, workers, strict=True))


def test_target_masks_are_read_only_when_asked_for(tmp_path, monkeypatch):
    source, target = write_site(tmp_path / "a", 6), write_site(tmp_path / "b", 4, first=100)
    (target / "masks" / "b101.nii").unlink()
    table = collect_cases(
        source=[source],
        masks=[source / "masks"],
        target=target,
        target_masks=target / "masks",
        structures=STRUCTURES,
    )
    domains = []
    read = cache_module.read_mask

    def spy(mask, item, labels, **options):
        domains.append(item.root.name)
        return read(mask, item, labels, **options)

    monkeypatch.setattr(cache_module, "read_mask", spy)
    steps = []
    cohort = Cohort.prepare(
        table,
        suggest_preprocess(table.items(), 16, keep_spacing=True),
        tmp_path / "cache",
        progress=lambda done, total: steps.append((done, total)),
    )
    cohort.dataset("target", "test", patch=PATCH)[0]
    assert set(domains) == {"a"}
    assert steps == [(n, 16) for n in range(1, 17)]
    assert sum(cohort.voxel_counts()) == len(cohort.select("source", "train")) * 10 * 24 * 28
    (half, rest), (rest_again, half_again) = cohort.halves("target")
    assert (half, rest) == (half_again, rest_again)
    assert len(half) + len(rest) == 3
    assert not {c.patient for c in half} & {c.patient for c in rest}
    assert set(domains) == {"a", "b"}
    data = cohort.dataset("target", "test", cases=half, with_labels=True, patch=PATCH)
    assert data[0].label.shape == PATCH
    with pytest.raises(DataError, match="1 cases have no mask, such as 'b101'"):
        cohort.dataset("target", "test", with_labels=True)


def test_masks_that_cannot_be_used_leave_their_cases_out(tmp_path):
    source = write_site(tmp_path / "a", 9)
    write_nifti(
        source / "masks" / "a3.nii", np.full((10, 24, 28), 9, np.uint8), np.diag([-1.0, -1.0, 2.0, 1.0])
    )
    write_nifti(
        source / "masks" / "a4.nii", np.zeros((10, 24, 28), np.uint8), np.diag([-1.0, -1.0, 2.0, 1.0])
    )
    table = collect_cases(source=[source], masks=[source / "masks"], structures=STRUCTURES)
    spec = suggest_preprocess(table.items(), 16, keep_spacing=True)
    cohort = Cohort.prepare(table, spec, tmp_path / "cache")
    left_out = {c.case: c.reason for c in cohort.table.cases if c.status == "excluded"}
    assert left_out == {"a3": "unknown_label"}
    assert any("hold no structure" in text and "'a4'" in text for text in cohort.table.warnings)
    assert "1 unknown_label" in cohort.summary()[0]["left out"]
    for case in table.cases:  # nothing to learn the small structure from
        mask = np.zeros((10, 24, 28), np.uint8)
        mask[:, 8:18, 6:18] = 1
        write_nifti(source / "masks" / f"{case.case}.nii", mask, np.diag([-1.0, -1.0, 2.0, 1.0]))
    with pytest.raises(DataError, match="no source mask holds the structure 'small'"):
        Cohort.prepare(table, spec, tmp_path / "cache")


def test_images_of_unequal_size(tmp_path):
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate([(20, 20), (30, 18), (12, 40), (25, 25), (16, 16), (40, 44)]):
        mask = np.zeros((height, width), np.uint8)
        mask[height // 3 :, width // 4 : width // 2] = 255
        colour = np.stack([mask // 2 + rng.integers(0, 20, mask.shape).astype(np.uint8)] * 3, -1)
        write_image(tmp_path / "a" / f"c{number}.png", colour)
        write_image(tmp_path / "a" / "masks" / f"c{number}.png", mask)
    table = collect_cases(source=[tmp_path / "a"], masks=[tmp_path / "a" / "masks"], structures=["cell=255"])
    spec = suggest_preprocess(table.items(), 32, keep_spacing=True)
    cohort = Cohort.prepare(table, spec, tmp_path / "cache")
    assert (spec.spacing, spec.channels, cohort.patch(32)) == (None, 3, (32, 32))
    assert cohort.cases_per_batch(16, (32, 32)) == 16
    assert cohort.cases_per_batch(16, (8, 32, 32)) == cohort.cases_per_batch(1, (32, 32)) == 2
    for patch in (None, (32, 32), (24, 40)):
        data = cohort.dataset("source", "train", with_labels=True, augment="standard", patch=patch)
        batch = collate([data[n] for n in range(len(data))])
        assert batch.image.shape == (len(data), 3, *(patch or (32, 32)))
        assert batch.label.shape == (len(data), *(patch or (32, 32)))
        assert batch.outside.shape == batch.label.shape
        assert set(batch.label.unique().tolist()) == {0, 1}
        assert (batch.label[batch.outside] == 0).all()


@pytest.fixture
def bands(tmp_path):
    """Wide images of a bright ground: a dark band across, and the last row of the masks void."""
    for number in range(5):
        image, mask = np.full((12, 24, 3), 220, np.uint8), np.zeros((12, 24), np.uint8)
        image[:, 9:14], mask[:, 9:14], mask[-1] = 40 + number, 1, 9  # equal images would be one patient
        write_image(tmp_path / "a" / f"c{number}.png", image)
        write_image(tmp_path / "a" / "masks" / f"c{number}.png", mask)
    table = collect_cases(
        source=[tmp_path / "a"], masks=[tmp_path / "a" / "masks"], structures=["band=1", "void=9"]
    )
    return Cohort.prepare(table, Preprocess(24, None, 3, "unit"), tmp_path / "cache")


def test_the_loss_sees_the_margin_of_wide_images(bands):
    sample = bands.dataset("source", "train", with_labels=True)[0]
    margin = torch.ones(24, 24, dtype=torch.bool)
    margin[6:18] = False
    assert torch.equal(sample.outside, margin)
    assert (sample.label[margin] == 0).all()
    assert (sample.label[17] == -1).all()  # the mask's own void
    assert (sample.label[6:17, 9:14] == 1).all()
    torch.testing.assert_close(sample.image[:, margin], torch.full((3, 288), 220 / 255), atol=1e-3, rtol=0)
    logits = torch.zeros(1, 2, 24, 24, requires_grad=True)
    SegmentationLoss("ce")(logits, sample.label[None]).backward()
    pulled = logits.grad[0].abs().sum(0) > 0
    assert torch.equal(pulled, sample.label >= 0)
    assert (logits.grad[0, 1, margin] > 0).all()  # away from the structure


def test_image_label_and_strong_view_end_at_one_place(bands, geometry_only):
    """A rotated band ends where the label ends: no pixel beyond the scan looks like the structure, or has its label."""
    data = bands.dataset("source", "train", with_labels=True, augment="strong", strong=True)
    void = 0
    for epoch in range(20):
        data.set_epoch(epoch)
        sample = data[0]
        assert torch.equal(sample.image, sample.strong)
        assert (sample.label[sample.outside] == 0).all()
        deep = -torch.nn.functional.max_pool2d(-sample.outside[None].float(), 3, 1, 1)[0] > 0
        torch.testing.assert_close(
            sample.image[:, deep], torch.full((3, int(deep.sum())), 220 / 255), atol=1e-3, rtol=0
        )
        inside = ~sample.outside & (sample.label >= 0)
        assert ((sample.image[0] < 0.5) == (sample.label == 1))[inside].float().mean() > 0.97
        void += int((sample.label == -1).any())
    assert void > 15


def test_patches_from_within_a_volume_show_the_scan_alone(cohort):
    data = build(cohort, patch=(4, 8, 8), augment="standard")
    shares = []
    for epoch in range(20):
        data.set_epoch(epoch)
        shares.append(float(data[0].outside.float().mean()))
    assert np.median(shares) == 0
    assert not build(cohort, patch=(4, 8, 8))[0].outside.any()


def test_flips_are_left_out_where_structures_are_sides(tmp_path):
    source = write_site(tmp_path / "a", 6)
    table = collect_cases(
        source=[source], masks=[source / "masks"], structures=["left kidney=1", "right kidney=2"]
    )
    spec = suggest_preprocess(table.items(), 16, keep_spacing=True)
    cohort = Cohort.prepare(table, spec, tmp_path / "cache")
    assert any("left and right are not swapped" in text for text in cohort.table.warnings)
    assert any("'left kidney', 'right kidney'" in text for text in cohort.table.warnings)
    assert not cohort.dataset("source", "train", with_labels=True, augment="standard")._augment.flip


def test_vertebrae_are_flipped(tmp_path):
    source = write_site(tmp_path / "a", 6)
    table = collect_cases(source=[source], masks=[source / "masks"], structures=["vertebra_L1=1", "L2=2"])
    spec = suggest_preprocess(table.items(), 16, keep_spacing=True)
    cohort = Cohort.prepare(table, spec, tmp_path / "cache")
    assert not any("left" in text for text in cohort.table.warnings)
    assert cohort.dataset("source", "train", with_labels=True, augment="standard")._augment.flip


def test_faults(cohort):
    with pytest.raises(ConfigError, match="each of 3 dimensions"):
        build(cohort, patch=(16, 16))
    with pytest.raises(ConfigError, match="between 0 and 1"):
        build(cohort, foreground=1.5)
