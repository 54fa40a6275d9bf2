"""No model need have been taken to every place: what the others did there is on the page and in the terminal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medtl.evaluation import PredictionTable, Results, SegmentationRules, SegmentationTable, evaluate
from medtl.evaluation.engine.evaluate import evaluate_cases
from medtl.evaluation.statistics.estimate import format_estimate
from medtl.report import discovery, write_report
from medtl.report.terminal import summary_rows
from medtl.report.view import View

Maker = Callable[..., pd.DataFrame]
RULES = SegmentationRules(
    "mm", "ml", {"nucleus": 2.0, "cytoplasm": 2.0}, "A structure in neither mask: no value."
)


def evaluated(frame: pd.DataFrame, masks: bool) -> Results:
    if masks:
        return evaluate_cases(frame, rules=RULES, replicates=100)
    return evaluate(PredictionTable.from_frame(frame), replicates=100)


def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    find = discovery.modules
    monkeypatch.setattr(discovery, "modules", lambda folder: [] if folder == "figures" else find(folder))


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("number", "domain", "lacking"), [(2, "target", 0), (8, "target", 0), (2, "source", 0), (2, "target", 1)]
)
@pytest.mark.parametrize("masks", [False, True], ids=["labels", "masks"])
@pytest.mark.slow
def test_all_results_are_shown(
    binary: Maker,
    segmented: Maker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    masks: bool,
    number: int,
    domain: str,
    lacking: int,
) -> None:
    if (domain, lacking) != ("target", 0):
        without_figures(monkeypatch)
    models = tuple(f"m{k}" for k in range(number))
    frame = (segmented if masks else binary)(models=models, seeds=("0",))
    frame = frame[~((frame.model == f"m{lacking}") & (frame.domain == domain))]
    results = evaluated(frame, masks)
    page = write_report(results, tmp_path / "r")
    text = (page.parent / "report.md").read_text()
    rows = summary_rows(results)
    view = View(results)
    for model in models:
        for place in ("target", "source"):
            there = not (place == domain and model == f"m{lacking}")
            word = {"target": "external testing", "source": "internal testing"}[place]
            assert any(r["model"] == model and r["tested on"] == word for r in rows) is there
            found = view.headline(model, place)
            assert (found is not None) is there
            if found is not None:
                assert format_estimate(found.estimate) in text
    reference_away = lacking == 0 and domain == "target"
    assert ("m0, with which the other models are compared, was not tested" in text) is reference_away


@pytest.mark.parametrize("masks", [False, True], ids=["labels", "masks"])
def test_cases_of_each_split_are_counted(
    binary: Maker, segmented: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, masks: bool
) -> None:
    """The first model has tuning cases alone."""
    without_figures(monkeypatch)
    models = ("first", "second")
    frame = (segmented if masks else binary)(models=models, seeds=("0",), validation=30)
    frame = frame[(frame.model == "second") | (frame.split == "validation")]
    page = write_report(evaluated(frame, masks), tmp_path / "r")
    text = (page.parent / "report.md").read_text()
    counted = text[text.index("**Cases in this evaluation**") : text.index("## 2.")]
    for place in ("External testing", "Internal testing", "Internal, tuning cases"):
        assert f"| {place} |" in counted
    assert "- Internal testing: " in text
    assert "There is no separate internal test set" not in text.split("## 1.")[0]
    if masks:
        assert "Overlap with the reference, internal testing" in text
        assert "Overlap with the reference, internal, tuning cases" in text


def test_a_table_of_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_figures(monkeypatch)
    rng = np.random.default_rng(0)
    rows = []
    for domain in ("source", "target"):
        for number in range(6):
            case = f"{domain}{number}"
            truth = np.zeros((24, 24), np.uint8)
            truth[4:16, 4 : 14 + number] = 1
            Image.fromarray(truth).save(tmp_path / f"r-{case}.png")
            for model in ("first", "second"):
                if (model, domain) == ("first", "target"):
                    continue
                mask = truth * (rng.random(truth.shape) < 0.9).astype(np.uint8)
                Image.fromarray(mask).save(tmp_path / f"{model}-{case}.png")
                row = {"case": case, "patient": case, "site": domain, "domain": domain, "split": "test"}
                paths = {"mask": f"{model}-{case}.png", "reference": f"r-{case}.png"}
                rows.append(row | paths | {"model": model})
    results = evaluate(SegmentationTable.from_frame(pd.DataFrame(rows), folder=tmp_path), replicates=100)
    places = {(r["model"], r["tested on"]) for r in summary_rows(results)}
    assert places == {
        ("second", "external testing"),
        ("first", "internal testing"),
        ("second", "internal testing"),
    }
    text = (write_report(results, tmp_path / "out").parent / "report.md").read_text()
    assert "Overlap with the reference, external testing" in text
