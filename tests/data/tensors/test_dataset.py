from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from medtl.data.cases.collect import collect_cases
from medtl.data.seeds import derive_seed
from medtl.data.tensors.batch import Batch, collate
from medtl.data.tensors.cache import VolumeCache
from medtl.data.tensors.dataset import CaseDataset, Draw, EpochSampler
from medtl.data.tensors.spec import Preprocess
from medtl.errors import DataError
from tests.scans.make_scans import write_image, write_site


@pytest.fixture
def table(tmp_path):
    source, labels = write_site(tmp_path / "a", ["x", "y"] * 5)
    target, _ = write_site(tmp_path / "b", [None] * 4, first_seed=100)
    return collect_cases(source=[source], labels=labels, target=target)


@pytest.fixture
def make(table, tmp_path):
    cache = VolumeCache(tmp_path / "cache", Preprocess(16, channels=3, intensity="unit"))

    def build(domain="source", **options):
        options = {"classes": table.classes, "with_labels": domain == "source", **options}
        return CaseDataset(table.select(domain=domain), cache, **options)

    return build


def test_seeds_are_fixed_and_keep_names_apart():
    assert derive_seed(0, "order", "source", 3) == derive_seed(0, "order", "source", 3)
    assert derive_seed(0, "a") == 8898938347678966206
    others = [(0, "ab"), (0, "a", "b"), (1, "a", "b"), (0, "b", "a"), (0, 1), (0, "1")]
    seeds = {derive_seed(*other) for other in others}
    assert len(seeds) == len(others)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_an_item_depends_on_seed_stream_epoch_and_index_alone(make):
    one, two = make(augment="strong", strong=True), make(augment="strong", strong=True)
    one.set_epoch(2)
    two.set_epoch(1)
    list(map(two.__getitem__, range(10)))
    two.set_epoch(2)
    forwards = [one[i] for i in range(10)]
    backwards = [two[i] for i in reversed(range(10))][::-1]
    for a, b in zip(forwards, backwards, strict=True):
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.strong, b.strong)
        assert not torch.equal(a.image, a.strong)
    for options in ({"seed": 1}, {"stream": "other"}):
        other = make(augment="strong", **options)
        other.set_epoch(2)
        assert not torch.equal(other[0].image, forwards[0].image)
    one.set_epoch(3)
    assert not torch.equal(one[0].image, forwards[0].image)


def test_batches_hold_what_was_asked_for(make):
    data = make(strong=True)
    batch = next(iter(DataLoader(data, batch_size=4, collate_fn=collate)))
    assert batch.image.shape == batch.strong.shape == (4, 3, 16, 16)
    assert batch.label.tolist() == [0, 1, 0, 1]
    assert batch.label.dtype == torch.int64
    assert batch.index.tolist() == [0, 1, 2, 3]
    assert batch.site.tolist() == [0] * 4
    assert data.labels[:2] == (0, 1)
    target = make("target", sites=("a", "b"))
    batch = next(iter(DataLoader(target, batch_size=4, collate_fn=collate)))
    assert batch.label is None
    assert batch.strong is None
    assert batch.site.tolist() == [1] * 4
    assert target.labels is None


def test_worker_processes_give_the_same_batches(make):
    data = make(augment="standard")
    sampler = EpochSampler(len(data), seed=0, stream="source", length=13)
    plain = list(DataLoader(data, batch_size=5, sampler=sampler, collate_fn=collate))
    workers = list(DataLoader(data, batch_size=5, sampler=sampler, collate_fn=collate, num_workers=2))
    assert [b.index.tolist() for b in plain] == [b.index.tolist() for b in workers]
    assert all(torch.equal(a.image, b.image) for a, b in zip(plain, workers, strict=True))


