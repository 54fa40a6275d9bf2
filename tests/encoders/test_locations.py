"""Places in scans: the structure that fills them, a balanced draw that a seed fixes, and the maps that lie there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import medtl
from medtl.encoders.locations import (
    CELL,
    SLICES,
    find_locations,
    location_features,
    majority,
    slice_features,
)
from medtl.errors import ConfigError, DataError
from medtl.labelmap import VOID
from medtl.models import build_encoder
from tests.encoders.masked import Sees, masked_cohort
from tests.scans.make_scans import write_image


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> medtl.Cohort:
    return masked_cohort(tmp_path_factory.mktemp("cohort"))


def test_more_than_half_of_a_cell_decides() -> None:
    mask = np.zeros((1, CELL, 4 * CELL), np.uint8)
    mask[0, :, : CELL // 2] = 1  # a half: neither
    mask[0, 1:, CELL : 2 * CELL] = 2  # three quarters
    mask[0, :, 2 * CELL : 3 * CELL] = VOID
    assert majority(mask, 3).tolist() == [[[VOID, 2, VOID, 0]]]
    assert majority(mask[:, :, : 4 * CELL - 1], 3).shape == (1, 1, 3)  # what is left over is no cell


def test_places_show_what_the_masks_show(cohort: medtl.Cohort) -> None:
    found = find_locations(cohort, cohort.select("source"))
    assert set(found.labels) == {0, 1, 2}
    assert len(np.unique(found.where, axis=0)) == len(found.where)  # no place twice
    for (number, _, row, column), label in zip(found.where, found.labels, strict=True):
        mask = cohort.cache.load_mask(found.cases[number])
        cell = mask[CELL * row : CELL * (row + 1), CELL * column : CELL * (column + 1)]
        assert (cell == label).mean() > 0.5


def test_no_place_lies_beyond_the_scan(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(4):
        mask = np.zeros((16, 48), np.uint8)
        mask[4:12, 8:24] = 1
        image = (mask * 90 + rng.integers(0, 60, mask.shape)).astype(np.uint8)
        write_image(tmp_path / "a" / f"{number}.png", image)
        write_image(tmp_path / "a" / "masks" / f"{number}.png", mask)
    cases = medtl.collect_cases(source=[tmp_path / "a"], masks=[tmp_path / "a" / "masks"], structures=["x=1"])
    wide = medtl.Cohort.prepare(cases, medtl.suggest_preprocess(cases.items(), 48), tmp_path / "cache")
    found = find_locations(wide, wide.select("source"))
    rows = CELL * found.where[:, 2]
    assert set(found.labels) == {0, 1}
    assert rows.min() >= 16
    assert rows.max() < 32


def test_the_draw_is_balanced_and_a_seed_fixes_it(cohort: medtl.Cohort) -> None:
    cases = cohort.select("source")
    found, again, other = (find_locations(cohort, cases, seed=s, most=72) for s in (0, 0, 1))
    assert np.array_equal(found.where, again.where)
    assert not np.array_equal(found.where, other.where)
    counts = np.array(
        [[((found.patients == p) & (found.labels == k)).sum() for k in range(3)] for p in set(found.patients)]
    )
    assert counts.max() <= 72 // (12 * 3)
    assert abs(int(counts[:, 0].sum()) - int(counts[:, 1:].sum(axis=0).max())) < len(counts)


def test_volumes_give_few_slices_with_every_structure(tmp_path: Path, sample_data: Path) -> None:
    site = sample_data / "site_a"
    cases = medtl.collect_cases(source=[site], masks=[site / "masks"])
    preprocess = medtl.suggest_preprocess(cases.items(), 64, keep_spacing=True)
    volumes = medtl.Cohort.prepare(cases, preprocess, tmp_path / "cache")
    chosen = volumes.select("source", "validation")
    found = find_locations(volumes, chosen)
    slices = [np.unique(found.where[found.where[:, 0] == n, 1]) for n in range(len(found.cases))]
    assert max(map(len, slices)) <= SLICES
    shows = [bool((volumes.cache.load_mask(case) == 1).any()) for case in found.cases]
    has = [bool(((found.where[:, 0] == n) & (found.labels == 1)).any()) for n in range(len(found.cases))]
    assert sum(has) > 0
    assert all(there or not place for place, there in zip(has, shows, strict=True))
    features = location_features(Sees(), volumes, found)["stage1"][:, 0]  # type: ignore[arg-type]
    for row in range(0, len(features), 7):
        number, place, i, j = found.where[row]
        image = volumes.cache.get(found.cases[number].item)[0, place].astype(np.float32)  # type: ignore[arg-type]
        part = image[CELL * i : CELL * (i + 1), CELL * j : CELL * (j + 1)]
        assert part.min() - 0.15 <= features[row] <= part.max() + 0.15


def test_features_are_the_maps_at_the_place(cohort: medtl.Cohort) -> None:
    """A map that is as fine as the places is taken as it is, whatever the batches."""

    class Cells(Sees):
        def maps_at(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"stage1": nn.functional.avg_pool2d(image, CELL)}

    found = find_locations(cohort, cohort.select("source"))
    features = location_features(Cells(), cohort, found)["stage1"][:, 0]  # type: ignore[arg-type]
    for (number, _, row, column), value in zip(found.where, features, strict=True):
        image = cohort.cache.get(found.cases[number].item)[0].astype(np.float32)  # type: ignore[arg-type]
        cell = image[CELL * row : CELL * (row + 1), CELL * column : CELL * (column + 1)]
        assert value == pytest.approx(float(cell.mean()), abs=1e-5)


def test_maps_of_a_real_encoder(cohort: medtl.Cohort) -> None:
    encoder = build_encoder("test_resnet", weights="random", in_channels=1)
    found = find_locations(cohort, cohort.select("source"))
    steps: list[tuple[int, int]] = []
    features = location_features(encoder, cohort, found, progress=lambda *step: steps.append(step))
    assert list(features) == [f"stage{k}" for k in range(1, 6)]
    assert all(len(f) == len(found.labels) and np.isfinite(f).all() for f in features.values())
    assert steps[-1] == (len(found.cases), len(found.cases))
    assert encoder.training  # as it was
    image = torch.rand(2, 1, 32, 32)
    maps, pooled = encoder.eval().maps_at(image), encoder.features_at(image)
    for depth in list(maps)[:-1]:
        torch.testing.assert_close(maps[depth].mean((2, 3)), pooled[depth])
    vectors = slice_features(encoder, cohort, cohort.select("source")[:3])
    assert vectors.shape == (3, encoder.num_features)


def test_an_encoder_of_one_size_says_so(cohort: medtl.Cohort) -> None:
    encoder = build_encoder("vit_tiny_patch16_224", weights="random", in_channels=1)
    with pytest.raises(ConfigError, match="--image-size"):
        location_features(encoder, cohort, find_locations(cohort, cohort.select("source")))


def test_structures_without_places_are_left_out(cohort: medtl.Cohort) -> None:
    few = cohort.select("source")[:1]
    with pytest.raises(DataError, match="two patients"):
        find_locations(cohort, few)
