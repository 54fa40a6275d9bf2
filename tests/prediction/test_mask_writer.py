"""What is known of a segmented case without its mask."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from medtl.labelmap import LabelMap
from medtl.prediction.mask_writer import MaskWriter, certainty, mean_dice


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


def test_models_of_similar_names_have_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(base: Path, *_: object) -> Path:
        base.parent.mkdir(parents=True, exist_ok=True)
        base.with_suffix(".png").touch(exist_ok=False)
        return base.with_suffix(".png")

    monkeypatch.setattr("medtl.prediction.mask_writer.write_mask", write)
    case = SimpleNamespace(
        case="c1",
        patient="p1",
        split="test",
        domain="target",
        site="b",
        groups={},
        item=object(),
        mask_item=None,
    )
    writer = MaskWriter(tmp_path, LabelMap({"lesion": (1,)}))
    names = ["last:2", "last-2", "a/b", "a-b", "a:b"]
    for name in names:
        writer.add([SimpleNamespace(case=case, mask=None)], name, 0, candidate=False)
    folders = sorted(p.name for p in (tmp_path / "predictions").iterdir())
    assert folders == sorted(["last%3A2-seed0", "last-2-seed0", "a%2Fb-seed0", "a-b-seed0", "a%3Ab-seed0"])
