"""What is known of a segmented case without its mask."""

from __future__ import annotations

import numpy as np
import pytest

from medtl.prediction.mask_writer import certainty, mean_dice


def maps(*voxels: tuple[float, ...]) -> np.ndarray:
    """(K, n) float16 probabilities from one tuple a voxel."""
    return np.array(voxels, dtype=np.float16).T


def test_certain_and_right_or_wrong_is_certain() -> None:
    assert certainty(maps((1, 0), (0, 1))) == pytest.approx(1.0, abs=1e-6)
    assert certainty(maps((1, 0), (1, 0), (1, 0), (0, 1))) == pytest.approx(1.0, abs=1e-6)


def test_the_same_everywhere_removes_nothing() -> None:
    assert certainty(maps((0.5, 0.5), (0.5, 0.5))) == pytest.approx(0.0, abs=1e-6)
    assert certainty(maps((0.9, 0.1), (0.9, 0.1))) == pytest.approx(0.0, abs=1e-3)


def test_nothing_found_beyond_doubt_is_not_certainty() -> None:
    assert certainty(maps((1, 0), (1, 0))) == 0.0


def test_closed_form() -> None:
    p = np.array([0.75, 0.25])
    entropy = -(p * np.log(p)).sum()
    assert certainty(maps((0.75, 0.25), (0.25, 0.75))) == pytest.approx(1 - entropy / np.log(2), rel=1e-3)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).dirichlet((1, 1, 1), size=(5, 7)).transpose(2, 0, 1).astype(np.float16)
    whole = certainty(values)
    monkeypatch.setattr("medtl.prediction.mask_writer._CHUNK", 4)
    assert certainty(values) == pytest.approx(whole, rel=1e-9)


def test_dice_leaves_void_and_absent_structures_out() -> None:
    reference = np.array([0, 1, 1, 2, 255], dtype=np.uint8)
    called = np.array([1, 1, 0, 2, 2], dtype=np.uint8)
    assert mean_dice(called, reference, 4) == pytest.approx((2 * 1 / 4 + 1) / 2)
    assert np.isnan(mean_dice(np.zeros(3, np.uint8), np.zeros(3, np.uint8), 4))
