from __future__ import annotations

import json
import os

import numpy as np
import pytest
from make_scans import random_image, write_image, write_series

from medtl.data import cache as cache_module
from medtl.data.cache import VolumeCache
from medtl.data.catalog import scan_folder
from medtl.data.preprocess import Preprocess, preprocess
from medtl.data.volume import read_volume
from medtl.errors import DataError

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
    cache.get(items[0])
    assert reads == ["c0", "c0"]


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
