from .context import Cost as Cost, LearningCurve as LearningCurve, RunContext as RunContext
from .engine.evaluate import evaluate as evaluate
from .engine.measure_masks import measure_cases as measure_cases
from .metrics.calibration import fit_temperature as fit_temperature
from .metrics.discrimination import auroc as auroc, delong_ci as delong_ci, delong_test as delong_test
from .metrics.empty import EmptyPolicy as EmptyPolicy
from .metrics.operating import OperatingPoint as OperatingPoint, ppv_npv as ppv_npv
from .metrics.registry import MEASURES as MEASURES
from .metrics.voxels import voxel_histogram as voxel_histogram
from .results import (
    Block as Block,
    CaseValues as CaseValues,
    Difference as Difference,
    Measure as Measure,
    Results as Results,
    SCHEMA as SCHEMA,
    SegmentationRules as SegmentationRules,
    Settings as Settings,
    WorstCase as WorstCase,
)
from .statistics.compare import Compared as Compared, Comparison as Comparison
from .statistics.estimate import Estimate as Estimate, format_estimate as format_estimate
from .tables.predictions import PredictionTable as PredictionTable
from .tables.segmentations import SegmentationTable as SegmentationTable
from .tables.voxels import VoxelTable as VoxelTable
