"""Segmentations have what classifications have: many models ranked, growing numbers of patients, seeds, costs."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from medtl.evaluation import Cost, Results, RunContext, SegmentationRules
from medtl.evaluation.engine.evaluate import evaluate_cases
from medtl.report import write_report
from medtl.report.view import View
from tests.report.test_many_models import table_of, text_of
from tests.report.test_report import Page

Maker = Callable[..., pd.DataFrame]
RULES = SegmentationRules(
    "mm", "ml", {"nucleus": 1.0, "cytoplasm": 2.0}, "A structure in neither mask: no value."
)
EIGHT = tuple(f"{e}/{s}" for e in ("resnet50", "vgg16") for s in ("full", "probe", "lp_ft", "lora"))


def made(segmented: Maker, models: tuple[str, ...], **options: object) -> Results:
    frame = segmented(models=models, seeds=("0", "1"), cases=25, internal=10, **options)
    better = {m: 0.05 * k for k, m in enumerate(models)}
    frame["dice"] = (frame.dice - 0.4 + frame.model.map(better)).where(frame.status == "ok", frame.dice)
    context = RunContext(
        costs=tuple(Cost(m, 3.0 + 90 * k, 0.01 * (k + 1)) for k, m in enumerate(models)),
        keep={"model": models[2], "reason": "Its masks are surer.", "evidence": []},
    )
    return evaluate_cases(frame, rules=RULES, context=context, replicates=100)


@pytest.fixture(scope="module")
def eight(segmented: Maker) -> Results:
    return made(segmented, EIGHT)


@pytest.fixture(scope="module")
def page(eight: Results, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(eight, tmp_path_factory.mktemp("eight") / "r")


@pytest.mark.slow
def test_one_ranked_row_each(eight: Results, page: Path) -> None:
    head, *rows = table_of(page, "External testing, the best first")
    assert head == [
        "Model",
        "Mean Dice",
        "Difference from resnet50/full",
        "Dice, nucleus",
        "Dice, cytoplasm",
        "Mean Dice, internal testing",
        "Training",
        "Trained parameters",
    ]
    assert [r[0].split(" ")[0] for r in rows] == list(View(eight).models) == list(reversed(EIGHT))
    assert sum("(reference)" in r[0] for r in rows) == sum("(kept)" in r[0] for r in rows) == 1
    first = [float(r[1].split()[0]) for r in rows]
    assert first == sorted(first, reverse=True)


def test_limits_that_hold_for_all_models_of_each_structure(eight: Results, page: Path) -> None:
    head, *rows = table_of(page, "Differences from resnet50/full, external testing")
    assert head[:4] == ["Model", "Mean Dice, difference", "Adjusted p", "First in"]
    assert head[4:] == ["Dice, nucleus, difference", "Dice, cytoplasm, difference"]
    comparison = next(c for c in eight.comparisons if (c.domain, c.cls) == ("target", "cytoplasm"))
    known = {r.model: r.difference.value for r in comparison.rows if r.difference is not None}
    for row in rows[:-1]:
        assert float(row[-1].split()[0].replace("\N{MINUS SIGN}", "-")) == pytest.approx(
            known[row[0]], abs=0.006
        )
    text = text_of(page)
    for expected in (
        "of 7 models compared with resnet50/full",
        "for each structure and for their mean on its own",
        "single-step max-t from the patient bootstrap",
        "Cost beside quality",
        "Mean Dice: encoders and strategies",
    ):
        assert expected in text, expected
    names = sorted(p.stem for p in (page.parent / "figures").iterdir())
    assert names == ["costs", "dice", "ranked", "seeds", "volumes"]


def test_no_table_grows_with_models_times_structures(page: Path) -> None:
    tables = re.findall(r"<tbody>(.*?)</tbody>", page.read_text(), flags=re.DOTALL)
    worst = [t for t in tables if "lab_b-test" in t]
    assert len(worst) == 1
    assert max(len(re.findall("<tr>", t)) for t in tables if t not in worst) < 2 * len(EIGHT)


def test_numbers_of_every_structure_are_there(eight: Results, page: Path) -> None:
    shown = {float(attrs["data-value"] or "") for attrs, _ in Page(page.read_text()).cells}
    for model in EIGHT:
        (block,) = eight.main_blocks(model, "target")
        for name in ("dice", "nsd", "hd95", "volume_bias", "volume_error"):
            for cls in eight.classes:
                measure = block.get(name, cls=cls, kind=None)
                assert measure is not None
                assert measure.estimate.value in shown, (model, name, cls)


@pytest.mark.usefixtures("undrawn")
def test_growing_numbers_of_patients(segmented: Maker, tmp_path: Path) -> None:
    models = tuple(f"{s}@{n}" for s in ("full", "probe") for n in (5, 20, 100))
    results = made(segmented, models)
    page = write_report(results, tmp_path / "r")
    rows = table_of(page, "Mean Dice, external testing")
    assert [r[0] for r in rows] == ["Labelled training patients", "5", "20", "100"]
    steps = table_of(page, "Mean Dice, external testing: what more patients brought")
    assert [r[0] for r in steps[1:]] == ["5 to 20", "20 to 100"]
    assert "with as many patients" in text_of(page)
    assert "The last step, from 20 to 100, brought" in text_of(page)
    assert (page.parent / "figures" / "sizes.svg").exists()


@pytest.mark.usefixtures("undrawn")
def test_one_structure(segmented: Maker, tmp_path: Path) -> None:
    results = made(segmented, EIGHT, structures=("nucleus",))
    page = write_report(results, tmp_path / "r")
    head, *rows = table_of(page, "Differences from resnet50/full, external testing")
    assert head == ["Model", "Dice, nucleus, difference", "Adjusted p", "First in"]
    assert len(rows) == len(EIGHT)


@pytest.mark.usefixtures("undrawn")
def test_results_without_comparisons_keep_their_differences(eight: Results, tmp_path: Path) -> None:
    page = write_report(replace(eight, comparisons=()), tmp_path / "r")
    assert table_of(page, "External testing, the best first")[0][:2] == ["Model", "Mean Dice"]
    assert "Dice" in " ".join(table_of(page, "Differences, not adjusted for the number of comparisons")[0])
    assert "max-t" not in text_of(page)
