from __future__ import annotations

import json
import os
import stat
from dataclasses import replace

import numpy as np
import pytest

from medtl.data.cases.table import Case
from medtl.data.tensors import cache as cache_module
from medtl.data.tensors.cache import VolumeCache
from medtl.data.tensors.preprocess import preprocess
from medtl.data.tensors.spec import Preprocess
from medtl.errors import DataError
from medtl.labelmap import VOID, LabelMap
from medtl.scans.catalog import scan_folder
from medtl.scans.masks import scan_masks
from medtl.scans.volume import read_volume
from tests.scans.make_scans import random_image, write_image, write_nifti, write_series

SPEC = Preprocess(16, channels=3, intensity="unit")


@pytest.fixture
def items(tmp_path):
    for number in range(4):
        write_image(tmp_path / "scans" / f"c{number}.png", random_image(number))
    return scan_folder(tmp_path / "scans").items


@pytest.fixture
def reads(monkeypatch):
    """Names of the cases that were read from their files."""
    names = []

    def read(item):
        names.append(item.name)
        return read_volume(item)

    monkeypatch.setattr(cache_module, "read_volume", read)
    return names


def test_the_second_read_computes_nothing(tmp_path, items, reads):
    cache = VolumeCache(tmp_path / "cache", SPEC)
    first = cache.get(items[0])
    again = VolumeCache(tmp_path / "cache", SPEC).get(items[0])
    assert reads == ["c0"]
    assert isinstance(again, np.memmap)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, preprocess(read_volume(items[0]), SPEC))


def test_a_changed_file_or_setting_is_computed_again(tmp_path, items, reads):
    cache = VolumeCache(tmp_path / "cache", SPEC)
    before = np.array(cache.get(items[0]))
    write_image(items[0].root / "c0.png", random_image(77))
    after = cache.get(items[0])
    assert not np.array_equal(before, after)
    VolumeCache(tmp_path / "cache", Preprocess(20, channels=3, intensity="unit")).get(items[0])
    assert reads == ["c0"] * 3
    os.utime(items[0].root / "c0.png", ns=(5, 5))
    cache.get(items[0])
    assert len(reads) == 4


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "sidecar", "fields"])
def test_a_damaged_entry_is_computed_again(tmp_path, items, reads, damage, caplog):
    cache = VolumeCache(tmp_path / "cache", SPEC)
    expected = np.array(cache.get(items[0]))
    key = cache.key(items[0])
    values, facts = tmp_path / "cache" / f"{key}.npy", tmp_path / "cache" / f"{key}.json"
    data = values.read_bytes()
    if damage == "flip":
        values.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    elif damage == "cut":
        values.write_bytes(data[:-5])
    elif damage == "gone":
        values.unlink()
    elif damage == "sidecar":
        facts.write_text("{")
    else:
        facts.write_text("[1]")
    np.testing.assert_array_equal(VolumeCache(tmp_path / "cache", SPEC).get(items[0]), expected)
    assert reads == ["c0", "c0"]
    assert "'c0' is damaged" in caplog.text


def test_an_interrupted_write_is_completed(tmp_path, items, reads):
    cache = VolumeCache(tmp_path / "cache", SPEC)
    cache.get(items[0])
    (tmp_path / "cache" / f"{cache.key(items[0])}.json").unlink()
    VolumeCache(tmp_path / "cache", SPEC).get(items[0])
    assert reads == ["c0", "c0"]


def test_an_entry_that_goes_while_it_is_in_use_is_made_again(tmp_path, items, reads, caplog):
    cache = VolumeCache(tmp_path / "cache", SPEC)
    expected = np.array(cache.get(items[0]))
    file = tmp_path / "cache" / f"{cache.key(items[0])}.npy"
    for spoil in (file.unlink, lambda: file.write_bytes(file.read_bytes()[:-2])):
        spoil()
        caplog.clear()
        np.testing.assert_array_equal(cache.get(items[0]), expected)
        assert "'c0' is damaged" in caplog.text
    assert reads == ["c0", "c0", "c0"]


def test_prepare_reports_progress_and_returns_what_cannot_be_read(tmp_path, items, reads):
    path = items[2].root / "c2.png"
    path.write_bytes(path.read_bytes()[:200])
    steps = []
    cache = VolumeCache(tmp_path / "cache", SPEC)
    (rejection,) = cache.prepare(items, jobs=2, progress=lambda done, total: steps.append((done, total)))
    assert (rejection.code, rejection.path, rejection.item) == ("undecodable", "c2.png", items[2])
    assert "'c2'" in rejection.detail
    assert str(tmp_path) not in repr(rejection)
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    reads.clear()
    cache.prepare([i for i in items if i is not items[2]])
    assert reads == []


