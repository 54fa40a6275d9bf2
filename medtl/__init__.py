"""medtl: take a model from one hospital's scans to another's, and know how far to trust it.

Scans -> cases -> batches -> adapter -> predictions -> report. Names are loaded when they are first used, so
`import medtl` is cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from medtl.errors import CheckpointError, ConfigError, DataError, MedtlError, WeightsError

if TYPE_CHECKING:
    from medtl.adapters import Adapter, adapter_class, build_adapter, parse_hparams
    from medtl.adapters.adabn import AdaBN
    from medtl.adapters.dann import DANN
    from medtl.adapters.finetune import FineTune
    from medtl.checkpoints import restore_weights
    from medtl.data.batch import Batch
    from medtl.data.cases import collect_cases
    from medtl.data.catalog import scan_folder
    from medtl.data.cohort import Cohort
    from medtl.data.preprocess import Preprocess, suggest_preprocess
    from medtl.data.seg import write_seg
    from medtl.data.volume import read_volume
    from medtl.data.write import write_map, write_mask
    from medtl.evaluation import (
        Estimate,
        PredictionTable,
        Results,
        RunContext,
        SegmentationTable,
        write_page,
        write_report,
    )
    from medtl.evaluation.evaluate import evaluate
    from medtl.features import FeatureDataset, extract_depths, extract_features, feature_table, knn_logits
    from medtl.finetuning import FineTuning, fine_tune, training_record
    from medtl.inference import load_trained, model_header, predict_adapted, predict_cases, prediction_rows
    from medtl.labelmap import LabelMap
    from medtl.models import (
        Classifier,
        Output,
        SegmentationLoss,
        Segmenter,
        build_classifier,
        build_encoder,
        build_segmenter,
        choose_network,
        class_weights,
        weights_here,
        with_features,
    )
    from medtl.models.class_losses import ClassificationLoss, calibration_note
    from medtl.predictions import MaskWriter
    from medtl.reporting import report_run
    from medtl.runs import Run, environment
    from medtl.segmenting import adapt_cases, segment_cases
    from medtl.segtuning import SegmenterTuning, fine_tune_segmenter
    from medtl.selection import recommend, recommend_masks
    from medtl.strategies import Strategy, build_strategy, parse_strategy_hparams, strategy_class
    from medtl.training import FitConfig, FitResult, fit

__version__ = "0.1.0"

_HOME = {
    "AdaBN": "adapters.adabn",
    "Adapter": "adapters",
    "Batch": "data.batch",
    "ClassificationLoss": "models.class_losses",
    "Classifier": "models",
    "Cohort": "data.cohort",
    "DANN": "adapters.dann",
    "Estimate": "evaluation",
    "FeatureDataset": "features",
    "FineTune": "adapters.finetune",
    "FineTuning": "finetuning",
    "FitConfig": "training",
    "FitResult": "training",
    "LabelMap": "labelmap",
    "MaskWriter": "predictions",
    "Output": "models",
    "PredictionTable": "evaluation",
    "Preprocess": "data.preprocess",
    "Results": "evaluation",
    "Run": "runs",
    "RunContext": "evaluation",
    "SegmentationLoss": "models",
    "SegmentationTable": "evaluation",
    "Segmenter": "models",
    "SegmenterTuning": "segtuning",
    "Strategy": "strategies",
    "adapt_cases": "segmenting",
    "adapter_class": "adapters",
    "build_adapter": "adapters",
    "build_classifier": "models",
    "build_encoder": "models",
    "build_segmenter": "models",
    "build_strategy": "strategies",
    "calibration_note": "models.class_losses",
    "choose_network": "models",
    "class_weights": "models",
    "collect_cases": "data.cases",
    "environment": "runs",
    "evaluate": "evaluation",
    "extract_depths": "features",
    "extract_features": "features",
    "feature_table": "features",
    "fine_tune": "finetuning",
    "fine_tune_segmenter": "segtuning",
    "fit": "training",
    "knn_logits": "features",
    "load_trained": "inference",
    "model_header": "inference",
    "parse_hparams": "adapters",
    "parse_strategy_hparams": "strategies",
    "predict_adapted": "inference",
    "predict_cases": "inference",
    "prediction_rows": "inference",
    "read_volume": "data.volume",
    "recommend": "selection",
    "recommend_masks": "selection",
    "report_run": "reporting",
    "restore_weights": "checkpoints",
    "scan_folder": "data.catalog",
    "segment_cases": "segmenting",
    "strategy_class": "strategies",
    "suggest_preprocess": "data.preprocess",
    "training_record": "finetuning",
    "weights_here": "models",
    "with_features": "models",
    "write_map": "data.write",
    "write_mask": "data.write",
    "write_page": "evaluation",
    "write_report": "evaluation",
    "write_seg": "data.seg",
}

__all__ = [
    "AdaBN",
    "Adapter",
    "Batch",
    "CheckpointError",
    "ClassificationLoss",
    "Classifier",
    "Cohort",
    "ConfigError",
    "DANN",
    "DataError",
    "Estimate",
    "FeatureDataset",
    "FineTune",
    "FineTuning",
    "FitConfig",
    "FitResult",
    "LabelMap",
    "MaskWriter",
    "MedtlError",
    "Output",
    "PredictionTable",
    "Preprocess",
    "Results",
    "Run",
    "RunContext",
    "SegmentationLoss",
    "SegmentationTable",
    "Segmenter",
    "SegmenterTuning",
    "Strategy",
    "WeightsError",
    "adapt_cases",
    "adapter_class",
    "build_adapter",
    "build_classifier",
    "build_encoder",
    "build_segmenter",
    "build_strategy",
    "calibration_note",
    "choose_network",
    "class_weights",
    "collect_cases",
    "environment",
    "evaluate",
    "extract_depths",
    "extract_features",
    "feature_table",
    "fine_tune",
    "fine_tune_segmenter",
    "fit",
    "knn_logits",
    "load_trained",
    "model_header",
    "parse_hparams",
    "parse_strategy_hparams",
    "predict_adapted",
    "predict_cases",
    "prediction_rows",
    "read_volume",
    "recommend",
    "recommend_masks",
    "report_run",
    "restore_weights",
    "scan_folder",
    "segment_cases",
    "strategy_class",
    "suggest_preprocess",
    "training_record",
    "weights_here",
    "with_features",
    "write_map",
    "write_mask",
    "write_page",
    "write_report",
    "write_seg",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"medtl.{_HOME[name]}"), name)
    if name[:1].isupper():  # any adaptation method, listed here or not
        adapters = importlib.import_module("medtl.adapters")
        if hasattr(adapters, name):
            return getattr(adapters, name)
    raise AttributeError(f"module 'medtl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
