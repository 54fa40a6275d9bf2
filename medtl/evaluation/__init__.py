"""From a table of predictions to results and a report; needs neither torch nor the scans.

Example:
    table = PredictionTable.from_csv("predictions.csv")
    results = evaluate(table, rule="sens>=0.95", prevalence=0.1)
    write_report(results, Path("report"))
"""

from medtl.evaluation.calibration import fit_temperature
from medtl.evaluation.discrimination import auroc, delong_ci, delong_test
from medtl.evaluation.estimate import Estimate, format_estimate
from medtl.evaluation.evaluate import evaluate
from medtl.evaluation.measures import MEASURES
from medtl.evaluation.operating import OperatingPoint, ppv_npv
from medtl.evaluation.report import write_report
from medtl.evaluation.results import SCHEMA, Block, Difference, Measure, Results, RunContext, Settings
from medtl.evaluation.table import PredictionTable

__all__ = [
    "MEASURES",
    "SCHEMA",
    "Block",
    "Difference",
    "Estimate",
    "Measure",
    "OperatingPoint",
    "PredictionTable",
    "Results",
    "RunContext",
    "Settings",
    "auroc",
    "delong_ci",
    "delong_test",
    "evaluate",
    "fit_temperature",
    "format_estimate",
    "ppv_npv",
    "write_report",
]
