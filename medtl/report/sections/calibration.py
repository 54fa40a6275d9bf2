"""Calibration of the probabilities of cases or voxels, before and after recalibration."""

from __future__ import annotations

from collections.abc import Iterator

from medtl.evaluation.metrics.registry import KINDS
from medtl.report.parts import Section, Table, TableBuilder
from medtl.report.tables import metric_tables
from medtl.report.view import View

ORDER = 70


def section(view: View) -> Section | None:
    """Scores and errors of calibration."""
    title = "Calibration of voxels" if view.masks else "Calibration"
    tables = metric_tables(view, "calibration", title)
    if not tables:
        return None
    return Section("calibration", title, text=tuple(_text(view)), tables=(*tables, *_methods(view)))


def _text(view: View) -> Iterator[str]:
    rules = view.results.segmentation
    if rules is not None:
        yield (
            f"Band: {rules.band}. Voxels far from the structure are easy and would make calibration look better. "
            "Every case weighs the same. Recalibration divides a structure's log odds by one number, the temperature, "
            "fitted on tuning cases of the source; it moves no contour. Whether it helps at another site is seen "
            "here, not assumed."
        )
        return
    yield (
        "Recalibration divides the logits by one number, the temperature, fitted at the source. It changes no ranking "
        "and no call of the most probable class. Whether it helps at another site is seen here, not assumed."
    )
    kinds = dict.fromkeys(c.kind for c in view.columns("calibration") if c.kind is not None)
    main = next(
        (c.kind for c in view.columns("calibration") if c.name == "debiased_squared_error" and c.kind), None
    )
    if main is not None:
        said = "; ".join(f"{k.replace('_', ' ')} = {KINDS[k]}" for k in kinds)
        yield (
            f"The debiased error is about the {KINDS[main]} (10 bins of about equal numbers). The expected calibration "
            f"error (ECE) is that of 10 bins of equal width; {said}. It is biased upwards on few cases, and therefore "
            "has no interval."
        )


def _methods(view: View) -> Iterator[Table]:
    """How each model was trained and what that does to its probabilities; models with one note share a row."""
    shared: dict[str, list[str]] = {}
    for model, note in view.results.context.methods.items():
        shared.setdefault(note, []).append(model)
    table = TableBuilder("How the models were trained, and what that does to calibration", ("Models", "Note"))
    for note, models in shared.items():
        everyone = len(shared) == 1 and len(models) > 1
        table.row("all models" if everyone else ", ".join(models), note)
    if table.rows:
        yield table.build()
