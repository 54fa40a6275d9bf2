"""Cells that a spreadsheet would run, in every table that is written."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medtl.cells import csv_text, guarded, plain_frame, unguarded
from medtl.cli import main
from tests.helpers.figures import leave_out
from tests.helpers.masks import write_masked_site
from tests.helpers.sites import TINY, write_site

FORMULAS = ("=cmd|'/c calc'!A0", "@SUM(A1)", "+1+1", "-2+3", "\t=1", "'=1")


@given(st.text(max_size=20))
def test_what_is_read_is_what_was_meant(text: str) -> None:
    assert unguarded(guarded(text)) == text


@pytest.mark.parametrize("text", FORMULAS)
def test_no_formula_is_written(text: str) -> None:
    assert guarded(text)[0] == "'"


@pytest.mark.parametrize("text", ["-1.5", "+2", "-inf", "1e-3", "a=b", "", "x-y", "'quoted'"])
def test_numbers_and_other_text_stay(text: str) -> None:
    assert guarded(text) == text


def test_tables(tmp_path: Path) -> None:
    frame = pd.DataFrame({"case": [*FORMULAS], "=x": [-1.5] * len(FORMULAS), "n": range(len(FORMULAS))})
    (tmp_path / "t.csv").write_text(csv_text(frame))
    with (tmp_path / "t.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert not any(re.match(r"[=@\t]|[+-]\D", cell) for row in rows for cell in row)
    again = plain_frame(pd.read_csv(tmp_path / "t.csv", dtype=str, keep_default_na=False))
    assert list(again.columns) == list(frame.columns)
    assert list(again["case"]) == [*FORMULAS]


NAMES = ("=cmd", "@SUM(A1)", "+plus+1", "-minus-1")


@pytest.mark.parametrize("task", ["labels", pytest.param("masks", marks=pytest.mark.slow)])
def test_no_table_of_a_run_holds_a_formula(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of files, classes and patients; and what is read back has its own names."""
    monkeypatch.chdir(tmp_path)
    leave_out(monkeypatch)
    if task == "labels":
        write_site(tmp_path / "a", 24)
        write_site(tmp_path / "b", 8, offset=100)
        files = sorted((tmp_path / "b").glob("*.png"))[:4]
        labels = tmp_path / "a" / "labels.csv"
        labels.write_text(labels.read_text().replace("class0", "=zero").replace("class1", "@one"))
        data = ["--labels", "a/labels.csv"]
    else:
        write_masked_site(tmp_path / "a", 8)
        write_masked_site(tmp_path / "b", 5, offset=100)
        files = sorted((tmp_path / "b" / "scans").glob("*.png"))[:4]
        data = ["--masks", "a/masks"]
    for file, name in zip(files, NAMES, strict=True):
        file.rename(file.with_name(f"{name}.png"))
    assert (
        main(
            [
                "run",
                "adapt",
                "--source",
                "a",
                "--target",
                "b",
                *data,
                *TINY,
                "--method",
                "adabn",
                "--out",
                "run",
            ]
        )
        == 0
    )
    assert main(["predict", "run", "b", "--out", "new", "--model", "adabn"]) == 0
    assert main(["inspect", "b", "--out", "seen"]) == 0
    assert main(["report", "run/predictions.csv", "--out", "page"]) == 0
    tables = [path for path in tmp_path.rglob("*.csv") if path.parent.name not in ("a", "b")]
    assert len(tables) >= 7
    for path in tables:
        with path.open(newline="") as file:
            for row in csv.reader(file):
                assert not any(re.match(r"[=@\t]|[+-](?![\d.]|inf)", cell) for cell in row), (path.name, row)
    for name in NAMES:
        assert (
            name
            in (tmp_path / "page" / "results.json").read_text() + (tmp_path / "new" / "cases.csv").read_text()
        )
    if task == "labels":
        assert '"=zero"' in (tmp_path / "page" / "results.json").read_text()
