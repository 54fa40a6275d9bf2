from __future__ import annotations

import math
from pathlib import Path

import joblib
import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from monai.metrics import DiceMetric, compute_hausdorff_distance, compute_iou, compute_surface_dice
from PIL import Image
from scipy.ndimage import gaussian_filter

from medtl.errors import ConfigError, DataError
from medtl.evaluation.engine.measure_masks import COLUMNS, measure_cases
from medtl.evaluation.metrics.empty import MASK_STATUSES, EmptyPolicy
from medtl.evaluation.tables.segmentations import SegmentationTable
from medtl.labelmap import LabelMap

LESION = LabelMap({"lesion": (1,)})
SPACING = (3.0, 0.9, 0.7)
"""Of (k, j, i)."""


def save(path: Path, values: np.ndarray) -> str:
    """Saves (k, j, i) values as a volume of `SPACING`, or a single slice as an image."""
    if len(values) == 1:
        Image.fromarray(values[0]).save(path.with_suffix(".png"))
        return path.with_suffix(".png").name
    affine = np.diag([*SPACING[::-1], 1])
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(values.T), affine), path.with_suffix(".nii.gz"))
    return path.with_suffix(".nii.gz").name


def make(
    folder: Path, pairs: dict[str, tuple[np.ndarray | None, dict[str, np.ndarray]]], **columns: object
) -> SegmentationTable:
    """A table of cases, each a reference (or None) and the masks of models."""
    rows = []
    for case, (reference, called) in pairs.items():
        judged = "" if reference is None else save(folder / f"{case}-reference", reference)
        for model, mask in called.items():
            own = {"case": case, "patient": f"p{case}", "model": model, "reference": judged}
            rows.append({**own, "mask": save(folder / f"{case}-{model}", mask)})
    text = {"split": "test", "domain": "target", "site": "x"}
    return SegmentationTable.from_frame(pd.DataFrame(rows).assign(**text, **columns), folder=folder)


def blobs(seed: int, shape: tuple[int, int, int]) -> np.ndarray:
    """Class indices 0, 1, 2."""
    rng = np.random.default_rng(seed)
    field = gaussian_filter(np.random.default_rng(0).normal(size=shape), (0.6, 2, 2))
    field = field + 0.5 * gaussian_filter(rng.normal(size=shape), (0.6, 1, 1))
    return np.digitize(field, [0.03, 0.12]).astype(np.uint8)


def cube(*corner: int) -> np.ndarray:
    mask = np.zeros((6, 10, 12), dtype=np.uint8)
    k, j, i = corner
    mask[k : k + 2, j : j + 4, i : i + 4] = 1
    return mask


NOTHING = np.zeros((6, 10, 12), dtype=np.uint8)
DIAGONAL = math.sqrt((6 * 3.0) ** 2 + (10 * 0.9) ** 2 + (12 * 0.7) ** 2)


