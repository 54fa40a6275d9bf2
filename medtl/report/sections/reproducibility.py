"""What is needed to reproduce the numbers."""

from __future__ import annotations

from medtl.report.parts import Section, TableBuilder
from medtl.report.view import View
from medtl.runs import COMPUTED_WITH

ORDER = 130


def section(view: View) -> Section:
    """The command, the versions, the seeds."""
    results, context = view.results, view.results.context
    table = TableBuilder("", ("Item", "Value"), compact=True)
    if context.command:
        table.row("Command", context.command)
    for name, version in context.versions.items():
        table.row(name, str(version))
    if view.bounds:
        table.row("Upper bounds (use target labels, no candidates)", ", ".join(view.bounds))
    if context.seeds:
        table.row("Training seeds", ", ".join(str(s) for s in context.seeds))
    table.row("Resamples", f"{results.replicates}, seed {results.seed}")
    if results.positive is not None:
        table.row("Rule of the operating point", results.rule)
    read = "read to choose (oracle)" if context.oracle else "read for evaluation only"
    if context.few_labels:
        read = f"a few learnt from (few labels), the others {read}"
    table.row("Labels of the external site", read)
    table.row("Results", f"results.json, schema {results.schema}")
    table.row("Made", results.created)
    digits = (
        "Equal numbers to the last digit take the same scans, seeds and versions, and the threads and instructions "
        "that they were computed with; elsewhere trainings end with slightly other weights."
    )
    text = (digits,) if COMPUTED_WITH in context.versions else ()
    return Section("reproducibility", "Reproducibility", text=text, tables=(table.build(),))
