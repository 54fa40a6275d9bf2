"""Segmentation of real scans through the command line. They take minutes: -m "slow and realdata"."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from medtl.cli import main

pytestmark = [pytest.mark.slow, pytest.mark.realdata]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = os.environ.get("MEDTL_REALDATA")
    if not root:
        pytest.skip("MEDTL_REALDATA is not set")
    monkeypatch.chdir(tmp_path)
    return Path(root)


def dice(run: str, domain: str) -> dict[tuple[str, str], float]:
    """Mean Dice by model and structure."""
    blocks = json.loads((Path(run) / "report" / "results.json").read_text())["blocks"]
    return {
        (b["model"], m["cls"]): m["estimate"]["value"]
        for b in blocks
        if b["domain"] == domain and b["split"] == "test"
        for m in b["measures"]
        if m["name"] == "dice" and m["cls"]
    }


def test_blood_cells_of_another_laboratory(data: Path) -> None:
    a, b = data / "wbc" / "lab_a", data / "wbc" / "lab_b"
    words = ["run", "adapt", "--source", f"{b}", "--masks", f"{b}/masks", "--target", f"{a}"]
    words += ["--target-masks", f"{a}/masks", "--structures", "cytoplasm=128", "nucleus=255", "--out", "run"]
    assert main([*words, "--image-size", "128", "--epochs", "12", "--method", "histogram"]) == 0
    found = dice("run", "target")
    assert found["histogram", "nucleus"] > 0.85
    assert found["histogram", "nucleus"] > found["source_only", "nucleus"]
    assert found["histogram", "cytoplasm"] > found["source_only", "cytoplasm"]


def test_hippocampus_within_its_own_group(data: Path, tmp_path: Path) -> None:
    group = data / "hippocampus" / "group_a"
    lines = (group / "volumes.csv").read_text().splitlines()[1:]
    rows = [",".join(line.split(",")[:2]) for line in lines]  # volumes come in pairs: a pair is a patient
    (tmp_path / "patients.csv").write_text("\n".join(["case,patient", *rows]) + "\n")
    words = [
        "run",
        "finetune",
        "--source",
        f"{group}",
        "--masks",
        f"{group}/masks",
        "--out",
        "run",
    ]
    words += ["--labels", "patients.csv", "--structures", "anterior=1", "posterior=2", "--epochs", "40"]
    assert main(words) == 0
    found = dice("run", "source")
    assert found["finetune", "anterior"] > 0.82
    assert found["finetune", "posterior"] > 0.82
