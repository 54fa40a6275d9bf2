"""The contract of a task: what classification and segmentation do differently, and nothing else."""

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
"""What `accuracy` judges."""


class Predictions(ABC):
    """Gathers what models predict, and writes it to the run."""

    @abstractmethod
    def add(
        self, adapter: Adapter, data: CaseDataset, model: str, seed: int, *, candidate: bool = True
    ) -> None:
        """Predicts cases and keeps the rows.

        Args:
            adapter: a trained model; a test-time method adapts to cases of the target first.
            data: cases of one domain and split.
            model: its name.
            seed: its training seed.
            candidate: it may be chosen; a model that has seen labels of the target may not.
        """

    @abstractmethod
    def finish(self) -> PredictionTable | SegmentationTable:
        """Writes the table and reads it back as anyone would."""

    @abstractmethod
    def recommend(self, reference: str) -> Decision:
        """Which of the candidates to keep, decided without a label of the target; `reference` was not adapted."""


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
        """The cases of the folders; the shares are of each source's patients, see `collect_cases`."""
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
        """Refuses what the configuration asks for and the task cannot do, before anything is written."""

    def check_adapter(self, adapter: Adapter) -> None:
        """Refuses a method or strategy that does not go with the configuration."""
        return

    @abstractmethod
    def build(self, encoder: str, num_classes: int, preprocess: Preprocess, seed: int) -> nn.Module:
        """An untrained model on an encoder.

        Raises:
            ConfigError: an unknown name, or a network that the encoder cannot do.
            WeightsError: the weights are absent or of another encoder.
        """

    def samples(self, cohort: Cohort) -> dict[str, Any]:
        """What `Cohort.dataset` needs to know of this task's samples, as keyword arguments."""
        return {}

    @abstractmethod
    def loss(self, cohort: Cohort, cases: Sequence[Case]) -> nn.Module | None:
        """The source's loss for these training cases; None is the adapter's own.

        Raises:
            DataError: cases that no model can be trained on.
        """

    def inputs(self, adapter: Adapter, data: CaseDataset, run: Run, *, training: bool = False) -> Labelled:
        """What a model is given of the data: the samples, or features where the encoder stands still."""
        return data

    @abstractmethod
    def accuracy(self, adapter: Adapter, data: Labelled, batch_size: int) -> float | None:
        """How the model does on labelled cases, not augmented: balanced accuracy, or mean Dice; None without labels."""

    @abstractmethod
    def predict_some(self, adapter: Adapter, data: CaseDataset, **samples: Any) -> int:
        """Predicts a few cases as new ones would be, to know how long that takes; returns how many."""

    def header(self, cohort: Cohort) -> Mapping[str, Any]:
        """What `model_header` needs to know of this task, as keyword arguments."""
        return {}

    @abstractmethod
    def predictions(self, run: Run, cohort: Cohort) -> Predictions:
        """An empty table for a run."""

    @property
    @abstractmethod
    def note(self) -> str:
        """What the report says about the loss of every model, or ""."""


def task_of(config: TrainingConfig) -> Task:
    """The task that a configuration asks for: classification from labels, segmentation from masks."""
    from_masks = config.task == "masks"
    module = importlib.import_module(f"medtl.tasks.{'segmentation' if from_masks else 'classification'}")
    kind: type[Task] = module.Segmentation if from_masks else module.Classification
    task = kind(config)
    task.check()
    return task