def test_entries_hold_no_identifier(tmp_path):
    write_series(
        tmp_path / "Doe",
        random_image(1, (3, 9, 9)),
        patient_id="MRN4711",
        patient_name="Doe^J",
        series="1.77",
    )
    cache = VolumeCache(tmp_path / "cache", Preprocess(16, 3))
    cache.get(scan_folder(tmp_path / "Doe").items[0])
    for path in (tmp_path / "cache").iterdir():
        for secret in (b"4711", b"Doe", b"1.77"):
            assert secret not in path.read_bytes() + path.name.encode()
    sidecar = json.loads(next((tmp_path / "cache").glob("*.json")).read_text())
    assert sidecar["shape"] == [1, 3, 16, 16]


def test_a_file_that_has_gone_is_a_data_error(tmp_path, items):
    (items[0].root / "c0.png").unlink()
    with pytest.raises(DataError, match="'c0' cannot be read: No such file"):
        VolumeCache(tmp_path / "cache", SPEC).get(items[0])


LABELS = LabelMap({"large": (5,), "small": (7, 8)}, void=(9,))


def masked_cases(folder, masks=None, shape=(6, 20, 24)):
    """NIfTI scans c0, c1, ... and their masks, as used source cases."""
    rng = np.random.default_rng(0)
    if masks is None:
        masks = [np.zeros(shape, np.uint8) for _ in range(2)]
        for mask in masks:
            mask[:, 4:16, 5:20], mask[2, 6, 7:9], mask[3, 3, 3], mask[4:, :2] = 5, 7, 8, 9
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    for number, mask in enumerate(masks):
        volume = rng.integers(0, 100, shape).astype(np.int16)
        write_nifti(folder / "scans" / f"c{number}.nii", volume, affine)
        write_nifti(folder / "masks" / f"c{number}.nii", mask, affine)
    found, _ = scan_masks(folder / "masks")
    by_name = {mask.name: mask for mask in found}
    return [
        Case(i.name, i.name, "scans", "source", i.path, split="train", item=i, mask_item=by_name[i.name])
        for i in scan_folder(folder / "scans").items
    ]


VOLUMES = Preprocess(16, 8, intensity="percentile", spacing=(2.0, 1.0, 1.0))


def test_masks_are_kept_in_the_networks_grid(tmp_path, monkeypatch):
    cases = masked_cases(tmp_path)
    cache = VolumeCache(tmp_path / "cache", VOLUMES, LABELS)
    mask = cache.load_mask(cases[0])
    assert mask.shape == cache.get(cases[0].item).shape[1:] == (6, 20, 24)
    assert mask.dtype == np.uint8
    assert isinstance(mask, np.memmap)
    assert {int(v): int(n) for v, n in zip(*np.unique(mask, return_counts=True), strict=True)} == {
        0: 2880 - 6 * 180 - 1 - 2 * 48, 1: 6 * 180 - 2, 2: 3, VOID: 2 * 48,
    }  # fmt: skip
    points = cache.foreground(cases[0])
    assert sorted(points) == [1, 2]
    assert sorted(map(tuple, points[2].tolist())) == sorted(map(tuple, np.argwhere(mask == 2).tolist()))
    assert (mask[tuple(points[1].T)] == 1).all()
    assert len(points[1]) == 1078
    assert cache.counts(cases[0]).voxels == (1703, 1078, 3)
    assert cache.counts(cases[0]).void == 96

    def fail(*_, **__):
        raise AssertionError("read again")

    monkeypatch.setattr(cache_module, "read_mask", fail)
    again = VolumeCache(tmp_path / "cache", VOLUMES, LABELS)
    np.testing.assert_array_equal(again.load_mask(cases[0]), mask)


def test_points_are_some_voxels_of_large_structures(tmp_path, monkeypatch):
    (case, _) = masked_cases(tmp_path)
    monkeypatch.setattr(cache_module, "MAX_POINTS", 50)
    first = VolumeCache(tmp_path / "one", VOLUMES, LABELS)
    second = VolumeCache(tmp_path / "two", VOLUMES, LABELS)
    points = first.foreground(case)
    assert len(points[1]) == len({tuple(p) for p in points[1].tolist()}) == 50
    assert len(points[2]) == 3
    np.testing.assert_array_equal(points[1], second.foreground(case)[1])
    assert np.ptp(points[1], axis=0).min() >= 4  # from all over the structure


def test_a_changed_mask_label_map_or_grid_is_another_entry(tmp_path):
    (case, other) = masked_cases(tmp_path)
    cache = VolumeCache(tmp_path / "cache", VOLUMES, LABELS)
    keys = {cache.mask_key(case), cache.mask_key(other), cache.key(case.item)}
    for labels in (LABELS.select(["small", "large"]), LABELS.select(["large"])):
        keys.add(VolumeCache(tmp_path / "cache", VOLUMES, labels).mask_key(case))
    coarse = Preprocess(16, 8, intensity="percentile", spacing=(2.0, 2.0, 2.0))
    keys.add(VolumeCache(tmp_path / "cache", coarse, LABELS).mask_key(case))
    keys.add(cache.mask_key(replace(case, domain="target")))
    os.utime(case.mask_item.root / case.mask_item.files[0], ns=(5, 5))
    keys.add(cache.mask_key(case))
    assert len(keys) == 8


