"""What a run knows and its table does not: names, notes, how training went and what it cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class LearningCurve:
    """How the training of one model and seed went.

    Attributes:
        model: name of the model, as in the table.
        seed: training seed, as in the table.
        epochs: number of each epoch, from 1.
        train_loss: mean loss over each epoch, on augmented training cases; None where it was not logged.
        validation_loss: loss on the source's validation cases after each epoch; empty without validation.
        kept_epoch: the epoch whose weights were kept, from 1.
        train_accuracy: balanced accuracy (segmentation: mean Dice) of the kept weights on the training cases, not
            augmented; None = unknown.
        validation_accuracy: the same on the validation cases.
        validation_patients: patients that `validation_accuracy` rests on, 0 = unknown; its interval comes from the
            table where that holds validation cases, else from this number.
        validation_accuracies: balanced accuracy on validation after each epoch, or empty.
    """

    model: str
    seed: str
    epochs: tuple[int, ...]
    train_loss: tuple[float | None, ...]
    validation_loss: tuple[float | None, ...] = ()
    kept_epoch: int | None = None
    train_accuracy: float | None = None
    validation_accuracy: float | None = None
    validation_patients: int = 0
    validation_accuracies: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Cost:
    """What one model cost, mean over training seeds; None = not measured.

    Attributes:
        model: name of the model, as in the table.
        train_seconds: wall time of one training, with the features' extraction where they were cached.
        predict_seconds_per_case: wall time.
        peak_memory_mb: highest memory in training: of the accelerator, else of the process.
        parameters: of the whole model.
        trained_parameters: those that training changed.
    """

    model: str
    train_seconds: float | None = None
    predict_seconds_per_case: float | None = None
    peak_memory_mb: float | None = None
    parameters: int | None = None
    trained_parameters: int | None = None


@dataclass(frozen=True)
class RunContext:
    """What the run knows and the table does not; every field may be left out.

    Attributes:
        title: headline of the report.
        source_sites: names of the internal sites.
        target_site: name of the external site.
        reference_model: the model that others are compared with (default: `source_only` if it is there).
        keep: what a rule without target labels would keep: `{"model", "reason", "evidence": [{"name",
            "values": {model: number}, "verdict"}]}`.
        notes: remarks for the report.
        flow: counts by site, from the folders to the cases.
        oracle: whether target labels were read to choose anything.
        target_trained: models that were trained with labels of the target: upper bounds, never candidates.
        target_seen_unlabelled: whether the target's scans, without labels, took part in the training; None =
            unknown.
        command: the command line of the run.
        versions: names and versions of the software.
        seeds: training seeds.
        learning: how the training of each model and seed went.
        costs: what each model cost.
        sizes: labelled training patients of each model.
        methods: one or two sentences on a model: its loss, and what that does to calibration.
    """

    title: str = ""
    source_sites: tuple[str, ...] = ()
    target_site: str = ""
    reference_model: str = ""
    keep: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
    flow: dict[str, Any] = field(default_factory=dict)
    oracle: bool = False
    target_trained: tuple[str, ...] = ()
    target_seen_unlabelled: bool | None = None
    command: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    learning: tuple[LearningCurve, ...] = ()
    costs: tuple[Cost, ...] = ()
    sizes: dict[str, int] = field(default_factory=dict)
    methods: dict[str, str] = field(default_factory=dict)
