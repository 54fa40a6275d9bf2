"""Facts about a run that its table does not hold: names, notes, learning curves and cost."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from medtl.errors import ConfigError, near_matches
from medtl.evaluation.statistics.estimate import finite


@dataclass(frozen=True)
class LearningCurve:
    """The learning curve of one model and seed.

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
    """The cost of one model, averaged over training seeds; None means not measured.

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
    """Facts about a run that the table does not hold; every field is optional.

    Attributes:
        title: headline of the report.
        source_sites: names of the internal sites.
        target_site: name of the external site.
        reference_model: the model that others are compared with (default: `source_only` if it is there).
        keep: what a rule without target labels would keep: `{"model", "reason", "evidence": [{"name",
            "values": {model: number}, "verdict"}]}`.
        notes: remarks for the report.
        flow: counts by site, from the folders to the cases.
        stamps: what was read of the target's labels before the evaluation: `few_labels` if a model learnt from some,
            `oracle` if a model or a setting was chosen by them.
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
    stamps: tuple[str, ...] = ()
    target_trained: tuple[str, ...] = ()
    target_seen_unlabelled: bool | None = None
    command: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    learning: tuple[LearningCurve, ...] = ()
    costs: tuple[Cost, ...] = ()
    sizes: dict[str, int] = field(default_factory=dict)
    methods: dict[str, str] = field(default_factory=dict)

    @property
    def oracle(self) -> bool:
        """Whether labels of the target were read to choose anything."""
        return "oracle" in self.stamps

    @property
    def few_labels(self) -> bool:
        """Whether a model learnt from a few labels of the target."""
        return "few_labels" in self.stamps


def choose_reference(models: tuple[str, ...], context: RunContext) -> tuple[str | None, str]:
    """The model that others are compared with, and why; None where there is one model."""
    if context.reference_model:
        if context.reference_model not in models:
            hint = near_matches(context.reference_model, models)
            raise ConfigError(f"The reference model {context.reference_model!r} is not in the table. {hint}")
        return context.reference_model, "as chosen"
    if len(models) == 1:
        return None, ""
    if "source_only" in models:
        return "source_only", "the model trained on the source alone"
    candidates = [name for name in models if name not in context.target_trained] or list(models)
    return candidates[0], "the first model of the table"


def in_order(models: Sequence[str], reference: str | None, bounds: Sequence[str]) -> tuple[str, ...]:
    """The reference first, so that every table reads from before to after; upper bounds last."""
    return tuple(sorted(models, key=lambda name: (name != reference, name in bounds)))


def finish_context(context: RunContext, models: Sequence[str], warnings: Sequence[str]) -> RunContext:
    """The run's notes as JSON has them, without folders.

    Raises:
        ConfigError: a model that has seen target labels is none of the table's, or is to be kept.
    """
    for name in context.target_trained:
        if name not in models:
            raise ConfigError(
                f"The model {name!r}, trained with target labels, is not in the table. {near_matches(name, models)}"
            )
    kept = (context.keep or {}).get("model")
    if kept is not None and kept in context.target_trained:
        raise ConfigError(
            f"{kept!r} was trained with target labels: it is an upper bound and cannot be the model to keep. Choose "
            "among the models that have seen none."
        )
    return replace(
        context,
        notes=(*context.notes, *warnings),
        keep=plain_values(context.keep),
        flow=plain_values(context.flow),
        versions={str(name): str(version) for name, version in context.versions.items()},
        command=hide_folders(context.command),
        source_sites=tuple(context.source_sites),
        target_trained=tuple(context.target_trained),
        seeds=tuple(context.seeds),
        stamps=tuple(context.stamps),
    )


def hide_folders(command: str) -> str:
    """A command line without the folders of absolute paths, which often carry names of people.

    Example:
        >>> hide_folders("medtl report /home/ann/p.csv --out /data/x")
        'medtl report …/p.csv --out …/x'
    """
    return re.sub(r"(?<![\w.])(?:~|[A-Za-z]:)?[/\\](?:[^\s'\"]*[/\\])?([^\s'\"/\\]*)", r"…/\1", command)


def plain_values(value: Any) -> Any:
    """A run's own notes as JSON values: no numpy numbers, no tuples, and None for non-finite numbers."""
    if isinstance(value, Mapping):
        return {str(key): plain_values(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_values(item) for item in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return finite(float(value))
    return value if value is None else str(value)


def now() -> str:
    """Date and time of the report."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
