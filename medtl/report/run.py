"""The end of a run: predictions evaluated, the report written, and what the page says about the run itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medtl.data.cohort import Cohort
from medtl.evaluation import PredictionTable, Results, RunContext, SegmentationTable, evaluate
from medtl.report import write_report
from medtl.runs import Run, environment


def report_run(
    run: Run, cohort: Cohort, predictions: PredictionTable | SegmentationTable, **context: Any
) -> tuple[Results, Path]:
    """Evaluates the predictions of a run; writes `calibration.json` and `report/`.

    Args:
        run: the open run.
        cohort: its cases: where they came from and what was left out.
        predictions: of all its models.
        context: further fields of `RunContext`, such as `title` and `keep`.

    Returns:
        The results, and the path of the page.
    """
    config = run.config
    about = RunContext(
        source_sites=cohort.sites("source"),
        target_site=config.target.name if config.target is not None else "",
        flow=cohort.table.flow(),
        command=run.command,
        versions=environment()["versions"],
        seeds=config.training_seeds,
        **{"notes": cohort.table.warnings, **context},
    )
    results = evaluate(predictions, context=about, replicates=200 if config.smoke else 2000)
    run.write_json("calibration.json", results.calibration())
    return results, write_report(results, run.folder / "report")