def test_epoch_orders_are_reproducible_and_fair():
    sampler = EpochSampler(7, seed=3, stream="target", length=17)
    sampler.set_epoch(4)
    order = list(sampler)
    list(sampler)
    again = EpochSampler(7, seed=3, stream="target", length=17)
    again.set_epoch(4)
    assert list(again) == order
    assert len(sampler) == len(order) == 17
    assert sorted(order[:7]) == sorted(order[7:14]) == list(range(7))
    assert len(set(order[14:])) == 3
    assert order[:7] != order[7:14]
    for other in (
        EpochSampler(7, seed=3, stream="source", length=17),
        EpochSampler(7, seed=4, stream="target", length=17),
    ):
        other.set_epoch(4)
        assert list(other) != order
    assert list(EpochSampler(4, seed=0, stream="x", shuffle=False, length=6)) == [0, 1, 2, 3, 0, 1]
    assert len(list(EpochSampler(9, seed=0, stream="x", length=5))) == 5
    with pytest.raises(ValueError, match="at least one"):
        EpochSampler(0, seed=0, stream="x")


def test_a_case_drawn_twice_in_an_epoch_looks_different_each_time(make):
    data = make(augment="strong")
    draws = [d for d in EpochSampler(10, seed=0, stream="source", length=20) if d == 3]
    assert [d.repeat for d in draws] == [0, 1]
    one, two = (data[d] for d in draws)
    assert one.index == two.index == 3
    assert not torch.equal(one.image, two.image)
    assert torch.equal(one.image, data[3].image)
    copy = pickle.loads(pickle.dumps(Draw(5, 2)))
    assert (copy, copy.repeat) == (5, 2)


def test_collate_and_to():
    samples = [Batch(torch.full((1, 4, 4), float(n)), index=torch.tensor(n)) for n in range(3)]
    batch = collate(samples)
    assert len(batch) == 3
    assert batch.label is None
    moved = batch.to("meta")
    assert moved.image.device.type == moved.index.device.type == "meta"
    assert moved.site is None
    with pytest.raises(ValueError, match="1 of 2 samples have no 'label'"):
        collate([Batch(torch.zeros(1), label=torch.tensor(1)), Batch(torch.zeros(1))])


def test_faults(make, table):
    with pytest.raises(DataError, match="4 cases have no label of the classes x, y, such as 'b000'"):
        make("target", with_labels=True)
    with pytest.raises(DataError, match="no cases for 'extra'"):
        CaseDataset([], make().cache, classes=("x",), with_labels=True, stream="extra")


def test_values_are_those_of_the_cache(make):
    data = make()
    np.testing.assert_array_equal(data[0].image, data.cache.get(data.cases[0].item).astype(np.float32))


def test_balanced_order_draws_every_class_and_every_case_of_it_equally_often() -> None:
    classes = [0] * 12 + [1] * 3 + [2]
    sampler = EpochSampler(16, seed=1, stream="source", length=36, classes=classes)
    drawn = list(sampler)
    counts = np.bincount(drawn, minlength=16)
    assert counts[:12].sum() == counts[12:15].sum() == counts[15] == 12
    assert set(counts[:12]) == {1}
    assert set(counts[12:15]) == {4}
    assert len({(int(i), i.repeat) for i in drawn}) == 36  # a repeat is augmented differently
    assert drawn == list(sampler)
    sampler.set_epoch(1)
    assert drawn != list(sampler)


def test_where_an_image_shows_no_scan(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(4):
        picture = rng.integers(150, 200, (10, 20, 3)).astype(np.uint8)
        write_image(tmp_path / "a" / f"{number}.png", picture)
    labels = tmp_path / "labels.csv"
    labels.write_text("case,label\n0,x\n1,y\n2,x\n3,y\n")
    table = collect_cases(source=[tmp_path / "a"], labels=labels)
    cache = VolumeCache(tmp_path / "cache", Preprocess(20, channels=3, intensity="unit"))
    cases = table.select(domain="source")
    plain = CaseDataset(cases, cache, classes=("x",), with_labels=False)[0]
    expected = torch.ones(20, 20, dtype=torch.bool)
    expected[5:15] = False
    assert torch.equal(plain.outside, expected)
    assert 0.55 < float(plain.image.min()) <= float(plain.image.max()) < 0.8  # no black bars
    augmented = CaseDataset(cases, cache, classes=("x",), with_labels=False, augment="strong")
    batch = collate([augmented[n] for n in range(4)])
    assert batch.outside.shape == (4, 20, 20)
    assert not all(torch.equal(one, expected) for one in batch.outside)
    assert 0.4 < float(batch.outside.float().mean()) < 0.6