@pytest.mark.parametrize("suffix", ["", ".points"])
def test_a_damaged_mask_is_computed_again(tmp_path, suffix, caplog):
    (case, _) = masked_cases(tmp_path)
    cache = VolumeCache(tmp_path / "cache", VOLUMES, LABELS)
    expected = np.array(cache.load_mask(case))
    path = tmp_path / "cache" / f"{cache.mask_key(case)}{suffix}.npy"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    np.testing.assert_array_equal(VolumeCache(tmp_path / "cache", VOLUMES, LABELS).load_mask(case), expected)
    assert "damaged" in caplog.text


def test_masks_that_cannot_be_used_are_returned(tmp_path):
    shape = (6, 20, 24)
    masks = [np.zeros(shape, np.uint8), np.full(shape, 77, np.uint8), np.zeros(shape, np.uint8)]
    cases = masked_cases(tmp_path, masks, shape)
    (cases[2].mask_item.root / cases[2].mask_item.files[0]).unlink()
    cache = VolumeCache(tmp_path / "cache", VOLUMES, LABELS)
    steps = []
    found = cache.prepare_masks(cases, progress=lambda done, total: steps.append((done, total)))
    assert {r.item: r.code for r in found} == {
        cases[1].item: "unknown_label",
        cases[2].item: "mask_unreadable",
    }
    assert str(tmp_path) not in repr(found)
    assert steps[-1] == (3, 3)
    assert cache.counts(cases[0]).voxels == (2880, 0, 0)
    assert cache.foreground(cases[0]) == {}
    with pytest.raises(DataError, match="has no mask"):
        cache.load_mask(replace(cases[0], mask_item=None))


def altered(path, place):
    """Another byte in a file of equal size and time."""
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("place", [0, 3000, -1])
def test_other_voxels_in_a_file_of_equal_size_and_time_are_computed_again(tmp_path, reads, place):
    path = write_nifti(tmp_path / "s" / "x.nii", random_image(1, (1, 64, 64)))
    (item,) = scan_folder(tmp_path / "s").items
    spec = Preprocess(16, intensity="unit")
    cache = VolumeCache(tmp_path / "cache", spec)
    before = cache.key(item)
    altered(path, place if place else 352)
    assert cache.key(item) != before
    assert VolumeCache(tmp_path / "cache", spec).key(item) != before


def test_of_large_files_the_ends_and_blocks_between_are_looked_at(tmp_path, monkeypatch):
    path = write_nifti(tmp_path / "s" / "x.nii", random_image(1, (8, 600, 600)))
    (item,) = scan_folder(tmp_path / "s").items
    size = path.stat().st_size
    keys = [item.fingerprint]
    for place in (400, size - 1, (size - (1 << 16)) * 7 // 15):
        altered(path, place)
        keys.append(item.fingerprint)
    assert len(set(keys)) == 4
    altered(path, 70_000)  # between two blocks
    assert item.fingerprint == keys[-1]
    altered(path, 70_000)
    monkeypatch.setenv("MEDTL_CACHE_DIGEST", "full")
    full = item.fingerprint
    altered(path, 70_000)
    assert item.fingerprint != full


def test_another_mask_of_equal_size_and_time_is_read_again(tmp_path):
    case = masked_cases(tmp_path)[0]
    path = case.mask_item.root / case.mask_item.files[0]
    cache = VolumeCache(tmp_path / "cache", VOLUMES, LABELS)
    before = cache.mask_key(case)
    altered(path, -1)
    assert cache.mask_key(case) != before


def test_entries_are_their_owners_alone(tmp_path, items):
    folder = tmp_path / "runs" / ".medtl-cache"
    VolumeCache(folder, SPEC).get(items[0])
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_the_cache_of_another_user_is_named(tmp_path, items, monkeypatch):
    cache = VolumeCache(tmp_path / "cache", SPEC)

    def closed(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(cache_module.Path, "exists", closed)
    with pytest.raises(DataError, match="The cache 'cache' belongs to another user"):
        cache.get(items[0])


def test_the_facts_of_a_scan_outlive_the_process(tmp_path, items):
    first = VolumeCache(tmp_path / "cache", SPEC).facts(items[0])
    assert VolumeCache(tmp_path / "cache", SPEC).facts(items[0]) == first
    assert (first.missing, first.constant, len(first.pixels)) == (0, False, 2)
