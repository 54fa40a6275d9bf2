"""From a table of predictions or of segmentations to results and a report; needs neither torch nor the scans.

Example:
    table = PredictionTable.from_csv("predictions.csv")
    results = evaluate(table, rule="sens>=0.95", prevalence=0.1)
    write_report(results, Path("report"))

    masks = SegmentationTable.from_csv("segmentations.csv")
    write_report(evaluate(masks, tolerance=1.0), Path("report_of_masks"))
"""

from medtl.evaluation.calibration import fit_temperature
from medtl.evaluation.compare import Compared, Comparison
from medtl.evaluation.context import Cost, LearningCurve, RunContext
from medtl.evaluation.discrimination import auroc, delong_ci, delong_test
from medtl.evaluation.empty import EmptyPolicy
from medtl.evaluation.estimate import Estimate, format_estimate
from medtl.evaluation.evaluate import evaluate
from medtl.evaluation.figures import Drawing
from medtl.evaluation.manyfigures import interval_figure
from medtl.evaluation.measures import MEASURES
from medtl.evaluation.operating import OperatingPoint, ppv_npv
from medtl.evaluation.overlays import Overlay, images_of, worst_overlays
from medtl.evaluation.report import write_page, write_report
from medtl.evaluation.results import (
    SCHEMA,
    Block,
    CaseValues,
    Difference,
    Measure,
    Results,
    SegmentationRules,
    Settings,
    WorstCase,
)
from medtl.evaluation.segmentation import measure_cases
from medtl.evaluation.segtable import SegmentationTable
from medtl.evaluation.table import PredictionTable
from medtl.evaluation.view import Cell, Section, Table, TableBuilder, plain
from medtl.evaluation.voxels import voxel_histogram
from medtl.evaluation.voxeltable import VoxelTable

__all__ = [
    "MEASURES",
    "SCHEMA",
    "Block",
    "CaseValues",
    "Cell",
    "Compared",
    "Comparison",
    "Cost",
    "Difference",
    "Drawing",
    "EmptyPolicy",
    "Estimate",
    "LearningCurve",
    "Measure",
    "OperatingPoint",
    "Overlay",
    "PredictionTable",
    "Results",
    "RunContext",
    "Section",
    "SegmentationRules",
    "SegmentationTable",
    "Settings",
    "Table",
    "TableBuilder",
    "VoxelTable",
    "WorstCase",
    "auroc",
    "delong_ci",
    "delong_test",
    "evaluate",
    "fit_temperature",
    "format_estimate",
    "images_of",
    "interval_figure",
    "measure_cases",
    "plain",
    "ppv_npv",
    "voxel_histogram",
    "worst_overlays",
    "write_page",
    "write_report",
]
