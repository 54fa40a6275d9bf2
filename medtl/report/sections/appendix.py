"""The end of a report: limitations, definitions, reproducibility."""

from __future__ import annotations

from medtl.evaluation.metrics.registry import MEASURES
from medtl.evaluation.results import Results
from medtl.report.parts import Section, TableBuilder


def limitations_section(results: Results) -> Section:
    """Caveats that apply to these results, then the run's own notes."""
    items = (*results.limitations, *results.context.notes)
    return Section("limitations", "Limitations", items=items or ("None were found by the automatic checks.",))


def definitions_section(results: Results) -> Section:
    """What each measure and each word means."""
    used = {m.name for b in results.blocks for m in b.measures}
    table = TableBuilder("", ("Measure", "Definition", "Better is"))
    for name, spec in MEASURES.items():
        if name in used:
            table.row(spec.title, spec.definition, spec.better or "\N{EN DASH}")
    if results.segmentation is not None:
        return Section("definitions", "Definitions", text=_masks(results), tables=(table.build(),))
    text = (
        "Reference standard: what a case is taken to be, from the labels that were given. Operating point: "
        "the threshold at and above which a case is called positive.",
        f"Intervals cover {100 * results.level:g} % and come from {results.replicates} resamples of "
        "patients, drawn within their class and site; all cases of a drawn patient come along. AUROC: "
        "bootstrap standard error on the logit scale. Shares, sensitivity and the like: Wilson's interval at "
        "the effective number of patients. Everything else: percentiles. The method behind each single "
        "number is in results.json.",
    )
    return Section("definitions", "Definitions", text=text, tables=(table.build(),))


def _masks(results: Results) -> tuple[str, ...]:
    rules = results.segmentation
    assert rules is not None
    widths = ", ".join(f"{c} {t:g} {rules.unit}" for c, t in rules.tolerance.items())
    band = f" Calibration is about {rules.band}." if rules.band else ""
    return (
        "Reference standard: the mask that was given for a case. A surface voxel belongs to the structure and has a "
        "face neighbour that does not; distances are between centres of surface voxels"
        + (", in mm by the voxel size." if rules.unit == "mm" else ", in pixels.")
        + f" NSD tolerance: {widths}. HD95: the larger of the two directed 95th percentiles.",
        f"Empty masks. {rules.empty}{band}",
        f"Intervals cover {100 * results.level:g} % and come from {results.replicates} resamples of patients, drawn "
        "within their site; all cases of a drawn patient come along, and all models, structures and seeds are "
        "taken on the "
        "same resamples. Means: percentiles of the resamples, expanded for few patients (Hesterberg 2015); limits of "
        "agreement and calibration: percentiles. Medians are without an interval, since bootstrap intervals of medians "
        "do not hold what they promise. The method behind each single number is in results.json.",
    )


def reproducibility_section(results: Results) -> Section:
    """What somebody needs to make the same numbers again."""
    table = TableBuilder("", ("Item", "Value"), compact=True)
    context = results.context
    if context.command:
        table.row("Command", context.command)
    for name, version in context.versions.items():
        table.row(name, str(version))
    if context.target_trained:
        table.row("Upper bounds (use target labels, no candidates)", ", ".join(context.target_trained))
    if context.seeds:
        table.row("Training seeds", ", ".join(str(s) for s in context.seeds))
    table.row("Resamples", f"{results.replicates}, seed {results.seed}")
    if results.positive is not None:
        table.row("Rule of the operating point", results.rule)
    table.row(
        "Labels of the external site",
        "read to choose (oracle)" if context.oracle else "read for evaluation only",
    )
    table.row("Results", f"results.json, schema {results.schema}")
    table.row("Made", results.created)
    return Section("reproducibility", "Reproducibility", tables=(table.build(),))
