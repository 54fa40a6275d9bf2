from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medtl.errors import DataError
from medtl.evaluation import PredictionTable


def frame(**columns: object) -> pd.DataFrame:
    """Four good rows, with columns replaced, added or (None) left out."""
    base: dict[str, object] = {
        "case": ["001", "002", "001", "002"],
        "patient": ["secret-1", "secret-2", "secret-1", "secret-2"],
        "split": "test",
        "domain": "target",
        "site": "south",
        "model": ["a", "a", "b", "b"],
        "label": ["sick", "well", "sick", "well"],
        "prob_sick": [0.8, 0.3, 0.9, 0.2],
        "prob_well": [0.2, 0.7, 0.1, 0.8],
    } | columns
    return pd.DataFrame({name: values for name, values in base.items() if values is not None})


def fault(**columns: object) -> str:
    with pytest.raises(DataError) as error:
        PredictionTable.from_frame(frame(**columns))
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_good_table() -> None:
    table = PredictionTable.from_frame(frame())
    assert (table.classes, table.task, table.models, len(table)) == (
        ("sick", "well"),
        "binary",
        ("a", "b"),
        4,
    )
    assert table.label.tolist() == [0, 1, 0, 1]
    assert table.probabilities()[:, 0] == pytest.approx([0.8, 0.3, 0.9, 0.2])
    assert table.seeds("a") == ("single",)
    assert table.case[table.rows(model="b")].tolist() == ["001", "002"]


