"""What every section and figure keeps to, whichever there are."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

from medtl.evaluation import PredictionTable, SegmentationRules, evaluate
from medtl.evaluation.engine.evaluate import evaluate_cases
from medtl.report.discovery import make_sections, modules
from medtl.report.view import View

Maker = Callable[..., pd.DataFrame]
SECTIONS, FIGURES = modules("sections"), modules("figures")


def name_of(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2]


@pytest.fixture(scope="module")
def views(binary: Maker, four: Maker, segmented: Maker) -> list[View]:
    rules = SegmentationRules("mm", "ml", {"nucleus": 1.0, "cytoplasm": 2.0}, "Rule.")
    crowd = tuple(f"{s}/{k}" for s in "ab" for k in range(4))
    small: dict[str, Any] = {"validation": 12, "test": 12, "external": 12}
    masks: dict[str, Any] = {"cases": 5, "internal": 3}
    tables = [
        evaluate(PredictionTable.from_frame(binary(**small)), replicates=100),
        evaluate(PredictionTable.from_frame(binary(models=crowd, seeds=("0",), **small)), replicates=100),
        evaluate(PredictionTable.from_frame(four(seeds=("0",), validation=20, external=20)), replicates=100),
        evaluate_cases(segmented(**masks, seeds=("0", "1")), rules=rules, replicates=100),
        evaluate_cases(segmented(**masks, models=crowd, seeds=("0",)), rules=rules, replicates=100),
    ]
    return [View(results) for results in tables]


def test_orders_differ_so_that_the_page_has_one_order() -> None:
    orders = [module.ORDER for module in SECTIONS]
    assert len(set(orders)) == len(orders) > 10


@pytest.mark.parametrize("module", FIGURES, ids=name_of)
def test_a_figure_names_a_section(module: ModuleType) -> None:
    assert module.SECTION in {name_of(section) for section in SECTIONS}


@pytest.mark.parametrize("module", SECTIONS, ids=name_of)
def test_a_section_is_called_like_its_file(module: ModuleType, views: list[View]) -> None:
    for view in views:
        made = module.section(view)
        assert made is None or made.key == name_of(module)
        assert made is None or made.text or made.items or made.tables


@pytest.mark.usefixtures("undrawn")
def test_each_figure_and_each_metric_is_on_a_page(views: list[View]) -> None:
    pages = [make_sections(view) for view in views]
    shown = {figure.name for page in pages for section in page for figure in section.figures}
    files = {name_of(module) for module in FIGURES}
    # These need what only a run knows: losses, seconds, numbers of patients.
    assert files - {"learning", "costs", "sizes"} <= shown <= files
    for view, page in zip(views, pages, strict=True):
        heads = {c for s in page for t in s.tables for c in t.columns}
        for section in ("discrimination", "calls", "overlap", "surfaces", "volumes"):
            for name in view.metrics(section):
                title = view.title(name).replace("one class", view.results.classes[0])
                assert any(head.startswith(title) for head in heads), name
