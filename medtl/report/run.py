"""The end of a run: evaluates the predictions and writes the report."""

from __future__ import annotations

from pathlib import Path

from medtl.evaluation import PredictionTable, Results, RunContext, SegmentationTable, evaluate
from medtl.report.write import write_report
from medtl.runs import Run


def report_run(
    run: Run, predictions: PredictionTable | SegmentationTable, context: RunContext
) -> tuple[Results, Path]:
    """Evaluates the predictions of a run; writes `calibration.json` and `report/`.

    Args:
        run: the open run.
        predictions: of all its models.
        context: what the run knows and the table does not.

    Returns:
        The results, and the path of the page.
    """
    results = evaluate(predictions, context=context, replicates=200 if run.config.smoke else 2000)
    run.write_json("calibration.json", results.calibration())
    return results, write_report(results, run.folder / "report")
