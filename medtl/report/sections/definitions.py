"""Definitions of measures and terms."""

from __future__ import annotations

from medtl.evaluation.metrics.registry import MEASURES
from medtl.report.parts import DASH, Section, TableBuilder
from medtl.report.view import View

ORDER = 120


def section(view: View) -> Section:
    """A definition of every metric on the page, and how the intervals are made."""
    used = {m.name for b in view.results.blocks for m in b.measures}
    table = TableBuilder("", ("Measure", "Definition", "Better is"))
    for name, metric in MEASURES.items():
        if name in used:
            table.row(metric.title, metric.definition, metric.better or DASH)
    text = _masks(view) if view.masks else _cases(view)
    return Section("definitions", "Definitions", text=text, tables=(table.build(),))


def _cases(view: View) -> tuple[str, ...]:
    return (
        "Reference standard: what a case is taken to be, from the labels that were given. Operating point: the "
        "threshold at and above which a case is called positive.",
        f"Intervals cover {view.percent} and come from {view.results.replicates} resamples of patients, drawn within "
        "their class and site; all cases of a drawn patient come along. AUROC: bootstrap standard error on the logit "
        "scale. Shares, sensitivity and the like: Wilson's interval at the effective number of patients. Everything "
        "else: percentiles. The method behind each number is in results.json.",
    )


def _masks(view: View) -> tuple[str, ...]:
    rules = view.results.segmentation
    assert rules is not None
    widths = ", ".join(f"{c} {t:g} {rules.unit}" for c, t in rules.tolerance.items())
    where = ", in mm by the voxel size" if rules.unit == "mm" else ", in pixels"
    band = f" Calibration is about {rules.band}." if rules.band else ""
    return (
        "Reference standard: the mask that was given for a case. A surface voxel belongs to the structure and has a "
        f"face neighbour that does not; distances are between centres of surface voxels{where}. NSD tolerance: "
        f"{widths}. HD95: the larger of the two directed 95th percentiles.",
        f"Empty masks. {rules.empty}{band}",
        f"Intervals cover {view.percent} and come from {view.results.replicates} resamples of patients, drawn within "
        "their site; all cases of a drawn patient come along, and all models, structures and seeds are evaluated on "
        "the same resamples. Means: percentiles of the resamples, expanded for few patients (Hesterberg 2015); limits "
        "of agreement and calibration: percentiles. Medians have no interval, since bootstrap intervals of medians "
        "miss their nominal coverage. The method behind each number is in results.json.",
    )
