"""The main numbers as rows of text, for a terminal."""

from __future__ import annotations

import itertools

from medtl.evaluation.results import Block, Results
from medtl.evaluation.statistics.estimate import format_estimate

PLACES = {"target": "external testing", "source": "internal testing"}


def summary_rows(results: Results) -> list[dict[str, str]]:
    """One row a model, place and finding or structure."""
    rows: list[dict[str, str]] = []
    for domain, model in itertools.product(PLACES, results.models):
        for block in results.main_blocks(model, domain):
            place = "source validation" if block.split == "validation" else PLACES[domain]
            if domain == "target" and block.split == "validation":
                place = "target validation"
            if results.segmentation is not None:
                rows += _structures(results, block, place)
            else:
                rows.append(_classification(block, place))
    bounds = results.context.target_trained
    return [
        row | {"model": f"{row['model']} (upper bound)"} if row["model"] in bounds else row for row in rows
    ]


def _classification(block: Block, place: str) -> dict[str, str]:
    row = {"model": block.model, "tested on": place, "cases": str(block.num_labelled)}
    if block.finding is not None:
        row["finding"] = block.finding
    for name in ("balanced_accuracy", "auroc", "sensitivity", "specificity"):
        if (measure := block.get(name)) is not None and measure.estimate.value is not None:
            row[name.replace("_", " ")] = format_estimate(measure.estimate)
    return row


def _structures(results: Results, block: Block, place: str) -> list[dict[str, str]]:
    rules = results.segmentation
    assert rules is not None
    titles = {"dice": "Dice", "nsd": "NSD", "hd95": f"HD95 ({rules.unit})"}
    rows = []
    for structure in results.classes:
        row = {"model": block.model, "tested on": place, "structure": structure}
        found = {t: block.get(n, cls=structure, kind=None) for n, t in titles.items()}
        first = found["Dice"]
        row["cases"] = str(first.estimate.n if first is not None else 0)
        for title, measure in found.items():
            if measure is not None and measure.estimate.value is not None:
                row[title] = format_estimate(measure.estimate)
        difference = next(
            (
                d
                for d in results.differences
                if (d.model, d.domain, d.split, d.site, d.name, d.cls)
                == (block.model, block.domain, block.split, block.site, "dice", structure)
            ),
            None,
        )
        if difference is not None:
            row[f"Dice against {difference.reference}"] = difference.verdict
        rows.append(row)
    return rows