def test_csv_keeps_text_and_empty_labels(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    frame(label=["sick", "", "sick", ""], seed=[0, 0, 0, 0]).to_csv(path, index=False)
    table = PredictionTable.from_csv(path)
    assert table.case.tolist() == ["001", "002", "001", "002"]
    assert table.label.tolist() == [0, -1, 0, -1]
    assert table.seeds("b") == ("0",)


def test_labels_called_na_are_labels(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    frame(label=["NA", "well", "NA", "well"]).rename(columns={"prob_sick": "prob_NA"}).to_csv(
        path, index=False
    )
    assert PredictionTable.from_csv(path).label.tolist() == [0, 1, 0, 1]


def test_number_columns_with_gaps_read_as_whole_numbers() -> None:
    columns = {
        "prob_sick": None,
        "prob_well": None,
        "prob_1": [0.8, 0.3, 0.9, 0.2],
        "prob_0": [0.2, 0.7, 0.1, 0.8],
    }
    table = PredictionTable.from_frame(frame(label=[1.0, np.nan, 1.0, np.nan], **columns))
    assert table.classes == ("1", "0")
    assert table.label.tolist() == [0, -1, 0, -1]


def test_one_score_column_is_the_probability_of_its_class() -> None:
    table = PredictionTable.from_frame(frame(prob_well=None))
    assert table.classes == ("well", "sick")
    assert table.probabilities()[:, 1] == pytest.approx([0.8, 0.3, 0.9, 0.2])
    table = PredictionTable.from_frame(frame(prob_well=None, label=[1, 0, 1, 0]))
    assert table.classes == ("not sick", "sick")
    assert table.label.tolist() == [1, 0, 1, 0]
    logits = frame(prob_well=None, prob_sick=None, logit_sick=[2.0, -1.0, 3.0, 0.0])
    assert PredictionTable.from_frame(logits).logits[:, 1].tolist() == [2, -1, 3, 0]


def test_clipped_probabilities_are_counted() -> None:
    table = PredictionTable.from_frame(frame(prob_sick=[1.0, 0.3, 0.9, 0], prob_well=[0, 0.7, 0.1, 1]))
    assert table.num_clipped == 2
    assert np.all(np.isfinite(table.logits))


def test_multilabel_tables() -> None:
    rows = {"case": ["001", "001", "002", "002"], "patient": ["1", "1", "2", "2"], "model": "a"}
    rows |= {"finding": ["edema", "mass", "edema", "mass"], "label": [1, 0, 0, ""]}
    rows |= {"prob_sick": None, "prob_well": None, "prob_present": [0.9, 0.2, 0.3, 0.4]}
    table = PredictionTable.from_frame(frame(**rows))
    assert (table.task, table.findings) == ("multilabel", ("edema", "mass"))
    assert table.label.tolist() == [1, 0, 0, -1]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (
            {"patient": None, "patient_id": "x"},
            "the column 'patient' is missing (Perhaps you meant 'patient_id')",
        ),
        ({"prob_sick": None, "prob_well": None}, "no column with scores"),
        ({"logit_sick": 1.0}, "both as logit_ and as prob_"),
        ({"prob_sick": [0.8, 0.3, 2.9, 0.2]}, "outside 0 to 1 at line 4 (if they are logits"),
        ({"prob_sick": [0.8, 0.3, 0.5, 0.2]}, "must sum to 1; they do not at line 4 (worst: 0.6)"),
        (
            {"prob_sick": ["x", 0.3, 0.9, 0.2]},
            "prob_sick holds something that is not a finite number at line 2",
        ),
        ({"prob_sick": [np.inf, 0.3, 0.9, 0.2]}, "not a finite number at line 2"),
        ({"split": ["test", "train", "test", "train"]}, "got ['train'] at lines 3, 5"),
        (
            {"domain": "Target"},
            "domain must be one of source, target; got ['Target'] at lines 2, 3, 4 and 1 more",
        ),
        (
            {"label": ["sick", "wel", "sick", "wel"]},
            "'wel' has no score column at lines 3, 5 (Perhaps you meant 'well')",
        ),
        ({"site": ["south", "", "south", ""]}, "site is empty at lines 3, 5"),
        ({"site": "so\x07uth"}, "site holds control characters"),
        ({"prob_b\x1bad": 0.0}, "name of a score column holds control"),
        ({"case": "001"}, "rows repeat a case, model and seed at lines 3, 5"),
        (
            {"split": ["test", "validation"] * 2, "patient": "secret-1"},
            "1 patient(s) are in two splits, first at line",
        ),
        ({"domain": ["target", "source"] * 2, "patient": "secret-1"}, "put the site before the number"),
        ({"label": ["sick", "well", "well", "well"]}, "one case has two labels, at line 4"),
        (
            {"patient": ["secret-1", "secret-2", "secret-3", "secret-2"]},
            "one case has two values of patient, at line 4",
        ),
        ({"model": ["a", "a", "b", "c"]}, "lacks 1 case(s) that other models have"),
        ({"seed": ["0", "0", "0", "1"]}, "model 'b', seed 0 lacks 1 case(s)"),
        ({"weight": [1, 0, 1, 1]}, "weight must be above 0; it is not at line 3"),
        ({"prob_well": None, "label": ["sick", "x", "sick", "y"]}, "one score column, for 'sick'"),
    ],
)
def test_faults(columns: dict[str, object], expected: str) -> None:
    assert expected in fault(**columns)


def test_all_faults_are_named_at_once() -> None:
    message = fault(split="train", label="unknown", prob_sick="x")
    assert "has 3 faults" in message


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no predictions table 'none.csv'"):
        PredictionTable.from_csv(tmp_path / "none.csv")
    (tmp_path / "latin.csv").write_bytes("case,patient\nä,b\n".encode("latin-1"))
    with pytest.raises(DataError, match="cannot be read as comma-separated UTF-8") as error:
        PredictionTable.from_csv(tmp_path / "latin.csv")
    assert str(tmp_path) not in str(error.value)
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(DataError, match="cannot be read"):
        PredictionTable.from_csv(tmp_path / "empty.csv")
    (tmp_path / "header.csv").write_text(",".join(frame().columns) + "\n")
    with pytest.raises(DataError, match="no rows below the header"):
        PredictionTable.from_csv(tmp_path / "header.csv")
