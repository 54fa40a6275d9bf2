"""Learning curves of every model and seed: the run's metrics, with the accuracies of the kept weights."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medtl.cells import unguarded
from medtl.errors import DataError
from medtl.evaluation import LearningCurve

TRAIN_LOSSES = ("source_loss", "loss")
"""The training loss that is drawn, the first that was logged: what a method adds to the supervised loss is not
comparable with the loss on validation."""
VALIDATION_ACCURACIES = ("validation_balanced_accuracy", "validation_dice")


@dataclass(frozen=True)
class Kept:
    """Accuracy of the weights that a training kept, on cases without augmentation.

    Attributes:
        model: name of the model, as in the metrics and the predictions table.
        seed: training seed.
        best_epoch: the kept epoch, counted from 0.
        train_accuracy: balanced accuracy on the training cases (segmentation: mean Dice), or None.
        validation_accuracy: the same on the source's validation cases.
        validation_patients: patients among those.
    """

    model: str
    seed: int
    best_epoch: int
    train_accuracy: float | None = None
    validation_accuracy: float | None = None
    validation_patients: int = 0


def learning_curves(metrics_csv: Path, kept: Sequence[Kept]) -> tuple[LearningCurve, ...]:
    """The learning curve of every kept training, for `RunContext.learning`.

    Args:
        metrics_csv: the run's `metrics.csv`, rows `model, seed, epoch, step, metric, value`.
        kept: the kept weights of each training; one without rows, such as a method without training, is left out.

    Raises:
        DataError: the file is not such a table.

    Example:
        done = fit(adapter, train, folder=folder, validation=validation, metrics=run.metrics("full", 0))
        accuracy = balanced_accuracy(train.labels, predict_cases(adapter.model, train.plain()))
        learning_curves(run.folder / "metrics.csv", [Kept("full", 0, done.best_epoch, accuracy)])
    """
    values = _read(metrics_csv)
    curves = []
    for one in kept:
        rows = values.get((one.model, one.seed), {})
        epochs = sorted({epoch for series in rows.values() for epoch in series})
        if not epochs:
            continue

        def along(*names: str, rows: Any = rows, epochs: Any = epochs) -> tuple[float | None, ...]:
            series = next((rows[name] for name in names if name in rows), None)
            return () if series is None else tuple(series.get(epoch) for epoch in epochs)

        curves.append(
            LearningCurve(
                model=one.model,
                seed=str(one.seed),
                epochs=tuple(epoch + 1 for epoch in epochs),
                train_loss=along(*TRAIN_LOSSES),
                validation_loss=along("validation_loss"),
                kept_epoch=one.best_epoch + 1,
                train_accuracy=one.train_accuracy,
                validation_accuracy=one.validation_accuracy,
                validation_patients=one.validation_patients,
                validation_accuracies=along(*VALIDATION_ACCURACIES),
            )
        )
    return tuple(curves)


def balanced_accuracy(labels: Any, logits: Any) -> float | None:
    """Mean recall over the classes that occur, predicting the most probable class.

    Args:
        labels: (n,) class of each case, negative where unknown; or (n, k) 0 or 1 for k findings, nan where unknown,
            whose balanced accuracies are averaged.
        logits: (n, classes), or (n, k).

    Returns:
        Balanced accuracy, or None if no case has a label.
    """
    labels, logits = np.asarray(labels), np.asarray(logits, dtype=np.float64)
    if labels.ndim == 2:
        columns = [
            _mean_recall(np.nan_to_num(truth, nan=-1), score > 0)
            for truth, score in zip(labels.T.astype(float), logits.T, strict=True)
        ]
        found = [value for value in columns if value is not None]
        return float(np.mean(found)) if found else None
    return _mean_recall(labels, logits.argmax(axis=1))


def _mean_recall(truth: Any, called: Any) -> float | None:
    recalls = [np.mean(called[truth == c] == c) for c in np.unique(truth[truth >= 0])]
    return float(np.mean(recalls)) if recalls else None


def _read(path: Path) -> dict[tuple[str, int], dict[str, dict[int, float]]]:
    """Values by (model, seed), metric and epoch; if an epoch was written twice, the later one."""
    values: dict[tuple[str, int], dict[str, dict[int, float]]] = {}
    if not path.is_file():
        return values
    with path.open(newline="", encoding="utf-8") as file:
        for line, row in enumerate(csv.DictReader(file), start=2):
            try:
                series = values.setdefault((unguarded(row["model"]), int(row["seed"])), {}).setdefault(
                    row["metric"], {}
                )
                value = float(row["value"])
                if np.isfinite(value):
                    series[int(row["epoch"])] = value
            except (KeyError, TypeError, ValueError):
                raise DataError(
                    f"The metrics {path.name!r} are not readable at line {line}: expected the columns model, seed, "
                    "epoch, step, metric and value, the last a number. The file is the run's own; make the run anew."
                ) from None
    return values
