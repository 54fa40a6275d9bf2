from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.ndimage import distance_transform_edt

from medtl.errors import DataError
from medtl.evaluation.metrics.voxels import (
    CENTRES,
    NUM_BINS,
    VoxelStage,
    band_name,
    fit_voxel_temperature,
    near,
    voxel_histogram,
)
from medtl.evaluation.tables.segmentations import SegmentationTable
from medtl.evaluation.tables.voxels import VoxelTable
from medtl.labelmap import VOID, LabelMap

LESION = LabelMap({"lesion": (1,)})
TWO = LabelMap({"liver": (1,), "tumour": (2,)})


def softmax(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits - logits.max(axis=0))
    return p / p.sum(axis=0)


def of(p: np.ndarray) -> Callable[[int], np.ndarray]:
    return lambda index: p[index]


def counted(odds: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Histograms n and k of voxels given one by one."""
    bins = np.clip((odds + 16) * 8, 0, 255).astype(int)
    return np.bincount(bins, minlength=256), np.bincount(bins[truth], minlength=256)


def synthetic(seed: int, voxels: int, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Log odds of a model that is right at `temperature`, and the truth."""
    rng = np.random.default_rng(seed)
    right = rng.normal(-0.5, 2.0, voxels)
    truth = rng.random(voxels) < 1 / (1 + np.exp(-right))
    return temperature * right, truth


def test_bins() -> None:
    assert len(CENTRES) == NUM_BINS == 256
    assert CENTRES[0] == pytest.approx(-16 + 1 / 16)
    assert np.diff(CENTRES) == pytest.approx(1 / 8)
    assert band_name(5, "mm") == "voxels within 5 mm of the structure, in the reference or in the mask"


@pytest.mark.parametrize("seed", range(20))
def test_the_band_is_euclidean(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape, spacing, margin = rng.integers(1, 14, 3), rng.uniform(0.4, 3, 3), rng.uniform(0, 6)
    mask = rng.random(shape) < 0.02
    mask[tuple(rng.integers(0, shape))] = True
    found = near(mask, spacing, margin)
    assert found is not None
    full = np.zeros(shape, dtype=bool)
    full[found[0]] = found[1]
    assert np.array_equal(full, distance_transform_edt(~mask, sampling=spacing) <= margin)


def test_the_band_of_nothing() -> None:
    assert near(np.zeros((2, 3, 4), dtype=bool), None, 5) is None


def test_histogram_by_hand() -> None:
    """A row of nine pixels; the structure is in the middle, the band one pixel to each side."""
    reference = np.array([[[0, 0, 0, 1, 1, 0, 0, 0, VOID]]], dtype=np.uint8)
    mask = np.array([[[0, 0, 0, 0, 1, 1, 0, 0, 1]]], dtype=np.uint8)
    odds = np.array([[[-9, -8, -3, -0.5, 2.0, 1.0, -4, -9, 3]]])
    p = softmax(np.stack([np.zeros_like(odds), odds]))
    frame = voxel_histogram(of(p), reference, mask, LESION, None, margin=1)
    assert frame["structure"].unique().tolist() == ["lesion"]
    assert frame["margin"].unique().tolist() == [1]
    # -3, -0.5, 2, 1 and -4 lie in the band; the void pixel neither counts nor widens it.
    assert CENTRES[frame["bin"]] - 1 / 16 == pytest.approx([-4, -3, -0.5, 1, 2], abs=0.126)
    assert frame["n"].tolist() == [1] * 5
    assert frame["k"].tolist() == [0, 0, 1, 0, 1]


def test_streaming_equals_in_memory() -> None:
    rng = np.random.default_rng(0)
    shape, spacing, margin = (6, 18, 20), (2.0, 1.0, 0.8), 3.0
    reference = np.zeros(shape, dtype=np.uint8)
    reference[2:4, 4:12, 5:14], reference[3, 6:9, 6:9], reference[:, :, :2] = 1, 2, VOID
    logits = rng.normal(size=(3, *shape)) * 3 + 2 * np.stack([reference == c for c in range(3)])
    p = softmax(logits)
    mask = p.argmax(axis=0).astype(np.uint8)
    asked: list[int] = []

    def probability_of(index: int) -> np.ndarray:
        asked.append(index)
        return p[index]

    frame = voxel_histogram(probability_of, reference, mask, TWO, spacing, margin=margin)
    assert asked == [0, 1, 2]
    for index, name in enumerate(TWO.structures, 1):
        either = ((reference == index) | (mask == index)) & (reference != VOID)
        band = (distance_transform_edt(~either, sampling=spacing) <= margin) & (reference != VOID)
        odds = np.log(p[index][band] / (1 - p[index][band]))
        n, k = counted(odds, reference[band] == index)
        own = frame[frame["structure"] == name]
        assert own["bin"].tolist() == np.flatnonzero(n).tolist()
        assert own["n"].tolist() == n[n > 0].tolist()
        assert own["k"].tolist() == k[n > 0].tolist()


def test_half_precision_keeps_large_odds() -> None:
    """One minus the probability would say that all these voxels are certain: .9999 is 1 in half precision."""
    odds = np.linspace(-12, 12, 25).reshape(1, 1, -1)
    p = softmax(np.stack([np.zeros_like(odds), odds])).astype(np.float16)
    assert p[1].max() == 1
    mask = np.ones(odds.shape, dtype=np.uint8)
    frame = voxel_histogram(of(p), mask, mask, LESION, None)
    assert len(frame) == 25
    assert CENTRES[frame["bin"]] == pytest.approx(odds.ravel(), abs=0.26)


def test_certain_voxels_and_structures_that_are_nowhere() -> None:
    reference = np.array([[[1, 0]]], dtype=np.uint8)
    p = np.stack([[[[0.0, 1.0]]], [[[1.0, 0.0]]], [[[0.0, 0.0]]]])
    frame = voxel_histogram(of(p), reference, reference, TWO, None)
    assert frame["structure"].unique().tolist() == ["liver"]
    assert frame["bin"].tolist() == [0, 255]
    nothing = np.zeros_like(reference)
    assert len(voxel_histogram(of(p), nothing, nothing, TWO, None)) == 0


def test_probabilities_that_are_none() -> None:
    mask = np.ones((1, 2, 2), dtype=np.uint8)
    with pytest.raises(DataError, match="sum to 1"):
        voxel_histogram(of(np.full((2, 1, 2, 2), 0.7)), mask, mask, LESION, None)
    with pytest.raises(DataError, match="sum to 1"):
        voxel_histogram(of(np.full((2, 1, 2, 2), np.nan)), mask, mask, LESION, None)
    with pytest.raises(DataError, match="scan's own grid"):
        voxel_histogram(of(np.full((2, 1, 2, 3), 0.5)), mask, mask, LESION, None)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_temperature_is_found(temperature: float) -> None:
    n, k = np.stack([counted(*synthetic(seed, 200_000, temperature)) for seed in range(4)], axis=1)
    assert fit_voxel_temperature(n, k) == pytest.approx(temperature, rel=0.01)


def test_each_case_weighs_the_same() -> None:
    small, large = counted(*synthetic(0, 20_000, 2.0)), counted(*synthetic(1, 2_000_000, 0.5))
    n, k = np.stack([small, large], axis=1)
    found = fit_voxel_temperature(n, k)
    assert found == pytest.approx(fit_voxel_temperature(n * [[100], [1]], k * [[100], [1]]), rel=1e-6)
    alone = fit_voxel_temperature(n, k, np.array([1.0, 1e-9]))
    assert alone == pytest.approx(fit_voxel_temperature(n[:1], k[:1]), rel=1e-5)
    assert alone == pytest.approx(2, rel=0.03)
    assert 0.5 < found < 2


def test_no_temperature_without_both_kinds() -> None:
    n, k = np.stack([counted(*synthetic(0, 1000, 1.0))], axis=1)
    for hits in (np.zeros_like(k), n):
        with pytest.raises(DataError, match="voxels of the structure and voxels beside it"):
            fit_voxel_temperature(n, hits)
    with pytest.raises(DataError):
        fit_voxel_temperature(0 * n, 0 * k)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_measures_equal_those_of_the_voxels(temperature: float) -> None:
    voxels = [synthetic(seed, 3000 * (seed + 1), 2.0) for seed in range(3)]
    n, k = np.stack([counted(*own) for own in voxels], axis=1)
    patient = np.array([0, 1, 1])
    stage = VoxelStage(n, k, patient, 2, temperature=temperature)
    assert stage.num_cases == 3
    nll, brier, gaps = [], [], []
    for odds, truth in voxels:
        z = odds / temperature
        p = 1 / (1 + np.exp(-z))
        nll.append(np.logaddexp(0, np.where(truth, -z, z)).mean())
        brier.append(((p - truth) ** 2).mean())
        inside = np.clip(np.ceil(p * 10) - 1, 0, 9)
        gaps.append([np.where(inside == b, truth - p, 0).mean() for b in range(10)])
    for counts in ([1, 1], [2, 0], [1, 3]):
        drawn = np.array([counts], dtype=float)
        own = np.array(counts)[patient]
        assert stage.log_loss(drawn) == pytest.approx(np.average(nll, weights=own), rel=2e-3)
        assert stage.brier(drawn) == pytest.approx(np.average(brier, weights=own), rel=2e-3)
        ece = np.abs(np.average(gaps, axis=0, weights=own)).sum()
        assert stage.calibration_error(drawn) == pytest.approx(ece, abs=4e-3)
        assert np.isfinite(stage.gap.debiased_squared(drawn)).all()


def test_calibrated_voxels_have_small_error_after_the_temperature() -> None:
    n, k = np.stack([counted(*synthetic(seed, 50_000, 2.0)) for seed in range(10)], axis=1)
    ones, patient = np.ones((1, 10)), np.arange(10)
    before = VoxelStage(n, k, patient, 10)
    after = VoxelStage(n, k, patient, 10, temperature=fit_voxel_temperature(n, k))
    for measure in (VoxelStage.log_loss, VoxelStage.brier, VoxelStage.calibration_error):
        assert measure(after, ones) < measure(before, ones)
    assert after.calibration_error(ones) < 0.01
    assert abs(after.gap.debiased_squared(ones)[0]) < 1e-4


def test_a_case_without_voxels_has_no_part() -> None:
    n, k = np.stack([counted(*synthetic(seed, 5000, 1.0)) for seed in range(2)], axis=1)
    patient, counts = np.array([0, 1, 2]), np.array([[1.0, 2.0, 5.0]])
    more = VoxelStage(np.vstack([n, 0 * n[:1]]), np.vstack([k, 0 * k[:1]]), patient, 3)
    assert more.num_cases == 2
    fewer = VoxelStage(n, k, patient[:2], 2)
    nobody = np.array([[0.0, 0.0, 1.0]])
    for measure in (VoxelStage.log_loss, VoxelStage.brier, VoxelStage.calibration_error):
        assert measure(more, counts) == pytest.approx(measure(fewer, counts[:, :2]))
        assert np.isnan(measure(more, nobody)).all()


@pytest.fixture
def table(tmp_path: Path) -> SegmentationTable:
    """Two cases, two models."""
    Image.fromarray(np.eye(4, dtype=np.uint8)).save(tmp_path / "m.png")
    rows = {"case": ["1", "2"] * 2, "patient": ["1", "2"] * 2, "model": ["a", "a", "b", "b"]}
    text = {"split": "test", "domain": "source", "site": "x", "mask": "m.png", "reference": "m.png"}
    return SegmentationTable.from_frame(pd.DataFrame({**rows, **text}), folder=tmp_path, labels=TWO)


def histograms(**columns: object) -> pd.DataFrame:
    rows = {"case": ["1", "1", "2"], "model": "a", "seed": "single", "structure": "liver"}
    return pd.DataFrame(
        {**rows, "bin": [3, 200, 3], "n": [5, 7, 2], "k": [0, 6, 1], "margin": 5.0, **columns}
    )


def test_round_trip_of_histograms(table: SegmentationTable, tmp_path: Path) -> None:
    histograms().to_csv(tmp_path / "voxels.csv", index=False)
    found = VoxelTable.from_csv(tmp_path / "voxels.csv", table)
    assert (len(found), found.margin) == (2, 5.0)
    n, k = found.stack("a", "single", "liver", ["2", "1", "3"])
    assert n.sum(axis=1).tolist() == [2, 12, 0]
    assert (n[1, 200], k[1, 200], k[0, 3]) == (7, 6, 1)
    assert not found.stack("b", "single", "liver", ["1"])[0].any()
    bare = VoxelTable.from_frame(histograms().drop(columns=["margin", "seed"]), table)
    assert bare.margin is None
    assert bare.seed.tolist() == ["single", "single"]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"bin": [3, 256, 3]}, "bin must be a whole number from 0 to 255; it is not at line 3"),
        ({"bin": [3, 1.5, 3]}, "it is not at line 3"),
        ({"n": [5, 7, 0]}, "n above 0; not so at line 4"),
        ({"k": [6, 6, 1]}, "0 <= k <= n and n above 0; not so at line 2"),
        ({"k": ["x", 6, 1]}, "k holds something that is not a finite number at line 2"),
        ({"case": ["1", "1", "9"]}, "not in the table of segmentations at line 4"),
        ({"model": "c"}, "not in the table of segmentations at lines 2, 3, 4"),
        ({"seed": "0"}, "not in the table of segmentations"),
        ({"structure": "spleen"}, "structure has no name in the label map"),
        ({"bin": [3, 3, 3]}, "repeat a bin of a case, model, seed and structure at line 3"),
        ({"margin": [5, 5, 3]}, "margin holds several values"),
    ],
)
def test_faults_of_histograms(table: SegmentationTable, columns: dict[str, object], expected: str) -> None:
    with pytest.raises(DataError) as error:
        VoxelTable.from_frame(histograms(**columns), table)
    assert expected in str(error.value)


def test_unreadable_histograms(table: SegmentationTable, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'none.csv' cannot be read"):
        VoxelTable.from_csv(tmp_path / "none.csv", table)
    with pytest.raises(DataError, match="the column 'n' is missing"):
        VoxelTable.from_frame(histograms().drop(columns="n"), table)
    with pytest.raises(DataError, match="no rows"):
        VoxelTable.from_frame(histograms().iloc[:0], table)
