"""What every evaluation needs, whatever the task: options, the reference model, verdicts, the run's own notes."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from medtl.errors import ConfigError, near_matches
from medtl.evaluation.context import RunContext
from medtl.evaluation.statistics.estimate import Estimate


def hide_folders(command: str) -> str:
    """A command line without the folders of absolute paths, which often carry names of people.

    Example:
        >>> hide_folders("medtl report /home/ann/p.csv --out /data/x")
        'medtl report …/p.csv --out …/x'
    """
    return re.sub(r"(?<![\w.])(?:~|[A-Za-z]:)?[/\\](?:[^\s'\"]*[/\\])?([^\s'\"/\\]*)", r"…/\1", command)


def plain_values(value: Any) -> Any:
    """A run's own notes as JSON has them: no numpy numbers, no tuples, and None for what is not finite."""
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


def verdict_of(found: Estimate, better: str) -> str:
    """`gain` or `harm` where the interval leaves out 0."""
    if found.value is None or found.lo is None or found.hi is None:
        return "not estimable"
    if found.lo <= 0 <= found.hi:
        return "no clear difference"
    return "gain" if (found.lo > 0) == (better == "higher") else "harm"


def finite(value: float | None) -> float | None:
    """The number, or None where it is none."""
    return float(value) if value is not None and np.isfinite(value) else None


def check_resampling(replicates: int, level: float) -> None:
    """Refuses numbers of resamples and levels that make no interval."""
    if replicates < 100:
        raise ConfigError(f"At least 100 resamples are needed for an interval; got {replicates}.")
    if not 0.5 <= level < 1:
        raise ConfigError(
            f"The confidence level must lie between 0.5 and 1, for instance 0.95; got {level:g}."
        )


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
    )


def now() -> str:
    """Date and time of the report."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
