from .adapters.adabn import AdaBN as AdaBN
from .adapters.contract.adapter import Adapter as Adapter
from .adapters.contract.discovery import (
    adapter_class as adapter_class,
    build_adapter as build_adapter,
    parse_hparams as parse_hparams,
)
from .adapters.contract.facts import Facts as Facts
from .adapters.contract.phase import Phase as Phase
from .adapters.contract.test_time import TestTimeAdapter as TestTimeAdapter
from .adapters.dann import DANN as DANN
from .adapters.finetune import FineTune as FineTune
from .checkpoints import restore_weights as restore_weights
from .data.cases.collect import collect_cases as collect_cases
from .data.cohort import Cohort as Cohort
from .data.tensors.batch import Batch as Batch
from .data.tensors.preprocess import suggest_preprocess as suggest_preprocess
from .data.tensors.spec import Preprocess as Preprocess
from .encoders.features import (
    FeatureDataset as FeatureDataset,
    extract_depths as extract_depths,
    extract_features as extract_features,
    feature_table as feature_table,
    knn_logits as knn_logits,
)
from .errors import (
    CheckpointError as CheckpointError,
    ConfigError as ConfigError,
    DataError as DataError,
    MedtlError as MedtlError,
    WeightsError as WeightsError,
)
from .evaluation.context import RunContext as RunContext
from .evaluation.engine.evaluate import evaluate as evaluate
from .evaluation.results import Results as Results
from .evaluation.statistics.estimate import Estimate as Estimate
from .evaluation.tables.predictions import PredictionTable as PredictionTable
from .evaluation.tables.segmentations import SegmentationTable as SegmentationTable
from .labelmap import LabelMap as LabelMap
from .models.classifier import Classifier as Classifier, build_classifier as build_classifier
from .models.encoder import build_encoder as build_encoder
from .models.losses.classification import (
    ClassificationLoss as ClassificationLoss,
    calibration_note as calibration_note,
)
from .models.losses.segmentation import (
    SegmentationLoss as SegmentationLoss,
    rare_structure_weights as rare_structure_weights,
)
from .models.networks import choose_network as choose_network
from .models.output import Output as Output
from .models.segmenter import Segmenter as Segmenter, build_segmenter as build_segmenter
from .models.weights.hub import weights_here as weights_here
from .models.with_features import with_features as with_features
from .prediction.classify import (
    predict_adapted as predict_adapted,
    predict_cases as predict_cases,
    prediction_rows as prediction_rows,
)
from .prediction.mask_writer import MaskWriter as MaskWriter
from .prediction.segment import adapt_cases as adapt_cases, segment_cases as segment_cases
from .prediction.trained import load_trained as load_trained, model_header as model_header
from .report.run import report_run as report_run
from .report.terminal import summary_rows as summary_rows
from .report.write import write_page as write_page, write_report as write_report
from .runs import Run as Run, environment as environment
from .scans.catalog import scan_folder as scan_folder
from .scans.readers.dicom_seg import write_seg as write_seg
from .scans.volume import read_volume as read_volume
from .scans.write import write_map as write_map, write_mask as write_mask
from .selection.decide import recommend as recommend, recommend_masks as recommend_masks
from .strategies.contract.discovery import (
    build_strategy as build_strategy,
    parse_strategy_hparams as parse_strategy_hparams,
    strategy_class as strategy_class,
)
from .strategies.contract.strategy import Strategy as Strategy
from .tasks.study import Fitted as Fitted, Study as Study, check_ways as check_ways
from .tasks.task import Task as Task, task_of as task_of
from .tasks.ways import Way as Way, ways_of as ways_of
from .training.fit import FitResult as FitResult, fit as fit
from .training.lightning import make_trainer as make_trainer
from .training.settings import FitConfig as FitConfig

__version__: str

def __getattr__(name: str) -> type[Adapter]: ...
