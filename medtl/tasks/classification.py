"""Classification, from labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from torch.utils.data import Subset

from medtl.adapters import Adapter
from medtl.data.cases.table import Case
from medtl.data.cohort import Cohort
from medtl.data.tensors.dataset import CaseDataset
from medtl.data.tensors.spec import Preprocess
from medtl.encoders.features import FeatureDataset, extract_features
from medtl.errors import ConfigError, DataError
from medtl.evaluation import PredictionTable
from medtl.models import Classifier, build_classifier
from medtl.models.losses.classification import ClassificationLoss, calibration_note, check_imbalance
from medtl.prediction.classify import predict_adapted, predict_cases, prediction_rows
from medtl.runs import Run
from medtl.selection.decide import Decision, recommend
from medtl.tasks.task import Labelled, Predictions, Task
from medtl.training.learning import balanced_accuracy

_TIMED = 32
"""Number of cases predicted to measure the time per case."""


class Classification(Task):
    """One class per case."""

    name: ClassVar[str] = "classification"

    def check(self) -> None:
        """Refuses an unknown remedy for rare classes and an unknown head."""
        check_imbalance(self.config.imbalance)
        self._hidden_units()

    def check_adapter(self, adapter: Adapter) -> None:
        """Refuses a remedy for rare classes if nothing is trained."""
        if not adapter.strategy.trains and self.config.imbalance != "none":
            raise ConfigError(
                f"--imbalance {self.config.imbalance} acts in training, and {type(adapter.strategy).__name__} trains "
                "nothing. Leave one of them out."
            )

    def build(self, encoder: str, num_classes: int, preprocess: Preprocess, seed: int) -> Classifier:
        """A classifier; the slices of a volume are pooled by attention."""
        return build_classifier(
            encoder,
            num_classes,
            weights=self.config.weights,
            in_channels=preprocess.channels,
            bottleneck=self._hidden_units(),
            image_size=preprocess.image_size,
            pooling="attention" if preprocess.spatial_dims == 3 else "mean",
            seed=seed,
        )

    def loss(self, cohort: Cohort, cases: Sequence[Case]) -> ClassificationLoss | None:
        """Cross-entropy, or the remedy that `imbalance` names, for the classes of these cases."""
        classes = cohort.table.classes
        labels = [classes.index(c.label) for c in cases if c.label in classes]
        counts = np.bincount(labels, minlength=len(classes))
        if absent := [c for c, n in zip(classes, counts, strict=True) if not n]:
            if all(c.domain == "target" for c in cases):
                raise DataError(
                    f"Half of the target's labelled patients, from which --target-trained learns, have no case of "
                    f"{', '.join(absent)}. Leave --target-trained out, or label more patients of the target."
                )
            raise DataError(
                f"Training has no case of {', '.join(absent)} among its {len(cases)} cases, expected one of each of "
                f"the {len(classes)} classes. Add patients, choose --classes, or another --seed for the split."
            )
        return ClassificationLoss.of_labels(self.config.imbalance, labels, len(classes))

    def inputs(
        self, adapter: Adapter, data: CaseDataset, run: Run, *, training: bool = False
    ) -> CaseDataset | FeatureDataset:
        """The images, or their stored features if the strategy does not change the encoder."""
        if not adapter.strategy.on_features:
            return data
        assert isinstance(adapter.model, Classifier)
        views = adapter.strategy.views if training and self.config.augment != "none" else 1
        return extract_features(adapter.model.encoder, data, run.cache / "features", views=views)

    def accuracy(self, adapter: Adapter, data: Labelled, batch_size: int) -> float | None:
        """Balanced accuracy."""
        plain = data.plain()
        if plain.labels is None:
            return None
        return balanced_accuracy(plain.labels, predict_cases(adapter.predictor, plain))

    def predict_some(self, adapter: Adapter, data: CaseDataset, **samples: Any) -> int:
        """Predicts preprocessed scans: new scans have no stored features."""
        some = Subset(data.plain(), range(min(_TIMED, len(data))))
        return len(predict_cases(adapter.predictor, some))

    def predictions(self, run: Run, cohort: Cohort) -> Predictions:
        """Logits, in `predictions.csv`."""
        return ClassPredictions(self, run, cohort.table.classes)

    @property
    def note(self) -> str:
        """The effect of the remedy for rare classes on the probabilities."""
        return calibration_note(self.config.imbalance)

    def _hidden_units(self) -> int | None:
        head = str(getattr(self.config, "head", "linear"))
        kind, colon, width = head.partition(":")
        if head == "linear":
            return None
        if kind != "dense" or (colon and not (width.isdigit() and int(width) > 0)):
            raise ConfigError(
                f"There is no head {head!r}. Expected linear, or dense:N with N hidden units (dense:1024)."
            )
        return int(width or 1024)


class ClassPredictions(Predictions):
    """Rows of the predictions table.

    Args:
        task: provides the inputs of a model.
        run: the run that the table belongs to.
        classes: names in the order of the logits.
    """

    def __init__(self, task: Classification, run: Run, classes: Sequence[str]) -> None:
        self.task, self.run, self.classes = task, run, tuple(classes)
        self._rows: list[pd.DataFrame] = []
        self._bounds: set[str] = set()
        self._table = pd.DataFrame()

    def add(
        self, adapter: Adapter, data: CaseDataset, model: str, seed: int, *, candidate: bool = True
    ) -> None:
        """Adds the logits of cases."""
        given = self.task.inputs(adapter, data, self.run)
        if data.cases[0].domain == "source":
            with adapter.on_source():
                logits = predict_cases(adapter.predictor, given)
        elif isinstance(given, CaseDataset):
            logits = predict_adapted(adapter, given)
        else:
            logits = predict_cases(adapter.predictor, given)
        self._rows.append(prediction_rows(data.cases, logits, self.classes, model, seed))
        if not candidate:
            self._bounds.add(model)

    def finish(self) -> PredictionTable:
        """Writes `predictions.csv`."""
        self._table = self.run.write_table("predictions.csv", self._rows)
        return PredictionTable.from_frame(self._table)

    def recommend(self, reference: str) -> Decision:
        """Decides from source validation and the predictions for the target."""
        rows = pd.concat(self._rows, ignore_index=True)
        return recommend(rows[~rows.model.isin(self._bounds)], self.classes, reference=reference)
