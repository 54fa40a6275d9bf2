from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medtl.errors import DataError
from medtl.evaluation.tables.segmentations import SegmentationTable, find_labels
from medtl.labelmap import LabelMap


def frame(**columns: object) -> pd.DataFrame:
    """Two cases, two models; columns replaced, added or (None) left out."""
    base: dict[str, object] = {
        "case": ["001", "002", "001", "002"],
        "patient": ["secret-1", "secret-2", "secret-1", "secret-2"],
        "split": "test",
        "domain": "target",
        "site": "south",
        "model": ["a", "a", "b", "b"],
        "mask": ["m/001.png", "m/002.png"] * 2,
        "reference": ["r/001.png", "r/002.png"] * 2,
    } | columns
    return pd.DataFrame({name: values for name, values in base.items() if values is not None})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Label maps of two cases of unequal size, and one volume."""
    values = np.zeros((8, 9), dtype=np.uint8)
    values[2:5, 2:6] = 1
    for name in ("m", "r"):
        (tmp_path / name).mkdir()
        Image.fromarray(values).save(tmp_path / name / "001.png")
        Image.fromarray(values[1:]).save(tmp_path / name / "002.png")
    nibabel.save(nibabel.Nifti1Image(values[..., None], np.eye(4)), tmp_path / "r" / "v.nii.gz")
    return tmp_path


def fault(folder: Path, **columns: object) -> str:
    with pytest.raises(DataError) as error:
        SegmentationTable.from_frame(frame(**columns), folder=folder)
    message = str(error.value)
    assert "secret" not in message
    assert str(folder) not in message
    assert "\n" not in message
    return message


def test_a_good_table(folder: Path) -> None:
    frame(group_sex=["f", "m"] * 2, seed=[0, 0, 0, 0], weight=[1, 2, 1, 2]).to_csv(
        folder / "t.csv", index=False
    )
    (folder / "labels.json").write_text(json.dumps({"background": 0, "lesion": 1}))
    (folder / "voxels.csv").write_text("case\n")
    table = SegmentationTable.from_csv(folder / "t.csv")
    assert (len(table), table.models, table.seeds("a")) == (4, ("a", "b"), ("0",))
    assert table.case.tolist() == ["001", "002", "001", "002"]
    assert table.labels == LabelMap({"lesion": (1,)})
    assert table.voxels == folder / "voxels.csv"
    assert table.weight.tolist() == [1, 2, 1, 2]
    assert table.groups["group_sex"].tolist() == ["f", "m", "f", "m"]
    assert {case: rows.tolist() for case, rows in table.cases.items()} == {"001": [0, 2], "002": [1, 3]}
    assert table.rows(model="b").tolist() == [2, 3]
    assert all(path.is_file() for path in (*table.mask, *table.reference) if path is not None)
    named = SegmentationTable.from_csv(folder / "t.csv", labels=LabelMap({"tumour": (1,)}))
    assert tuple(named.labels.structures) == ("tumour",)


def test_empty_references_and_absolute_paths(folder: Path) -> None:
    masks = [str(folder / "m" / "001.png"), "m/../m/002.png"] * 2
    table = SegmentationTable.from_frame(frame(reference=["", "r\\002.png"] * 2, mask=masks), folder=folder)
    assert table.reference[0] is None
    assert table.reference[1] is not None
    assert table.labels is None
    assert table.seeds("b") == ("single",)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"mask": None, "mask_path": "x"}, "the column 'mask' is missing (Perhaps you meant 'mask_path')"),
        ({"mask": ["m/001.png", "", "m/001.png", "m/002.png"]}, "mask is empty at line 3"),
        ({"split": "train"}, "split must be one of validation, calibration, test; got ['train']"),
        (
            {"domain": ["target", "home"] * 2},
            "domain must be one of source, target; got ['home'] at lines 3, 5",
        ),
        ({"site": "so\x07uth"}, "site holds control characters"),
        ({"group_x": "\x1b"}, "'group_x' holds control characters"),
        ({"weight": [1, -1, 1, 1]}, "weight must be above 0; it is not at line 3"),
        (
            {"case": "001", "mask": "m/001.png", "reference": "r/001.png"},
            "repeat a case, model and seed at lines 3, 5",
        ),
        ({"patient": "secret-1", "split": ["test", "validation"] * 2}, "1 patient(s) are in two splits"),
        ({"patient": "secret-1", "domain": ["target", "source"] * 2}, "put the site before the number"),
        ({"patient": ["secret-1", "x", "y", "x"]}, "one case has two values of patient, at line 4"),
        ({"reference": ["r/001.png", "r/002.png", "", "r/002.png"]}, "two values of reference, at line 4"),
        ({"model": ["a", "a", "b", "c"]}, "lacks 1 case(s) that other models have"),
        ({"seed": ["0", "0", "0", "1"]}, "model 'b', seed 0 lacks 1 case(s)"),
        (
            {"mask": ["m/001.png", "m/003.png"] * 2},
            "the mask cannot be used (it does not exist) at lines 3, 5",
        ),
        (
            {"reference": ["r/none.png", "r/002.png"] * 2},
            "the reference cannot be used (it does not exist) at lines 2, 4",
        ),
        ({"mask": ["../m/001.png", "m/002.png"] * 2}, "mask leaves the table's folder at lines 2, 4"),
        ({"mask": ["m/../../m/001.png", "m/002.png"] * 2}, "mask leaves the table's folder at lines 2, 4"),
        ({"mask": ["..\\001.png", "m/002.png"] * 2}, "mask leaves the table's folder at lines 2, 4"),
        ({"mask": ["m/001.png\0", "m/002.png"] * 2}, "mask leaves the table's folder at lines 2, 4"),
        (
            {"mask": ["m/002.png", "m/002.png", "m/001.png", "m/002.png"]},
            "the mask has 1 x 7 x 9 voxels where 1 x 8 x 9 are expected, unlike its reference at line 2",
        ),
        (
            {"mask": ["m/001.png", "m/002.png", "m/002.png", "m/002.png"], "reference": ""},
            "where 1 x 8 x 9 are expected, unlike the case's first mask at line 4",
        ),
        ({"reference": ["r/v.nii.gz", "r/002.png"] * 2}, "voxels where 1 x 9 x 8 are expected"),
    ],
)
def test_faults(folder: Path, columns: dict[str, object], expected: str) -> None:
    assert expected in fault(folder, **columns)


def test_all_faults_are_named_at_once(folder: Path) -> None:
    assert "has 3 faults" in fault(folder, split="train", site="", mask="../x.png")
    assert "has 2 faults" in fault(
        folder, mask=["m/none.png", "m/002.png"] * 2, reference=["r/001.png", "r/a.jpg"] * 2
    )


def test_a_moved_volume(folder: Path) -> None:
    moved = np.eye(4)
    moved[2, 3] = 4
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 9, 1), dtype=np.uint8), moved), folder / "m" / "v.nii")
    rows = {"case": "v", "patient": "p", "model": ["a", "b"], "mask": ["m/v.nii", "r/v.nii.gz"]}
    text = {"split": "test", "domain": "source", "site": "x", "reference": "r/v.nii.gz"}
    with pytest.raises(DataError, match=r"differs by up to 4 \(row 3, column 4: 4 against 0\).* at line 2"):
        SegmentationTable.from_frame(pd.DataFrame({**rows, **text}, index=[0, 1]), folder=folder)


def test_unreadable_tables(folder: Path) -> None:
    with pytest.raises(DataError, match=r"no table of segmentations 'none.csv'"):
        SegmentationTable.from_csv(folder / "none.csv")
    (folder / "latin.csv").write_bytes("case,patient\nä,b\n".encode("latin-1"))
    with pytest.raises(DataError, match="cannot be read as comma-separated UTF-8"):
        SegmentationTable.from_csv(folder / "latin.csv")
    (folder / "header.csv").write_text(",".join(frame().columns) + "\n")
    with pytest.raises(DataError, match="no rows below the header"):
        SegmentationTable.from_csv(folder / "header.csv")
    frame().to_csv(folder / "t.csv", index=False)
    (folder / "labels.json").write_text("{")
    with pytest.raises(DataError, match=r"labels.json cannot be read .* beside the table"):
        SegmentationTable.from_csv(folder / "t.csv")


def test_values_without_names() -> None:
    assert find_labels({0, 255}, {0, 255}) == (LabelMap({"foreground": (255,)}), ())
    assert find_labels({0, 1, 7}, {0, 1})[0] == LabelMap({"label_1": (1,), "label_7": (7,)})
    labels, warnings = find_labels({0, 1}, {0, 255})
    assert tuple(labels.structures) == ("label_1", "label_255")
    assert "values that no reference holds (255)" in warnings[0]
    assert find_labels(set(), {0, 3}) == (LabelMap({"foreground": (3,)}), ())
    with pytest.raises(DataError, match="value 0 alone"):
        find_labels({0}, {0})
    with pytest.raises(DataError, match="hold 300 values"):
        find_labels(range(301), {0})
