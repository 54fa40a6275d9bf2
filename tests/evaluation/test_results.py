from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from medtl.errors import DataError
from medtl.evaluation import SCHEMA, Estimate, PredictionTable, Results, RunContext, evaluate, format_estimate
from medtl.evaluation.statistics.estimate import STATUSES, format_number
from medtl.report.terminal import summary_rows

Maker = Callable[..., pd.DataFrame]


@pytest.fixture(scope="module")
def results(binary: Maker) -> Results:
    context = RunContext(
        keep={"model": "dann", "evidence": [{"name": "x", "values": {"dann": float("nan")}, "verdict": ""}]},
        flow={"home": {"files": 9, "rejected": {"truncated": 1}}},
        versions={"numpy": "2"},
        seeds=(0, 1),
    )
    return evaluate(PredictionTable.from_frame(binary()), context=context, replicates=200)


def test_json_round_trip(results: Results, tmp_path: Path) -> None:
    path = results.save(tmp_path / "results.json")
    assert Results.load(path) == results
    content = json.loads(path.read_text())
    assert content["schema"] == SCHEMA == "medtl.results/1"
    assert "NaN" not in path.read_text()


def test_every_number_is_an_estimate_with_a_known_status(results: Results) -> None:
    seen = set()
    for block in results.blocks:
        for m in block.measures:
            assert set(m.per_seed) == set(block.seeds)
            seen.add(m.estimate.status)
            assert m.estimate.method
            assert m.estimate.num_patients <= block.num_patients
    assert seen <= set(STATUSES)


def test_no_name_of_a_patient_or_case(results: Results) -> None:
    text = results.to_json()
    assert "q0001" not in text
    assert "case-" not in text


def test_calibration_file(results: Results) -> None:
    content = json.loads(json.dumps(results.calibration()))
    entry = content["models"]["dann"]["0"]
    assert entry["temperature"] > 0
    assert entry["operating_point"]["rule"] == "youden"
    assert 0 < entry["operating_point"]["probability"] < 1
    assert set(content["models"]) == {"source_only", "dann"}


def test_summary_table(results: Results) -> None:
    rows = summary_rows(results)
    assert [(r["model"], r["tested on"]) for r in rows] == [
        ("source_only", "external testing"),
        ("dann", "external testing"),
        ("source_only", "internal testing"),
        ("dann", "internal testing"),
    ]
    block = results.main_blocks("dann", "target")[0]
    assert rows[1]["auroc"] == format_estimate(block.get("auroc").estimate)
    assert re.fullmatch(r"0\.\d+ \(0\.\d+ to \d\.\d+\)", rows[1]["balanced accuracy"])


def test_foreign_documents_are_refused(tmp_path: Path, results: Results) -> None:
    path = tmp_path / "r.json"
    path.write_text("{")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        Results.load(path)
    path.write_text('{"schema": "medtl.results/99"}')
    with pytest.raises(DataError, match=r"have the schema 'medtl.results/99'"):
        Results.load(path)
    content = json.loads(results.to_json())
    del content["blocks"][0]["model"]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="not complete"):
        Results.load(path)


@pytest.mark.parametrize(
    ("value", "lo", "hi", "expected"),
    [
        (0.81234, 0.7211, 0.8904, "0.81 (0.72 to 0.89)"),
        (0.81234, 0.8001, 0.8304, "0.812 (0.800 to 0.830)"),
        (-0.1, -0.25, 0.05, "\N{MINUS SIGN}0.10 (\N{MINUS SIGN}0.25 to 0.05)"),
        (1.8, 0.7, 3.1, "1.8 (0.7 to 3.1)"),
        (14.2, 2.0, 31.0, "14 (2 to 31)"),
        (0.5, None, None, "0.500"),
        (None, None, None, "\N{EN DASH}"),
        (-0.00001, -0.004, 0.004, "0.0000 (\N{MINUS SIGN}0.0040 to 0.0040)"),
    ],
)
def test_rounding_by_the_width_of_the_interval(
    value: float | None, lo: float | None, hi: float | None, expected: str
) -> None:
    assert format_estimate(Estimate(value, lo, hi, "", 0.95, 9, 9, 3, "ok")) == expected


def test_signs() -> None:
    assert format_number(0.04, 2, signed=True) == "+0.04"
    assert format_number(-0.04, 2, signed=True) == "\N{MINUS SIGN}0.04"
    assert format_number(0.0001, 2, signed=True) == "0.00"