def test_closed_form(tmp_path: Path) -> None:
    table = make(tmp_path, {"1": (cube(1, 2, 2), {"a": cube(1, 2, 4)})}, group_sex="f", weight=2.0, seed=3)
    frame = measure_cases(table, LESION)
    assert tuple(frame.columns) == (*COLUMNS, "group_sex")
    row = frame.iloc[0]
    assert row[["case", "patient", "site", "domain", "split", "model", "seed", "structure"]].tolist() == [
        *("1", "p1", "x", "target", "test", "a", "3", "lesion"),
    ]
    assert (row["status"], row["unit"], row["tolerance"], row["weight"]) == ("ok", "mm", 2.0, 2.0)
    assert row["dice"] == pytest.approx(0.5)
    assert row["iou"] == pytest.approx(1 / 3)
    assert row["hd"] == pytest.approx(1.4, rel=1e-6)
    assert row["hd95"] == pytest.approx(1.4, rel=1e-6)
    # Of each surface half the voxels are shared, a quarter each is one and two columns away.
    assert row["assd"] == pytest.approx((0.7 + 1.4) / 4, rel=1e-6)
    assert row["nsd"] == 1
    assert (row["sensitivity"], row["precision"]) == (0.5, 0.5)
    assert row["volume_reference"] == pytest.approx(32 * 3 * 0.9 * 0.7 / 1000)
    assert row["volume_predicted"] == pytest.approx(32 * 3 * 0.9 * 0.7 / 1000)
    assert frame.attrs["warnings"] == ()
    assert measure_cases(table, LESION, tolerance=0.7)["nsd"][0] == pytest.approx(0.75)
    assert measure_cases(table, LESION, tolerance={"lesion": 0})["nsd"][0] == pytest.approx(0.5)


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
@pytest.mark.parametrize("shape", [(12, 30, 28), (1, 40, 33)])
def test_agrees_with_monai(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    cases = {
        str(n): (blobs(n, shape), {m: blobs(100 * n + s, shape) for s, m in enumerate("ab", 1)})
        for n in range(3)
    }
    frame = measure_cases(make(tmp_path, cases), tolerance=1.0)
    assert len(frame) == 3 * 2 * 2
    assert set(frame["structure"]) == {"label_1", "label_2"}
    for row in frame.to_dict("records"):
        label = int(row["structure"][-1])
        reference, called = cases[row["case"]][0] == label, cases[row["case"]][1][row["model"]] == label
        if shape[0] == 1:
            reference, called = reference[0], called[0]
        pair = {"y_pred": torch.tensor(called[None, None]), "y": torch.tensor(reference[None, None])}
        place = {"include_background": True, "spacing": [SPACING] if shape[0] > 1 else [(1.0, 1.0)]}
        dice = DiceMetric(include_background=True)(pair["y_pred"].float(), pair["y"].float())
        assert row["dice"] == pytest.approx(float(dice), rel=1e-5)
        assert row["iou"] == pytest.approx(float(compute_iou(**pair)), rel=1e-5)
        assert row["hd95"] == pytest.approx(
            float(compute_hausdorff_distance(**pair, **place, percentile=95)), rel=1e-5
        )
        assert row["nsd"] == pytest.approx(
            float(compute_surface_dice(**pair, **place, class_thresholds=[1.0])), rel=1e-5
        )
        size = np.prod(SPACING) / 1000 if shape[0] > 1 else 1
        assert row["volume_reference"] == pytest.approx(reference.sum() * size)
        assert row["volume_predicted"] == pytest.approx(called.sum() * size)
        assert row["sensitivity"] == pytest.approx((reference & called).sum() / reference.sum())
        assert row["precision"] == pytest.approx((reference & called).sum() / called.sum())
        assert row["unit"] == ("mm" if shape[0] > 1 else "px")


EMPTY = {
    "both_empty": (NOTHING, NOTHING),
    "ref_empty": (NOTHING, cube(1, 2, 2)),
    "pred_empty": (cube(1, 2, 2), NOTHING),
    "no_reference": (None, cube(1, 2, 2)),
}
NONE, PERFECT, WORST = (math.nan, math.nan), (1.0, 0.0), (0.0, DIAGONAL)


@pytest.mark.parametrize(
    ("status", "policy", "expected"),
    [
        ("both_empty", EmptyPolicy(), NONE),
        ("both_empty", EmptyPolicy(both_empty="perfect"), PERFECT),
        ("ref_empty", EmptyPolicy(), WORST),
        ("ref_empty", EmptyPolicy(reference_empty="exclude"), NONE),
        ("pred_empty", EmptyPolicy(), WORST),
        ("pred_empty", EmptyPolicy(prediction_empty="exclude"), NONE),
        ("no_reference", EmptyPolicy(both_empty="perfect"), NONE),
    ],
)
def test_every_cell_of_the_policy(
    tmp_path: Path, status: str, policy: EmptyPolicy, expected: tuple[float, float]
) -> None:
    reference, called = EMPTY[status]
    row = measure_cases(make(tmp_path, {"1": (reference, {"a": called})}), LESION, policy=policy).iloc[0]
    assert row["status"] == status
    for name in ("dice", "iou", "nsd"):
        assert row[name] == pytest.approx(expected[0], nan_ok=True)
    for name in ("hd", "hd95", "assd"):
        assert row[name] == pytest.approx(expected[1], nan_ok=True)
    shares = {"pred_empty": (0.0, math.nan), "ref_empty": (math.nan, 0.0)}.get(status, NONE)
    assert (row["sensitivity"], row["precision"]) == pytest.approx(shares, nan_ok=True)
    volumes = [
        0.0 if mask is not None and not mask.any() else 32 * np.prod(SPACING) / 1000 for mask in EMPTY[status]
    ]
    if status == "no_reference":
        volumes[0] = math.nan
    assert row[["volume_reference", "volume_predicted"]].tolist() == pytest.approx(volumes, nan_ok=True)


def test_spacings_that_differ_in_the_last_digits(tmp_path: Path) -> None:
    mask = np.zeros((2, 3, 400), dtype=np.uint8)
    mask[:, :, 390:] = 1
    rows = {"case": "1", "patient": "1", "split": "test", "domain": "target", "site": "x", "model": "a"}
    for name, size in (("r.nii", 0.7), ("m.nii", 0.7009)):
        nibabel.save(
            nibabel.Nifti1Image(np.ascontiguousarray(mask.T), np.diag([size, 1, 1, 1])), tmp_path / name
        )
    frame = pd.DataFrame({**rows, "mask": "m.nii", "reference": "r.nii"}, index=[0])
    found = measure_cases(SegmentationTable.from_frame(frame, folder=tmp_path), LESION)
    assert found["hd"][0] == 0


def test_policies_by_name() -> None:
    assert set(MASK_STATUSES) == {"ok", "both_empty", "ref_empty", "pred_empty", "no_reference"}
    assert "In the model's mask alone: Dice 0 and, as distance, the diagonal" in EmptyPolicy().describe()
    assert "counted apart" in EmptyPolicy(reference_empty="exclude").describe()
    with pytest.raises(ConfigError, match="'exclude' or 'perfect'; got 'worst'"):
        EmptyPolicy(both_empty="worst")
    with pytest.raises(ConfigError, match="reference_empty"):
        EmptyPolicy(reference_empty="perfect")


def test_worst_is_never_better_than_the_truth(tmp_path: Path) -> None:
    first, last = NOTHING.copy(), NOTHING.copy()
    first[0, 0, 0], last[-1, -1, -1] = 1, 1
    row = measure_cases(make(tmp_path, {"1": (first, {"a": last})}), LESION).iloc[0]
    assert row["status"] == "ok"
    assert row["hd"] < DIAGONAL


def test_void_counts_for_nothing(tmp_path: Path) -> None:
    labels = LabelMap({"lesion": (1,)}, void=(9,))
    reference, called = cube(1, 2, 2), cube(1, 2, 4)
    plain = measure_cases(make(tmp_path, {"1": (reference, {"a": called})}), labels).iloc[0]
    outside = reference.copy()
    outside[1:3, 2:6, 6:] = 9  # all that the mask shows beyond the reference is void
    row = measure_cases(make(tmp_path, {"1": (outside, {"a": called})}), labels).iloc[0]
    assert row["precision"] == 1
    assert row["sensitivity"] == plain["sensitivity"]
    assert row["volume_predicted"] == pytest.approx(plain["volume_predicted"] / 2)
    everything = np.full_like(reference, 9)
    row = measure_cases(make(tmp_path, {"1": (everything, {"a": called})}), labels).iloc[0]
    assert row["status"] == "both_empty"
    # A model cannot void what it does not know.
    row = measure_cases(make(tmp_path, {"1": (reference, {"a": everything})}), labels).iloc[0]
    assert row["status"] == "pred_empty"


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
def test_void_and_distances_as_monai_ignores_them(tmp_path: Path) -> None:
    labels = LabelMap({"one": (1,), "two": (2,)}, void=(9,))
    reference, called = blobs(1, (8, 30, 28)), blobs(2, (8, 30, 28))
    void = gaussian_filter(np.random.default_rng(5).normal(size=reference.shape), 2) > 0.05
    frame = measure_cases(
        make(tmp_path, {"1": (np.where(void, 9, reference).astype(np.uint8), {"a": called})}), labels
    )
    for label, row in enumerate(frame.to_dict("records"), 1):
        pair = [torch.tensor(((mask == label) & ~void)[None, None]) for mask in (called, reference)]
        expected = compute_hausdorff_distance(*pair, True, percentile=95, spacing=[SPACING])
        assert row["hd95"] == pytest.approx(float(expected), rel=1e-5)


def test_values_that_no_structure_names(tmp_path: Path) -> None:
    strange = cube(1, 2, 2)
    strange[4:] = 7
    frame = measure_cases(make(tmp_path, {"1": (strange, {"a": cube(1, 2, 2)})}), LESION)
    assert frame["dice"][0] == 1
    assert frame.attrs["warnings"] == (
        "References hold values that no structure names, at line 2: these voxels are not judged.",
    )
    with pytest.raises(DataError, match=r"labels.json does not name \(7 in 240 voxels\), at line 2"):
        measure_cases(make(tmp_path, {"1": (cube(1, 2, 2), {"a": strange})}), LESION)


def test_stored_values_of_any_kind(tmp_path: Path) -> None:
    labels = LabelMap({"one": (300, -2), "two": (7,)}, background=(0, 5))
    stored = np.zeros((4, 8, 8), dtype=np.int16)
    stored[1:3, 2:5, 2:5], stored[1:3, 5:7, 2:5], stored[0] = 300, 7, 5
    other = np.where(stored == 300, -2, stored).astype(np.int16)
    frame = measure_cases(make(tmp_path, {"1": (stored, {"a": other})}), labels)
    assert frame["structure"].tolist() == ["one", "two"]
    assert frame["dice"].tolist() == [1, 1]
    found = measure_cases(make(tmp_path, {"1": (stored, {"a": stored})}))
    assert found.attrs["structures"] == ("label_5", "label_7", "label_300")


def test_mixed_units_are_a_warning(tmp_path: Path) -> None:
    image = cube(1, 2, 2)[1:2]
    table = make(tmp_path, {"1": (cube(1, 2, 2), {"a": cube(1, 2, 2)}), "2": (image, {"a": image})})
    frame = measure_cases(table)
    assert frame["unit"].tolist() == ["mm", "px"]
    assert frame["volume_reference"].tolist() == pytest.approx([32 * np.prod(SPACING) / 1000, 16])
    assert "not to be averaged" in frame.attrs["warnings"][0]


def test_the_order_of_the_table_and_jobs(tmp_path: Path) -> None:
    shape = (4, 20, 20)
    cases = {
        str(n): (blobs(n, shape), {m: blobs(50 + n + s, shape) for s, m in enumerate("ab")}) for n in range(4)
    }
    table = make(tmp_path, cases)
    seen: list[tuple[int, int]] = []
    one = measure_cases(table, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert list(zip(one["case"][::2], one["model"][::2], strict=True)) == list(
        zip(table.case, table.model, strict=True)
    )
    pd.testing.assert_frame_equal(one, measure_cases(table, jobs=2))
    with joblib.parallel_config(backend="sequential"):
        pd.testing.assert_frame_equal(one, measure_cases(table, jobs=2))


def test_all_faults_of_voxels_at_once(tmp_path: Path) -> None:
    good = cube(1, 2, 2)
    table = make(tmp_path, {"1": (good, {"a": good, "b": good}), "2": (good, {"a": good, "b": good})})
    half = nibabel.Nifti1Image(np.full((12, 10, 6), 0.5, dtype=np.float32), np.diag([*SPACING[::-1], 1]))
    nibabel.save(half, tmp_path / "1-b.nii.gz")
    nibabel.save(half, tmp_path / "2-reference.nii.gz")
    for labels in (LESION, None):
        with pytest.raises(DataError) as error:
            measure_cases(table, labels)
        message = str(error.value)
        why = "cannot be used (720 of its 720 voxels are not integers, for example 0.5: it was resampled with"
        assert f"the mask {why}" in message
        assert f"the reference {why}" in message
        assert "at line 3" in message
        assert str(tmp_path) not in message
    save(tmp_path / "1-b", good[:3])
    save(tmp_path / "2-reference", good)
    with pytest.raises(DataError, match="the mask has changed since the table was checked, at line 3"):
        measure_cases(table, LESION)


def test_tolerances(tmp_path: Path) -> None:
    table = make(tmp_path, {"1": (blobs(1, (4, 20, 20)), {"a": blobs(2, (4, 20, 20))})})
    labels = LabelMap({"one": (1,), "two": (2,)})
    assert measure_cases(table, labels, tolerance={"two": 0.5}).attrs["tolerance"] == {"one": 2.0, "two": 0.5}
    with pytest.raises(
        ConfigError, match=r"tolerance for 'tow', which is no structure of the masks. Perhaps"
    ):
        measure_cases(table, labels, tolerance={"tow": 0.5})
    with pytest.raises(ConfigError, match="0 or more"):
        measure_cases(table, labels, tolerance=-1)
