"""Names that become paths: of structures, classes, models, sites and cases, in runs and in tables from anywhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medtl.cli import main
from medtl.files import file_name
from tests.helpers.figures import leave_out
from tests.helpers.masks import write_masked_site
from tests.helpers.sites import TINY, write_site

HOSTILE = (
    "x/../../ESCAPED",
    "left/right",
    "..",
    ".",
    "/tmp/ESCAPED",
    "a\\..\\b",
    "C:evil",
    "nul\x00l",
    "end.",
    ".hidden",
)


@pytest.mark.parametrize("name", [*HOSTILE, "", "end "])
def test_a_name_is_one_part_of_a_path(name: str, tmp_path: Path) -> None:
    made = tmp_path / file_name(name)
    assert made.parent == tmp_path
    assert made.resolve().parent == tmp_path.resolve()
    assert made.name not in ("", ".", "..")
    made.write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == [made.name]


def test_two_names_are_two_files() -> None:
    names = [*HOSTILE, "left%2Fright", "%2E.", "x", "%"]
    assert len({file_name(name) for name in names}) == len(names)


def outside(root: Path, *within: str) -> list[Path]:
    """Files that appeared outside of these folders."""
    return [p for p in root.rglob("*") if p.is_file() and p.relative_to(root).parts[0] not in within]


def test_structures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "deep" / "work"
    write_masked_site(work / "a", 8)
    write_masked_site(work / "b", 4, offset=100)
    monkeypatch.chdir(work)
    leave_out(monkeypatch)
    words = ["--source", "a", "--masks", "a/masks", "--target", "b", "--target-masks", "b/masks", *TINY]
    words += ["--structures", "x/../../../ESCAPED=128", "left/right=255"]
    assert main(["run", "adapt", *words, "--method", "adabn", "--out", "run"]) == 0
    assert main(["predict", "run", "b", "--out", "new", "--model", "adabn", "--maps"]) == 0
    assert main(["report", "run/predictions.csv", "--out", "page"]) == 0
    left = outside(tmp_path, "deep") + outside(work, "a", "b", "run", "new", "page", ".medtl-cache")
    assert [path.name for path in left] == [".run.inputs.json"]
    assert {path.name for path in (work / "new" / "maps").iterdir()} == {
        file_name("x/../../../ESCAPED"),
        file_name("left/right"),
    }


@pytest.mark.parametrize("column", ["site", "model", "case", "label"])
def test_tables_of_predictions(column: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "deep" / "work"
    work.mkdir(parents=True)
    monkeypatch.chdir(work)
    rng = np.random.default_rng(0)
    rows = []
    for number in range(60):
        name = {"site": "s", "model": "m", "case": f"c{number}", "label": str(number % 2)}
        if column == "label":
            name["label"] = ("x/../../ESCAPED", "left/right")[number % 2]
        elif column == "case":
            name["case"] = f"x/../../ESCAPED{number}"
        else:
            name[column] = HOSTILE[number % 2]
        split, domain = (("validation", "source"), ("test", "target"))[number // 30]
        rows.append({**name, "patient": f"p{number}", "split": split, "domain": domain})
    frame = pd.DataFrame(rows)
    if column in ("model", "site"):
        every = [frame.assign(**{column: name}) for name in HOSTILE[:2]]
        frame = pd.concat(every) if column == "model" else frame
    for k, name in enumerate(sorted(set(frame.label))):
        frame[f"logit_{name}"] = rng.normal(size=len(frame)) + (frame.label == name) * (1 + k)
    frame.to_csv("table.csv", index=False)
    assert main(["report", "table.csv", "--out", "page", "--replicates", "100"]) == 0
    assert outside(tmp_path, "deep") + outside(work, "page") == [work / "table.csv"]
    assert {path.parent.name for path in (work / "page").rglob("*") if path.is_file()} <= {"page", "figures"}


def test_tables_of_segmentations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Overlays are drawn of cases whose names would lead elsewhere."""
    work = tmp_path / "deep" / "work"
    (work / "masks").mkdir(parents=True)
    monkeypatch.chdir(work)
    rng = np.random.default_rng(0)
    rows = []
    for number in range(8):
        mask = np.zeros((24, 24), np.uint8)
        mask[6:16, 6 : 12 + number % 3] = 1
        for kind, shift in (("mask", 1), ("reference", 0)):
            Image.fromarray(np.roll(mask, shift, 0)).save(work / "masks" / f"{kind}{number}.png")
        Image.fromarray(rng.integers(0, 255, (24, 24), dtype=np.uint8)).save(work / f"i{number}.png")
        split, domain = (("validation", "source"), ("test", "target"))[number // 4]
        rows.append(
            {
                "case": f"x/../../../ESCAPED{number}",
                "patient": f"p{number}",
                "split": split,
                "domain": domain,
                "site": "..",
                "model": "../../m",
                "mask": f"masks/mask{number}.png",
                "reference": f"masks/reference{number}.png",
                "image": f"i{number}.png",
            }
        )
    pd.DataFrame(rows).to_csv("table.csv", index=False)
    (work / "labels.json").write_text(json.dumps({"background": 0, "x/../../ESCAPED": 1}))
    assert main(["report", "table.csv", "--out", "page", "--replicates", "100", "--overlays", "2"]) == 0
    assert not outside(tmp_path, "deep")
    made = [path for path in work.rglob("*") if path.is_file() and "page" in path.parts]
    assert {path.parent.name for path in made} <= {"page", "figures"}


@pytest.mark.slow
def test_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "deep" / "work"
    write_site(work / "a", 24)
    write_site(work / "b", 6, offset=100)
    labels = work / "a" / "labels.csv"
    labels.write_text(labels.read_text().replace("class0", "x/../../../ESCAPED").replace("class1", ".."))
    monkeypatch.chdir(work)
    leave_out(monkeypatch)
    words = ["--source", "a", "--labels", "a/labels.csv", "--target", "b", *TINY]
    assert main(["run", "adapt", *words, "--method", "adabn", "--out", "run"]) == 0
    assert main(["predict", "run", "b", "--out", "new"]) == 0
    left = outside(tmp_path, "deep") + outside(work, "a", "b", "run", "new", ".medtl-cache")
    assert [path.name for path in left] == [".run.inputs.json"]
