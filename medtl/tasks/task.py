"""The contract of a task: where classification and segmentation differ."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import nn

from medtl.adapters import Adapter
from medtl.config import TrainingConfig
from medtl.data.cases.collect import collect_cases
from medtl.data.cases.table import Case, CaseTable
from medtl.data.cohort import Cohort
from medtl.data.tensors.dataset import CaseDataset
from medtl.data.tensors.preprocess import suggest_preprocess
from medtl.data.tensors.spec import Preprocess
from medtl.encoders.features import FeatureDataset
from medtl.evaluation import PredictionTable, SegmentationTable
from medtl.runs import Run
from medtl.selection.decide import Decision

Labelled = CaseDataset | FeatureDataset
"""The data sets that `accuracy` takes."""


class Predictions(ABC):
    """Collects the predictions of models and writes them to the run."""

    @abstractmethod
    def add(
        self, adapter: Adapter, data: CaseDataset, model: str, seed: int, *, candidate: bool = True
    ) -> None:
        """Predicts cases and stores the rows.

        Args:
            adapter: a trained model; a test-time method first adapts to cases of the target.
            data: cases of one domain and split.
            model: name of the model.
            seed: its training seed.
            candidate: whether it may be chosen; a model that has seen labels of the target may not.
        """

    @abstractmethod
    def finish(self) -> PredictionTable | SegmentationTable:
        """Writes the table and reads it back with all checks."""

    @abstractmethod
    def recommend(self, reference: str) -> Decision:
        """Decides which candidate to keep, without a label of the target; `reference` is the unadapted model."""


class Task(ABC):
    """A task of a run.

    Args:
        config: the recipe's configuration, complete (see `TrainingConfig.ready`).
    """

    name: ClassVar[str]
    keep_spacing: ClassVar[bool] = False

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config

    def collect(self, *, val_fraction: float = 0.25, test_fraction: float = 0.0) -> CaseTable:
        """The cases of the folders; the fractions are of each source's patients, see `collect_cases`."""
        c = self.config
        return collect_cases(
            source=c.source,
            labels=c.labels,
            target=c.target,
            target_labels=c.target_labels,
            classes=c.classes or None,
            masks=c.masks,
            target_masks=c.target_masks,
            structures=c.structures,
            few_labels=getattr(c, "few_labels", None),
            sites=c.sites,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            seed=c.seed,
        )

    def suggest(self, cases: CaseTable) -> Preprocess:
        """The preprocessing that suits the scans, from their headers."""
        c = self.config
        return suggest_preprocess(
            cases.items(), c.image_size, c.slices, c.intensity, keep_spacing=self.keep_spacing
        )

    @abstractmethod
    def check(self) -> None:
        """Refuses a configuration that the task does not support, before anything is written."""

    def check_adapter(self, adapter: Adapter) -> None:
        """Refuses a method or strategy that does not fit the configuration."""
        return

    @abstractmethod
    def build(self, encoder: str, num_classes: int, preprocess: Preprocess, seed: int) -> nn.Module:
        """An untrained model on an encoder.

        Raises:
            ConfigError: an unknown name, or a network that does not fit the encoder.
            WeightsError: the weights are missing or belong to another encoder.
        """

    def samples(self, cohort: Cohort) -> dict[str, Any]:
        """Keyword arguments of `Cohort.dataset` for this task's samples."""
        return {}

    @abstractmethod
    def loss(self, cohort: Cohort, cases: Sequence[Case]) -> nn.Module | None:
        """The source's loss for these training cases; None means the adapter's own.

        Raises:
            DataError: cases that no model can be trained on.
        """

    def inputs(self, adapter: Adapter, data: CaseDataset, run: Run, *, training: bool = False) -> Labelled:
        """The inputs of a model: the samples, or stored features if the encoder is frozen."""
        return data

    @abstractmethod
    def accuracy(self, adapter: Adapter, data: Labelled, batch_size: int) -> float | None:
        """Balanced accuracy or mean Dice on labelled cases without augmentation; None without labels."""

    @abstractmethod
    def predict_some(self, adapter: Adapter, data: CaseDataset, **samples: Any) -> int:
        """Predicts a few cases like new scans, to measure the time; returns their number."""

    def header(self, cohort: Cohort) -> Mapping[str, Any]:
        """Keyword arguments of `model_header` for this task."""
        return {}

    @abstractmethod
    def predictions(self, run: Run, cohort: Cohort) -> Predictions:
        """An empty table for a run."""

    @property
    @abstractmethod
    def note(self) -> str:
        """What the report says about the loss of every model, or ""."""


def task_of(config: TrainingConfig) -> Task:
    """The task that a configuration asks for: classification from labels, segmentation from masks.

    Args:
        config: of a recipe.
    """
    from_masks = config.task == "masks"
    module = importlib.import_module(f"medtl.tasks.{'segmentation' if from_masks else 'classification'}")
    kind: type[Task] = module.Segmentation if from_masks else module.Classification
    task = kind(config)
    task.check()
    return task
